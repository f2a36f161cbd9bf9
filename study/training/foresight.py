"""What of listed schedules can never be done, known before anything is trained.

Each schedule is gone through on a network that is not trained: its steps in their order, on a few samples. What is
refused by the values of weights or by data says nothing, since training changes both. What is refused by the kind of
modules, or since a layer is gone, stays so, unless values decide what the steps before leave of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import NamedTuple

import torch

from network_surgery.ops import Anatomy, Condition, Plan, Schedule, Signals, operate
from network_surgery.ops.anatomy import WHOLE, Stack
from network_surgery.ops.errors import SurgeryError, Unsuitable
from network_surgery.ops.schedule import Step
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.optimizer import make_optimizer
from network_surgery.study.task import start as starting
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.start import Start
from network_surgery.study.task.task import Task
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import make_network, of_seed
from network_surgery.study.training.trainer import Shown, steps_per_epoch

#: Seconds after which no further step is tried: what a large network refuses is then found out by training it.
PATIENCE = 20.0
#: Samples that are shown to operations that look at data.
SAMPLES = 16


class Refusal(NamedTuple):
    """A ``step`` that is refused on the untrained network, for a ``reason`` that training does not change.

    ``certain``: nothing before it can make that go otherwise.
    """

    step: Step
    reason: str
    certain: bool


def foresee(settings: Settings, task: Task, tell: Callable[[str], None] = lambda words: None) -> None:
    """Goes through the schedules of the settings; ``tell`` is given a line where a step may never be done.

    Raises:
        StudyError: a step can never be done.
    """
    if not settings.schedules:
        return
    until, start = perf_counter() + PATIENCE, starting.load(settings, task)
    for number, data in enumerate(settings.schedules, 1):
        if perf_counter() > until:
            return
        which = f"schedule {number} of {len(settings.schedules)}" if settings.schedules[1:] else "the schedule"
        for step, reason, certain in refusals(Schedule.from_data(data), settings, task, start, until):
            if certain:
                raise StudyError(f"{which} has the step '{step}', which can never be done: {reason}")
            tell(f"{which} has the step '{step}', which may never be done: {reason}")


def refusals(
    schedule: Schedule, settings: Settings, task: Task, start: Start | None = None, until: float = float("inf")
) -> list[Refusal]:
    """The steps that are refused for reasons other than values, in the order in which they are due.

    A step that waits for a condition is done at its first look; one with a budget is left out, as it only removes
    units. ``start``: what training starts from, where it has been loaded; ``until``: no step is tried after that time.
    """
    found = list[Refusal]()
    try:
        with torch.random.fork_rng(devices=[]):
            for refusal in _try(schedule, settings, task, start, until):
                found.append(refusal)
    except Exception:  # anyone's network or operation fails in any way, or memory ran out: training will tell
        return found
    return found


def _try(schedule: Schedule, settings: Settings, task: Task, start: Start | None, until: float) -> Iterator[Refusal]:
    torch.manual_seed(settings.seed)
    task = of_seed(task, settings, settings.seed)
    model = make_network(Cell("surgery", settings.seed), task, settings, start)
    optimizer = make_optimizer(settings, model)
    train = Batches(task.train.thinned(min(SAMPLES, settings.signal_images)), torch.device("cpu"))
    shown = Shown(train, len(train))
    anatomy = Anatomy(model, train.take(slice(0, 2))[0])
    per_epoch = steps_per_epoch(len(task.train), settings.batch_size, settings.accumulate)
    settled, blocks = True, True  # whether values decide nothing so far, and whether there were only steps on blocks
    for step in sorted(schedule.steps, key=lambda each: each.when.iteration(per_epoch)):
        if perf_counter() > until:
            return
        if step.allocation is not None:
            blocks = False
            continue
        certain = settled and (blocks or not step.operation.of_blocks)
        try:
            layer = anatomy[step.layer]
        except SurgeryError as error:
            gone = step.layer not in {*anatomy.pinned, *anatomy.stacks.pinned}
            yield Refusal(step, str(error), certain and gone)
            settled = blocks = False
            continue
        try:
            signals = None
            if step.operation.needs_signals or step.repair:
                signals = Signals.over(model, shown, [layer], shown.targets, task.loss)
            plan = operate(layer, step.operation, optimizer, signals, repair=step.repair)
        except SurgeryError as error:
            if isinstance(error, Unsuitable):
                yield Refusal(step, str(error).removeprefix(f"{step.operation!r} on {step.layer}: "), certain)
            settled = False
        else:
            settled = certain and (_is_settled(plan) if not isinstance(step.when, Condition) else not _reshapes(plan))
        blocks = blocks and step.operation.of_blocks


def _reshapes(plan: Plan) -> bool:
    """Whether a plan does more than remove, add or change units."""
    return bool(plan.modules or plan.masks or plan.expressed)


def _is_settled(plan: Plan) -> bool:
    """Whether no values decide which layers there are after a plan, and how their weights are stored."""
    if not _reshapes(plan):
        return True
    if isinstance(plan.layer, Stack):  # the blocks of a run are alike, so it does not matter which of them go
        return len(plan.layer.runs) == 1
    return plan.layer.name != WHOLE and not plan.masks
