"""Minimum Weight Selection: the units with the smallest outgoing weights go.

Source: Molchanov et al. 2016, as used in Graham 2019, *Applied HOSVD for weight compression and expansion*, 3.1.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ops.anatomy import HiddenLayer
from ops.errors import SurgeryError
from ops.operation import Operation, fraction, kept
from ops.plan import Plan
from ops.signals import Signals


def strongest(scores: Tensor, count: int) -> tuple[int, ...]:
    """The ``count`` units with the highest scores ``[units]``, in their old order; ties go to the earlier unit.

    Raises:
        SurgeryError: a score is not a number.
    """
    if scores.isnan().any():
        raise SurgeryError("units cannot be chosen: a score is not a number, as weights or outputs are not finite")
    order = scores.argsort(descending=True, stable=True)[:count]
    return tuple(order.sort().values.tolist())


@dataclass(frozen=True)
class MinWeight(Operation):
    """Keeps the units with the largest L2 norm of outgoing weights.

    ``keep``: the fraction of units that stays, above 0 and at most 1 (at least two units stay).
    """

    keep: float = 0.5

    def __post_init__(self) -> None:
        fraction(self, "keep", self.keep)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        rows = layer.outgoing_rows()
        sources = strongest(rows.norm(dim=1), kept(layer, self.keep))
        return Plan(layer, repr(self), sources)
