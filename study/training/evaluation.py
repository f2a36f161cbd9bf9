"""Loss and metrics of a network over a set of samples."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from network_surgery.ops.errors import SurgeryError, first_line, pass_on_memory
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.recipe.compute import PLAIN, Compute
from network_surgery.study.task.samples import Batch, Batches, size_of
from network_surgery.study.task.task import Task, summarize
from network_surgery.study.training.ranks import ALONE, Ranks

#: Samples that are looked at together in training mode, where they depend on each other (as the thesis's code has it).
TOGETHER = 1000


class Scores(NamedTuple):
    """The mean loss over a set, the primary metric, and all metrics by name (accuracies as fractions).

    ``each``: of the loss (``loss``) and of the metrics that are means over samples, each sample's own value ``[n]``.
    """

    loss: float
    metric: float
    metrics: Mapping[str, float]
    each: Mapping[str, Tensor] = MappingProxyType({})

    def named(self, part: str) -> dict[str, Any]:
        """As plain data, under names that begin with the part of the data that it is of."""
        others = {f"{part}_metrics": dict(self.metrics)} if len(self.metrics) > 1 else {}
        return {f"{part}_loss": self.loss, f"{part}_metric": self.metric, **others}


def evaluate(
    model: nn.Module,
    task: Task,
    batches: Batches,
    batch_size: int = 1024,
    mode: str = "evaluation",
    compute: Compute = PLAIN,
    ranks: Ranks = ALONE,
) -> Scores:
    """Loss and metrics over a set, which is answered in batches of ``task.at_once`` or of this size; the model is left
    in the mode that it was in. ``mode``: see ``answers``. Of several ``ranks`` each answers a part and has all scores.

    Raises:
        StudyError: the task does not measure the metric that it names as its own.
    """
    sums: dict[str, Tensor] = {}
    each: dict[str, list[Tensor]] = {}
    for outputs, targets in answers(model, batches, task.at_once or batch_size, mode, compute, ranks):
        samples = size_of(targets)
        with of_batch(task, "samples that are evaluated"):
            losses, measured = task.loss(outputs, targets), task.measure(outputs, targets)
            found = {"loss": losses.mean().double() * samples}
            found |= {name: values.double().sum(dim=0) for name, values in measured.items()}
        sums = {name: sums[name] + value if sums else value for name, value in found.items()}
        for name, values in {"loss": losses, **measured}.items():
            if values.dim() == 1:
                each.setdefault(name, []).append(values)
    found_by = ranks.gathered([sums, {name: torch.cat(parts) for name, parts in each.items()}])
    found_by = [part for part in found_by if part[0]]  # the others had no sample
    means = {name: sum(part[0][name] for part in found_by) / len(batches) for name in found_by[0][0]}
    metrics, metric = summarize(task, means)
    values_of = {name: torch.cat([part[1][name] for part in found_by]) for name in found_by[0][1]}
    return Scores(float(means["loss"]), metric, metrics, values_of)


def answers(
    model: nn.Module, batches: Batches, most: int = 1024, mode: str = "evaluation", compute: Compute = PLAIN,
    ranks: Ranks = ALONE,
) -> Iterator[Batch]:  # fmt: skip
    """Outputs and targets of all samples, in order, ``most`` at a time, without gradients; with ``ranks``, of its part.

    In evaluation mode, or with ``mode="training"`` as in training: BatchNorm by the batch's own statistics, in batches
    of ``TOGETHER`` (a rest of one sample joins the batch before it). Nothing is left of that: buffers and random
    numbers are as before.
    """
    from network_surgery.ops.anatomy import evaluating
    from network_surgery.ops.anatomy.running import plainly

    training = mode == "training"
    most = max(1, min(most, math.ceil(len(batches) / ranks.size)))
    parts = torch.arange(len(batches), device=batches.home).split(TOGETHER if training else most)
    if training and len(parts) > 1 and len(parts[-1]) == 1:
        parts = (*parts[:-2], torch.cat(parts[-2:]))
    with plainly(model, training=True) if training else evaluating(model), torch.no_grad():
        for inputs, targets in batches.over(ranks.some(parts)):
            yield compute.answer(model, inputs, batches.device), targets


@contextlib.contextmanager
def of_batch(task: Task, what: str, epoch: int | None = None) -> Iterator[None]:
    """Lets what anyone's code raises in this ``with`` block, on ``what``, become a StudyError that names the task."""
    try:
        yield
    except (StudyError, SurgeryError, Diverged):
        raise
    except Exception as error:  # anyone's network, loss or augmentation may fail in any way
        pass_on_memory(error)
        when = "" if epoch is None else f" of epoch {epoch + 1}"
        raise StudyError(f"{type(task).__name__} fails on {what}{when}: {first_line(error)}") from error
