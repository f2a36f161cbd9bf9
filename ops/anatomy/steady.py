"""Passes that can be compared: noise that does not depend on a tensor's shape, and a look at the precision."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from network_surgery.ops.anatomy.axes import Factor, canonical, index, size, units_on
from network_surgery.ops.anatomy.calls import Axes

#: What is drawn in place of noise; masks that keep some entries keep all.
NOISE = 0.37


@functools.cache
def draws(func: Any) -> bool:
    """Whether an operator draws random numbers, one for each entry; fused attention draws some for its dropout only."""
    return is_seeded(func) and "attention" not in func.overloadpacket.__name__


@functools.cache
def is_seeded(func: Any) -> bool:
    """Whether what an operator gives depends on random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags


class Steady(TorchDispatchMode):
    """Every draw of random numbers within it gives one and the same number for all entries."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_seeded(func):
            return func(*args, **(kwargs or {}))
        name: str = func.overloadpacket.__name__
        if name.startswith("rrelu"):
            x, _, lower, upper = args[:4]
            out = torch.where(x > 0, x, x * (lower + upper) / 2)
            return x.copy_(out) if name.endswith("_") else out
        if name == "normal" and any(isinstance(each, Tensor) for each in args[:2]):
            return args[0] + NOISE * args[1]
        out = func(*args, **(kwargs or {}))
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(out[1])
        for tensor in _pytree.tree_leaves(out):
            if isinstance(tensor, Tensor) and ("bernoulli" in name or tensor.is_floating_point()):
                tensor.fill_(1 if "bernoulli" in name else NOISE)
        return out


class Redrawn(TorchDispatchMode):
    """A pass at another size in which each unit is given the noise that it had at the old one.

    ``drawn``: the axes of the random numbers that a pass draws, one after the other; ``sources``: the old unit of each
    new one (−1: newborn) of the layers that change, which have their old sizes while this is made.
    """

    def __init__(self, drawn: Sequence[Axes], sources: Mapping[Factor, Tensor]) -> None:
        super().__init__()
        self._moves = [[_move(axis, sources) for axis in map(canonical, each)] for each in drawn]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not draws(func) or not self._moves:
            return func(*args, **kwargs)
        moves = self._moves.pop(0)
        if not any(moves) or any(_is_written(each, moves) for each in args):
            return func(*args, **kwargs)

        def before(value: Any) -> Any:
            """An argument as it was at the old size."""
            if isinstance(value, Tensor):
                for dim, move in enumerate(reversed(moves), start=1):
                    if move is not None and dim <= value.dim() and value.size(-dim) == len(move[0]):
                        value = value.index_select(value.dim() - dim, move[1].to(value.device))
            elif isinstance(value, (list, tuple)) and len(value) == len(moves):
                return [n if move is None else len(move[1]) for n, move in zip(value, moves, strict=True)]
            return value

        def after(value: Any) -> Any:
            for dim, move in enumerate(moves) if isinstance(value, Tensor) and value.dim() == len(moves) else ():
                if move is not None and value.size(dim) == len(move[1]):
                    value = value.index_select(dim, move[0].to(value.device))
            return value

        out = func(*map(before, args), **kwargs)
        new = tuple(map(after, out)) if isinstance(out, tuple) else after(out)
        return args[0].copy_(new) if func._schema.is_mutable else new


def _is_written(argument: Any, moves: Sequence[tuple[Tensor, Tensor] | None]) -> bool:
    """Whether this is a size that did not follow its units: the code has it written down."""
    if not isinstance(argument, (list, tuple)) or len(argument) != len(moves):
        return False
    return any(move is not None and n != len(move[0]) for n, move in zip(argument, moves, strict=True))


def _move(axis: Any, sources: Mapping[Factor, Tensor]) -> tuple[Tensor, Tensor] | None:
    """The old position of each new one, and a new position of each old one; None where nothing changes."""
    if not any(factor in sources for factor in units_on(axis)):
        return None
    old = index(axis, sources).clamp(min=0)
    new = old.new_zeros(size(axis)).scatter_(0, old, torch.arange(len(old)))
    return old, new


class Precisions(TorchDispatchMode):
    """Notes whether anything within it is computed in less than double precision."""

    coarse = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in _pytree.tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.dtype in COARSE:
                self.coarse = True
        return out


COARSE = (torch.float32, torch.bfloat16, torch.float16, torch.complex64)
