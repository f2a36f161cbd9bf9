"""WeakExpand: a layer grows by copies of its units, each copy taking a share of the fan-out.

Source: Graham 2019, *Applied HOSVD for weight compression and expansion*, Algorithm 3 and Listing 6.2. The function of
the network is unchanged, since the shares of a unit's copies sum to one. With *equal* shares (the thesis's form) the
copies get equal gradients and never part, so the layer is wider and no richer; uneven and signed shares part them. So
does noise on the incoming weights of the copies (Chen et al. 2016, *Net2Net*, section 2.3), which changes the function
a little.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from network_surgery.ops.anatomy import HiddenLayer
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


def by_mean_weight(layer: HiddenLayer) -> list[int]:
    """The units, the one with the largest mean outgoing weight first."""
    return layer.outgoing_rows().mean(dim=1).real.argsort(descending=True, stable=True).tolist()


@dataclass(frozen=True, repr=False)
class WeakExpand(Operation):
    """Appends copies of units, those with the largest mean outgoing weight first.

    ``grow``: the fraction of units that is added, above 0 and at most 16 (1 doubles the layer). ``split``: how copies
    share the fan-out: ``equal``, ``uneven`` (random positive shares, by ``seed``) or ``signed``. ``rounding`` of the
    number that is added: ``nearest`` or ``down``. ``noise`` (0 … 1): the standard deviation of random numbers, by
    ``seed``, that are added to the incoming weights of the copies, as a fraction of the root mean square of the layer's
    incoming weights; a weight that makes the units from themselves (in recurrent networks) gets none.
    """

    grow: float = 0.5
    split: str = "uneven"
    seed: int = 0
    rounding: str = field(default="nearest", repr=False)
    noise: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        fraction(self, "grow", self.grow, most=16)
        if not isinstance(self.noise, (int, float)) or self.noise:
            fraction(self, "noise", self.noise)
        choice(self, "split", self.split, ("equal", "uneven", "signed"))
        whole(self, "seed", self.seed)
        choice(self, "rounding", self.rounding, ROUNDINGS)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        added = new_units(layer, self.grow, self.rounding)
        order = by_mean_weight(layer)
        sources = [*range(layer.units), *(order[i % layer.units] for i in range(added))]
        generator = torch.Generator().manual_seed(self.seed)
        origin = torch.tensor(sources)
        shares = torch.ones(len(sources), dtype=torch.float64)
        for unit in dict.fromkeys(sources[layer.units :]):
            copies = (origin == unit).nonzero().squeeze(1)
            shares[copies] = split_shares(len(copies), self.split, generator)
        noise = self._noise(layer, added, generator) if self.noise else {}
        error = 0.0 if layer.exact and not noise else None
        return Plan(layer, repr(self), tuple(sources), shares=shares, fan_in=noise, error=error)

    def _noise(self, layer: HiddenLayer, added: int, generator: torch.Generator) -> dict[str, Tensor]:
        """By maker, what is added to its weights: nothing to those of the old units."""
        found, readers = {}, {place.tensor for place in layer.readers}
        for place in layer.makers:
            if place.tensor not in readers:
                known = layer.incoming(place)
                shape = (added, *known.shape[1:])
                drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(known.device)
                noise = self.noise * float(known.abs().square().mean().sqrt()) * drawn
                found[place.tensor] = torch.cat([torch.zeros_like(known), noise.to(known)])
        return found
