"""WeakExpand: a layer grows by copies of its units, each copy taking a share of the fan-out.

Source: Graham 2019, *Applied HOSVD for weight compression and expansion*, Algorithm 3 and Listing 6.2. The function of
the network is unchanged, since the shares of a unit's copies sum to one. With *equal* shares (the thesis's form) the
copies get equal gradients and never part, so the layer is wider and no richer; uneven and signed shares part them.

The published code (InterruptNet) does something else, which ``published`` repeats for comparison: it sorts the units,
puts their weights back into order and leaves biases and norm scales sorted, so that they meet other units, and it
starts BatchNorm's running statistics anew. The function changes; and where a layer grows by less than its size, copies
meet other biases than their originals and part by that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from network_surgery.ops.anatomy import HiddenLayer, Place
from network_surgery.ops.operation import ROUNDINGS, Operation, choice, fraction, new_units, whole
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals


def split_shares(copies: int, split: str, generator: torch.Generator) -> Tensor:
    """How ``copies`` of one unit share its fan-out: shape ``[copies]``, float64, sum 1."""
    if copies == 1 or split == "equal":
        return torch.full((copies,), 1 / copies, dtype=torch.float64)
    if split == "signed":  # 1.5 and −0.5 for a pair
        shares = torch.full((copies,), -0.5, dtype=torch.float64)
        shares[0] = 1 + 0.5 * (copies - 1)
        return shares
    drawn = 0.25 + torch.rand(copies, generator=generator, dtype=torch.float64)
    return drawn / drawn.sum()


@dataclass(frozen=True, repr=False)
class WeakExpand(Operation):
    """Appends copies of units, those with the largest mean outgoing weight first.

    ``grow``: the fraction of units that is added, above 0 and at most 16 (1 doubles the layer). ``split``: how copies
    share the fan-out: ``equal``, ``uneven`` (random positive shares, by ``seed``) or ``signed``. ``published``: with
    the faults of the published code (see the module). ``rounding`` of the number that is added:
    ``nearest`` or ``down``.
    """

    grow: float = 0.5
    split: str = "uneven"
    seed: int = 0
    published: bool = False
    rounding: str = field(default="nearest", repr=False)

    def __post_init__(self) -> None:
        fraction(self, "grow", self.grow, most=16)
        choice(self, "split", self.split, ("equal", "uneven", "signed"))
        whole(self, "seed", self.seed)
        choice(self, "published", self.published, (True, False))
        choice(self, "rounding", self.rounding, ROUNDINGS)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        added = new_units(layer, self.grow, self.rounding)
        order = layer.outgoing_rows().mean(dim=1).real.argsort(descending=True, stable=True).tolist()
        sources = [*range(layer.units), *(order[i % layer.units] for i in range(added))]
        generator = torch.Generator().manual_seed(self.seed)
        origin = torch.tensor(sources)
        shares = torch.ones(len(sources), dtype=torch.float64)
        for unit in dict.fromkeys(sources[layer.units :]):
            copies = (origin == unit).nonzero().squeeze(1)
            shares[copies] = split_shares(len(copies), self.split, generator)
        if self.published:
            return self._with_faults(layer, order, sources, shares)
        return Plan(layer, repr(self), tuple(sources), shares=shares, error=0.0 if layer.exact else None)

    def _with_faults(self, layer: HiddenLayer, order: list[int], sources: list[int], shares: Tensor) -> Plan:
        """The copies as units of their own, since theirs are the weights of one old unit and the bias of another."""
        copied = torch.tensor(sources[layer.units :])
        sorted_back = copied[copied.argsort(stable=True).argsort(stable=True)].tolist()
        newborn = {place.tensor: _of_units(layer, place, sources[layer.units :]) for place in layer.makers}
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
        mixing = torch.zeros(layer.units, len(sources), dtype=torch.float64)
        mixing[sources, range(len(sources))] = shares
        new = (*range(layer.units), *(-1,) * len(copied))
        readers = {place.tensor: mixing for place in layer.readers}
        return Plan(layer, repr(self), new, replaced=replaced, newborn=newborn, mixing=readers)


def _of_units(layer: HiddenLayer, place: Place, units: list[int]) -> Tensor:
    """A tensor's slices of these units, one after the other along the place's axis."""
    tensor = layer.tensor(place).detach()
    return tensor.index_select(place.axis, place.positions[units].flatten().to(tensor.device))
