"""A graph of a training step, as CUDA has it, on any device: a list of operators that is run again on the same memory.

Nothing of Python runs in a replay, and a tensor that was exchanged since is still read where it was, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _List(TorchDispatchMode):
    """Every operator with its arguments and outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = func(*args, **(kwargs or {}))
        self.operators.append((func, *_pytree.tree_map_only(Tensor, torch.detach, (args, kwargs or {}, outcome))))
        return outcome


def record(function: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """What replays it, and what the function returned."""
    with _List() as listed:
        returned = function()

    @torch.no_grad()
    def replay() -> None:
        for func, args, kwargs, outcome in listed.operators:
            again = _pytree.tree_leaves(func(*args, **kwargs))
            for old, new in zip(_pytree.tree_leaves(outcome), again, strict=True):
                if isinstance(old, Tensor) and old.numel() and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    return replay, returned
