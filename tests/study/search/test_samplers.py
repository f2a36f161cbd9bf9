"""Optuna as its users know it: samplers, pruners, storages, enqueued trials, and the sentences where they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from network_surgery.ops import SurgeryError
from network_surgery.study.config import PASSWORD, Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.references import lent, name_of
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.search.samplers import pruner_of, sampler_of
from network_surgery.study.search.storage import open_storage
from network_surgery.study.training.cell import Cell

LAYERS = {"fc1": 8}


def keep_alone(trial: Any, layers: Any, epochs: int) -> list[dict[str, Any]]:
    """A space of one number, whose steps are plain data."""
    keep = trial.suggest_float("keep", 0.25, 0.75)
    return [{"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": keep}]


def settings(**changes: Any) -> Settings:
    return Settings(**{"trials": 6, "generation": 2, "epochs": 4, "space": f"{__name__}:keep_alone"} | changes)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[keep_alone.__module__])


def search(source: Sampled, most: int = 10**6) -> list[float]:
    """The ``keep`` of every trial, in order; a generation's trials end from the last to the first."""
    found: dict[int, float] = {}
    while not source.finished and len(found) < most:
        cells: list[Cell] = []
        while (cell := source.next()) is not None:
            cells.append(cell)
        for cell in reversed(cells):
            if len(found) == most:
                break
            assert cell.trial is not None
            found[cell.trial] = cell.params["keep"]
            source.tell(cell, {"validation_metric": -(loss := abs(cell.params["keep"] - 0.6)), "validation_loss": loss})
    return [found[number] for number in sorted(found)]


@pytest.mark.parametrize("sampler", ["RandomSampler", "QMCSampler", "optuna:NSGAIISampler(population_size=2)"])
def test_a_sampler_of_optunas_repeats_and_resumes(sampler: str, tmp_path: Path) -> None:
    wanted = settings(sampler=sampler)
    Sampled.check(wanted, LAYERS)
    whole = search(Sampled(wanted, LAYERS, tmp_path / "a.db"))
    assert len(set(whole)) >= 4 and all(0.25 <= keep <= 0.75 for keep in whole)
    first = search(Sampled(wanted, LAYERS, tmp_path / "b.db"), most=4)
    assert first + search(Sampled(wanted, LAYERS, tmp_path / "b.db")) == whole
    assert search(Sampled(settings(sampler=sampler, seed=1), LAYERS, tmp_path / "c.db")) != whole


def test_a_sampler_and_a_pruner_of_anyones(tmp_path: Path) -> None:
    Path(tmp_path / "mine.py").write_text(
        "import optuna\n"
        "def sampler(seed):\n    return optuna.samplers.RandomSampler(seed=seed)\n"
        "pruner = optuna.pruners.ThresholdPruner(lower=0.5)\n"
        "def space(trial, layers, epochs):\n"
        "    keep = trial.suggest_float('keep', 0.25, 0.75)\n"
        "    return [{'when': '1ep', 'layer': 'fc1', 'op': 'min_weight', 'keep': keep}]\n"
    )
    at = f"{tmp_path}/mine.py"
    mine = settings(sampler=f"{at}:sampler", pruner=f"{at}:pruner", space=f"{at}:space", objective=("metric",))
    source = Sampled(mine, LAYERS, tmp_path / "a.db")
    cell = source.next()
    assert cell is not None
    assert source.epoch(cell, {"epoch": 1, "validation_metric": 0.6, "so_far": {"operations": []}})
    assert not source.epoch(cell, {"epoch": 2, "validation_metric": 0.4, "so_far": {"operations": []}})
    random = search(Sampled(settings(sampler="RandomSampler"), LAYERS, tmp_path / "b.db"))
    assert search(Sampled(mine, LAYERS, tmp_path / "c.db")) == random


def test_a_sampler_that_python_gave(tmp_path: Path) -> None:
    given = optuna.samplers.RandomSampler(seed=3)
    name = name_of(given)
    assert name == "python:RandomSampler"
    with pytest.raises(StudyError, match=r"was given from Python, .*study\.resume\(path, sampler=…\)"):
        Sampled.check(settings(sampler=name), LAYERS)
    with lent({name: given}):
        assert sampler_of(settings(sampler=name))(0) is sampler_of(settings(sampler=name))(4) is given


def test_arguments_may_be_pruners_again() -> None:
    pruner = pruner_of(settings(pruner="PatientPruner(MedianPruner(n_warmup_steps=2), patience=1)"))
    assert isinstance(pruner, optuna.pruners.PatientPruner)


def test_enqueued_trials_come_first_and_once(tmp_path: Path) -> None:
    wanted = settings(enqueue=[{"keep": 0.5}, {"keep": 0.25}], trials=3)
    Sampled.check(wanted, LAYERS)
    first = search(Sampled(wanted, LAYERS, tmp_path / "a.db"), most=1)
    whole = first + search(Sampled(wanted, LAYERS, tmp_path / "a.db"))
    assert sorted(whole[:2]) == [0.25, 0.5] and len(whole) == 3 and len(set(whole)) == 3


