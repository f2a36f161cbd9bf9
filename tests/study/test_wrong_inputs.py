"""A catalogue of wrong inputs with the sentences that they are refused with, word for word (``wrong_inputs.yaml``).

Those of the command line, of pictures, texts, models, starts, checkpoints, ledgers and operations are beside what they
are about: ``test_cli``, ``task/``, ``test_models``, ``training/test_checkpoint``, ``test_doctor``, ``ops/test_misuse``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from network_surgery.ops import Schedule, SurgeryError
from network_surgery.study import conduct
from network_surgery.study.compose import compose
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError

CATALOGUE = yaml.safe_load(Path(__file__).with_name("wrong_inputs.yaml").read_text())
SMALL = {"model": "mlp", "epochs": 4, "train_images": 200, "probe": 0}


def entries(kind: str) -> Any:
    found = [(entry["given"], entry["says"]) for entry in CATALOGUE[kind]]
    return pytest.mark.parametrize(("given", "says"), found, ids=[given for given, _ in found])


def assert_says(error: BaseException, says: str) -> None:
    sentence = str(error)
    begun = says.removesuffix(" …")
    assert sentence == says if begun == says else sentence.startswith(begun), sentence
    assert "\n" not in sentence


@entries("file")
def test_wrong_files(given: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(given)
    with pytest.raises(StudyError) as refused:
        compose("smoke", Path("mine.yaml"), {})
    assert_says(refused.value, says)


@entries("schedule")
def test_wrong_schedules(given: str, says: str) -> None:
    (steps,) = Settings.from_data(yaml.safe_load(given), "mine.yaml").schedules
    with pytest.raises(SurgeryError) as refused:
        Schedule.from_data(steps).check(["fc1", "fc2"], 4, 5)
    assert_says(refused.value, says)


@entries("check")
def test_wrong_studies(given: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((StudyError, SurgeryError)) as refused:
        conduct.check(Settings.from_data(SMALL | yaml.safe_load(given), "mine.yaml"))
    assert_says(refused.value, says)
    assert not list(tmp_path.iterdir())


def test_the_catalogue_is_long() -> None:
    given = [(kind, entry["given"]) for kind, entries in CATALOGUE.items() for entry in entries]
    assert len(given) == len(set(given)) >= 150
