"""Checkpoints: whatever is wrong with one costs time alone, and the run says what it was."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.ops import MinWeight, Moment, Schedule, Step, WeakExpand
from network_surgery.ops.network import sealed
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training import checkpoint
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run, trainer_of
from network_surgery.study.training.theatre import Theatre
from network_surgery.study.training.trainer import Trainer
from tests.study.operated import without_times

CPU = torch.device("cpu")
SETTINGS = Settings(model="mlp", epochs=3, batch_size=64, train_images=128, held_out=32, signal_images=32, probe=0)
STEPS = (("1ep", "fc1", MinWeight(0.5)), ("2ep", "fc2", WeakExpand(0.5)))
CELL = Cell("surgery", 0, Schedule(tuple(Step(Moment.parse(when), name, op) for when, name, op in STEPS)).to_data())


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


@pytest.fixture(scope="module")
def whole(digits: ImageTask) -> dict[str, Any]:
    return without_times(run(CELL, digits, SETTINGS, CPU))


@pytest.fixture(scope="module")
def kept(digits: ImageTask, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The checkpoints of a run that was interrupted in its third epoch: of two epochs, and of one (``before``)."""
    place = tmp_path_factory.mktemp("kept") / "cell.pt"
    interrupted(digits, place, 2)
    return {"last": place.read_bytes(), "before": checkpoint.before(place).read_bytes()}


def interrupted(task: ImageTask, place: Path, after: int) -> None:
    told: list[Any] = []

    def tell(epoch: dict[str, Any]) -> None:
        told.append(epoch)
        if len(told) == after + 1:  # in the epoch after the last checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(CELL, task, SETTINGS, CPU, tell, saved=place)


def resumed(task: ImageTask, place: Path) -> tuple[dict[str, Any], list[str], int]:
    """The outcome without its warnings, the warnings, and how many epochs were trained."""
    told: list[Any] = []
    outcome = without_times(run(CELL, task, SETTINGS, CPU, told.append, saved=place))
    return outcome, outcome.pop("warnings", []), len(told)


def test_a_whole_checkpoint_is_gone_on_from_without_a_word(digits: ImageTask, whole: Any, kept: Any, tmp_path: Path):
    (tmp_path / "cell.pt").write_bytes(kept["last"])
    assert resumed(digits, tmp_path / "cell.pt") == (whole, [], 1)


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(
    digits: ImageTask, whole: Any, kept: Any, tmp_path: Path
) -> None:
    place, draw = tmp_path / "cell.pt", random.Random(0)
    changed = bytearray(kept["last"])
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    place.write_bytes(changed)
    checkpoint.before(place).write_bytes(kept["before"])
    outcome, warnings, trained = resumed(digits, place)
    assert outcome == whole and trained == 2
    assert warnings[0].startswith(f"{place} is not a checkpoint: ")
    assert warnings[0].endswith("; the run went on after epoch 1")


def theatre(task: ImageTask) -> Theatre:
    return Theatre(Schedule.from_data(CELL.schedule), task.validation.thinned(32), 32)


def changed(**parts: Any) -> Callable[[Any], Any]:
    """What a checkpoint becomes where some of its parts are others (``None``: it lacks them)."""

    def change(content: Any) -> Any:
        content = content | parts
        return {name: value for name, value in content.items() if name not in parts or value is not None}

    return change


def with_weights(change: Callable[[torch.Tensor], Any]) -> Callable[[Any], Any]:
    return lambda content: (
        content | {"weights": content["weights"] | {"fc1.weight": change(content["weights"]["fc1.weight"])}}
    )


def with_moments(content: Any) -> Any:
    content["optimizer"]["state"][0]["exp_avg"] = torch.zeros(2, 2)
    return content


def with_nan_record(content: Any) -> Any:
    return content | {"history": [{"epoch": 1}, {"epoch": 2}]}


