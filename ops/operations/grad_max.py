"""GradMax: a layer grows by units that learn as fast as any could, and change nothing at first.

Source: Evci et al. 2022, *GradMax: growing neural networks using gradient information*, section 3. A new unit has
incoming weights of zero, so it sends nothing, and outgoing weights ``w``. The gradient of the loss at its incoming
weights is linear in them, ``M w``; where the layer before sends ``a`` and the loss has the gradient ``g`` at what the
next layer makes, ``M = Σ a gᵀ`` (times the slope of the activation at 0). Of ``k`` orthogonal ``w`` of one length, the
``k`` top singular vectors of ``M`` get the largest gradient.

``M`` is not written down but measured: new units with each single outgoing weight are tried in the network, and their
gradients are its columns. So it is exact for convolutions, through pooling, flattening and norms in evaluation mode,
for several makers and readers. It takes a backward pass for every ``TOGETHER`` outgoing weights of a unit.

Where the activation is flat at 0 (ReLU's slope there is 0 in torch, so new units would never learn; the paper takes 1),
new units get a bias of ``EDGE``, the smallest that half precision knows well. What they send because of it is made up
for in the bias of what reads them; and so is what a unit sends whose activation is not 0 at 0 (sigmoid).

BatchNorm would divide what does not vary by the root of its ``eps``, so with a scale of 1 a new unit's slope would be
hundreds, and one step would bring it to the size of all others. New units get that root as their scale, and a running
variance of 0: their slope is 1, in training as in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from network_surgery.ops.anatomy import HiddenLayer, Place
from network_surgery.ops.anatomy.running import call, plainly
from network_surgery.ops.errors import NoSignal, SurgeryError, Unsuitable
from network_surgery.ops.maths.condensed import relative_error
from network_surgery.ops.operation import ROUNDINGS, Operation, choice, fraction, new_units, whole
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.gradients import without_checkpoints
from network_surgery.ops.signals.losses import mean_loss
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.surgery.surgery import trial_surgery

#: The bias of a new unit whose activation is flat at 0.
EDGE = 1e-6
#: Outgoing weights that are tried in one backward pass, each in a unit of its own, and how large they are then.
TOGETHER, TRIED = 256, 1e-3
#: The most outgoing weights of one unit, over all readers, for which M can be had.
MOST = 16384
#: Singular values below this fraction of the largest are none.
SINGULAR = 1e-6

#: For each reader what new units' outgoing weights are, ``[new units, outputs, positions of a unit × kernel]``.
Outgoing = Mapping[str, Tensor]


@dataclass(frozen=True, repr=False)
class GradMax(Operation):
    """Appends units whose incoming weights are zero and get the largest gradient.

    ``grow``: the fraction of units that is added, above 0 and at most 16 (1 doubles the layer). ``scale``: the norm of
    a new unit's outgoing weights, as a multiple of the mean over the layer's units. There are as many best directions
    as the gradient has ranks; units beyond that number get random combinations of them, by ``seed``, weighted by their
    singular values. ``rounding`` of the number that is added: ``nearest`` or ``down``.

    The plan's evidence: ``gradient``, the norm of the gradient at all incoming weights of the new units, and ``rank``,
    the number of directions that get any. ``propose`` raises SurgeryError without signals (with targets); where a norm
    stands over the units, a weight both makes and reads them, what makes them is frozen, no gradient would reach new
    units, or what they send at once could not be made up for.
    """

    grow: float = 0.5
    scale: float = 1.0
    seed: int = field(default=0, repr=False)
    rounding: str = field(default="nearest", repr=False)
    needs_signals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "grow", self.grow, most=16)
        fraction(self, "scale", self.scale, most=100)
        whole(self, "seed", self.seed)
        choice(self, "rounding", self.rounding, ROUNDINGS)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        if signals is None:
            raise SurgeryError(f"{self!r} on {layer.name} looks at gradients: give it Signals(model, inputs, targets)")
        _check(self, layer)
        growth = _growth(self, layer, signals)
        directions, values = _singular(growth.matrix())
        if not len(values):
            raise NoSignal(f"{self!r} on {layer.name}: no gradient reaches what new units are fed with")
        added = new_units(layer, self.grow, self.rounding)
        chosen = _directions(directions, values, added, self.seed)
        size = float(layer.outgoing_rows().norm(dim=1).mean()) or 1.0
        plan = growth.plan(_split(layer, self.scale * size * chosen))
        gained = float(((chosen @ directions.T) * values).norm()) * self.scale * size
        return replace(plan, evidence={"gradient": gained, "rank": len(values)})


class _Growth:
    """What is known of new units of a layer with this bias: what they send, and how they are added."""

    def __init__(self, operation: GradMax, layer: HiddenLayer, signals: Signals, bias: float) -> None:
        self.operation, self.layer, self.signals, self._bias = operation, layer, signals, bias
        self._sent: dict[str, float] = {}
        silent = {place.tensor: torch.zeros(1, *_shape(layer, place)) for place in layer.readers}
        with trial_surgery(self._grown(silent)):
            tried = signals.again(layer)
            for place in layer.readers:
                sent = tried.received(layer, place)[:, -1]
                if not float(sent.max() - sent.min()) <= 1e-4 * float(sent.abs().max()):
                    raise SurgeryError(
                        f"{operation!r} on {layer.name}: a unit without incoming weights sends {place.tensor} what is "
                        "not constant, so it cannot be made up for"
                    )
                self._sent[place.tensor] = float(sent.mean())

    def plan(self, outgoing: Outgoing) -> Plan:
        """The plan that adds units with these outgoing weights, and makes up for what they send at once."""
        anatomy, replaced = self.layer.anatomy, dict[str, Tensor]()
        missed = spread = 0.0
        for place in self.layer.readers:
            sent, values = self._sent[place.tensor], outgoing[place.tensor]
            seen = self.signals.condensed(self.layer)[place.tensor].whole
            open_ = self.signals.padded_rows(place, seen.samples)
            if sent and place.tensor in anatomy.sinks:
                name = anatomy.sinks[place.tensor].tensor
                vector = replaced.get(name, anatomy.tensor(name).detach().double())
                replaced[name] = vector - self._amount(place, values, sent)
            else:
                open_ = seen.samples
            if open_ and abs(sent) > 16 * EDGE:
                raise SurgeryError(
                    f"{self.operation!r} on {self.layer.name}: a unit without incoming weights sends {sent:.2g} to "
                    f"{place.tensor}, which no bias after it can make up for everywhere"
                )
            rounding = seen.samples * torch.finfo(self.signals.precision(self.layer)).eps ** 2
            missed, spread = missed + (open_ + rounding) * len(values) * sent**2, spread + seen.spread
        return replace(self._grown(outgoing), replaced=replaced, error=relative_error(missed, spread))

    def slopes(self, outgoing: Outgoing) -> Tensor:
        """The gradient of the batch's loss at new units' incoming weights, ``[new, incoming]``, by outgoing ones."""
        layer, signals = self.layer, self.signals
        before = layer.units
        with trial_surgery(self.plan(outgoing)):
            makers = [place for place in layer.makers if layer.tensor(place).requires_grad]
            with plainly(layer.anatomy.model), torch.enable_grad(), without_checkpoints():
                outputs = call(layer.anatomy.model, signals.inputs)
                value = mean_loss(outputs, signals.classes, signals.loss_function)
                tensors = [layer.tensor(place) for place in makers]
                if not value.requires_grad:
                    raise SurgeryError(f"{self.operation!r} on {layer.name}: the loss has no gradient")
                found = torch.autograd.grad(value, tensors, allow_unused=True, materialize_grads=True)
            rows = [layer.by_unit(p, g)[before:].flatten(1).double() for p, g in zip(makers, found, strict=True)]
        return torch.cat(rows, dim=1)

    def matrix(self) -> Tensor:
        """Mᵀ: the gradient that each single outgoing weight gets a new unit, ``[outgoing, incoming]``."""
        weights = sum(_shape(self.layer, place).numel() for place in self.layer.readers)
        if weights > MOST:
            raise SurgeryError(
                f"{self.operation!r} on {self.layer.name}: a unit has {weights:,} outgoing weights, and the best can "
                f"be had of {MOST:,} at most; grow this layer by weak_expand"
            )
        one = torch.eye(weights, dtype=torch.float64)
        return torch.cat([self.slopes(_split(self.layer, TRIED * some)) / TRIED for some in one.split(TOGETHER)])

    def _grown(self, outgoing: Outgoing) -> Plan:
        layer, added = self.layer, len(next(iter(outgoing.values())))
        newborn = {}
        for place, value in self._values():
            shape = list(layer.tensor(place).shape)
            shape[place.axis] = added * place.positions.shape[1]
            newborn[place.tensor] = torch.full(shape, value)
        fan_out = {
            name: torch.cat([values.new_zeros(layer.units, *values.shape[1:]), values])
            for name, values in outgoing.items()
        }
        sources = (*range(layer.units), *(-1,) * added)
        return Plan(layer, repr(self.operation), sources, newborn=newborn, fan_out=fan_out, error=0.0)

    def _values(self) -> Iterator[tuple[Place, float]]:
        """The vectors in which new units have other values than an old unit without effect has, and these."""
        if self._bias:
            yield from ((place, self._bias) for place in _biases(self.layer))
        for place in self.layer.vectors:
            norm, name = self.layer.anatomy.owner(place.tensor), place.tensor.rpartition(".")[2]
            if isinstance(norm, _BatchNorm) and norm.affine and name in ("weight", "running_var"):
                yield place, norm.eps**0.5 if name == "weight" else 0.0

    def _amount(self, place: Place, values: Tensor, sent: float) -> Tensor:
        """What the vector after a reader gains by new units that all send this constant."""
        layer, total = self.layer, torch.zeros(())
        weight = torch.zeros_like(layer.anatomy.tensor(place.tensor), dtype=torch.float64)
        for some in values.split(layer.units):  # in the columns of old ones
            by_unit = some.new_zeros(layer.units, *some.shape[1:])
            by_unit[: len(some)] = some
            constants = torch.full((layer.units,), sent, dtype=torch.float64, device=weight.device)
            total = total.to(weight) + layer.sent(place, layer.written(place, weight, by_unit), constants)
        return total


def _check(operation: GradMax, layer: HiddenLayer) -> None:
    """Raises Unsuitable where units cannot be added so that they change nothing and learn."""
    say, readers = f"{operation!r} on {layer.name}", {place.tensor for place in layer.readers}
    if not layer.exact:
        raise Unsuitable(f"{say}: new units would change what the others send ({layer.reason}); take weak_expand")
    if both := sorted(readers & {place.tensor for place in layer.makers}):
        raise Unsuitable(f"{say}: {both[0]} both makes and reads its units; take weak_expand")
    if any(layer.tensor(place).is_complex() for place in layer.places):
        raise Unsuitable(f"{say}: its weights are complex; take weak_expand")
    if not any(layer.tensor(place).requires_grad for place in layer.makers):
        raise Unsuitable(f"{say}: what makes its units is frozen, so new ones would never learn")


def _growth(operation: GradMax, layer: HiddenLayer, signals: Signals) -> _Growth:
    """New units with a bias of 0, or of ``EDGE`` where they get more of a gradient then."""
    plain = _Growth(operation, layer, signals, 0.0)
    generator = torch.Generator().manual_seed(0)
    tried = {
        place.tensor: TRIED * torch.randn(1, *_shape(layer, place), generator=generator, dtype=torch.float64)
        for place in layer.readers
    }
    size = float(plain.slopes(tried).norm())
    if _biases(layer):
        lifted = _Growth(operation, layer, signals, EDGE)
        if (other := float(lifted.slopes(tried).norm())) > 1.01 * size:
            plain, size = lifted, other
    if not size:
        raise NoSignal(
            f"{operation!r} on {layer.name}: no gradient reaches the incoming weights of new units: a depth-wise "
            "weight of theirs, which is zero, stands in between; the activation is flat at 0 and they have no bias; or "
            "the batch's loss has none there"
        )
    return plain


def _biases(layer: HiddenLayer) -> list[Place]:
    """The vectors that are added to the units and learn: one number for each unit or position of it."""
    found = [place for place in layer.vectors if place.fill == 0 and layer.tensor(place).numel() == place.size]
    return [place for place in found if isinstance(layer.tensor(place), torch.nn.Parameter)]


def _shape(layer: HiddenLayer, place: Place) -> torch.Size:
    """Of one unit's outgoing weights at a reader: ``[outputs, positions of a unit × kernel]``."""
    return layer.by_unit(place, layer.tensor(place).detach()).shape[1:]


