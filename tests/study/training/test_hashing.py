"""Hashed weights in a study: records, checkpoints, the restart and the arms that prune at the end."""

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
from tests.study.operated import resumed, without_times

CPU = torch.device("cpu")
SETTINGS = Settings(
    model="evci_cnn", epochs=3, batch_size=64, held_out=64, signal_images=64, probe=0, ema=0.9,
    arms=("original", "surgery", "restart", "random", "operate_first", "prune_end", "prune_end_rewind"),
)  # fmt: skip
STEPS: list[dict[str, Any]] = [
    {"when": "1ep", "layer": "fc1", "op": "hash_weights", "compression": 0.25},
    {"when": "1ep", "layer": "conv2", "op": "random_edges", "compression": 0.5},
    {"when": "2ep", "layer": "conv2", "op": "min_weight", "keep": 0.5},
    {"when": "2ep", "layer": "*", "op": "prune_weights", "fraction": 0.5},
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
    hashed, cut, removed, _ = outcome["operations"]
    for each in (hashed, cut):
        assert each["bytes_before"] - each["bytes_after"] == 4 * (each["parameters_before"] - each["parameters_after"])
        assert each["flops_before"] == each["flops_after"] and each["units_before"] == each["units_after"]
    assert removed["flops_after"] < removed["flops_before"]
    network = load(lambda: fresh(digits), tmp_path / "network.pt")
    assert set(outcome["architecture"]["expressed"]) == {"fc1.weight", "conv2.weight"}
    assert (tmp_path / "network.pt").stat().st_size == saved_bytes(network)
    assert outcome["parameters"] == outcome["operations"][-1]["parameters_after"]


def test_a_run_resumes_bit_for_bit(surgery: dict[str, Any], digits: ImageTask, tmp_path: Path) -> None:
    again = resumed(CELL, digits, SETTINGS, 3, tmp_path / "cell.pt")
    assert without_times(again) == without_times(surgery)


def test_every_arm_ends_with_the_same_hashed_network(surgery: dict[str, Any], digits: ImageTask) -> None:
    outcome = json.loads(json.dumps(surgery))
    cells = {cell.arm: cell for cell in rivals(CELL, outcome, SETTINGS)}
    assert {"restart", "operate_first", "prune_end", "prune_end_rewind"} <= set(cells)
    for arm in ("restart", "operate_first", "prune_end_rewind"):
        found = run(replace(cells[arm], test=False), digits, SETTINGS, CPU)
        assert found["architecture"]["shapes"] == surgery["architecture"]["shapes"]
        assert found["architecture"]["expressed"].keys() == surgery["architecture"]["expressed"].keys()
        assert (found["parameters"], found["flops"]) == (surgery["parameters"], surgery["flops"])


def test_a_restart_begins_with_the_spread_of_fresh_weights(surgery: dict[str, Any], digits: ImageTask) -> None:
    torch.manual_seed(0)
    network, plain = fresh(digits), fresh(digits)
    renew(network, surgery["architecture"], 3)
    for name, wider in (("fc1", 1.0), ("conv2", 2**0.5)):
        stored = network.get_submodule(name).parametrizations.weight.original
        spread = float(plain.get_submodule(name).weight.detach().std()) * wider
        assert float(stored.detach().std()) == pytest.approx(spread, rel=0.1)
