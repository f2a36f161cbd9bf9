"""Passes that can be compared: noise that does not depend on a tensor's shape, and a look at the precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

#: What is drawn in place of noise; masks that keep some entries keep all.
NOISE = 0.37


class Steady(TorchDispatchMode):
    """Every draw of random numbers within it gives one and the same number for all entries."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
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
