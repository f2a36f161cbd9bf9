"""The expansions of the code that was published with the thesis (InterruptNet), with its faults, for comparison.

It rounds the number of new units down, as Python's ``int()`` does, and splits a fan-out into equal shares. Its removals
are choices of ``EigenRemove`` and ``MinWeight``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from network_surgery.ops import HiddenLayer, Plan, Signals, WeakExpand, ZeroExpand
from network_surgery.ops.anatomy import Place
from network_surgery.ops.operations.weak_expand import by_mean_weight


@dataclass(frozen=True, repr=False)
class PublishedWeakExpand(WeakExpand):
    """WeakExpand whose copies meet other biases than their originals.

    The published code sorts the units, puts their weights back into order and leaves biases and norm scales sorted, so
    that they meet other units, and it starts BatchNorm's running statistics anew. The function changes; and where a
    layer grows by less than its size, copies meet other biases than their originals and part by that.
    """

    split: str = "equal"
    rounding: str = field(default="down", repr=False)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        """The copies as units of their own, since theirs are the weights of one old unit and the bias of another."""
        plan, order = super().propose(layer, signals), by_mean_weight(layer)
        copied = plan.sources[layer.units :]
        ranks = torch.tensor(copied).argsort(stable=True).argsort(stable=True)
        sorted_back = torch.tensor(copied)[ranks].tolist()
        newborn = {place.tensor: _of_units(layer, place, copied) for place in layer.makers}
        replaced: dict[str, Tensor] = {}
        for place in layer.vectors:
            tensor = layer.tensor(place).detach()
            replaced[place.tensor] = tensor.clone()
            newborn[place.tensor] = _of_units(layer, place, sorted_back)
            if place.tensor.endswith(("running_mean", "running_var")):
                replaced[place.tensor].fill_(place.fill)
                newborn[place.tensor].fill_(place.fill)
            else:
                old = _of_units(layer, place, order)
                replaced[place.tensor].index_copy_(place.axis, place.positions.flatten().to(old.device), old)
        assert plan.shares is not None
        mixing = torch.zeros(layer.units, len(plan.sources), dtype=torch.float64)
        mixing[plan.sources, range(len(plan.sources))] = plan.shares
        sources = (*range(layer.units), *(-1,) * len(copied))
        readers = {place.tensor: mixing for place in layer.readers}
        return Plan(layer, repr(self), sources, replaced=replaced, newborn=newborn, mixing=readers)


@dataclass(frozen=True, repr=False)
class PublishedZeroExpand(ZeroExpand):
    """Zero Weight Expansion whose new units have norm scales of zero, too; as nobody reads them, that changes nothing
    more.
    """

    rounding: str = field(default="down", repr=False)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        plan, newborn = super().propose(layer, signals), {}
        for place in layer.vectors:
            if place.fill == 1 and not place.tensor.endswith("running_var"):
                added = plan.units_after - plan.units_before
                newborn[place.tensor] = torch.zeros_like(_of_units(layer, place, [0] * added))
        return replace(plan, newborn=newborn)


def _of_units(layer: HiddenLayer, place: Place, units: Sequence[int]) -> Tensor:
    """A tensor's slices of these units, one after the other along the place's axis."""
    tensor = layer.tensor(place).detach()
    return tensor.index_select(place.axis, place.positions[list(units)].flatten().to(tensor.device))
