"""Mean replacement: units go, and what stands for each of them stays behind in the next layer's bias.

Source: Evci 2018, *Detecting dead weights and units*, chapters 3 and 4 (mean replacement with bias propagation). Unless
asked otherwise the mean is that of the output which the next layer receives, so after the activation. A constant unit
leaves without a trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.errors import NoSignal, SurgeryError
from network_surgery.ops.operation import Operation, choice, fraction, units_to_keep, whole
from network_surgery.ops.operations.min_weight import strongest
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.replacement import REPLACEMENTS, constants
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.signals.unit_scores import BY_LOSS, SCORES, unit_scores
from network_surgery.ops.surgery.repair import bias, leave


@dataclass(frozen=True)
class MeanReplace(Operation):
    """Removes units and adds the constant that each sent on in the mean to the bias of what reads it.

    ``keep``: the fraction of units that stays, above 0 and at most 1. ``score``: which units stay, those with the
    highest ``ops.signals.unit_scores`` (``random`` ones are drawn by ``seed``). ``replacement``: which constant
    (``ops.signals.replacement``). Without ``bias_propagation`` nothing is left behind, whatever the score assumed.

    A reader without a bias has nowhere to put a constant: there the units are removed plainly, and the plan's
    ``error``, the relative error of what the readers receive on the signals' batch, counts all of their output. After
    a convolution that pads, the constant is inexact at the borders, where the padding was and the unit was not.
    """

    keep: float = 0.5
    score: str = "l2"
    replacement: str = "mean"
    bias_propagation: bool = True
    seed: int = 0
    needs_signals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "keep", self.keep)
        choice(self, "score", self.score, SCORES)
        choice(self, "replacement", self.replacement, REPLACEMENTS)
        choice(self, "bias_propagation", self.bias_propagation, (True, False))
        whole(self, "seed", self.seed)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        if signals is None:
            raise SurgeryError(f"{self!r} on {layer.name} looks at outputs: give it Signals(model, inputs)")
        scores = unit_scores(layer, signals, self.score, replacement=self.replacement, seed=self.seed)
        if self.score in (*BY_LOSS, "variance") and not scores.any():
            raise NoSignal(f"{self!r} on {layer.name}: every score is 0, so they do not tell which units to keep")
        plan = Plan(layer, repr(self), strongest(scores, units_to_keep(layer, self.keep)), error=0.0)
        if self.bias_propagation and self.replacement == "mean":
            return bias(plan, signals)
        return leave(plan, signals, constants(layer, signals, self.replacement) if self.bias_propagation else {})
