"""Cells are trained once: they wait for the original that they begin like, and for a twin that computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.study.config import Settings
from network_surgery.study.evidence.state import state
from network_surgery.study.search import comparing
from network_surgery.study.search.once import Once, pays
from network_surgery.study.search.replay import reports
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.search.sources import Listed, Together
from network_surgery.study.store.folder import Folder, Record, checkpoints_of
from network_surgery.study.task import Task, build
from network_surgery.study.training import fork
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from tests.study.operated import operated, without_times

SETTINGS = Settings(epochs=6, top=3, seeds=2, trials=8, arms=("original", "surgery", "restart", "random"))
PER_EPOCH = 10
ARCHITECTURE = {"shapes": {"fc1": 4}, "numbers": {}}


def step(when: str, op: str = "min_weight", keep: float = 0.5) -> dict[str, Any]:
    return {"when": when, "layer": "fc1", "op": op, "keep": keep}


def surgery(seed: int, *when: str, trial: int = 0) -> Cell:
    return Cell("surgery", seed, [step(each) for each in when], trial=trial, test=True)


def original(seed: int = 1) -> Cell:
    return Cell("original", seed, test=True)


def outcome(cell: Cell, seconds: float = 6.0) -> dict[str, Any]:
    """What a training run of 6 epochs might have reported; surgery ends with one architecture, whatever it did."""
    operations = [operated(iteration=20, epoch=2.0)] if cell.arm == "surgery" else []
    sunk = dict(cell.sunk)
    return {
        "validation_metric": 0.9, "validation_loss": 0.1, "test_metric": 0.9,
        "parameters": 100, "flops": 10, "steps": 60,
        "training_flops": 6000 + sunk.get("training_flops", 0), "seconds": seconds + sunk.get("seconds", 0.0),
        "operation_seconds": 0.1, "joules": None, "sunk": sunk, "spikes": [], "operations": operations,
        "architecture": ARCHITECTURE,
        "epochs": [{"epoch": n + 1.0, "train_seconds": 1.0, "validation_metric": 0.9} for n in range(6)],
        **({"kept": {"epochs": list(cell.keep), "bytes": 9}} if cell.keep else {}),
        **({"forked": dict(cell.fork)} if cell.fork else {}),
    }  # fmt: skip


class Desk:
    """Works a source off as the cluster does, in as many slots as there are; ``ledger`` is what has ended."""

    def __init__(self, source: Any, tmp_path: Path, known: Iterable[Record] = (), **more: Any) -> None:
        self.source = Once(source, more.pop("settings", SETTINGS), PER_EPOCH, tmp_path, known, **more)
        self.running: dict[str, Cell] = {}
        self.ledger: dict[str, dict[str, Any]] = {}

    def take(self, most: int = 99) -> list[str]:
        """Fills the slots; the names of the cells that start."""
        names: list[str] = []
        while len(names) < most:
            cell = self.source.next()
            while self.copy() and cell is None:
                cell = self.source.next()
            if cell is None:
                break
            self.running[cell.name] = cell
            names.append(cell.name)
        return names

    def reach(self, name: str, epoch: float) -> None:
        self.source.epoch(self.running[name], {"epoch": epoch})

    def end(self, name: str, result: Callable[[Cell], dict[str, Any]] = outcome) -> None:
        cell = self.running.pop(name)
        self.ledger[name] = result(cell)
        self.source.tell(cell, self.ledger[name])
        self.copy()

    def copy(self) -> bool:
        found = False
        for cell, result in self.source.copies():
            found, self.ledger[cell.name] = True, result
            list(reports(result))
            self.source.tell(cell, result)
        return found

    def finish(self) -> None:
        while self.take() or self.running:
            self.end(next(iter(self.running)))
        assert self.source.finished


def failed(cell: Cell) -> dict[str, Any]:
    return {"failure": "the loss became nan"}


def lost(cell: Cell) -> dict[str, Any]:
    return {"failure": "the trial's process was lost", "lost": True}


def test_surgery_begins_when_the_original_has_come_to_where_it_does(tmp_path: Path) -> None:
    cells = [
        original(),
        surgery(1, "2ep", trial=0),
        surgery(1, "45it", trial=1),
        surgery(1, "0it", trial=2),
        original(2),
    ]
    desk = Desk(Listed(cells), tmp_path)
    assert desk.take() == ["original-seed-1", "surgery-002-seed-1", "original-seed-2"]  # no slot waits
    assert desk.running["original-seed-1"].keep == (2, 4) and desk.running["original-seed-2"].keep is None
    desk.reach("original-seed-1", 1.0)
    assert desk.take() == []
    desk.reach("original-seed-1", 2.0)
    assert desk.take() == ["surgery-000-seed-1"]
    assert desk.running["surgery-000-seed-1"].fork == {"from": "original-seed-1", "epoch": 2}
    desk.end("original-seed-1")
    assert desk.take() == ["surgery-001-seed-1"]
    assert desk.running["surgery-001-seed-1"].fork == {"from": "original-seed-1", "epoch": 4}
    assert desk.running["surgery-002-seed-1"].fork is None


@pytest.mark.parametrize("end", [failed, lost])
def test_an_original_that_does_not_end_well_keeps_nobody_waiting(
    tmp_path: Path, end: Callable[[Cell], dict[str, Any]]
) -> None:
    desk = Desk(Listed([original(), surgery(1, "2ep")]), tmp_path)
    assert desk.take() == ["original-seed-1"]
    desk.end("original-seed-1", end)
    assert desk.take() == ["surgery-000-seed-1"]  # what the original has kept is right all the same
    desk.finish()


def test_without_an_original_nobody_waits(tmp_path: Path) -> None:
    desk = Desk(Listed([surgery(1, "2ep"), surgery(2, "2ep")]), tmp_path)
    assert desk.take() == ["surgery-000-seed-1", "surgery-000-seed-2"]
    assert desk.running["surgery-000-seed-1"].fork is None


def test_checkpoints_go_when_nobody_can_begin_from_them(tmp_path: Path) -> None:
    chosen = [Cell("search", 0, [step("2ep")], trial=0)]
    desk = Desk(comparing.cells(chosen, SETTINGS, []), tmp_path)
    places = checkpoints_of(tmp_path)
    places.mkdir()

    def there() -> set[str]:
        return {path.name[:15] for path in places.iterdir()}

    for name in desk.take():
        cell = desk.running[name]
        fork.checkpoint_path(places, name, fork.beginning(cell, SETTINGS), 2).touch()
        desk.reach(name, 2.0)
    assert there() == {"original-seed-1", "original-seed-2"}
    for name in ("original-seed-1", "original-seed-2"):
        desk.end(name)
    assert desk.take() == ["surgery-000-seed-1", "surgery-000-seed-2"]
    desk.end("surgery-000-seed-1")
    assert desk.take() == ["restart-000-seed-1", "random-000-seed-1"]
    assert desk.running["random-000-seed-1"].fork == {"from": "original-seed-1", "epoch": 2}
    desk.end("random-000-seed-1")
    desk.take()
    assert there() == {"original-seed-2"}
    desk.finish()
    desk.source.next()
    assert not there()


def test_a_resumed_comparison_begins_from_what_is_there(tmp_path: Path) -> None:
    known = Record(replace(original(), keep=(2, 4)), outcome(replace(original(), keep=(2, 4))))
    desk = Desk(Listed([surgery(1, "5ep")]), tmp_path, [known])
    assert desk.take() == ["surgery-000-seed-1"]
    assert desk.running["surgery-000-seed-1"].fork == {"from": "original-seed-1", "epoch": 4}


def test_restarts_of_one_architecture_are_one_training(tmp_path: Path) -> None:
    """Two schedules that lead to the same network, and an arm whose epochs are those of another."""
    sunk = {"epochs": 2.0, "seconds": 2.5, "training_flops": 500}
    restart = Cell("restart", 1, architecture=ARCHITECTURE, trial=0, test=True)
    cells = [
        restart, replace(restart, trial=1), replace(restart, arm="restart_flops", epochs=6),
        replace(restart, arm="restart_late", sunk=sunk), replace(restart, arm="restart_flops", epochs=7, trial=1),
        replace(restart, seed=2),
    ]  # fmt: skip
    desk = Desk(Listed(cells), tmp_path)
    assert desk.take() == ["restart-000-seed-1", "restart_flops-001-seed-1", "restart-000-seed-2"]
    desk.end("restart-000-seed-1")
    assert len(desk.ledger) == 4  # at once
    desk.finish()
    trained = {name for name, result in desk.ledger.items() if "same_as" not in result}
    assert trained == {"restart-000-seed-1", "restart_flops-001-seed-1", "restart-000-seed-2"}
    late, first = desk.ledger["restart_late-000-seed-1"], desk.ledger["restart-000-seed-1"]
    assert late["same_as"] == "restart-000-seed-1" and late["sunk"] == sunk
    assert (late["seconds"], late["training_flops"]) == (8.5, 6500)
    parts = ("same_as", "sunk", "seconds", "training_flops")
    assert {k: v for k, v in late.items() if k not in parts} == {k: v for k, v in first.items() if k not in parts}


@pytest.mark.parametrize("end", [failed, lost, lambda cell: outcome(cell) | {"stopped": 3}])
def test_a_twin_that_has_no_outcome_is_followed_by_the_next(
    tmp_path: Path, end: Callable[[Cell], dict[str, Any]]
) -> None:
    desk = Desk(Listed([surgery(1, "2ep", trial=number) for number in range(3)]), tmp_path)
    assert desk.take() == ["surgery-000-seed-1"]
    desk.end("surgery-000-seed-1", end)
    assert desk.take() == ["surgery-001-seed-1"]
    desk.finish()
    assert desk.ledger["surgery-002-seed-1"]["same_as"] == "surgery-001-seed-1"


def test_a_twin_may_have_ended_in_an_earlier_run_and_may_be_one_itself(tmp_path: Path) -> None:
    first = surgery(1, "2ep")
    known = [Record(first, outcome(first)), Record(replace(first, trial=1), outcome(first) | {"same_as": first.name})]
    for records in (known, known[::-1]):
        desk = Desk(Listed([replace(first, trial=5)]), tmp_path, records)
        assert desk.take() == [] and desk.source.finished
        assert desk.ledger["surgery-005-seed-1"]["same_as"] == "surgery-000-seed-1"


def test_a_twin_has_the_network_too(tmp_path: Path) -> None:
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "surgery-000-seed-1.pt").write_bytes(b"network")
    desk = Desk(Listed([surgery(1, "2ep", trial=number) for number in range(2)]), tmp_path)
    desk.take()
    desk.end("surgery-000-seed-1", lambda cell: outcome(cell) | {"network": f"networks/{cell.name}.pt"})
    assert desk.ledger["surgery-001-seed-1"]["network"] == "networks/surgery-001-seed-1.pt"
    assert (tmp_path / "networks" / "surgery-001-seed-1.pt").read_bytes() == b"network"


def repeating(trial: Any, layers: Any, epochs: int) -> list[dict[str, Any]]:
    """A space of two schedules."""
    return [step(f"{trial.suggest_int('at', 3, 4)}ep")]


LAYERS = {"fc1": 8}


def test_a_schedule_that_optuna_proposes_again_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, space="tests.study.search.test_once:repeating")
    desk = Desk(Sampled(settings, LAYERS, tmp_path / "a.db"), tmp_path, settings=settings)
    desk.finish()
    assert len(desk.ledger) == 8 and sum("same_as" not in result for result in desk.ledger.values()) == 2
    trials = desk.source._source.study.trials  # type: ignore[attr-defined]
    assert all(trial.state.name == "COMPLETE" and trial.value == 0.1 for trial in trials)
    # A search that goes on knows what has ended before.
    ended = [Record(Cell("search", 0, [step(f"{at}ep")], trial=at - 3), outcome(Cell("search", 0))) for at in (3, 4)]
    again = Desk(Sampled(settings, LAYERS, tmp_path / "b.db"), tmp_path, ended, settings=settings)
    assert again.take() == [] and again.source.finished and len(again.ledger) == 8


def test_the_search_trains_the_original_first_where_it_pays(tmp_path: Path) -> None:
    settings = replace(SETTINGS, space="tests.study.search.test_once:repeating")
    sampled = Sampled(settings, LAYERS, tmp_path / "a.db")
    assert pays(sampled, settings, PER_EPOCH)  # 8 trials that begin with 3 epochs of it, for 6 epochs
    few = replace(settings, trials=1)
    assert not pays(Sampled(few, LAYERS, tmp_path / "b.db"), few, PER_EPOCH)
    source = Together(Listed([Cell("original", 0)]), sampled)
    assert source.total == 9
    desk = Desk(source, tmp_path, settings=settings, spare=fork.evenly(6))
    assert desk.take() == ["original-seed-0"] and desk.running["original-seed-0"].keep == (1, 2, 3, 4, 5)
    desk.reach("original-seed-0", 4.0)
    started = desk.take()
    assert started and all(desk.running[name].fork is not None for name in started)
    desk.finish()


def test_the_original_of_the_search_is_none_of_the_comparison_s(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "study", SETTINGS, LAYERS)
    folder.ended(Cell("original", 0), outcome(Cell("original", 0)))
    assert state(folder)["comparison"]["ended"] == 0
    assert folder.write([], [])["comparison"]["cells"] == []


def test_reports_are_what_the_training_had_told(tmp_path: Path) -> None:
    settings = Settings(
        model="mlp", train_images=200, epochs=5, batch_size=32, held_out=32, signal_images=64, probe=0, device="cpu"
    )
    task: Task = build(settings)
    records: list[dict[str, Any]] = []
    waits = {**step("redundancy(0.05) >= 0.4 from 1ep every 3it at most 2", "pcns"), "variance_threshold": 0.05}
    cell = Cell("surgery", 3, [{k: v for k, v in waits.items() if k != "keep"}, step("2ep", "random_remove", 0.1)])
    outcome = run(cell, task, settings, torch.device("cpu"), lambda record: records.append(without_times(record)))
    for record, again in zip(records, map(without_times, reports(outcome)), strict=True):
        so_far, first = again.pop("so_far"), record.pop("so_far")
        assert so_far["operations"] == first["operations"]
        assert again == record
