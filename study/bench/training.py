"""Runs of an experiment: going on from a trained network, looks at it while it trains, how it ended."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from network_surgery.ops.network.masks import parameters_of
from network_surgery.study.bench.rows import Row
from network_surgery.study.models import Shape
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.training.trainer import Callback, Trainer


def train(
    data: ImageTask,
    build: Callable[[Shape, int], nn.Module],
    optimizer: Callable[[Any], Optimizer],
    epochs: int,
    seed: int,
) -> Trainer:
    """A fresh network after this number of epochs on CPU, in batches of 32.

    ``build`` receives the images' shape and number of classes, ``optimizer`` the parameters. The seed sets initial
    weights, what else is random in training, and the order of the batches.
    """
    torch.manual_seed(seed)
    model, device = build(data.shape, len(data.classes)), torch.device("cpu")
    optimizing = optimizer(model.parameters())
    trainer = Trainer(model, optimizing, data, epochs=epochs, batch_size=32, seed=seed, device=device)
    trainer.fit()
    return trainer


def fork(trained: Trainer, data: ImageTask, epochs: int, callbacks: Sequence[Callback] = ()) -> Trainer:
    """A copy that goes on as if it had not been interrupted, to ``epochs`` in all: network, optimizer, history.

    The curve of the learning rate is then that of a run of ``epochs``; one that stopped before had it with
    ``curve_epochs``.
    """
    model, optimizer = copy.deepcopy((trained.model, trained.optimizer))
    trainer = Trainer(
        model, optimizer, data, epochs=epochs, batch_size=trained.batch_size, seed=trained.seed,
        device=trained.device, callbacks=callbacks, optimization=trained.optimization,
        accuracy_mode=trained.accuracy_mode,
    )  # fmt: skip
    trainer.epoch, trainer.iteration, trainer.history = trained.epoch, trained.iteration, list(trained.history)
    return trainer


def read_end(trainer: Trainer, data: ImageTask) -> Row:
    """How a run ended: on the test images, which are read here and nowhere else, and by epoch."""
    loss, accuracy, *_ = trainer.evaluate(Batches(data.test, trainer.device))
    return {
        "test": accuracy, "test_loss": loss, "parameters": parameters_of(trainer.model),
        "iterations": trainer.iteration, "train_losses": [record["train_loss"] for record in trainer.history],
        "validation": [record["validation_metric"] for record in trainer.history],
    }  # fmt: skip


def moments(last: int, count: int) -> list[int]:
    """``count`` iterations up to the last, close at the beginning (where most changes) and wider apart later.

    >>> moments(100, 4)
    [6, 25, 56, 100]
    """
    return sorted({round(last * (at / count) ** 2) for at in range(1, count + 1)})


class At(Callback):
    """Calls ``look(trainer)`` before the step after each number of iterations in ``moments``."""

    def __init__(self, moments: Iterable[int], look: Callable[[Trainer], None]) -> None:
        self.moments, self.look = frozenset(moments), look

    def before_step(self, trainer: Trainer) -> None:
        if trainer.iteration in self.moments:
            self.look(trainer)

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        if trainer.epoch == trainer.epochs:
            self.before_step(trainer)
