"""Every entry of the table by experiment: the same course of steps with scaled gradients, and with scaled weights."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn, optim
from torch.utils import _pytree

from network_surgery.ops.network.optimizer_keys import KEYS

SCALES = torch.tensor([0.25, -0.5, 1.0, 3.0, 0.7, -2.0])
#: Settings that bring further state about, where a class has them. Weights stay all but as they are set.
SETTINGS = {"lr": 1e-12, "momentum": 0.9, "amsgrad": True, "ams_bound": True, "centered": True, "weight_decay": 0.0,
            "eps": 1e-30, "relative_step": False, "print_change_log": False}  # fmt: skip
#: These take another optimizer, or no tensors (see ``test_optimizer_state``).
OTHERS = ("Lookahead", "SAM", "Parameter")
#: State with an epsilon of its own, or with a step size of its own that comes from all gradients together.
BLURRED = ("Adadelta", "Lamb", "Prodigy")
#: The shapes to try where both of these cannot be.
SHAPES = {"Muon": ((6, 5),), "Adafactor": ((6,),), **dict.fromkeys(BLURRED, ())}


def classes(package):
    module = pytest.importorskip({"torch": "torch.optim", "timm": "timm.optim"}.get(package, package))
    for name in KEYS[package]:
        kind = getattr(module, name, None)
        if isinstance(kind, type) and issubclass(kind, optim.Optimizer) and name not in OTHERS:
            yield name, kind


def state_after(kind, settings, shape, rows=1.0, columns=1.0):
    """What the optimizer keeps after some steps on weights and gradients that do not depend on its own steps."""
    numbers = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=numbers) * columns)
    torch.manual_seed(0)
    optimizer = kind([parameter], **settings)
    getattr(optimizer, "train", lambda: None)()

    def closure():
        parameter.grad = gradient.clone()
        return torch.tensor(1.0)

    for step in range(4):
        weight, gradient = (torch.randn(shape, generator=numbers) for _ in range(2))
        gradient = gradient * rows
        if step:
            parameter.data = weight * columns
        closure()
        if kind.__name__ == "SparseAdam":
            parameter.grad = parameter.grad.to_sparse()
        optimizer.step(*([closure] if kind.__name__.endswith("Closure") else []))
    return optimizer.state[parameter]


@pytest.mark.parametrize("package", [each for each in KEYS if each not in ("apex", "bitsandbytes", "deepspeed")])
@pytest.mark.filterwarnings("ignore")
def test_the_degrees_are_those_of_the_library(package):
    tried = 0
    for name, kind in classes(package):
        accepted, degrees = inspect.signature(kind).parameters, KEYS[package][name]
        settings = {key: value for key, value in SETTINGS.items() if key in accepted}
        if "eps" in accepted and not isinstance(accepted["eps"].default, float):
            del settings["eps"]
        for shape in SHAPES.get(name, ((6, 5), (6,))):
            rows = SCALES.view(-1, *[1] * (len(shape) - 1))
            columns = torch.linspace(-1, 2, 5) if len(shape) > 1 else torch.tensor(2.0)
            factors = {"magnitude": rows.abs(), "sign": rows.sign(), "weights": torch.ones(6, 1)[: len(rows)]}
            plain, scaled = state_after(kind, settings, shape), state_after(kind, settings, shape, rows=rows)
            moved = state_after(kind, settings, shape, columns=columns)
            for key in degrees.keys() & plain.keys():
                degree = degrees[key]
                by_gradient = rows**degree if isinstance(degree, int) else factors[degree].view_as(rows)
                by_weight = columns if degree == "weights" else torch.tensor(1.0)
                leaves = [_pytree.tree_leaves(state[key]) for state in (plain, scaled, moved)]
                for one, other, third in zip(*leaves, strict=True):
                    for actual, factor in ((other, by_gradient), (third, by_weight)):
                        wanted = one.view(shape) * factor
                        slack, where = 1e-4 * float(wanted.abs().max()), f"{package}.{name} {key} {shape}"
                        torch.testing.assert_close(actual.view(shape), wanted, rtol=1e-3, atol=slack, msg=where)
                        tried += 1
    assert tried or package == "prodigyopt"
