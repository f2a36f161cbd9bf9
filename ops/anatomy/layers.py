"""Hidden layers: sets of units, with every place in every tensor that belongs to each unit.

A *place* is one axis of one parameter or buffer, with the *runs* of positions on it that belong to the layer. In a run
the units stand in order, each with ``inner`` neighbouring positions, and the whole is repeated ``outer`` times: a
channel that flatten spreads over 4 × 4 positions has ``inner = 16``; the same channels concatenated twice, two runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ops.anatomy.labels import FAN_IN, FAN_OUT, VECTOR
from ops.errors import SurgeryError

if TYPE_CHECKING:
    from ops.anatomy import Anatomy


@dataclass(frozen=True)
class Run:
    """Positions ``start … start + outer * units * inner`` of an axis, read as ``[outer, units, inner]``."""

    start: int
    outer: int
    inner: int

    def length(self, units: int) -> int:
        return self.outer * units * self.inner


@dataclass(frozen=True)
class Place:
    """One axis of one tensor, ``size`` long, that a layer's units own positions on.

    ``role``: ``fan_in`` (rows that make the units), ``vector`` (an entry or slice for each unit) or ``fan_out``
    (columns that read them). ``fill`` is what a newborn unit gets there. ``across`` is a weight's other axis:
    a reader's of outputs, a maker's of inputs.
    """

    tensor: str
    axis: int
    size: int
    role: str
    runs: tuple[Run, ...]
    fill: float = 0.0
    across: int | None = None

    def index(self, units: int, sources: Sequence[int]) -> tuple[Tensor, Tensor]:
        """For each position of the rebuilt axis: the old position (−1 newborn) and the new unit (−1 not of this layer).

        Shapes ``[new size]`` both; ``units`` is how many the layer has now, ``sources`` the plan's.
        """
        old, unit, at = [], [], 0
        origin = torch.tensor(sources, dtype=torch.int64)
        for run in self.runs:
            old.append(torch.arange(at, run.start))
            unit.append(torch.full((run.start - at,), -1))
            shape = (run.outer, len(sources), run.inner)
            outer = torch.arange(run.outer).view(-1, 1, 1)
            inner = torch.arange(run.inner).view(1, 1, -1)
            positions = run.start + (outer * units + origin.view(1, -1, 1)) * run.inner + inner
            old.append(torch.where(origin.view(1, -1, 1) < 0, -1, positions).reshape(-1))
            unit.append(torch.arange(len(sources)).view(1, -1, 1).expand(shape).reshape(-1))
            at = run.start + run.length(units)
        old.append(torch.arange(at, self.size))
        unit.append(torch.full((self.size - at,), -1))
        return torch.cat(old), torch.cat(unit)

    def positions(self, units: int) -> Tensor:
        """The positions of each unit, shape ``[units, positions of one unit]``."""
        return torch.cat(
            [
                run.start
                + torch.arange(run.length(units)).view(run.outer, units, run.inner).transpose(0, 1).reshape(units, -1)
                for run in self.runs
            ],
            dim=1,
        )

    def moved(self, by: int, after: int) -> Place:
        """The same place when everything from ``after`` on has moved along the axis."""
        runs = tuple(replace(run, start=run.start + by) if run.start >= after else run for run in self.runs)
        return replace(self, size=self.size + by, runs=runs)


class HiddenLayer:
    """A set of units that can be removed, added to or recombined.

    Attributes: ``name`` (the module that makes the units), ``units`` (how many), ``exact`` (False where a norm over
    the units makes any edit inexact, with ``reason``), ``places``, ``between`` (the operators from the units' birth to
    their first reader, e.g. ``("native_batch_norm", "relu")``). Surgery keeps all of them true.
    """

    def __init__(self, anatomy: Anatomy, name: str, units: int, places: list[Place], reason: str | None) -> None:
        self.anatomy = anatomy
        self.name = name
        self.units = units
        self.places = places
        self.reason = reason

    @property
    def exact(self) -> bool:
        return self.reason is None

    @property
    def between(self) -> tuple[str, ...]:
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
        """A maker's weight by unit, shape ``[units, inputs, positions of a unit × kernel]`` (float64, detached)."""
        return self._by_unit(place, self._weight(place))[0]

    def outgoing(self, place: Place) -> Tensor:
        """A reader's weight by unit, shape ``[units, outputs, positions of a unit × kernel]`` (float64, detached)."""
        return self._by_unit(place, self._weight(place))[0]

    def written(self, place: Place, weight: Tensor, by_unit: Tensor) -> Tensor:
        """The inverse of ``incoming`` and ``outgoing``: a copy of ``weight`` with these values at the place."""
        weight = weight.detach().clone()
        before, view, positions = self._by_unit(place, weight)
        shaped = by_unit.reshape(*before.shape[:2], positions.shape[1], *view.shape[2:]).transpose(1, 2)
        view[positions] = shaped.to(weight)
        return weight

    def outgoing_rows(self) -> Tensor:
        """All outgoing weights of each unit, over all readers: shape ``[units, weights]`` (float64)."""
        return torch.cat([self.outgoing(place).flatten(1) for place in self.readers], dim=1)

    def cost(self, units: int) -> tuple[int, int]:
        """Parameters and FLOPs per sample of the whole network if this layer had so many units."""
        grown: dict[str, list[int]] = {}
        for place in self.places:
            shape = grown.setdefault(place.tensor, list(self.anatomy.tensor(place.tensor).shape))
            shape[place.axis] += sum(run.length(units) - run.length(self.units) for run in place.runs)
        return self.anatomy.cost({name: math.prod(shape) for name, shape in grown.items()})

    def _by_unit(self, place: Place, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weight by unit; the weight seen as ``[place's axis, other axis, *kernel]``; each unit's positions."""
        across = place.across if place.across is not None else 1 - place.axis
        view = weight.movedim((place.axis, across), (0, 1))
        positions = place.positions(self.units).to(weight.device)
        return view[positions].transpose(1, 2).reshape(self.units, view.shape[1], -1), view, positions

    def tensor(self, place: Place) -> Tensor:
        """The tensor at a place. Raises SurgeryError where something else has changed its size."""
        tensor = self.anatomy.tensor(place.tensor)
        if place.axis >= tensor.dim() or tensor.shape[place.axis] != place.size:
            raise SurgeryError(
                f"layer {self.name}: {place.tensor} is {tuple(tensor.shape)}, but axis {place.axis} had "
                f"{place.size} entries when the anatomy was taken; take it anew"
            )
        return tensor

    def _weight(self, place: Place) -> Tensor:
        return self.tensor(place).detach().to(torch.float64)

    def __repr__(self) -> str:
        return f"HiddenLayer({self.name!r}, units={self.units}, exact={self.exact})"
