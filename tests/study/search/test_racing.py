"""The race of a search's best schedules on more seeds: who runs on which, who is left, and that it resumes anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pytest

from network_surgery.study import conduct
from network_surgery.study.config import REPEATS_FROM, Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.evidence.race import reason
from network_surgery.study.evidence.state import state
from network_surgery.study.result import Result
from network_surgery.study.search import comparing
from network_surgery.study.search.sources import Repeated
from network_surgery.study.store.folder import Folder
from network_surgery.study.training.cell import Cell
from tests.study.operated import operated

Loss = Callable[[int, int], float]


def outcome(loss: float, parameters: int = 100) -> dict[str, Any]:
    return {
        "validation_metric": 1 - loss, "validation_loss": loss, "parameters": parameters, "flops": 10, "seconds": 1.0,
        "operations": [operated()], "spikes": [], "epochs": [],
    }  # fmt: skip


def searched(path: Path, losses: list[float], **settings: Any) -> Folder:
    """A search that has ended, on seed 5."""
    about = {"trials": len(losses), "seed": 5, "top": 1, "budget": {"parameters": 0.5}} | settings
    folder = Folder.make(path, Settings(epochs=4, **about), {"fc1": 8}, original={"parameters": 300, "flops": 10})
    for number, loss in enumerate(losses):
        schedule = [{"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}]
        folder.ended(Cell("search", 5, schedule, trial=number, params={"keep": 0.5}), outcome(loss))
    return folder


def run(folder: Folder, loss: Loss, most: int = 10**6) -> list[tuple[int, int]]:
    """Runs the race, or its first ``most`` cells, and returns the trials and seeds in their order."""
    ran: list[tuple[int, int]] = []

    def ask() -> tuple[Any, int]:
        race = comparing.race_of(folder)
        return race.missing, race.left

    source = Repeated(ask, comparing.race_of(folder).left)
    expected = source.total
    while not source.finished and len(ran) < most:
        cell = source.next()
        assert cell is not None and cell.trial is not None and cell.arm == "racing" and not cell.test
        result = outcome(loss(cell.trial, cell.seed))
        folder.ended(cell, result)
        source.tell(cell, result)
        ran.append((cell.trial, cell.seed))
    assert len(ran) <= expected
    return ran


LOSSES = [0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8]
SECOND, THIRD = 5 + REPEATS_FROM, 5 + REPEATS_FROM + 1


def test_each_seed_halves_those_that_are_left(tmp_path: Path) -> None:
    folder = searched(tmp_path / "s", LOSSES)
    ran = run(folder, lambda trial, seed: LOSSES[trial])
    assert sorted(ran[:6]) == [(trial, SECOND) for trial in (0, 1, 2, 3, 4, 5)]
    assert sorted(ran[6:]) == [(trial, THIRD) for trial in (1, 2, 3)]
    assert len(ran) == comparing.expect(folder.settings)
    assert [record.cell.trial for record in comparing.find_chosen(folder)] == [1]


def test_luck_on_the_search_s_seed_does_not_win(tmp_path: Path) -> None:
    """Trial 1 was lucky: on other seeds it is the worst of the first six. The mean over seeds decides."""
    folder = searched(tmp_path / "s", LOSSES)
    assert [record.cell.trial for record in comparing.find_chosen(folder)] == [1]  # before the race
    run(folder, lambda trial, seed: 0.9 if trial == 1 else LOSSES[trial])
    (best,) = comparing.find_chosen(folder)
    assert best.cell.trial == 2 and best.result["validation_loss"] == 0.2  # the trial's own record, of its own seed
    assert comparing.choose(folder.records("search"), folder.settings)[0].cell.trial == 1  # without the race


@pytest.mark.parametrize("after", [0, 1, 5, 6, 8])
def test_it_resumes_anywhere(tmp_path: Path, after: int) -> None:
    def noise(trial: int, seed: int) -> float:
        return LOSSES[trial] + (7 * trial + 3 * seed) % 5 / 10

    whole = searched(tmp_path / "a", LOSSES)
    everything = run(whole, noise)
    folder = searched(tmp_path / "b", LOSSES)
    first = run(folder, noise, after)
    now = state(folder)
    assert now["racing"] == {"ended": after, "of": len(everything)} and now["now"] == "interrupted"
    assert first + run(Folder.open(folder.path), noise) == everything
    assert [r.cell.trial for r in comparing.find_chosen(folder)] == [r.cell.trial for r in comparing.find_chosen(whole)]


def test_what_fails_is_left_behind_and_what_was_lost_is_tried_again(tmp_path: Path) -> None:
    folder = searched(tmp_path / "s", LOSSES[:3])
    cells = list(comparing.race_of(folder).missing)
    assert [cell.trial for cell in cells] == [1, 2, 0]
    folder.ended(cells[0], {"failure": "the loss became nan"})
    folder.ended(cells[1], {"failure": "the process was lost", "lost": True})
    folder.ended(cells[2], outcome(0.5))
    assert comparing.race_of(folder).missing == [cells[1]]
    folder.ended(cells[1], outcome(0.2))
    assert [cell.trial for cell in comparing.race_of(folder).missing] == [2, 0]
    assert [record.cell.trial for record in comparing.find_chosen(folder)] == [2]


@pytest.mark.parametrize(
    ("settings", "ran"),
    [
        ({"racing": 1}, []),  # off
        ({"top": 8}, []),  # all are compared anyway
        ({"finalists": 2}, [2]),
        ({"finalists": 3, "racing": 2}, [3]),
        ({"top": 3}, [6]),  # three are left after one seed
        ({"racing": 5}, [6, 3, 2]),  # one is left, so two more seeds would say nothing
        ({"objective": ("loss", "parameters")}, []),  # a front
    ],
)
def test_how_many_run(tmp_path: Path, settings: dict[str, Any], ran: list[int]) -> None:
    folder = searched(tmp_path / "s", LOSSES, **settings)
    found = [seed for _, seed in run(folder, lambda trial, seed: LOSSES[trial])]
    assert [found.count(SECOND + turn) for turn in range(len(ran))] == ran
    assert len(found) == sum(ran) == comparing.expect(folder.settings)


def test_only_feasible_schedules_race_where_there_are_any(tmp_path: Path) -> None:
    folder = searched(tmp_path / "s", LOSSES)
    best = folder.records("search")[1]
    folder.ended(best.cell, outcome(0.1, parameters=200))  # beyond the budget of 150
    assert 1 not in {trial for trial, _ in run(folder, lambda trial, seed: LOSSES[trial])}
    assert [record.cell.trial for record in comparing.find_chosen(folder)] == [2]


def test_whoever_is_beyond_the_budget_on_more_seeds_is_out(tmp_path: Path) -> None:
    """All finalists turn out larger on another seed, and the best of those that did not race is chosen."""
    folder = searched(tmp_path / "s", LOSSES, finalists=3)
    for cell in list(comparing.race_of(folder).missing):
        folder.ended(cell, outcome(0.1, parameters=290))
    assert [record.cell.trial for record in comparing.find_chosen(folder)] == [4]


def test_more_trials_begin_another_race_in_which_the_first_counts(tmp_path: Path) -> None:
    folder = searched(tmp_path / "s", LOSSES)
    run(folder, lambda trial, seed: LOSSES[trial])
    assert comparing.race_of(folder).left == 0
    for number in (8, 9):
        folder.ended(replace(folder.records("search")[0].cell, trial=number), outcome(0.05))
    more = run(folder, lambda trial, seed: [*LOSSES, 0.05, 0.9][trial])
    assert sorted(more) == [(8, SECOND), (8, THIRD), (9, SECOND)]
    assert [r.cell.trial for r in comparing.find_chosen(folder)] == [8]


def test_repeats_are_stored_with_their_seeds(tmp_path: Path) -> None:
    folder = searched(tmp_path / "s", LOSSES)
    run(folder, lambda trial, seed: LOSSES[trial] + (seed == THIRD) * 0.3)
    assert folder.records("racing")[0].cell.name == f"racing-000-seed-{SECOND}"
    results = conduct.write_report(folder)
    best = results["trials"][1]
    assert [each["seed"] for each in best["repeats"]] == [SECOND, THIRD]
    assert best["repeats"][1]["validation_loss"] == pytest.approx(0.4) and best["repeats"][1]["state"] == "finished"
    assert best["mean"]["validation_loss"] == pytest.approx(0.2)
    assert "repeats" not in results["trials"][7] and not results["comparison"]["cells"]
    table = Result(folder).trials
    assert list(table["seeds"]) == [2, 3, 3, 3, 2, 2, 1, 1]
    assert table.loc[1, "mean.validation_loss"] == pytest.approx(0.2)
    assert results["state"]["racing"] == {"ended": 9, "of": 9}


def test_the_comparison_s_seeds_are_never_the_race_s() -> None:
    with pytest.raises(StudyError, match="seeds is 1,000, but it must be below 1,000"):
        Settings(seeds=1000)
    settings = Settings(seed=3, seeds=999)
    compared = range(settings.seed + 1, settings.seed + 1 + settings.seeds)
    assert not {comparing.repeat_seed(settings, turn) for turn in range(9)} & {settings.seed, *compared}


def won(folder: Folder) -> str | None:
    """Why the first of the schedules that would be compared was chosen."""
    best = [{"trial": record.cell.trial, "arm": "surgery"} for record in comparing.find_chosen(folder)]
    results = conduct.write_report(folder) | {"comparison": {"summary": best}}
    found = reason(results, folder.metric)
    assert found is None or found[0] == best[0]["trial"]
    return None if found is None else found[1]


@pytest.mark.parametrize("seed", range(4))
def test_why_a_schedule_was_chosen_is_computed_from_its_rows(tmp_path: Path, seed: int) -> None:
    draw = Random(seed)
    losses = [draw.random() for _ in LOSSES]
    folder = searched(tmp_path / "s", losses)
    assert won(folder) is None  # nothing has run
    again = {(trial, on): draw.random() for trial in range(len(losses)) for on in (SECOND, THIRD)}
    run(folder, lambda trial, on: again[trial, on])
    (best,) = comparing.find_chosen(folder)
    means = {
        trial: fmean([losses[trial], *(again[trial, on] for on in (SECOND, THIRD))])
        for trial, on in ((r.cell.trial, r.cell.seed) for r in folder.records("racing")) if on == THIRD
    }  # fmt: skip
    first, second = sorted(means, key=lambda trial: means[trial])[:2]
    assert first == best.cell.trial
    assert won(folder) == (
        f"A won the race of the best 6 schedules of the search: over 3 seeds it has {means[first]:.4g} validation loss "
        f"on average; the next, trial {second}, has {means[second]:.4g} validation loss."
    )


def test_a_better_one_beyond_the_budget_is_said_to_be_so(tmp_path: Path) -> None:
    folder = searched(tmp_path / "s", LOSSES[:3], finalists=2, racing=2)
    for cell in list(comparing.race_of(folder).missing):
        folder.ended(cell, outcome(0.1, parameters=100 if cell.trial == 2 else 290))
    assert [record.cell.trial for record in comparing.find_chosen(folder)] == [2]
    assert str(won(folder)).endswith("the next, trial 1, has 0.1 validation loss, but is beyond the budget.")
