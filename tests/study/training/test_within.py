"""A run that is interrupted between two steps goes on there, and equals one that never was, bit for bit."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from network_surgery.ops.network import sealed
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.augmentation import Augmentation
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Stream
from network_surgery.study.training import checkpoint, graph, ranks
from network_surgery.study.training import run as training
from network_surgery.study.training import trainer as module
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run, trainer_of
from network_surgery.study.training.trainer import Callback, Trainer, steps_per_epoch
from tests.standin import recorder
from tests.study.operated import without_times

CPU = torch.device("cpu")
SETTINGS = Settings(
    model="mlp", epochs=2, batch_size=9, train_images=96, held_out=24, signal_images=16, probe=1, learning_rate=0.01,
)  # fmt: skip
SCHEDULE = [
    {"when": "3it", "layer": "fc1", "op": "min_weight", "keep": 0.5},
    {"when": "redundancy(0.05) >= 0.01 from 5it every 4it at most 2", "layer": "fc2", "op": "pcns"},
    {"when": "10it", "layer": "fc1", "op": "weak_expand", "grow": 0.25},
    {"when": "12it", "layer": "*", "op": "prune_weights", "fraction": 0.3},
]


class Dropping(nn.Module):
    """A network with BatchNorm and dropout, which draws from torch's global numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.drop = nn.Linear(64, 24), nn.BatchNorm1d(24), nn.Dropout(0.3)
        self.fc2, self.fc3 = nn.Linear(24, 16), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.drop(torch.relu(self.norm(self.fc1(images.flatten(1)))))
        return self.fc3(torch.relu(self.fc2(hidden)))


class Noisy(torch.utils.data.Dataset[Any]):
    """Pairs whose pixels are drawn anew at each reading."""

    def __init__(self, pixels: Any, labels: Any) -> None:
        self.pixels, self.labels = torch.tensor(pixels).float() / 255, torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        pixels = self.pixels[number]
        return pixels + 0.1 * torch.randn(pixels.shape) + random.random() / 100, self.labels[number]


class Digits(ImageTask):
    """The digits, for that network; of held samples or streamed ones."""

    shape = (1, 8, 8)

    def model(self) -> nn.Module:
        return Dropping()


class Stop(Callback):
    """Ends the process, as it were, after this step, which the checkpoint of it has been written for."""

    def __init__(self, after: int | None) -> None:
        self.after, self.steps = after, 0

    def after_step(self, trainer: Trainer, loss: Tensor) -> None:
        self.trainer, self.steps = trainer, self.steps + 1
        if trainer.iteration == self.after:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.Checkpointer, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint.Checkpointer, "SLOW", 1e9)


@pytest.fixture(scope="module")
def images() -> ImageTask:
    return ImageTask.of(SETTINGS)


def digits(images: ImageTask, settings: Settings = SETTINGS, train: Any = None) -> Digits:
    augmentation = Augmentation(settings.augment, settings.cutout, settings.mix, 10)
    task = Digits(train or images.train, images.validation, images.test, images.classes, augmentation=augmentation)
    task.label_smoothing = settings.label_smoothing
    return task


#: Members of the property: what differs of the settings.
RECIPES: dict[str, dict[str, Any]] = {
    "adam": {},
    "momentum, one cycle, clip, average": {
        "optimizer": "sgd", "optimizer_arguments": {"momentum": 0.9}, "lr_schedule": "one_cycle", "clip": 0.5,
        "ema": 0.9,
    },
    "accumulate": {"accumulate": 3, "batch_size": 3, "ema": 0.8},
    "bf16, augmented": {"precision": "bf16", "augment": "crop_flip"},
    "reset, decay, lasso": {"optimizer_state": "reset", "group_lasso": 0.01, "weight_decay": 0.01},
    "mixed, labels smoothed, cut out": {"mix": "mixup", "label_smoothing": 0.1, "cutout": 2},
}  # fmt: skip


def ended(cell: Cell, task: Any, settings: Settings, stop: Stop, saved: Path | None, **more: Any) -> Any:
    """The outcome, and the bits of the networks, the optimizer's state and the random numbers at the end."""
    outcome = run(cell, task, settings, CPU, saved=saved, also=[stop], **more)
    trainer = stop.trainer
    bits = ranks._digest(
        ranks._bytes(each) for each in ranks._tensors((trainer.model, *trainer.averages), trainer.optimizer).values()
    )
    return without_times(outcome), bits, torch.get_rng_state().tolist()


