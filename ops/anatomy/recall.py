"""Recall: what one pass of a network computed, so that the next one need not compute it again.

A network runs mostly the same operators in training mode as in evaluation mode. One that is given the same tensors with
the same values in them gives what it gave before. The second pass takes that from the first one and computes only what
it does otherwise: it costs little more than the Python of the network.

Tensors are the same if they show the same part of the same memory, of the network, of its input or of what the first
pass made; as that is kept, no other tensor can be there. Their values are the same if the same operators have written
to that memory, which has a number for each state that it was in. It holds only the last one: where something new reads
an earlier one, the second pass is ``Lost``. Random numbers, operators of others and memory from elsewhere are not known
a second time.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from network_surgery.ops.anatomy.calls import tensors_in
from network_surgery.ops.anatomy.running import flat_tensors
from network_surgery.ops.anatomy.steady import is_seeded

#: Whose operators give the same for the same.
KNOWN = frozenset({"aten", "prims", "torchvision"})
#: Operators that exchange the memory of a tensor.
EXCHANGING = frozenset({"set_", "resize_", "resize_as_"})
#: No more bytes than these are kept of what a pass computes.
MOST_KEPT = 1 << 30
#: Tensors of so few numbers are known by their values where their memory comes from elsewhere.
FEW = 16
PLAIN = (Tensor, nn.Parameter)


class Lost(BaseException):
    """Values are wanted that are no longer there; no error of the network's, so that its code does not catch it."""


class _Unknown(Exception):
    """What an operator is given cannot be told from something else."""


@dataclass(slots=True)
class _Known:
    """What an operator gave, each time that it was given the same, as new tensors, since the old ones may be given
    another shape; the state in which it left what it wrote to."""

    outs: list[Any] = field(default_factory=list)
    state: int | None = None


