"""Energy: which joules are counted, of which device, and where there are none. NVML is a stand-in here."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.ops import MinWeight, Moment, Schedule, Step
from network_surgery.study.config import Settings
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training import run as training
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.energy import Energy, counter_of
from network_surgery.study.training.run import run
from network_surgery.study.training.trainer import Callback, Trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
SETTINGS = Settings(model="mlp", epochs=3, batch_size=64, held_out=64, probe=0, gpus_per_trial=1)
SHRINK = Schedule((Step(Moment(1), "fc1", MinWeight(0.5)),)).to_data()
DEVICES = {"GPU-aaaa-0": 5_000, "GPU-bbbb-1": 77_500}  # millijoules


class Work(Callback):
    """Draws a joule for a step, 100 for an operation at the second epoch, 1,000 for every look after an epoch."""

    joules = 0.0

    def before_step(self, trainer: Trainer) -> None:
        self.joules += 100 * (trainer.iteration == trainer.per_epoch)

    def after_step(self, trainer: Trainer, loss: torch.Tensor) -> None:
        self.joules += 1

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        self.joules += 1000


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


def test_training_and_operations_count_and_evaluation_does_not(digits: ImageTask) -> None:
    model, work = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), Work()
    energy = Energy(lambda: work.joules)
    trainer = Trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.1), digits, epochs=3, batch_size=64, seed=0, device=CPU,
        callbacks=[energy, work],
    )  # fmt: skip
    trainer.fit()
    steps = trainer.per_epoch - 1  # the last one's joule is drawn after the counter was read
    assert [record["joules"] for record in trainer.history] == [steps, 100 + steps, steps]


def test_an_outcome_has_the_joules_of_its_epochs_and_what_was_sunk(
    digits: ImageTask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    readings = iter(float(n * n) for n in range(1000))
    monkeypatch.setattr(training, "counter_of", lambda device: lambda: next(readings))
    found = run(Cell("surgery", 1, SHRINK), digits, SETTINGS, CPU)
    assert [epoch["joules"] for epoch in found["epochs"]] == [1, 5, 9]  # 1² − 0², 3² − 2², 5² − 4²
    assert found["joules"] == 15
    late = Cell("restart_late", 1, epochs=1)
    assert run(late, digits, SETTINGS, CPU)["joules"] == 13
    assert run(Cell("restart_late", 1, epochs=1, sunk={"joules": 2.0}), digits, SETTINGS, CPU)["joules"] == 17 + 2
    assert run(Cell("restart_late", 1, epochs=1, sunk={"seconds": 2.0}), digits, SETTINGS, CPU)["joules"] is None


def test_a_resumed_training_keeps_its_joules(
    digits: ImageTask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    readings = iter(range(1000))
    monkeypatch.setattr(training, "counter_of", lambda device: lambda: float(next(readings)))

    def stop(epoch: dict[str, Any]) -> None:
        if epoch["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Cell("surgery", 1, SHRINK), digits, SETTINGS, CPU, stop, tmp_path / "saved.pt")
    monkeypatch.setattr(training, "counter_of", lambda device: None)  # on a machine that has no counter
    found = run(Cell("surgery", 1, SHRINK), digits, SETTINGS, CPU, saved=tmp_path / "saved.pt")
    assert [epoch.get("joules") for epoch in found["epochs"]] == [1, 1, None] and found["joules"] is None


def test_a_shared_device_tells_nothing_of_a_trial(digits: ImageTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "counter_of", lambda device: lambda: 1.0)
    shared = Settings(model="mlp", epochs=1, batch_size=64, held_out=64, probe=0, gpus_per_trial=0.5)
    assert run(Cell("original", 1), digits, shared, CPU)["joules"] is None


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Two devices; the process sees the second one alone, as its first."""
    module = types.ModuleType("pynvml")

    class NVMLError(Exception): ...

    def handle(uuid: str) -> str:
        if uuid not in DEVICES:
            raise NVMLError("Not Found")
        return uuid

    names: dict[str, Any] = {
        "NVMLError": NVMLError, "nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": handle,
        "nvmlDeviceGetTotalEnergyConsumption": DEVICES.__getitem__,
    }  # fmt: skip
    for name, value in names.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    seen = types.SimpleNamespace(uuid="bbbb-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: seen)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return module


def test_the_counter_is_that_of_the_device_that_the_process_sees(nvml: types.ModuleType) -> None:
    counter = counter_of(GPU)
    assert counter is not None and counter() == 77.5


def test_without_a_counter_there_are_no_joules(nvml: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counter_of(CPU) is None
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="a-slice"))
    assert counter_of(GPU) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert counter_of(GPU) is None
