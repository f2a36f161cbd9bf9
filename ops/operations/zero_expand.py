"""Zero Weight Expansion: a layer grows by units with no weights at all.

Source: Graham 2019, *Applied HOSVD for weight compression and expansion*, 3.1.3. The function is unchanged, and the new
units are dead: with fan-in and fan-out both zero neither side ever gets a gradient. The baseline for WeakExpand.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.operation import ROUNDINGS, Operation, choice, fraction, new_units
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals


@dataclass(frozen=True, repr=False)
class ZeroExpand(Operation):
    """Appends units with zero fan-in and fan-out.

    ``grow``: the fraction of units that is added, above 0 and at most 16 (1 doubles the layer). ``rounding``
    of the number that is added: ``nearest`` or ``down``.
    """

    grow: float = 0.5
    rounding: str = field(default="nearest", repr=False)

    def __post_init__(self) -> None:
        fraction(self, "grow", self.grow, most=16)
        choice(self, "rounding", self.rounding, ROUNDINGS)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        added = new_units(layer, self.grow, self.rounding)
        sources = (*range(layer.units), *(-1,) * added)
        return Plan(layer, repr(self), sources, error=0.0 if layer.exact else None)
