"""Makes compressed weights plain again, in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from network_surgery.ops.network.expressed import Compressed, at, find_compressed, find_stored, take_off
from network_surgery.ops.network.layout import LAST, any_last
from network_surgery.ops.network.optimizer_state import begin_anew, check, exchange, follow, list_optimizers
from network_surgery.ops.network.wrappers import inner, invalidate_guards
from network_surgery.ops.surgery.surgery import Averages, Optimizers, several


def materialize(model: nn.Module, optimizers: Optimizers = (), averages: Averages = ()) -> list[str]:
    """Makes weights plain, in place, that are hashed, predicted or the like; returns their names. Masks stay.

    The network computes the same from then on, but every entry of a weight is stored and trained for itself. Parameters
    stay the objects that they are. Optimizer state is divided equally among the entries that shared a number (see each
    expression's ``spread``). Layers of an anatomy that was taken before stay true, and channels that came last in
    memory come last again.

    >>> from network_surgery.ops import Anatomy, HashWeights, operate
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> plan = operate(Anatomy(net, torch.zeros(2, 4))["0"], HashWeights(0.25))
    >>> sum(each.numel() for each in net[0].parameters())
    16
    >>> materialize(net), net[0]
    (['0.weight'], Linear(in_features=4, out_features=8, bias=True))

    Raises:
        SurgeryError: an optimizer cannot follow; nothing has changed.
    """
    found: list[str] = []
    known = list_optimizers(optimizers)
    check(known, {n: find_stored(*at(dict(inner(model).named_modules()), n)) for n in find_compressed(inner(model))})
    for place, network in enumerate((inner(model), *map(inner, several(averages)))):
        modules = dict(network.named_modules())
        for name, expression in find_compressed(network).items():
            last = expression.last or any_last(modules.values())
            _make_plain(expression, find_stored(*at(modules, name)), known if place == 0 else (), last)
            take_off(modules, name)
            found += [name] if place == 0 else []
        invalidate_guards(modules.values())
    return found


def _make_plain(expression: Compressed, tensor: Tensor, optimizers: tuple[Optimizer, ...], last: bool) -> None:
    def spread(stored: Tensor, degree: int | None) -> Tensor:
        whole = expression.spread(stored, degree)
        return whole.contiguous(memory_format=LAST[whole.dim()]) if last and whole.dim() in LAST else whole

    with torch.inference_mode(False), torch.no_grad():
        begin_anew(optimizers, tensor, "Adafactor")
        gradient = None if tensor.grad is None else spread(tensor.grad, 1)
        follow(optimizers, tensor, spread)
        exchange(tensor, spread(tensor.data, None), gradient)
