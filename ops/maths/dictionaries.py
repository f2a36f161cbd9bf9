"""Dictionaries: matrices U by which a row of a weight, with n entries, is made of r numbers: w = U v.

Source: Denil et al. 2013, *Predicting parameters in deep learning*, sections 3 and 4. Where v holds the entries of w at
positions α, the ridge predictor with a kernel is U = k_αᵀ (K_α + λI)⁻¹, with K_α = K[α, α] and k_α = K[α, :].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def orthogonal(n: int, r: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal columns, ``[n, r]``, r ≤ n; their signs are fixed."""
    q, upper = torch.linalg.qr(torch.randn(n, r, generator=generator, dtype=torch.float64))
    signs: Tensor = torch.where(upper.diagonal() < 0, -1.0, 1.0)
    return q * signs


def gaussian(n: int, r: int, generator: torch.Generator) -> Tensor:
    """Normal numbers, ``[n, r]``, whose rows have a mean square sum of 1."""
    return torch.randn(n, r, generator=generator, dtype=torch.float64) / math.sqrt(r)


def identity(n: int, positions: Tensor) -> Tensor:
    """The columns of the identity at these positions, ``[n, r]``: all other entries are predicted as zero."""
    found = torch.zeros(n, len(positions), dtype=torch.float64)
    found[positions, torch.arange(len(positions))] = 1.0
    return found


def ridge(kernel: Tensor, positions: Tensor, penalty: float) -> Tensor:
    """The predictor ``[n, r]`` of n entries from those at r positions, by kernel ridge regression.

    ``kernel``: ``[n, n]``, symmetric and positive semidefinite; ``penalty``: λ, in units of its mean diagonal.

    >>> kernel = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double()
    >>> ridge(kernel, torch.tensor([0]), 1.0)
    tensor([[0.5000],
            [0.2500]], dtype=torch.float64)
    """
    known = kernel[positions][:, positions]
    weight = penalty * float(kernel.diagonal().mean()) * torch.eye(len(positions), dtype=kernel.dtype)
    return torch.linalg.lstsq(known + weight.to(kernel.device), kernel[positions]).solution.T


def squared_exponential(layout: Sequence[int], width: float) -> Tensor:
    """The kernel ``[n, n]`` of the entries of ``(channels, *sides)``: exp(−d²/2·width²), zero between channels.

    d: the distance of two positions of one channel, in pixels.
    """
    channels, *sides = layout
    places = torch.cartesian_prod(*(torch.arange(side) for side in sides)).view(-1, len(sides)).double()
    near = (torch.cdist(places, places).square() / (-2 * width**2)).exp()
    return torch.block_diag(*[near] * channels)


def spread_positions(layout: Sequence[int], r: int, generator: torch.Generator) -> Tensor:
    """r random positions among the entries of ``(channels, *sides)``, as many in each channel but for one."""
    channels, per_channel = layout[0], math.prod(layout[1:])
    turns = torch.stack([torch.randperm(per_channel, generator=generator) for _ in range(channels)])
    order = torch.stack([torch.randperm(channels, generator=generator) for _ in range(per_channel)])
    places = order * per_channel + turns.T.gather(1, order)
    return places.flatten()[:r]


def principal(covariance: Tensor, r: int) -> Tensor:
    """The r leading eigenvectors, ``[n, r]``: what a linear autoencoder of r hidden units learns (Baldi & Hornik 1989).

    Their signs are fixed: the largest entry is positive.
    """
    vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :r]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    signs: Tensor = torch.where(largest < 0, -1.0, 1.0)
    return vectors * signs
