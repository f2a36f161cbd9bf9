"""Which units another operation would leave, and nothing else of what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from network_surgery.ops import HiddenLayer, Operation, Plan, Signals, SurgeryError
from network_surgery.ops.operations import operation_class


@dataclass(frozen=True)
class Survivors(Operation):
    """Removes the units (or masks, hashes or factorizes the weights) that the operation ``of`` would remove, and leaves
    all other values as they are: no constants, no refitted readers, no recombined weights.

    ``of``: the operation and its hyperparameters, as in a step of a schedule: ``{"op": "pcns", "keep": 0.5}``.
    """

    of: Mapping[str, Any] = field(default_factory=dict)

    @property
    def _operation(self) -> Operation:
        return operation_class(self.of["op"])(**{name: value for name, value in self.of.items() if name != "op"})

    @property
    def needs_signals(self) -> bool:  # type: ignore[override]
        return self._operation.needs_signals

    @property
    def whole_network(self) -> bool:  # type: ignore[override]
        return self._operation.whole_network

    @property
    def of_blocks(self) -> bool:  # type: ignore[override]
        return self._operation.of_blocks

    @property
    def makes_layers(self) -> bool:  # type: ignore[override]
        return self._operation.makes_layers

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        plan = self._operation.propose(layer, signals)
        if -1 in plan.sources or len(set(plan.sources)) < len(plan.sources):
            raise SurgeryError(
                f"{self!r} on {layer.name}: {self.of['op']} makes units anew, and leaves none as they were"
            )
        return Plan(
            plan.layer, repr(self), plan.sources, masks=plan.masks, expressed=plan.expressed, modules=plan.modules,
            ratios=plan.ratios, size=plan.size, evidence=plan.evidence,
        )  # fmt: skip
