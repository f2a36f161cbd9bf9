"""What the experiments on Evci 2018 (*Detecting dead weights and units*) share: his training, and looks at it.

His network on MNIST is ``evci_cnn`` (20,522 parameters), trained by plain SGD, learning rate 0.01, batches of 32; on
his 60,000 images ten epochs are 18,750 iterations. Here a length is told in iterations, for the folders at hand may
hold fewer images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from network_surgery.ops.anatomy import evaluating
from network_surgery.ops.network.masks import parameters_of
from network_surgery.study import data as sources
from network_surgery.study import models
from network_surgery.study.data import Dataset
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.rows import Row
from network_surgery.study.training.trainer import Batches, Callback, Trainer, evaluate, steps_per_epoch

#: The network by its activation.
NETWORKS = {"ReLU": "evci_cnn", "tanh": "evci_cnn_tanh"}
RATE, BATCH = 0.01, 32
#: Ten of the thesis's epochs in iterations.
ITERATIONS = 18_750
#: Images that scores and changes of the loss are taken on, and the part of the training images they are split off from.
SAMPLE, VALIDATION = 1_000, 0.06
#: Images that are sent through a network at once.
TOGETHER = 250
CPU = torch.device("cpu")


def images(name: str, most: int | None = None) -> Dataset:
    """The images by name (see ``study.data.load``), at most ``SAMPLE`` of them for validation."""
    data = sources.load(name, VALIDATION, most)
    return replace(data, validation=data.validation.thinned(SAMPLE))


class At(Callback):
    """Calls ``look(trainer)`` before the step after so many iterations, for each moment of ``moments``."""

    def __init__(self, moments: Iterable[int], look: Callable[[Trainer], None]) -> None:
        self.moments, self.look = frozenset(moments), look

    def before_step(self, trainer: Trainer) -> None:
        if trainer.iteration in self.moments:
            self.look(trainer)

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        if trainer.epoch == trainer.epochs and trainer.iteration in self.moments:
            self.look(trainer)


def prepared(data: Dataset, activation: str, seed: int, epochs: int, callbacks: Sequence[Callback] = ()) -> Trainer:
    """A fresh network and its trainer."""
    torch.manual_seed(seed)
    model = models.build(NETWORKS[activation], data.shape, len(data.classes))
    return trainer_of(model, data, seed, epochs, callbacks)


def trainer_of(model: nn.Module, data: Dataset, seed: int, epochs: int, callbacks: Sequence[Callback] = ()) -> Trainer:
    """The thesis's training of a network: plain SGD, neither momentum nor decay."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    return Trainer(
        model, optimizer, data, epochs=epochs, batch_size=BATCH, seed=seed, device=CPU, callbacks=callbacks
    )  # fmt: skip


def branch(trained: Trainer, data: Dataset, epochs: int, callbacks: Sequence[Callback] = ()) -> Trainer:
    """Goes on from a copy of a trained network, as if it had not been interrupted, to so many epochs in all."""
    trainer = trainer_of(copy.deepcopy(trained.model), data, trained.seed, epochs, callbacks)
    trainer.epoch, trainer.iteration, trainer.history = trained.epoch, trained.iteration, list(trained.history)
    trainer.fit()
    return trainer


def epochs_of(iterations: int, data: Dataset) -> int:
    """The whole epochs that hold so many iterations."""
    return math.ceil(iterations / steps_per_epoch(len(data.train), BATCH))


def moments(last: int, count: int) -> list[int]:
    """So many iterations up to the last, close at the beginning (where most changes) and wider apart later.

    >>> moments(100, 4)
    [6, 25, 56, 100]
    """
    return sorted({round(last * (at / count) ** 2) for at in range(1, count + 1)})


def looked(
    data: Dataset, activation: str, seed: int, iterations: int, count: int, look: Callable[[Trainer], Iterable[Row]]
) -> list[Row]:
    """The rows of one training, looked at ``count`` times; the last one, of ``kind`` ``end``, is how it ended."""
    rows: list[Row] = []
    about = {"activation": activation, "seed": seed}

    def at(trainer: Trainer) -> None:
        rows.extend(about | {"iteration": trainer.iteration} | row for row in look(trainer))

    epochs = epochs_of(iterations, data)
    trainer = prepared(data, activation, seed, epochs, [At(moments(iterations, count), at)])
    trainer.fit()
    return [*rows, about | {"kind": "end"} | ended(trainer, data)]


