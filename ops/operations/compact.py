"""Compaction: units that pruning left without input or without output go, and the tensors really shrink.

Source: Evci 2018, *Detecting dead weights and units*, section 2.2, with the bias propagation that is proposed there: a
unit that nothing feeds emits a constant, which goes into the bias after what reads it. A unit that nobody reads leaves
without a trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from network_surgery.ops.anatomy import Anatomy, HiddenLayer, Place
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.operation import Operation
from network_surgery.ops.operations.min_weight import strongest
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.surgery.operate import operate
from network_surgery.ops.surgery.received import received_error
from network_surgery.ops.surgery.repair import bias
from network_surgery.ops.surgery.surgery import Averages, Optimizers

#: A unit is constant where its output's deviation is below this fraction of its size.
CONSTANT = 1e-6


@dataclass(frozen=True)
class Compact(Operation):
    """Removes the units with at most a ``fraction`` (0 … 1) of incoming or of outgoing weights that are not zero.

    At 0 these are the units without any, and the network computes what it did: of those that nothing feeds only the
    ones go whose readers receive a constant and have a vector after them that can hold it. There are two exceptions,
    and the plan's ``error`` counts them: a convolution that pads is exact in the interior alone, since the unit was not
    where the padding is; and where a norm stands over the units, those that stay change when others go. Above 0 the
    mean output goes into the bias, as in ``mean_replace``. At least two units stay, those with most weights.
    """

    fraction: float = 0.0
    needs_signals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number = isinstance(self.fraction, (int, float)) and not isinstance(self.fraction, bool)
        if not (number and 0 <= self.fraction < 1):
            raise SurgeryError(f"Compact: fraction is {self.fraction!r}, but it must be from 0 to below 1")

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        fed, read = weights_left(layer)
        if not bool((torch.minimum(fed, read) <= self.fraction).any()):
            return Plan(layer, repr(self), tuple(range(layer.units)), error=0.0)
        if signals is None:
            raise SurgeryError(f"{self!r} on {layer.name} looks at outputs: give it Signals(model, inputs)")
        useless = (fed <= self.fraction) | (read <= self.fraction)
        if not self.fraction:
            useless = (read == 0) | ((fed == 0) & _constant(layer, signals).to(fed.device))
        score = torch.minimum(fed, read).where(useless, torch.inf)
        sources = strongest(score, max(2, layer.units - int(useless.sum())))
        plan = bias(Plan(layer, repr(self), sources, error=0.0), signals)
        if self.fraction:
            return plan
        exact = layer.exact and not any(signals.padded_rows(place, 1) for place in layer.readers)
        return replace(plan, error=0.0 if exact else received_error(plan, signals, units=read > 0), evidence={})


def compact(
    anatomy: Anatomy,
    optimizers: Optimizers = (),
    signals: Signals | None = None,
    *,
    fraction: float = 0.0,
    averages: Averages = (),
) -> list[Plan]:
    """Compacts every layer, again and again until nothing changes; returns the plans that were applied.

    A unit that goes may leave others without input or output. ``signals``: of the network; they are taken anew, of the
    same batch, before each operation.

    Raises:
        SurgeryError: a layer is to be compacted, and there are no signals.
    """
    if not isinstance(anatomy, Anatomy):
        raise SurgeryError(f"a network is compacted by its Anatomy(model, inputs), not by a {type(anatomy).__name__}")
    operation, found = Compact(fraction), list[Plan]()
    while True:
        before = len(found)
        for layer in anatomy.values():
            least = torch.minimum(*weights_left(layer))
            if layer.units > 2 and bool((least <= fraction).any()):
                units = layer.units
                plan = operate(layer, operation, optimizers, signals and signals.again(layer), averages=averages)
                found += [plan] if layer.units < units else []
        if len(found) == before:
            return found


def weights_left(layer: HiddenLayer) -> tuple[Tensor, Tensor]:
    """The fractions of each unit's incoming and of its outgoing weights that are not zero, ``[units]`` each."""

    def of(places: list[Place], weights: Callable[[Place], Tensor]) -> Tensor:
        rows = torch.cat([weights(place).flatten(1) for place in places], dim=1)
        left = (rows != 0).sum(dim=1)  # divided on the CPU: a GPU multiplies by 1 / n, and 3 of 10 become more than 0.3
        return (left.cpu().double() / rows.shape[1]).to(rows.device)

    return of(layer.makers, layer.incoming), of(layer.readers, layer.outgoing)


def _constant(layer: HiddenLayer, signals: Signals) -> Tensor:
    """For each unit whether all that readers receive of it is a constant that their biases can hold, ``[units]``."""
    constant = torch.ones(layer.units, dtype=torch.bool)
    for tensor, seen in signals.condensed(layer).items():
        whole = seen.whole if tensor in layer.anatomy.sinks else seen.whole.about_zero()
        spread, size = whole.deviations.norm(dim=0), whole.origin.abs() * whole.samples**0.5
        constant &= (spread <= CONSTANT * size.clamp(min=torch.finfo(torch.float64).tiny)).cpu()
    return constant
