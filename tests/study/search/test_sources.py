"""Optuna's samples and lists as sources of cells."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import optuna
import pytest
from optuna.trial import FixedTrial, TrialState
from sqlalchemy import create_engine, text

from network_surgery.ops import Schedule, SurgeryError
from network_surgery.search_spaces import SPACES
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search.sampled import Sampled, listed_cells, open_study
from network_surgery.study.search.sources import Listed
from network_surgery.study.search.storage import address, hurry
from network_surgery.study.task import ACCURACY
from network_surgery.study.training.cell import Cell
from tests.study.operated import spiked

LAYERS = {"conv1": 32, "conv2": 64, "fc1": 96}


def settings(**changes: Any) -> Settings:
    return Settings(**({"trials": 10, "generation": 4, "epochs": 6} | changes))


def outcome(cell: Cell) -> dict[str, Any]:
    """A result that depends on the cell alone."""
    keep = cell.params.get("keep", cell.params.get("grow", 0.5))
    loss = abs(keep - 0.6)
    sizes = {"parameters": 1000 * keep, "flops": 1.0, "seconds": 1.0}
    return {"validation_metric": 1 - loss, "validation_loss": loss} | sizes


def work_off(source: Sampled, backwards: bool = False, most: int = 10**6) -> list[Cell]:
    """Runs cells as a cluster might: several at a time, ending in any order."""
    seen: list[Cell] = []
    while not source.finished and len(seen) < most:
        running = []
        while (cell := source.next()) is not None:
            running.append(cell)
        assert running
        for cell in reversed(running) if backwards else running:
            if len(seen) < most:
                source.tell(cell, outcome(cell))
                seen.append(cell)
    return seen


def test_what_is_sampled_does_not_depend_on_who_ends_first(tmp_path: Path) -> None:
    forth = work_off(Sampled(settings(), LAYERS, tmp_path / "a.db"))
    back = work_off(Sampled(settings(), LAYERS, tmp_path / "b.db"), backwards=True)
    assert len(forth) == 10
    assert {c.trial: c.params for c in forth} == {c.trial: c.params for c in back}
    other = work_off(Sampled(settings(seed=1), LAYERS, tmp_path / "c.db"))
    assert [c.params for c in other] != [c.params for c in forth]


@pytest.mark.parametrize("after", [1, 4, 6, 9])
def test_a_resumed_search_samples_as_an_uninterrupted_one(tmp_path: Path, after: int) -> None:
    whole = work_off(Sampled(settings(), LAYERS, tmp_path / "a.db"))
    first = work_off(Sampled(settings(), LAYERS, tmp_path / "b.db"), most=after)
    known = {cell.trial: outcome(cell) for cell in first if cell.trial is not None}
    resumed = Sampled(settings(), LAYERS, tmp_path / "b.db", known)
    assert resumed.total == 10 - after
    rest = work_off(resumed)
    assert {c.trial: c.params for c in first + rest} == {c.trial: c.params for c in whole}
    assert all(t.state == TrialState.COMPLETE for t in resumed.study.trials)


def test_a_result_that_optuna_never_heard_of_is_not_run_again(tmp_path: Path) -> None:
    """The ledger is written first; the driver may die before Optuna knows."""
    dying = Sampled(settings(), LAYERS, tmp_path / "a.db")
    cell = dying.next()
    assert cell is not None and cell.trial is not None
    resumed = Sampled(settings(), LAYERS, tmp_path / "a.db", {cell.trial: outcome(cell)})
    assert resumed.study.trials[cell.trial].state == TrialState.COMPLETE
    assert resumed.total == 9


def test_a_search_of_an_earlier_version_goes_on_under_its_name(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path / 'a.db'}"
    old = optuna.create_study(storage=place, study_name="search", direction="minimize")
    old.ask()
    source = Sampled(settings(), LAYERS, tmp_path / "a.db")
    assert source.study.study_name == "search" and optuna.get_all_study_names(place) == ["search"]
    assert len(work_off(source)) == 10 and len(source.study.trials) == 10


def test_people_can_read_the_database(tmp_path: Path) -> None:
    source = Sampled(settings(trials=3), LAYERS, tmp_path / "a.db", words=lambda schedule: f"{len(schedule)} steps")
    first, second, third = (source.next() for _ in range(3))
    assert first is not None and second is not None and third is not None
    source.tell(first, outcome(first) | {"spikes": [spiked(2.0), spiked(5.0)]})
    source.tell(second, {"failure": "the loss became nan"})
    assert source.study.study_name == f"{tmp_path.name}: small_cnn on digits"
    assert source.study.metric_names == ["validation loss"]
    assert source.study.user_attrs["space"] == "mixed"
    attributes = source.study.trials[0].user_attrs
    assert attributes["schedule"] == f"{len(first.schedule)} steps" and attributes["largest loss spike"] == 5.0
    assert attributes["parameters"] == outcome(first)["parameters"]
    assert source.study.trials[1].user_attrs["failure"] == "the loss became nan"


def test_a_failed_trial_counts_and_is_known_as_failed(tmp_path: Path) -> None:
    source = Sampled(settings(trials=2), LAYERS, tmp_path / "a.db")
    first, second = source.next(), source.next()
    assert first is not None and second is not None
    source.tell(first, {"failure": "the loss became nan"})
    source.tell(second, outcome(second))
    assert source.finished
    assert [t.state for t in source.study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


def test_several_objectives(tmp_path: Path) -> None:
    source = Sampled(settings(objective=("accuracy", "parameters")), LAYERS, tmp_path / "a.db")
    work_off(source)
    assert all(len(trial.values) == 2 for trial in source.study.trials)
    assert source.study.best_trials


def test_an_unknown_space_is_named() -> None:
    with pytest.raises(SurgeryError, match="no search space 'nonsense'; there are mixed"):
        Sampled.check(settings(space="nonsense"), LAYERS)
    with pytest.raises(SurgeryError, match="needs at least 2 epochs"):
        Sampled.check(settings(epochs=1), LAYERS)


@pytest.mark.parametrize("space", [name for name in SPACES if name != "depth" and not name.startswith("thesis")])
def test_parameters_are_all_there_is_to_know(tmp_path: Path, space: str) -> None:
    source = Sampled(settings(space=space, trials=25, generation=25), LAYERS, tmp_path / "a.db")
    for cell in work_off(source):
        layers = {name: type("L", (), {"units": units}) for name, units in LAYERS.items()}
        decoded = SPACES[space](FixedTrial(dict(cell.params)), layers, 6)
        assert decoded == Schedule.from_data(cell.schedule)
        decoded.check(LAYERS, 6, 10)
        assert decoded.steps


def test_a_list_grows_as_cells_end() -> None:
    follow = {"a": [Cell("restart", 1)], "b": []}
    cells = [Cell("surgery", 1), Cell("surgery", 2)]
    source = Listed(cells, lambda cell, result: follow[result["go"]], lambda cell: int(cell.arm == "surgery"))
    assert source.total == 4
    first, second = source.next(), source.next()
    assert source.next() is None and not source.finished
    assert first is not None and second is not None
    source.tell(first, {"go": "a"})
    source.tell(second, {"failure": "lost"})
    third = source.next()
    assert third is not None and third.arm == "restart"
    source.tell(third, {"go": "b"})
    assert source.finished and source.total == 3  # a failure is followed by nothing


def choices(trial: Any, layers: Any, epochs: int) -> Schedule:
    """A space of 2 + 3 points: a parameter depends on another one's value."""
    keep = 0.5
    if trial.suggest_categorical("op", ("random_remove", "min_weight")) == "min_weight":
        keep = trial.suggest_categorical("keep", (0.75, 0.25, 0.5))
    when = 1 if keep < 0.5 else trial.suggest_int("first_epoch", 1, 2)
    return Schedule.from_data([{"when": f"{when}ep", "layer": "fc1", "op": "min_weight", "keep": keep}])


