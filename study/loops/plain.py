"""The surgeon: applies a schedule in a training loop that somebody has written, with four lines in it.

    surgeon = Surgeon(model, optimizer, schedule, loader)
    for inputs, targets in loader:
        model = surgeon.before_step()
        loss = …; loss.backward(); optimizer.step()
        surgeon.after_step(loss)

What it measures, and how, is the theatre's (``study.training.theatre``): the same as in a study.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from network_surgery.ops import Schedule, describe, inner, rewrap
from network_surgery.ops.network.architecture import passing
from network_surgery.ops.network.carried import take
from network_surgery.ops.network.wrappers import is_distributed
from network_surgery.ops.schedule import Step, after_data
from network_surgery.study.errors import StudyError
from network_surgery.study.loops.batches import in_precision, some, training_samples
from network_surgery.study.task.metric import Metric
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import CLASSIFICATION, Task
from network_surgery.study.training.device import clock
from network_surgery.study.training.evaluation import Scores, evaluate
from network_surgery.study.training.records import ConditionCheck, OperationRecord
from network_surgery.study.training.theatre import Theatre

#: Training samples that operations look at, and that the loss is measured on where no samples are held out.
SAMPLES = 512


class Surgeon:
    """Applies ``schedule`` to a network while somebody's own loop trains it.

    ``model`` may be wrapped (``DistributedDataParallel``, ``torch.compile``); ``optimizer``: one or several; ``train``:
    what it is trained on, a ``DataLoader`` or anything of ``study.loops.batches``. Operations that look at activations
    are shown ``signal_samples`` of its samples. ``held_out``: samples on which the loss is measured before and after
    each operation, of which ``held_out_samples`` are taken; without any, training samples.

    ``loss`` is a function of (outputs, targets): the mean over the batch, or one number for each sample; None is the
    cross entropy. ``metric`` is one of (outputs, targets) with a number for each sample, and goes into the records;
    without it that is the accuracy for the cross entropy, and the loss otherwise. ``split`` makes (inputs, targets) of
    a batch. ``averages``: networks that follow, such as ``torch.optim.swa_utils.AveragedModel``.

    ``steps_per_epoch``: optimizer steps, by default the loader's batches; ``epochs``: where it is known, the schedule
    is checked to end before training does. Without ``carry`` the optimizer forgets its state with every operation.

    ``records`` are of the operations, ``checks`` of looks at conditions.

    Raises:
        StudyError: the number of steps in an epoch is not known, or the samples are nothing that it can take.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        schedule: Schedule,
        train: Any,
        *,
        held_out: Any = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        metric: Callable[[Any, Any], Tensor] | None = None,
        split: Callable[[Any], tuple[Any, Any]] | None = None,
        averages: nn.Module | Sequence[nn.Module] = (),
        steps_per_epoch: int | None = None,
        epochs: float = math.inf,
        signal_samples: int = SAMPLES,
        held_out_samples: int = SAMPLES,
        carry: bool = True,
    ) -> None:
        check_schedule(schedule)
        self.averages = _several(averages, nn.Module, "averages")
        if not _several(optimizer, Optimizer, "optimizer"):
            raise StudyError("there is no optimizer, so nothing would follow the network: give the one that trains it")
        for name, function in (("loss", loss), ("metric", metric), ("split", split)):
            if function is not None and not callable(function):
                raise StudyError(f"{name} is {function!r:.60}; give a function")
        for name, count in (
            ("steps_per_epoch", steps_per_epoch), ("signal_samples", signal_samples),
            ("held_out_samples", held_out_samples),
        ):  # fmt: skip
            none = count is None and name == "steps_per_epoch"
            if not none and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
                raise StudyError(f"{name} is {count!r:.60}; give a whole number of at least 1")
        if not isinstance(carry, bool):
            raise StudyError(f"carry is {carry!r:.60}; give True or False")
        self.wrapped, self.model, self.optimizer = model, inner(model), optimizer
        self.task: Task = CLASSIFICATION if loss is metric is None else Measured(loss, metric)
        self.per_epoch = steps_per_epoch or _steps(train)
        self.epochs, self.iteration = epochs, 0
        self.device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        samples = training_samples(train, split)
        self.train = Batches(in_precision(samples, self.model), self.device)
        measured = samples if held_out is None else training_samples(held_out, split)
        held = in_precision(some(measured, held_out_samples), self.model)
        self._theatre = Theatre(schedule, held, signal_samples, carry)
        self._paused, self._start = 0.0, math.nan
        self.looked = False  # whether the last ``before_step`` took an anatomy, met a condition, or operated

    @property
    def records(self) -> list[OperationRecord]:
        """One for each operation so far."""
        return self._theatre.records

    @property
    def checks(self) -> list[ConditionCheck]:
        """One for each look at a condition so far."""
        return self._theatre.checks

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return self.iteration // self.per_epoch

    def before_step(self) -> nn.Module:
        """Operates where the schedule has it now; to be called before each optimizer step's (first) forward pass.

        Returns the model to go on with: the one that was given, or for ``DistributedDataParallel`` a new wrapper, also
        where it only looked: trying an edit and taking it back leaves the old one without its hooks on gradients.

        Raises:
            SurgeryError: the schedule does not fit the network, or an operation cannot be done.
            Diverged: the loss after an operation is not finite.
        """
        if math.isnan(self._start):
            self._start = clock(self.device)
        before, paused = len(self.records), self._paused
        self._theatre.before_step(self)
        self.looked = self._paused > paused
        if len(self.records) > before or (self.looked and is_distributed(self.wrapped)):
            self.wrapped = rewrap(self.wrapped)
        return self.wrapped

    def after_step(self, loss: Tensor | float | None = None) -> None:
        """Counts an optimizer step. ``loss``: of its batch; the records have it before and after each operation.

        Raises:
            StudyError: the loss is no number and no tensor of numbers.
        """
        if loss is not None:
            if not isinstance(loss, (Tensor, float, int)):
                raise StudyError(f"the loss of a step is a {type(loss).__name__}; give the tensor, or a number")
            self._theatre.after_step(self, torch.as_tensor(loss, dtype=torch.float64).detach().mean())
        self.iteration += 1
        if self.iteration % self.per_epoch == 0:
            now = clock(self.device)
            self._theatre.after_epoch(self, {"train_seconds": now - self._start - self._paused})
            self._paused, self._start = 0.0, math.nan

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is, the records, and the architecture of the network: plain data for one's checkpoint."""
        return {
            "iteration": self.iteration,
            "theatre": self._theatre.state(),
            "architecture": describe(self.model),
            "buffers": {name: buffer.detach().clone() for name, buffer in passing(self.model).items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a ``state_dict``. The network gets the sizes that it had: call this *before* the network, its
        averages and the optimizer load theirs.

        Raises:
            SurgeryError: the state is of another network.
            StudyError: it is no state of a surgeon.
        """
        if not isinstance(state, Mapping) or not {"iteration", "theatre"} <= state.keys():
            raise StudyError("this is no state of a surgeon: give what Surgeon.state_dict() returned")
        if "architecture" in state:  # else the weights carry it
            for model in (self.model, *map(inner, self.averages)):
                take(model, state["architecture"], state["buffers"])
        self.wrapped = rewrap(self.wrapped)
        self.iteration = state["iteration"]
        self._theatre.restore(state["theatre"])
        self._start = math.nan

    @contextlib.contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """What happens in this ``with`` block is not time of training."""
        start = clock(self.device)
        yield
        self._paused += clock(self.device) - start

    def agreed(self, value: Any) -> Any:
        """The value: several processes are the loop's own affair."""
        return value

    def operated(self, step: Step, changed: Sequence[nn.Parameter]) -> None:
        """Nothing: the loop itself has the learning rate, and ``before_step`` renews wrappers."""

    def evaluate(self, batches: Batches) -> Scores:
        """Loss and metric of the network as it is now."""
        return evaluate(self.model, self.task, batches)


class Operating:
    """A callback of somebody's trainer that has a ``Surgeon`` from the start of training on."""

    _surgeon: Surgeon | None = None

    @property
    def records(self) -> list[OperationRecord]:
        """One for each operation so far."""
        return [] if self._surgeon is None else self._surgeon.records

    @property
    def checks(self) -> list[ConditionCheck]:
        """One for each look at a condition so far."""
        return [] if self._surgeon is None else self._surgeon.checks


def check_schedule(schedule: Schedule) -> None:
    """Raises StudyError unless it is a schedule that a loop of somebody else's can have."""
    if not isinstance(schedule, Schedule):
        raise StudyError(f"a schedule is ops.Schedule((Step(…), …)), not a {type(schedule).__name__}")
    for step in schedule.steps:
        for name, does in (
            ("after", "changes the learning rate, which is"), ("lr_factor", "changes the learning rate, which is"),
            ("freeze", "says which layers train, which is"),
        ):  # fmt: skip
            if name in after_data(step):
                raise StudyError(f"the step '{step}' {does} the loop's own: leave out '{name}'")


class Measured(Task):
    """A task of a loss and a metric that somebody's own loop has; its samples and its network lie elsewhere."""

    def __init__(
        self, loss: Callable[[Any, Any], Tensor] | None, metric: Callable[[Any, Any], Tensor] | None = None
    ) -> None:
        self._loss, self._measure = loss or CLASSIFICATION.loss, metric
        if metric is not None:
            self.metric = Metric("metric", "higher")

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return self._loss(outputs, targets)

    def measure(self, outputs: Any, targets: Any) -> Mapping[str, Tensor]:
        return {} if self._measure is None else {"metric": self._measure(outputs, targets)}


def measure(record: OperationRecord) -> dict[str, float]:
    """The numbers of a record, named for loggers."""
    numbers = {name: value for name, value in record.to_data().items() if isinstance(value, (int, float))}
    return {f"surgery/{name}": float(value) for name, value in numbers.items()}


def _several(given: Any, kind: type[Any], name: str) -> list[Any]:
    """One or several objects of a kind as a list. Raises StudyError where they are something else."""
    found = [given] if isinstance(given, kind) else list(given) if isinstance(given, Iterable) else None
    if found is None or not all(isinstance(each, kind) for each in found):
        raise StudyError(f"{name} is {given!r:.60}; give a torch {kind.__name__}, or a list of them")
    return found


def _steps(train: Any) -> int:
    """The batches of a loader. Raises StudyError where it does not know them."""
    with contextlib.suppress(TypeError):
        if isinstance(train, DataLoader) and len(train) > 0:
            return len(train)
    raise StudyError("the number of optimizer steps in an epoch is not known; give steps_per_epoch=…")
