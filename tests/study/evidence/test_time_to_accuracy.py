"""Time to accuracy: when an arm is there, censoring, and the tests against their definitions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from network_surgery.study.config import Settings
from network_surgery.study.evidence import comparison, report, wording
from network_surgery.study.evidence.contrast import contrast
from network_surgery.study.evidence.figures import time_to_accuracy as figure
from network_surgery.study.evidence.state import state
from network_surgery.study.evidence.time_to_accuracy import (
    ENOUGH,
    Times,
    arrival,
    contrasts,
    summary,
    targets,
    times,
)
from network_surgery.study.store.folder import Folder, Record
from network_surgery.study.task.metric import ACCURACY
from network_surgery.study.training.cell import Cell
from tests.study.operated import operated

STEP = {"when": "2ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}


def training(
    accuracies: Sequence[float], seconds: float = 1.0, cut: float | None = None, sunk: float = 0.0, test: float = 0.9
) -> dict[str, Any]:
    """An outcome of ten steps an epoch and this validation accuracy after each; an operation ``cut`` halves the
    network and takes half a second; twenty FLOPs before, ten after.
    """
    n = len(accuracies)
    operation = operated(
        when="2ep", epoch=cut, iteration=int(10 * (cut or 0)), seconds=0.5, epoch_seconds=seconds,
        parameters_before=20, parameters_after=10,
    )  # fmt: skip
    known = enumerate(accuracies, 1)
    done, before = ([], 0.0) if cut is None else ([operation], 10 * cut)
    return {
        "epochs": [{"epoch": float(e), "validation_metric": a, "train_seconds": seconds} for e, a in known],
        "operations": done, "checks": [], "operation_seconds": 0.5 * len(done), "spikes": [], "architecture": {},
        "seconds": n * seconds + 0.5 * len(done) + sunk, "sunk": {"seconds": sunk, "training_flops": 100 * sunk},
        "steps": 10 * n, "flops": 10, "training_flops": 20 * before + 10 * (10 * n - before) + 100 * sunk,
        "validation_metric": accuracies[-1], "test_metric": test, "parameters": 10,
    }  # fmt: skip


def test_an_accuracy_counts_at_the_end_of_an_epoch_of_the_final_network() -> None:
    rising = [0.5, 0.8, 0.9, 0.7, 0.9]
    assert [arrival(training(rising), target) for target in (0.5, 0.6, 0.9, 0.95)] == [1, 2, 3, None]
    assert arrival(training(rising, cut=3.0), 0.6) == 4 and arrival(training(rising, cut=3.5), 0.8) == 5
    idle = training(rising, cut=3.0)
    idle["operations"][0] |= {"units_after": 8, "parameters_after": 20}
    assert arrival(idle, 0.6) == 2  # an operation that found nothing to do made no other network


def test_costs_are_what_had_been_spent_by_then_and_runs_that_never_arrive_are_censored() -> None:
    runs = [training([0.5, 0.8, 0.9]), training([0.5, 0.6, 0.7], seconds=2.0), training([0.9] * 3, sunk=4.0)]
    assert times(runs, 0.8) == Times([2.0, 5.0], [6.0])
    assert times(runs, 0.8, "training_flops") == Times([200.0, 500.0], [300.0])
    cut = training([0.5, 0.9, 0.9], cut=1.0)
    assert times([cut], 0.8) == Times([2.5], []) and times([cut], 0.8, "training_flops") == Times([300.0], [])


def kaplan_meier(runs: Times) -> list[tuple[float, float]]:
    """By its definition: of those still under way at a time, the fraction that gets there then."""
    alive, found = 1.0, []
    for at in sorted({*runs.reached, *runs.censored}):
        under_way = sum(time >= at for time in [*runs.reached, *runs.censored])
        alive *= 1 - sum(time == at for time in runs.reached) / under_way
        found.append((at, 1 - alive))
    return found


def test_shares_agree_with_the_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values, there = rng.integers(1, 8, 12).astype(float), rng.random(12) < 0.6
        runs = Times([float(v) for v in values[there]], [float(v) for v in values[~there]])
        np.testing.assert_allclose(runs.shares(), kaplan_meier(runs), atol=1e-12)
        reached = [at for at, share in kaplan_meier(runs) if share >= 0.5 - 1e-9]
        assert runs.median() == (reached[0] if reached else None)
    assert Times([], [3.0, 4.0]).shares() == [(3.0, 0.0), (4.0, 0.0)] and Times([], [3.0]).median() is None


def test_the_fixed_accuracies_depend_on_the_original_alone_or_are_given() -> None:
    originals = [training([0.5, 0.9]), training([0.5, 0.8])]
    assert targets((), originals) == pytest.approx([0.765, 0.8075, 0.8415])
    assert targets((0.9, 0.5, 0.9), originals) == [0.5, 0.9]
    assert targets((), []) == []


def test_where_all_arrive_times_are_ratios_paired_by_seed() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.lognormal(0, 0.3, 6), rng.lognormal(0.5, 0.3, 6)
    pairs = [(training([0.5, 0.9], a), training([0.5, 0.5, 0.9], b)) for a, b in zip(ours, theirs, strict=True)]
    (found,) = contrasts(pairs, [0.8])
    logs = np.log(2 * ours / (3 * theirs))
    reference = stats.ttest_1samp(logs, 0)
    test = found["seconds"]
    assert found["reached"] == [6, 6] and test["n"] == 6 and test["sooner"]
    assert test["ratio"] == pytest.approx(stats.gmean(2 * ours / (3 * theirs)))
    assert test["interval"] == pytest.approx(np.exp(list(reference.confidence_interval(0.95))))
    flops = found["training_flops"]  # the same epochs in every pair: a ratio without a spread, so its sign counts
    assert flops["ratio"] == pytest.approx(200 / 300) and flops["interval"] is None
    assert flops["p"] == 2 / 2**6 and flops["test"] == "sign"


def test_flops_are_tested_and_seconds_are_not() -> None:
    ends = [(2, 3), (2, 4), (3, 4), (2, 3), (1, 4)]
    pairs = [tuple(training([0.5] * (end - 1) + [0.9]) for end in pair) for pair in ends]
    (found,) = contrasts(pairs, [0.8])  # type: ignore[arg-type]
    reference = stats.ttest_1samp(np.log([one / other for one, other in ends]), 0)
    flops, seconds = found["training_flops"], found["seconds"]
    assert flops["test"] == "paired t" and flops["p"] == pytest.approx(reference.pvalue)
    assert seconds["p"] is seconds["test"] is None and seconds["ratio"] == pytest.approx(flops["ratio"])
    (few,) = contrasts(pairs[:4], [0.8])  # type: ignore[arg-type]
    assert few["training_flops"]["interval"] is few["seconds"]["interval"] is None  # of four seeds it says nothing


def test_where_the_large_network_is_there_its_training_costs_nothing() -> None:
    """Of a surgery what came before it, and of a late restart what it would not have begun without."""
    cut, late = training([0.5, 0.9, 0.9, 0.9], cut=1.0), training([0.5, 0.9, 0.9], sunk=4.0)
    late["sunk"]["epochs"] = 1.0
    surgery, restart = {1: Record(Cell("surgery", 1), cut)}, {1: Record(Cell("restart_late", 1), late)}
    for question, ratio, whole in (("zero", 300 / 600, 500 / 700), ("given", 100 / 200, 300 / 300)):
        found = contrast("restart_late", surgery, restart, [0.8], ACCURACY, question=question)
        assert found["time_to_accuracy"][0]["training_flops"]["ratio"] == pytest.approx(ratio)
        assert found["compute_ratio"] == pytest.approx(whole) and found["accounting"] == question
    fresh = {1: Record(Cell("restart", 1), training([0.5, 0.9, 0.9]))}  # which pays all of its own
    found = contrast("restart", surgery, fresh, [0.8], ACCURACY, question="given")
    assert found["compute_ratio"] == pytest.approx(300 / 300)
    # Of weights that were trained elsewhere nothing is taken off.
    pretrained = contrast("restart", surgery, fresh, [0.8], ACCURACY, question="given", trained=False)
    assert pretrained["compute_ratio"] == pytest.approx(500 / 300)


def log_rank(ours: Times, theirs: Times) -> float:
    """The two-sided p-value by its definition: arrivals against those expected if both arms were alike."""
    excess = variance = 0.0
    for at in sorted({*ours.reached, *theirs.reached}):
        n = [sum(time >= at for time in [*each.reached, *each.censored]) for each in (ours, theirs)]
        d = [each.reached.count(at) for each in (ours, theirs)]
        excess += d[0] - sum(d) * n[0] / sum(n)
        if sum(n) > 1:
            variance += sum(d) * n[0] * n[1] * (sum(n) - sum(d)) / (sum(n) ** 2 * (sum(n) - 1))
    return math.erfc(abs(excess) / math.sqrt(2 * variance))


def test_where_some_never_arrive_the_log_rank_test_decides_if_there_are_enough() -> None:
    rng = np.random.default_rng(1)
    quick, slow = [0.5, 0.9, 0.9, 0.9], [0.5, 0.5, 0.5, 0.9]
    pairs = [
        (training(quick, s), training(slow if seed % 3 else slow[:3], t))
        for seed, (s, t) in enumerate(rng.lognormal(0, 0.2, (ENOUGH, 2)))
    ]
    (found,) = contrasts(pairs, [0.8])
    test = found["training_flops"]
    assert found["reached"] == [ENOUGH, ENOUGH - 3] and test["test"] == "log-rank" and test["sooner"]
    sides = (times([pair[side] for pair in pairs], 0.8, "training_flops") for side in (0, 1))
    assert test["p"] == pytest.approx(log_rank(*sides))
    swapped = contrasts([(other, one) for one, other in pairs], [0.8])[0]["training_flops"]
    assert swapped["p"] == pytest.approx(test["p"]) and swapped["sooner"] is False
    few = contrasts(pairs[1:], [0.8])[0]["training_flops"]
    assert few["p"] is few["test"] is few["sooner"] is None and few["ratio"] < 1
    never = contrasts(pairs, [0.99])[0]
    assert never["reached"] == [0, 0] and never["training_flops"]["ratio"] is never["training_flops"]["p"] is None


def test_a_table_says_how_many_arrived_and_when_half_were_there() -> None:
    found = summary([training([0.5, 0.9]), training([0.5, 0.8]), training([0.9], 3.0)], [0.85, 0.95])
    assert found["reached"] == {"0.8500": 2, "0.9500": 0}
    assert found["seconds_to"] == {"0.8500": 3.0, "0.9500": None}
    assert found["flops_to"] == {"0.8500": 200.0, "0.9500": None}


def study(folder: Path, surgery: Any, restart: Any, seeds: int = 10, schedules: int = 1, **settings: Any) -> Folder:
    """A folder with an original, and these arms as functions of a random generator."""
    known = {"arms": ("original", "surgery", "restart"), "schedules": ([STEP],) * schedules} | settings
    made = Folder.make(folder, Settings(seeds=seeds, **known), {"fc1": 8})
    rng = np.random.default_rng(0)
    for seed in range(1, seeds + 1):
        made.ended(Cell("original", seed, test=True), training([0.5, 0.9, 0.9, 0.9]))
        made.ended(Cell("surgery", seed, [STEP], trial=0), surgery(rng))
        made.ended(Cell("restart", seed, trial=0), restart(rng))
    return made


def arm(epochs: int, test: float = 0.9, spread: float = 0.001, cut: float | None = None, seconds: float = 1.0) -> Any:
    """Training runs that arrive after a number of epochs, each a number of seconds long within a tenth."""
    curve = [0.5] * (epochs - 1) + [0.9] * (5 - epochs)
    return lambda rng: training(curve, seconds * rng.uniform(0.9, 1.1), cut, test=test + rng.normal(0, spread))


def one_of(*arms: Any) -> Any:
    return lambda rng: arms[rng.integers(len(arms))](rng)


FROM_NOTHING = "Counting all compute from nothing, "
FLOPS = r"with (\d\d) % of the training FLOPs of {} \((?:95 % interval (\d\d)–(\d\d) %, )?n = 10\) and ends no worse\."
CLAIMS = {
    "less": (arm(2, cut=0.5), one_of(arm(4), arm(3)), r"surgery reaches 89\.1 % " + FLOPS.format("restarting")),
    "more": (arm(4, cut=0.5), arm(2), r"restarting reaches 89\.1 % " + FLOPS.format("surgery")),
    "late surgery": (arm(1, cut=3.0), arm(2), r"restarting reaches 89\.1 % " + FLOPS.format("surgery")),
    "less, and may end worse": (
        arm(2, spread=0.02, cut=0.5), arm(4, spread=0.02),
        r"surgery against restarting is undecided: .* points for these test images \(95 % interval .* to .*, n = 10\); "
        r".* more seeds would probably show a difference of 0\.5 points\."
    ),
    "alike": (arm(2, cut=1.0), arm(3), r"surgery is as good as restarting within 0\.5 points for these .*"),
    "less, and ends worse": (arm(2, test=0.88, cut=0.5), arm(4), r"restarting is better than surgery by 2\.0 .*"),
    "censored": (
        arm(2, cut=0.5), lambda rng: training([0.5] * 4, test=0.9 + rng.normal(0, 0.001)),
        r"surgery reaches 89\.1 % with less compute than restarting \(10 against 0 of 10 seeds get there\) and ends no "
        r"worse\.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CLAIMS)
def test_a_claim_of_compute_wants_a_shown_ratio_and_no_worse_an_end(tmp_path: Path, case: str) -> None:
    surgery, restart, sentence = CLAIMS[case]
    _, (verdict,) = comparison.summarize(study(tmp_path / "s", surgery, restart))
    said = re.fullmatch(FROM_NOTHING + sentence, verdict["sentence"])
    assert said is not None, verdict["sentence"]
    if case == "censored":
        assert "; 89.1 % on validation reached by 10 of 10, the other arm by 0, adjusted p = " in verdict["details"]
    assert ("reaches" in verdict["sentence"]) == verdict["finding"].endswith("compute")
    if said.groups() and said[2]:
        found = verdict["time_to_accuracy"][-1]["training_flops"]
        expected = (found["ratio"], *found["interval"])
        assert [int(number) for number in said.groups()] == [round(100 * value) for value in expected]
        assert found["p_adjusted"] < 0.05 and found["interval"][1] < 1


def test_against_the_original_nothing_is_claimed_of_compute(tmp_path: Path) -> None:
    """Surgery was the original until its final network began, so that network comes later by construction."""
    _, (verdict,) = comparison.summarize(study(tmp_path / "s", arm(1, cut=3.0, test=0.95), arm(2)))
    (original,) = verdict["others"]
    flops = original["time_to_accuracy"][-1]["training_flops"]
    assert flops["p"] < 0.05 and not flops["sooner"] and flops["p_adjusted"] is None
    assert original["decision"] == "better" and "FLOPs" not in original["sentence"]


@pytest.mark.parametrize(
    ("findings", "line"),
    [
        (["surgery needs less compute"], "surgery needs less compute."),
        (["undecided"], "surgery against restarting is undecided."),
        (["undecided"] * 2, "surgery against restarting is undecided for all 2 schedules."),
        (["surgery is better", "undecided", "surgery is better"],
         "of 3 schedules, surgery is better for 2; undecided for 1."),
    ],
)  # fmt: skip
def test_all_schedules_in_one_line(findings: list[str], line: str) -> None:
    words = "counting all compute from nothing, "
    assert wording.overall([{"finding": finding} for finding in findings]) == words + line


def test_no_original_and_no_targets_mean_no_times(tmp_path: Path) -> None:
    made = Folder.make(tmp_path / "s", Settings(seeds=2, arms=("surgery", "restart")), {"fc1": 8})
    for seed in (1, 2):
        made.ended(Cell("surgery", seed, [STEP], trial=0), training([0.5, 0.9]))
        made.ended(Cell("restart", seed, trial=0), training([0.5, 0.9]))
    rows, (verdict,) = comparison.summarize(made)
    assert verdict["time_to_accuracy"] == [] and rows[0]["reached"] == {}
    results = made.write(rows, [verdict])
    assert figure.time_to_accuracy(results) is None


def test_the_figure_s_steps_lie_where_seeds_arrive(tmp_path: Path) -> None:
    made = study(
        tmp_path / "s", arm(2, cut=0.5), lambda rng: training([0.5, *[0.5 + 0.4 * (rng.random() < 0.5)] * 3]), seeds=6
    )  # fmt: skip
    rows, verdicts = comparison.summarize(made)
    results = made.write(rows, verdicts)
    drawing = figure.time_to_accuracy(results)
    assert drawing is not None
    cells = [c for c in results["comparison"]["cells"] if c["arm"] == "restart"]
    runs = times(cells, verdicts[0]["time_to_accuracy"][-1]["target"])
    assert runs.reached and runs.censored  # else this shows nothing
    lines = {str(line.get_label()): line for line in drawing.figure.axes[-1].lines}
    np.testing.assert_allclose(np.transpose(lines["restart"].get_data())[1:], kaplan_meier(runs))
    assert f"restart {len(runs.reached)} of 6 seeds" in drawing.alt
    bars = [line for line in drawing.figure.axes[-1].lines if line.get_marker() == "|"]
    assert len(bars) == 1 and np.asarray(bars[0].get_xdata()).tolist() == sorted(set(runs.censored))


def test_the_report_has_the_times_and_joules_where_there_are_any(tmp_path: Path) -> None:
    made = study(tmp_path / "s", arm(2, cut=0.5), arm(4), seeds=3)
    for seed in (1, 2, 3):
        made.ended(Cell("restart", seed, trial=0), arm(4)(np.random.default_rng(seed)) | {"joules": 1500.0 * seed})
    rows, verdicts = comparison.summarize(made)
    assert [row["joules"] for row in rows] == [None, None, 3000.0]
    for row in rows:  # what these training runs lack
        row |= {"latency_seconds": {}}
    results = made.write(rows, verdicts, state=state(made))
    report.write(results, tmp_path / "report.html", {})
    text = " ".join((tmp_path / "report.html").read_text().split())
    assert 'class="number">Joules</th>' in text and 'class="number">3,000</td>' in text
    assert '<th scope="col" class="number">89.1%</th>' in text
    median = rows[2]["seconds_to"]["0.8910"]
    assert f'<td class="number">{median:.2f} (3)</td>' in text
    for row in rows:
        row["joules"] = None
    results = made.write(rows, verdicts, state=state(made))
    report.write(results, tmp_path / "report.html", {})
    assert "Joules" not in (tmp_path / "report.html").read_text()
