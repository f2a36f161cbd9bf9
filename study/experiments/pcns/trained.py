"""The networks, and one of them after its training: every arm goes on from copies of its weights and optimizer."""

from __future__ import annotations

import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from network_surgery.ops import Anatomy, Operation, Plan, Signals, operate
from network_surgery.study.data import Dataset
from network_surgery.study.models import Shape
from network_surgery.study.training.trainer import Batches, Shown, Trainer, evaluate

CPU = torch.device("cpu")
BATCH, SHOWN = 64, 512


def dense(activation: Callable[[], nn.Module], shape: Shape, classes: int) -> nn.Sequential:
    """Pixels – 256 – 128 – classes."""
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            layer1=nn.Linear(pixels, 256),
            active1=activation(),
            layer2=nn.Linear(256, 128),
            active2=activation(),
            out=nn.Linear(128, classes),
        )
    )


def convolutional(shape: Shape, classes: int) -> nn.Sequential:
    """3 × 3 convolutions of 16 and 32 channels with BatchNorm and ReLU, pooling, a dense layer of 64 units."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], 16, 3, padding=1),
            norm1=nn.BatchNorm2d(16),
            active1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 3, padding=1),
            norm2=nn.BatchNorm2d(32),
            active2=nn.ReLU(),
            pool2=nn.AdaptiveAvgPool2d(4),
            flatten=nn.Flatten(),
            layer3=nn.Linear(32 * 16, 64),
            active3=nn.ReLU(),
            out=nn.Linear(64, classes),
        )
    )


@dataclass(frozen=True)
class Setting:
    """A network, and how many epochs it is trained before and after it is shrunk."""

    name: str
    network: Callable[[Shape, int], nn.Sequential]
    before: int = 8
    after: int = 5


SETTINGS = (
    Setting("dense, LeakyReLU", partial(dense, partial(nn.LeakyReLU, 0.01))),
    Setting("dense, tanh", partial(dense, nn.Tanh)),
    Setting("CNN, ReLU", convolutional, before=4),
)


class Trained:
    """A network after ``setting.before`` epochs of Adam at 1e-3 on batches of 64."""

    def __init__(self, setting: Setting, seed: int, dataset: Dataset) -> None:
        torch.manual_seed(seed)
        self.setting, self.seed, self.dataset = setting, seed, dataset
        self.model: nn.Module = setting.network(dataset.shape, len(dataset.classes))
        self.optimizer: Optimizer = Adam(self.model.parameters(), lr=1e-3)
        self.test = Batches(dataset.test, CPU)
        self.train = Batches(dataset.train, CPU)
        self.seconds = self.go_on(self.model, self.optimizer, setting.before, begin=0)

    def copy(self) -> tuple[nn.Module, Optimizer]:
        return copy.deepcopy((self.model, self.optimizer))

    def go_on(self, model: nn.Module, optimizer: Optimizer, epochs: int, begin: int | None = None) -> float:
        """Trains for some epochs, the batches being those of epochs ``begin``, …; CPU seconds of one epoch."""
        first = self.setting.before if begin is None else begin
        trainer = Trainer(
            model, optimizer, self.dataset, epochs=first + epochs, batch_size=BATCH, seed=self.seed, device=CPU
        )
        trainer.epoch = first
        start = time.process_time()
        trainer.fit()
        return (time.process_time() - start) / max(epochs, 1)

    def accuracy(self, model: nn.Module) -> float:
        """Of the test images, 0 … 1."""
        return evaluate(model, self.test)[1]

    def loss(self, model: nn.Module) -> float:
        """Mean cross entropy of the test images."""
        return evaluate(model, self.test)[0]

    def anatomy(self, model: nn.Module) -> Anatomy:
        return Anatomy(model, self.train.take(slice(0, 2))[0])

    def shown(self) -> Iterable[Tensor]:
        """Training images in batches for signals, as a study shows them."""
        return Shown(self.train, SHOWN)


def cut(
    trained: Trained, model: nn.Module, optimizer: Optimizer, layer: str, operation: Operation, repair: tuple[str, ...]
) -> tuple[Plan, float]:
    """One operation on one layer with its signals; the plan, and its CPU seconds."""
    start = time.process_time()
    found = trained.anatomy(model)[layer]
    needs = operation.needs_signals or bool(repair)
    signals = Signals.over(model, trained.shown(), [found]) if needs else None
    plan = operate(found, operation, optimizer, signals, repair=repair)
    return plan, time.process_time() - start