def interrupted(
    task: Any, settings: Settings, positions: tuple[int, ...], place: Path, cell: Cell = Cell("surgery", 1, SCHEDULE),
    **more: Any,
) -> None:  # fmt: skip
    """Checks that a run which is interrupted after each of these steps is the whole one."""
    whole = Stop(None)
    right = ended(cell, task, settings, whole, None, **more)
    assert right[0]["operations"]
    done = 0
    for position in positions:
        stop = Stop(position)
        with pytest.raises(KeyboardInterrupt):
            run(cell, task, settings, CPU, saved=place, also=[stop], **more)
        assert stop.steps == position - done
        done = position
    last = Stop(None)
    assert ended(cell, task, settings, last, place, **more) == right
    assert last.steps == whole.steps - done


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_goes_on_between_two_steps(images: ImageTask, recipe: str, tmp_path: Path) -> None:
    """Among the positions are some before and after operations, which come at 3, 10 and 12 and by a condition."""
    settings, draw = replace(SETTINGS, **RECIPES[recipe]), random.Random(recipe)
    each = steps_per_epoch(len(images.train), settings.batch_size, settings.accumulate)
    first, later = sorted(draw.sample(range(1, each - 1), 2)), draw.randrange(each + 1, 2 * each - 1)
    interrupted(digits(images, settings), settings, (*first, later), tmp_path / "cell.pt")


@pytest.mark.parametrize("workers", [0, 2])
def test_it_does_where_samples_are_streamed(images: ImageTask, workers: int, tmp_path: Path) -> None:
    """What is random in reading a sample is what it would have been."""
    settings = replace(SETTINGS, augment="crop_flip")
    train = Stream(Noisy(images.train.pixels, images.train.labels), workers)
    interrupted(digits(images, settings, train), settings, (4, 11), tmp_path / "cell.pt")


