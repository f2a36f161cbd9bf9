"""What surgery needs of a training loop, ours or anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from network_surgery.ops.schedule import Step
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import Task
from network_surgery.study.training.evaluation import Scores


class Loop(Protocol):
    """A training loop that a schedule can be applied to; ``Trainer`` and ``study.loops.Surgeon`` are two.

    ``iteration`` counts the optimizer steps done, of ``per_epoch`` in each of ``epochs`` epochs (``math.inf`` where
    nobody knows); ``epoch`` counts the finished ones. ``averages`` are networks of the same shapes that follow. The
    ``train`` batches are shown to operations that look at activations; ``task`` has the loss of a batch.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> Optimizer | Sequence[Optimizer]: ...

    @property
    def averages(self) -> Sequence[nn.Module]: ...

    @property
    def task(self) -> Task: ...

    @property
    def train(self) -> Batches: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def iteration(self) -> int: ...

    @property
    def epoch(self) -> int: ...

    @property
    def per_epoch(self) -> int: ...

    @property
    def epochs(self) -> float: ...

    def off_the_clock(self) -> AbstractContextManager[None]:
        """What happens in this ``with`` block is not time of training."""

    def evaluate(self, batches: Batches) -> Scores:
        """Loss and metrics of the network as it is now."""

    def agreed(self, value: Any) -> Any:
        """The value (plain data) of the first of the processes that train together; of one process, its own."""

    def operated(self, step: Step, changed: Sequence[nn.Parameter]) -> None:
        """Is called after each operation, with the step of the schedule that it was and, where a step of the schedule
        freezes layers, the parameters of the layers that it changed.
        """