class Recall:
    """What a pass of a network on an example computed. ``again`` begins another one, which does not compute that again.

    ``usable``: the first pass kept all that it computed, and has not written to what it was given. ``lost``: this pass
    wanted what is no longer there.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.usable, self.lost, self._again = True, False, False
        given = (*itertools.chain.from_iterable(map(_list_held, model.modules())), *flat_tensors(example))
        self._given = {_address(tensor) for tensor in given if _is_plain(tensor)}
        self._known: dict[object, _Known] = {}
        self._times = Counter[object]()
        self._passed: dict[object, list[tuple[Tensor, int]]] = {}
        self._states: dict[int, int] = {}  # of memory, by its address
        self._left: dict[int, int] = {}  # the states in which it really is
        self._made: set[int] = set()
        self._bytes = 0
        self._number = itertools.count(1)

    def again(self) -> None:
        """From now on another pass runs."""
        if not self._again:
            self._left = dict(self._states)
        self._again, self.lost = True, False
        self._states = {}
        self._times.clear()

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
        """What an operator gives, and whether that was known."""
        key = self._call_key(func, args, kwargs)
        if not self._again:
            out = func(*args, **kwargs)
            if self.usable:
                self._keep(key, func, args, kwargs, out)
            return out, False
        known = self._known.get(key) if key is not None else None
        if known is None or self._times[key] >= len(known.outs):
            return self._compute(func, args, kwargs), False
        before = known.outs[self._times[key]]
        self._times[key] += 1
        if known.state is not None:
            self._states[_address(args[0])] = known.state
            return args[0], True
        return func(*args, **kwargs) if _is_view(func) else _anew(before), True

    # -- modules that do the same --------------------------------------------------------------------------------------

    def entering(self, args: tuple[Any, ...]) -> object:
        """What a module is given, to ask ``passed`` by when it is left; None where that cannot be told."""
        return self._key(args)

    def leaving(self, module: nn.Module, given: object, out: Any) -> None:
        """Notes what a module answered."""
        if given is not None and isinstance(out, Tensor) and self.usable and not self._again:
            self._passed.setdefault((module, given), []).append((out, self._state(out)))

    def passed(self, module: nn.Module, given: object) -> Tensor | None:
        """What a module answered in the first pass when it was given the same."""
        known, times = self._passed.get((module, given), []), self._times[module, given]
        if times >= len(known):
            return None
        self._times[module, given] += 1
        before, state = known[times]
        self._states[_address(before)] = state
        return before

    def holds(self, tensors: Iterable[Tensor]) -> bool:
        """Whether tensors hold what this pass takes them to hold: the first one has not written to them since."""
        return not self.lost and all(map(self._is_left, tensors))

    def is_same(self, outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
        """Whether a pass answers the very tensors of the first one."""
        if len(outputs) != len(wanted) or not self.holds((*outputs, *wanted)):
            return False
        return all(_place(one) == _place(other) for one, other in zip(outputs, wanted, strict=True))

    # -- inside --------------------------------------------------------------------------------------------------------

    def _compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an operator that the first pass did not run."""
        if not self.holds(tensors_in((*args, *kwargs.values()))):
            self.lost = True
            raise Lost
        out = func(*args, **kwargs)
        for tensor in _list_written(func, args, kwargs):
            address = _address(tensor)
            self._states[address] = self._left[address] = next(self._number)
        return out

    def _keep(self, key: object, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Keeps what an operator of the first pass gave."""
        written, outs = _list_written(func, args, kwargs), tensors_in((out,))
        if not all(map(_is_plain, (*written, *outs))):
            key = None
        self._bytes += 0 if written or _is_view(func) else sum(t.numel() * t.element_size() for t in outs)
        if self._bytes > MOST_KEPT or any(not _is_plain(t) or _address(t) in self._given for t in written):
            self.usable = False
            self._known.clear()
            self._passed.clear()
            return
        for tensor in written:
            self._states[_address(tensor)] = next(self._number)
        if key is None or (written and not (len(written) == 1 and out is args[0] is written[0])):
            return
        entry = self._known.setdefault(key, _Known())
        entry.outs.append(_anew(out))
        if written:
            entry.state = self._states[_address(out)]
        elif not _is_view(func):
            self._made.update(map(_address, outs))

    def _call_key(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """An operator with all that it is given, None where that cannot be told."""
        if func.namespace not in KNOWN or is_seeded(func) or func.overloadpacket.__name__ in EXCHANGING:
            return None
        return self._key(func, args, *itertools.chain.from_iterable(sorted(kwargs.items())))

    def _key(self, *values: Any) -> object:
        """What is equal for equal values only; None where that cannot be told."""
        key: list[Any] = []
        try:
            for value in values:
                self._describe(value, key)
        except _Unknown:
            return None
        return tuple(key)  # flat, as the garbage collector looks into what is nested

    def _describe(self, value: Any, key: list[Any]) -> None:
        kind = type(value)
        if isinstance(value, Tensor):
            place = _place(value)
            if place[0] in self._made or place[0] in self._given:
                key += place
                key.append(self._states.get(place[0], 0))
            elif value.numel() <= FEW and value.is_cpu:
                key += place[2:]
                key += map(repr, value.flatten().tolist())
            else:
                raise _Unknown
        elif isinstance(value, (list, tuple)):
            key += kind, len(value)
            for each in value:
                self._describe(each, key)
        elif isinstance(value, (float, complex)):
            key += kind, repr(value)
        elif isinstance(value, int):  # 1, 1.0 and True are not the same to an operator
            key += bool if kind is bool else int, int(value)
        elif isinstance(value, Hashable):
            key.append(value)
        else:
            raise _Unknown

    def _state(self, tensor: Tensor) -> int:
        return self._states.get(_address(tensor), 0)

    def _is_left(self, tensor: Tensor) -> bool:
        """Whether its memory really is in the state that this pass takes it to be in."""
        if not _is_plain(tensor):
            return False
        address = _address(tensor)
        return self._states.get(address, 0) == self._left.get(address, 0)


class Recalling(TorchDispatchMode):
    """Runs with what is recalled, or keeps it for the next time."""

    def __init__(self, recall: Recall) -> None:
        super().__init__()
        self.recall = recall

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recall.call(func, args, kwargs or {})[0]


def _list_held(module: nn.Module) -> list[Tensor]:
    """The tensors that a module keeps, under whatever name."""
    kept = vars(module)
    values = (*kept["_parameters"].values(), *kept["_buffers"].values(), *kept.values())
    return [value for value in values if isinstance(value, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in PLAIN and tensor.layout == torch.strided and not tensor.is_nested


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Which part of which memory a tensor shows, and how."""
    if not _is_plain(tensor):
        raise _Unknown
    how = tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg()
    return _address(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), *how


def _anew(value: Any) -> Any:
    """The same tensors as new ones, since autograd notes in each how it came about."""
    if isinstance(value, Tensor):
        return value.detach()
    return type(value)(map(_anew, value)) if type(value) in (list, tuple) else value


@functools.cache
def _is_view(func: Any) -> bool:
    """Whether an operator shows its first argument otherwise, without computing anything."""
    return not _writes(func) and any(each.alias_info is not None for each in func._schema.arguments)


@functools.cache
def _writes(func: Any) -> list[tuple[int, str]]:
    """The arguments that an operator writes values to."""
    if torch.Tag.inplace_view in func.tags:
        return []
    arguments = enumerate(func._schema.arguments)
    return [(n, a.name) for n, a in arguments if a.alias_info is not None and a.alias_info.is_write]


def _list_written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    given = (args[n] if n < len(args) else kwargs.get(name) for n, name in _writes(func))
    return tensors_in(given)
