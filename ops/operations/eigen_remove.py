"""EigenRemove: rank-reduce the weights around a layer by HOSVD, then keep the units that still weigh most.

Source: Graham 2019, *Applied HOSVD for weight compression and expansion*, Algorithm 2 and Listing 6.1. The two channel
modes are reduced to ``floor(rank * min(out, in))``, kernel positions stay whole; for a dense layer that is a truncated
SVD. Section 3.1.1 states δ otherwise, as a threshold: ``σ_k := 0 for all σ_k < δ``. Both are there; the thesis's
experiments take the fraction. The published code (InterruptNet) iterates (a Tucker decomposition), scores convolutions
by ``kernels`` (``ops.operations.min_weight``) and rounds sizes down; each of these is a choice here. The maths is in
``hosvd``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib import import_module
from typing import ClassVar

import torch
from torch import Tensor

from network_surgery.ops.anatomy import HiddenLayer, Place
from network_surgery.ops.errors import SurgeryError, Unsuitable, explained
from network_surgery.ops.maths.hosvd import Truncated, iterated_tucker, truncated_hosvd
from network_surgery.ops.operation import ROUNDINGS, Operation, choice, fraction, units_to_keep
from network_surgery.ops.operations.min_weight import kernel_scores, strongest
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals


@dataclass(frozen=True, repr=False)
class EigenRemove(Operation):
    """Keeps the units with the strongest *rank-reduced* outgoing weights.

    ``keep``: the fraction of units that stays, above 0 and at most 1. ``rank``: the fraction of rank that stays (the
    thesis's δ, chapter 4), or in its place ``threshold`` (δ of section 3.1.1): singular values below it become zero, in
    either channel mode those of its own unfolding, the largest never. It is in the units of the weights, not relative:
    the same threshold cuts more from a layer with smaller weights, and 0 cuts nothing. Where it is given, ``rank``
    becomes None; a rank of one's own beside it is refused.

    ``weights``: what the kept units carry on with, their ``original`` weights (Algorithm 2) or the ``reduced`` ones
    (Listing 6.1). ``strength``: the ``norm`` of a unit's weights or (Listing 6.1) their ``mean``, or the published
    code's ``kernels``. ``iterated``: the reduction by an iterated Tucker decomposition. ``rounding`` of the number of
    units that stays: ``nearest`` or ``down``.
    """

    keep: float = 0.5
    rank: float | None = 0.125
    weights: str = "original"
    strength: str = "norm"
    threshold: float | None = field(default=None, repr=False)
    iterated: bool = field(default=False, repr=False)
    rounding: str = field(default="nearest", repr=False)
    alternatives: ClassVar[tuple[str, ...]] = ("rank", "threshold")

    def __post_init__(self) -> None:
        fraction(self, "keep", self.keep)
        self._settle_rank()
        choice(self, "weights", self.weights, ("original", "reduced"))
        choice(self, "strength", self.strength, ("norm", "mean", "kernels"))
        choice(self, "iterated", self.iterated, (True, False))
        choice(self, "rounding", self.rounding, ROUNDINGS)
        with explained("EigenRemove needs tensorly; pip install tensorly"):
            import_module("tensorly")  # needed here alone; its second of importing is not the operation's

    def _settle_rank(self) -> None:
        """Leaves one of ``rank`` and ``threshold``. Raises SurgeryError where both or none were given."""
        if self.threshold is None:
            if self.rank is None:
                raise SurgeryError("EigenRemove: rank and threshold are both None, but one of them must be a number")
            return fraction(self, "rank", self.rank)
        number = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        if not number or not 0 <= self.threshold < math.inf:
            raise SurgeryError(f"EigenRemove: threshold is {self.threshold!r}, but it must be a number from 0 on")
        if self.rank not in (None, type(self).rank):
            raise SurgeryError(
                f"EigenRemove: rank is {self.rank!r} and threshold is {self.threshold!r}, but only one of them can hold"
            )
        object.__setattr__(self, "rank", None)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        outgoing = {place: self._reduce(layer, place, layer.outgoing(place)) for place in layer.readers}
        sources = strongest(self._scores(layer, outgoing), units_to_keep(layer, self.keep, self.rounding))
        replaced: dict[str, Tensor] = {}
        if self.weights == "reduced" and self.rank != 1:
            incoming = {place: self._reduce(layer, place, layer.incoming(place)) for place in layer.makers}
            for place, reduced in (incoming | outgoing).items():
                weight = replaced.get(place.tensor, layer.anatomy.tensor(place.tensor))
                replaced[place.tensor] = layer.written(place, weight, reduced.tensor())
        return Plan(layer, repr(self), sources, replaced=replaced)

    def _scores(self, layer: HiddenLayer, outgoing: dict[Place, Truncated]) -> Tensor:
        """One number for each unit, over all that reads it: shape ``[units]``."""
        if self.strength == "norm":
            return torch.stack([reduced.row_norms() for reduced in outgoing.values()]).norm(dim=0)
        if self.strength == "kernels":
            return kernel_scores(layer, {place: reduced.tensor() for place, reduced in outgoing.items()})
        if any(reduced.core.is_complex() for reduced in outgoing.values()):
            raise Unsuitable(f"{self!r}: the mean of complex weights gives units no order; take strength='norm'")
        return torch.cat([reduced.tensor().flatten(1) for reduced in outgoing.values()], dim=1).mean(dim=1)

    def _reduce(self, layer: HiddenLayer, place: Place, by_unit: Tensor) -> Truncated:
        if not math.isfinite(float(by_unit.norm())):
            raise SurgeryError(f"{self!r} on {layer.name}: {place.tensor} holds values that are not finite")
        reduce = iterated_tucker if self.iterated else truncated_hosvd
        return reduce(by_unit, self.rank, self.threshold)
