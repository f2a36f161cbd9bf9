"""What is measured: one training run for each method, ratio and seed, and each seed's original without operations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from network_surgery.study.bench import experiment
from network_surgery.study.bench.rows import Measured, Row, Task
from network_surgery.study.compose import compose
from network_surgery.study.config import Settings
from network_surgery.study.experiments.thesis import space
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.examine import examine
from network_surgery.study.training.run import run

#: The preset whose settings these are, but for the options.
PRESET = "thesis-small"
#: What the page reads of an outcome.
OUTCOME = ("test_metric", "train_test_gap", "operations")
EPOCH = ("first_loss", "last_loss", "validation_loss")


@dataclass(frozen=True)
class Options(experiment.Options):
    """``model``: a network with the layers of ``vgg16``; ``epochs``: 12 at least; ``image_size``: see ``data.load``."""

    data: str = "cifar10"
    train_images: int | None = 1_600
    model: str = "vgg16_quarter"
    epochs: int = 25
    image_size: int | None = None

    def public(self) -> dict[str, Any]:
        return super().public() | {"model": experiment.without_folder(self.model)}


def settings_of(options: Options) -> Settings:
    """The settings of the preset, with these options.

    Raises:
        StudyError: an option is out of range.
    """
    names = ("data", "train_images", "model", "epochs", "image_size", "seeds")
    return compose(PRESET, None, {name: getattr(options, name) for name in names})


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts and the settings, and a task for each training run."""
    settings = settings_of(options)
    images = ImageTask.of(settings)
    layers = examine(settings, images).layers
    tasks: list[Task] = []
    for seed in range(1, options.seeds + 1):
        tasks.append((f"original-{seed}", partial(train, images, settings, Cell("original", seed, test=True))))
        for method, ratio in itertools.product(space.METHODS, space.RATIOS):
            schedule = space.place(layers, space.operation(method, ratio), settings.epochs).to_data()
            params = {"op": method, "ratio": ratio}
            cell = Cell("surgery", seed, schedule, params=params, test=True)
            tasks.append((f"{method}-{ratio:.2f}-{seed}", partial(train, images, settings, cell)))
    public = options.public()
    shown = settings.to_data() | {"data": public["label"], "model": public["model"]}
    return experiment.image_facts(images) | {"settings": shown}, tasks


def train(images: ImageTask, settings: Settings, cell: Cell) -> list[Row]:
    """The run's row: what ``chapter`` reads of a study's cells."""
    outcome = run(cell, images, settings, torch.device("cpu"))
    row: Row = {"arm": cell.arm, "seed": cell.seed, "params": dict(cell.params)}
    row |= {name: outcome[name] for name in OUTCOME if name in outcome}
    return [row | {"epochs": [{name: each[name] for name in EPOCH if name in each} for each in outcome["epochs"]]}]


def results_of(measured: Measured) -> dict[str, Any]:
    """The rows in the form of a study's ``results.json``, for ``page.parts``."""
    about = measured.about
    return {
        "settings": measured.facts["settings"], "machine": about["machine"],
        "comparison": {"cells": list(measured.rows)},
    }  # fmt: skip
