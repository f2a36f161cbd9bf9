"""Distillation: a network is trained to answer as another one does, its teacher, besides the targets.

Source: Hinton, Vinyals and Dean 2015, *Distilling the Knowledge in a Neural Network*, section 2. Where outputs are
scores of classes, it is the Kullback-Leibler divergence of the softened probabilities, times the square of the
temperature, so that its gradients keep their size; each token of a text is a sample. Of other outputs it is the mean
squared error (as Ba and Caruana 2014, *Do deep nets really need to be deep?*, of scores).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, mse_loss

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.compute import PLAIN, Compute
from network_surgery.study.task.task import Classification, Task
from network_surgery.study.task.text import TextTask


class Teacher:
    """A finished ``network``, which no longer learns.

    ``temperature``: what scores are divided by before softmax. ``weight``: the share of the teacher in the loss, 0 … 1;
    the rest is that of the targets. A teacher sees the batches as the network does, augmented.
    """

    def __init__(
        self, network: nn.Module, task: Task, temperature: float = Settings.distill_temperature,
        weight: float = Settings.distill_weight, compute: Compute = PLAIN,
    ) -> None:  # fmt: skip
        self.network, self._task, self._compute = network.eval().requires_grad_(False), task, compute
        self._temperature, self._weight = temperature, weight

    def join(self, loss: Tensor, inputs: Any, outputs: Any) -> Tensor:
        """The loss of a batch with the teacher's share in it. ``outputs``: the network's for these inputs."""
        device = loss.device
        with torch.no_grad():
            wanted, _ = comparable(self._task, self._compute.answer(self.network, inputs, device))
        found, axis = comparable(self._task, outputs)
        return (1 - self._weight) * loss + self._weight * distance(found, wanted, axis, self._temperature)


def distance(found: Tensor, wanted: Tensor, axis: int | None, temperature: float) -> Tensor:
    """How far outputs are from the teacher's, of the same shape; ``axis``: that of classes, None where there are none.

    The mean over all that is not that axis; 0 where both are equal.
    """
    if axis is None:
        return mse_loss(found, wanted)
    ours, theirs = (log_softmax(each.float() / temperature, dim=axis) for each in (found, wanted))
    return kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=axis).mean() * temperature**2


def comparable(task: Task, outputs: Any) -> tuple[Tensor, int | None]:
    """The part of a task's outputs that a teacher is compared by, and its axis of classes, where it has one.

    Raises:
        StudyError: the outputs are no tensor of numbers.
    """
    found = outputs.get("logits") if isinstance(outputs, Mapping) else outputs
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = "a tensor of whole numbers" if isinstance(found, Tensor) else f"a {type(outputs).__name__}"
        raise StudyError(
            f"distill compares a network's outputs with its teacher's, which must be a tensor of numbers (or have one "
            f"as logits), but that of {type(task).__name__} returns {kind}; leave distill out of arms"
        )
    if isinstance(task, TextTask):
        return found, -1
    return found, 1 if isinstance(task, Classification) and found.dim() > 1 else None
