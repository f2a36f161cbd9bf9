"""The network of ``surgery layers`` is the one that a trial of the same settings keeps."""

from __future__ import annotations

from pathlib import Path

import torch

from network_surgery.ops import load
from network_surgery.study.config import Settings
from network_surgery.study.layers import network, of_data
from network_surgery.study.task import build
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run

CPU = torch.device("cpu")
#: Everything that a recipe has besides its optimizer.
RECIPE = Settings(
    data="digits", model="mlp", train_images=240, epochs=9, batch_size=32, device="cpu", precision="bf16",
    lr_schedule="one_cycle", augment="crop_flip", cutout=2, clip=0.5, accumulate=2, ema=0.9, label_smoothing=0.1,
)  # fmt: skip


def test_it_is_trained_by_the_whole_recipe(tmp_path: Path) -> None:
    task = build(RECIPE)
    ours = network(RECIPE, task, None, 2)
    run(Cell("original", RECIPE.seed, epochs=2), task, RECIPE, CPU, network=tmp_path / "trial.pt")
    theirs = load(task.model, tmp_path / "trial.pt")
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    untrained = network(RECIPE, task, None, 0)
    assert not torch.equal(untrained.state_dict()["fc1.weight"], ours.state_dict()["fc1.weight"])


def test_its_table_is_of_that_network() -> None:
    head, table, *_ = of_data(RECIPE, 1)
    assert "mlp on digits, trained for 1 epoch" in str(head) and len(table.rows) == 2  # type: ignore[union-attr]
