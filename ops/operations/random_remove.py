"""Random removal: the control that every choice of units must beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.operation import Operation, fraction, units_to_keep, whole
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals


@dataclass(frozen=True)
class RandomRemove(Operation):
    """Keeps units drawn at random.

    ``keep``: the fraction of units that stays, above 0 and at most 1; ``seed`` fixes the draw.
    """

    keep: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        fraction(self, "keep", self.keep)
        whole(self, "seed", self.seed)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(layer.units, generator=generator)[: units_to_keep(layer, self.keep)]
        return Plan(layer, repr(self), tuple(order.sort().values.tolist()))
