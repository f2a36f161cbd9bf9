"""Augmentation: what it does to each image, what it leaves alone, and that it repeats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.augmentation import Augmentation, apart, crop_flip, cut_out
from network_surgery.study.references import lent
from network_surgery.study.task import build
from network_surgery.study.task.check import try_task
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.task import CLASSIFICATION, Classification, Task
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from network_surgery.study.training.trainer import Trainer
from tests.study.operated import without_times
from tests.study.training.test_training import CPU, SETTINGS, SHRINK


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (64, 3, 12, 10)).float().div(127.5).sub(1)


LABELS = torch.arange(64) % 10


@pytest.mark.parametrize("channels_last", [False, True])
def test_each_image_is_shifted_and_mirrored_for_itself(images: Tensor, channels_last: bool) -> None:
    """Each is one of the 9 × 9 × 2 images that there are, and not all are the same one."""
    given = images.to(memory_format=torch.channels_last) if channels_last else images
    made, chosen = crop_flip(given), []
    assert made.shape == images.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert made.is_contiguous(memory_format=layout)
    for before, after in zip(pad(images, (4,) * 4), made, strict=True):
        windows = {
            (down, right, mirrored): before[:, down : down + 12, right : right + 10].flip(2 if mirrored else ())
            for down in range(9) for right in range(9) for mirrored in (False, True)
        }  # fmt: skip
        chosen += [place for place, window in windows.items() if torch.equal(window, after)]
    assert len(chosen) == 64
    down, right, mirrored = (set(each) for each in zip(*chosen, strict=True))
    assert down == right == set(range(9)) and mirrored == {False, True}


def test_flip_mirrors_some(images: Tensor) -> None:
    made = Augmentation("flip")(images, LABELS)[0]
    same = [torch.equal(a, b) for a, b in zip(made, images, strict=True)]
    turned = [torch.equal(a.flip(2), b) for a, b in zip(made, images, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True)) and 10 < sum(same) < 54


def test_the_square_is_cut_off_at_the_border_only(images: Tensor) -> None:
    white = torch.ones_like(images)
    gone = (cut_out(white, 4) == 0)[:, 0]
    assert not torch.equal(gone, (cut_out(white, 4) == 0)[:, 0])
    sizes = gone.flatten(1).sum(dim=1)
    assert sizes.max() == 16 and sizes.min() >= 4 and len(sizes.unique()) > 2
    for each in gone:  # a rectangle
        rows, columns = each.any(dim=1), each.any(dim=0)
        assert torch.equal(each, rows[:, None] & columns)


@pytest.mark.parametrize("kind", ["trivial", "randaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_return_images(images: Tensor, kind: Any, channels: int) -> None:
    made = Augmentation(kind)(images[:, :channels], LABELS)[0]
    assert made.shape == (64, channels, 12, 10) and made.dtype == torch.float32 and made.abs().max() <= 1
    assert ((made + 1) * 127.5 - ((made + 1) * 127.5).round()).abs().max() < 1e-3


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixed_labels_are_probabilities_that_loss_and_accuracy_take(images: Tensor, mix: Any) -> None:
    torch.manual_seed(3)
    made, odds = Augmentation(mix=mix, classes=10)(images, LABELS)
    assert made.shape == images.shape and not torch.equal(made, images)
    assert odds.shape == (64, 10)
    torch.testing.assert_close(odds.sum(dim=1), torch.ones(64))
    outputs = torch.randn(64, 10, requires_grad=True)
    task = Classification(label_smoothing=0.1)
    task.training_loss(outputs, odds).backward()
    assert outputs.grad is not None and outputs.grad.abs().sum() > 0
    assert CLASSIFICATION.measure(odds, odds)["accuracy"].mean() == 1


def test_random_numbers_apart_leave_the_others(images: Tensor) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with apart(1, CPU):
        first = crop_flip(images)
    assert torch.equal(torch.rand(3), expected)
    with apart(1, CPU):
        assert torch.equal(crop_flip(images), first)
    with apart(2, CPU):
        assert not torch.equal(crop_flip(images), first)


def batches_seen(settings: Settings, epochs: int = 2) -> list[Tensor]:
    """The batches of a run, after augmentation."""
    task, seen = build(settings), []
    whole = task.augment

    def augment(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(whole(inputs, targets)[0])
        return seen[-1], targets

    task.augment = augment  # type: ignore[method-assign]
    torch.manual_seed(int(100 * settings.learning_rate))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), settings.learning_rate)
    Trainer(model, optimizer, task, epochs=epochs, batch_size=500, seed=1, device=CPU).fit()
    return seen


def test_every_arm_sees_the_same_and_every_epoch_another() -> None:
    """Of arms with the same seed: their networks, and what those draw, are others."""
    one = batches_seen(Settings(augment="crop_flip", cutout=3))
    other = batches_seen(Settings(augment="crop_flip", cutout=3, learning_rate=0.5))
    assert len(one) == 6 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one[:3], one[3:], strict=True))


def test_dropout_is_the_same_with_and_without() -> None:
    """An augmentation that changes nothing but draws gives the bits of none."""

    class Drawing(Classification):
        def augment(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
            torch.rand(7)
            return inputs, targets

    ends = []
    images: ImageTask = build(Settings())  # type: ignore[assignment]
    for task in (Drawing(), Classification()):
        task.__dict__["sets"] = images.sets
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        trainer = Trainer(model, optimizer, task, epochs=2, batch_size=64, seed=0, device=CPU)
        trainer.fit()
        ends.append(trainer.history[-1]["train_loss"])
    assert ends[0] == ends[1]


@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, after: int) -> None:
    settings = replace(
        SETTINGS, augment="trivial", cutout=2, mix="cutmix", precision="bf16", channels_last=True, lr_schedule="cosine",
        accumulate=2, clip=0.5, ema=0.9,
    )  # fmt: skip
    task, cell = build(settings), Cell("surgery", 0, SHRINK, test=True)
    whole, reports = run(cell, task, settings, CPU), []

    def die(epoch: dict[str, Any]) -> None:
        reports.append(epoch["epoch"])
        if len(reports) == after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cell, task, settings, CPU, tell=die, saved=tmp_path / "cell.pt")
    torch.manual_seed(99)
    assert without_times(run(cell, task, settings, CPU, saved=tmp_path / "cell.pt")) == without_times(whole)
    assert without_times(run(cell, build(SETTINGS), SETTINGS, CPU))["epochs"] != without_times(whole)["epochs"]


def test_a_task_that_python_gave_is_refused_what_it_would_not_heed_and_stays_as_it_is() -> None:
    given = build(Settings(augment="flip"))
    name = "python:ImageTask"
    with lent({name: given}):
        for setting, value in (("augment", "flip"), ("cutout", 3), ("mix", "mixup")):
            with pytest.raises(StudyError, match=f"{setting} is {value!r}, but it is for task images alone"):
                build(Settings(task=name, **{setting: value}))
        smooth = build(Settings(task=name, label_smoothing=0.1))
        assert smooth.augments and smooth.label_smoothing == 0.1 and given.label_smoothing == 0  # type: ignore[attr-defined]
        assert smooth.changed(network="mlp").label_smoothing == 0.1  # type: ignore[attr-defined]
        given.label_smoothing = 0.2  # type: ignore[attr-defined]
        assert build(Settings(task=name)).label_smoothing == 0.2  # type: ignore[attr-defined]
    with lent({"python:Task": Task()}), pytest.raises(StudyError, match="label_smoothing is 0"):
        build(Settings(task="python:Task", label_smoothing=0.1))


def test_a_part_of_the_images_keeps_the_augmentation_and_smoothed_labels() -> None:
    task = build(Settings(augment="flip", label_smoothing=0.1))
    assert task.changed(train=task.train.thinned(9)).label_smoothing == 0.1  # type: ignore[attr-defined]
    assert task.augments and task.changed(train=task.train.thinned(9)).augmentation == task.augmentation  # type: ignore[attr-defined]
    assert not build(Settings()).augments


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from network_surgery.study.task import Task\nclass Mine(Task): pass\n")
    with pytest.raises(StudyError, match="cutout is 3, but it is for task images alone"):
        build(Settings(task=f"{tmp_path}/mine.py:Mine", cutout=3))
    with pytest.raises(StudyError, match="at least 2 are needed"):
        Augmentation(mix="mixup")

    class Failing(Classification):
        def augment(self, inputs: Any, targets: Any) -> tuple[Any, Any]:
            raise ValueError("no such\nluck")

        def model(self) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    task = Failing()
    task.__dict__["sets"] = build(Settings()).sets
    with pytest.raises(StudyError, match=r"^Failing\.augment fails on a training batch: no such$"):
        try_task(task)
