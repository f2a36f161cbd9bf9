"""Everything on a device equals the CPU bit for bit: operations, optimizers, scores, repairs, undo, files, training
runs.

The comparisons are those that ``tests.gpu`` makes on a real card.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from network_surgery.ops import OPERATIONS
from network_surgery.study.config import Settings
from network_surgery.study.recipe.augmentation import Augmentation
from network_surgery.study.task.images import ImageTask, load
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from tests.gpu import compare
from tests.gpu.card import Card
from tests.ops.networks import NETWORKS
from tests.study.operated import without_times

#: torch takes an average one way on a CPU and another one elsewhere.
ROUNDED = ("averages",)


def equal(row: dict[str, Any], rounded: bool = False) -> bool:
    """Whether a comparison found no difference at all, or (``rounded``) a millionth of what is allowed."""
    return row["same"] and row.get("difference / allowed", 0.0) <= (1e-6 if rounded else 0.0)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_operation_on_every_network(device: torch.device, tmp_path: Path, network: str) -> None:
    card = Card(device, tmp_path)
    for name in OPERATIONS:
        row = compare.versus(card, partial(compare.operated, network, name, torch.float32), torch.float32)
        assert equal(row), (name, row)


def test_every_form_of_optimizer(device: torch.device, tmp_path: Path) -> None:
    for row in compare.optimizers(Card(device, tmp_path)):
        assert equal(row), row


def test_scores_repairs_predictions_undo_files_and_attention(device: torch.device, tmp_path: Path) -> None:
    with sdpa_kernel(SDPBackend.MATH):  # a CPU has a fused kernel besides
        rows = [row for row in compare.parts(Card(device, tmp_path)) if row["part"] != "lstm"]  # which it has not
    assert [row for row in rows if not equal(row, row["part"] in ROUNDED)] == []


def test_random_numbers_are_left_alone(device: torch.device, tmp_path: Path) -> None:
    rows = list(compare.generators(Card(device, tmp_path)))
    assert rows and [row for row in rows if not row["host as before"]] == []


# -- whole training runs
# ---------------------------------------------------------------------------------------------------

STEPS = [
    {"when": "1ep", "layer": "conv2", "op": "eigen_remove", "keep": 0.5},
    {"when": "1ep", "layer": "fc1", "op": "pcns", "variance_threshold": 0.01},
    {
        "when": "redundancy(0.01) >= 0.01 from 1ep every 1ep at most 2", "layer": "conv1", "op": "min_weight",
        "keep": 0.5, "repair": ["least_squares", "batchnorm"],
    },
    {"when": "2ep", "layer": "*", "op": "prune_weights", "fraction": 0.3},
]  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "adam": {"optimizer_arguments": {"foreach": True}},  # as torch has it on every device but a CPU
    "sgd and all the rest": {
        "optimizer": "sgd", "optimizer_arguments": {"foreach": True}, "learning_rate": 0.01, "clip": 1.0, "ema": 0.9,
        "accumulate": 2, "lr_schedule": "one_cycle", "augment": "crop_flip", "mix": "mixup", "channels_last": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    task = load("digits", 0.25)
    return task.changed(
        train=task.train.thinned(160), validation=task.validation.thinned(64), test=task.test.thinned(64)
    )


class Stopped(Exception):
    """A run is ended from outside."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_whole_training_and_its_resume(device: torch.device, digits: ImageTask, tmp_path: Path, recipe: str) -> None:
    settings = Settings(epochs=3, batch_size=32, signal_images=64, held_out=64, probe=2, **RECIPES[recipe])
    task = digits.changed(augmentation=Augmentation(settings.augment, mix=settings.mix, classes=10))

    def stop(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise Stopped

    def ended(where: torch.device, name: str, tell: Callable[[dict[str, Any]], None] | None = None) -> Any:
        saved, kept = tmp_path / f"{name}.pt", tmp_path / f"{name}-network.pt"
        cell = Cell("surgery", 1, STEPS, test=True)
        if tell is not None:
            with pytest.raises(Stopped):
                run(cell, task, settings, where, tell, saved)
        outcome = run(cell, task, settings, where, saved=saved, network=kept)
        return without_times(outcome), torch.load(kept, map_location="cpu", weights_only=True)["weights"]

    cpu, there, resumed = ended(torch.device("cpu"), "cpu"), ended(device, "there"), ended(device, "resumed", stop)
    assert len(cpu[0]["operations"]) >= 4
    rounded = 1e-6 if settings.ema else 0.0  # torch takes averages one way on a CPU and another one elsewhere
    for other, exact in ((there, rounded), (resumed, rounded)):
        torch.testing.assert_close(other[1], cpu[1], rtol=exact, atol=exact)
        for key in ("operations", "checks", "epochs", "architecture", "parameters", "flops", "training_flops"):
            assert other[0][key] == cpu[0][key], key
    assert resumed[0] == there[0]
