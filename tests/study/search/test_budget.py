"""Budgets: what they mean, which are refused, and what becomes of trials beyond them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from network_surgery.study import conduct, result
from network_surgery.study.compose import compose
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.evidence.feasible import budget_note, feasibility
from network_surgery.study.search import comparing, searching
from network_surgery.study.search.budget import Budget, check, needs_original, original_cell
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.search.samplers import knows_constraints
from network_surgery.study.search.sources import Chain, Listed, Repeated
from network_surgery.study.search.space import shares
from network_surgery.study.store.folder import Folder
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.cell import Cell
from tests.study.operated import operated
from tests.tiers import long

PERPLEXITY = Metric("perplexity", "lower", margin=0.05)
ORIGINAL = {"parameters": 1000, "flops": 5000}
LEAST = {"parameters": 50, "flops": 100}
#: What the original has reached, too.
REACHED = {**ORIGINAL, "validation_metric": 0.9, "latency_seconds": {"1": 0.002}, "bytes": 8000}
LAYERS = {"conv1": 32, "fc1": 96}


def budget(metric: Metric = ACCURACY, **limits: float) -> Budget:
    return Budget.of(Settings(budget=limits, objective=("flops",)), metric, REACHED)


@pytest.mark.parametrize(
    ("limits", "outcome", "within"),
    [
        ({"parameters": 0.2}, {"parameters": 200}, True),
        ({"parameters": 0.2}, {"parameters": 201}, False),
        ({"parameters": 300}, {"parameters": 300}, True),
        ({"parameters": 1}, {"parameters": 1000}, True),  # the original's size, not one parameter
        ({"flops": 0.5}, {"flops": 2501}, False),
        ({"bytes": 4000}, {"bytes": 4000}, True),
        ({"latency": 0.5}, {"latency_seconds": {"1": 0.00101}}, False),
        ({"latency": 1.5}, {"latency_seconds": {"1": 0.0014}}, True),  # milliseconds
        ({"accuracy": -0.005}, {"validation_metric": 0.895}, True),
        ({"accuracy": -0.005}, {"validation_metric": 0.894}, False),
        ({"accuracy": 0}, {"validation_metric": 0.9}, True),
        ({"parameters": 0.2, "accuracy": -0.01}, {"parameters": 100, "validation_metric": 0.8}, False),
        ({"parameters": 0.2}, {}, True),  # of what is not known nothing is said
    ],
)
def test_a_limit_is_a_fraction_of_the_original_or_a_number(
    limits: dict[str, float], outcome: dict[str, Any], within: bool
) -> None:
    assert budget(**limits).feasible(outcome) is within
    assert (budget(**limits).distance(outcome) == 0) is within


def test_a_metric_may_change_in_its_own_direction() -> None:
    known = budget(PERPLEXITY, perplexity=0.1)
    assert known.feasible({"validation_metric": 1.0}) and not known.feasible({"validation_metric": 1.01})
    assert known.sentence == "perplexity at most 0.100 above the original's"


def test_violations_are_relative_to_the_limit() -> None:
    found = budget(parameters=0.2, flops=0.5).violations({"parameters": 300, "flops": 2000})
    assert found == pytest.approx({"parameters": 0.5, "flops": -0.2}, abs=1e-6)
    assert budget(parameters=0.2, flops=0.5).distance({"parameters": 300, "flops": 2000}) == pytest.approx(0.5)


def test_a_budget_in_words() -> None:
    assert budget(parameters=0.2, accuracy=-0.005).sentence == (
        "at most 200 parameters (20 % of the original's 1,000), accuracy at most 0.50 points below the original's"
    )
    assert budget(flops=2000).sentence == "at most 2,000 FLOPs (the original has 5,000)"
    unknown = Budget.of(Settings(budget={"latency": 0.5}), ACCURACY, {})
    assert unknown.sentence == "latency at most 50 % of the original's"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parameters": 0}, "budget has parameters: 0, but it must be a fraction of the original"),
        ({"flops": -0.5}, "budget has flops: -0.5, but it must be a fraction of the original"),
        ({"flops": 1.5}, "or a whole number above 1"),
        ({"latency": 0}, "or a number of milliseconds above 1"),
        ({"bytes": float("inf")}, "budget is {'bytes': inf}, but it must be a mapping such as"),
        ({}, "must be a mapping such as {parameters: 0.2, flops: 0.5}"),
        ("parameters", "must be a mapping such as"),
        ("parameters=few", "must be a mapping such as"),
        (["parameters"], "must be a mapping such as"),
        ({"parameters": True}, "must be a mapping such as"),
        ({"accuracy": -0.1, "loss": 0.1}, "budget limits 'accuracy' and 'loss', but besides parameters"),
    ],
)
def test_what_is_no_budget_for_any_task(given: Any, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        Settings(budget=given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limits", "metric", "message"),
    [
        ({"flop": 0.5}, ACCURACY, "budget has 'flop', but it can limit parameters, flops, .*did you mean 'flops'"),
        ({"perplexity": 0.1}, ACCURACY, "budget has 'perplexity', but it can limit .*, accuracy"),
        ({"accuracy": 0.005}, ACCURACY, r"higher is better, so what may be lost is written -0\.005"),
        ({"metric": -0.1}, PERPLEXITY, r"lower is better, so what may be lost is written \+0\.1"),
        ({"accuracy": -1}, ACCURACY, r"accuracy is a fraction: a point is -0\.01"),
        ({"parameters": 2000}, ACCURACY, "budget has parameters: 2,000, but the original only has 1,000"),
        ({"parameters": 0.04}, ACCURACY, "budget allows 40 parameters, but with two units .* still has 50"),
        ({"flops": 99}, ACCURACY, "budget allows 99 FLOPs, but with two units .* still has 100"),
    ],
)
def test_what_this_task_and_network_cannot_meet(limits: dict[str, float], metric: Metric, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        check(Settings(budget=limits, objective=("flops",)), metric, ORIGINAL, LEAST)


def test_what_can_be_met_is_not_refused() -> None:
    for limits in ({"parameters": 1000}, {"parameters": 0.05}, {"latency": 100}, {"accuracy": -0.005}, {"metric": 0}):
        check(Settings(budget=limits, objective=("flops",)), ACCURACY, ORIGINAL, LEAST)


def test_the_budget_decides_what_is_searched_by_default() -> None:
    assert (Settings().space, Settings().objective) == ("mixed", ("loss",))
    small = Settings(budget="parameters=0.2, accuracy=-0.005")
    assert small.budget == {"parameters": 0.2, "accuracy": -0.005}
    assert (small.space, small.objective) == ("shrink", ("loss",))
    assert Settings(budget={"accuracy": -0.005}).objective == ("parameters",)  # else nothing would shrink
    with pytest.raises(StudyError, match="budget only limits accuracy, and the objective is metric, so nothing says"):
        Settings(budget={"accuracy": -0.005}, objective=("metric",))
    assert Settings(budget={"flops": 0.5}, space="removal", objective=("metric",)).space == "removal"
    assert Settings(budget="none").budget is None


@pytest.mark.parametrize("question", [{"space": "mixed"}, {"objective": "accuracy,flops"}, {"budget": "none"}])
def test_whoever_asks_something_else_has_not_the_budget_of_a_preset(question: dict[str, Any]) -> None:
    assert compose("digits", None, {}).budget == {"parameters": 0.2}
    assert compose("digits", None, {"epochs": 5}).budget == {"parameters": 0.2}
    assert compose("digits", None, question).budget is None
    assert compose("digits", None, {"budget": "flops=0.5"}).budget == {"flops": 0.5}


def test_a_space_is_told_fractions() -> None:
    settings = Settings(budget={"parameters": 0.2, "flops": 1000, "latency": 0.5, "accuracy": -0.01})
    assert shares(settings, ORIGINAL) == {"parameters": 0.2, "flops": 0.2}


def test_which_samplers_know_of_budgets() -> None:
    for name in ("tpe", "TPESampler(n_startup_trials=5)", "optuna:NSGAIISampler", "GPSampler", "mine.py:make"):
        assert knows_constraints(name)
    assert not knows_constraints("RandomSampler") and not knows_constraints("CmaEsSampler()")


def outcome(cell: Cell) -> dict[str, Any]:
    """The less is kept, the worse; the number of parameters is what is kept."""
    keep = cell.params["keep"]
    return {
        "validation_metric": keep, "validation_loss": 1 - keep, "parameters": round(1000 * keep), "flops": 10,
        "seconds": 1.0, "operations": [operated()], "spikes": [], "epochs": [],
    }  # fmt: skip


def searched(path: Path, **settings: Any) -> tuple[Folder, Sampled]:
    chosen = {"budget": {"parameters": 0.5}, "space": "eigen_remove", "trials": 24, "racing": 1, **settings}
    folder = Folder.make(path, Settings(epochs=6, generation=4, **chosen), LAYERS, original=ORIGINAL)
    source = Sampled(
        folder.settings, folder.layers, folder.optuna, budget=lambda: comparing.budget_of(folder),
        original=folder.original,
    )  # fmt: skip
    while not source.finished:
        running = []
        while (cell := source.next()) is not None:
            running.append(cell)
        for cell in running:
            found = outcome(cell)
            folder.ended(cell, found)
            source.tell(cell, found)
    return folder, source


@pytest.mark.parametrize("sampler", ["tpe", "NSGAIISampler(population_size=4)", long("GPSampler(n_startup_trials=8)")])
def test_a_search_learns_to_stay_within_the_budget(tmp_path: Path, sampler: str) -> None:
    """The best value that there is lies at the budget: at first trials lie anywhere, later most are within it."""
    trials = 16 if sampler.startswith("GP") else 24  # it takes seconds for each
    folder, source = searched(tmp_path / "s", sampler=sampler, trials=trials)
    over = [trial.constraints["parameters"] for trial in source.study.trials]
    assert over == pytest.approx([r.result["parameters"] / 500 - 1 for r in folder.records("search")], abs=1e-6)
    free, _ = searched(tmp_path / "free", sampler=sampler, trials=trials, budget={"parameters": 1.0})
    late = [r.result["parameters"] > 500 for r in folder.records("search")[8:]]
    unbound = [r.result["parameters"] > 500 for r in free.records("search")[8:]]
    assert sum(late) < sum(unbound)
    (best,) = comparing.find_chosen(folder)[:1]
    within = [r.result["parameters"] for r in folder.records("search") if r.result["parameters"] <= 500]
    assert best.result["parameters"] == max(within)


def test_infeasible_trials_are_told_apart_everywhere(tmp_path: Path) -> None:
    folder, source = searched(tmp_path / "s", trials=12)
    far = {r.cell.trial for r in folder.records("search") if r.result["parameters"] > 500}
    assert 0 < len(far) < 12
    assert {t.number for t in source.study.trials if t.user_attrs.get("infeasible")} == far
    assert all((t.user_attrs["over the budget: parameters"] > 0) == (t.number in far) for t in source.study.trials)
    results = conduct.write_report(folder)
    assert {t["trial"] for t in results["trials"] if t["state"] == "infeasible"} == far
    assert all((t["violations"]["parameters"] > 0) == (t["trial"] in far) for t in results["trials"])
    assert results["original"] == ORIGINAL
    assert results["budget"]["limits"]["parameters"] | {"words": ""} == {
        "setting": 0.5, "original": 1000.0, "limit": 500.0, "words": "",
    }  # fmt: skip
    assert (results["budget"]["feasible"], results["budget"]["of"]) == (12 - len(far), 12)
    assert results["budget"]["sentence"] is None
    table = result.Result(folder).trials
    assert set(table.index[table["state"] == "infeasible"]) == far and "violations.parameters" in table
    assert not {record.cell.trial for record in comparing.find_chosen(folder)} & far
    assert "over the budget in parameters by" in folder.report.read_text()
    assert budget_note(folder) == "budget: at most 500 parameters (50 % of the original's 1,000)"
    json.dumps(results)


def test_where_none_is_feasible_the_nearest_are_compared_and_it_is_said(tmp_path: Path) -> None:
    folder, _ = searched(tmp_path / "s", trials=4, budget={"parameters": 0.1}, top=2)
    nearest = sorted(folder.records("search"), key=lambda record: record.result["parameters"])
    assert {r.cell.trial for r in comparing.find_chosen(folder)} == {r.cell.trial for r in nearest[:2]}
    said = feasibility(folder)["sentence"]
    assert said.startswith(
        "none of the 4 trials meets the budget (at most 100 parameters (10 % of the original's 1,000))"
    )
    assert f"trial {nearest[0].cell.trial}, which exceeds it in parameters by " in said


def test_a_front_of_several_objectives_is_of_feasible_trials(tmp_path: Path) -> None:
    folder, _ = searched(tmp_path / "s", trials=12, objective=("accuracy", "parameters"), racing=3)
    front = conduct.write_report(folder)["front"]
    within = {r.cell.trial for r in folder.records("search") if r.result["parameters"] <= 500}
    assert set(front["trials"]) <= within and {t for t, _ in front["history"]} == within
    assert {r.cell.trial for r in comparing.find_chosen(folder)} <= set(front["trials"])
    assert comparing.race_of(folder).missing == () and comparing.expect(folder.settings) == 0


def test_an_old_study_reads_as_before(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "s", Settings(objective=("metric",)), LAYERS)
    about = json.loads((folder.path / "study.json").read_text())
    del about["original"], about["checksum"]
    for name in ("budget", "controls", "racing", "finalists"):
        del about["settings"][name]
    (folder.path / "study.json").write_text(json.dumps(about))
    old = Folder.open(folder.path)
    assert (old.settings.controls, old.settings.racing, old.settings.budget) == (True, 1, None)
    assert (old.settings.objective, old.settings.space, old.original) == (("metric",), "mixed", {})
    assert not comparing.budget_of(old) and feasibility(old) == {} and comparing.race_of(old).left == 0


def test_the_original_is_trained_first_where_the_budget_compares_with_it(tmp_path: Path) -> None:
    limits = {"parameters": 0.5, "accuracy": -0.01}
    settings = Settings(budget=limits, trials=2, generation=2, epochs=4, top=1, racing=2, finalists=2, seed=7)
    folder = Folder.make(tmp_path / "s", settings, LAYERS, original=ORIGINAL)
    assert needs_original(settings) and not needs_original(Settings(budget={"parameters": 0.5, "latency": 9}))
    assert comparing.first(folder) == [original_cell(settings)] == [Cell("original", 7)]
    source, seen = searching.search(folder, 10, lambda: 2), list[str]()
    assert source.total == 1 + 2 + (2 + 1)
    while not source.finished:
        running = []
        while (cell := source.next()) is not None:
            running.append(cell)
        seen.append(" ".join(sorted(f"{cell.arm}-{cell.seed}" for cell in running)))
        for cell in running:
            value = 0.9 if cell.arm == "original" else 0.895 - 0.1 * (cell.trial == 1)
            found = outcome(Cell("search", 0, params={"keep": 0.4})) | {"validation_metric": value}
            folder.ended(cell, found)
            source.tell(cell, found)
    assert seen == ["original-7", "search-7 search-7", ""] or seen[:2] == ["original-7", "search-7 search-7"]
    assert [r.cell.trial for r in comparing.find_chosen(folder)] == [0]
    assert comparing.first(folder) == [] and searching.search(folder, 10, lambda: 2).total == 0
    assert all(not record.compared for record in folder.records())
    summary = conduct.write_report(folder)["comparison"]
    assert summary["summary"] == [] and summary["cells"] == []


def test_sources_in_a_chain_come_one_after_another() -> None:
    cells = [Cell("original", seed) for seed in range(4)]
    asked = iter([(cells[2:3], 2), (cells[3:], 1), ([], 0)])
    source = Chain(Listed(cells[:2]), Repeated(lambda: next(asked, ([], 0)), 2))
    assert source.total == 4
    for expected in (cells[:2], cells[2:3], cells[3:]):
        got = []
        while (cell := source.next()) is not None:
            got.append(cell)
        assert got == expected and not source.finished
        for cell in got:
            assert source.epoch(cell, {})
            source.tell(cell, {})
    assert source.finished and source.total == 4


def test_what_was_lost_is_not_asked_for_for_ever() -> None:
    cell = Cell("racing", 1000, trial=0)
    source = Repeated(lambda: ([cell], 1), 1)
    assert source.next() == cell
    source.tell(cell, {"failure": "the process was lost", "lost": True})
    assert source.finished and source.total == 1


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
