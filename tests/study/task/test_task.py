"""A task of one's own: what is wrong with it is said before anything is trained; what is right is left alone."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from network_surgery.study.config import Settings
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.task import Metric, Samples, Sets, Stream, Task, build
from network_surgery.study.task.check import fresh, try_task
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from tests.study.operated import without_times


class Line(Task):
    """A table of six numbers, and their sum."""

    metric = Metric("error", "lower")

    def load(self) -> Any:
        inputs = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
        return [(part, part.sum(axis=1)) for part in (inputs[:20], inputs[20:30], inputs[30:])]

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.squeeze(1) - targets).square().mean()

    def measure(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"error": (outputs.squeeze(1) - targets).abs()}


def line(**parts: Any) -> Task:
    """The task with other parts than its own: what a user got wrong."""
    return type("Mine", (Line,), parts)()


class Ending(torch.utils.data.Dataset[Any]):
    """Data that end before their length."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> Any:
        if number > 5:
            raise IndexError("no more")
        return np.zeros(6, dtype=np.float32), np.float32(0)


def fails(*_: Any) -> Any:
    raise RuntimeError("no such thing\nsecond line")


def test_a_task_that_is_right_is_tried_and_nothing_is_left_of_that() -> None:
    torch.manual_seed(5)
    task, state = Line(), torch.get_rng_state()
    untouched = fresh(task)
    torch.manual_seed(5)
    model = try_task(task)
    assert model.training and str(model) == str(untouched)
    torch.testing.assert_close(model.state_dict(), untouched.state_dict(), rtol=0, atol=0)
    torch.manual_seed(5)
    fresh(task)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    try_task(task)
    assert torch.equal(after, torch.get_rng_state()) and not torch.equal(after, state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_task_without_any_method_is_refused_wherever_it_is_asked() -> None:
    for ask in (try_task, fresh):
        with pytest.raises(StudyError, match="Nothing has no method 'model', which every task needs"):
            ask(type("Nothing", (Task,), {})())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"load": Task.load}, "Mine has no method 'load', which every task needs"),
        ({"model": Task.model}, "Mine has no method 'model'"),
        ({"loss": Task.loss}, "Mine has no method 'loss'"),
        ({"load": fails}, "Mine.load failed: no such thing"),
        ({"load": lambda self: (1, 2)}, "Mine.load must give three sets (train, validation, test), not 2"),
        ({"load": lambda self: (1, 2, 3)}, "Mine.load gave a int for a set"),
        ({"load": lambda self: [(np.zeros((1, 6)), np.zeros(1))] * 3}, "a set of 1 sample(s); at least 2 are needed"),
        ({"load": lambda self: [(np.zeros((4, 6)), np.zeros(3))] * 3}, "all of the same number; these have 3, 4"),
        ({"load": lambda self: [(np.array(["a", "b"]), np.zeros(2))] * 3}, "must be numbers, not ndarray of <U1"),
        ({"model": fails}, "Mine.model failed: no such thing"),
        ({"model": lambda self: None}, "Mine.model made a NoneType, not a torch.nn.Module"),
        ({"model": lambda self: nn.Linear(5, 1)}, "the network of Mine fails on its training inputs: mat1 and mat2"),
        ({"loss": fails}, "Mine.training_loss fails on the network's outputs: no such thing"),
        ({"loss": lambda self, o, t: 1.0}, "must return one number, or one for each of the 4 samples, not a float"),
        ({"loss": lambda self, o, t: torch.ones(3)}, "or one for each of the 4 samples, not a tensor [3]"),
        ({"loss": lambda self, o, t: o.mean() * math.nan}, "of an untrained network is nan; it must be finite"),
        ({"loss": lambda self, o, t: torch.ones(())}, "does not depend on the network's weights"),
        ({"measure": fails}, "Mine.measure fails on the network's outputs: no such thing"),
        ({"measure": lambda self, o, t: {"error": o.mean()}}, "for each of the 4 samples; 'error' is a tensor"),
        ({"measure": lambda self, o, t: {"other": o[:, 0]}}, "Mine.metric is 'error', but measure and summarize give"),
        ({"measure": lambda self, o, t: None}, "Mine.measure must return a dict of numbers by name, not a NoneType"),
        ({"measure": lambda self, o, t: {"error": None}}, "for each of the 4 samples; 'error' is a NoneType"),
        ({"measure": lambda self, o, t: {"error": o[:, 0] * math.nan}}, "numbers for 'error' that are not finite"),
        ({"measure": lambda self, o, t: {"error": o[:, 0] * 1j}}, "must be real numbers, not complex64"),
        ({"measure": lambda self, o, t: {"error": o[:, 0].to("meta")}}, "'error', is on meta, though outputs and"),
        ({"summarize": lambda self, means: None}, "Mine.summarize must give a number for each metric, but it fails"),
        ({"summarize": lambda self, means: {"error": "low"}}, "it fails: could not convert string to float: 'low'"),
        ({"summarize": fails}, "Mine.summarize must give a number for each metric, but it fails: no such thing"),
        ({"metric": "error"}, "Mine.metric is 'error'; give Metric("),
        ({"metric": Metric}, "Mine.metric is <class"),
        ({"metric": property(fails)}, "Mine.metric fails: no such thing"),
        ({"unit": None}, "Mine.unit is None; give what a sample is called"),
        ({"classes": 5}, "Mine.classes is 5; give the names of the classes"),
        ({"at_once": 0}, "Mine.at_once is 0; give a number of samples, or None"),
        ({"load": lambda self: None}, "Mine.load must give three sets (train, validation, test), not a NoneType"),
        ({"load": lambda self: {"train": 1, "validation": 2, "test": 3}}, "must give three sets (train, validation"),
        ({"load": lambda self: sys.exit("bye")}, "Mine.load failed: bye"),
        ({"load": lambda self: [(np.zeros((0, 6)), np.zeros(0))] * 3}, "a set of 0 sample(s); at least 2 are needed"),
        ({"load": lambda self: [Ending()] * 3}, "sample 7 of Ending cannot be read: IndexError: no more"),
        ({"model": lambda self, made=nn.Linear(6, 1): made}, "returns the same parameters again; it must make a fresh"),
        ({"model": lambda self: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 1))}, "made lazy modules, which have no"),
        ({"model": lambda self: sys.exit("bye")}, "Mine.model failed: bye"),
        ({"loss": lambda self, o, t: (o > 0).sum()}, "Mine.training_loss must be real numbers, not int64"),
        ({"loss": lambda self, o, t: (o.mean(), 1)}, "or one for each of the 4 samples, not a tuple"),
        ({"loss": lambda self, o, t: o.mean().to("meta")}, "Mine.training_loss is on meta, though outputs and targets"),
        ({"augment": lambda self, i, t: None}, "Mine.augment fails on a training batch: cannot unpack"),
        ({"augment": lambda self, i, t: (i.double(), t)}, "the network of Mine fails on its training inputs"),
    ],
)  # fmt: skip
def test_a_task_that_is_wrong_is_one_sentence(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError) as error:
        try_task(line(**parts))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        ({"loss": lambda self, o, t: Line.loss(self, o, t) * (math.nan if len(t) > 4 else 1)}, Diverged, "loss became"),
        (
            {"measure": lambda self, o, t: {"error": o[:, 0] * (math.nan if len(t) > 4 else 1)}}, Diverged,
            "the validation error became nan in epoch 1",
        ),
        (
            {"training_loss": lambda self, o, t: Line.loss(self, o, t) if len(t) < 5 else fails()}, StudyError,
            "Mine fails on a training batch of epoch 1: no such thing",
        ),
        (
            {"augment": lambda self, i, t: (i, t) if len(t) < 5 else fails()}, StudyError,
            "Mine fails on a training batch of epoch 1: no such thing",
        ),
        (
            {"measure": lambda self, o, t: Line.measure(self, o, t) if len(t) < 5 else fails()}, StudyError,
            "Mine fails on samples that are evaluated: no such thing",
        ),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_larger_batches_alone_is_one_sentence(
    parts: dict[str, Any], kind: type[Exception], message: str
) -> None:
    task = line(**parts)
    try_task(task)
    with pytest.raises(kind) as error:
        run(Cell("search", 0), task, Settings(epochs=1, batch_size=10, device="cpu"), torch.device("cpu"))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("batch", [9, 10, 15, 19])
