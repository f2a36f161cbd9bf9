"""Tensors at another size: where each entry of the rebuilt tensor comes from, for any number of layers at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ops.anatomy import axes
from ops.anatomy.calls import FAN_IN, FAN_OUT
from ops.architecture import fit
from ops.optimizer_state import exchange

if TYPE_CHECKING:
    from ops.anatomy import Anatomy
    from ops.anatomy.layers import HiddenLayer, Place

Undo = list[Callable[[], object]]
#: Entries from which on copying runs pays.
LARGE = 1 << 18


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


@dataclass(frozen=True)
class Move:
    """How one axis of one tensor is rebuilt: the old position of each new one (−1: newborn), and its factors.

    ``read`` multiplies the values (the share of a unit's fan-out), ``made`` is what their gradient is multiplied by.
    """

    places: tuple[Place, ...]
    index: Tensor
    read: Tensor | None
    made: Tensor | None
    stranger: bool = False

    @property
    def axis(self) -> int:
        return self.places[0].axis

    def values(self, old: Tensor) -> Tensor:
        """A parameter's or buffer's values, rebuilt."""
        new = self._gather(old, self.places[0].fill)
        if self.stranger and old.is_floating_point() and any(place.role != FAN_OUT for place in self.places):
            newborn = (self.index < 0).nonzero().squeeze(1)
            shape = [len(newborn) if a == self.axis else n for a, n in enumerate(new.shape)]
            noise = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
            scale = 3 * old.flatten()[:4096].square().mean().sqrt()
            if any(place.role == FAN_IN for place in self.places):  # of two strangers one outdoes all others
                noise.movedim(self.axis, 0)[1::2] *= -1
            new.index_copy_(self.axis, newborn.to(old.device), noise.to(old) * scale)
        return _times(new, self.axis, self.read)

    def state(self, old: Tensor, degree: int) -> Tensor:
        """What is of this degree in the gradient of a parameter, rebuilt."""
        new = self._gather(old, 0.0)
        return new if self.made is None else _times(new, self.axis, self.made**degree)

    def _gather(self, old: Tensor, fill: float) -> Tensor:
        if old.is_sparse:  # an embedding's gradient
            return self._gather(old.to_dense(), fill).to_sparse(old.sparse_dim())
        new = _taken(old, self.axis, self.index.clamp(min=0))
        newborn = (self.index < 0).nonzero().squeeze(1).to(old.device)
        return new.index_fill_(self.axis, newborn, fill) if len(newborn) else new


def moves(edits: Sequence[Edit]) -> dict[str, list[Move]]:
    """By tensor, what happens to each of its axes."""
    places: dict[tuple[str, int], list[Place]] = {}
    for edit in edits:
        for place in edit.layer.places:
            places.setdefault((place.tensor, place.axis), []).append(place)
    sources = {edit.layer.factor: edit.sources for edit in edits}
    shares = {edit.layer.factor: edit.shares for edit in edits if edit.shares is not None}
    found: dict[str, list[Move]] = {}
    for (name, _), here in places.items():
        expression = here[0].expression
        read, made = (
            {p.factor: shares[p.factor] for p in here if p.factor in shares and (p.role == FAN_OUT) is reads}
            for reads in (True, False)
        )
        found.setdefault(name, []).append(
            Move(
                tuple(here),
                axes.index(expression, sources),
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
            data = tensor.data
            for step in steps:
                data = step.values(data)
            undo.append(exchange(tensor, data, None))
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


def _taken(old: Tensor, axis: int, index: Tensor) -> Tensor:
    """``old.index_select(axis, index)``; of a large tensor, runs of neighbouring positions are copied whole."""
    if old.numel() < LARGE:
        return old.index_select(axis, index.to(old.device))
    starts = [0, *((index.diff() != 1).nonzero().squeeze(1) + 1).tolist()]
    if len(starts) > 16:
        return old.index_select(axis, index.to(old.device))
    stops = [*starts[1:], len(index)]
    return torch.cat([old.narrow(axis, int(index[a]), b - a) for a, b in zip(starts, stops, strict=True)], axis)


def _times(tensor: Tensor, axis: int, factor: Tensor | None) -> Tensor:
    if factor is None:
        return tensor
    return tensor.mul_(factor.to(tensor).view([-1 if a == axis else 1 for a in range(tensor.dim())]))
