"""Choices that are made by a quick measurement leave the network as it was, and a resumed run keeps to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.compute import Compute
from network_surgery.study.task.images import ImageTask, load
from network_surgery.study.training import checkpoint, pace
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run, trainer_of
from tests.study.training.test_training import CPU

SETTINGS = Settings(epochs=1, batch_size=64, held_out=64, probe=0, channels_last="auto")


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    task = load("digits", 0.25)
    return task.changed(train=task.train.thinned(160), validation=task.validation.thinned(64))


def last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def measured(monkeypatch: pytest.MonkeyPatch, plain: float, other: float) -> None:
    monkeypatch.setattr(pace, "step_seconds", lambda *given: [plain, other])


@pytest.mark.parametrize(("seconds", "chosen"), [(0.5, True), (0.94, True), (0.96, False), (2.0, False)])
def test_channels_are_last_if_that_is_clearly_faster(
    digits: ImageTask, monkeypatch: pytest.MonkeyPatch, seconds: float, chosen: bool
) -> None:
    measured(monkeypatch, 1.0, seconds)
    outcome = run(Cell("search", 0), digits, SETTINGS, CPU)
    report = {"channels_last": chosen, "step_seconds": {"contiguous": 1.0, "channels_last": seconds}}
    assert outcome["memory_format"] == report
    same = run(Cell("search", 0), digits, replace(SETTINGS, channels_last=chosen), CPU)
    assert [each["train_loss"] for each in same["epochs"]] == [each["train_loss"] for each in outcome["epochs"]]
    assert "memory_format" not in same


def test_a_resumed_run_keeps_its_choice(digits: ImageTask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured(monkeypatch, 1.0, 0.5)
    first = trainer_of(models.build("small_cnn", digits.shape, 10), digits, SETTINGS, 0, CPU)
    first.fit()
    checkpoint.save(first, tmp_path / "saved.pt")
    measured(monkeypatch, 0.5, 1.0)
    second = trainer_of(models.build("small_cnn", digits.shape, 10), digits, SETTINGS, 0, CPU)
    assert not second.compute.channels_last and not last(second.model.conv2.weight)
    checkpoint.load(second, tmp_path / "saved.pt")
    assert second.compute.channels_last is True and last(second.model.conv2.weight) and second.layout["channels_last"]


def test_measuring_leaves_nothing(digits: ImageTask) -> None:
    torch.manual_seed(0)
    model = models.build("vgg16_quarter", (1, 32, 32), 10).eval()
    task = digits.changed(train=type(digits.train)(digits.train.inputs.repeat(4, 2).repeat(4, 3), digits.train.targets))
    state, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    chosen, report = pace.with_layout(Compute(channels_last="auto"), model, task, 8, CPU)
    assert {*report["step_seconds"]} == {"contiguous", "channels_last"} and min(report["step_seconds"].values()) > 0
    assert last(model.conv2.weight) == chosen.channels_last == report["channels_last"]
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert torch.equal(random, torch.get_rng_state()) and not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_convolutions_there_is_nothing_to_measure(digits: ImageTask) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    compute, report = pace.with_layout(Compute(channels_last="auto"), model, digits, 32, CPU)
    assert compute.channels_last is False and report == {"channels_last": False, "step_seconds": {}}


def test_the_setting_is_true_false_or_auto() -> None:
    assert [Settings(channels_last=each).channels_last for each in ("true", True, "auto", "false")] == [
        True, True, "auto", False,
    ]  # fmt: skip
    with pytest.raises(StudyError, match="channels_last is 'yes', but it must be true, false or auto"):
        Settings(channels_last="yes")


def test_repeatable_kernels_are_of_gpus_and_of_the_run_alone(digits: ImageTask) -> None:
    seen: list[Any] = []
    compute = Compute(deterministic=True)
    with compute.repeatable(torch.device("cuda")):
        seen.append(torch.are_deterministic_algorithms_enabled())
    with compute.repeatable(CPU):
        seen.append(torch.are_deterministic_algorithms_enabled())
    with pytest.raises(ValueError), compute.repeatable(torch.device("cuda")):
        raise ValueError
    assert [*seen, torch.are_deterministic_algorithms_enabled()] == [True, False, False]
    outcome = run(Cell("search", 0), digits, replace(SETTINGS, model="mlp", deterministic=True), CPU)
    assert outcome["deterministic"] == {"device": "cpu", "step_time": 1.0}


def test_a_checkpoint_that_is_slow_to_write_is_written_seldom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that all of them take a twentieth of the time; one that is written in no time follows every epoch."""
    now, seconds, saved = [0.0], [0.0], list[float]()

    def save(trainer: Any, path: Path) -> None:
        saved.append(now[0])
        now[0] += seconds[0]

    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "save", save)
    for cost, wanted in ((0.1, 50), (3.0, 7)):  # seconds to write one, and how many follow epochs of 8 seconds
        now[0], seconds[0], keeper = 0.0, cost, checkpoint.Checkpointer(tmp_path / "saved.pt")
        saved.clear()
        for _ in range(50):
            now[0] += 8.0
            keeper.after_epoch(SimpleNamespace(epoch=1), {})  # type: ignore[arg-type]
        assert len(saved) == wanted and saved[0] == 8.0
