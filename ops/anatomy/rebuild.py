"""Tensors at another size: where each entry of the rebuilt tensor comes from, for any number of layers at once."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor, nn

from network_surgery.ops.anatomy import axes
from network_surgery.ops.anatomy.calls import FAN_IN, FAN_OUT, VECTOR
from network_surgery.ops.maths.double import double, numeric
from network_surgery.ops.network.architecture import fit
from network_surgery.ops.network.expressed import tensors_of
from network_surgery.ops.network.optimizer_state import exchange

if TYPE_CHECKING:
    from network_surgery.ops.anatomy import Anatomy
    from network_surgery.ops.anatomy.axes import Axis, Factor
    from network_surgery.ops.anatomy.layers import HiddenLayer, Place

Undo = list[Callable[[], object]]
#: Entries from which on copying in blocks pays, and multiplying in blocks, and how many blocks at most.
LARGE, HUGE, MOST_BLOCKS = 1 << 18, 1 << 21, 256
#: No more bytes than these are kept of tensors as edits have made them.
MOST_KEPT = 1 << 28


@contextlib.contextmanager
def undoing() -> Iterator[Undo]:
    """A list for steps that undo what is done in a ``with`` block; they are taken at its end, the last one first."""
    undo: Undo = []
    try:
        yield undo
    finally:
        for step in reversed(undo):
            step()


@contextlib.contextmanager
def in_double(anatomy: Anatomy) -> Iterator[None]:
    """All floating-point parameters and buffers in double precision for a while."""
    with undoing() as undo:
        for _, tensor in tensors_of(anatomy.model):
            if to_double(tensor) is not tensor:
                undo.append(exchange(tensor, to_double(tensor.data), None))
        yield


def to_double(value: Any) -> Any:
    return double(value) if isinstance(value, Tensor) and numeric(value) else value


@dataclass(frozen=True, eq=False)
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
        places = list(zip(old.tolist(), new.tolist(), strict=True))
        return [(*places[a], b - a) for a, b in itertools.pairwise([*starts, len(new)])]


@dataclass(frozen=True)
class Move:
    """How one axis of one tensor is rebuilt: the old position of each new one, and its factors.

    ``read`` multiplies the values (the share of a unit's fan-out), ``made`` is what their gradient is multiplied by.
    ``strange``: random numbers, which newborn units take their weights from if they are strangers; else they are zero.
    """

    places: tuple[Place, ...]
    origin: Origin
    read: Tensor | None
    made: Tensor | None
    strange: Tensor | None = None

    @property
    def axis(self) -> int:
        return self.places[0].axis

    def state(self, old: Tensor, degree: int) -> Tensor:
        """What is of this degree in the gradient of a parameter, rebuilt."""
        if old.is_sparse:  # an embedding's gradient
            return self.state(old.to_dense(), degree).to_sparse(old.sparse_dim())
        new = _take(old, {self.axis: self.origin})
        self._fill(new, 0.0)
        return new if self.made is None else _times(new, self.axis, self.made**degree)

    def finish(self, new: Tensor, old: Tensor) -> None:
        """What newborn units get in a parameter or buffer whose other values are taken already, and the factors."""
        if self.strange is not None and numeric(old) and any(p.role != FAN_OUT for p in self.places):
            self._estrange(new, old, self.strange)
        else:
            self._fill(new, self.places[0].fill)
        _times(new, self.axis, self.read)

    def masked(self, mask: Tensor) -> Tensor:
        """The mask of a parameter, rebuilt: nothing hides a newborn unit."""
        new = _take(mask, {self.axis: self.origin})
        self._fill(new, 1)
        return new

    def joins(self, old: Tensor) -> bool:
        """Whether this tensor may change together with others that change alike (``_together``)."""
        plain = self.read is None and all(place.role == VECTOR for place in self.places)
        known = self.strange is not None or not len(self.origin.newborn)
        return plain and known and old.dim() == 1 and old.is_floating_point()

    def _estrange(self, new: Tensor, old: Tensor, strange: Tensor) -> None:
        newborn = self.origin.newborn.to(new.device)
        known = old.flatten()[:4096]
        known = torch.view_as_real(known.resolve_conj()).flatten() if known.is_complex() else known
        scale = torch.linalg.vector_norm(known.float()) / math.sqrt(len(known))
        noise = _draw(strange, [newborn.numel() if a == self.axis else n for a, n in enumerate(new.shape)]).to(scale)
        noise = noise * scale
        if any(place.role == FAN_IN for place in self.places):  # of two strangers one outdoes all others
            noise.movedim(self.axis, 0)[1::2].neg_()
        new.index_copy_(self.axis, newborn, noise.to(new.dtype))

    def _fill(self, new: Tensor, fill: float) -> None:
        if len(self.origin.newborn):
            new.index_fill_(self.axis, self.origin.newborn.to(new.device), fill)


def rebuild(old: Tensor, steps: Sequence[Move], *, passing: bool = False) -> Tensor:
    """A parameter's or buffer's values, rebuilt along several axes; ``passing``: for no more than a pass."""
    new = _take(old, {step.axis: step.origin for step in steps}, passing)
    for step in steps:
        step.finish(new, old)
    return new


def _together(vectors: Sequence[Tensor], move: Move) -> Sequence[Tensor]:
    """Vectors that change alike, rebuilt (a norm has four, and what is done to all at once takes no longer)."""
    old = torch.stack(list(vectors))
    new = old.index_select(1, move.origin.old.to(old.device))
    newborn = move.origin.newborn.to(old.device)
    if newborn.numel() and move.strange is not None:
        scale = torch.linalg.vector_norm(old.float(), dim=1, keepdim=True) / math.sqrt(old.shape[1])
        noise = _draw(move.strange, [len(vectors), newborn.numel()]).to(scale) * scale
        new.index_copy_(1, newborn, noise.to(old.dtype))
    return new.unbind()


def _draw(numbers: Tensor, shape: Sequence[int]) -> Tensor:
    """As many of these random numbers; they begin anew where they end."""
    wanted = math.prod(shape)
    if wanted > len(numbers):
        numbers = numbers.repeat(-(-wanted // len(numbers)))
    return numbers[:wanted].view(shape)


def rebuild_mask(mask: Tensor, steps: Sequence[Move]) -> Tensor:
    """A parameter's mask, rebuilt along several axes."""
    for step in steps:
        mask = step.masked(mask)
    return mask


@functools.cache
def _strange_numbers() -> Tensor:
    """Random numbers around one, none of them small; their number is prime, so that the rows of a weight differ."""
    numbers = torch.empty(4099, dtype=torch.float32, device="cpu")
    return numbers.uniform_(0.3, 3.3, generator=torch.Generator().manual_seed(0))


def moves(edits: Sequence[Edit], known: Collection[str] = ()) -> dict[str, list[Move]]:
    """By tensor, what happens to each of its axes; but for those that are ``known``."""
    places: dict[tuple[str, int], list[Place]] = {}
    for edit in edits:
        for place in edit.layer.places:
            if place.tensor not in known:
                places.setdefault((place.tensor, place.axis), []).append(place)
    sources = {edit.layer.factor: edit.sources for edit in edits}
    shares = {edit.layer.factor: edit.shares for edit in edits if edit.shares is not None}
    strange = _strange_numbers() if any(edit.stranger for edit in edits) else None
    found: dict[str, list[Move]] = {}
    origins: dict[Axis, Origin] = {}
    spreads: dict[tuple[Axis, tuple[Factor, ...]], Tensor] = {}

    def spread(expression: Axis, units: tuple[Factor, ...]) -> Tensor | None:
        if units and (expression, units) not in spreads:
            values = {factor: shares[factor] for factor in units}
            spreads[expression, units] = axes.spread(expression, values, sources)
        return spreads[expression, units] if units else None

    for (name, _), here in places.items():
        expression = here[0].expression
        if expression not in origins:
            origins[expression] = Origin(axes.index(expression, sources))
        shared = [place for place in here if place.factor in shares]
        read, made = (
            spread(expression, tuple(place.factor for place in shared if (place.role == FAN_OUT) is reads))
            for reads in (True, False)
        )
        found.setdefault(name, []).append(Move(tuple(here), origins[expression], read, made, strange))
    return found


class Rebuilt:
    """Tensors as edits have made them, for the next time that these very edits are made."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[Edit, ...]], tuple[Tensor, Tensor]] = {}
        self._bytes = 0

    def look_up(self, tensors: Mapping[str, Tensor], edits: Mapping[str, tuple[Edit, ...]]) -> dict[str, Tensor]:
        """What is known of these tensors with their edits, if they are still what they were."""
        found = ((name, self._known.get((name, edits[name]))) for name in edits)
        return {
            name: known[1]
            for name, known in found
            if known is not None and known[0].data_ptr() == tensors[name].data_ptr()
        }

    def keep(self, name: str, edits: tuple[Edit, ...], old: Tensor, new: Tensor) -> None:
        self._bytes += new.numel() * new.element_size()
        if self._bytes <= MOST_KEPT:
            self._known[name, edits] = old, new


@contextlib.contextmanager
def edited(anatomy: Anatomy, edits: Sequence[Edit], rebuilds: Rebuilt | None = None) -> Iterator[None]:
    """The network with several layers changed at once, for the time of a ``with`` block."""
    of_tensor: dict[str, tuple[Edit, ...]] = {}
    for edit in edits:
        for name in dict.fromkeys(place.tensor for place in edit.layer.places):
            of_tensor[name] = (*of_tensor.get(name, ()), edit)
    tensors = {name: anatomy.tensor(name) for name in of_tensor}
    with undoing() as undo:
        masks = anatomy.masks()
        known = rebuilds.look_up(tensors, of_tensor) if rebuilds is not None and not masks else {}
        changed = dict(known)
        alike: dict[object, list[tuple[str, Move]]] = {}
        for name, steps in moves(edits, known).items():
            tensor = tensors[name]
            if len(steps) == 1 and steps[0].joins(tensor):
                alike.setdefault((steps[0].origin, tensor.dtype, tensor.device), []).append((name, steps[0]))
            else:
                changed[name] = rebuild(tensor.data, steps, passing=True)
            mask = masks.get(name)
            if mask is not None and mask.dim():  # else it is lifted
                undo.append(exchange(mask, rebuild_mask(mask, steps)))
        for group in alike.values():
            news = _together([tensors[name].data for name, _ in group], group[0][1])
            changed.update(zip((name for name, _ in group), news, strict=True))
        for name, new in changed.items():
            if rebuilds is not None and name not in known:
                rebuilds.keep(name, of_tensor[name], tensors[name].data, new)
            undo.append(exchange(tensors[name], new, None))
        undo.extend(resize(edits))
        undo.extend(write_down(anatomy, anatomy.modules, [edit.layer for edit in edits]))
        yield


def resize(edits: Iterable[Edit]) -> Undo:
    """Sets the layers' number of units to what it is now."""
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


def _take(old: Tensor, origins: Mapping[int, Origin], passing: bool = False) -> Tensor:
    """A new tensor of the old values along several axes; of a large one, blocks of neighbours are copied whole."""
    if old.numel() >= LARGE and math.prod(len(origin.runs) for origin in origins.values()) <= MOST_BLOCKS:
        shape = [len(origins[a].old) if a in origins else n for a, n in enumerate(old.shape)]
        new = _large_pages(old, shape) if passing and old.is_cpu else old.new_empty(shape)
        _copy_blocks(old, new, list(origins.items()))
        return new
    for axis, origin in origins.items():
        old = old.index_select(axis, origin.old.to(old.device))
    return old


def _copy_blocks(old: Tensor, new: Tensor, origins: Sequence[tuple[int, Origin]]) -> None:
    if not origins:
        new.copy_(old)
        return
    (axis, origin), *rest = origins
    for start, place, length in origin.runs:
        _copy_blocks(old.narrow(axis, start, length), new.narrow(axis, place, length), rest)


def _large_pages(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty tensor in numpy's memory, which comes in large pages; to be given small ones takes longer than to fill
    them. Its memory cannot be resized or shared, so it is not for tensors that stay."""
    room = numpy.empty(math.prod(shape) * like.element_size(), numpy.uint8)
    return torch.from_numpy(room).view(like.dtype).view(shape)


def _times(tensor: Tensor, axis: int, factor: Tensor | None) -> Tensor:
    """Multiplies along an axis, in place; of a large tensor only where that changes anything."""
    if factor is None:
        return tensor
    shape = [-1 if a == axis else 1 for a in range(tensor.dim())]
    if tensor.numel() >= HUGE and len(stretches := _stretches((factor != 1).nonzero().squeeze(1))) <= MOST_BLOCKS:
        for start, length in stretches:
            tensor.narrow(axis, start, length).mul_(factor[start : start + length].to(tensor).view(shape))
    elif tensor.is_contiguous() and (inner := math.prod(tensor.shape[axis + 1 :])) > 1:  # long rows take less time
        tensor.view(*tensor.shape[:axis], -1).mul_(factor.to(tensor).repeat_interleave(inner))
    else:
        tensor.mul_(factor.to(tensor).view(shape))
    return tensor


def _stretches(positions: Tensor) -> list[tuple[int, int]]:
    """Neighbours among ascending positions: the first one, and how many."""
    breaks = (positions.diff() != 1).nonzero().squeeze(1) + 1
    bounds = [0, *breaks.tolist(), len(positions)] if len(positions) else []
    return [(int(positions[a]), b - a) for a, b in itertools.pairwise(bounds)]
