"""One truncated HOSVD of a weight over its two channel modes: pure tensor maths, a solution together with its error.

Source: De Lathauwer, De Moor and Vandewalle 2000, *A multilinear singular value decomposition*; its use on weights is
Graham 2019, *Applied HOSVD for weight compression and expansion*, 3.1. Each mode is projected once on the
leading left singular vectors of its unfolding. Nothing is iterated over the modes (that would be a Tucker
decomposition by HOOI, ``iterated_tucker``, which the source's published code does), for the two subspaces are all that
the source asks for.

What was measured when this was chosen (512 × 512 × 3 × 3, a rank of 64, one core; ``tests/benchmarks/hosvd.py``
repeats it):

* The singular vectors come from an eigendecomposition of the *smaller* Gram matrix of each unfolding, of which half is
  calculated and mirrored: a tenth of the time of tensorly's ``svd_interface`` with its ``truncated_svd``, which
  decomposes the unfolding itself.
* On a CPU, where at most an eighth of the eigenvectors is wanted, only these are asked for (LAPACK's ``syevr``): 0.8
  to 0.9 of the time of all of them at 512 and 1024 rows, 0.67 at 2048. For a quarter it would be 1.1 to 1.4 times that
  time, for half 1.6 to 2.4. On other devices torch has no such routine.
* A matrix needs one eigendecomposition, not two: its best approximation is a projection from either side.
* float64 is calculated in float64. float32 would take 0.6 of the time, but chose another unit in 2 of 3,216 choices
  (random and decaying spectra, 64 to 1024 units), with scores off by up to 4e-4 where the spectrum decays fast.
* Row norms need the core and one factor, not the tensor put together again.
* tensorly folds and multiplies (``unfold``, ``multi_mode_dot``), at no cost over doing it by hand. Its
  ``randomized_svd`` passes over the unfolding again and again: 1.7 times the time of the exact way. ``_iterate`` works
  on the Gram matrix: 0.8 of that time, which is no reason to leave the exact way at such sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor

#: Rows of a Gram matrix above which its leading eigenvectors are found by iteration, where few of them are wanted.
EXACT_UP_TO = 6144
#: Few: at most this fraction of the rows. Of more, all eigenvectors together take less time.
FEW = 0.125
#: Applications of the Gram matrix in the iteration, and directions that it carries on top of those wanted.
ROUNDS, SPARE = 6, 32


@dataclass(frozen=True)
class Truncated:
    """A tensor ``[units, channels, positions]`` of reduced rank in its first two modes.

    ``core``: ``[rank, rank, positions]``; a mode that was left whole keeps its size. ``factors``: orthonormal columns
    for each of the two modes, ``[size of the mode, rank]``, or None for a mode that was left whole. ``error``: the norm
    of what was lost over the norm of the tensor, 0 … 1; below 1e-7 it is rounding.
    """

    core: Tensor
    factors: tuple[Tensor | None, Tensor | None]
    error: float

    def tensor(self) -> Tensor:
        """The reduced tensor in its old shape."""
        from tensorly import backend_context
        from tensorly.tenalg import multi_mode_dot

        modes, factors = _reduced_modes(self.factors)
        with backend_context("pytorch", local_threadsafe=True):
            return multi_mode_dot(self.core, factors, modes=modes) if modes else self.core

    def row_norms(self) -> Tensor:
        """The norm of each unit's slice of the reduced tensor, ``[units]``, without putting it together."""
        rows = self.core.flatten(1)  # the other factor's columns are orthonormal: they change no norm
        return (rows if self.factors[0] is None else self.factors[0] @ rows).norm(dim=1)


def truncated_hosvd(tensor: Tensor, rank: float | None, threshold: float | None = None) -> Truncated:
    """The tensor with its first two modes projected on their leading singular vectors.

    ``tensor``: ``[units, channels, positions]``, real or complex, finite. ``rank`` is the fraction of
    ``min(units, channels)`` that stays in each of the two modes, rounded down but at least 1; at 1 the tensor stays
    whole. With a ``threshold`` in its place (``rank`` None) each of the two modes keeps the singular vectors of its own
    unfolding whose singular values are at least that, in the units of the weights; at least one. The result is the same
    in every run; signs of singular vectors do not enter it.

    Up to ``EXACT_UP_TO`` rows of the smaller Gram matrix the subspaces are exact to rounding. Above, and for a rank of
    at most 1/8, they are found by iteration (in 0.45 to 0.49 of the exact way's time at 2048 rows, where that was
    measured): all but exact where the spectrum decays, not where it is flat. Of 1024 units kept of 2048 (dense, 1/8)
    it chose 1024 as the exact way does where singular values fall as 1/k, 1022 for k^-1/2, 1014 for k^-1/4 and 887 for
    random weights, which the two ways reduce nearly equally well (errors 0.4 % apart).

    >>> reduced = truncated_hosvd(torch.diag(torch.tensor([3.0, 1.0, 1.0, 5.0])).unsqueeze(2), 0.5)
    >>> reduced.core.shape, reduced.row_norms().round(decimals=4).tolist(), round(reduced.error, 4)
    (torch.Size([2, 4, 1]), [3.0, 0.0, 0.0, 5.0], 0.2357)
    """
    from tensorly import backend_context
    from tensorly.base import unfold
    from tensorly.tenalg import multi_mode_dot

    if rank == 1:
        return Truncated(tensor, (None, None), 0.0)
    sizes = tensor.shape[:2]
    with backend_context("pytorch", local_threadsafe=True):
        unfoldings = [unfold(tensor, mode) for mode in (0, 1)]
        if rank is None:
            assert threshold is not None
            counts = [large_values(each, threshold) for each in unfoldings]
        else:
            counts = [max(1, math.floor(rank * min(sizes)))] * 2
        wanted = [count < min(each.shape) for count, each in zip(counts, unfoldings, strict=True)]
        if tensor.shape[2] == 1 and all(wanted):  # a matrix: either side alone gives its truncated SVD
            wanted[int(sizes[0] <= sizes[1])] = False
        factors = tuple(leading(unfoldings[mode], counts[mode]) if wanted[mode] else None for mode in (0, 1))
        modes, matrices = _reduced_modes(factors)
        core = multi_mode_dot(tensor, matrices, modes=modes, transpose=True) if modes else tensor
    whole = float(tensor.norm())
    lost = max(whole**2 - float(core.norm()) ** 2, 0.0) if modes else 0.0
    return Truncated(core, (factors[0], factors[1]), math.sqrt(lost) / whole if lost > 0 else 0.0)


