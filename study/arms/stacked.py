"""Stacking up to a size, for an arm that is to cost as much as a network that grew otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from network_surgery.ops import Deepen, HiddenLayer, Operation, Plan, Signals, SurgeryError


@dataclass(frozen=True)
class Stacked(Operation):
    """Stacks as many blocks (``Deepen``) as make the network's FLOPs nearest to ``flops`` times what they are."""

    flops: float = 2.0
    whole_network: ClassVar[bool] = True
    makes_layers: ClassVar[bool] = True
    of_blocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.flops > 1:
            raise SurgeryError(f"Stacked: flops is {self.flops!r}, but it must be above 1")

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        doubled = Deepen().propose(layer)
        of_blocks = doubled.flops_after / doubled.flops_before - 1
        return Deepen(grow=(self.flops - 1) / of_blocks).propose(layer)