def test_more_trials_later(tmp_path: Path) -> None:
    first = search(Sampled(settings(trials=2), LAYERS, tmp_path / "a.db"))
    more = Sampled(settings(trials=5), LAYERS, tmp_path / "a.db")
    assert more.total == 3 and len(first) == 2 and len(search(more)) == 3


@pytest.mark.parametrize("kind", ["sqlite:///", "journal:"])
def test_a_storage_of_ones_own_holds_several_studies(kind: str, tmp_path: Path) -> None:
    wanted = settings(storage=f"{kind}{tmp_path}/shared", trials=2)
    for identity in ("a" * 32, "b" * 32):
        search(Sampled(wanted, LAYERS, tmp_path / identity / "optuna.db", identity=identity), most=1)
        assert Sampled(wanted, LAYERS, tmp_path / identity / "optuna.db", identity=identity).total == 1
    storage = open_storage(wanted.storage, tmp_path)
    states = [[trial.state for trial in study.trials] for study in storage_studies(storage)]
    assert len(states) == 2 and all(TrialState.COMPLETE in each for each in states)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///"])
def test_a_database_in_memory_is_no_storage(uri: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="which would end with the process"):
        open_storage(settings(storage=uri).storage, tmp_path)


def storage_studies(storage: Any) -> list[optuna.Study]:
    return [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]


def test_no_password_is_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for url in ("postgresql://me:hunter2@host/db", "mysql://me@host/db?password=hunter2"):
        with pytest.raises(StudyError, match=PASSWORD) as caught:
            settings(storage=url)
        assert "hunter2" not in str(caught.value)
    monkeypatch.setenv(PASSWORD, "hunter2")
    with pytest.raises(StudyError, match=r"Optuna's storage nosql://me@host/db cannot be opened") as caught:
        open_storage(settings(storage="nosql://me@host/db").storage, tmp_path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"sampler": "TPSampler"},
            r"there is no sampler 'TPSampler'; there are tpe, grid.*did you mean 'TPESampler'",
        ),
        ({"sampler": "random"}, r"there is no sampler 'random'"),
        ({"sampler": "GridSampler"}, "with sampler: grid"),
        ({"sampler": "TPESampler(seed=3)"}, "has a seed; leave it out"),
        ({"sampler": "TPESampler(trials=3)"}, "cannot be made: .*unexpected keyword argument 'trials'"),
        ({"sampler": "TPESampler(gamma=min)"}, "min is no plain value"),
        ({"sampler": "math:pi"}, "the sampler 'math:pi' cannot be made"),
        ({"pruner": "Median"}, "there is no pruner 'Median'; .*did you mean 'MedianPruner'"),
        ({"pruner": "PercentilePruner"}, "the pruner 'PercentilePruner' cannot be made"),
        ({"enqueue": [{"kep": 0.5}]}, "enqueue has 'kep' .* has keep; did you mean 'keep'"),
        ({"enqueue": [{"keep": 0.9}]}, "enqueue has keep: 0.9 .* chooses it from 0.25 to 0.75"),
        ({"enqueue": [{"keep": "half"}]}, "enqueue has keep: 'half' .* chooses it from 0.25 to 0.75"),
        (
            {"space": "mixed", "enqueue": [{"op": "nope"}]},
            "enqueue has op: 'nope' in {'op': 'nope'}, but the search space 'mixed' chooses it from 'eigen_remove', ",
        ),
        ({"space": "mixed", "enqueue": [{"op": ["pcns"]}]}, r"enqueue has op: \['pcns'\] "),
        ({"space": "math:pi"}, "the search space 'math:pi' is a float, but it must be a function"),
        ({"space": "mixd"}, "there is no search space 'mixd'; .*did you mean 'mixed'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises((StudyError, SurgeryError), match=sentence):
        Sampled.check(settings(**changes), LAYERS)


class OneObjective(optuna.samplers.RandomSampler):
    def sample_relative(self, study: optuna.Study, trial: Any, search_space: Any) -> dict[str, Any]:
        self._raise_error_if_multi_objective(study)
        return {}


def test_several_objectives_are_not_for_everyone() -> None:
    several = ("accuracy", "parameters")
    with pytest.raises(StudyError, match="pruner is 'MedianPruner', but it compares trials by one value"):
        settings(pruner="MedianPruner", objective=several)
    with lent({"python:One": OneObjective}), pytest.raises(StudyError, match=r"fails with 2 objectives \(accuracy, p"):
        Sampled.check(settings(sampler="python:One", objective=several), LAYERS)
    with pytest.raises(StudyError, match="early_stopping is 'asha', too; give one of them"):
        settings(pruner="MedianPruner", early_stopping="asha")
