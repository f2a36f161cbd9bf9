"""Which schedules are compared, with which training runs, and what is concluded."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from network_surgery.study.arms import RIVALS
from network_surgery.study.config import ARMS, Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.evidence import comparison
from network_surgery.study.evidence.significance import (
    bootstrap,
    compare_paired,
    effect,
    holm,
    permutation,
    seeds_needed,
)
from network_surgery.study.search import comparing
from network_surgery.study.store.folder import Folder, Record
from network_surgery.study.training.cell import Cell
from tests.study.operated import operated, spiked

THREE = ("original", "surgery", "restart")
BETTER = r" is better than {} by (\S+) points for these test images \(95 % interval (\S+) to (\S+), n = 5\)\."
ZERO, GIVEN = "Counting all compute from nothing, ", "The large network being there, "
FIRST = "operating first, at equal FLOPs"
STEP = {"when": "1ep", "layer": "fc1"}


def outcome(accuracy: float, parameters: int = 100, seconds: float = 1.0, changed: bool = True) -> dict[str, Any]:
    operation = operated(units_after=4 if changed else 8, parameters_after=100 if changed else 200, iteration=5)
    return {
        "validation_metric": accuracy, "validation_loss": 1 - accuracy, "test_metric": accuracy,
        "parameters": parameters, "flops": 10,
        "training_flops": 1000, "seconds": seconds, "operations": [operation], "spikes": [spiked(2.0)],
        "architecture": {"w": [2]}, "steps": 50, "operation_seconds": 0.1,
        "epochs": [
            {"epoch": float(n), "train_seconds": (seconds - 0.1) / 10, "validation_metric": accuracy}
            for n in range(1, 11)
        ],
    }  # fmt: skip


def trial(number: int, op: str, accuracy: float, **changes: Any) -> Record:
    cell = Cell("search", 0, [{**STEP, "op": op, "keep": 0.5}], trial=number)
    return Record(cell, outcome(accuracy, **changes))


def numbers(chosen: list[Record]) -> list[int | None]:
    return [record.cell.trial for record in chosen]


def test_the_best_of_every_operation_comes_first() -> None:
    trials = [
        trial(0, "min_weight", 0.97), trial(1, "min_weight", 0.99), trial(2, "pcns", 0.98),
        trial(3, "pcns", 0.999, changed=False), Record(Cell("search", 0, trial=4), {"failure": "nan"}),
        trial(5, "min_weight", 0.985),
    ]  # fmt: skip
    assert numbers(comparing.choose(trials, Settings(top=2))) == [1, 2]
    assert numbers(comparing.choose(trials, Settings(top=3))) == [1, 2, 5]
    assert numbers(comparing.choose(trials, Settings(top=9))) == [1, 2, 5, 0]


def test_equal_accuracy_prefers_the_smaller_network() -> None:
    trials = [trial(0, "pcns", 0.98, parameters=200), trial(1, "pcns", 0.98, parameters=50)]
    assert numbers(comparing.choose(trials, Settings(top=1))) == [1]


def test_several_objectives_choose_from_the_front() -> None:
    settings = Settings(top=4, objective=("accuracy", "parameters"))
    trials = [
        trial(0, "a", 0.99, parameters=200), trial(1, "b", 0.98, parameters=300), trial(2, "c", 0.97, parameters=50)
    ]  # fmt: skip
    assert numbers(comparing.choose(trials, settings)) == [0, 2]


def test_of_many_on_the_front_the_bend_comes_before_the_ends() -> None:
    settings = Settings(top=2, objective=("accuracy", "parameters"))
    trials = [
        trial(0, "a", 0.99, parameters=900), trial(1, "b", 0.985, parameters=850), trial(2, "c", 0.95, parameters=100),
        trial(3, "d", 0.5, parameters=90),
    ]  # fmt: skip
    assert numbers(comparing.choose(trials, settings)) == [0, 2]
    assert numbers(comparing.choose(trials, Settings(top=9, objective=settings.objective)))[:2] == [0, 2]


@pytest.mark.parametrize("objective", [("accuracy",), ("accuracy", "seconds")])
def test_a_trial_that_was_stopped_is_never_compared(objective: tuple[str, ...]) -> None:
    trials = [trial(0, "a", 0.9), trial(1, "b", 0.99)]
    trials[1].result["stopped"] = 2
    assert numbers(comparing.choose(trials, Settings(objective=objective))) == [0]
    assert comparing.choose(trials[1:], Settings(objective=objective)) == []


def run_all(source: Any, accuracy: Any) -> list[Record]:
    done = []
    while not source.finished:
        cell = source.next()
        record = Record(cell, outcome(accuracy(cell)))
        source.tell(cell, record.result)
        done.append(record)
    return done


def test_every_arm_has_the_same_seeds_and_restarts_follow_their_surgery() -> None:
    without = (
        "gradmax",
        "net2net",
        "stacking",
        "prune_end_rewind_lr",
    )  # of growth, and of a learning rate that changes
    settings = Settings(top=2, seeds=3, seed=7, arms=tuple(arm for arm in ARMS if arm not in without))
    chosen = [trial(1, "min_weight", 0.99), trial(2, "pcns", 0.98)]
    source = comparing.cells([record.cell for record in chosen], settings, [])
    done = run_all(source, lambda cell: 0.9)
    assert len(done) == source.total == 3 * (1 + 2 * (1 + len(RIVALS) - len(without)))
    seeds: dict[Any, list[int]] = {}
    for record in done:
        seeds.setdefault((record.cell.arm, record.cell.trial), []).append(record.cell.seed)
    assert all(sorted(found) == [8, 9, 10] for found in seeds.values())  # not the search's own seed
    assert all(record.cell.test for record in done)
    restarts = [record.cell for record in done if record.cell.arm.startswith("restart")]
    assert len(restarts) == 6 * 3 * 2
    assert all(cell.architecture == {"w": [2]} and not cell.schedule for cell in restarts)
    order = [record.cell.name for record in done]
    assert order.index("restart_flops-001-seed-8") == order.index("surgery-001-seed-8") + 1


@pytest.mark.parametrize("first", ["original", "surgery"])
@pytest.mark.parametrize("failed", [False, True])
def test_who_learns_from_the_original_waits_until_it_has_ended(first: str, failed: bool) -> None:
    settings = Settings(top=1, seeds=1, arms=("original", "surgery", "restart", "distill"))
    source = comparing.cells([trial(1, "min_weight", 0.99).cell], settings, [])
    both = {cell.arm: cell for cell in (source.next(), source.next()) if cell}
    for arm in sorted(both, key=lambda arm: arm != first):
        source.tell(both[arm], {"failure": "lost"} if failed and arm == "original" else outcome(0.9))
    found = {cell.arm: cell for cell in iter(source.next, None) if cell}
    for cell in found.values():
        source.tell(cell, outcome(0.9))
    assert set(found) == {"restart"} | ({"distill"} if not failed else set()) and source.finished
    assert source.total == 2 + len(found)
    if not failed:
        assert found["distill"].teacher == both["original"].name and found["distill"].sunk["epochs"] == 10


def test_only_missing_trainings_are_run() -> None:
    settings = Settings(top=1, seeds=2, arms=THREE)
    chosen = [trial(1, "min_weight", 0.99)]
    everything = run_all(comparing.cells([record.cell for record in chosen], settings, []), lambda cell: 0.9)
    assert comparing.cells([record.cell for record in chosen], settings, everything).finished
    without = [record for record in everything if record.cell.name != "restart-001-seed-2"]
    again = run_all(comparing.cells([record.cell for record in chosen], settings, without), lambda cell: 0.9)
    assert [record.cell.name for record in again] == ["restart-001-seed-2"]
    more = run_all(
        comparing.cells([record.cell for record in chosen], Settings(top=1, seeds=3, arms=THREE), everything),
        lambda cell: 0.9,
    )
    assert {record.cell.seed for record in more} == {3}


def test_paired_statistics_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0.95, 0.01, 8), rng.normal(0.94, 0.01, 8)
    mean, interval, p = compare_paired(list(one - other))
    reference = stats.ttest_rel(one, other)
    assert mean == pytest.approx(np.mean(one - other))
    assert p == pytest.approx(reference.pvalue)
    assert interval == pytest.approx(list(reference.confidence_interval(0.95)))
    assert compare_paired([0.1]) == (0.1, None, None)
    assert compare_paired([0.1, 0.1])[1:] == (None, None)


def test_holm_agrees_with_its_definition() -> None:
    assert holm([0.02, None, 0.02]) == [0.04, None, 0.04]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_exchanged_signs_agree_with_all_of_them() -> None:
    differences = [0.3, -0.1, 0.4, 0.2, 0.5, 0.05]
    signs = itertools.product((1, -1), repeat=6)
    means = [abs(np.mean(np.multiply(differences, each))) for each in signs]
    share = np.mean([mean >= np.mean(differences) - 1e-12 for mean in means])
    assert permutation(differences) == pytest.approx(share)
    assert permutation([0.1, 0.1]) is bootstrap([0.1]) is effect([0.1, 0.1]) is None


@pytest.mark.parametrize(("size", "seeds"), [(0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_power_of_a_paired_test_is_that_of_the_tables(size: float, seeds: int) -> None:
    """Cohen 1988: pairs for a power of 0.8 at 0.05, two-sided."""
    assert seeds_needed(1.0, size) == seeds
    assert seeds_needed(0.0, 0.5) is None


def test_where_the_samples_alone_leave_too_much_no_number_of_seeds_is_enough() -> None:
    assert seeds_needed(1.0, 0.5, floor=0.5) is None
    few, more = seeds_needed(1.0, 0.5), seeds_needed(1.0, 0.5, floor=0.1)
    assert few is not None and more is not None and few < more


def test_the_power_at_a_stricter_level_is_that_of_simulated_tests() -> None:
    level = 0.05 / 3
    n = seeds_needed(1.0, 0.8, level=level)
    assert n is not None and n > (seeds_needed(1.0, 0.8) or 0)
    samples = np.random.default_rng(0).normal(0.8, 1, (20_000, n))
    shown = [float(np.mean(stats.ttest_1samp(samples[:, :m], 0, axis=1).pvalue < level)) for m in (n - 1, n)]
    assert shown[0] < 0.81 and 0.79 < shown[1] < 0.85


def test_resampling_covers_the_mean_of_skewed_differences() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = bootstrap(list(rng.exponential(1.0, 30))) or (0.0, 0.0)
        covered += low <= 1.0 <= high
    assert 85 <= covered <= 99


def test_arms_are_averaged_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    chosen = trial(0, "min_weight", 0.99)
    settings = Settings(seeds=2, arms=("surgery", "restart"), schedules=(chosen.cell.schedule,))  # type: ignore[arg-type]
    folder = Folder.make(tmp_path / "s", settings, {"fc1": 8})
    for seed, accuracy in ((1, 0.9), (2, 0.1)):
        folder.ended(Cell("surgery", seed, chosen.cell.schedule, trial=0), outcome(accuracy))
        result = {"failure": "the loss became nan"} if seed == 2 else outcome(accuracy)
        folder.ended(Cell("restart", seed, trial=0), result)
    (surgery, restart), (verdict,) = comparison.summarize(folder)
    assert surgery["n"] == restart["n"] == 1 and surgery["metric"] == pytest.approx(0.9)
    assert "1 more failed in one arm" in verdict["details"] and "nothing can be said" in verdict["finding"]
    assert verdict["sentence"] == "Nothing can be said without a spread between seeds (n = 1)."


def test_what_a_lost_process_left_is_tried_again_and_what_diverged_is_not() -> None:
    settings = Settings(top=1, seeds=1)
    chosen = [trial(1, "min_weight", 0.99)]
    done = [
        Record(Cell("original", 1, test=True), {"failure": "the trial's process was lost", "lost": True}),
        Record(Cell("surgery", 1, chosen[0].cell.schedule, trial=1, test=True), {"failure": "the loss became nan"}),
    ]
    again = comparing.cells([record.cell for record in chosen], settings, done)
    assert again.total == 1 and (cell := again.next()) is not None and cell.arm == "original"


@pytest.mark.parametrize(
    ("gain", "spread", "finding", "sentence"),
    [
        (0.02, 0.001, "surgery is better", "surgery" + BETTER.format("restarting")),
        (-0.02, 0.001, "restarting is better", "restarting" + BETTER.format("surgery")),
        (0.001, 0.02, "undecided",
         r"surgery against restarting is undecided: (\S+) points for these test images \(95 % interval (\S+) to (\S+), "
         r"n = 5\); (\d+) to (\S+) more seeds would probably show a difference of 0\.5 points\."),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_interval_says(
    tmp_path: Path, gain: float, spread: float, finding: str, sentence: str
) -> None:
    settings = Settings(top=1, seeds=5, arms=THREE, trials=1)
    folder = Folder.make(tmp_path / "s", settings, {"fc1": 8})
    chosen = trial(1, "min_weight", 0.99)
    folder.ended(chosen.cell, chosen.result)
    noise = np.random.default_rng(1).normal(0, spread, 20)

    def accuracy(cell: Cell) -> float:
        return 0.9 + (gain if cell.arm == "surgery" else 0) + noise[2 * cell.seed + (cell.arm == "surgery")]

    for record in run_all(comparing.cells([chosen.cell], settings, []), accuracy):
        folder.ended(record.cell, record.result)
    rows, (verdict,) = comparison.summarize(folder)
    assert [row["arm"] for row in rows] == ["original", "surgery", "restart"]
    assert verdict["finding"] == finding and verdict["n"] == 5
    assert "min_weight keep 0.5 on fc1 at 1ep" in verdict["details"]
    (other,) = verdict["others"]
    assert other["arm"] == "original" and other["sentence"].startswith("original, uninterrupted: ")
    differences = [accuracy(Cell("surgery", seed)) - accuracy(Cell("restart", seed)) for seed in range(1, 6)]
    assert verdict["effect"] == pytest.approx(np.mean(differences) / np.std(differences, ddof=1))
    assert verdict["bootstrap"][0] <= verdict["difference"] <= verdict["bootstrap"][1]
    assert verdict["p_permutation"] >= 2 / 2**5
    said = re.fullmatch(ZERO + sentence, verdict["sentence"])
    assert said is not None, verdict["sentence"]
    if finding == "undecided":
        low, high = verdict["more_seeds"]
        assert (said[4], said[5]) == (f"{low}", f"{high:,}") and 50 < low < high
    else:
        low, high = (abs(bound) for bound in stats.ttest_1samp(differences, 0).confidence_interval(0.95))
        expected = [abs(np.mean(differences)), min(low, high), max(low, high)]
        assert [float(number) for number in said.groups()] == pytest.approx([100 * e for e in expected], abs=0.05)
    content = folder.write(rows, [verdict])
    assert len(content["comparison"]["cells"]) == 15 and len(content["trials"]) == 1
    assert "architecture" in content["trials"][0]


@pytest.mark.parametrize(("gain", "sentence"), [
    (0.02, "surgery" + BETTER.format(FIRST)), (-0.02, FIRST + BETTER.format("surgery")),
])  # fmt: skip
def test_with_given_weights_the_verdict_is_about_operating_first(tmp_path: Path, gain: float, sentence: str) -> None:
    arms = ("surgery", "restart", "operate_first", "operate_first_flops")
    settings = Settings(top=1, seeds=5, start="w.pt", arms=arms, trials=1)
    folder = Folder.make(tmp_path / "s", settings, {"fc1": 8})
    chosen = trial(1, "min_weight", 0.99)
    folder.ended(chosen.cell, chosen.result)
    noise = np.random.default_rng(1).normal(0, 0.001, 20)
    lead = {"surgery": gain, "restart": -0.5}

    def accuracy(cell: Cell) -> float:
        return 0.9 + lead.get(cell.arm, 0.0) + noise[2 * cell.seed + (cell.arm == "surgery")]

    for record in run_all(comparing.cells([chosen.cell], settings, []), accuracy):
        folder.ended(record.cell, record.result)
    _, (verdict,) = comparison.summarize(folder)
    assert verdict["arm"] == "operate_first_flops" and verdict["difference"] == pytest.approx(gain, abs=0.005)
    assert re.fullmatch(GIVEN + sentence, verdict["sentence"]) and f", {FIRST} " in verdict["details"]
    restart, epochs = verdict["others"]
    assert (restart["arm"], epochs["arm"]) == ("restart", "operate_first")
    assert restart["finding"] == "surgery is better" and epochs["decision"] == verdict["decision"]
    assert restart["accounting"] == "given" and verdict["also"] is None  # nobody knows what the weights had cost


def test_the_ledger_survives_a_line_cut_off(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "s", Settings(), {"fc1": 8})
    record = trial(1, "min_weight", 0.99)
    folder.ended(record.cell, record.result)
    with (tmp_path / "s" / "cells.jsonl").open("a") as ledger:
        ledger.write('\n{"cell": {"arm": "sea')
    reopened = Folder.open(tmp_path / "s")
    (found,) = reopened.records()
    assert found.cell == record.cell and found.result == record.result
    later = trial(2, "pcns", 0.98)
    reopened.ended(later.cell, later.result)
    assert [r.cell.trial for r in reopened.records()] == [1, 2]


def test_one_process_at_a_time_runs_a_study(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "s", Settings(), {"fc1": 8})
    with (
        folder.locked(),
        pytest.raises(StudyError, match="is being run by another process"),
        Folder.open(tmp_path / "s").locked(),
    ):
        pass
    with folder.locked():
        pass


def test_a_folder_is_neither_overwritten_nor_mistaken(tmp_path: Path) -> None:
    Folder.make(tmp_path / "s", Settings(), {"fc1": 8})
    with pytest.raises(StudyError, match="holds a study already; continue it with 'surgery resume"):
        Folder.make(tmp_path / "s", Settings(), {"fc1": 8})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(StudyError, match="is not empty"):
        Folder.make(tmp_path / "other", Settings(), {"fc1": 8})
    with pytest.raises(StudyError, match="there is no study in"):
        Folder.open(tmp_path / "other")


@pytest.mark.parametrize("untouched", [1, 3])
def test_a_schedule_that_never_operated_is_said_to(tmp_path: Path, untouched: int) -> None:
    steps = [{"when": "redundancy(0.010203) >= 0.90001 from 1ep every 1ep at most 1", "layer": "fc1", "op": "pcns"}]
    settings = Settings(seeds=3, schedules=(steps,), arms=("surgery", "restart"))
    folder = Folder.make(tmp_path / "s", settings, {"fc1": 8})
    for seed in (1, 2, 3):
        still = {"operations": [], "spikes": []} if seed <= untouched else {}
        gain = 0.0 if still else 0.01 * seed
        folder.ended(Cell("surgery", seed, steps, trial=0), outcome(0.9 + gain) | still)
        folder.ended(Cell("restart", seed, trial=0), outcome(0.9))
    (surgery, _), (verdict,) = comparison.summarize(folder)
    assert (surgery["spike_factor"] is None) == (untouched == 3)
    assert f"its condition was never met in {untouched}" in verdict["details"]
    assert ("never operated" in verdict["finding"]) == ("never operated" in verdict["sentence"]) == (untouched == 3)
    assert "when redundancy(0.010203) >= 0.90001" in verdict["label"]


@pytest.mark.parametrize("arms", [("surgery",), ("original", "surgery"), ("surgery", "restart")])
def test_only_the_arms_that_are_asked_for(arms: tuple[str, ...]) -> None:
    source = comparing.cells([trial(1, "min_weight", 0.99).cell], Settings(seeds=2, arms=arms), [])
    done = run_all(source, lambda cell: 0.9)
    assert {record.cell.arm for record in done} == set(arms) and len(done) == source.total == 2 * len(arms)
