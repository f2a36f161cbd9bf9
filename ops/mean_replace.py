"""Mean replacement: units go, and the mean of what each sent on stays behind in the next layer's bias.

Source: Evci 2018, *Detecting dead weights and units*, chapter 3 (mean replacement with bias propagation). The mean is
that of the output which the next layer receives, so after the activation. A constant unit leaves without a trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ops.anatomy import HiddenLayer, Place
from ops.condensed import Condensed
from ops.errors import SurgeryError
from ops.min_weight import strongest
from ops.operation import Operation, choice, fraction, kept, whole
from ops.plan import Plan
from ops.repair import bias
from ops.signals import Signals

SCORES = ("l2", "l1", "variance", "random")


@dataclass(frozen=True)
class MeanReplace(Operation):
    """Removes units and adds the mean output that each sent on to the bias of what reads it.

    ``keep``: the fraction of units that stays, above 0 and at most 1. ``score``: which units stay, those with the
    largest ``l2`` or ``l1`` norm of outgoing weights, those whose removal changes most (``variance``, see
    ``unit_scores``), or ``random`` ones, drawn by ``seed``.

    A reader without a bias has nowhere to put a mean: there the units are removed plainly, and the plan's ``error``,
    the relative error of what the readers receive on the signals' batch, counts all of their output. Behind a
    convolution that pads, the constant is inexact at the borders, where the padding was and the unit was not.
    """

    keep: float = 0.5
    score: str = "l2"
    seed: int = 0
    needs_signals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "keep", self.keep)
        choice(self, "score", self.score, SCORES)
        whole(self, "seed", self.seed)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        if signals is None:
            raise SurgeryError(f"{self!r} on {layer.name} looks at outputs: give it Signals(model, inputs)")
        seen = {place: signals.condensed(layer)[place.tensor].whole for place in layer.readers}
        sources = strongest(unit_scores(layer, seen, self.score, self.seed), kept(layer, self.keep))
        return bias(Plan(layer, repr(self), sources, error=0.0), signals)


def unit_scores(layer: HiddenLayer, seen: Mapping[Place, Condensed], score: str, seed: int = 0) -> Tensor:
    """A score for each unit, ``[units]``; those with the highest stay. ``seen``: what each reader receives.

    ``variance`` is the root of the expected squared change of what the readers compute if this unit alone is replaced:
    the mean square of the output around what replaces it (its variance where there is a bias) times the squared norm
    of the outgoing weights, summed over readers. That is exact for a dense reader of one value a unit; where a reader
    takes several positions of a unit (kernels, flattened channels), it counts them as varying independently.
    """
    rows = layer.outgoing_rows()
    if score == "l1":
        return rows.norm(p=1, dim=1)
    if score == "variance":
        change = torch.zeros_like(rows[:, 0])
        for place, each in seen.items():
            about = each if place.tensor in layer.anatomy.sinks else each.about_zero()
            around = about.deviations.square().sum(dim=0) / each.samples
            change += around * layer.outgoing(place).flatten(1).square().sum(dim=1)
        return change.sqrt()
    if score == "random":
        order = torch.randperm(layer.units, generator=torch.Generator().manual_seed(seed))
        return order.to(rows)
    return rows.norm(dim=1)
