"""Figures: what is drawn comes from the results, and nothing that a study can look like stops them."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from network_surgery.study.arms import RIVALS
from network_surgery.study.evidence import figures
from network_surgery.study.evidence.figures import reading
from network_surgery.study.evidence.figures.trials import pareto_front
from network_surgery.study.evidence.front import front
from network_surgery.study.evidence.naming import arm_title
from tests.study.operated import operated, spiked

pytestmark = pytest.mark.pictures

#: The figures of the samples below: the importance of parameters wants more trials, a front several objectives.
DRAWN = figures.FIGURES.keys() - {"importance", "front"}


def operation(epoch: float, layer: str, factor: float, seconds: float = 0.01) -> dict[str, Any]:
    """The record of one operation that takes 8 of 32 units."""
    return operated(
        when=f"{epoch:g}ep", epoch=epoch, iteration=int(10 * epoch), layer=layer, operation="MinWeight(keep=0.75)",
        units_before=32, units_after=24, loss_after=0.5 * factor, seconds=seconds, epochs_to_recover=2,
    )  # fmt: skip


def looked(epoch: int, seed: int, cut: bool) -> dict[str, Any]:
    """What the probe finds of two layers, the first of which 8 units are cut from."""
    units, needed = (24, 12) if cut else (32, 8)
    return {
        "a": {"units": units, "samples": 400, "units_99": needed + 2 * seed},
        "b": {"units": 32, "samples": 64, "units_99": 16 + epoch},
    }


def cell(
    arm: str, seed: int, accuracy: float, trial: int | None = None, op: str = "", epochs: int = 4
) -> dict[str, Any]:
    """A finished training; with an operation ``op`` on two layers at the first epoch."""
    name = f"{arm}-{seed}" if trial is None else f"{arm}-{trial:03d}-{seed}"
    steps: list[dict[str, Any]] = []
    if op:
        steps = [{"when": "1ep", "layer": layer, "op": op, "keep": 0.75} for layer in ("a", "b")]
    operations = [operation(1.0, step["layer"], 2.0 + seed) for step in steps]
    rising = [accuracy - 0.1 * (epochs - e) / epochs for e in range(1, epochs + 1)]
    history: list[dict[str, Any]] = [
        {"epoch": e, "validation_metric": value, "validation_loss": 1 - value, "train_seconds": 0.25}
        for e, value in enumerate(rising, 1)
    ]
    if arm in ("original", "surgery"):
        for epoch in history[1 if epochs > 1 else 0 :: 2]:
            epoch["redundancy"] = looked(epoch["epoch"], seed, bool(op))
    return {
        "name": name, "arm": arm, "seed": seed, "trial": trial, "schedule": steps, "params": {},
        "validation_metric": accuracy, "test_metric": accuracy - 0.01, "parameters": 1000 + 100 * (trial or 0),
        "flops": 5000, "training_flops": 60_000 + 1000 * epochs, "seconds": 2.0,
        "operation_seconds": 1.0, "epochs": history, "operations": operations,
        "spikes": [spiked(3.0)] if op else [],
    }  # fmt: skip


def verdict(trial: int, n: int = 3) -> dict[str, Any]:
    sentence = f"Surgery of trial {trial} is compared over {n} seeds: no difference was found."
    others = [{"arm": "random", "sentence": "random units of the same layers: +0.10 points, no difference was found"}]
    return {
        "trial": trial, "arm": "restart", "n": n, "difference": 0.0125,
        "finding": "no difference was found", "sentence": sentence,
        "details": f"Schedule {trial}: +1.25 points.", "others": others,
    }  # fmt: skip


def row(arm: str, trial: int | None = None, n: int = 3) -> dict[str, Any]:
    return {
        "arm": arm, "trial": trial, "label": f"the {arm}", "n": n, "metric": 0.9, "metric_deviation": 0.01,
        "parameters": 900.0, "flops": 5000.0, "seconds": 2.0, "seconds_deviation": None, "spike_factor": None,
        "operation_to_epoch": 0.01, "latency_seconds": {"1": 0.001, "256": 0.0321}, "peak_memory": None,
        "metrics": {"top 5": 0.99},
    }  # fmt: skip


def sample(trials: int = 4, seeds: int = 3, epochs: int = 4) -> dict[str, Any]:
    """Results as ``Folder.write`` makes them: the last trial failed, trial 0 is compared over the seeds."""
    found = [cell("search", 0, 0.9 + 0.01 * i, i, ("min_weight", "pcns")[i % 2], epochs) for i in range(trials)]
    if found:
        found[-1] = {key: found[-1][key] for key in ("name", "arm", "seed", "trial", "schedule", "params")}
        found[-1]["failure"] = "the loss became nan"
    cells = [cell("original", seed, 0.93, epochs=epochs) for seed in range(seeds)]
    cells += [cell("restart", seed, 0.91 + 0.01 * seed, 0, epochs=epochs) for seed in range(seeds)]
    cells += [cell("surgery", seed, 0.92 + 0.01 * seed, 0, "min_weight", epochs) for seed in range(seeds)]
    summary = [row("original"), row("surgery", 0), row("restart", 0)] if seeds else []
    settings = {"data": "digits", "model": "mlp", "epochs": epochs, "trials": trials, "space": "mixed", "seeds": 3}
    return {
        "format": 1,
        "settings": settings,
        "machine": {"python": "3.11", "torch": "2.0"},
        "layers": {"a": 32, "b": 32},
        "state": {"now": "finished", "search": {"ended": trials, "of": trials}, "comparison": {"ended": 9, "of": 9}},
        "trials": found,
        "comparison": {"summary": summary, "verdicts": [verdict(0, seeds)] if seeds else [], "cells": cells},
    }


def test_every_figure_is_drawn_with_data_labels_and_words() -> None:
    drawings = figures.draw(sample())
    assert drawings.keys() == DRAWN
    for name, drawing in drawings.items():
        axes = drawing.figure.axes[0]
        assert axes.has_data() and any(each.get_xlabel() for each in drawing.figure.axes)
        assert axes.get_ylabel() or name == "spike"  # its rows carry names instead
        assert drawing.title and drawing.caption and any(letter.isdigit() for letter in drawing.alt)


def test_the_words_hold_the_numbers_of_the_results() -> None:
    results = sample()
    drawings = figures.draw(results)
    surgery = [c for c in results["comparison"]["cells"] if c["arm"] == "surgery"]
    mean = statistics.fmean(c["validation_metric"] for c in surgery)
    assert f"surgery {mean:.2%} (n = 3)" in drawings["accuracy"].alt
    mean = statistics.fmean(c["test_metric"] for c in surgery)
    assert f"surgery A {100 * mean:.2f} ± " in drawings["arms"].alt
    assert "+1.25 points" in drawings["arms"].alt
    assert "Best: 92.00% at 1,200 parameters, with min_weight" in drawings["search"].alt
    assert "3 finished trials (1 failed)" in drawings["search"].alt
    factors = [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]  # two trials and three seeds, two layers each
    assert f"min_weight ×{statistics.median(factors):.2f}" in drawings["spike"].alt
    assert "min_weight 1%" in drawings["timing"].alt and "12 operations" in drawings["timing"].alt
    assert "92.00% (min_weight at 1)" in drawings["timeline"].alt
    # Layer a: 8, 10, 12 of 32 units, b: 18 and then 20 of 32; after surgery 12, 14, 16 of 24.
    assert "original: a 31.2% → 31.2%, b 56.2% → 62.5%" in drawings["redundancy"].alt
    assert "surgery A: a 58.3% → 58.3%, b 56.2% → 62.5%" in drawings["redundancy"].alt
    assert f"surgery A {100 * (14 + 18) / 56:.3g}%" in drawings["redundancy"].title


def test_points_lie_where_the_results_say() -> None:
    drawings = figures.draw(sample())
    dots = drawings["search"].figure.axes[0].collections
    points = {(x, round(y, 6)) for drawn in dots for x, y in np.asarray(drawn.get_offsets())}
    assert {(1000, 0.9), (1100, 0.91), (1200, 0.92)} <= points
    lines = [np.asarray(line.get_ydata()) for line in drawings["arms"].figure.axes[0].lines]
    np.testing.assert_allclose([line[0] - line[1] for line in lines if len(line) == 2], [0.01, 0.01, 0.01])


def test_the_heat_map_shows_layers_looks_and_operations() -> None:
    original, surgery, _ = figures.draw(sample())["redundancy"].figure.axes
    for axes, first in ((original, 10 / 32), (surgery, 14 / 24)):
        (fields,) = (each for each in axes.collections if each.get_array() is not None)
        np.testing.assert_allclose(np.asarray(fields.get_array()).reshape(2, 2), [[first] * 2, [18 / 32, 20 / 32]])
        assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b*"]  # of b 2 samples a unit were seen
    marks = [tuple(np.round(at)) for drawn in surgery.collections[1:] for at in np.asarray(drawn.get_offsets())]
    assert marks == [(1, 0), (1, 1)] and len(original.collections) == 1


def test_a_heat_map_of_many_layers_and_of_layers_that_come_and_go() -> None:
    results = sample(epochs=30)
    for member in results["comparison"]["cells"]:
        for epoch in member["epochs"]:
            if "redundancy" in epoch:
                entry = epoch["redundancy"]["a"]
                epoch["redundancy"] = {f"block.{i}": entry for i in range(90) if epoch["epoch"] > 5 or i % 2}
    drawing = figures.draw(results)["redundancy"]
    assert drawing.figure.get_figheight() < 25 and drawing.image("png").startswith(b"\x89PNG")
    assert "nan" not in drawing.alt + drawing.title
    for member in results["comparison"]["cells"]:
        if member["arm"] == "surgery":
            for epoch in member["epochs"]:
                epoch.pop("redundancy", None)
    assert len(figures.draw(results)["redundancy"].figure.axes) == 2  # one arm and the colours


def test_a_schedule_that_never_operated_is_drawn() -> None:
    results = sample()
    waits = {"when": "redundancy(0.01) >= 0.9 from 1ep every 1ep at most 1", "layer": "a", "op": "pcns"}
    for member in [*results["trials"], *results["comparison"]["cells"]]:
        member |= {"schedule": [waits] if member["arm"] != "original" else [], "operations": [], "spikes": []}
    drawings = figures.draw(results)
    assert drawings.keys() == {"answer", "arms", "costs", "accuracy", "time_to_accuracy", "search", "redundancy"}
    assert "Operations: none." in drawings["accuracy"].alt


def test_an_operation_has_its_short_name_however_its_moment_is_written() -> None:
    member = cell("surgery", 0, 0.9, 0, "min_weight")
    for record in member["operations"]:
        record["when"] = "redundancy(0.01) >= 0.3 from 1ep every 1ep at most 1"
    assert {op for op, _ in reading.name_operations(member)} == {"min_weight"}


def test_the_front_holds_exactly_the_points_that_none_beats() -> None:
    points = [(1, 0.5), (2, 0.4), (2, 0.7), (3, 0.7), (4, 0.9), (1, 0.3)]
    beaten = lambda p: any(o != p and o[0] <= p[0] and o[1] >= p[1] for o in points)  # noqa: E731
    assert pareto_front(points) == sorted(p for p in points if not beaten(p))


@pytest.mark.parametrize(
    ("trials", "seeds", "names"),
    [(0, 0, set()), (1, 0, set()), (2, 0, {"search", "timeline", "spike", "timing"})],
    ids=["nothing yet", "every trial failed", "no comparison yet"],
)
def test_figures_without_data_are_left_out(trials: int, seeds: int, names: set[str]) -> None:
    assert figures.draw(sample(trials, seeds)).keys() == names


@pytest.mark.long
def test_odd_studies_are_drawn(tmp_path: Path) -> None:
    short = sample(trials=2, seeds=1, epochs=1)
    wild = copy.deepcopy(sample())
    for index, record in enumerate(wild["trials"][0]["operations"]):
        record["loss_after"] = (0.5e12, math.nan)[index]
        record["epoch_seconds"], record["seconds"] = ((None, 1e-9), (1e3, 30.0))[index]
    wild["trials"][1]["validation_metric"] = 1.0
    wild["trials"][2]["validation_metric"] = 0.0
    wild["trials"][1] |= {"operations": [], "schedule": []}
    for member in wild["comparison"]["cells"]:
        member["test_metric"] = 1.0
        for epoch in member["epochs"]:
            epoch["validation_metric"] = 1.0
    half = sample()
    half["comparison"]["cells"] = [c for c in half["comparison"]["cells"] if c["arm"] != "restart"]
    half["comparison"]["verdicts"] = []
    failed = {"arm": "surgery", "seed": 9, "trial": 0, "schedule": [], "failure": "out of memory"}
    half["comparison"]["cells"].append(failed)
    for number, results in enumerate((short, wild, half)):
        drawings = figures.draw(results)
        assert drawings.keys() == DRAWN
        for path in figures.save(drawings, tmp_path / str(number)):
            assert path.stat().st_size > 5000
        assert "nan" not in " ".join(d.alt + d.title for d in drawings.values()).lower()


def test_trials_that_were_stopped_are_not_mixed_with_finished_ones() -> None:
    results = sample(trials=5)
    results["trials"][0] |= {"stopped": 2, "validation_metric": 0.999}
    drawings = figures.draw(results)
    assert "3 finished trials (1 failed, 1 stopped early)" in drawings["search"].alt
    assert "99.90%" not in drawings["search"].alt and "#0" not in drawings["timeline"].alt
    dots = drawings["search"].figure.axes[0].collections
    assert not {0.999} & {round(y, 6) for drawn in dots for _, y in np.asarray(drawn.get_offsets())}


@pytest.mark.parametrize("objectives", [("parameters", "accuracy"), ("accuracy", "parameters", "flops", "seconds")])
def test_every_two_objectives_are_drawn_with_the_front_marked(objectives: tuple[str, ...]) -> None:
    results = sample(trials=6)
    for trial, accuracy, size in zip(
        results["trials"], (0.9, 0.8, 0.7, 0.85, 0.95), (90, 20, 30, 40, 90), strict=False
    ):
        trial |= {"validation_metric": accuracy, "parameters": size}
    results["front"] = front(reading.find_finished(results["trials"]), objectives)
    drawing = figures.draw(results)["front"]
    *pairs, growth = drawing.figure.axes
    labels = [(axes.get_xlabel().split(" (")[0], axes.get_ylabel().split(" (")[0]) for axes in pairs]
    names = [name.replace("accuracy", "validation accuracy").replace("flops", "FLOPs") for name in objectives]
    assert sorted(map(sorted, labels)) == sorted(map(sorted, itertools.combinations(names, 2)))
    beaten, best, reference = (np.asarray(drawn.get_offsets()) for drawn in pairs[0].collections)
    assert pairs[0].get_xlabel().startswith("parameters")
    assert {tuple(at) for at in best} == {(90, 0.95), (40, 0.85), (20, 0.8)} and len(beaten) == 2
    np.testing.assert_allclose(reference, [[97.0, 0.785]])
    np.testing.assert_allclose(growth.lines[0].get_ydata()[-1], results["front"]["hypervolume"])
    assert "3 of 5 schedules are beaten by no other" in drawing.title and "not compared (min_weight): " in drawing.alt
    assert drawing.image("png").startswith(b"\x89PNG") and "nan" not in drawing.alt


def test_a_front_of_one_trial_is_drawn() -> None:
    results = sample(trials=2)
    results["front"] = front(reading.find_finished(results["trials"]), ("accuracy", "seconds"))
    assert "1 of 1 schedule is beaten by no other" in figures.draw(results)["front"].title


def test_equal_figures_are_equal_files() -> None:
    one, other = (figures.draw(sample())["search"] for _ in range(2))
    assert one.image("svg") == other.image("svg")
    assert one.image("png").startswith(b"\x89PNG")


@pytest.mark.parametrize("rival", RIVALS)
def test_seeds_of_an_arm_may_train_for_different_numbers_of_epochs(rival: str) -> None:
    """As at equal FLOPs, where each seed has an architecture of its own."""
    results = sample()
    results["settings"]["arms"] = ["original", "surgery", rival]
    results["comparison"]["verdicts"] = [verdict(0) | {"arm": rival}]
    results["comparison"]["summary"] = [row("original"), row("surgery", 0), row(rival, 0)]
    cells = [each for each in results["comparison"]["cells"] if each["arm"] != "restart"]
    results["comparison"]["cells"] = cells + [
        cell(rival, seed, 0.91 + 0.01 * seed, 0, epochs=number) for seed, number in enumerate((2, 6, 3))
    ]
    drawings = figures.draw(results)
    assert drawings.keys() == DRAWN
    assert f"{arm_title(rival)} {0.92:.2%} (n = 3)" in drawings["accuracy"].alt  # of each seed's own last epoch


@pytest.mark.filterwarnings("default:the figure .* could not be drawn")
def test_a_figure_that_fails_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(results: dict[str, Any]) -> None:
        raise ValueError("an array of nothing")

    monkeypatch.setitem(figures.FIGURES, "timing", broken)
    with pytest.warns(UserWarning, match=r"the figure timing could not be drawn \(ValueError: an array of nothing\)"):
        assert figures.draw(sample()).keys() == DRAWN - {"timing"}
