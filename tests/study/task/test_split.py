"""A split that follows the seed: validation is drawn anew, what is tested stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.task import Task, build
from network_surgery.study.task.images import ImageTask, load
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.examine import check
from network_surgery.study.training.run import run
from tests.study.operated import without_times
from tests.study.task.pictures import folder as images_in

CPU = torch.device("cpu")


def rows(part: Any) -> list[bytes]:
    return [bytes(pixels) for pixels in part.take(np.arange(len(part))).pixels]


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return load("digits", 0.25)


def test_validation_is_drawn_anew_and_the_test_stays(digits: ImageTask) -> None:
    one, again, other = digits.resplit(1), digits.resplit(1), digits.resplit(2)
    assert rows(one.validation) == rows(again.validation) != rows(other.validation)
    pool = sorted(rows(digits.train) + rows(digits.validation))
    for task in (one, other):
        assert sorted(rows(task.train) + rows(task.validation)) == pool
        assert rows(task.test) == rows(digits.test)
        counts = [np.bincount(each.validation.labels).tolist() for each in (task, digits)]
        assert counts[0] == counts[1]
        shared = set(rows(task.validation)) & set(rows(digits.validation))
        assert len(shared) < 0.5 * len(task.validation)  # a quarter by chance


def test_the_files_of_a_folder_are_split_as_its_held_images(tmp_path: Path) -> None:
    root = images_in(tmp_path / "images", train=8)
    held, streamed = (load(f"folder:{root}", 0.25, stream=stream).resplit(3) for stream in ("false", "true"))
    for part in ("train", "validation", "test"):
        one, other = getattr(held, part), getattr(streamed, part)
        batch = other.read(torch.arange(len(other)))[0].numpy()
        assert np.array_equal(one.pixels, batch) and np.array_equal(one.labels, other.labels)


def test_all_arms_of_a_seed_share_a_split_and_a_damaged_checkpoint_does_not_change_it(tmp_path: Path) -> None:
    settings = Settings(model="mlp", epochs=1, train_images=80, split="seed", probe=0)
    task = build(settings)
    check(settings, task)
    whole = run(Cell("original", 1), task, settings, CPU)
    saved = tmp_path / "cell.pt"
    saved.write_bytes(b"nothing")
    again = run(Cell("original", 1), task, settings, CPU, saved=saved)
    assert "is not a checkpoint" in again.pop("warnings")[0] and without_times(again) == without_times(whole)
    fixed = run(Cell("original", 1), task, Settings(model="mlp", epochs=1, train_images=80, probe=0), CPU)
    assert fixed["validation_loss"] != whole["validation_loss"]
    assert Cell("original", 1).key(settings) != Cell("original", 1).key(
        Settings(model="mlp", epochs=1, train_images=80)
    )


class Own(Task):
    """It has sets of its own."""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_on_validation": True}, "train_on_validation is true, so there is no split"),
        ({"split": "often"}, "split is 'often', but it must be one of fixed, seed"),
    ],
)
def test_what_cannot_be_split_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        Settings(**{"split": "seed", **changes})


def test_a_task_with_a_fixed_validation_set_says_so() -> None:
    with pytest.raises(StudyError, match="Own has a fixed validation set; give it a method resplit"):
        Own().resplit(1)
