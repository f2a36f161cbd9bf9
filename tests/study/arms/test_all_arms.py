"""A whole comparison with every arm, at the smallest size: run, interrupted, gone on with, reported; without Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from network_surgery.ops import MinWeight, Moment, Schedule, Step, WeakExpand
from network_surgery.study.arms import ARMS as REGISTRY
from network_surgery.study.conduct import write_report
from network_surgery.study.config import ARMS, Settings
from network_surgery.study.search import comparing, trial
from network_surgery.study.search.once import Once
from network_surgery.study.search.sampled import listed_cells
from network_surgery.study.store.folder import Folder
from network_surgery.study.task.task import Classification
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.watch import Limits


class Corners(Classification):
    """Whether two of six numbers have one sign."""

    def load(self) -> Any:
        inputs = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)
        targets = (inputs[:, 0] * inputs[:, 1] > 0).astype(np.int64)
        return [(inputs[part], targets[part]) for part in (slice(80), slice(80, 100), slice(100, 120))]

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))


REMOVAL = Schedule((Step(Moment(1), "0", MinWeight(0.5)), Step(Moment(2), "2", MinWeight(0.5))))
GROWTH = Schedule((Step(Moment(1), "0", WeakExpand(0.5)),))
ONLY_REMOVAL = {
    "restart_fair", "uniform", "prune_end", "prune_end_rewind_lr", "prune_end_rewind", "random", "snip", "random_init",
}  # fmt: skip
ONLY_GROWTH = {"gradmax", "net2net"}
#: The network has no blocks.
ONLY_BLOCKS = {"stacking"}


SETTINGS = Settings(
    model="mlp", schedules=(REMOVAL.to_data(), GROWTH.to_data()), arms=ARMS, seeds=1, epochs=3, batch_size=16,
    lr_schedule="cosine", held_out=20, signal_images=40, probe=0, device="cpu",
)  # fmt: skip


class Worker:
    """What a trial asks Ray: the node that it is on, and the GPUs that it was granted."""

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")

    def get_gpu_ids(self) -> list[int]:
        return []


def compare(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cell]:
    """Runs what is missing of a comparison as ``search.tuner`` does, one cell after the other, in this process."""
    task, known = Corners(), folder.records()
    source = comparing.cells(listed_cells(SETTINGS, folder.layers), SETTINGS, known)
    once = Once(source, SETTINGS, 5, folder.path, known, (SETTINGS.epochs,))
    monkeypatch.setattr(trial, "ray", Worker())  # Ray would start itself
    while (cell := once.next()) is not None:
        reported: list[dict[str, Any]] = []
        monkeypatch.setattr(trial.tune, "report", reported.append)
        config = {"cell": json.dumps(asdict(cell)), "limits": json.dumps(asdict(Limits(0.0)))}
        trial.trial(config, task, SETTINGS, str(folder.path))
        found = [json.loads(each["report"]) for each in reported]
        for record in found[:-1]:
            once.epoch(cell, record)
        for ended, outcome in ((cell, found[-1]), *once.copies()):
            folder.ended(ended, outcome)
            once.tell(ended, outcome)
            yield ended
    assert once.finished


def comparable(folder: Folder) -> dict[str, Any]:
    names = ("validation_loss", "test_metric", "parameters", "flops", "training_flops", "failure")
    return {
        record.cell.name: [record.result.get(name) for name in names]
        for record in folder.records()
        if record.cell.arm != "restart_seconds"  # which a clock decides
    }


def test_every_arm_runs_resumes_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder.make(tmp_path / "s", SETTINGS, {"0": 16, "2": 12})
    rivals = len(ARMS) - 2 - len(ONLY_BLOCKS)
    assert len(list(compare(folder, monkeypatch))) == 1 + 2 + (rivals - len(ONLY_GROWTH)) + (rivals - len(ONLY_REMOVAL))
    results = write_report(folder)
    cells = results["comparison"]["cells"]
    assert [cell["name"] for cell in cells if "failure" in cell] == []
    arms = [{cell["arm"] for cell in cells if cell["trial"] == trial} for trial in (0, 1)]
    possible = {*ARMS} - {"original"} - ONLY_BLOCKS
    assert arms[0] == possible - ONLY_GROWTH and arms[1] == possible - ONLY_REMOVAL
    begun = {cell["arm"]: cell["forked"]["epoch"] for cell in cells if cell["trial"] == 0 and "forked" in cell}
    pruned = ("prune_end", "prune_end_rewind_lr", "prune_end_rewind")
    assert begun == {"surgery": 1, "random": 1} | dict.fromkeys(pruned, 3)
    left_out = {(each["trial"], each["arm"]) for each in results["comparison"]["left_out"]}
    without = (ONLY_GROWTH | ONLY_BLOCKS, ONLY_REMOVAL | ONLY_BLOCKS)
    assert left_out == {(trial, arm) for trial in (0, 1) for arm in without[trial]}
    assert all(each["reason"] and each["seeds"] == [1] for each in results["comparison"]["left_out"])
    assert {row["arm"] for row in results["comparison"]["summary"]} == {*ARMS} - ONLY_BLOCKS
    page = folder.report.read_text()
    assert all(arm.short in page for arm in REGISTRY.values()) and (folder.figures / "arms.png").exists()

    before, ledger = comparable(folder), folder.path / "cells.jsonl"
    lines = ledger.read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["cell"]["arm"] in ("original", "surgery", "restart")]
    ledger.write_text("\n".join(kept) + "\n")
    again = [cell.name for cell in compare(folder, monkeypatch)]
    assert len(again) == len(lines) - len(kept) and comparable(folder) == before
