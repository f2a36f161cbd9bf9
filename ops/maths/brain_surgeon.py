"""The optimal brain surgeon: which weights a quadratic loss misses least, if those that stay make up for it.

Source: Hassibi and Stork 1993, *Second order derivatives for network pruning: optimal brain surgeon*. Of a loss with
the Hessian ``H`` at a minimum, the weight ``q`` set to zero costs ``w_q² / (2 [H⁻¹]_qq)`` when all others move by
``−w_q H⁻¹_q / [H⁻¹]_qq``; several, ``Q``, cost ``½ w_Qᵀ ([H⁻¹]_QQ)⁻¹ w_Q``. All here is for many blocks at once:
weights ``[blocks, size]`` and inverses ``[blocks, size, size]``, in double precision. The inverse of what is left after
a weight has gone by one step of elimination: Frantar and Alistarh 2022, *Optimal brain compression*, lemma 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def removal_scores(weights: Tensor, inverse: Tensor) -> Tensor:
    """What each weight costs when weights go one after the other, in each block the cheapest first, ``[blocks, size]``.

    Those that stay make up for each that goes. A weight that costs less than one before it scores as that one, so that
    the lowest scores are always those that go first.
    """
    weights, inverse, scores = weights.clone(), inverse.clone(), torch.zeros_like(weights)
    gone, most = torch.zeros_like(weights, dtype=torch.bool), weights.new_zeros(len(weights), 1)
    for _ in range(weights.shape[1]):
        pivots = inverse.diagonal(dim1=1, dim2=2)
        cost = (weights.square() / (2 * pivots)).where(~gone, torch.inf)
        least, at = cost.min(dim=1, keepdim=True)
        most = torch.maximum(most, least)
        scores.scatter_(1, at, most)
        gone.scatter_(1, at, True)
        column = inverse.gather(2, at.unsqueeze(1).expand(-1, weights.shape[1], 1)).squeeze(2)
        pivot = pivots.gather(1, at)
        weights = (weights - column * (weights.gather(1, at) / pivot)).where(~gone, 0)
        inverse.baddbmm_(column.unsqueeze(2), (column / pivot).unsqueeze(1), alpha=-1)
    return scores


def compensate(weights: Tensor, inverse: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """The weights after some are ``gone`` (``[blocks, size]``, true) and the others make up for it, and what it costs
    in each block, ``[blocks]``."""
    pair = gone.unsqueeze(1) & gone.unsqueeze(2)
    among = inverse.where(pair, 0) + torch.diag_embed((~gone).to(inverse))
    pulls = torch.linalg.solve(among, weights.where(gone, 0).unsqueeze(2))
    cost = (weights.where(gone, 0) * pulls.squeeze(2)).sum(dim=1) / 2
    return (weights - (inverse @ pulls).squeeze(2)).where(~gone, 0), cost
