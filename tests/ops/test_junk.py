"""Every public name, with one argument after the other replaced by what it is not: one sentence, or it works."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from network_surgery import ops
from network_surgery.ops import SurgeryError
from tests.ops.junk import JUNK

#: Types of which nobody makes an object by hand, and names that are no functions.
LEFT_OUT = {
    "HiddenLayer": "an anatomy makes them", "Operation": "abstract", "Prediction": "predicted_loss_change makes it",
    "Size": "a tuple of numbers", "OPERATIONS": "a dict", "SurgeryError": "an error",
}  # fmt: skip


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))


def calls(path: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Name → a function and arguments with which it works."""
    model = network()
    inputs, targets = torch.randn(12, 8), torch.arange(12) % 3
    optimizer = torch.optim.Adam(model.parameters())
    anatomy = ops.Anatomy(model, inputs)
    layer, signals, minimum = anatomy["0"], ops.Signals(model, inputs, targets), ops.MinWeight(0.5)
    plan = minimum.propose(layer)
    file = path / "network.pt"
    ops.save(network(), file)
    step = ops.Step(ops.Moment(1), "0", minimum)
    trained = {"optimizers": optimizer, "averages": copy.deepcopy(model)}
    found: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "Anatomy": (ops.Anatomy, {"model": model, "example_input": inputs}),
        "Anatomy[]": (anatomy.__getitem__, {"name": "0"}),
        "Signals": (ops.Signals, {"model": model, "inputs": inputs, "targets": targets}),
        "Signals.over": (ops.Signals.over, {"model": model, "batches": [inputs], "layers": [layer]}),
        "Plan": (ops.Plan, {"layer": layer, "operation": "mine", "sources": (0, 1)}),
        "Moment": (ops.Moment, {"count": 3, "unit": "ep"}),
        "Moment.parse": (ops.Moment.parse, {"text": "3ep"}),
        "Condition": (ops.Condition, {"threshold": 0.1, "gain": 0.2, "first": ops.Moment(1), "every": ops.Moment(1),
                                      "times": 2, "measure": "redundancy"}),
        "Condition.parse": (ops.Condition.parse, {"text": "redundancy(0.01) >= 0.1 from 2ep every 1ep at most 2"}),
        "Allocation": (ops.Allocation, {"budget": {"flops": 0.5}, "method": "uniform", "layers": ("0",)}),
        "Step": (ops.Step, {"when": ops.Moment(1), "layer": "0", "operation": minimum, "repair": ("bias",),
                            "after": "rewarm", "after_length": 1.0, "freeze": 1.0, "lr_factor": 0.5}),
        "Schedule": (ops.Schedule, {"steps": (step,)}),
        "Schedule.from_data": (ops.Schedule.from_data, {"data": ops.Schedule((step,)).to_data()}),
        "Schedule.check": (ops.Schedule((step,)).check, {"layers": ["0"], "epochs": 3, "per_epoch": 2}),
        "adopt": (ops.adopt, {"model": network(), "description": ops.describe(network())}),
        "allocate": (ops.allocate, {"anatomy": anatomy, "operation": minimum, "budget": {"flops": 0.5},
                                    "method": "uniform", "signals": signals, "seed": 0, "layers": ("0",),
                                    "repair": ("bias",)}),
        "apply": (ops.apply, {"plan": plan, **trained}),
        "carry_architecture": (ops.carry_architecture, {"model": network()}),
        "compact": (ops.compact, {"anatomy": anatomy, "signals": signals, **trained}),
        "constructor_arguments": (ops.constructor_arguments, {"model": network(), "before": network()}),
        "dead_units": (ops.dead_units, {"layer": layer, "signals": signals, "threshold": 0.1}),
        "describe": (ops.describe, {"model": model}),
        "free_attention": (ops.free_attention, {"model": network()}),
        "frozen_units": (ops.frozen_units, {"layer": layer, "signals": signals}),
        "inner": (ops.inner, {"model": model}),
        "load": (ops.load, {"factory": network, "path": file}),
        "materialize": (ops.materialize, {"model": network()}),
        "measure": (ops.measure, {"plan": plan, "batch": inputs}),
        "operate": (ops.operate, {"layer": layer, "operation": minimum, "signals": signals, "repair": ("bias",),
                                  "verify": inputs, **trained}),
        "predicted_loss_change": (ops.predicted_loss_change, {"plan": plan, "inputs": inputs, "targets": targets}),
        "register_state": (ops.register_state, {"optimizer_class": torch.optim.Adam, "key": "mine", "degree": 1}),
        "rewrap": (ops.rewrap, {"model": model}),
        "save": (ops.save, {"model": model, "path": path / "other.pt"}),
        "saved_bytes": (ops.saved_bytes, {"model": model}),
        "size": (ops.size, {"anatomy": anatomy, "widths": {"0": 3}}),
        "take_over_masks": (ops.take_over_masks, {"model": network()}),
        "trial_surgery": (lambda plan: ops.trial_surgery(plan).__enter__(), {"plan": plan}),
        "unit_scores": (ops.unit_scores, {"layer": layer, "signals": signals, "score": "mrs", "seed": 0}),
        "weight_scores": (ops.weight_scores, {"model": model, "names": ["0.weight"], "score": "magnitude",
                                              "inputs": inputs, "targets": targets, "seed": 0}),
        "without_masks": (ops.without_masks, {"model": model}),
        "without_surgery": (ops.without_surgery, {"model": model}),
    }  # fmt: skip
    for name, kind in ops.OPERATIONS.items():
        parameters = inspect.signature(kind).parameters
        found[kind.__name__] = (kind, {each: parameter.default for each, parameter in parameters.items()})
        found[f"{name}.propose"] = (kind().propose, {"layer": layer, "signals": signals})
    return found


NAMES = list(calls(Path(tempfile.gettempdir())))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_whatever_it_is_given_it_works_or_says_why_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some of it names files
    function, given = calls(tmp_path)[name]
    for argument in list(given):
        for what, junk in JUNK.items():
            try:
                function(**given | {argument: junk})
            except SurgeryError as refusal:
                assert "\n" not in str(refusal) and 10 < len(str(refusal)) < 500, (argument, what)
            except Exception as error:
                raise AssertionError(f"{name}({argument}={what})") from error
            else:  # it may have changed the network
                function, given = calls(tmp_path)[name]


def test_every_public_name_is_tried() -> None:
    tried = {name.partition(".")[0] for name in NAMES}
    assert set(ops.__all__) - tried == set(LEFT_OUT)
