"""Equal seconds for every arm: CPU seconds of a process of one thread, so that other processes count for little.

What a training step of an architecture costs is measured, architecture after architecture in turn, and the median is
its price; so an arm's seconds are its steps at these prices, and a disturbance meets all arms alike. Operations are
measured as they happen, with everything that they look at: anatomy, signals, plan, weights, optimizer state.
"""

from __future__ import annotations

import copy
import functools
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import CLASSIFICATION
from network_surgery.study.training.evaluation import evaluate

#: Turns of the calibration; steps that one turn takes with each architecture; how often validation images are read.
TURNS, STEPS, TICKS = 12, 8, 24


@functools.lru_cache(maxsize=8)
def order(images: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch: the same for every arm of a seed."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))


@dataclass
class Runner:
    """A network in a race: the steps that it has done, the seconds that it has spent.

    ``seen``: (seconds, validation accuracy 0 … 1), from the start on. ``operation``: the seconds of the operation that
    it began with, ``sizes``: the units of each layer that this left.
    """

    model: nn.Module
    optimizer: Optimizer
    train: Batches
    validation: Batches
    batch: int
    seed: int
    steps: int = 0
    seconds: float = 0.0
    seen: list[tuple[float, float]] = field(default_factory=list)
    operation: float = 0.0
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def per_epoch(self) -> int:
        return len(self.train) // self.batch

    def fork(self) -> Runner:
        """A copy that goes its own way on the same images."""
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        return replace(self, model=model, optimizer=optimizer, seen=list(self.seen))

    def run(self, until: float, price: float, budget: float) -> None:
        """Trains at ``price`` seconds a step for as many whole steps as end by ``until``.

        The validation images are read, off the clock, as the network is at every ``budget / TICKS`` seconds of the
        race, and at the end.
        """
        tick = budget / TICKS
        self.model.train()
        while self.seconds + price <= until * (1 + 1e-9):
            if math.ceil(self.seconds / tick - 1e-6) * tick < self.seconds + price - 1e-6 * tick:
                self.look()
            epoch, at = divmod(self.steps, self.per_epoch)
            self.step(order(len(self.train), self.seed, epoch)[at * self.batch : (at + 1) * self.batch])
            self.steps += 1
            self.seconds += price
        self.look()

    def step(self, index: Tensor) -> None:
        """A training step on these images; it counts for nothing."""
        inputs, targets = self.train.take(index)
        self.optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.model(inputs), targets).backward()
        self.optimizer.step()

    def rescale(self, price: float) -> None:
        """Turns what was counted in steps so far into seconds."""
        self.seconds *= price
        self.seen = [(at * price, accuracy) for at, accuracy in self.seen]

    def look(self) -> None:
        """Notes the validation accuracy at these seconds."""
        self.seen.append((self.seconds, evaluate(self.model, CLASSIFICATION, self.validation)[1]))

    def curve(self, budget: float) -> list[float]:
        """The validation accuracy last seen at every tick of the race, the untrained network first."""
        at = [budget * tick / TICKS for tick in range(TICKS + 1)]
        return [[accuracy for seconds, accuracy in self.seen if seconds <= moment * 1.0001][-1] for moment in at]


def prices(runners: Mapping[str, Runner]) -> dict[str, float]:
    """CPU seconds of a training step of each network, on copies: the median over turns, the first left out."""
    copies, taken = {name: runner.fork() for name, runner in runners.items()}, {name: list[float]() for name in runners}
    for _ in range(TURNS + 1):
        for name, runner in copies.items():
            runner.model.train()
            start = time.process_time()
            for _ in range(STEPS):
                runner.step(torch.arange(runner.batch))
            taken[name].append((time.process_time() - start) / STEPS)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}
