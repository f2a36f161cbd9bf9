"""WeakExpand: a layer grows by copies of its units, each copy taking a share of the fan-out.

Source: Graham 2019, *Applied HOSVD for weight compression and expansion*, Algorithm 3 and Listing 6.2. The function of
the network is unchanged, since the shares of a unit's copies sum to one. With *equal* shares (the thesis's form) the
copies get equal gradients and never part, so the layer is wider and no richer; uneven and signed shares part them.

The published code (InterruptNet) does something else, which ``published`` repeats for comparison: it sorts the units'
weights and leaves biases and norm scales where they were, so that they meet other units, and it starts BatchNorm's
running statistics anew. The function changes, and copies part by these faults.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ops.anatomy import HiddenLayer
from ops.operation import Operation, choice, fraction, whole
from ops.plan import Plan
from ops.signals import Signals


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


@dataclass(frozen=True)
class WeakExpand(Operation):
    """Appends copies of units, those with the largest mean outgoing weight first.

    ``grow``: the fraction of units that is added, above 0 and at most 16 (1 doubles the layer). ``split``: how copies
    share the fan-out: ``equal``, ``uneven`` (random positive shares, by ``seed``) or ``signed``. ``published``: with
    the faults of the published code (see the module).
    """

    grow: float = 0.5
    split: str = "uneven"
    seed: int = 0
    published: bool = False

    def __post_init__(self) -> None:
        fraction(self, "grow", self.grow, most=16)
        choice(self, "split", self.split, ("equal", "uneven", "signed"))
        whole(self, "seed", self.seed)
        choice(self, "published", self.published, (True, False))

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        added = max(1, round(self.grow * layer.units))
        order = layer.outgoing_rows().mean(dim=1).argsort(descending=True, stable=True).tolist()
        old = order if self.published else list(range(layer.units))
        sources = [*old, *(order[i % layer.units] for i in range(added))]
        generator = torch.Generator().manual_seed(self.seed)
        origin = torch.tensor(sources)
        shares = torch.ones(len(sources), dtype=torch.float64)
        for unit in dict.fromkeys(sources[layer.units :]):
            copies = (origin == unit).nonzero().squeeze(1)
            shares[copies] = split_shares(len(copies), self.split, generator)
        if self.published:
            return Plan(layer, repr(self), tuple(sources), shares=shares, replaced=_misplaced(layer, order))
        return Plan(layer, repr(self), tuple(sources), shares=shares, error=0.0 if layer.exact else None)


def _misplaced(layer: HiddenLayer, order: list[int]) -> dict[str, Tensor]:
    """Per-unit vectors such that, once they have followed the units into this order, they are where they were."""
    found = {}
    for place in layer.vectors:
        tensor = layer.tensor(place).detach()
        if place.tensor.endswith(("running_mean", "running_var")):
            found[place.tensor] = torch.full_like(tensor, place.tensor.endswith("running_var"))
            continue
        rows = tensor.movedim(place.axis, 0)
        moved = rows.clone()
        moved[place.positions[order].flatten()] = rows[place.positions.flatten()]
        found[place.tensor] = moved.movedim(0, place.axis)
    return found
