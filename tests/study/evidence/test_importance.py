"""Importance: the parameter that decides is found, and nothing is said where nothing is known."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

from network_surgery.search_spaces import SPACES
from network_surgery.study.conduct import write_report
from network_surgery.study.evidence import importance
from network_surgery.study.evidence.figures.importance import importance as figure
from network_surgery.study.result import Result
from network_surgery.study.store.folder import Folder
from network_surgery.study.task.metric import Metric
from tests.study.evidence import made
from tests.study.operated import spiked

LAYERS = {"a": 32, "b": 64, "c": 64}
Value = Callable[[Mapping[str, Any]], float]


def results(space: str, count: int, accuracy: Value, spike: Value) -> dict[str, Any]:
    """A search whose trials are drawn at random and whose outcomes are functions of their parameters."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = []
    for _ in range(count):
        trial = study.ask()
        SPACES[space](trial, {name: SimpleNamespace(units=units) for name, units in LAYERS.items()}, 10)
        params = dict(trial.params)
        spikes = [spiked(1.0), spiked(spike(params))]
        trials.append({"params": params, "validation_metric": accuracy(params), "spikes": spikes})
    return {"settings": {"space": space, "epochs": 10}, "layers": LAYERS, "trials": trials}


def test_what_decides_is_found() -> None:
    found, ranges = importance.importances(
        results("eigen_remove", 60, lambda p: p["keep"] ** 2, lambda p: 1 + 5 * (p["weights"] == "reduced"))
    )
    assert max(found["metric"], key=found["metric"].__getitem__) == "keep" and found["metric"]["keep"] > 0.9
    assert max(found["spike"], key=found["spike"].__getitem__) == "weights"
    for shares in found.values():
        assert math.isclose(sum(shares.values()), 1.0) and {"delta", "strength", "order", "first_epoch"} <= set(shares)
    for target, shares in found.items():
        assert all(ranges[target][name][0] <= share <= ranges[target][name][1] for name, share in shares.items())
    assert ranges["metric"]["keep"][0] > 0.7 and ranges["metric"]["strength"][1] < 0.2


@pytest.mark.long
def test_fewer_trials_have_wider_intervals() -> None:
    """Nothing but noise decides: with more trials there is less to be read from it."""
    noise = np.random.default_rng(0)
    width = []
    for count in (20, 90):
        _, ranges = importance.importances(results("eigen_remove", count, lambda p: noise.normal(), lambda p: 1.0))
        width.append(np.mean([high - low for low, high in ranges["metric"].values()]))
    assert width[0] > 1.1 * width[1]


def test_of_many_trials_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[int] = []
    fanova = importance._fanova
    monkeypatch.setattr(importance, "MOST", 60)
    monkeypatch.setattr(importance, "_fanova", lambda points, how: learnt.append(len(points)) or fanova(points, how))
    found, ranges = importance.importances(results("eigen_remove", 200, lambda p: p["keep"] ** 2, lambda p: 1.0))
    assert {*learnt} == {60} and found["metric"]["keep"] > 0.9 and ranges["metric"]["keep"][0] > 0.7


@pytest.mark.long
def test_importance_does_not_depend_on_the_direction() -> None:
    found = results("eigen_remove", 20, lambda p: p["keep"] ** 2, lambda p: 1 + p["first_epoch"])
    mirrored = [trial | {"validation_metric": -trial["validation_metric"]} for trial in found["trials"]]
    metric = Metric("regret", "lower", margin=0.005).to_data()
    one, other = (importance.importances(each)[0] for each in (found, found | {"trials": mirrored, "metric": metric}))
    assert one["metric"] == pytest.approx(other["metric"], abs=0.02)
    assert "metric" not in importance.importances(found | {"metric": metric | {"margin": 1e3}})[0]  # it hardly varies


def test_what_only_some_trials_have_is_left_out() -> None:
    found, _ = importance.importances(results("mixed", 60, lambda p: p.get("keep", 0.5), lambda p: 2.0))
    assert "op" in found["metric"] and "keep" not in found["metric"]
    assert "spike" not in found  # it does not vary


