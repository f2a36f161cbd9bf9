"""Tri-factorization of all weights at once, against a slow, clear reference."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from network_surgery.ops.maths.tri_factors import Side, TriFactors, tri_factors

WIDTHS = (7, 9, 6, 8, 5)


def made(layer: int, weight: str) -> Side:
    return Side(layer, weight, lambda w: w.flatten(1), lambda w, rows: rows.view(w.shape))


def read(layer: int, weight: str) -> Side:
    return Side(
        layer, weight, lambda w: w.transpose(0, 1).flatten(1),
        lambda w, rows: rows.view(w.shape[1], len(w), *w.shape[2:]).transpose(0, 1),
    )  # fmt: skip


def chain(seed: int, kind: torch.dtype = torch.float64, low: int | None = None) -> tuple[dict[str, Tensor], list[Side]]:
    """Weights of layers in a row, the second of which is a kernel; ``low``: made of factors with so many columns."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=kind)

    weights, sides, last = dict[str, Tensor](), list[Side](), len(WIDTHS) - 2
    factors = [random(width, low or width) for width in WIDTHS[1:-1]]
    for number, (before, after) in enumerate(pairwise(WIDTHS)):
        columns = random(before, before) if number == 0 else factors[number - 1]
        rows = random(after, after) if number == last else factors[number]
        inner = random(rows.shape[1], columns.shape[1], *((3,) if number == 1 else ()))
        weights[f"w{number}"] = torch.einsum("or,rc...,ic->oi...", rows, inner, columns)
        sides += [made(number, f"w{number}")] if number < last else []
        sides += [read(number - 1, f"w{number}")] if number else []
    return weights, sides


def missed(weights: dict[str, Tensor], found: TriFactors) -> float:
    """Σ ‖W − G S Gᵀ‖² with the best S, by least squares on the Kronecker product of both factors."""
    total = 0.0
    for number, (name, weight) in enumerate(weights.items()):
        right, left = (found.factors.get(layer) for layer in (number - 1, number))
        left = torch.eye(len(weight), dtype=weight.dtype) if left is None else left
        right = torch.eye(weight.shape[1], dtype=weight.dtype) if right is None else right
        values = weight.reshape(len(weight) * weight.shape[1], -1)
        design = torch.einsum("or,is->oirs", left, right).reshape(len(values), -1)
        best = design @ torch.linalg.lstsq(design, values).solution
        total += float((values - best).abs().square().sum())
        torch.testing.assert_close(found.weight(name, weight).reshape(values.shape), best)
    return total


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128])
@pytest.mark.parametrize("rank", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_objective_falls_at_every_step_and_is_what_the_model_misses(
    seed: int, rank: float, kind: torch.dtype
) -> None:
    weights, sides = chain(seed, kind)
    before = None
    for rounds in (0, 1, 2, 30):
        found = tri_factors(weights, sides, rank, rounds)
        steps = torch.tensor(found.objectives, dtype=torch.float64)
        assert (steps.diff() <= 0).all() and steps[-1] == pytest.approx(missed(weights, found))
        assert before is None or torch.equal(steps[: len(before)], before)
        before = steps
    assert steps[-1] < steps[0] < found.total
    assert found.total == pytest.approx(sum(float(each.abs().square().sum()) for each in weights.values()))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_found_cannot_be_improved_by_a_small_step(seed: int) -> None:
    weights, sides = chain(seed)
    found = tri_factors(weights, sides, 0.5, 500)
    generator = torch.Generator().manual_seed(seed)
    for layer, factor in found.factors.items():
        for _ in range(5):
            near = torch.linalg.qr(factor + 0.01 * torch.randn(factor.shape, generator=generator).double()).Q
            other = TriFactors({**found.factors, layer: near}, (), 0.0, found.sides)
            assert missed(weights, other) > found.objectives[-1]


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_made_of_shared_factors_are_explained_wholly(seed: int) -> None:
    weights, sides = chain(seed, low=2)
    found = tri_factors(weights, sides, 2 / 6, 20)
    assert {layer: factor.shape[1] for layer, factor in found.factors.items()} == {0: 3, 1: 2, 2: 2}
    assert found.objectives[-1] < 1e-12 * found.total
    assert tri_factors(weights, sides, 1 / 6, 20).objectives[-1] > 0.01 * found.total


@pytest.mark.parametrize("seed", [0, 1])
def test_a_lone_side_is_the_truncated_singular_value_decomposition(seed: int) -> None:
    weight = torch.randn(8, 5, generator=torch.Generator().manual_seed(seed)).double()
    found = tri_factors({"w": weight}, [made(0, "w")], 0.375, 20)
    left, values, right = torch.linalg.svd(weight)
    torch.testing.assert_close(found.weight("w", weight), left[:, :3] * values[:3] @ right[:3])
    assert found.objectives == pytest.approx([float(values[3:].square().sum())])


def test_more_rank_explains_more_and_sharing_costs_something() -> None:
    weights, sides = chain(3)
    missing = [tri_factors(weights, sides, rank / 9, 50).objectives[-1] for rank in range(1, 9)]
    assert missing == sorted(missing, reverse=True) and len({round(each, 6) for each in missing}) > 5
    apart = [Side((each.layer, each.weight), each.weight, each.unfolded, each.folded) for each in sides]
    assert tri_factors(weights, apart, 0.5, 50).objectives[-1] < tri_factors(weights, sides, 0.5, 50).objectives[-1]
