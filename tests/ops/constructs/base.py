"""What networks are made of, by the kind of tensor that a construct takes.

A construct is a function ``(chance, shape) → module``: seeded random choices, and the shape of the tensor it is given,
with the batch. It raises ``Unfit`` where the shape does not suit it. Tensors are of four kinds: *flat* ``[B, C]``,
*image* ``[B, C, H, W]``, *signal* ``[B, C, L]`` and *sequence* ``[B, T, C]``.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from tests.ops.networks import Net

Shape = tuple[int, ...]
Construct = Callable[[Random, Shape], nn.Module]


class Unfit(ValueError):
    """This construct cannot follow a tensor of this shape."""


def need(condition: bool) -> None:
    if not condition:
        raise Unfit


def plain(function: Callable[[Tensor], Tensor]) -> Construct:
    """A construct without parameters or choices."""
    return lambda chance, shape: Net(lambda m, h: function(h))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def width(chance: Random) -> int:
    return chance.choice((3, 4, 4, 5, 6, 6, 8, 8, 12))


def convolution(dims: int) -> Any:
    return {1: nn.Conv1d, 2: nn.Conv2d}[dims]


def maker(chance: Random, shape: Shape, kind: str, units: int | None = None, zeros: bool = False) -> nn.Module:
    """A plain weighted layer that keeps the extent of its tensor; ``zeros``: padded with zeros and nothing else."""
    units = units or width(chance)
    bias = chance.random() < 0.7
    if kind in ("flat", "sequence"):
        return nn.Linear(shape[-1], units, bias=bias)
    size = chance.choice((1, 3))
    mode = "zeros" if zeros else chance.choice(("zeros", "zeros", "replicate", "circular"))
    return convolution(len(shape) - 2)(shape[1], units, size, padding=size // 2, bias=bias, padding_mode=mode)
