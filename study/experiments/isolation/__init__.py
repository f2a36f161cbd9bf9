"""What does an operation do to a network's output in the instant after it? The thesis's isolation study, and more.

Source: Graham 2019, *Applied HOSVD for weight compression and expansion*, 4.1.1 and 4.2.1. One layer alone is shrunk
and grown by every method; what is measured is the squared distance of the output before and after.

``random_weights``
    The thesis's setting: three dense layers of random weights.
``trained``
    The hidden layers of a network that has been trained.
``statements``, ``figures``, ``report``
    What the thesis says of it, tested; its figures with bands; all of it written down.

    surgery isolate --out study/docs
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from network_surgery.study import data, models
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.isolation import random_weights, trained
from network_surgery.study.experiments.isolation.curves import Curves
from network_surgery.study.experiments.isolation.statements import Verdict, judge
from network_surgery.study.training.trainer import device_name, pick_device


@dataclass(frozen=True)
class Isolation:
    """What is measured. ``width``, ``step`` and ``iterations`` are of the random layers, in units and networks;
    ``trainings`` of the trained ones; ``settings`` say how those are trained, on which device, and the first seed.
    """

    settings: Settings
    width: int = 2048
    step: int = 204
    iterations: int = 10
    trainings: int = 10

    def __post_init__(self) -> None:
        self._require("width", 4 <= self.width <= 16384, "from 4 to 16384")
        self._require("step", 1 <= self.step <= self.width - 2, f"from 1 to {self.width - 2}, so that two units stay")
        self._require("iterations", self.iterations >= 2, "at least 2, for a deviation")
        self._require("trainings", self.trainings >= 2, "at least 2, for a deviation")

    def _require(self, name: str, holds: bool, right: str) -> None:
        if not holds:
            raise StudyError(f"{name} is {getattr(self, name)}, but it must be {right}")


@dataclass(frozen=True)
class Found:
    """What was measured, and what follows.

    ``spectra``: by layer, the share of the fan-out's squared norm that its leading singular vectors hold at each of
    ``RANKS``, one row a network. ``accuracies`` are of the trainings, before surgery.
    """

    asked: Isolation
    curves: list[Curves]
    spectra: dict[str, list[list[float]]]
    accuracies: list[float]
    verdicts: list[Verdict]
    machine: dict[str, Any]


def run(asked: Isolation, tell: Callable[[str], None] = lambda words: None) -> Found:
    """Measures everything. Raises StudyError, SurgeryError or Diverged for what a user can put right."""
    start = time.perf_counter()
    settings = asked.settings
    device = pick_device(settings.device)
    dataset = data.load(settings.data, settings.validation)
    models.build(settings.model, dataset.shape, len(dataset.classes))  # complains now, not minutes later
    *random, spectra = random_weights.measure(asked.width, asked.step, asked.iterations, settings.seed, device, tell)
    with random_weights.one_thread_each(device):
        layers, learnt, accuracies = trained.measure(settings, dataset, asked.trainings, device, tell)
    curves = [*random, *layers]
    machine = {
        "device": device_name(device), "processor": platform.machine(), "cores": os.cpu_count(),
        "torch": torch.__version__, "python": platform.python_version(), "seconds": time.perf_counter() - start,
    }  # fmt: skip
    return Found(asked, curves, {random_weights.WHERE: spectra} | learnt, accuracies, judge(curves), machine)


def check(out: Path) -> None:
    """Raises StudyError where results cannot be written there."""
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out} is a file; choose another --out")
    existing = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise StudyError(f"{out} cannot be written: {existing} is no folder that lets you; choose another --out")
