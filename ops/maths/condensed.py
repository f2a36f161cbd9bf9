"""Outputs of many samples, condensed to what least squares and principal components need of them.

A triangle of the outputs' QR decomposition, their mean and their number stand for any number of samples, in doubles;
batches are joined one after the other, so memory does not grow with the sample. The triangle is the covariance's
Cholesky factor, calculated without squaring: what is singular in the outputs is not more so in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import scipy.linalg
import torch
from torch import Tensor

from network_surgery.ops.maths.double import double, energy
from network_surgery.ops.maths.hosvd import gram

#: Singular values below this fraction of the largest count as none.
SINGULAR = 1e-8


@dataclass(frozen=True)
class Condensed:
    """Outputs ``[samples, units]`` in as many rows as there are units.

    ``deviations`` from ``origin`` (``[units]``, their mean or zero), ``[rows, units]``, in an orthonormal basis away
    from the outputs' own: lengths, angles and least squares between units are those of the outputs.
    """

    deviations: Tensor
    origin: Tensor
    samples: int

    @classmethod
    def of(cls, outputs: Tensor) -> Condensed:
        """From outputs ``[samples, units]``, about their mean."""
        outputs = double(outputs)
        origin = outputs.mean(dim=0)
        return cls(_triangle(outputs - origin), origin, len(outputs))

    def joined(self, other: Condensed) -> Condensed:
        """Both samples together (means and deviations as in Chan, Golub and LeVeque 1979)."""
        samples = self.samples + other.samples
        between = (self.samples * other.samples / samples) ** 0.5 * (other.origin - self.origin)
        rows = torch.cat([self.deviations, other.deviations, between.unsqueeze(0)])
        return Condensed(_triangle(rows), self.origin + (other.origin - self.origin) * other.samples / samples, samples)

    def about_zero(self) -> Condensed:
        """The same outputs, but their deviations from zero: for readers that have no bias for a constant."""
        rows = torch.cat([self.deviations, self.samples**0.5 * self.origin.unsqueeze(0)])
        return Condensed(rows, torch.zeros_like(self.origin), self.samples)

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(self.deviations).all() and torch.isfinite(self.origin).all())

    @property
    def spread(self) -> float:
        """The sum of the squares of all deviations."""
        return float(energy(self.deviations).sum())

    def spectrum(self) -> Tensor:
        """The variances of the outputs' principal components, descending, as shares of their sum.

        As in PCNS: the outputs are centred *across units*, one mean for each sample. Empty where nothing varies.
        """
        rows = self.about_zero().deviations
        centred = rows - rows.mean(dim=1, keepdim=True)
        smaller = centred if len(centred) < centred.shape[1] else centred.mH  # both Gram matrices have one spectrum
        values = torch.linalg.eigvalsh(gram(smaller)).flip(0).clamp(min=0)
        return values / values.sum() if values.sum() > 0 else values[:0]

    @cached_property
    def _pivots(self) -> list[int]:
        """Those of a column-pivoted QR by LAPACK: the first ``k`` units span the others well, for every ``k``."""
        pivots: list[int] = scipy.linalg.qr(self.deviations.numpy(), mode="r", pivoting=True)[1].tolist()
        return pivots

    def spanning_units(self, count: int) -> tuple[int, ...]:
        """The ``count`` units that span the others best, in their old order."""
        return tuple(
            sorted(self._pivots[:count] if self.deviations.is_cpu else pivots_on_device(self.deviations, count))
        )

    def combination(self, sources: tuple[int, ...], ridge: float = 0.0) -> Combination:
        """Least squares of all units from those in ``sources``; see ``Combination``.

        ``ridge`` is added to the kept units' covariance, as a fraction of their mean variance: it bounds coefficients
        where kept units are nearly collinear. Without it the smallest solution is taken, to singular values of
        ``SINGULAR`` of the largest.
        """
        chosen, units = list(sources), self.deviations.shape[1]
        others = sorted(set(range(units)) - set(chosen))
        rows, count = self.deviations[:, chosen + others], len(chosen)
        if ridge:
            weight = float(ridge * energy(rows[:, :count]).sum() / count) ** 0.5
            rows = torch.cat([rows, weight * torch.eye(count, units, dtype=rows.dtype, device=rows.device)])
        triangle = torch.linalg.qr(rows, mode="r").R
        solution, condition = smallest_solution(triangle[:count, :count], triangle[:count, count:])
        mixing = triangle.new_zeros(units, count)
        mixing[chosen] = torch.eye(count, dtype=mixing.dtype, device=mixing.device)
        mixing[others] = solution.T
        constant = self.origin - mixing @ self.origin[chosen]
        constant[chosen] = 0
        return Combination(sources, mixing, constant, condition)


def pivots_on_device(columns: Tensor, count: int) -> list[int]:
    """The first ``count`` pivots of a column-pivoted QR of ``columns``, ``[rows, units]``, calculated where they are.

    LAPACK's rule: the next pivot is the column that is longest orthogonally to those before. PyTorch has no such
    decomposition, so this is Gram and Schmidt's, column by column; the host waits for the device once, at the end.

    >>> pivots_on_device(torch.tensor([[3.0, 0.0, 3.0], [0.0, 1.0, 0.5]], dtype=torch.float64), 2)
    [2, 1]
    """
    left, pivots = columns, list[Tensor]()
    taken = torch.zeros(columns.shape[1], dtype=torch.bool, device=columns.device)
    for _ in range(count):
        pivot = energy(left).sum(dim=0).masked_fill(taken, -1).argmax(dim=0, keepdim=True)
        column = left.index_select(1, pivot)
        direction = column / torch.linalg.vector_norm(column).clamp(min=torch.finfo(columns.dtype).tiny)
        left = left - direction @ (direction.mH @ left)
        taken = taken.index_fill(0, pivot, True)
        pivots.append(pivot)
    return torch.cat(pivots).tolist() if pivots else []


@dataclass(frozen=True)
class Combination:
    """All units from those kept: ``outputs ≈ outputs[:, sources] @ mixing.T + constant``.

    ``mixing [units, kept]`` has exact ones in the kept units' rows; ``constant [units]`` is zero where the sample's
    origin is. ``condition``: the condition number of the least squares (by Frobenius norms, so an upper bound).
    """

    sources: tuple[int, ...]
    mixing: Tensor
    constant: Tensor
    condition: float

    def missed(self, seen: Condensed) -> float:
        """The sum of the squares of what it misses of a sample, which need not be the one that it was fitted to."""
        chosen = list(self.sources)
        left = seen.deviations - seen.deviations[:, chosen] @ self.mixing.T
        offset = seen.origin - self.mixing @ seen.origin[chosen] - self.constant
        return float(energy(left).sum() + seen.samples * energy(offset).sum())


def components_needed(spectrum: Tensor, dropped: float) -> int:
    """M: the fewest principal components that leave at most a fraction ``dropped`` of the variance unexplained.

    ``spectrum``: shares of the variance, descending (``Condensed.spectrum``). 0 where nothing varies.

    >>> components_needed(torch.tensor([0.9, 0.09, 0.01]), 0.05)
    2
    """
    left = 1 - spectrum.cumsum(0)
    return min(int((left > dropped).sum()) + 1, len(spectrum))


def units_needed(spectrum: Tensor, dropped: float) -> int:
    """M + 1, the number of units that PCNS leaves: one for each component and one for the mean; at least two.

    >>> units_needed(torch.tensor([0.9, 0.09, 0.01]), 0.05)
    3
    """
    return max(components_needed(spectrum, dropped), 1) + 1


def relative_error(missed: float, spread: float) -> float:
    """The norm of what is missed over that of the outputs' deviations from their mean; 0 where nothing varies."""
    return (missed / spread) ** 0.5 if missed > 0 and spread > 0 else 0.0


def smallest_solution(triangle: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    """Least squares of ``triangle @ x ≈ wanted``, the smallest ``x``, and a bound of the condition number.

    Kept outputs can be collinear (dead units): that takes a singular value decomposition. Where the triangle's
    condition number is surely below 1 / ``SINGULAR`` none is left out, and its inverse gives the same answer.
    """
    if len(triangle) == triangle.shape[1]:
        one = torch.eye(len(triangle), dtype=triangle.dtype, device=triangle.device)
        inverse = torch.linalg.solve_triangular(triangle, one, upper=True)
        condition = float(triangle.norm() * inverse.norm())
        if condition < 1 / SINGULAR:
            return inverse @ wanted, condition
    return torch.linalg.pinv(triangle, rtol=SINGULAR) @ wanted, float("inf")


def _triangle(rows: Tensor) -> Tensor:
    return rows if len(rows) <= rows.shape[1] else torch.linalg.qr(rows, mode="r").R