def iterated_tucker(tensor: Tensor, rank: float | None, threshold: float | None = None) -> Truncated:
    """The same ranks by tensorly's ``partial_tucker`` with its defaults: the two subspaces are improved in turns.

    Its error is no higher than that of ``truncated_hosvd``, and at least 1 / √2 of that; for a matrix they are the
    same. Takes the arguments of ``truncated_hosvd``.
    """
    from tensorly import backend_context
    from tensorly.decomposition import partial_tucker

    once = truncated_hosvd(tensor, rank, threshold)
    if None in once.factors:  # one subspace alone, or a matrix: there is nothing to take turns with
        return once
    with backend_context("pytorch", local_threadsafe=True):
        (core, factors), _ = partial_tucker(tensor, list(once.core.shape[:2]), modes=[0, 1], init="svd")
    whole = float(tensor.norm())
    lost = max(whole**2 - float(core.norm()) ** 2, 0.0)
    return Truncated(core, (factors[0], factors[1]), math.sqrt(lost) / whole if lost > 0 else 0.0)


def large_values(matrix: Tensor, threshold: float) -> int:
    """How many singular values of a matrix are at least ``threshold``; at least one is counted.

    Those below about 1e-8 of the largest (in float64) are rounding, since they come from the smaller Gram matrix.
    """
    square = gram(matrix if len(matrix) <= matrix.shape[1] else matrix.T)
    values = torch.linalg.eigvalsh(square).clamp(min=0).sqrt()
    return max(1, int((values >= threshold).sum()))


def leading(matrix: Tensor, size: int) -> Tensor:
    """Orthonormal columns ``[rows, size]`` that span the leading left singular vectors of a matrix, each with its
    largest entry positive (and real).
    """
    if len(matrix) <= matrix.shape[1]:
        columns = eigenvectors(gram(matrix), size)
    else:
        right = eigenvectors(gram(matrix.mH), min(size, matrix.shape[1])).flip(1)
        # Not divided by singular values, some of which may vanish: the first columns are the sure ones.
        columns = torch.linalg.qr(matrix @ right).Q
    largest = columns.gather(0, columns.abs().argmax(dim=0, keepdim=True))
    return columns * largest.sgn().conj()


def gram(matrix: Tensor) -> Tensor:
    """``matrix @ matrix.mH``; of a large one only the lower blocks are calculated, and mirrored."""
    rows = len(matrix)
    if rows <= 128:
        return matrix @ matrix.mH
    product = matrix.new_empty(rows, rows)
    block = max(128, math.ceil(rows / 8))
    for start in range(0, rows, block):
        stop = min(rows, start + block)
        torch.mm(matrix[start:stop], matrix[:stop].mH, out=product[start:stop, :stop])
        product[:start, start:stop] = product[start:stop, :start].mH
    return product


def eigenvectors(square: Tensor, size: int) -> Tensor:
    """The eigenvectors of the ``size`` largest eigenvalues, ascending, of a symmetric (Hermitian) matrix."""
    rows = len(square)
    few = size <= FEW * rows
    if few and rows > EXACT_UP_TO:
        return _iterate(square, size)
    if few and square.device.type == "cpu":
        first, last = rows - size, rows - 1
        matrix = square.detach().resolve_conj().numpy()
        _, vectors = scipy.linalg.eigh(matrix, subset_by_index=(first, last), check_finite=False)
        return torch.from_numpy(vectors)
    return torch.linalg.eigh(square).eigenvectors[:, -size:]


def _iterate(square: Tensor, size: int) -> Tensor:
    """The same by randomized subspace iteration (Halko, Martinsson and Tropp 2011), with a generator of its own."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(len(square), min(size + SPARE, len(square)), generator=generator, dtype=square.dtype)
    basis = basis.to(square.device)
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(square @ basis).Q
    return basis @ torch.linalg.eigh(basis.mH @ (square @ basis)).eigenvectors[:, -size:]


def _reduced_modes(factors: tuple[Tensor | None, ...]) -> tuple[list[int], list[Tensor]]:
    """The modes that have a factor, and these factors."""
    found = [(mode, factor) for mode, factor in enumerate(factors) if factor is not None]
    return [mode for mode, _ in found], [factor for _, factor in found]
