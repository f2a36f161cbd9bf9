"""A whole study with every arm, at the smallest size: run, interrupted, gone on with, reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from network_surgery import study
from network_surgery.ops import MinWeight, Moment, Schedule, Step, WeakExpand
from network_surgery.study.config import ARMS
from network_surgery.study.task.task import Classification


class Corners(Classification):
    """Whether two of six numbers have one sign."""

    def load(self) -> Any:
        inputs = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
        targets = (inputs[:, 0] * inputs[:, 1] > 0).astype(np.int64)
        return [(inputs[part], targets[part]) for part in (slice(80), slice(80, 100), slice(100, 120))]

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))


Corners.__module__ = "__main__"  # as if it were defined in a notebook's cell
REMOVAL = Schedule((Step(Moment(1), "0", MinWeight(0.5)), Step(Moment(2), "2", MinWeight(0.5))))
GROWTH = Schedule((Step(Moment(1), "0", WeakExpand(0.5)),))
ONLY_REMOVAL = {
    "restart_fair", "uniform", "prune_end", "prune_end_rewind_lr", "prune_end_rewind", "random", "snip", "random_init",
}  # fmt: skip
ONLY_GROWTH = {"gradmax", "net2net"}


def comparable(folder: Path) -> dict[str, Any]:
    cells = json.loads((folder / "results.json").read_text())["comparison"]["cells"]
    names = ("validation_loss", "test_metric", "parameters", "flops", "training_flops", "failure")
    return {cell["name"]: [cell.get(name) for name in names] for cell in cells if cell["arm"] != "restart_seconds"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_arm_runs_resumes_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    out = tmp_path / "out"
    study.run(
        Corners(), schedules=[REMOVAL, GROWTH], arms="all", seeds=1, epochs=3, batch_size=16, lr_schedule="cosine",
        held_out=20, signal_images=40, probe=0, device="cpu", quiet=True, out=out, preset="smoke",
    )  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    cells = results["comparison"]["cells"]
    assert [cell["name"] for cell in cells if "failure" in cell] == []
    arms = [{cell["arm"] for cell in cells if cell["trial"] == trial} for trial in (0, 1)]
    assert arms[0] == {*ARMS} - {"original"} - ONLY_GROWTH and arms[1] == {*ARMS} - {"original"} - ONLY_REMOVAL
    begun = {cell["arm"]: cell["forked"]["epoch"] for cell in cells if cell["trial"] == 0 and "forked" in cell}
    assert begun == dict.fromkeys(("surgery", "random", "prune_end_rewind"), 1) | {
        "prune_end": 3, "prune_end_rewind_lr": 3,
    }  # fmt: skip
    left_out = {(each["trial"], each["arm"]) for each in results["comparison"]["left_out"]}
    assert left_out == {(0, arm) for arm in ONLY_GROWTH} | {(1, arm) for arm in ONLY_REMOVAL}
    assert all(each["reason"] and each["seeds"] == [cells[0]["seed"]] for each in results["comparison"]["left_out"])
    assert {row["arm"] for row in results["comparison"]["summary"]} == {*ARMS}
    page = (out / "report.html").read_text()
    assert "prune at end" in page and "SNIP" in page and (out / "figures" / "arms.png").exists()

    before, ledger = comparable(out), out / "cells.jsonl"
    lines = ledger.read_text().splitlines()
    dropped = {json.loads(line)["cell"]["arm"] for line in lines[-18:]}
    assert len(dropped) > 8
    ledger.write_text("\n".join(lines[:-18]) + "\n")
    study.resume(out, task=Corners(), quiet=True)
    assert comparable(out) == before
