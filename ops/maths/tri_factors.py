"""Weights as G S Gᵀ, all at once: a layer's units have one factor in every weight that makes or reads them.

Source: the draft *Convolutional network pruning with matrix factorization* (its authors are not named) prunes by a
"same-time matrix trifactorization" of all weights, and gives no equation. The objective, what is done with kernels, the
kind of factors and the way they are found are ours:

    min Σ_l ‖W_l − G_l S_l G_{l+1}ᵀ‖²    G_l: [units of layer l, rank], shared by the weights on both its sides

Each position of a kernel, and each position that a unit owns in a flattened map, has its own S. The network's inputs
and outputs have a weight on one side only, so their factors stay whole (S takes them up).

Factors are unconstrained and not nonnegative. Weights are signed, and all that is used of the model is what it
explains, which only depends on the spaces that the factors span. So their columns are orthonormal, the best S is
Gᵀ W G, and the objective is Σ ‖W‖² − Σ ‖Gᵀ W G‖². With all other factors fixed, the best factor of a layer is the
leading eigenvectors of a sum of Gram matrices: each step of these alternating least squares is solved exactly, so the
objective never rises. It begins, without a seed, with the factors that are best while all others are whole.
At equal rank the best semi-nonnegative factors explain no more than the best unconstrained ones, and finding them
depends on a random start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from network_surgery.ops.maths.double import energy
from network_surgery.ops.maths.hosvd import eigenvectors, gram

#: A round that lowers the objective by less than this share of the weights' squared norm is the last.
SMALLEST_GAIN = 1e-6


@dataclass(frozen=True)
class Side:
    """One axis of a weight, as the units of a layer.

    ``unfolded``: the weight as rows, one for each unit, ``[units, numbers]``; ``folded(weight, rows)``: the weight with
    these rows in place of its own.
    """

    layer: Hashable
    weight: str
    unfolded: Callable[[Tensor], Tensor]
    folded: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TriFactors:
    """What was found.

    ``factors``: by layer, orthonormal columns ``[units, rank]``. ``objectives``: Σ ‖W − G S Gᵀ‖² at the beginning and
    after each change of a factor; they never rise. ``total``: Σ ‖W‖². ``sides``: of each weight.
    """

    factors: Mapping[Hashable, Tensor]
    objectives: tuple[float, ...]
    total: float
    sides: Mapping[str, Sequence[Side]]

    def weight(self, name: str, weight: Tensor) -> Tensor:
        """What the model has in place of a weight: G S Gᵀ."""
        return _project(weight, self.sides[name], self.factors)


def tri_factors(weights: Mapping[str, Tensor], sides: Sequence[Side], rank: float, rounds: int) -> TriFactors:
    """The factors of all layers (see the head of this file).

    ``weights``: real or complex, finite, in double precision, each with at most one side of each layer. ``rank``: the
    columns of a factor for each of its units, rounded down, at least one. ``rounds``: how often the factor of each
    layer is found anew, at most.

    >>> one, two = torch.diag(torch.tensor([3.0, 2.0, 0.0])), torch.diag(torch.tensor([0.0, 2.0, 1.0]))
    >>> made = Side("h", "one", lambda weight: weight, lambda weight, rows: rows)
    >>> read = Side("h", "two", lambda weight: weight.T, lambda weight, rows: rows.T)
    >>> found = tri_factors({"one": one, "two": two}, [made, read], 0.67, 5)
    >>> found.objectives[-1], found.total, found.weight("two", two).diagonal().tolist()
    (1.0, 18.0, [0.0, 2.0, 0.0])
    """
    of_weight: dict[str, list[Side]] = {name: [] for name in weights}
    of_layer: dict[Hashable, list[Side]] = {}
    for side in sides:
        of_weight[side.weight].append(side)
        of_layer.setdefault(side.layer, []).append(side)
    factors: dict[Hashable, Tensor] = {}
    for layer, mine in of_layer.items():
        square = _square([side.unfolded(weights[side.weight]) for side in mine])
        factors[layer] = eigenvectors(square, max(1, math.floor(rank * len(square) + 1e-9)))
    total = sum(float(energy(weight).sum()) for weight in weights.values())
    kept = (_project(weight, of_weight[name], factors) for name, weight in weights.items())
    objectives = [total - sum(float(energy(each).sum()) for each in kept)]
    for _ in range(rounds if len(factors) > 1 else 0):
        before = objectives[-1]
        for layer, mine in of_layer.items():
            others = [
                _project(weights[side.weight], [each for each in of_weight[side.weight] if each is not side], factors)
                for side in mine
            ]
            square = _square([side.unfolded(weight) for side, weight in zip(mine, others, strict=True)])
            old, new = factors[layer], eigenvectors(square, factors[layer].shape[1])
            gain = _explain(square, new) - _explain(square, old)
            if gain > 0:  # else it is the best already, but for rounding
                factors[layer] = new
            objectives.append(objectives[-1] - max(gain, 0.0))
        if before - objectives[-1] <= SMALLEST_GAIN * total:
            break
    return TriFactors(factors, tuple(max(each, 0.0) for each in objectives), total, of_weight)


def _project(weight: Tensor, sides: Sequence[Side], factors: Mapping[Hashable, Tensor]) -> Tensor:
    """The weight with each side's rows projected on the columns of its factor."""
    for side in sides:
        factor = factors[side.layer].to(weight)
        weight = side.folded(weight, factor @ (factor.mH @ side.unfolded(weight)))
    return weight


def _square(rows: Sequence[Tensor]) -> Tensor:
    """The sum of the Gram matrices, ``[units, units]``."""
    kind = max((each.dtype for each in rows), key=lambda dtype: dtype.is_complex)
    return torch.stack([gram(each).to(rows[0].device, kind) for each in rows]).sum(dim=0)


def _explain(square: Tensor, factor: Tensor) -> float:
    """tr Gᴴ M G."""
    return float((factor.conj() * (square @ factor)).sum().real)
