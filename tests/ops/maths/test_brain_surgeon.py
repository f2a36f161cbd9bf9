"""The optimal brain surgeon against quadratics that are solved directly."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from network_surgery.ops.maths.brain_surgeon import compensate, removal_scores


def quadratics(blocks: int = 3, size: int = 6) -> tuple[Tensor, Tensor]:
    """Weights at the minimum of a quadratic, and its Hessian, for some blocks."""
    torch.manual_seed(4)
    rows = torch.randn(blocks, 2 * size, size, dtype=torch.float64)
    return torch.randn(blocks, size, dtype=torch.float64), rows.mT @ rows


def least(weights: Tensor, hessian: Tensor, gone: list[int]) -> tuple[Tensor, float]:
    """The minimum of ``½ (x − weights)ᵀ H (x − weights)`` where some of ``x`` are zero, and its value."""
    left = [place for place in range(len(weights)) if place not in gone]
    moved = torch.zeros_like(weights)
    moved[left] = weights[left] + torch.linalg.solve(hessian[left][:, left], hessian[left][:, gone] @ weights[gone])
    return moved, float((moved - weights) @ hessian @ (moved - weights)) / 2


def test_several_weights_go_and_the_others_are_the_minimum_without_them() -> None:
    weights, hessian = quadratics()
    gone = torch.tensor([[1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    found, costs = compensate(weights, torch.linalg.inv(hessian), gone)
    for block in range(3):
        wanted, cost = least(weights[block], hessian[block], gone[block].nonzero().flatten().tolist())
        torch.testing.assert_close(found[block], wanted)
        assert float(costs[block]) == pytest.approx(cost)
    assert torch.equal(found[1], weights[1]) and not found[gone].any()


def test_scores_follow_the_cheapest_removal_one_after_the_other() -> None:
    weights, hessian = quadratics()
    scores = removal_scores(weights, torch.linalg.inv(hessian))
    for block in range(3):
        gone: list[int] = []
        before = most = 0.0
        while len(gone) < 6:
            costs = {w: least(weights[block], hessian[block], [*gone, w])[1] for w in range(6) if w not in gone}
            gone.append(min(costs, key=costs.__getitem__))
            most = max(most, costs[gone[-1]] - before)
            assert float(scores[block][gone[-1]]) == pytest.approx(most)
            before = costs[gone[-1]]
        assert all(one <= other for one, other in itertools.pairwise(scores[block][gone].tolist()))


def test_of_a_hessian_without_correlations_it_is_the_brain_damage() -> None:
    weights, bends = torch.randn(2, 5, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64) + 0.1
    scores, damage = removal_scores(weights, torch.diag_embed(1 / bends)), weights.square() * bends / 2
    torch.testing.assert_close(scores, damage)
