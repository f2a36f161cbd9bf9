"""Regularizers that make zeros: their steps against minima that are known, and whole runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from network_surgery.study.config import Settings
from network_surgery.study.recipe.sparsity import Sparsity, zeros
from network_surgery.study.search.tracking.measures import of_epoch
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from tests.study.operated import without_times

CPU = torch.device("cpu")
SETTINGS = Settings(
    model="mlp", epochs=3, batch_size=32, held_out=32, signal_images=32, learning_rate=0.05, optimizer="sgd",
    group_lasso=0.1,
)  # fmt: skip


def minimum(sparsity: Sparsity, wanted: Tensor) -> Tensor:
    """Where gradient steps on ``½ ‖w − wanted‖²`` end, each followed by the step of the regularizer."""
    weight = nn.Parameter(torch.zeros_like(wanted))
    optimizer = torch.optim.SGD([weight], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        ((weight - wanted).square().sum() / 2).backward()
        optimizer.step()
        sparsity.shrink(optimizer, nn.Module())
    return weight.detach()


def test_steps_end_where_the_regularized_loss_has_its_minimum() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(6, 4, 3, 3, dtype=torch.float64) * torch.linspace(0.1, 2, 6).view(6, 1, 1, 1).double()
    found = minimum(Sparsity(l1=0.5), wanted)
    torch.testing.assert_close(found, wanted.sign() * (wanted.abs() - 0.5).clamp(min=0))
    found = minimum(Sparsity(group_lasso=0.5), wanted)
    size, least = wanted.flatten(1).norm(dim=1), 0.5 * 36**0.5
    torch.testing.assert_close(found, wanted * (1 - least / size).clamp(min=0).view(6, 1, 1, 1))
    gone = ~found.flatten(1).any(dim=1)
    assert torch.equal(gone, size <= least) and 0 < int(gone.sum()) < 6


def by_unit(module: nn.Module) -> list[Tensor]:
    """The incoming weights of each unit, found by its gradient: what reaches it, and nothing else does."""
    weight, shape = module.weight, {nn.Linear: (2, 6), nn.Embedding: (2,)}.get(type(module), (2, 6, 5, 5))
    inputs = torch.zeros(shape, dtype=torch.long) if isinstance(module, nn.Embedding) else torch.rand(shape) + 1
    found = []
    for unit in range(module(inputs).shape[1]):
        (gradient,) = torch.autograd.grad(module(inputs)[:, unit].sum(), weight)
        found.append(gradient != 0)
    return found


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(6, 4), nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3, groups=2), nn.ConvTranspose2d(6, 4, 3),
        nn.ConvTranspose2d(6, 4, 3, groups=2), nn.Embedding(1, 4),
    ],
    ids=str,
)  # fmt: skip
def test_a_group_is_what_makes_a_unit(module: nn.Module) -> None:
    """Of one unit's small incoming weights nothing is left, of the others' something."""
    torch.manual_seed(0)
    parts = by_unit(module)
    weight: nn.Parameter = module.weight  # type: ignore[assignment]
    with torch.no_grad():
        weight.fill_(1.0)[parts[1]] = 1e-3
    weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    Sparsity(group_lasso=0.1).shrink(optimizer, nn.Sequential(module))
    for unit, part in enumerate(parts):
        torch.testing.assert_close(weight.detach()[part], torch.full_like(weight.detach()[part], 0.99 * (unit != 1)))


def test_vectors_frozen_weights_and_each_group_s_learning_rate() -> None:
    weights = [nn.Parameter(torch.ones(2, 2)) for _ in range(3)] + [nn.Parameter(torch.ones(3))]
    groups = [
        {"params": weights[:1], "lr": 0.5},
        {"params": [*weights[1:2], weights[3]], "lr": 0.1},
        {"params": weights[2:3]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    for weight in (*weights[:2], weights[3]):
        weight.grad = torch.zeros_like(weight)
    Sparsity(l1=1.0).shrink(optimizer, nn.Module())
    assert [float(weight.detach().flatten()[0]) for weight in weights] == pytest.approx([0.5, 0.9, 1.0, 1.0])
    before = weights[0].detach().clone()
    Sparsity().shrink(optimizer, nn.Module())
    assert torch.equal(before, weights[0]) and not Sparsity()


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(replace(SETTINGS, train_images=200))


def test_a_run_makes_units_zero_and_compaction_removes_them(digits: ImageTask) -> None:
    steps: list[dict[str, Any]] = [{"when": "2ep", "layer": "fc2", "op": "compact"}]
    outcome = run(Cell("surgery", 0, steps), digits, SETTINGS, CPU)
    (operation,) = outcome["operations"]
    assert operation["units_after"] < operation["units_before"] and operation["loss_after"] == pytest.approx(
        operation["loss_before"], abs=1e-4
    )
    shares = [epoch["zero_weights"] for epoch in outcome["epochs"]]
    assert shares[0] == 0 < shares[1]
    assert ("size/zero_weights", 0.0, 1) in of_epoch({**outcome["epochs"][0], "operations": []})
    plain = run(Cell("original", 0), digits, replace(SETTINGS, group_lasso=0.0), CPU)
    assert "zero_weights" not in plain["epochs"][0]
    assert without_times(outcome) == without_times(run(Cell("surgery", 0, steps), digits, SETTINGS, CPU))


def test_zeros_are_those_of_weights() -> None:
    model = nn.Linear(4, 2)
    nn.init.zeros_(model.bias)
    assert zeros(model) == 0
    with torch.no_grad():
        model.weight[0] = 0
    assert zeros(model) == 0.5
