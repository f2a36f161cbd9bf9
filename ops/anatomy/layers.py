"""Hidden layers: sets of units, with every place in every tensor that belongs to each unit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from network_surgery.ops.anatomy import axes
from network_surgery.ops.anatomy.axes import Axis, Factor
from network_surgery.ops.anatomy.calls import FAN_IN, FAN_OUT, VECTOR
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.maths.double import double

if TYPE_CHECKING:
    from network_surgery.ops.anatomy import Anatomy


@dataclass(frozen=True, eq=False)
class Place:
    """One axis of one tensor on which a layer's units own positions: one each, or as many for each of them.

    ``role``: ``fan_in`` (rows that make the units), ``vector`` (an entry or slice for each unit) or ``fan_out``
    (columns that read them). ``fill`` is what a newborn unit gets there. ``across`` is a weight's other axis: a
    reader's of outputs, a maker's of inputs. ``expression`` is what the whole axis stands for, ``factor`` the layer's
    units in it.
    """

    tensor: str
    axis: int
    role: str
    expression: Axis
    factor: Factor
    fill: float = 0.0
    across: int | None = None

    @property
    def size(self) -> int:
        """How long the axis is."""
        return axes.size(self.expression)

    @cached_property
    def _positions(self) -> dict[tuple[int, int], Tensor]:
        return {}

    @property
    def positions(self) -> Tensor:
        """The positions of each unit, ascending, shape ``[units, positions of one unit]``."""
        key = self.factor.size, self.size
        if key not in self._positions:
            unit = axes.unit_at(self.expression, self.factor)
            order = torch.sort(unit, stable=True).indices[int((unit < 0).sum()) :]
            self._positions.clear()
            self._positions[key] = order.view(self.factor.size, -1)
        return self._positions[key]

    def positions_among(self, given: int) -> Tensor:
        """As ``positions``, among ``given`` of them: each group of a convolution reads its own part of its input.

        Shape ``[units, groups × positions of one unit]``.
        """
        starts = torch.arange(given // self.size).view(1, -1, 1) * self.size
        return (starts + self.positions.unsqueeze(1)).flatten(1)

    def __repr__(self) -> str:
        return f"Place({self.tensor}, axis {self.axis} of {self.size}, {self.role})"


class HiddenLayer:
    """A set of units that can be removed, added to or recombined.

    Attributes: ``name`` (the module that makes the units), ``exact`` (False where a norm over the units makes any edit
    inexact, with ``reason``), ``places``. Surgery keeps all of them true.
    """

    def __init__(self, anatomy: Anatomy, name: str, factor: Factor, places: list[Place]) -> None:
        self.anatomy = anatomy
        self.name = name
        self.factor = factor
        self.places = places

    @property
    def units(self) -> int:
        """How many units the layer has now."""
        return self.factor.size

    @property
    def reason(self) -> str | None:
        """Why an edit is not exact; None where it is."""
        return self.factor.inexact

    @property
    def exact(self) -> bool:
        return self.reason is None

    @property
    def between(self) -> tuple[str, ...]:
        """The operators from the units' birth to their first reader, e.g. ``("native_batch_norm", "relu")``."""
        return self.anatomy.chains.get(self.readers[0].tensor, ("?",))

    @property
    def makers(self) -> list[Place]:
        return [place for place in self.places if place.role == FAN_IN]

    @property
    def vectors(self) -> list[Place]:
        return [place for place in self.places if place.role == VECTOR]

    @property
    def readers(self) -> list[Place]:
        return [place for place in self.places if place.role == FAN_OUT]

    def incoming(self, place: Place) -> Tensor:
        """A maker's weight by unit, shape ``[units, inputs, positions of a unit × kernel]`` (doubles, detached)."""
        return self.by_unit(place, self._values(place))

    def outgoing(self, place: Place) -> Tensor:
        """A reader's weight by unit, shape ``[units, outputs, positions of a unit × kernel]`` (doubles, detached)."""
        return self.by_unit(place, self._values(place))

    def _values(self, place: Place) -> Tensor:
        self.tensor(place)  # complains of an anatomy that is out of date
        return double(self.anatomy.live(place.tensor))

    def by_unit(self, place: Place, weight: Tensor) -> Tensor:
        """A weight of the shape at this place by unit, ``[units, other axis, positions of a unit × kernel]``."""
        view, positions = self._seen_from(place, weight)
        return view[positions].transpose(1, 2).reshape(self.units, view.shape[1], -1)

    def written(self, place: Place, weight: Tensor, by_unit: Tensor) -> Tensor:
        """The inverse of ``by_unit``: a copy of ``weight`` with these values at the place."""
        weight = weight.detach().clone()
        view, positions = self._seen_from(place, weight)
        shape = (self.units, view.shape[1], positions.shape[1], *view.shape[2:])
        view[positions] = by_unit.reshape(shape).transpose(1, 2).to(weight)
        return weight

    def _seen_from(self, place: Place, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weight seen as ``[place's axis, other axis, *kernel]``, and each unit's positions on the first."""
        across = place.across if place.across is not None else 1 - place.axis
        return weight.movedim((place.axis, across), (0, 1)), place.positions.to(weight.device)

    def sent(self, place: Place, weight: Tensor, constants: Tensor) -> Tensor:
        """What the vector that holds a reader's constants (``anatomy.sinks``) gains, in a shape that broadcasts to it.

        ``weight``: the reader's values. ``constants``: a value for each unit, ``[units]``; or several of these,
        ``[…, units]``, each of which gives such an amount, ``[…, *shape]``.
        """
        values = constants.new_zeros(*constants.shape[:-1], place.size)
        values[..., place.positions.to(constants.device)] = constants.unsqueeze(-1)
        return self.anatomy.sinks[place.tensor].amount(weight, place.axis, values)

    def outgoing_rows(self) -> Tensor:
        """All outgoing weights of each unit, over all readers: shape ``[units, weights]`` (doubles)."""
        return torch.cat([self.outgoing(place).flatten(1) for place in self.readers], dim=1)

    def cost(self, units: int) -> tuple[int, int]:
        """Parameters and FLOPs per sample of the whole network if this layer had this number of units.

        As many parameters stay hidden by masks as are now.
        """
        now, self.factor.size = self.factor.size, units
        try:
            return self.anatomy.cost()
        finally:
            self.factor.size = now

    def bytes(self, units: int) -> int:
        """The bytes of the whole network (``Anatomy.bytes``) if this layer had this number of units."""
        now, self.factor.size = self.factor.size, units
        try:
            return self.anatomy.bytes()
        finally:
            self.factor.size = now

    def held(self) -> tuple[int, int]:
        """Parameters, and FLOPs per sample, of the tensors that hold its units (other layers may share them)."""
        return self.anatomy.held(dict.fromkeys(place.tensor for place in self.places))

    def tensor(self, place: Place) -> Tensor:
        """The tensor at a place. Raises SurgeryError where something else has changed its size."""
        try:
            tensor = self.anatomy.tensor(place.tensor)
        except AttributeError:
            raise SurgeryError(f"layer {self.name}: {place.tensor} is gone; take the anatomy anew") from None
        if place.axis >= tensor.dim() or tensor.shape[place.axis] != place.size:
            raise SurgeryError(
                f"layer {self.name}: {place.tensor} is {tuple(tensor.shape)}, but axis {place.axis} had "
                f"{place.size} entries when the anatomy was taken; take it anew"
            )
        return tensor

    def __repr__(self) -> str:
        return f"HiddenLayer({self.name!r}, units={self.units}, exact={self.exact})"
