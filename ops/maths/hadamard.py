"""The Walsh–Hadamard transform without its matrix, and matrices S H G Π H B of three diagonals (Fastfood).

Sources: Le, Sarlós and Smola 2013, *Fastfood: approximating kernel expansions in loglinear time*; Yang et al. 2015,
*Deep fried convnets*, section 2 (all three diagonals are learned).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: What keeps a diagonal near what it was in a round of the fit, as a fraction of the mean weight of its entries.
NEAR = 1e-9
#: Steps of conjugate gradients in a round, and what nothing is divided by less than.
STEPS, TINY = 30, 1e-30


def transform(x: Tensor, dim: int) -> Tensor:
    """H x along a dimension of 2^k entries, in O(n log n); H is symmetric and orthogonal.

    >>> transform(torch.tensor([1.0, 0.0, 0.0, 0.0]), 0)
    tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    moved = x.movedim(dim, -1)
    length, half = moved.shape[-1], 1
    while half < length:
        pairs = moved.reshape(*moved.shape[:-1], length // (2 * half), 2, half)
        first, second = pairs.unbind(-2)
        moved = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        half *= 2
    return (moved * length**-0.5).movedim(-1, dim)


def fastfood(s: Tensor, g: Tensor, b: Tensor, order: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Stacked matrices S H G Π H B at these rows and columns, ``[rows, columns]``.

    ``g``: ``[blocks, d]``; ``order``, the same shape: which entry each takes after Π. ``b``: ``[blocks, n]``, n ≤ d.
    ``s``: ``[all rows]``, of d rows each block.
    """
    blocks, d = g.shape
    first = torch.zeros(blocks, d, len(columns), dtype=g.dtype, device=g.device)
    first[:, columns, torch.arange(len(columns), device=g.device)] = b[:, columns]
    mixed = transform(first, 1).gather(1, order.unsqueeze(-1).expand(-1, -1, len(columns)))
    return transform(mixed * g.unsqueeze(-1), 1).flatten(0, 1)[rows] * s[rows].unsqueeze(-1)


def fit(matrix: Tensor, order: Tensor, generator: torch.Generator, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """The diagonals s ``[rows]``, g ``[d]``, b ``[n]`` of one block for a matrix ``[rows, n]``, in double precision.

    Alternating least squares: each round gives every diagonal its best values, the other two given, so the error never
    rises. It begins with random signs.
    """
    (r, n), d = matrix.shape, len(order)
    signs = torch.randint(2, (r + n,), generator=generator).to(matrix) * 2 - 1
    s, g, b = signs[:r], torch.randn(d, generator=generator, dtype=torch.float64).to(matrix), signs[r:]
    places, rows, columns = (torch.arange(size, device=matrix.device) for size in (d, r, n))
    for _ in range(rounds):
        ones = torch.ones_like(s), g.view(1, d), torch.ones_like(b).view(1, n)
        inner = fastfood(*ones, order.view(1, d), rows, columns)
        common, squares = inner * matrix, inner.square_()
        s = _best(common @ b, squares @ b.square(), s)
        b = _best(s @ common, s.square() @ squares, b)
        del inner, common, squares
        padded = torch.nn.functional.pad(s.unsqueeze(1) * matrix * b, (0, d - n, 0, d - r))
        right = transform(transform(padded, 0), 1)[places, order]
        del padded
        outer, under = (transform(torch.nn.functional.pad(x.square(), (0, d - len(x))), 0) * d**-0.5 for x in (s, b))
        normal = outer[places.unsqueeze(1) ^ places]  # a product of two rows of H is another one
        normal *= under[order.unsqueeze(1) ^ order]
        g = _descend(normal, right, g)
    return s, g, b


def _descend(normal: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """Some steps of conjugate gradients from x towards the solution of ``normal · y = right``."""
    left = right - normal @ x
    along, size = left, left @ left
    for _ in range(STEPS):
        turned = normal @ along
        x = x + along * (step := size / (along @ turned).clamp(min=TINY))
        left = left - turned * step
        along, size = left + along * (left @ left / size.clamp(min=TINY)), left @ left
    return x


def _best(right: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    near = NEAR * weight.mean().clamp(min=TINY)
    return (right + near * before) / (weight + near)
