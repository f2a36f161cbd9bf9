"""The principal components that each hidden layer of a network needs, before and after some training.

A layer's outputs are those that its readers receive, behind norm and activation: ``[images × positions, units]``,
centred across units as PCNS has it (``Condensed.spectrum``). They are looked at in evaluation mode on training images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate
from torch.optim import Adam

from network_surgery.ops import PCNS, Anatomy, Plan, Signals, operate, trial_surgery
from network_surgery.ops.maths.condensed import components_needed, units_needed
from network_surgery.ops.network.masks import parameters_of
from network_surgery.study import models
from network_surgery.study.data import Dataset, Images
from network_surgery.study.experiments.processes import processes
from network_surgery.study.training.trainer import Shown, Trainer, evaluate

#: Networks of torchvision: the side of the images that they are given (the smallest that they take, 32 at least), and
#: Adam's learning rate (those without norms do not learn at 1e-3).
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
#: Layers up to so many units are shrunk by PCNS for a trial; of wider ones only the size is told.
WIDEST = 2048
BATCH, LOOK = 32, 256


@dataclass(frozen=True)
class Seen:
    """What was seen of a network's hidden layers, from first to last.

    ``units [layers]``; ``needed [layers, shares]``: principal components; ``samples [layers]``: rows they were
    calculated from; ``left``: the network's parameters if every layer had as many units as PCNS would leave.
    """

    layers: tuple[str, ...]
    units: NDArray[np.int64]
    needed: NDArray[np.int64]
    samples: NDArray[np.int64]
    left: int

    @property
    def fractions(self) -> NDArray[np.float64]:
        """``[layers, shares]``: components needed as a fraction of the layer's units."""
        return self.needed / self.units[:, None]


@dataclass(frozen=True)
class Measured:
    """A network of one seed. Accuracies (0 … 1) are of validation images: untrained, trained, and right after PCNS on
    every layer (None where a layer is wider than ``WIDEST``)."""

    architecture: str
    seed: int
    parameters: int
    before: Seen
    after: Seen
    untrained: float
    trained: float
    shrunk: float | None


def measure(
    data: Dataset, architectures: Sequence[str], seeds: int, epochs: int, workers: int
) -> dict[str, list[Measured]]:
    """Every network with every seed, by so many processes of one thread each."""
    tasks = [(architecture, seed) for architecture in architectures for seed in range(seeds)]
    with processes(workers) as pool:
        results = list(pool.map(partial(_of, data, epochs), tasks))
    return {name: [found for found in results if found.architecture == name] for name in architectures}


def _of(data: Dataset, epochs: int, task: tuple[str, int]) -> Measured:
    return of(data, *task, epochs)


def of(data: Dataset, architecture: str, seed: int, epochs: int) -> Measured:
    """Makes, looks at, trains (Adam), looks again, and shrinks for a trial."""
    side, rate = ARCHITECTURES[architecture]
    data = suited(data, side)
    torch.manual_seed(seed)
    model = models.build(f"torchvision:{architecture}", data.shape, len(data.classes))
    parameters = parameters_of(model)
    trainer = Trainer(
        model, Adam(model.parameters(), rate), data, epochs=epochs, batch_size=BATCH, seed=seed,
        device=torch.device("cpu"),
    )  # fmt: skip
    anatomy = Anatomy(model, trainer.train.take(slice(0, 2))[0])
    untrained = evaluate(model, trainer.validation)[1]
    before, _ = look(anatomy, trainer)
    trainer.fit()
    after, signals = look(anatomy, trainer)
    shrunk = None
    if max(after.units) <= WIDEST:
        for layer in reversed(list(anatomy.values())):  # last to first: what a layer emits is still what was seen
            operate(layer, PCNS(THRESHOLD), signals=signals)
        shrunk = evaluate(model, trainer.validation)[1]
    trained = trainer.history[-1]["validation_accuracy"]
    return Measured(architecture, seed, parameters, before, after, untrained, trained, shrunk)


def look(anatomy: Anatomy, trainer: Trainer) -> tuple[Seen, Signals]:
    """The components that every layer needs now, from training images."""
    layers = list(anatomy.values())
    signals = Signals.over(anatomy.model, Shown(trainer.train, LOOK), layers)
    spectra = [signals.together(layer).spectrum() for layer in layers]
    needed = [[components_needed(spectrum, 1 - share) for share in SHARES] for spectrum in spectra]
    plans = []
    for layer, spectrum in zip(layers, spectra, strict=True):
        count = min(layer.units, units_needed(spectrum, THRESHOLD))
        plans.append(Plan(layer, "size", tuple(range(count))))
    with trial_surgery(*plans):
        left = parameters_of(anatomy.model)
    seen = Seen(
        tuple(layer.name for layer in layers),
        np.array([layer.units for layer in layers]),
        np.array(needed),
        np.array([signals.samples(layer) for layer in layers]),
        left,
    )
    return seen, signals


def suited(data: Dataset, side: int) -> Dataset:
    """The data with three colours and images of at least ``side`` pixels a side (bilinear)."""

    def changed(images: Images) -> Images:
        pixels = torch.tensor(images.pixels)
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        if min(pixels.shape[2:]) < side:
            pixels = interpolate(pixels.float(), (side, side), mode="bilinear").round().to(torch.uint8)
        return Images(pixels.numpy(), images.labels)

    return Dataset(changed(data.train), changed(data.validation), changed(data.test), data.classes)