def test_it_does_with_replayed_steps(images: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is captured anew; what was replayed before counts. The last batch of an epoch is smaller."""
    monkeypatch.setitem(graph.RECORDERS, "cpu", recorder.record)
    settings = replace(SETTINGS, cuda_graph=True, batch_size=10, model="small_cnn")
    task = ImageTask.of(settings)
    steps = [{"when": "3it", "layer": "conv1", "op": "min_weight", "keep": 0.5}]
    each = steps_per_epoch(len(images.train), settings.batch_size)
    cell = Cell("surgery", 0, steps)
    interrupted(task, settings, (2, each - 2, each + 1), tmp_path / "cell.pt", cell)
    outcome = run(cell, task, settings, CPU)
    assert [epoch["replayed"] for epoch in outcome["epochs"]] == [each - 1, each - 1]


def test_no_checkpoint_is_written_before_the_last_step_of_an_epoch(images: ImageTask, tmp_path: Path) -> None:
    """A graph takes the form of the first batch that it sees, and the last one of an epoch may be smaller."""
    each, place, task = steps_per_epoch(len(images.train), SETTINGS.batch_size), tmp_path / "cell.pt", digits(images)
    with pytest.raises(KeyboardInterrupt):
        run(Cell("original", 0), task, SETTINGS, CPU, saved=place, also=[Stop(each - 1)])
    assert sealed.read(place)["iteration"] == each - 2


def test_a_short_epoch_writes_none_between_its_steps(
    images: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    place = tmp_path / "cell.pt"
    with pytest.raises(KeyboardInterrupt):
        run(Cell("original", 0), digits(images), SETTINGS, CPU, saved=place, also=[Stop(5)])
    assert not place.exists()


def test_the_next_one_waits_for_the_interval_and_for_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a clock of the test's: every 60 s, or 20 times as long as one takes to write; then each is called for."""
    monkeypatch.undo()
    now, takes, sent = [0.0], 0.0, [0]
    written: list[float] = []

    def save(trainer: Any, path: Path) -> None:
        written.append(now[0])
        now[0] += takes

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    keeper = checkpoint.Checkpointer(tmp_path / "cell.pt", lambda: sent.append(1))
    trainer: Any = SimpleNamespace(per_epoch=10**6, iteration=0, epoch=0, off_the_clock=contextlib.nullcontext)
    for step in range(1, 500):
        now[0], trainer.iteration, takes = now[0] + 1, step, 0.0 if step < 200 else 5.0
        keeper.after_step(trainer, torch.zeros(()))
    assert written[:4] == [60, 120, 180, 240] and written[4] == 240 + 5 + 100
    assert len(sent) - 1 == len(written)


WRONG: dict[str, Any] = {
    "nothing of the epoch": {"within": None},
    "an epoch that has ended": {"iteration": 100},
    "no first loss": {"within": {"total": torch.zeros(()), "counted": torch.zeros(())}},
    "seconds that are text": {"seconds": "x"},
    "a loss that is a number": {"first": 1.0},
    "a list": {"within": [1]},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_contents_are_refused_in_one_sentence(images: ImageTask, name: str, tmp_path: Path) -> None:
    place, task = tmp_path / "cell.pt", digits(images)
    with pytest.raises(KeyboardInterrupt):
        run(Cell("original", 0), task, SETTINGS, CPU, saved=place, also=[Stop(3)])
    content, change = sealed.read(place), WRONG[name]
    assert content["iteration"] == 3
    content |= change if change.keys() <= content.keys() else {"within": content["within"] | change}
    with place.open("wb") as file:
        sealed.write(content, file)
    with pytest.raises(StudyError, match=r"cell\.pt is not a checkpoint of this network|which this run of 2") as error:
        checkpoint.load(trainer_of(task.model(), task, SETTINGS, 0, CPU), place)
    assert "\n" not in str(error.value)
    outcome = run(Cell("original", 0), task, SETTINGS, CPU, saved=place)
    assert outcome["warnings"][-1].endswith(("; the run went on after step 2", "; the run started over"))


def test_energy_counts_the_epoch_before_and_after(
    images: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A joule for each reading: those of the first process, up to its checkpoint, and those of the second."""
    readings = iter(range(10**6))
    monkeypatch.setattr(training, "counter_of", lambda device: lambda: float(next(readings)))
    settings, place, cell = replace(SETTINGS, gpus_per_trial=1), tmp_path / "cell.pt", Cell("original", 0)
    for stop in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            run(cell, digits(images), settings, CPU, saved=place, also=[Stop(stop)])
    content = sealed.read(place)
    assert content["callbacks"]["Energy"]["joules"] == 3 + 2
    assert run(cell, digits(images), settings, CPU, saved=place)["joules"] > 5
    for stop in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            run(cell, digits(images), settings, CPU, saved=tmp_path / "other.pt", also=[Stop(stop)])
        monkeypatch.setattr(training, "counter_of", lambda device: None)  # a machine without a counter
    monkeypatch.setattr(training, "counter_of", lambda device: lambda: float(next(readings)))
    found = run(cell, digits(images), settings, CPU, saved=tmp_path / "other.pt")
    assert found["epochs"][0]["joules"] is None and found["epochs"][1]["joules"] > 0 and found["joules"] is None


def test_the_clock_goes_on(images: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of training are those of all processes, without writing of checkpoints. By a clock of the test's."""
    now, place = [0.0], tmp_path / "cell.pt"
    monkeypatch.setattr(module, "clock", lambda device: now[0])
    save = checkpoint.save

    class Work(Callback):
        def before_step(self, trainer: Trainer) -> None:
            now[0] += 1

    def slow(*given: Any) -> None:
        save(*given)
        now[0] += 100

    monkeypatch.setattr(checkpoint, "save", slow)
    each = steps_per_epoch(len(images.train), SETTINGS.batch_size)
    with pytest.raises(KeyboardInterrupt):
        run(Cell("original", 0), digits(images), SETTINGS, CPU, saved=place, also=[Work(), Stop(4)])
    now[0] += 1000
    outcome = run(Cell("original", 0), digits(images), SETTINGS, CPU, saved=place, also=[Work()])
    assert [epoch["train_seconds"] for epoch in outcome["epochs"]] == [each, each]
