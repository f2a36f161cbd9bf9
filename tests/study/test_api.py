"""A study from Python. One Ray session serves the whole file, which the studies join and leave running."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from network_surgery import study
from network_surgery.ops import MinWeight, Moment, Schedule, Step
from network_surgery.study.errors import StudyError
from network_surgery.study.search.once import GUESSES
from network_surgery.study.task.task import Classification
from tests.study.nodes import one_slot

SMALL: dict[str, Any] = {
    "preset": "smoke", "epochs": 2, "trials": 2, "seeds": 2, "top": 1, "generation": 1, "device": "cpu", "quiet": True,
    "arms": ["original", "surgery", "restart"], "probe": 0,
}  # fmt: skip


class Signs(Classification):
    """Whether the sum of five numbers is positive. As if it were defined in a notebook's cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def load(self) -> Any:
        inputs = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
        targets = (inputs.sum(axis=1) > 0).astype(np.int64)
        return [(inputs[part], targets[part]) for part in (slice(80), slice(80, 100), slice(100, 120))]

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(5, self.width), nn.ReLU(), nn.Linear(self.width, 2))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)


Signs.__module__ = "__main__"
STEP = Step(Moment(1), "0", MinWeight(0.5))


def test_the_package_is_light_until_it_is_used() -> None:
    heavy = "torch", "ray", "mlflow", "optuna", "matplotlib", "pandas"
    code = f"import sys, tests, network_surgery.study as s; print([n for n in {heavy!r} if n in sys.modules], dir(s))"
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("[]")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = study.nothing


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"epoch": 3}, r"^study\.run: there is no setting 'epoch'; .*did you mean 'epochs'\?"),
        ({"trials": 0}, r"^study\.run: trials is 0, but it must be a whole number of at least 1"),
        ({"preset": "digit"}, "there is no preset 'digit'; .*did you mean 'digits'"),
        ({"schedules": [[{"when": "1ep", "layer": "0", "op": "nope"}]]}, "there is no operation 'nope'"),
        ({"space": lambda trial, layers, epochs: None}, "returned a NoneType, but it must return an ops.Schedule"),
        ({"space": lambda trial, layers, epochs: 1 / 0}, r"failed at .*test_api\.py, line \d+: ZeroDivisionError"),
        ({"schedules": Schedule((STEP,))}, r"schedules is a Schedule; give a list of schedules"),
        ({"schedules": [STEP]}, r"a schedule is a Step; give ops\.Schedule\(\(step, …\)\)"),
        ({"schedules": 3}, "schedules is a int; give a list of schedules"),
        ({"schedules": [1]}, "a schedule is 1; give ops.Schedule"),
        ({"preset": 3}, "there is no preset 3; there are cifar, "),
        ({"preset": ["digits"]}, r"there is no preset \['digits'\]; there are cifar, "),
        ({"optimizer": "ADAM"}, "there is no optimizer 'ADAM'; .*did you mean 'adam'"),
        ({"config": {"epochs": 1}}, r"config is \{'epochs': 1\}; give the path of a file"),
        ({"storage": "sqlite:////nowhere/at/all.db"}, "Optuna's storage sqlite:////nowhere/at/all.db cannot be opened"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_use_is_one_sentence_and_writes_nothing(given: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=sentence):
        study.run(Signs(64), out=tmp_path / "out", **SMALL | given)
    assert not (tmp_path / "out").exists()


def test_a_task_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    task = Signs(6)
    task.lock = __import__("threading").Lock()  # type: ignore[attr-defined]
    with pytest.raises(StudyError, match=r"the task Signs cannot be sent to the processes that train \(.*lock"):
        study.run(task, schedules=[[STEP]], out=tmp_path / "out", **SMALL)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with one_slot():
        yield


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_study_from_python(cluster: None, tmp_path: Path) -> None:
    import ray

    out, calls = tmp_path / "out", []

    def broken(trial: Any, layers: Any, epochs: int) -> Schedule:
        calls.append(trial.number)
        if len(calls) > 5 + GUESSES:  # four to see whether it works, some to see when it begins, and the first trial
            raise RuntimeError("no more")
        return Schedule((Step(Moment(1), "0", MinWeight(trial.suggest_float("keep", 0.3, 0.7))),))

    with pytest.raises(StudyError, match=r"the search space 'python:broken' failed at .*, line \d+: RuntimeError: no"):
        study.run(Signs(8), space=broken, enqueue=[{"keep": 0.5}], out=out, **SMALL)
    with pytest.raises(StudyError, match=r"the task Signs was given from Python, .*study\.resume\(path, task=…\)"):
        study.resume(out)
    with pytest.raises(StudyError, match="the space of this study is python:broken, not python:other"):
        study.resume(out, space=type("other", (), {"__call__": broken, "__name__": "other"})())
    kept = (out / "cells.jsonl").read_text()

    calls.clear()
    result = study.resume(out, task=Signs(8), space=broken, quiet=True)
    assert ray.is_initialized() and (out / "cells.jsonl").read_text().startswith(kept)
    assert list(result.trials.index) == [0, 1] and result.trials["params_keep"][0] == 0.5
    assert set(result.comparison["arm"]) == {"original", "surgery", "restart"} and len(result.comparison) == 6
    assert len(result.epochs) == 2 * result.epochs["run"].nunique() and set(result.operations["layer"]) == {"0"}
    assert result.best is not None and result.best.schedule.steps[0].layer == "0"
    assert len(result.verdicts) == 1 and result.verdict and str(result.answer["sentence"])[:9] in result._repr_html_()
    assert result.figure("arms") is result.figures["arms"]
    with pytest.raises(StudyError, match=r"this study has no figure 'arm'; .*did you mean 'arms'"):
        result.figure("arm")
    network = study.open(out, task=Signs(8)).network(seed=2)
    assert network(torch.zeros(3, 5)).shape == (3, 2) and network[0].out_features < 8  # type: ignore[index]

    kept = (out / "cells.jsonl").read_text()
    calls.clear()
    more = study.resume(out, task=Signs(8), space=broken, trials=3, quiet=True)
    ledger = (out / "cells.jsonl").read_text()
    assert ledger.startswith(kept) and len(more.trials) == 3
    with pytest.raises(StudyError, match="trials is 1, but 3 trials of this study have ended"):
        study.resume(out, task=Signs(8), space=broken, trials=1)


def test_a_study_in_the_same_folder_goes_on(cluster: None, tmp_path: Path) -> None:
    """With more seeds, schedules or trials; any other setting is named in a sentence."""
    step = {"when": "1ep", "layer": "0", "op": "min_weight", "keep": 0.5}
    given = SMALL | {"schedules": [[step]], "seeds": 1}
    study.run(Signs(6), out=tmp_path / "out", **given)
    ledger = tmp_path / "out" / "cells.jsonl"
    kept = ledger.read_text()
    more = study.run(Signs(6), out=tmp_path / "out", **given | {"seeds": 2})
    assert ledger.read_text().startswith(kept) and set(more.comparison["seed"]) == {1, 2}
    assert more.results["state"]["shared_epochs"] == 2  # surgery's first epoch of each seed
    surgery = more.results["comparison"]["cells"][-1]
    assert surgery["arm"] == "surgery" and surgery["forked"] == {"from": "original-seed-2", "epoch": 1}
    with pytest.raises(
        StudyError, match="holds a study whose epochs is 2, not 3; only trials, top and seeds may change"
    ):
        study.run(Signs(6), out=tmp_path / "out", **given | {"epochs": 3})
    with pytest.raises(StudyError, match=r"whose learning_rate is 0.001, not 0.1 \(and probe\)"):
        study.run(Signs(6), out=tmp_path / "out", **given | {"learning_rate": 0.1, "probe": 1})


@pytest.mark.parametrize("place", [5, ["a"], "a\0b"])
def test_what_is_no_path_is_refused(place: Any) -> None:
    with pytest.raises(StudyError, match=r"the study is .*; give the path of a folder"):
        study.open(place)
    with pytest.raises(StudyError, match=r"out is .*; give the path of a folder"):
        study.run(Signs(64), out=place, **SMALL)
