"""Optuna's database is a cache of the ledger: made again where it is missing, told where the two disagree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.store.ledger import Record
from network_surgery.study.training.cell import Cell

LAYERS = {"fc1": 128, "fc2": 64}


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk() -> Iterator[None]:
    def connected(connection: Any, record: Any) -> None:
        if type(connection).__module__ == "sqlite3":
            connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", connected)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", connected)


def settings(**changes: Any) -> Settings:
    return Settings(**{"trials": 9, "generation": 3, "epochs": 4, "space": "removal"} | changes)


def outcome(cell: Cell) -> dict[str, Any]:
    """What a run of this cell comes to; one in five fails, and one in five is stopped early."""
    assert cell.trial is not None
    if cell.trial % 5 == 3:
        return {"failure": "the loss became nan"}
    loss = len(repr(cell.params)) / 100
    epochs = [
        {"epoch": n + 1.0, "validation_loss": loss + 1 / (n + 1), "validation_metric": -loss, "train_seconds": 0.1}
        for n in range(4)
    ]
    found = {
        "validation_loss": loss, "validation_metric": -loss, "parameters": 100, "flops": 10, "seconds": 0.8,
        "epochs": epochs, "operations": [], "spikes": [], "checks": [],
    }  # fmt: skip
    return found | ({"stopped": 2, "epochs": epochs[:2]} if cell.trial % 5 == 4 else {})


def search(source: Sampled, most: int = 10**6) -> list[Record]:
    """Runs up to ``most`` trials of a source; those of a generation end from the last to the first."""
    found: list[Record] = []
    while not source.finished and len(found) < most:
        cells = list(iter(source.next, None))
        for cell in reversed(cells):
            if len(found) == most:
                break
            result = outcome(cell)
            for epoch in result.get("epochs", ()):
                source.epoch(cell, epoch | {"so_far": {"operations": []}})
            found.append(Record(cell, result))
            source.tell(cell, result)
    return found


def of(source: Sampled) -> list[Any]:
    """All that Optuna knows of its trials but times."""
    return [
        (t.number, t.state, t.params, t.values, t.distributions, t.intermediate_values, t.user_attrs, t.constraints)
        for t in source.study.get_trials()
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [
    {}, {"pruner": "MedianPruner(n_startup_trials=2)"}, {"enqueue": ({"op": "min_weight"},)},
    {"sampler": "RandomSampler", "objective": ("metric", "parameters"), "space": "mixed"},
])  # fmt: skip
def test_a_search_whose_database_is_gone_goes_on_as_if_it_were_there(changes: dict[str, Any], tmp_path: Path) -> None:
    wanted, ended = settings(**changes), 7 if "pruner" in changes else 6
    for name in ("whole", "gone"):
        (tmp_path / name).mkdir()
    whole = search(Sampled(wanted, LAYERS, tmp_path / "whole" / "optuna.db"))
    first = search(Sampled(wanted, LAYERS, tmp_path / "gone" / "optuna.db"), ended)
    before = of(Sampled(wanted, LAYERS, tmp_path / "gone" / "optuna.db"))
    (tmp_path / "gone" / "optuna.db").unlink()
    source = Sampled(wanted, LAYERS, tmp_path / "gone" / "optuna.db")
    assert source.catch_up(first) == ended
    assert source.catch_up(first) == 0
    done = {record.cell.trial for record in first}
    assert [each for each in of(source) if each[0] in done] == [each for each in before if each[0] in done]
    rest = search(source)
    assert sorted(r.cell.trial for r in (*first, *rest)) == list(range(9))  # type: ignore[type-var]
    if ended == 6:  # no generation was cut in two
        found = {r.cell.trial: r.cell for r in (*first, *rest)}
        assert found == {r.cell.trial: r.cell for r in whole}


def test_trials_that_the_ledger_has_not_are_told(tmp_path: Path) -> None:
    source = Sampled(settings(), LAYERS, tmp_path / "optuna.db")
    ended = search(source, 6)
    with pytest.raises(StudyError) as error:
        source.catch_up(ended[:-1])
    missing = ended[-1].cell.trial
    assert str(error.value) == (
        f"{tmp_path}/optuna.db has trial {missing}, which the ledger has not; surgery doctor {tmp_path} makes it again "
        "from the ledger"
    )


def test_other_parameters_than_the_ledgers_are_told(tmp_path: Path) -> None:
    source = Sampled(settings(), LAYERS, tmp_path / "optuna.db")
    ended = search(source, 3)
    ended[0].cell.params["keep"] = 0.123  # type: ignore[index]
    with pytest.raises(StudyError, match=r"optuna\.db has other parameters for trial \d than the ledger; surgery doc"):
        source.catch_up(ended)


def test_a_space_that_has_changed_is_told(tmp_path: Path) -> None:
    ended = search(Sampled(settings(), LAYERS, tmp_path / "a.db"), 3)
    other = Sampled(settings(space="expansion"), LAYERS, tmp_path / "b.db")
    with pytest.raises(StudyError, match="the search space 'expansion' has changed since search-000"):
        other.catch_up(ended)


@pytest.mark.parametrize("content", [b"garbage", b"SQLite format 3\0" + bytes(80), None])
def test_a_damaged_database_is_a_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    search(Sampled(settings(), LAYERS, path), 3)
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    with pytest.raises(StudyError, match=r"optuna\.db cannot be opened \(.*\); surgery doctor .* makes it again from"):
        Sampled(settings(), LAYERS, path)


def test_a_running_trial_of_the_ledger_is_known(tmp_path: Path) -> None:
    source = Sampled(settings(), LAYERS, tmp_path / "optuna.db")
    cell = source.next()
    assert cell is not None
    again = Sampled(settings(), LAYERS, tmp_path / "optuna.db", {0: outcome(cell)})
    assert again.catch_up([Record(cell, outcome(cell))]) == 0
    states = [trial.state for trial in again.study.get_trials()]
    assert states[0] == TrialState.COMPLETE and optuna.trial.TrialState.RUNNING in states
