"""Stretched layers in a study: records, checkpoints, steps on the new layers, the restart and other arms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.ops import SurgeryError, load
from network_surgery.ops.schedule import Schedule
from network_surgery.study.arms import left_out, rivals
from network_surgery.study.config import Settings
from network_surgery.study.task.check import fresh
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from tests.study.operated import resumed, without_times

CPU = torch.device("cpu")
SETTINGS = Settings(
    model="evci_cnn", epochs=3, batch_size=64, held_out=64, signal_images=64, probe=0, ema=0.9, optimizer="adam",
    weight_decay=0.01, arms=("original", "surgery", "restart", "random", "operate_first", "prune_end_rewind"),
)  # fmt: skip
STEPS: list[dict[str, Any]] = [
    {"when": "1ep", "layer": "fc1", "op": "stretch", "rank": 0.25},
    {"when": "1ep", "layer": "conv2", "op": "stretch", "rank": 0.5, "kernels": "separable"},
    {"when": "2ep", "layer": "fc1.0", "op": "min_weight", "keep": 0.5},
    {"when": "2ep", "layer": "conv2.0", "op": "hash_weights", "compression": 0.5},
    {"when": "40it", "layer": "fc1.0", "op": "collapse"},
]
CELL = Cell("surgery", 1, STEPS[:4], trial=0)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


@pytest.fixture(scope="module")
def surgery(digits: ImageTask) -> dict[str, Any]:
    return run(CELL, digits, SETTINGS, CPU)


def test_records_and_the_final_network(digits: ImageTask, tmp_path: Path) -> None:
    cell = Cell("surgery", 1, STEPS, trial=0, test=True)
    outcome = run(cell, digits, SETTINGS, CPU, network=tmp_path / "network.pt")
    stretched, _, removed, _, joined = outcome["operations"]
    assert stretched["flops_after"] < stretched["flops_before"] and stretched["predicted_error"] > 0
    assert removed["units_after"] == removed["units_before"] // 2
    assert joined["units_after"] == 0 and joined["loss_after"] == pytest.approx(joined["loss_before"], rel=1e-4)
    network = load(lambda: fresh(digits), tmp_path / "network.pt").eval()
    assert outcome["parameters"] == joined["parameters_after"] and outcome["flops"] == joined["flops_after"]
    assert type(network.conv2) is torch.nn.Sequential and type(network.fc1[1]) is torch.nn.Identity
    assert json.loads(json.dumps(outcome["architecture"])) == outcome["architecture"]


@pytest.mark.parametrize("last", [2, 3])
def test_a_run_resumes_bit_for_bit(last: int, surgery: dict[str, Any], digits: ImageTask, tmp_path: Path) -> None:
    again = resumed(CELL, digits, SETTINGS, last, tmp_path / "cell.pt")
    assert without_times(again) == without_times(surgery)


def test_every_arm_ends_with_the_same_network(surgery: dict[str, Any], digits: ImageTask) -> None:
    outcome = json.loads(json.dumps(surgery))
    cells = {cell.arm: cell for cell in rivals(CELL, outcome, SETTINGS)}
    for arm in ("restart", "operate_first", "prune_end_rewind"):
        found = run(replace(cells[arm], test=False), digits, SETTINGS, CPU)
        assert found["architecture"]["modules"] == surgery["architecture"]["modules"]
        assert found["architecture"]["shapes"] == surgery["architecture"]["shapes"]
        assert (found["parameters"], found["flops"]) == (surgery["parameters"], surgery["flops"])
        assert found["epochs"][-1]["train_loss"] < found["epochs"][0]["train_loss"]
    assert "changes weights of fc1 and no units" in left_out(CELL, outcome, SETTINGS)["random"]


def test_steps_may_name_layers_that_come_of_a_step_before() -> None:
    Schedule.from_data(STEPS).check(["conv1", "conv2", "fc1"], 3, 20)
    whole = [{**STEPS[0], "layer": "*"}, STEPS[2]]
    Schedule.from_data(whole).check(["fc1"], 3, 20)
    with pytest.raises(SurgeryError, match=r"names the layer 'fc1\.0'"):
        Schedule.from_data(STEPS[2:]).check(["conv1", "conv2", "fc1"], 3, 20)
