"""Dead and frozen units: those that the loss would not miss, and those that the loss no longer teaches.

Source: Evci 2018, *Detecting dead weights and units*, 3.2. A *dead* unit could be replaced by a constant: its mean
replacement saliency (``ops.signals.unit_scores``) is nearly zero; or, as he defines it, its mean replacement penalty is
so for *every* sample (``by="mrp"``: measured, a forward pass for every few units; a unit that one sample needs is alive
then, however many do not). A *frozen* unit gets no gradient: that of the loss at what its makers make, before any
activation, is nearly zero for every sample and position. A unit can be dead and learn, or be frozen and needed. How
near to zero he leaves open; here it is a fraction of the mean over the layer's units, so that neither the size of the
layer nor that of the loss, which falls while a network learns, changes what is dead.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from network_surgery.ops.anatomy import HiddenLayer, Place
from network_surgery.ops.errors import NoSignal, SurgeryError
from network_surgery.ops.maths.double import numeric
from network_surgery.ops.operation import Operation, choice, fraction, whole
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.replacement import constants
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.signals.unit_scores import check_layer, loss_changes, unit_scores
from network_surgery.ops.surgery.repair import bias

#: Below this fraction of the mean over the layer's units a unit is dead, or frozen.
THRESHOLD = 0.01
KINDS = ("dead", "frozen", "either")
#: What decides whether a unit is dead: its saliency in the mean over samples, or its penalty for every sample.
BY = ("mrs", "mrp")
#: Roundings of a unit's whole part in the loss below which its saliency is none.
ROUNDING = 16


def dead_units(layer: HiddenLayer, signals: Signals, threshold: float = THRESHOLD, by: str = "mrs") -> Tensor:
    """Which units are dead, ``[units]`` of bool: the measure is at most ``threshold`` times its mean over the layer.

    ``by``: ``mrs``, the mean replacement saliency (a mean over samples); ``mrp``, the largest change of any sample's
    loss as the unit is removed and its mean left in the bias. ``signals`` with targets. Raises SurgeryError where the
    gradients are not known, or for another ``by``, and NoSignal (which is one) where no unit has any saliency: then
    nothing says which of them are dead.
    """
    check_layer(layer, signals)
    if signals is None:
        raise SurgeryError("dead units are those without saliency: give it Signals(model, inputs, targets)")
    # a constant that is a mean is known up to rounding, so what a constant unit is worth is not quite zero
    rounding = ROUNDING * torch.finfo(signals.precision(layer)).eps
    if by == "mrs":
        whole = float(unit_scores(layer, signals, "taylor").max())
        return _nearly_zero(layer, unit_scores(layer, signals, "mrs"), threshold, "saliency", rounding * whole)
    if by != "mrp":
        raise SurgeryError(f"units are dead by {by!r}, but it must be one of {BY}")
    changes = loss_changes(layer, signals, constants(layer, signals)).abs().amax(dim=1)
    return _nearly_zero(layer, changes, threshold, "penalty", rounding)


def frozen_units(layer: HiddenLayer, signals: Signals, threshold: float = THRESHOLD) -> Tensor:
    """Which units are frozen, ``[units]`` of bool: their largest gradient is at most ``threshold`` times the mean.

    The largest one is over samples, positions and makers; the mean is over the layer's units. ``signals`` with targets.
    Raises SurgeryError where the gradients are not known, and NoSignal where no unit has any.
    """
    check_layer(layer, signals)
    if signals is None:
        raise SurgeryError("frozen units are those without a gradient: give Signals(model, inputs, targets)")
    gradients = signals.gradients(layer)
    largest = torch.zeros(layer.units, dtype=torch.float64, device=layer.tensor(layer.makers[0]).device)
    for place in layer.makers:
        for slope in gradients.made(place):
            by_unit = slope.movedim(-1, 0)[place.positions.to(slope.device)]
            largest = torch.maximum(largest, by_unit.flatten(1).abs().amax(dim=1).to(largest))
    return _nearly_zero(layer, largest, threshold, "gradient")


def idle_units(
    layer: HiddenLayer, signals: Signals, kind: str, threshold: float = THRESHOLD, by: str = "mrs"
) -> Tensor:
    """Which units are ``dead``, ``frozen`` or ``either`` of them, ``[units]`` of bool. ``by``: as in ``dead_units``."""
    if kind == "dead":
        return dead_units(layer, signals, threshold, by)
    if kind == "frozen":
        return frozen_units(layer, signals, threshold)
    return dead_units(layer, signals, threshold, by) | frozen_units(layer, signals, threshold)


@dataclass(frozen=True, repr=False)
class RemoveDead(Operation):
    """Removes the units that are dead (or frozen); their mean stays behind in the next bias.

    ``threshold``: a fraction of the layer's mean, above 0 and at most 1. ``kind``: ``dead``, ``frozen`` or ``either``.
    ``by``: what dead ones are measured by, ``mrs`` or ``mrp`` (``dead_units``). At least two units stay: of those that
    are idle, the first. A layer in which no unit has any saliency (or gradient) is refused, not emptied.
    """

    threshold: float = THRESHOLD
    kind: str = "dead"
    by: str = field(default="mrs", repr=False)
    needs_signals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "threshold", self.threshold)
        choice(self, "kind", self.kind, KINDS)
        choice(self, "by", self.by, BY)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        signals, idle = _look(self, layer, signals)
        alive = (~idle).nonzero().flatten().tolist()
        alive += idle.nonzero().flatten().tolist()[: max(0, 2 - len(alive))]
        return _remove(self, layer, signals, idle, tuple(sorted(alive)))


@dataclass(frozen=True, repr=False)
class Revive(Operation):
    """Lets the units that are dead (or frozen) begin anew; the layer keeps its size.

    Their incoming weights are drawn, entry by entry, from those of the living units; biases and norms get the mean over
    the living units. They are not heard at first: their fan-out is zero, and the mean of what they sent on stays behind
    in the next bias. Their optimizer state begins at zero.

    ``threshold``, ``kind``, ``by``: as in ``RemoveDead``. ``seed``: of the draw.

    Raises:
        SurgeryError: no unit of the layer is alive, so there is nothing to begin anew with.
    """

    threshold: float = THRESHOLD
    kind: str = "dead"
    seed: int = 0
    by: str = field(default="mrs", repr=False)
    needs_signals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "threshold", self.threshold)
        choice(self, "kind", self.kind, KINDS)
        choice(self, "by", self.by, BY)
        whole(self, "seed", self.seed)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        signals, idle = _look(self, layer, signals)
        if idle.all():
            raise SurgeryError(f"{self!r} on {layer.name}: no unit is alive to take new weights from")
        removed = _remove(self, layer, signals, idle, tuple((~idle).nonzero().flatten().tolist()))
        generator = torch.Generator().manual_seed(self.seed)
        newborn = {place.tensor: _begun(layer, place, idle, generator) for place in layer.makers}
        for place in layer.vectors:
            if numeric(layer.tensor(place)):
                newborn[place.tensor] = _average(layer, place, idle)
        sources = tuple(-1 if gone else unit for unit, gone in enumerate(idle.tolist()))
        return replace(removed, sources=sources, newborn=newborn)


def _nearly_zero(layer: HiddenLayer, values: Tensor, threshold: float, what: str, rounding: float = 0.0) -> Tensor:
    if not isinstance(threshold, (int, float)) or not threshold >= 0:
        raise SurgeryError(f"the threshold is {threshold!r}, but it must be a fraction of the layer's mean, from 0 on")
    if not torch.isfinite(values).all():
        raise SurgeryError(f"layer {layer.name}: the {what} of a unit is not finite")
    if not (values > rounding).any():
        raise NoSignal(
            f"layer {layer.name}: no unit has any {what}, so the loss does not tell which are dead: the batch holds a "
            "single sample (or copies of one), what reads the layer is all zero (a branch that begins at zero), or the "
            "layer is dead as a whole"
        )
    return values <= float(threshold) * values.mean()


def _look(operation: RemoveDead | Revive, layer: HiddenLayer, signals: Signals | None) -> tuple[Signals, Tensor]:
    """The signals, and which units are idle."""
    if signals is None:
        raise SurgeryError(f"{operation!r} on {layer.name} looks at the loss: give it Signals(model, inputs, targets)")
    return signals, idle_units(layer, signals, operation.kind, operation.threshold, operation.by).cpu()


def _remove(operation: Operation, layer: HiddenLayer, signals: Signals, idle: Tensor, kept: tuple[int, ...]) -> Plan:
    """These units alone, with the mean of what the others sent on."""
    return bias(Plan(layer, repr(operation), kept, error=0.0, evidence={"idle_units": int(idle.sum())}), signals)


def _begun(layer: HiddenLayer, place: Place, idle: Tensor, generator: torch.Generator) -> Tensor:
    """New incoming weights for the idle units, drawn from the entries of the others."""
    tensor = layer.tensor(place).detach()
    known = tensor.index_select(place.axis, _positions(place, ~idle).to(tensor.device))
    shape = list(tensor.shape)
    shape[place.axis] = len(_positions(place, idle))
    drawn = torch.randint(known.numel(), shape, generator=generator)
    return known.flatten()[drawn.to(tensor.device)]


def _average(layer: HiddenLayer, place: Place, idle: Tensor) -> Tensor:
    """The mean over the living units for each of the others."""
    tensor = layer.tensor(place).detach()
    mean = tensor.index_select(place.axis, _positions(place, ~idle).to(tensor.device)).mean(place.axis, keepdim=True)
    return mean.repeat_interleave(len(_positions(place, idle)), place.axis)


def _positions(place: Place, units: Tensor) -> Tensor:
    """Where on its axis these units are, ascending."""
    return place.positions[units].flatten().sort().values
