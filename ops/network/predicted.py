"""Weights of which a part is stored, and the rest predicted from it by a fixed dictionary: W = V Uᵀ.

Each row of a weight ``[rows, n]`` (what one unit reads) is ``U v``: U ``[n, r]`` is fixed, v is stored. Several
*columns* divide the rows among dictionaries of their own. A dictionary that follows from a seed is not stored, and made
again by ``load``: bit for bit on the same machine, to the rounding of single precision on another. One that was
measured is stored beside the numbers.

Source: Denil et al. 2013, *Predicting parameters in deep learning*. The maths is in ``ops.maths.dictionaries``.

When units go, their rows of V go, or their entries of U: both are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from network_surgery.ops.maths.dictionaries import (
    gaussian,
    identity,
    orthogonal,
    ridge,
    spread_positions,
    squared_exponential,
)
from network_surgery.ops.maths.double import double
from network_surgery.ops.network.expressed import Compressed, Undo
from network_surgery.ops.network.fields import LAYOUT, SEED, SHAPE, Field, number, one_of, whole

#: Dictionaries that follow from a seed.
SEEDED = ("identity", "orthogonal", "gaussian", "rbf")
#: Those that are measured on a layer's inputs, and stored.
MEASURED = ("covariance", "autoencoder")


class Predicted(Compressed):
    """A weight of ``shape`` whose rows are made of ``numbers`` stored ones each, by the dictionary of their column.

    ``layout``: of a row's entries, ``(channels, *sides)``. ``width`` and ``penalty``: of the kernel ``rbf``.
    ``measured``: the dictionaries ``[columns, n, numbers]`` of a kind that is measured; without them, as in a network
    that is described but not trained, they are random and orthonormal. ``names``: by axis, the positions that it has
    now, where they are not those that it was made with.
    """

    kind = "predicted"
    fields: ClassVar[Mapping[str, Field]] = {
        "shape": SHAPE, "numbers": whole(1), "seed": SEED, "dictionary": one_of(*SEEDED, *MEASURED),
        "columns": whole(1), "layout": LAYOUT, "width": number(above=True), "penalty": number(),
    }  # fmt: skip
    rows = True

    def __init__(
        self,
        shape: Sequence[int],
        numbers: int,
        seed: int,
        dictionary: str,
        columns: int = 1,
        layout: Sequence[int] = (),
        width: float = 1.0,
        penalty: float = 0.01,
        names: Mapping[str, Sequence[int]] | None = None,
        measured: Tensor | None = None,
    ) -> None:
        super().__init__()
        if dictionary not in (*SEEDED, *MEASURED):
            raise ValueError(f"there is no dictionary {dictionary!r}")
        self._data: dict[str, Any] = {
            "shape": list(shape), "numbers": numbers, "seed": seed, "dictionary": dictionary, "columns": columns,
            "layout": list(layout), "width": width, "penalty": penalty,
        }  # fmt: skip
        made = torch.stack([self._made(column) for column in range(columns)]) if measured is None else measured
        # Of single precision, whatever the weight is, so that it is the same wherever it is made anew.
        self.dictionary: Tensor
        values = made.view(columns, *shape[1:], numbers).float()
        if dictionary in MEASURED:
            self.register_buffer("dictionary", values)
        else:  # no buffer: it is not stored
            self.dictionary = values
        self._names = {0: torch.arange(shape[0])}
        self._rows: list[Tensor] = []
        self._order = self._names[0]
        self._divide()
        for axis, known in (names or {}).items():
            self.gathered(int(axis), torch.tensor(known))

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return len(self._names[0]), int(self._data["numbers"])

    @property
    def density(self) -> float:
        """The mean square of an entry of the weight where the stored numbers have a mean square of 1."""
        return float(double(self.dictionary).square().sum(dim=-1).mean())

    def beside(self, shape: Sequence[int]) -> int:
        if self._data["dictionary"] not in MEASURED:
            return 0
        entries = math.prod(shape[1:]) * self._data["columns"] * self._data["numbers"]
        return entries * self.dictionary.element_size()

    def flops(self) -> int:
        """What it takes to compute the weight once."""
        rows, numbers = self.stored_shape
        return 2 * rows * numbers * math.prod(self.dictionary.shape[1:-1])

    def weight(self, stored: Tensor) -> Tensor:
        return self._entries(self._by_column(stored, lambda part, basis: part @ basis.T))

    def reduced(self, weight: Tensor, degree: int | None = None) -> Tensor:
        """The least squares. Of optimizer state in the first degree exactly that of the stored numbers, in the second
        as if the gradients of the weight's entries were uncorrelated; of what has no degree, the weighted mean.
        """

        def part(rows: Tensor, basis: Tensor) -> Tensor:
            if degree is None:
                return rows @ basis @ torch.linalg.pinv(basis.T @ basis, hermitian=True)
            if degree == 1:
                return rows @ basis
            squares = basis.square()
            return rows @ squares if degree else rows @ _shares(squares, 0)

        return self._by_column(double(weight).flatten(1), part).to(weight.dtype)

    def spread(self, stored: Tensor, degree: int | None = None) -> Tensor:
        """Of optimizer state the smallest part for each entry of which ``reduced`` makes this in the first degree; in
        others, the mean of the numbers that make an entry, weighted by how much.
        """
        if degree is None:
            return self.weight(stored)

        def part(rows: Tensor, basis: Tensor) -> Tensor:
            if degree == 1:
                return rows @ torch.linalg.pinv(basis.T @ basis, hermitian=True) @ basis.T
            shares = _shares(basis.square(), 1)
            return rows @ (shares if not degree else shares / basis.square().sum(dim=0).clamp(min=1e-30)).T

        return self._entries(self._by_column(double(stored), part)).to(stored.dtype)

    def gathered(self, axis: int, index: Tensor) -> Undo:
        names, before = self._names, self.dictionary
        old = names.get(axis, torch.arange(self._data["shape"][axis], device=index.device))
        if len(index) == len(old) and torch.equal(index, torch.arange(len(old), device=index.device)):
            return []
        self._names = {**names, axis: old.index_select(0, index.to(old.device))}
        if axis:
            self.dictionary = before.index_select(axis, index.to(before.device))
        self._divide()
        return [self._divide, partial(setattr, self, "dictionary", before), partial(setattr, self, "_names", names)]

    def to_data(self) -> dict[str, Any]:
        whole = {axis: names for axis, names in sorted(self._names.items()) if axis or not self._untouched(names)}
        kept = {str(axis): names.tolist() for axis, names in whole.items()}
        return self._data | ({"names": kept} if kept else {})

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Predicted:
        rows, entries = data["shape"][0], math.prod(data["shape"][1:])
        if data["layout"] and math.prod(data["layout"]) != entries:
            raise ValueError(f"its layout has not the {entries} entries of a row")
        if data["columns"] > rows or data["numbers"] > entries:
            raise ValueError(f"it has more columns than its {rows} rows, or more numbers than the {entries} of a row")
        return cls(**{name: value for name, value in data.items() if name != "kind"})

    def _untouched(self, names: Tensor) -> bool:
        return names.tolist() == list(range(self._data["shape"][0]))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves to a device. A dictionary that is not stored keeps its precision."""
        if "dictionary" not in self._buffers:
            self.dictionary = self.dictionary.to(fn(self.dictionary).device)
        self._names = {axis: fn(names) for axis, names in self._names.items()}
        self._rows, self._order = [fn(rows) for rows in self._rows], fn(self._order)
        return super()._apply(fn, recurse)

    def _divide(self) -> None:
        """Which rows are of which column, and where each stands when they are put one column after the other."""
        columns, names = self._data["columns"], self._names[0]
        column = names * columns // self._data["shape"][0]
        self._rows = [(column == each).nonzero().squeeze(1) for each in range(columns)]
        self._order = torch.cat(self._rows).argsort()

    def _by_column(self, rows: Tensor, part: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``part(rows, U)`` of the rows of each column, in their order."""
        bases = self.dictionary.flatten(1, -2).to(rows)
        if len(bases) == 1:
            return part(rows, bases[0])
        parts = [part(rows.index_select(0, at), basis) for at, basis in zip(self._rows, bases, strict=True)]
        return torch.cat(parts).index_select(0, self._order)

    def _entries(self, rows: Tensor) -> Tensor:
        """Rows ``[rows, n]`` in the weight's shape."""
        return rows.view(len(rows), *self.dictionary.shape[1:-1])

    def _made(self, column: int) -> Tensor:
        """A dictionary ``[n, numbers]`` from its seed."""
        data = self._data
        n, r, layout = math.prod(data["shape"][1:]), data["numbers"], data["layout"] or [math.prod(data["shape"][1:])]
        generator = torch.Generator().manual_seed(data["seed"] * data["columns"] + column)
        if data["dictionary"] == "gaussian":
            return gaussian(n, r, generator)
        if data["dictionary"] == "identity":
            return identity(n, torch.randperm(n, generator=generator)[:r])
        if data["dictionary"] == "rbf":
            kernel = squared_exponential(layout, data["width"])
            return ridge(kernel, spread_positions(layout, r, generator), data["penalty"])
        return orthogonal(n, r, generator)


def _shares(squares: Tensor, dim: int) -> Tensor:
    """The part of each entry in the sum along a dimension; nothing where all are zero."""
    return squares / squares.sum(dim=dim, keepdim=True).clamp(min=1e-30)
