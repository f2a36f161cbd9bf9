"""Which layers a failing trial of many at once is due to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from network_surgery.ops.anatomy.stage import Problem

if TYPE_CHECKING:
    from network_surgery.ops.anatomy.layers import HiddenLayer

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

Trial = Callable[[Sequence["HiddenLayer"]], Problem | None]


def isolate(layers: Sequence[HiddenLayer], trial: Trial, problem: Problem | None) -> list[tuple[HiddenLayer, str]]:
    """The layers that fail a trial; ``problem`` is what it says of all of them.

    Where the network stops running, those met in the module where it does are under suspicion; they are left out kind
    by kind (the same place in modules of one class), in the whole network, until it runs past that point.
    """
    remaining = list(layers)
    found: list[tuple[HiddenLayer, str]] = []
    while problem is not None:
        culprit: tuple[object, ...] | None = None
        after: Problem | None = None
        kinds = {layer: _kind(layer, problem.module) for layer in remaining}
        for kind in _suspects(kinds, problem.module):
            left = trial([layer for layer in remaining if kinds[layer] != kind])
            passed = left is None or left.module != problem.module
            if passed or (culprit is None and left != problem):  # one of several culprits, perhaps
                culprit, after = kind, left
            if passed:
                break
        if culprit is None or (after is not None and after.module is None):
            return found + _divide(remaining, trial)
        found += [(layer, problem.reason) for layer in remaining if kinds[layer] == culprit]
        remaining = [layer for layer in remaining if kinds[layer] != culprit]
        problem = after
    return found


def _suspects(kinds: Mapping[HiddenLayer, tuple[object, ...]], module: str | None) -> list[tuple[object, ...]]:
    """The kinds of layers that a module meets: heads and groups first, then the most local ones."""
    met = {
        kind: (not layer.factor.kind, len(layer.places))
        for layer, kind in reversed(list(kinds.items()))
        if module is not None and any(place.tensor.startswith(f"{module}." if module else "") for place in layer.places)
    }
    return sorted(met, key=lambda kind: met[kind])


def _divide(layers: Sequence[HiddenLayer], trial: Trial) -> list[tuple[HiddenLayer, str]]:
    """The layers that fail, kind by kind and then by halving."""
    found: list[tuple[HiddenLayer, str]] = []
    kinds: dict[object, list[HiddenLayer]] = {}
    for layer in layers:
        kinds.setdefault(_kind(layer), []).append(layer)
    for group in kinds.values() if len(kinds) > 1 else ():
        problem = trial(group)
        if problem is not None and trial(group[:1]) is not None:  # one cannot, so none of its kind is offered
            found.extend((layer, problem.reason) for layer in group)
    failed = {layer for layer, _ in found}
    return found + _halves([layer for layer in layers if layer not in failed], trial)


def _halves(layers: Sequence[HiddenLayer], trial: Trial) -> list[tuple[HiddenLayer, str]]:
    """The culprits among several layers, by halving."""
    problem = trial(layers) if layers else None
    if problem is None:
        return []
    if len(layers) == 1:
        return [(layers[0], problem.reason)]
    half = len(layers) // 2
    return _halves(layers[:half], trial) + _halves(layers[half:], trial)


def _kind(layer: HiddenLayer, module: str | None = None) -> tuple[object, ...]:
    """Layers are alike where the same attributes, from modules of one class on, lead to what makes them.

    The class is that of ``module`` for what such modules hold (there, the same number in a list does not matter), else
    that of the module that holds the weight, or the list of modules that it is in.
    """
    path, modules = layer.makers[0].tensor.split("."), layer.anatomy.modules
    if module is not None and not isinstance(modules[module], LISTS):
        for depth in range(len(path) - 2, 0, -1):
            if type(modules[".".join(path[:depth])]) is type(modules[module]):
                steps = ("*" if step.isdigit() else step for step in path[depth:])
                return type(modules[module]), *steps, layer.factor.kind
    for depth in range(max(len(path) - 2, 0), -1, -1):
        owner = modules[".".join(path[:depth])]
        if not isinstance(owner, LISTS):
            break
    return type(owner), *path[depth:], layer.factor.kind
