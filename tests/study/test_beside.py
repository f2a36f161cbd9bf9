"""What is refused beside a running study changes nothing; what has failed is run again when its study goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from network_surgery.study import api, conduct
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.evidence.state import state
from network_surgery.study.store.folder import Folder
from network_surgery.study.training.cell import Cell

STEP = {"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}


@pytest.mark.parametrize(
    "command",
    [
        lambda place: api.compare(place, seeds=9, quiet=True),
        lambda place: api.resume(place, trials=99, quiet=True),
        lambda place: api.resume(place, failed=True, quiet=True),
        lambda place: api.track(place),
        lambda place: api.run(out=place, model="mlp", trials=99, quiet=True),
    ],
)
def test_a_running_study_is_left_as_it_is(command: Callable[[Path], object], tmp_path: Path) -> None:
    settings = Settings(model="mlp", budget={"parameters": 0.2})
    study = Folder.make(tmp_path / "study", settings, {"fc1": 128, "fc2": 64})
    study.ended(Cell("search", 0, [STEP], trial=0), {"failure": "the loss became nan"})
    before = {path.name: path.read_bytes() for path in study.path.iterdir()}
    with Folder.open(study.path).locked(), pytest.raises(StudyError, match="is being run by another process"):
        command(study.path)
    (study.path / "lock").unlink(missing_ok=True)
    assert {path.name: path.read_bytes() for path in study.path.iterdir()} == before


def test_failed_trainings_are_run_again_and_said(tmp_path: Path) -> None:
    study = Folder.make(tmp_path / "study", Settings(trials=2, top=1, racing=1), {"fc1": 8})
    study.ended(Cell("search", 0, [STEP], trial=0), {"failure": "out of memory", "lost": True})
    study.ended(Cell("search", 0, [STEP], trial=1), {"failure": "KeyError: 'x' (mine.py, line 3, in forward)"})
    assert state(study)["search"] == {"ended": 1, "of": 2}
    written = Console(file=io.StringIO(), width=200)
    conduct._say_failures(study, written)
    lines = written.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        f"1 failed for a reason that may go otherwise; run again by: surgery resume {study.path}",
        f"1 failed; once the reason is mended, run again by: surgery resume {study.path} --failed",
    ]
    assert study.run_again() == 2
    assert state(study)["search"] == {"ended": 0, "of": 2}
    again = Folder.open(study.path).records("search")
    assert [record.lost for record in again] == [True, True]
    assert again[1].result["failure"].startswith("KeyError") and len(again) == 2
    assert json.loads((study.path / "study.json").read_text())["settings"]["trials"] == 2