class Tail:
    """A sequential network from one of its modules on: what lies before it need not be computed again.

    ``losses()`` is the mean cross entropy of each of the sets of images, in evaluation mode, whatever has been done to
    the module and to what follows it meanwhile.
    """

    def __init__(self, model: nn.Module, name: str, sets: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not isinstance(model, nn.Sequential) or name not in dict(model.named_children()):
            raise StudyError(f"the network has no module {name!r} in a row of modules; give a torch.nn.Sequential")
        at = [child for child, _ in model.named_children()].index(name)
        self._head, self._tail = model[:at], model[at:]
        self._sizes = [len(targets) for _, targets in sets]
        self._targets = torch.cat([targets for _, targets in sets])
        with torch.no_grad():
            self._given = _in_evaluation(self._head, torch.cat([inputs for inputs, _ in sets]))

    def losses(self) -> list[float]:
        with torch.no_grad():
            scores = _in_evaluation(self._tail, self._given)
            each = nn.functional.cross_entropy(scores, self._targets, reduction="none").double()
        return [float(part.mean()) for part in each.split(self._sizes)]


def _in_evaluation(modules: nn.Module, given: Tensor) -> Tensor:
    """So many images at a time that what comes between stays in the processor's cache."""
    with evaluating(modules):
        return torch.cat([modules(part) for part in given.split(TOGETHER)])


def ended(trainer: Trainer, data: Dataset) -> Row:
    """How a training ended: on the test images, which are read here and nowhere else, and by epoch."""
    loss, accuracy = evaluate(trainer.model, Batches(data.test, CPU))
    history = trainer.history
    return {
        "test": accuracy, "test_loss": loss, "parameters": parameters_of(trainer.model),
        "iterations": trainer.iteration, "train_losses": [record["train_loss"] for record in history],
        "validation": [record["validation_accuracy"] for record in history],
    }  # fmt: skip


def samples(trainer: Trainer) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """``SAMPLE`` training images, evenly spread over the set, and the validation images: inputs and classes."""
    index = torch.linspace(0, len(trainer.train) - 1, min(SAMPLE, len(trainer.train)), dtype=torch.float64)
    return trainer.train.take(index.round().long()), trainer.validation.take(slice(None))


def magnitudes(model: nn.Module, whole: nn.Module, stayed: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The sizes of a network's weights by layer, as nested lists of the shape that they have in the ``whole`` network.

    Both are rows of modules; ``stayed``: layer → which units of the whole network are left (all where it is missing).
    A weight that is gone, with its unit or by itself, is NaN.
    """
    found: dict[str, Any] = {}
    units, before = 0, np.arange(0)  # of the layer before: how many in the whole network, and which are left
    for name, module in whole.named_children():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        outputs, inputs = module.weight.shape[:2]
        stay = np.asarray(stayed.get(name, range(outputs)))
        each = inputs // units if units else 1  # inputs that one unit of the layer before makes
        read = (before[:, None] * each + np.arange(each)).flatten() if units else np.arange(inputs)
        full = np.full(tuple(module.weight.shape), np.nan)
        weight: Any = model.get_submodule(name).weight
        full[np.ix_(stay, read)] = weight.detach().abs().double().numpy()
        found[name] = np.where(full == 0, np.nan, full).round(5).tolist()
        units, before = outputs, stay
    return found


@dataclass(frozen=True)
class Asked:
    """What a page is about: the images, what they are called, and the command that measures it."""

    name: str
    data: Dataset
    command: str


def trained_on(asked: Asked, seeds: int) -> str:
    """The networks, the images and the training, in words."""
    data = asked.data
    return (
        "**Trained on.** `evci_cnn` and `evci_cnn_tanh` (convolutions of 8 and 16 channels, 5 × 5, 64 dense units) on\n"
        f"{len(data.train):,} images of {asked.name}, {len(data.validation):,} others for validation, "
        f"{len(data.test):,} for the test:\nplain SGD {RATE:g}, batches of {BATCH}, no momentum, no decay, "
        f"{steps_per_epoch(len(data.train), BATCH)} iterations in an epoch; {seeds} seeds."
    )
