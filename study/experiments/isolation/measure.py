"""What is measured, with which options: random networks of the thesis's setting, and networks that are trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from network_surgery.study import models
from network_surgery.study.bench import experiment
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.compose import compose
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.isolation import random_weights
from network_surgery.study.experiments.isolation.network import Network
from network_surgery.study.task import images as data
from network_surgery.study.task.samples import Batches
from network_surgery.study.training.device import device_name, pick_device
from network_surgery.study.training.run import trainer_of

#: The fractions of a trained layer that stay, and those that are added.
KEEPS, GROWS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875), (0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Options(experiment.Options):
    """``width``, ``step``: of the random layers, in units. ``iterations``, ``trainings``: the numbers of random and of
    trained networks, by default ``seeds``; ``seed``: their first. ``model``, ``epochs``, ``device``: as of a study.

    Raises:
        StudyError: a value out of its range.
    """

    seeds: int = 10
    model: str = Settings.model
    epochs: int = Settings.epochs
    device: str = Settings.device
    seed: int = Settings.seed
    width: int = 2048
    step: int = 204
    iterations: int | None = None
    trainings: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, right, holds in (
            ("width", "from 4 to 16384", 4 <= self.width <= 16384),
            ("step", f"from 1 to {self.width - 2}, so that two units stay", 1 <= self.step <= self.width - 2),
            ("iterations", "at least 2, for a deviation", self.iterations is None or self.iterations >= 2),
            ("trainings", "at least 2, for a deviation", self.trainings is None or self.trainings >= 2),
        ):
            if not holds:
                raise StudyError(f"{name} is {getattr(self, name)}, but it must be {right}")
        _ = self.settings  # which are checked when they are made

    @cached_property
    def settings(self) -> Settings:
        """How networks are trained: as by ``surgery study``."""
        names = ("data", "model", "train_images", "epochs", "seed", "device")
        return compose("digits", None, {name: getattr(self, name) for name in names})

    def public(self) -> dict[str, Any]:
        """As of all experiments; of a network in a file without the file's folder."""
        return super().public() | {"model": experiment.without_folder(self.model)}


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The facts of images and device, and a task for each network."""
    settings, device = options.settings, pick_device(options.device)
    images = data.load(settings.data, settings.validation, settings.train_images)
    models.build(settings.model, images.shape, len(images.classes))  # complains now, not minutes later
    facts = experiment.image_facts(images) | {"signal_images": settings.signal_images}
    facts["device"] = device_name(device).replace("cpu", "CPU")
    random = partial(random_weights.measure, options.width, options.step, device)
    trained = partial(measure_trained, settings, images, device)
    return facts, [
        (f"{kind}-{seed}", partial(task, seed))
        for kind, task, number in (("random", random, options.iterations), ("trained", trained, options.trainings))
        for seed in range(options.seed, options.seed + (number or options.seeds))
    ]


def measure_trained(settings: Settings, images: data.ImageTask, device: torch.device, seed: int) -> list[Row]:
    """The rows of one trained network: kind ``trained`` (its validation accuracy), and those of each layer.

    Raises:
        StudyError: the network has no hidden layer.
        Diverged: its training became NaN or infinite.
    """
    torch.manual_seed(seed)
    model = models.build(settings.model, images.shape, len(images.classes))
    trainer_of(model, images, settings, seed, device).fit()
    shown, _ = Batches(images.train.thinned(settings.signal_images), device).take(slice(None))
    inputs, labels = Batches(images.validation, device).take(slice(None))
    network = Network(model, inputs, shown, labels)
    rows: list[Row] = [{"kind": "trained", "seed": seed} | network.accuracy(network.before)]
    for name, layer in network.anatomy.items():
        about = {"where": name, "units": layer.units, "seed": seed}
        rows += [row | about for row in network.rows(layer, KEEPS, GROWS, seed)]
    if not network.anatomy:
        raise StudyError(f"{settings.model} has no hidden layer that can be operated on; see 'surgery layers'")
    return rows
