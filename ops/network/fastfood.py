"""Weights that are a product of transforms and three diagonals, S H G Π H B: some numbers for each row and column.

H is the Walsh–Hadamard transform of 2^k ≥ n entries, for rows of n; Π is a permutation that follows from a seed. Of
more rows than 2^k, several such products are stacked. Stored are the diagonals alone. The weight is computed in each
forward pass by additions, in O(n log n) for each of its columns, and no matrix H is made.

Sources: Le, Sarlós and Smola 2013, *Fastfood*; Yang et al. 2015, *Deep fried convnets*. The maths is in
``ops.maths.hadamard``. When units go, their rows or columns go, exactly; the numbers stay stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from network_surgery.ops.maths.double import double
from network_surgery.ops.maths.hadamard import fastfood, fit
from network_surgery.ops.network.fields import SEED, SHAPE, Field
from network_surgery.ops.network.hashed import Placed

#: Rounds in which the diagonals are fitted to a weight.
ROUNDS = 6


class Fastfood(Placed):
    """A weight of ``shape`` whose rows are those of stacked matrices S H G Π H B. ``seed``: of Π.

    What is stored: S ``[rows]``, G ``[blocks, 2^k]``, B ``[blocks, n]``, one after the other.
    """

    kind = "a fastfood product"
    fields: ClassVar[Mapping[str, Field]] = {"shape": SHAPE, "seed": SEED}
    linear = False

    def __init__(self, shape: Sequence[int], seed: int, names: Mapping[str, Sequence[int]] | None = None) -> None:
        super().__init__(shape, names)
        self._seed = seed
        rows, self._columns = shape[0], math.prod(shape[1:])
        self._length = 1 << (self._columns - 1).bit_length()
        blocks = -(-rows // self._length)
        self._sizes = [rows, blocks * self._length, blocks * self._columns]
        generator = torch.Generator().manual_seed(seed)
        orders = [torch.randperm(self._length, generator=generator) for _ in range(blocks)]
        self._order = torch.stack(orders)  # no buffer: it follows from the seed

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (sum(self._sizes),)

    def flops(self) -> int:
        """Additions of the transforms, for the columns that it was made with."""
        return 2 * self._order.numel() * self._columns * (self._length.bit_length() - 1)

    def weight(self, stored: Tensor) -> Tensor:
        order = self._order.to(stored.device)
        columns = self.positions(1, stored.device)
        rows = self.positions(0, stored.device).flatten(1)[:, 0] // self._columns
        s, g, b = stored.split(self._sizes)
        made = fastfood(s, g.view(order.shape), b.view(len(order), -1), order, rows, columns.flatten())
        return made.view(-1, *columns.shape)

    def reduced(self, weight: Tensor, degree: int | None = None) -> Tensor:
        """Diagonals that are fitted to a weight of the shape that it was made with (alternating least squares).

        Optimizer state begins anew.
        """
        if degree is not None:
            return weight.new_zeros(self.stored_shape)
        matrix, generator = double(weight).flatten(1), torch.Generator().manual_seed(self._seed)
        parts = [
            fit(part, order.to(matrix.device), generator, ROUNDS)
            for part, order in zip(matrix.split(self._length), self._order, strict=True)
        ]
        return torch.cat([torch.cat(diagonals) for diagonals in zip(*parts, strict=True)]).to(weight.dtype)

    def spread(self, stored: Tensor, degree: int | None = None) -> Tensor:
        """Optimizer state begins anew."""
        weight = self.weight(stored)
        return weight if degree is None else torch.zeros_like(weight)

    def begin(self, values: Tensor) -> Tensor:
        s, g, b = values.split(self._sizes)
        spread = values.std(correction=0)
        signs: Tensor = torch.where(b < 0, -1.0, 1.0).to(values)
        return torch.cat([torch.ones_like(s) * spread * self._length**0.5, g / spread.clamp(min=1e-30), signs])

    def to_data(self) -> dict[str, Any]:
        return super().to_data() | {"seed": self._seed}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Fastfood:
        return cls(data["shape"], data["seed"], data.get("names"))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves to a device."""
        self._order = fn(self._order)
        return super()._apply(fn, recurse)
