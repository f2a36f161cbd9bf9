"""What each moment did: intervals against resampling, recovery against the original's curve by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from network_surgery.study.config import Settings
from network_surgery.study.evidence.moments import at_moment, caught_up, change, moments
from network_surgery.study.store.folder import Folder
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import spikes_of
from network_surgery.study.training.run import run
from tests.study.evidence.made import study
from tests.study.operated import operated

CPU = torch.device("cpu")


def curve(*losses: float) -> dict[str, Any]:
    return {"epochs": [{"epoch": at + 1.0, "validation_loss": loss} for at, loss in enumerate(losses)]}


@pytest.mark.parametrize(
    ("epoch", "losses", "wanted"),
    [
        (1, (4.0, 3.0, 2.0, 1.0), 1),  # as low at the end of the epoch that follows
        (1, (4.0, 9.0, 2.0, 1.0), 2),
        (1.5, (4.0, 9.0, 9.0, 0.5), 3),
        (1, (4.0, 9.0, 2.5, 1.5), None),  # it falls, below where it was before, but never to the original's
        (3, (1.0, 1.0, 1.0, 9.0), None),  # what was before the moment does not count
    ],
)
def test_recovery_is_against_the_originals_own_curve(epoch: float, losses: Any, wanted: int | None) -> None:
    assert caught_up(curve(*losses), curve(4.0, 3.0, 2.0, 1.0), epoch) == wanted


def test_the_interval_over_samples_is_that_of_resampling(tmp_path: Path) -> None:
    """Against a bootstrap of the very samples: the standard error of what one operation did, loss and accuracy."""
    settings = Settings(model="mlp", epochs=2, batch_size=64, held_out=200, probe=0)
    steps = [{"when": "1ep", "layer": "fc1", "op": "random_remove", "keep": 0.3}]
    seen: list[Any] = []
    task = ImageTask.of(settings)
    outcome = run(Cell("surgery", 0, steps), task, settings, CPU, tell=seen.append)
    (spike,) = spikes_of(outcome)
    assert spike.held_out == 200 and spike.loss_error and spike.metric_error
    assert spike.to_data()["loss_change"] == spike.loss_after - spike.loss_before == spike.loss_change
    # Accuracy changes by −1, 0 or 1 a sample: its error is at most that of all of them changing.
    assert 0 < spike.metric_error <= 1 / math.sqrt(199)
    found = change([spike.loss_change], [spike.loss_error], spike.held_out)
    assert found and found["seeds"] is None and found["samples"][0] < spike.loss_change < found["samples"][1]


def test_two_operations_of_a_moment_are_one_change() -> None:
    """Its error is of the change from before the first to after the last, not of the last alone."""
    settings = Settings(model="mlp", epochs=2, batch_size=64, held_out=100, probe=0)
    shrink = {"op": "random_remove", "keep": 0.3}
    nothing = {"op": "weak_expand", "grow": 0.1}
    task, errors = ImageTask.of(settings), []
    for after in ([], [{"when": "1ep", "layer": "fc1", **nothing}]):
        outcome = run(Cell("surgery", 0, [{"when": "1ep", "layer": "fc1", **shrink}, *after]), task, settings, CPU)
        (spike,) = spikes_of(outcome)
        errors.append(spike.loss_error)
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)  # the second leaves the output as it is


def test_the_mean_over_seeds_has_both_intervals() -> None:
    generator = np.random.default_rng(0)
    errors = [0.01] * 5
    changes = (0.2 + 0.05 * generator.standard_normal(5)).tolist()
    found = change(changes, errors, 400)
    assert found and found["mean"] == pytest.approx(np.mean(changes))
    assert found["samples"][1] - found["mean"] == pytest.approx(1.966 * 0.01, rel=1e-3)
    assert found["seeds"][0] < 0.2 < found["seeds"][1]
    assert change([None, 0.1], errors[:2], 400) is None and change([], [], None) is None
    older = change(changes, [None] * 5, None)  # records of an older version
    assert older and older["samples"] is None and older["seeds"] == found["seeds"]


def test_a_study_has_a_row_for_each_moment_of_each_schedule(tmp_path: Path) -> None:
    folder = study(tmp_path / "s", {"fc1": 64, "fc2": 32}, trials=12, epochs=8, seeds=3, top=2)
    rows = moments(folder)
    surgeries = [r for r in folder.records("surgery") if r.cell.seed == 1]
    assert len(rows) == sum(len(spikes_of(r.result)) for r in surgeries) and all(row["n"] == 3 for row in rows)
    assert {row["trial"] for row in rows} == {r.cell.trial for r in surgeries}
    for row in rows:
        assert row["recovery"]["original"].keys() == row["recovery"]["back"].keys() == {"median", "never"}
        assert row["loss"]["mean"] >= 0 and row["factor"] >= 1 and f"at {row['epoch']:g}ep" in row["operations"]
    ledger = folder.path / "cells.jsonl"
    ledger.write_text("".join(line for line in ledger.open() if '"arm": "original"' not in line))
    assert all(row["recovery"]["original"] is None for row in moments(Folder.open(folder.path)))


def test_of_steps_with_a_budget_only_those_of_the_moment_are_named() -> None:
    step = {"layer": "*", "op": "min_weight", "budget": {"parameters": 0.2}}
    schedule = [step | {"when": "1ep"}, {"when": "2ep", "layer": "a", "op": "pcns"}, step | {"when": "3ep"}]
    done = [("1ep", 1.0, "a"), ("1ep", 1.0, "b"), ("2ep", 2.0, "a"), ("3ep", 3.0, "b")]
    outcome = {"operations": [operated(when=when, epoch=epoch, layer=layer) for when, epoch, layer in done]}
    assert [at_moment(schedule, outcome, epoch) for epoch in (1.0, 2.0, 3.0)] == [[each] for each in schedule]