def test_a_run_that_is_killed_inside_an_epoch_resumes_bit_for_bit(batch: int, tmp_path: Path) -> None:
    """With a schedule of the learning rate, augmentation, an average, accumulated batches and shortened gradients."""
    settings = Settings(
        epochs=4, batch_size=4, device="cpu", lr_schedule="one_cycle", ema=0.9, accumulate=2, clip=0.5, held_out=8,
        signal_images=8,
    )  # fmt: skip
    steps = [
        {"when": "4it", "layer": "0", "op": "min_weight", "keep": 0.75, "after": "rewind"},
        {"when": "2ep", "layer": "0", "op": "weak_expand", "grow": 0.5, "after": "rewarm", "after_length": "1ep"},
    ]
    batches: list[int] = []

    class Noisy(Line):
        dies = 0

        def augment(self, inputs: torch.Tensor, targets: torch.Tensor) -> Any:
            batches.append(len(targets))
            if len(batches) == self.dies:
                raise KeyboardInterrupt
            return inputs + 0.1 * torch.randn_like(inputs), targets

    cell, saved = Cell("surgery", 1, steps, test=True), tmp_path / "cell.pt"
    whole = run(cell, Noisy(), settings, torch.device("cpu"), network=tmp_path / "whole.pt")
    assert len(batches) == 20 and len(whole["operations"]) == 2
    batches.clear()
    Noisy.dies = batch
    with pytest.raises(KeyboardInterrupt):
        run(cell, Noisy(), settings, torch.device("cpu"), saved=saved)
    Noisy.dies = 0
    torch.manual_seed(99)
    again = run(cell, Noisy(), settings, torch.device("cpu"), saved=saved, network=tmp_path / "again.pt")
    assert without_times(again) == without_times(whole)
    one, other = (torch.load(tmp_path / f"{name}.pt", weights_only=True)["weights"] for name in ("whole", "again"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_sets_may_be_pairs_samples_streams_and_datasets() -> None:
    whole = Line().sets.train
    assert isinstance(whole, Samples)
    dataset = torch.utils.data.TensorDataset(torch.tensor(whole.inputs), torch.tensor(whole.targets))
    for sets in (
        Sets(whole, Stream(dataset), whole),
        (dataset, whole, (whole.inputs, whole.targets)),
        [(torch.tensor(whole.inputs), torch.tensor(whole.targets))] * 3,
    ):
        try_task(line(load=lambda self, sets=sets: sets))


def test_without_a_metric_of_its_own_a_task_is_judged_by_its_loss() -> None:
    class Plain(Line):
        metric = Task.metric
        measure = Task.measure  # type: ignore[assignment]

    try_task(Plain())
    assert Plain().metric.name == "loss" and Plain().metric.better == "lower"


MINE = """
from __future__ import annotations
from dataclasses import dataclass
from network_surgery.study.task import Classification
from tests.study.task.test_task import Line

@dataclass
class Extra:
    size: int = 3

class Mine(Line):
    extra = Extra()

class Sized(Line):
    def __init__(self, settings):
        self.epochs = settings.epochs

class Labelled(Classification):
    pass

class Needy(Line):
    def __init__(self, a, b):
        pass

Function = Line.load
"""


def test_a_task_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    assert type(build(Settings(task=f"{path}:Mine"))).__name__ == "Mine"
    assert build(Settings(task=f"{path}:Sized", epochs=7)).epochs == 7  # type: ignore[attr-defined]
    assert build(Settings(task=f"{path}:Labelled")).label_smoothing == 0.0  # type: ignore[attr-defined]
    assert build(Settings(task=f"{path}:Labelled", label_smoothing=0.1)).label_smoothing == 0.1  # type: ignore[attr-defined]
    for name, message in {
        "Needy": "cannot be made: ",
        "Function": "must be a subclass of network_surgery.study.task.Task",
        "Absent": "there is no 'Absent' in mine.py",
    }.items():
        with pytest.raises(StudyError, match=message):
            build(Settings(task=f"{path}:{name}"))
    with pytest.raises(StudyError, match="there is no task 'pictures'; give images"):
        build(Settings(task="pictures"))


@pytest.mark.parametrize(
    ("task", "changes", "sentence"),
    [
        ("Line", {"model": "mlp"}, "model is 'mlp', but task '.*:Line' makes its own data and network"),
        ("Line", {"data": "mnist"}, "data is 'mnist', but task '.*:Line' makes its own"),
        ("Line", {"train_images": 9}, "train_images is 9, but task"),
        ("Line", {"context": 9}, "context is 9, but task"),
        ("images", {"context": 9}, "context is 9, but it is for task text alone"),
        ("text", {"normalize": "imagenet"}, "normalize is 'imagenet', but it is for task images alone"),
    ],
)
def test_a_setting_that_the_task_would_not_heed_is_refused(
    task: str, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    name = f"{path}:{task}" if task == "Line" else task
    with pytest.raises(StudyError, match=sentence):
        build(Settings(**{"task": name} | changes))
    assert build(Settings(task=f"{path}:Sized", **{"epochs": 7, "data": "mnist"})).epochs == 7  # type: ignore