def _split(layer: HiddenLayer, rows: Tensor) -> dict[str, Tensor]:
    """Units' outgoing weights over all readers, ``[units, weights]``, by reader."""
    shapes = [_shape(layer, place) for place in layer.readers]
    parts = rows.split([shape.numel() for shape in shapes], dim=1)
    return {p.tensor: part.unflatten(1, s) for p, part, s in zip(layer.readers, parts, shapes, strict=True)}


def _singular(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The left singular vectors of ``[rows, columns]``, ``[rank, rows]``, and values, the largest first.

    Of each vector the entry of the largest size is positive.
    """
    rows, columns = matrix.shape
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if rows <= columns else matrix.T @ matrix)
    values = squares.clamp(min=0).sqrt().flip(0)
    count = int((values > SINGULAR * values[0]).sum()) if float(values[0]) else 0
    values, vectors = values[:count], vectors.flip(1)[:, :count]
    if rows > columns:
        vectors = matrix @ vectors / values
    vectors = vectors.T
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return vectors * largest.sign(), values


def _directions(directions: Tensor, values: Tensor, count: int, seed: int) -> Tensor:
    """Unit vectors for this number of units, ``[units, weights]``: the best ones, then combinations of them."""
    more = max(0, count - len(directions))
    mixed = torch.randn(more, len(directions), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mixed = (mixed.to(directions) * values) @ directions
    return torch.cat([directions[:count], mixed / mixed.norm(dim=1, keepdim=True)])
