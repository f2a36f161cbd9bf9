"""Tensors at another size: where each entry of the rebuilt tensor comes from, for any number of layers at once."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ops.anatomy import axes
from ops.anatomy.calls import FAN_IN, FAN_OUT
from ops.architecture import fit
from ops.optimizer_state import exchange

if TYPE_CHECKING:
    from ops.anatomy import Anatomy
    from ops.anatomy.axes import Axis
    from ops.anatomy.layers import HiddenLayer, Place

Undo = list[Callable[[], object]]
#: Entries from which on copying in blocks pays, and how many blocks at most.
LARGE, MOST_BLOCKS = 1 << 18, 256


@contextlib.contextmanager
def undoing() -> Iterator[Undo]:
    """A list for steps that undo what is done in a ``with`` block; they are taken at its end, the last one first."""
    undo: Undo = []
    try:
        yield undo
    finally:
        for step in reversed(undo):
            step()


@dataclass(frozen=True)
class Edit:
    """New units of a layer: the old one that each continues (−1: none), shape ``[new]``, and its fan-out's factor.

    A newborn unit has a fan-in of zeros, or (``stranger``) random weights that no other unit has.
    """

    layer: HiddenLayer
    sources: Tensor
    shares: Tensor | None = None
    stranger: bool = False


@dataclass(frozen=True, eq=False)
class Origin:
    """The old position of each new one along an axis (−1: newborn), shape ``[new]``; equal axes share it."""

    index: Tensor

    @cached_property
    def newborn(self) -> Tensor:
        return (self.index < 0).nonzero().squeeze(1)

    @cached_property
    def old(self) -> Tensor:
        """Where values are taken from; newborn positions take anything."""
        return self.index.clamp(min=0)

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """Stretches of neighbours that stay neighbours, newborn ones left out: from where, to where, how many."""
        new = (self.index >= 0).nonzero().squeeze(1)
        old = self.index[new]
        breaks = ((old.diff() != 1) | (new.diff() != 1)).nonzero().squeeze(1) + 1
        starts = [0, *breaks.tolist()] if len(new) else []
        return [(int(old[a]), int(new[a]), b - a) for a, b in itertools.pairwise([*starts, len(new)])]


@dataclass(frozen=True)
class Move:
    """How one axis of one tensor is rebuilt: the old position of each new one, and its factors.

    ``read`` multiplies the values (the share of a unit's fan-out), ``made`` is what their gradient is multiplied by.
    """

    places: tuple[Place, ...]
    origin: Origin
    read: Tensor | None
    made: Tensor | None
    stranger: bool = False

    @property
    def axis(self) -> int:
        return self.places[0].axis

    def state(self, old: Tensor, degree: int) -> Tensor:
        """What is of this degree in the gradient of a parameter, rebuilt."""
        if old.is_sparse:  # an embedding's gradient
            return self.state(old.to_dense(), degree).to_sparse(old.sparse_dim())
        new = _taken(old, {self.axis: self.origin})
        self._fill(new, 0.0)
        return new if self.made is None else _times(new, self.axis, self.made**degree)

    def finish(self, new: Tensor, old: Tensor) -> None:
        """What newborn units get in a parameter or buffer whose other values are taken already, and the factors."""
        if self.stranger and old.is_floating_point() and any(place.role != FAN_OUT for place in self.places):
            self._estrange(new, old)
        else:
            self._fill(new, self.places[0].fill)
        _times(new, self.axis, self.read)

    def masked(self, mask: Tensor) -> Tensor:
        """The mask of a parameter, rebuilt: nothing hides a newborn unit."""
        new = _taken(mask, {self.axis: self.origin})
        self._fill(new, 1)
        return new

    def _estrange(self, new: Tensor, old: Tensor) -> None:
        newborn = self.origin.newborn.to(new.device)
        known = old.flatten()[:4096].float()
        noise = torch.empty([len(newborn) if a == self.axis else n for a, n in enumerate(new.shape)])
        noise.uniform_(0.3, 3.3, generator=torch.Generator().manual_seed(0))
        if any(place.role == FAN_IN for place in self.places):  # of two strangers one outdoes all others
            noise.movedim(self.axis, 0)[1::2].neg_()
        noise = noise.to(new.device) * (torch.linalg.vector_norm(known) / math.sqrt(len(known)))
        new.index_copy_(self.axis, newborn, noise.to(new.dtype))

    def _fill(self, new: Tensor, fill: float) -> None:
        if len(self.origin.newborn):
            new.index_fill_(self.axis, self.origin.newborn.to(new.device), fill)


def rebuilt(old: Tensor, steps: Sequence[Move]) -> Tensor:
    """A parameter's or buffer's values, rebuilt along several axes."""
    new = _taken(old, {step.axis: step.origin for step in steps})
    for step in steps:
        step.finish(new, old)
    return new


def remasked(mask: Tensor, steps: Sequence[Move]) -> Tensor:
    """A parameter's mask, rebuilt along several axes."""
    for step in steps:
        mask = step.masked(mask)
    return mask


def moves(edits: Sequence[Edit]) -> dict[str, list[Move]]:
    """By tensor, what happens to each of its axes."""
    places: dict[tuple[str, int], list[Place]] = {}
    for edit in edits:
        for place in edit.layer.places:
            places.setdefault((place.tensor, place.axis), []).append(place)
    sources = {edit.layer.factor: edit.sources for edit in edits}
    shares = {edit.layer.factor: edit.shares for edit in edits if edit.shares is not None}
    found: dict[str, list[Move]] = {}
    origins: dict[Axis, Origin] = {}
    for (name, _), here in places.items():
        expression = here[0].expression
        if expression not in origins:
            origins[expression] = Origin(axes.index(expression, sources))
        read, made = (
            {p.factor: shares[p.factor] for p in here if p.factor in shares and (p.role == FAN_OUT) is reads}
            for reads in (True, False)
        )
        found.setdefault(name, []).append(
            Move(
                tuple(here),
                origins[expression],
                axes.spread(expression, read, sources) if read else None,
                axes.spread(expression, made, sources) if made else None,
                any(edit.stranger for edit in edits),
            )
        )
    return found


@contextlib.contextmanager
def edited(anatomy: Anatomy, edits: Sequence[Edit]) -> Iterator[None]:
    """The network with several layers changed at once, for the time of a ``with`` block."""
    with undoing() as undo:
        for name, steps in moves(edits).items():
            tensor = anatomy.tensor(name)
            undo.append(exchange(tensor, rebuilt(tensor.data, steps), None))
            mask = anatomy.mask(name)
            if mask is not None and mask.dim():  # else it is lifted
                undo.append(exchange(mask, remasked(mask, steps)))
        undo.extend(resize(edits))
        undo.extend(write_down(anatomy, anatomy.modules, [edit.layer for edit in edits]))
        yield


def resize(edits: Iterable[Edit]) -> Undo:
    """Tells the layers how many units they have now."""
    undo: Undo = []
    for edit in edits:
        undo.append(partial(setattr, edit.layer.factor, "size", edit.layer.factor.size))
        edit.layer.factor.size = len(edit.sources)
    return undo


def write_down(anatomy: Anatomy, modules: Mapping[str, nn.Module], layers: Sequence[HiddenLayer]) -> Undo:
    """Sets the sizes that a network's modules keep as attributes to what these layers have become."""
    undo: Undo = []
    changed = {layer.factor for layer in layers}
    for number in anatomy.written:
        if changed & set(axes.units_on(number.axis)):
            undo.extend(number.set(modules))
    undo.extend(fit(modules[name] for name in {name for layer in layers for name in anatomy.holders(layer)}))
    return undo


def _taken(old: Tensor, origins: Mapping[int, Origin]) -> Tensor:
    """A new tensor of the old values along several axes; of a large one, blocks of neighbours are copied whole."""
    if old.numel() >= LARGE and math.prod(len(origin.runs) for origin in origins.values()) <= MOST_BLOCKS:
        shape = [len(origins[a].old) if a in origins else n for a, n in enumerate(old.shape)]
        new = old.new_empty(shape)
        for block in itertools.product(*(origin.runs for origin in origins.values())):
            source, target = old, new
            for axis, (start, place, length) in zip(origins, block, strict=True):
                source, target = source.narrow(axis, start, length), target.narrow(axis, place, length)
            target.copy_(source)
        return new
    for axis, origin in origins.items():
        old = old.index_select(axis, origin.old.to(old.device))
    return old


def _times(tensor: Tensor, axis: int, factor: Tensor | None) -> Tensor:
    """Multiplies along an axis, in place; of a large tensor only where that changes anything."""
    if factor is None:
        return tensor
    stretches = _stretches((factor != 1).nonzero().squeeze(1)) if tensor.numel() >= LARGE else []
    if tensor.numel() < LARGE or len(stretches) > MOST_BLOCKS:
        stretches = [(0, len(factor))]
    shape = [-1 if a == axis else 1 for a in range(tensor.dim())]
    for start, length in stretches:
        tensor.narrow(axis, start, length).mul_(factor[start : start + length].to(tensor).view(shape))
    return tensor


def _stretches(positions: Tensor) -> list[tuple[int, int]]:
    """Neighbours among ascending positions: the first one, and how many."""
    breaks = (positions.diff() != 1).nonzero().squeeze(1) + 1
    bounds = [0, *breaks.tolist(), len(positions)] if len(positions) else []
    return [(int(positions[a]), b - a) for a, b in itertools.pairwise(bounds)]
