"""What two passes have in common: the second one is given what the first one computed.

A network in training mode computes most of what it computes in evaluation mode, from the same weights and inputs; what
is added (auxiliary heads, say) is all that has to be computed anew. An operator is the same if it is given the same
memory in the same state and the same numbers. Work in place takes memory to its next state; where the second pass needs
a state that is gone, it is ``spoilt``, and has to be made again without this help.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

#: No more bytes than these are kept.
MOST_KEPT = 1 << 28


class Spoilt(Exception):
    """The second pass needs memory in a state that is gone, or nothing was kept for it."""


class Shared(TorchDispatchMode):
    """Keeps what a pass computes within ``first()``, and gives it to the one within ``second()``."""

    def __init__(self) -> None:
        super().__init__()
        self.spoilt = False
        self._second = False
        self._kept: dict[object, list[Any]] = {}
        self._alive: list[Any] = []  # so that no memory is used twice
        self._bytes = 0
        self._states: dict[int, int] = {}
        self._last: dict[int, int] = {}

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        with self:
            yield
        self._last, self._states, self._second = self._states, {}, True

    @contextlib.contextmanager
    def second(self) -> Iterator[None]:
        """Raises Spoilt where what it gave may be wrong."""
        if self.spoilt or not self._second:
            raise Spoilt
        try:
            with self:
                yield
        except Exception:
            if not self.spoilt:
                raise
        finally:
            self.forget()
        if self.spoilt:
            raise Spoilt

    def forget(self) -> None:
        self._kept, self._alive = {}, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.spoilt:
            return func(*args, **kwargs)
        leaves, form = _pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        written = _written(func, args, kwargs) if func._schema.is_mutable else []
        key = self._key(func, leaves, form, len(written) > 1 or (bool(written) and written[0] is not args[0]))
        if self._second and self._kept.get(key):
            known = self._kept[key].pop(0)  # each is given away once, as it may be written to
            self._pass_on(written)
            return args[0] if written else _again(known)
        if self._second and any(self._is_ahead(tensor) for tensor in tensors):
            self.spoilt = True
            self.forget()
        out = func(*args, **kwargs)
        if not self._second:
            self._keep(key, tensors, written, out)
        self._pass_on(written)
        return out

    def _key(self, func: Any, leaves: list[Any], form: Any, odd: bool) -> object:
        """What is equal for operators that compute the same; None for those that are not kept."""
        if odd or torch.Tag.nondeterministic_seeded in func.tags:
            return None
        try:
            key = func, form, tuple(map(self._state, leaves))
            hash(key)
        except (TypeError, RuntimeError, NotImplementedError):  # a tensor without plain memory, a foreign object
            return None
        return key

    def _state(self, leaf: Any) -> object:
        if not isinstance(leaf, Tensor):
            return type(leaf), leaf
        memory = _memory(leaf)
        place = leaf.storage_offset(), leaf.shape, leaf.stride(), leaf.dtype, leaf.is_conj(), leaf.is_neg()
        return memory, self._states.get(memory, 0), place

    def _keep(self, key: object, tensors: list[Tensor], written: list[Tensor], out: Any) -> None:
        outputs = [each for each in _pytree.tree_leaves(out) if isinstance(each, Tensor)]
        if not outputs or type(outputs[0]) is not Tensor or outputs[0].layout != torch.strided:
            key = None
        if any(_memory(tensor) not in self._states for tensor in written):  # not of this pass: who knows what else
            self.spoilt = True
        known = {_memory(tensor) for tensor in tensors} if key is not None else set()
        for tensor in outputs if key is not None else ():
            if _memory(tensor) not in known:
                self._states.setdefault(_memory(tensor), 0)
                self._bytes += tensor.untyped_storage().nbytes()
        if self.spoilt or self._bytes > MOST_KEPT:
            self.spoilt = True
            return self.forget()
        self._alive.append((tensors, outputs))
        if key is not None:
            self._kept.setdefault(key, []).append(None if written else out)

    def _pass_on(self, written: list[Tensor]) -> None:
        for tensor in written:
            memory = _memory(tensor)
            self._states[memory] = self._states.get(memory, 0) + 1

    def _is_ahead(self, tensor: Tensor) -> bool:
        """Whether this memory holds what the second pass has not come to yet."""
        if tensor.layout != torch.strided:
            return False
        memory = _memory(tensor)
        return self._states.get(memory, 0) < self._last.get(memory, 0)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _again(out: Any) -> Any:
    """What was computed, as new tensors on the same memory."""
    return _pytree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, out)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """What an operator writes to."""
    found: list[Tensor] = []
    for at, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[at] if at < len(args) else kwargs.get(argument.name)
            found.extend(x for x in _pytree.tree_leaves(value) if isinstance(x, Tensor))
    return found
