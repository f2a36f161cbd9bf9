"""A network before it is trained: whether it can be, by this recipe, and which of its layers can be operated on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from network_surgery.ops import Anatomy, Schedule, size
from network_surgery.ops.allocation import LEAST
from network_surgery.ops.anatomy import count, evaluating
from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.ops.network.optimizer_state import check as check_state
from network_surgery.ops.network.optimizer_state import list_optimizers
from network_surgery.study.config import Settings
from network_surgery.study.counts import format_count
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.distillation import comparable
from network_surgery.study.recipe.optimization import Optimization
from network_surgery.study.recipe.optimizer import in_words, make_optimizer
from network_surgery.study.task import start as starting
from network_surgery.study.task.check import try_task
from network_surgery.study.task.samples import Batches, size_of
from network_surgery.study.task.start import Start
from network_surgery.study.task.task import Task, call
from network_surgery.study.training.measures import file_size
from network_surgery.study.training.run import of_seed
from network_surgery.study.training.trainer import batches_per_epoch, steps_per_epoch

#: The search space that works on blocks.
DEPTH = "depth"
#: An average of the weights that keeps more of the first ones than this is a mistake.
UNTRAINED = 0.9


class Examined(NamedTuple):
    """A network before it is trained: the units of its ``layers``, its own sizes (``original``), and the sizes that are
    left at ``least``, where every layer has two units, or the one that it had; and if the study is to work on blocks,
    those of its ``stacks``.

    Sizes are ``parameters`` and ``flops``, and of the original ``bytes`` where the budget limits them.
    """

    layers: dict[str, int]
    original: dict[str, int]
    least: dict[str, int]
    stacks: dict[str, int]


def check(settings: Settings, task: Task) -> dict[str, int]:
    """The layers of ``examine``: name → units. Raises as that does."""
    return examine(settings, task).layers


def examine(settings: Settings, task: Task) -> Examined:
    """Builds the network once, with what it starts from, tries its optimizer, and says how large everything is.

    Raises:
        StudyError: no such network or optimizer, or no layer that can be operated on; no blocks, where the study is to
            work on these.
        SurgeryError: the optimizer keeps something that cannot follow surgery, or a given schedule has a budget that
            this network cannot meet.
    """
    of_seed(task, settings, settings.seed)
    model = try_task(task)
    _check_steps(settings, task)
    example = Batches(task.train.thinned(2), torch.device("cpu")).take(slice(0, 2))[0]
    if (start := starting.load(settings, task)) is not None:
        _lay(start, model, example)
    _try_optimizer(settings, model, task)
    if "distill" in settings.arms:
        with evaluating(model), torch.no_grad():
            comparable(task, call(model, example))
    anatomy = Anatomy(model, example)
    if not anatomy:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in anatomy.pinned.items())
        raise StudyError(f"the network {type(model).__name__} has no layer that can be operated on ({reasons})")
    schedules = [Schedule.from_data(steps) for steps in settings.schedules]
    for schedule in schedules:
        schedule.check_budgets(anatomy)
    on_blocks = any(step.operation.of_blocks for schedule in schedules for step in schedule.steps)
    stacks = _stacks(anatomy) if on_blocks or (settings.space == DEPTH and not schedules) else {}
    parameters, flops = count(model, example)
    original = {"parameters": parameters, "flops": flops}
    if "bytes" in (settings.budget or {}):
        original["bytes"] = file_size(model)
    least = size(anatomy, {name: min(LEAST, layer.units) for name, layer in anatomy.items()})
    return Examined({name: layer.units for name, layer in anatomy.items()}, original, least._asdict(), stacks)


def _stacks(anatomy: Anatomy) -> dict[str, int]:
    """The stacks of a network with their blocks. Raises StudyError where there is none."""
    if not anatomy.stacks:
        reasons = "".join(f"; {name}: {reason}" for name, reason in anatomy.stacks.pinned.items())
        raise StudyError(
            f"the network {type(anatomy.model).__name__} has no blocks of equal shapes that follow each other, so it "
            f"can be made neither deeper nor shallower{reasons}"
        )
    return {name: stack.units for name, stack in anatomy.stacks.items()}


def _check_steps(settings: Settings, task: Task) -> None:
    """Raises StudyError where the recipe asks for more than the epochs of this task have."""
    batches = batches_per_epoch(len(task.train), settings.batch_size)
    if settings.accumulate > batches:
        raise StudyError(
            f"accumulate is {settings.accumulate}, but an epoch has {batches} batches of {settings.batch_size} "
            f"{task.unit}; give at most {batches}"
        )
    steps = settings.epochs * steps_per_epoch(len(task.train), settings.batch_size, settings.accumulate)
    if settings.ema is not None and settings.ema ** (steps - 1) > UNTRAINED:
        raise StudyError(
            f"ema is {settings.ema}, but the run has {format_count(steps, 'step')}, after which "
            f"{settings.ema ** (steps - 1):.0%} of the average would still be the "
            "untrained network; give a smaller decay"
        )


def _lay(start: Start, model: nn.Module, example: Any) -> None:
    """Gives a network the weights of a start. Raises StudyError where its outputs have another size then."""
    with evaluating(model), torch.no_grad():
        before = call(model, example)
        start.lay(model)
        after = call(model, example)
    sizes = [tuple(each.shape) if isinstance(each, Tensor) else None for each in (before, after)]
    if sizes[0] != sizes[1]:
        raise StudyError(
            f"{start.source} answers {format_count(size_of(example), 'sample')} by {sizes[1]}, but the task needs "
            f"{sizes[0]}: what ops.save wrote goes on with the same outputs alone; start from its "
            "state_dict before surgery instead"
        )
    if isinstance(after, Tensor) and not bool(torch.isfinite(after).all()):
        raise StudyError(f"{start.source} gives outputs that are not finite")


def _try_optimizer(settings: Settings, model: nn.Module, task: Task) -> None:
    """Makes a step on a few samples, so that what cannot be trained, or not be operated on, is known before."""
    optimizer, optimization = make_optimizer(settings, model), Optimization.of(settings)
    optimization.check(optimizer)
    inputs, targets = Batches(task.train.thinned(2), torch.device("cpu")).take(slice(None))
    try:
        with torch.random.fork_rng(devices=[]), evaluating(model):
            task.training_loss(call(model, inputs), targets).mean().backward()
            optimizer.step()
    except Exception as error:  # anyone's optimizer may fail in any way
        pass_on_memory(error)
        raise StudyError(f"{in_words(settings)} cannot make a step: {first_line(error)}") from error
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()) or not _finite(model, inputs):
        raise StudyError(
            f"the first step of optimizer {settings.optimizer!r} makes a network whose outputs are not finite; lower "
            f"learning_rate, which is {settings.learning_rate:g}"
        )
    check_state(list_optimizers(optimizer), dict(model.named_parameters()))
    model.zero_grad(set_to_none=True)


def _finite(model: nn.Module, inputs: Any) -> bool:
    """Whether all that the network returns is."""
    with evaluating(model), torch.no_grad():
        outputs = _pytree.tree_leaves(call(model, inputs))
    return all(bool(each.isfinite().all()) for each in outputs if isinstance(each, Tensor))
