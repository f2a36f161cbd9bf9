"""Minimum Weight Selection: the units with the smallest outgoing weights go.

Source: Molchanov et al. 2016, as used in Graham 2019, *Applied HOSVD for weight compression and expansion*, 3.1.2.

The code published with the thesis (InterruptNet) has another score for convolutions, ``kernels``: the norm of the
squared norms of a unit's kernels, ``Σ over outputs of (‖K‖²)²``, where the norm is ``Σ ‖K‖²``. A single large kernel
counts for more. For dense readers it is the norm. It is offered for comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from network_surgery.ops.anatomy import HiddenLayer, Place
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.maths.double import energy
from network_surgery.ops.operation import ROUNDINGS, Operation, choice, fraction, units_to_keep
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals


def strongest(scores: Tensor, count: int) -> tuple[int, ...]:
    """The ``count`` units with the highest scores ``[units]``, in their old order; ties go to the earlier unit.

    Raises:
        SurgeryError: a score is not a number.
    """
    if scores.isnan().any():
        raise SurgeryError("units cannot be chosen: a score is not a number, as weights or outputs are not finite")
    order = scores.argsort(descending=True, stable=True)[:count]
    return tuple(order.sort().values.tolist())


def kernel_scores(layer: HiddenLayer, outgoing: Mapping[Place, Tensor]) -> Tensor:
    """The published code's score, ``[units]``, of weights ``[units, outputs, positions]`` by reader."""
    total = torch.zeros(layer.units, dtype=torch.float64)
    for place, by_unit in outgoing.items():
        squares = energy(by_unit).sum(dim=2)
        if layer.tensor(place).dim() > 2:
            squares = squares.square()
        total = total.to(squares) + squares.sum(dim=1)
    return total


@dataclass(frozen=True, repr=False)
class MinWeight(Operation):
    """Keeps the units with the largest L2 norm of outgoing weights.

    ``keep``: the fraction of units that stays, above 0 and at most 1 (at least two units stay). ``strength``: the
    ``norm``, or ``kernels`` (see the module). ``rounding`` of the number that stays: ``nearest`` or ``down``.
    """

    keep: float = 0.5
    strength: str = field(default="norm", repr=False)
    rounding: str = field(default="nearest", repr=False)

    def __post_init__(self) -> None:
        fraction(self, "keep", self.keep)
        choice(self, "strength", self.strength, ("norm", "kernels"))
        choice(self, "rounding", self.rounding, ROUNDINGS)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        if self.strength == "kernels":
            scores = kernel_scores(layer, {place: layer.outgoing(place) for place in layer.readers})
        else:
            scores = layer.outgoing_rows().norm(dim=1)
        return Plan(layer, repr(self), strongest(scores, units_to_keep(layer, self.keep, self.rounding)))
