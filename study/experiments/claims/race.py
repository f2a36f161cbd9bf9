"""Equal seconds for every arm: CPU seconds of a process of one thread, so that other processes count for little.

What a training step of an architecture costs is measured, architecture after architecture in turn, and the median is
its price; so an arm's seconds are its steps at these prices, and a disturbance meets all arms alike. Operations are
measured as they happen, with everything that they look at: anatomy, signals, plan, weights, optimizer state.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from network_surgery.study.data import Dataset
from network_surgery.study.training.trainer import Batches, evaluate

#: Turns of the calibration; and steps that one turn takes with each architecture.
TURNS, STEPS = 12, 8


@dataclass(frozen=True)
class Track:
    """The images of a race and the order in which every arm of a seed meets them: the same at the same step."""

    train: Batches
    validation: Batches
    batch: int
    seed: int

    @classmethod
    def of(cls, data: Dataset, batch: int, seed: int) -> Track:
        device = torch.device("cpu")
        return cls(Batches(data.train, device), Batches(data.validation, device), batch, seed)

    @property
    def per_epoch(self) -> int:
        return len(self.train) // self.batch

    def order(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        return torch.randperm(len(self.train), generator=generator)


@dataclass
class Runner:
    """A network on its way: its optimizer, the steps it has done, the seconds it has spent.

    ``seen``: (seconds, validation accuracy 0 … 1), from the start on.
    """

    model: nn.Module
    optimizer: Optimizer
    steps: int = 0
    seconds: float = 0.0
    seen: list[tuple[float, float]] = field(default_factory=list)

    def fork(self) -> Runner:
        return copy.deepcopy(self)

    def run(self, track: Track, until: float, price: float, ticks: int, budget: float) -> None:
        """Trains at ``price`` seconds a step for as many whole steps as end by ``until``.

        The validation images are looked at, off the clock, as the network is at every ``budget / ticks`` seconds of the
        race, and at the end.
        """
        order, epoch = torch.empty(0), -1
        self.model.train()
        while self.seconds + price <= until * (1 + 1e-9):
            if self.steps // track.per_epoch != epoch:
                epoch = self.steps // track.per_epoch
                order = track.order(epoch)
            tick = budget / ticks
            if math.ceil(self.seconds / tick - 1e-6) * tick < self.seconds + price - 1e-6 * tick:
                self.look(track)
            start = self.steps % track.per_epoch * track.batch
            step(self.model, self.optimizer, track, order[start : start + track.batch])
            self.steps += 1
            self.seconds += price
        self.look(track)

    def charge(self, seconds: float, track: Track) -> None:
        """Seconds that an operation took, which has just been done to the network."""
        self.seconds += seconds
        self.look(track)

    def rescale(self, price: float) -> None:
        """What was counted in steps so far, in seconds."""
        self.seconds *= price
        self.seen = [(at * price, accuracy) for at, accuracy in self.seen]

    def look(self, track: Track) -> None:
        """Remembers what the network is worth now, at these seconds."""
        self.seen.append((self.seconds, evaluate(self.model, track.validation)[1]))


def step(model: nn.Module, optimizer: Optimizer, track: Track, index: torch.Tensor) -> None:
    inputs, targets = track.train.take(index)
    optimizer.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()


def prices(runners: Mapping[str, Runner], track: Track) -> dict[str, float]:
    """CPU seconds of a training step of each network, on copies: the median over turns."""
    copies = {name: runner.fork() for name, runner in runners.items()}
    index = torch.arange(track.batch)
    taken: dict[str, list[float]] = {name: [] for name in copies}
    for turn in range(TURNS + 1):
        for name, runner in copies.items():
            runner.model.train()
            start = time.process_time()
            for _ in range(STEPS):
                step(runner.model, runner.optimizer, track, index)
            if turn:  # the first is to warm up
                taken[name].append((time.process_time() - start) / STEPS)
    return {name: statistics.median(values) for name, values in taken.items()}
