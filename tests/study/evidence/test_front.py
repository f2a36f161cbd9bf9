"""The front of a search with several objectives, against brute force and Optuna's own."""

from __future__ import annotations

import io
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
import pytest
from optuna.trial import create_trial
from rich.console import Console

from network_surgery.study import conduct
from network_surgery.study.config import Settings
from network_surgery.study.evidence import front
from network_surgery.study.search.front import find_front, hypervolume, leading, reference_point
from network_surgery.study.search.objectives import value
from network_surgery.study.store.folder import Folder
from network_surgery.study.training.cell import Cell

matplotlib.use("agg")


def points(count: int, objectives: int, seed: int = 0) -> np.ndarray:
    """Whole numbers from 0 to 9, so that ties are common."""
    return np.random.default_rng(seed).integers(0, 10, (count, objectives)).astype(float)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_is_the_volume_of_what_is_dominated(objectives: int) -> None:
    """On whole numbers the volume is the number of unit boxes whose lower corner some point dominates."""
    for seed in range(5):
        losses, reference = points(8, objectives, seed), np.array([9.0, 7.0, 8.0, 10.0][:objectives])
        corners = itertools.product(*(range(int(bound)) for bound in reference))
        dominated = sum(bool((losses <= np.array(corner)).all(axis=1).any()) for corner in corners)
        assert hypervolume(losses, reference) == dominated
    assert hypervolume(reference[None], reference) == 0.0


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_front_and_growth_are_those_of_optuna(objectives: int) -> None:
    names = ("accuracy", "parameters", "seconds", "flops")[:objectives]
    random = np.random.default_rng(objectives)
    trials = [trial(i, *random.random(4).tolist()) for i in range(40)]
    found = front.front(trials, names)
    assert found is not None
    study = optuna.create_study(directions=["maximize", *["minimize"] * (objectives - 1)])
    study.add_trials([create_trial(values=[value(t, name) for name in names]) for t in trials])
    assert set(found["trials"]) == {best.number for best in study.best_trials}
    assert found["trials"][0] == max(trials, key=lambda t: t["validation_metric"])["trial"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = optuna.visualization.matplotlib.plot_hypervolume_history(study, found["reference"])
    box = np.prod(np.abs(np.array(found["reference"]) - found["ideal"]))
    np.testing.assert_allclose([v for _, v in found["history"]], axes.lines[0].get_ydata() / box, atol=1e-12)
    assert found["hypervolume"] == found["history"][-1][1] <= 1


def trial(number: int, accuracy: float, parameters: float, seconds: float = 1.0, flops: float = 1.0) -> dict[str, Any]:
    return {
        "trial": number, "validation_metric": accuracy, "parameters": parameters, "seconds": seconds, "flops": flops
    }  # fmt: skip


def test_the_reference_point_lies_a_tenth_beyond_the_front() -> None:
    trials = [trial(0, 0.9, 300), trial(1, 0.8, 100), trial(2, 0.1, 900), trial(3, 0.85, 400)]
    found = front.front(trials, ("accuracy", "parameters"))
    assert found is not None and found["trials"] == [0, 1]
    np.testing.assert_allclose(found["reference"], [0.8 - 0.01, 300 + 20])
    assert found["ideal"] == [0.9, 100]
    # Of a box of 0.11 by 220: 0.11 by 20 and 0.01 by 220, without the 0.01 by 20 that both have.
    np.testing.assert_allclose(found["hypervolume"], (0.11 * 20 + 0.01 * 220 - 0.01 * 20) / (0.11 * 220))
    assert front.sentence(found) == (
        "2 of 4 schedules are beaten by no other: none is as good in accuracy and parameters and better in one of them."
    )


def test_a_study_tells_its_front(tmp_path: Path) -> None:
    """In ``results.json`` and in the closing lines; a trial that was stopped early is not on it."""
    settings = Settings(objective=("accuracy", "parameters"), trials=4)
    folder = Folder.make(tmp_path / "s", settings, {"fc1": 8})
    for found in (trial(0, 0.9, 300), trial(1, 0.8, 100), trial(2, 0.7, 200), trial(3, 0.99, 10) | {"stopped": 2}):
        outcome = found | {"operations": [], "spikes": [], "epochs": [{"epoch": 1.0, "validation_metric": 0.5}]}
        folder.ended(Cell("search", 0, trial=outcome.pop("trial")), outcome)
    results = conduct.write_report(folder)
    assert results["front"]["trials"] == [0, 1] and json.loads(folder.results.read_text()) == results
    assert [number for number, _ in results["front"]["history"]] == [0, 1, 2]
    assert (folder.figures / "front.png").exists() and 'id="front"' in folder.report.read_text()
    console = Console(file=io.StringIO(), width=200)
    conduct.show(results, folder, console)
    assert f"Front: {front.sentence(results['front'])}" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_front_without_extent_has_a_volume() -> None:
    for trials in ([trial(0, 0.9, 10)], [trial(0, 0.9, 10), trial(1, 0.9, 10)], [trial(0, 0.9, 10), trial(1, 0.8, 90)]):
        found = front.front(trials, ("accuracy", "parameters"))
        assert found is not None and found["hypervolume"] == pytest.approx(1.0)
    assert front.front([], ("accuracy", "parameters")) is None
    assert front.front([trial(0, 0.9, 10)], ("accuracy",)) is None


@pytest.mark.parametrize("count", [1, 3, 99])
def test_those_that_stand_for_a_front(count: int) -> None:
    """Each adds more volume than any other would have: compared with every front of one more."""
    losses = points(40, 3, seed=1)
    taken, best = leading(losses, count), find_front(losses)
    assert len(taken) == len(set(taken)) == min(count, len(best)) and set(taken) <= set(best)
    assert losses[taken[0], 0] == losses[:, 0].min()
    reference = reference_point(losses, best)
    for place in range(1, len(taken)):
        volumes = {row: hypervolume(losses[[*taken[:place], row]], reference) for row in best}
        assert volumes[taken[place]] == max(volumes.values())