def test_rounding_is_no_spike() -> None:
    """An expansion that changes nothing but the last digits has no loss spike whose cause could be asked for."""
    found, _ = importance.importances(
        results("weak_expand", 30, lambda p: p["grow"], lambda p: 1 + 1e-6 * (p["split"] == "signed"))
    )
    assert set(found) == {"metric"}


def small_search() -> dict[str, Any]:
    return results("pcns", 20, lambda p: p["variance_threshold"], lambda p: 1 + p["first_epoch"])


@functools.cache
def says_something() -> bool:
    return bool(importance.importances(small_search())[0])


@pytest.mark.parametrize("change", ["few", "failed", "unknown space", "other version"])
def test_nothing_is_said_where_nothing_is_known(change: str) -> None:
    found = small_search()
    assert says_something()
    if change == "few":
        found["trials"] = found["trials"][:19]
    elif change == "unknown space":
        found["settings"]["space"] = "mine"
    for trial in found["trials"]:
        if change == "failed":
            trial["failure"] = "the loss became nan"
        elif change == "other version":
            trial["params"] = {"threshold": 0.5}
    assert importance.importances(found) == ({}, {})


def test_the_figure_says_its_finding() -> None:
    found = results("weak_expand", 30, lambda p: p["grow"], lambda p: 1 + p["first_epoch"])
    assert figure(found) is None  # nothing was stored
    shares, intervals = importance.importances(found)
    drawing = figure(found | {"importance": {"key": "", "shares": shares, "intervals": intervals}})
    assert drawing is not None
    assert drawing.title == "What mattered most: validation accuracy: grow, largest loss spike: first_epoch"
    low, high = intervals["metric"]["grow"]
    assert f"accuracy: grow {shares['metric']['grow']:.0%} [{low:.0%}, {high:.0%}]" in drawing.alt
    assert figure(found | {"importance": {"key": "", "shares": shares}}) is not None  # of an older study
    assert drawing.image("png").startswith(b"\x89PNG")


@pytest.mark.long
def test_a_large_search_takes_a_smaller_forest_that_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results("weak_expand", importance.FEW + 50, lambda p: p["grow"] + 0.05 * p["first_epoch"], lambda p: 2.0)
    small = importance.importances(found)[0]["metric"]
    monkeypatch.setattr(importance, "FEW", len(found["trials"]))
    whole = importance.importances(found)[0]["metric"]
    assert small != whole and small.keys() == whole.keys()
    assert max(abs(small[name] - whole[name]) for name in whole) < 0.05


def test_what_is_stored_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made.study(tmp_path / "s", LAYERS, trials=20, epochs=6, seeds=1, space="weak_expand")
    first = write_report(folder)["importance"]
    assert first["shares"]["metric"] and figure(write_report(folder)) is not None
    table = Result(folder).importance.set_index(["target", "parameter"])
    assert table.loc[("metric", "grow"), "share"] == first["shares"]["metric"]["grow"]
    assert list(table.loc[("metric", "grow"), ["low", "high"]]) == first["intervals"]["metric"]["grow"]

    def again(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(importance, "importances", again)
        assert write_report(Folder.open(folder.path))["importance"] == first
    cell, result = made.trainings(folder)[0]
    folder.ended(replace(cell, trial=20), result)  # one more trial
    changed = write_report(folder)["importance"]
    assert changed["key"] != first["key"] and changed["shares"] != first["shares"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    path = tmp_path_factory.mktemp("searched") / "s"
    return made.study(path, LAYERS, trials=20, epochs=6, seeds=1, space="weak_expand")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"importance": null}', '{"importance": {"key": 3}}'])
def test_damaged_or_older_results_are_computed_anew(
    damage: str, searched: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew = {"metric": {"grow": 1.0}}, {"metric": {"grow": [1.0, 1.0]}}
    monkeypatch.setattr(importance, "importances", lambda results: anew)
    searched.results.write_text(damage)
    found = importance.importance(searched)
    assert (found["shares"], found["intervals"]) == anew