def test_a_grid_is_every_combination_in_the_order_of_its_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPACES, "choices", choices)
    wanted = settings(space="choices", sampler="grid", trials=1)
    points = [cell.params for cell in listed_cells(wanted, LAYERS)]
    assert points == [
        {"op": "random_remove", "first_epoch": 1},
        {"op": "random_remove", "first_epoch": 2},
        {"op": "min_weight", "keep": 0.75, "first_epoch": 1},
        {"op": "min_weight", "keep": 0.75, "first_epoch": 2},
        {"op": "min_weight", "keep": 0.25},
        {"op": "min_weight", "keep": 0.5, "first_epoch": 1},
        {"op": "min_weight", "keep": 0.5, "first_epoch": 2},
    ]
    cells = listed_cells(wanted, LAYERS)
    assert [cell.trial for cell in cells] == list(range(7)) and cells == listed_cells(wanted, LAYERS)
    for cell in cells:
        assert choices(FixedTrial(dict(cell.params)), LAYERS, 6).to_data() == cell.schedule


def test_a_space_of_ones_own_is_called_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ModuleType("mine")
    mine.choices, mine.nothing, mine.broken = choices, lambda *_: None, lambda *_: {}["fc9"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine", mine)
    assert len(listed_cells(settings(space="mine:choices", sampler="grid"), LAYERS)) == 7
    for name, words in (
        ("nothing", "mine:nothing returned a NoneType, but it must return an ops.Schedule"),
        ("broken", f"the search space 'mine:broken' failed at {__file__}, line [0-9]+: KeyError: 'fc9'"),
        ("gone", "search space 'mine:gone' cannot be loaded: there is no 'gone'"),
    ):
        with pytest.raises((StudyError, SurgeryError), match=words):
            Sampled.check(settings(space=f"mine:{name}"), LAYERS)


def test_schedules_that_a_network_cannot_have_are_refused_before_anything_is_trained() -> None:
    wanted, refusals = settings(), iter((True, False, True))

    def check(schedule: Schedule) -> None:
        if next(refusals, True):
            raise SurgeryError("the schedule names the layer 'fc9'")

    Sampled.check(wanted, LAYERS, check_schedule=check)  # one of them is right
    sentence = "none of 3 schedules of the space 'mixed' fits: the schedule names the layer 'fc9'"
    with pytest.raises(StudyError, match=sentence):
        Sampled.check(wanted, LAYERS, check_schedule=check)


def test_what_is_no_grid_is_refused() -> None:
    with pytest.raises(StudyError, match="the search space 'pcns' is no grid"):
        listed_cells(settings(space="pcns", sampler="grid"), LAYERS)


def test_own_schedules_are_all_compared() -> None:
    steps = [{"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}]
    cells = listed_cells(settings(schedules=(steps, steps), top=1), LAYERS)
    assert [(cell.trial, list(cell.schedule)) for cell in cells] == [(0, steps), (1, steps)]
    assert listed_cells(settings(), LAYERS) == []


ODD = (
    "a?b", "a#b", "a%20b", "a%3Fb", "a b", "it's", 'a"b', "a{b}", "a&b=c", "a;b", "a+b", "ü", "a:b", "a@b", "a\\b",
    "~",
)  # fmt: skip


def test_a_database_is_the_file_of_its_name_and_two_studies_never_share_one(tmp_path: Path) -> None:
    """Also where one name is another's with a part cut off, quoted, or taken for something of an address."""
    for name in (*ODD, *(quote(each) for each in ODD), "a", "".join(ODD)):
        place = tmp_path / name
        if place.exists():  # quoting has changed nothing
            continue
        place.mkdir()
        study = open_study(settings(), place / "optuna.db", ACCURACY)
        assert len(optuna.get_all_study_names(study._storage)) == 1, name
        assert [path.name for path in place.iterdir()] == ["optuna.db"]
    assert all(path.is_dir() for path in tmp_path.iterdir())


def test_only_a_studys_own_databases_do_not_wait_for_the_disk(tmp_path: Path) -> None:
    def waits(path: Path) -> bool:
        with create_engine(address(path)).connect() as connection:
            return bool(connection.execute(text("PRAGMA synchronous")).scalar())

    hurry(tmp_path / "mine.db")
    assert not waits(tmp_path / "mine.db") and waits(tmp_path / "other.db")


def test_a_lost_trial_runs_again_with_its_number_and_its_parameters(tmp_path: Path) -> None:
    database, lost = tmp_path / "optuna.db", {"failure": "the process was lost", "lost": True}
    source, known = Sampled(settings(trials=5), LAYERS, database), {}
    cells = [cell for cell in iter(source.next, None) if cell is not None]
    for number, cell in enumerate(cells):
        known[number] = lost if number in (1, 2) else outcome(cell)
        source.tell(cell, known[number])
    assert source.missing == 1 and not source.finished
    values = source.study.trials[3].values
    for _ in range(2):  # the name of Optuna's study changes to and fro
        again = Sampled(settings(trials=5), LAYERS, database, known)
        assert again.missing == 3 and len(optuna.get_all_study_names(again.study._storage)) == 1
        retried = [again.next(), again.next()]
        assert [(each.trial, each.params, each.schedule) for each in retried if each] == [
            (each.trial, each.params, each.schedule) for each in cells[1:3]
        ]
        for each in retried:
            assert each is not None
            again.tell(each, lost)
    assert [trial.state.name for trial in again.study.trials] == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert again.study.trials[3].values == values
    known |= {1: outcome(cells[1]), 2: {"failure": "the loss became nan"}}
    assert Sampled(settings(trials=5), LAYERS, database, known).missing == 1
