"""A study of an earlier version, whose outcomes knew accuracy alone, is read as one of today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.store.folder import Folder
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.records import operations_of

#: A line of the ledger that an earlier version wrote: three epochs of a small network, operated on after the first.
OLDER = Path(__file__).with_name("older_cells.jsonl")


def older(place: Path) -> Folder:
    folder = Folder.make(place, Settings(objective=("accuracy",)), {"fc1": 128})
    about = json.loads((place / "study.json").read_text())
    del about["metric"], about["unit"], about["checksum"]
    (place / "study.json").write_text(json.dumps(about))
    (place / "cells.jsonl").write_text(OLDER.read_text())
    return Folder.open(folder.path)


def test_an_older_ledger_has_the_names_of_today(tmp_path: Path) -> None:
    kept = json.loads(OLDER.read_text())["result"]
    (record,) = older(tmp_path / "s").records()
    found = record.result
    assert not any("accuracy" in name for part in (found, *found["epochs"], *found["operations"]) for name in part)
    for name in ("validation", "test", "train"):
        assert found[f"{name}_metric"] == kept[f"{name}_accuracy"]
    assert [each["validation_metric"] for each in found["epochs"]] == [
        each["validation_accuracy"] for each in kept["epochs"]
    ]
    assert found["test_metrics"] == {"accuracy": kept["test_accuracy"], "top 5": kept["test_top5"]}
    (operation,) = operations_of(found)
    assert operation.metric_before == kept["operations"][0]["accuracy_before"] is not None
    assert operation.metric_after == kept["operations"][0]["accuracy_after"]
    assert found["train_test_gap"] == kept["train_test_gap"]


def test_an_older_study_is_one_of_accuracy_on_images(tmp_path: Path) -> None:
    folder = older(tmp_path / "s")
    assert (folder.metric, folder.unit) == (ACCURACY, "images")
    results = folder.write([], [])
    assert results["metric"] == ACCURACY.to_data()
    assert results["comparison"]["cells"][0]["improving"] is None  # three epochs are too few


def test_a_study_keeps_the_metric_of_its_task(tmp_path: Path) -> None:
    metric = Metric("perplexity", "lower", margin=0.05)
    made = Folder.make(tmp_path / "s", Settings(), {"fc1": 8}, None, metric, "windows")
    for folder in (made, Folder.open(tmp_path / "s"), made.changed(top=2)):
        assert (folder.metric, folder.unit) == (metric, "windows")
    results = made.write([], [])
    assert results["metric"] == metric.to_data() and results["unit"] == "windows"
    about = json.loads((tmp_path / "s" / "study.json").read_text())
    about["metric"]["size"] = 3
    del about["checksum"]
    (tmp_path / "s" / "study.json").write_text(json.dumps(about))
    with pytest.raises(StudyError, match="a kept metric is damaged"):
        Folder.open(tmp_path / "s")