WRONG: dict[str, Callable[[Any], Any]] = {
    "a list": lambda content: [content],
    "a number": lambda content: 3,
    "nothing": lambda content: {},
    "another format": changed(format=99),
    **{f"without {name}": changed(**{name: None}) for name in (
        "architecture", "weights", "optimizer", "random", "epoch", "iteration", "history", "callbacks",
    )},
    "epoch 99": changed(epoch=99),
    "a negative epoch": changed(epoch=-1),
    "an epoch that is text": changed(epoch="two"),
    "another step": changed(iteration=1),
    "history of other epochs": changed(history=[]),
    "history without values": with_nan_record,
    "history of numbers": changed(history=[1, 2]),
    "NaN": with_weights(lambda weight: weight * float("nan")),
    "wrong shape": with_weights(lambda weight: weight[:1]),
    "wrong axes": with_weights(lambda weight: weight[0]),
    "a weight that is text": with_weights(lambda weight: "x"),
    "moments of another shape": with_moments,
    "another optimizer": changed(optimizer={"state": {}, "param_groups": []}),
    "an optimizer that is a list": changed(optimizer=[1]),
    "callbacks that are numbers": changed(callbacks={"Theatre": 3}),
    "a theatre that lacks its records": changed(callbacks={"Theatre": {"due": [0]}}),
    "random state of another size": changed(random=torch.zeros(3, dtype=torch.uint8)),
    "random state that is text": changed(random="x"),
    "architecture of another network": changed(architecture={"shapes": {"x": [1]}, "numbers": {}}),
    "architecture that is text": changed(architecture="x"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_checkpoint_with_wrong_contents_is_refused_in_one_sentence(
    name: str, digits: ImageTask, kept: Any, tmp_path: Path
) -> None:
    place = tmp_path / "cell.pt"
    place.write_bytes(kept["before"])
    content = sealed.read(place)
    with place.open("wb") as file:
        sealed.write(WRONG[name](content), file)
    trainer = trainer_of(digits.model(), digits, SETTINGS, 0, CPU, callbacks=[theatre(digits)])
    with pytest.raises(StudyError, match=r"cell\.pt is not a checkpoint") as error:
        checkpoint.load(trainer, place)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None, "a folder"])
def test_what_is_no_checkpoint_lets_the_run_start_over(
    content: Any, digits: ImageTask, whole: Any, kept: Any, tmp_path: Path
) -> None:
    place = tmp_path / "cell.pt"
    if content == "a folder":
        place.mkdir()
        (place / "mine.txt").write_text("kept")
    elif content is None:
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.write_bytes(content)
    outcome, warnings, trained = resumed(digits, place)
    assert outcome == whole and trained == 3 and warnings[-1].endswith("; the run started over")
    if content == "a folder":
        assert (tmp_path / "cell.pt.moved" / "mine.txt").read_text() == "kept"


def test_a_disk_that_is_full_costs_the_checkpoint_and_not_the_run(
    digits: ImageTask, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.sealed, "write", full)
    outcome, warnings, _ = resumed(digits, tmp_path / "cell.pt")
    assert outcome == whole and not list(tmp_path.iterdir())
    assert warnings == ["the checkpoint after epoch 3 was not written: No space left on device"]


def test_torch_itself_passes_on_that_a_disk_is_full() -> None:
    class Full:
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self) -> None: ...

    with pytest.raises(OSError, match="No space left on device"):
        sealed.write({"a": torch.zeros(3)}, Full())  # type: ignore[arg-type]


def test_an_interruption_while_a_checkpoint_is_written_leaves_the_one_before(
    digits: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, write = tmp_path / "cell.pt", sealed.write
    trainer = trainer_of(digits.model(), digits, replace(SETTINGS, epochs=1), 0, CPU)
    trainer.fit()
    checkpoint.save(trainer, place)
    whole = place.read_bytes()

    def killed(content: Any, file: Any) -> None:
        write(content, file)
        file.flush()
        os.truncate(file.name, 100)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.sealed, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(trainer, place)
    assert place.read_bytes() == whole and [each.name for each in tmp_path.iterdir()] == ["cell.pt"]


def test_nothing_of_a_run_that_has_ended_is_left(digits: ImageTask, kept: Any, tmp_path: Path) -> None:
    place = tmp_path / "cell.pt"
    place.write_bytes(kept["last"])
    checkpoint.before(place).write_bytes(kept["before"])
    checkpoint.remove(place)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_recipe_is_refused(digits: ImageTask, kept: Any, tmp_path: Path) -> None:
    (tmp_path / "cell.pt").write_bytes(kept["last"])
    trainer: Trainer = trainer_of(digits.model(), digits, replace(SETTINGS, optimizer="sgd", batch_size=32), 0, CPU)
    with pytest.raises(StudyError, match=r"is of epoch 2 and step"):
        checkpoint.load(trainer, tmp_path / "cell.pt")


def test_a_disk_that_does_not_answer_costs_no_checkpoint(
    digits: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "cell.pt"
    interrupted(digits, saved, 1)
    stale = OSError(116, "Stale file handle")
    monkeypatch.setattr(checkpoint.sealed, "read", lambda path: (_ for _ in ()).throw(stale))
    with pytest.raises(OSError, match="Stale file handle"):
        run(CELL, digits, SETTINGS, CPU, saved=saved)
    assert saved.exists()
