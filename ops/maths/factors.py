"""Weights as products of smaller ones: pure tensor maths, the factors together with what they miss.

``pair``: a matrix as two (the truncated singular value decomposition, each factor with the roots of the singular
values). ``tucker``: a kernel with both channel modes reduced (Tucker-2, one truncated pass over the modes, as
``ops.maths.hosvd``). ``filters``: a kernel as vertical filters and then horizontal ones (Jaderberg et al. 2014,
*Speeding up convolutional neural networks with low rank expansions*, scheme 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from network_surgery.ops.maths.hosvd import gram


@dataclass(frozen=True)
class Cut:
    """How many directions stay: a fraction ``rank`` of those that there are (rounded down, one at least), the fewest
    with a fraction ``variance`` of the squared singular values, or those whose singular value reaches ``threshold``.
    """

    rank: float | None = None
    variance: float | None = None
    threshold: float | None = None

    def size(self, values: Tensor) -> int:
        """How many of these singular values stay, ``[number]``, descending."""
        if self.threshold is not None:
            return max(1, int((values >= self.threshold).sum()))
        if self.variance is not None:
            energy = values.square().cumsum(0)
            return min(len(values), int((energy < self.variance * energy[-1] * (1 - 1e-12)).sum()) + 1)
        assert self.rank is not None
        return max(1, math.floor(self.rank * len(values) + 1e-9))


def pair(matrix: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """``left [m, r]`` and ``right [r, n]`` whose product is the best approximation of a matrix ``[m, n]`` of rank r."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    size = cut.size(values)
    signs = left[:, :size].gather(0, left[:, :size].abs().argmax(0, keepdim=True)).sign()  # else they are anyone's
    roots = values[:size].sqrt()
    return left[:, :size] * signs * roots, roots.unsqueeze(1) * right[:size] * signs.T


def tucker(kernel: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """Orthonormal columns for the outputs ``[out, r]`` and the inputs ``[in, s]`` of a kernel ``[out, in, *size]``."""
    return _leading(kernel.flatten(1), cut), _leading(kernel.transpose(0, 1).flatten(1), cut)


def filters(kernel: Tensor) -> Tensor:
    """A kernel ``[out, in, height, width]`` as the matrix ``[out × width, in × height]``.

    A ``pair`` of it are horizontal filters and vertical ones: ``[out, r, 1, width]``, ``[r, in, height, 1]``.
    """
    return kernel.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)


def compose(second: Tensor, first: Tensor, spacing: tuple[int, ...]) -> Tensor:
    """The kernel of two convolutions, one after the other: ``[out, in, *size]`` of ``[out, mid, *]``, ``[mid, in, *]``.

    ``spacing``: how many positions of the first one's kernel those of the second are apart.
    """
    sizes = [(n - 1) * space + 1 for n, space in zip(second.shape[2:], spacing, strict=True)]
    wide = second.new_zeros(*second.shape[:2], *sizes)
    steps: tuple[Any, ...] = (..., *(slice(None, None, space) for space in spacing))
    wide[steps] = second
    full = [n - 1 for n in first.shape[2:]]
    convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[len(full) - 1]
    flipped = first.transpose(0, 1).flip(tuple(range(2, first.dim())))
    return convolve(wide, flipped, padding=full)


def _leading(unfolding: Tensor, cut: Cut) -> Tensor:
    """The leading left singular vectors of a matrix ``[rows, columns]``."""
    values, vectors = torch.linalg.eigh(gram(unfolding))
    values = values.flip(0).clamp(min=0).sqrt()[: min(unfolding.shape)]
    return vectors.flip(1)[:, : cut.size(values)]
