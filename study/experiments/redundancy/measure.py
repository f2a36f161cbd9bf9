"""What is measured: the principal components that each hidden layer of a network needs, before and after some training.

A layer's outputs are those that its readers receive, after norm and activation: ``[images × positions, units]``,
centred across units as PCNS has it (``Condensed.spectrum``). They are looked at in evaluation mode on training images.
BatchNorm's statistics of the untrained network are estimated on training images first: at their initial 0 and 1 the
norms change nothing, and the comparison would be one of networks with and without norms.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.optim import Adam
from torch.optim.swa_utils import update_bn

from network_surgery.ops import PCNS, Anatomy, Plan, Signals, operate, trial_surgery
from network_surgery.ops.maths.condensed import components_needed, units_needed
from network_surgery.ops.network.masks import parameters_of
from network_surgery.study import models
from network_surgery.study.bench import experiment
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.errors import StudyError
from network_surgery.study.task import images as sources
from network_surgery.study.task.images import Images, ImageTask
from network_surgery.study.task.task import CLASSIFICATION
from network_surgery.study.training.evaluation import evaluate
from network_surgery.study.training.trainer import Shown, Trainer

#: Networks of torchvision: the side of the images that they are given (the smallest that they take, 32 at least), and
#: Adam's learning rate (lower for those without norms).
ARCHITECTURES = {
    "alexnet": (64, 3e-4),
    "squeezenet1_1": (32, 3e-4),
    "shufflenet_v2_x1_0": (32, 1e-3),
    "mobilenet_v2": (32, 1e-3),
    "resnet18": (32, 1e-3),
    "densenet121": (32, 1e-3),
}
#: Shares of the variance that are to be explained.
SHARES = (0.9, 0.99, 0.999, 0.9999)
#: The variance that PCNS may drop, where it is tried.
THRESHOLD = 0.01
#: The widest layer that PCNS is tried on; of a network with a wider one only the size is computed.
WIDEST = 2048
BATCH, LOOK, VALIDATION = 32, 256, 0.2


@dataclass(frozen=True)
class Options(experiment.Options):
    """``networks``: of ``ARCHITECTURES``, with commas between them; ``epochs``: length of every run."""

    train_images: int | None = 3000
    seeds: int = 3
    networks: str = ",".join(ARCHITECTURES)
    epochs: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.networks.split(",")) - set(ARCHITECTURES):
            raise StudyError(
                f"no network {', '.join(sorted(unknown))}; give one or several of {', '.join(ARCHITECTURES)}"
            )


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts, and a task for each network with each seed."""
    data = sources.load(options.data, VALIDATION, options.train_images)
    tasks: list[Task] = [
        (f"{network}-{seed}", partial(looks, data, network, seed, options.epochs))
        for network in options.networks.split(",")
        for seed in range(options.seeds)
    ]
    return experiment.image_facts(data), tasks


def looks(data: ImageTask, network: str, seed: int, epochs: int) -> list[Row]:
    """What is seen (see ``look``) of an ``untrained`` network and of the ``trained`` one (Adam).

    The third row has the accuracy right after PCNS on every layer, unless a layer is wider than ``WIDEST``.
    """
    side, rate = ARCHITECTURES[network]
    data = suit(data, side)
    torch.manual_seed(seed)
    model = models.build(f"torchvision:{network}", data.shape, len(data.classes))
    trainer = Trainer(
        model, Adam(model.parameters(), rate), data, epochs=epochs, batch_size=BATCH, seed=seed,
        device=torch.device("cpu"),
    )  # fmt: skip
    about = {"network": network, "seed": seed}
    rows = [about | {"moment": "untrained"} | look(estimate_statistics(model, Shown(trainer.train, LOOK)), trainer)[0]]
    trainer.fit()
    row, signals = look(model, trainer)
    rows.append(about | {"moment": "trained"} | row)
    if max(row["units"]) <= WIDEST:
        layers = Anatomy(model, trainer.train.take(slice(0, 2))[0]).values()
        for layer in reversed(list(layers)):  # last to first: what a layer emits is still what was seen
            operate(layer, PCNS(THRESHOLD), signals=signals)
        rows.append(
            about | {"moment": "after PCNS", "accuracy": evaluate(model, CLASSIFICATION, trainer.validation)[1]}
        )
    return rows


def estimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy in evaluation mode whose BatchNorm statistics are plain averages over these batches of inputs."""
    model = copy.deepcopy(model).eval()
    with torch.random.fork_rng(devices=[]):  # dropout draws; what follows does as if nothing had been estimated
        update_bn(batches, model)
    return model.eval()


def look(model: nn.Module, trainer: Trainer) -> tuple[Row, Signals]:
    """A row, and the signals of training images that it is calculated from.

    ``accuracy`` on validation images and ``parameters`` of the network; of its layers, from first to last, ``units``,
    ``samples`` (rows that were seen) and ``needed [layers, shares]`` (principal components); ``left``: the parameters
    if every layer had as many units as PCNS would leave.
    """
    layers = list(Anatomy(model, trainer.train.take(slice(0, 2))[0]).values())
    signals = Signals.over(model, Shown(trainer.train, LOOK), layers)
    spectra = [signals.together(layer).spectrum() for layer in layers]
    plans = [
        Plan(layer, "size", tuple(range(min(layer.units, units_needed(spectrum, THRESHOLD)))))
        for layer, spectrum in zip(layers, spectra, strict=True)
    ]
    with trial_surgery(*plans):
        left = parameters_of(model)
    return {
        "accuracy": evaluate(model, CLASSIFICATION, trainer.validation)[1], "parameters": parameters_of(model),
        "left": left,
        "units": [layer.units for layer in layers], "samples": [signals.samples(layer) for layer in layers],
        "needed": [[components_needed(spectrum, 1 - share) for share in SHARES] for spectrum in spectra],
    }, signals  # fmt: skip


def suit(data: ImageTask, side: int) -> ImageTask:
    """The data with three colours and images of at least ``side`` pixels a side (bilinear)."""

    def changed(images: Images) -> Images:
        pixels = torch.tensor(images.pixels)
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        if min(pixels.shape[2:]) < side:
            pixels = interpolate(pixels.float(), (side, side), mode="bilinear").round().to(torch.uint8)
        return Images(pixels.numpy(), images.labels)

    return ImageTask(changed(data.train), changed(data.validation), changed(data.test), data.classes)
