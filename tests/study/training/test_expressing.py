"""Predicted and shared weights in a study: records, files, checkpoints, the restart and other arms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.ops import load, saved_bytes
from network_surgery.study.arms import rivals
from network_surgery.study.config import Settings
from network_surgery.study.task.check import fresh
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.restart import renew
from network_surgery.study.training.run import run
from network_surgery.study.training.spent import training_flops
from tests.study.operated import resumed, without_times

CPU = torch.device("cpu")
SETTINGS = Settings(
    model="evci_cnn", epochs=3, batch_size=64, held_out=64, signal_images=64, probe=0, ema=0.9,
    arms=("original", "surgery", "restart", "random", "operate_first", "prune_end_rewind"),
)  # fmt: skip
STEPS: list[dict[str, Any]] = [
    {"when": "1ep", "layer": "fc1", "op": "predict_weights", "rank": 0.25, "dictionary": "rbf", "columns": 2},
    {"when": "1ep", "layer": "conv2", "op": "predict_weights", "rank": 0.25, "dictionary": "covariance"},
    {"when": "1ep", "layer": "conv1", "op": "share_weights", "clusters": 16},
    {"when": "2ep", "layer": "conv2", "op": "min_weight", "keep": 0.5},
]
CELL = Cell("surgery", 1, STEPS, trial=0)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


@pytest.fixture(scope="module")
def surgery(digits: ImageTask) -> dict[str, Any]:
    return run(CELL, digits, SETTINGS, CPU)


def test_records_have_the_stored_bytes(surgery: dict[str, Any], digits: ImageTask, tmp_path: Path) -> None:
    outcome = run(CELL, digits, SETTINGS, CPU, network=tmp_path / "network.pt")
    seeded, measured, shared, removed = outcome["operations"]
    saved = [each["bytes_before"] - each["bytes_after"] for each in (seeded, measured)]
    fewer = [4 * (each["parameters_before"] - each["parameters_after"]) for each in (seeded, measured)]
    assert saved[0] == fewer[0] and saved[1] < fewer[1]  # a dictionary that is measured is stored
    assert shared["bytes_before"] - shared["bytes_after"] == 8 * 9 * 4 - 16 * 4 - 8 * 5  # 9 codes of 4 bits a row
    assert removed["flops_after"] < removed["flops_before"]
    network = load(lambda: fresh(digits), tmp_path / "network.pt")
    assert (tmp_path / "network.pt").stat().st_size == saved_bytes(network)
    assert outcome["parameters"] == outcome["operations"][-1]["parameters_after"]
    assert json.loads(json.dumps(outcome["architecture"])) == outcome["architecture"]


def test_computing_the_weights_is_work_of_every_batch(surgery: dict[str, Any], digits: ImageTask) -> None:
    """Equal FLOPs are equal: in what was spent before a moment, and in the epochs of a rival."""
    records, batch = surgery["operations"], SETTINGS.batch_size
    weights = [each["weights_flops"] for each in records]
    assert 0 == weights[0] < weights[1] < weights[2] == weights[3]
    assert 0 < surgery["weights_flops"] < weights[3]  # units have gone
    steps = surgery["steps"]
    sizes = [records[0]["flops_before"], records[3]["flops_before"] + weights[3] / batch]
    sizes.append(surgery["flops"] + surgery["weights_flops"] / batch)
    assert surgery["training_flops"] == pytest.approx(3 * batch * steps / 3 * sum(sizes), rel=1e-6)
    assert training_flops(surgery, 1) == pytest.approx(3 * batch * steps / 3 * sizes[0], rel=1e-6)
    cells = {cell.arm: cell for cell in rivals(CELL, json.loads(json.dumps(surgery)), SETTINGS)}
    restart = run(cells["restart"], digits, SETTINGS, CPU)
    assert restart["training_flops"] == pytest.approx(3 * batch * steps * sizes[2], rel=1e-6)


def test_a_run_resumes_bit_for_bit(surgery: dict[str, Any], digits: ImageTask, tmp_path: Path) -> None:
    again = resumed(CELL, digits, SETTINGS, 3, tmp_path / "cell.pt")
    assert without_times(again) == without_times(surgery)


def test_every_arm_ends_with_the_same_network(surgery: dict[str, Any], digits: ImageTask) -> None:
    cells = {cell.arm: cell for cell in rivals(CELL, json.loads(json.dumps(surgery)), SETTINGS)}
    for arm in ("restart", "operate_first", "prune_end_rewind"):
        found = run(replace(cells[arm], test=False), digits, SETTINGS, CPU)
        assert found["architecture"]["shapes"] == surgery["architecture"]["shapes"]
        assert found["architecture"]["expressed"].keys() == surgery["architecture"]["expressed"].keys()
        assert (found["parameters"], found["flops"]) == (surgery["parameters"], surgery["flops"])
        assert found["epochs"][-1]["train_loss"] < found["epochs"][0]["train_loss"]


def test_a_restart_begins_with_the_spread_of_fresh_weights(surgery: dict[str, Any], digits: ImageTask) -> None:
    torch.manual_seed(0)
    network, plain = fresh(digits), fresh(digits)
    renew(network, surgery["architecture"], 3)
    for name in ("fc1", "conv2"):
        spread = float(plain.get_submodule(name).weight.detach().std())
        assert float(network.get_submodule(name).weight.detach().std()) == pytest.approx(spread, rel=0.3)
