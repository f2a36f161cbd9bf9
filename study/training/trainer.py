"""The training loop. It is closed: operations, reports and checkpoints enter as callbacks.

The order of the data depends on the seed and the epoch alone, so a run that resumes, after an epoch or between two of
its steps, sees what it would have seen. Times are of training; a callback that does more than look takes itself off the
clock and keeps its own.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.ops.network.wrappers import rewrap
from network_surgery.ops.schedule import Step
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.recipe.augmentation import apart
from network_surgery.study.recipe.compute import PLAIN, Compute
from network_surgery.study.recipe.distillation import Teacher
from network_surgery.study.recipe.freezing import Freezing
from network_surgery.study.recipe.learning_rate import LearningRate
from network_surgery.study.recipe.optimization import Optimization
from network_surgery.study.recipe.sparsity import zeros
from network_surgery.study.task.samples import Batch, Batches, evenly, size_of
from network_surgery.study.task.task import Task
from network_surgery.study.training.device import clock
from network_surgery.study.training.evaluation import Scores, evaluate, of_batch
from network_surgery.study.training.graph import Graph
from network_surgery.study.training.losses import Losses
from network_surgery.study.training.ranks import ALONE, Ranks


class Callback:
    """What may happen around training. ``state`` and ``restore`` travel with checkpoints as plain data.

    ``adds``: the names that it adds to the records of epochs, where other callbacks do not count on them.
    """

    adds: frozenset[str] = frozenset()

    def before_step(self, trainer: Trainer) -> None: ...

    def after_step(self, trainer: Trainer, loss: Tensor) -> None: ...

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...

    def fork(self, state: dict[str, Any]) -> None:
        """As ``restore``, where the state is that of another run, which this one goes on from."""
        self.restore(state)


class Shown:
    """The inputs of a set in batches of ``size``, again and again the same.

    The first batch is spread evenly over the set, so that it holds every class; the others are drawn from the rest.
    """

    def __init__(self, batches: Batches, size: int) -> None:
        self._batches, self._size = batches, min(size, len(batches))

    @property
    def targets(self) -> Any:
        """The targets of the first batch."""
        return self._first[1]

    def __iter__(self) -> Iterator[Any]:
        yield self._first[0]
        rest = torch.ones(len(self._batches), dtype=torch.bool).index_fill(0, self._index, False).nonzero().flatten()
        rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))]
        for index in rest.split(self._size):
            if len(index) > 1:
                yield self._batches.take(index)[0]

    @functools.cached_property
    def _first(self) -> Batch:
        return self._batches.take(self._index)

    @property
    def _index(self) -> Tensor:
        return torch.from_numpy(evenly(len(self._batches), self._size))


class Trainer:
    """Trains ``model`` for ``epochs`` epochs on the samples of a task, by its loss.

    ``history`` holds a record for each finished epoch: ``train_loss`` (the mean over batches, and that of the first
    and last one: ``first_loss``, ``last_loss``), ``validation_loss``, ``validation_metric`` (the primary one), where
    there are others ``validation_metrics`` by name, ``learning_rate`` (of the last step; of the first parameter group)
    and ``train_seconds``; where a regularizer makes them, ``zero_weights``, their fraction; callbacks may add plain
    data. ``iteration`` counts optimizer steps. ``optimization``: how steps are made of gradients. ``forked``: the run
    whose first epochs these are, and their number (see ``study.training.fork``). ``accuracy_mode``: in which mode
    losses and metrics are taken, see ``answers``.
    ``compute``: how training steps and evaluation are computed; where they are compiled, the records have
    ``compile_seconds``, which no other seconds count; where they are replayed as a graph, ``capture_seconds``, a part
    of ``train_seconds``, and ``replayed``, the number of batches. ``curve_epochs``: the epochs over which the learning
    rate is stretched, where they are not all. ``teacher``: what the network is trained to answer like, too.
    ``followers``: networks of the same shapes that follow every operation. ``ranks``: the processes that a batch is
    divided among; all of them do the same, and losses and scores are those of all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        task: Task,
        *,
        epochs: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        callbacks: Sequence[Callback] = (),
        optimization: Optimization = Optimization(),
        accuracy_mode: str = "evaluation",
        compute: Compute = PLAIN,
        curve_epochs: int | None = None,
        teacher: Teacher | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.optimizer, self.task = model, optimizer, task
        self.epochs, self.batch_size, self.seed, self.device = epochs, batch_size, seed, device
        self.callbacks, self.ranks = list(callbacks), ranks
        self.train = Batches(task.train, device)
        self.validation = Batches(task.validation, device)
        self.compute = compute
        compute.place(model, device)
        self.optimization = optimization
        self.average = optimization.average(model)
        each = self.per_epoch
        self.rate = LearningRate(optimization.curve, epochs * each, each, (curve_epochs or epochs) * each)
        self.freezing = Freezing(model)
        self.teacher = teacher
        self.followers: tuple[nn.Module, ...] = ()
        self.epoch = 0
        self.iteration = 0
        self.history: list[dict[str, Any]] = []
        self.forked: dict[str, Any] | None = None
        self.peak_memory: int | None = None  # of the process that it was resumed from
        self.accuracy_mode = accuracy_mode
        self._losses: Losses | None = None  # of the epoch in progress
        self._seconds = 0.0  # of its training, before the clock was started last
        self._since: float | None = None  # when that was; None while it stands
        self.scaler = compute.scaler(device)
        self.layout: dict[str, Any] = {}  # what ``channels_last: auto`` became, and why
        self._network: nn.Module = torch.compile(model, dynamic=False) if compute.compile else model  # type: ignore[assignment]
        self._compiled: set[Any] = set()
        self._compile_seconds = 0.0
        self.graph = Graph(model, self._ordinary, device, traced=not compute.compile) if compute.graph else None

    @property
    def per_epoch(self) -> int:
        """Optimizer steps in an epoch, the last one perhaps of fewer batches."""
        return steps_per_epoch(len(self.train), self.batch_size, self.optimization.accumulate)

    @property
    def final(self) -> nn.Module:
        """The network that is evaluated and kept: the average of the weights, where the recipe has one."""
        return self.model if self.average is None else self.average.module

    def batches_done(self, iteration: int) -> int:
        """The batches of the first ``iteration`` optimizer steps."""
        epochs, steps = divmod(iteration, self.per_epoch)
        each = batches_per_epoch(len(self.train), self.batch_size)
        return epochs * each + min(steps * self.optimization.accumulate, each)

    def fit(self) -> None:
        """Trains to the last epoch. Raises Diverged when the loss is no longer finite."""
        while self.epoch < self.epochs:
            record = self._train_epoch()
            scores = self.evaluate(self.validation)
            if not math.isfinite(scores.loss):
                raise Diverged(f"the validation loss became {scores.loss} in epoch {self.epoch + 1}")
            if not math.isfinite(scores.metric):
                name = self.task.metric.name
                raise Diverged(f"the validation {name} became {scores.metric} in epoch {self.epoch + 1}")
            record |= scores.named("validation")
            self.epoch += 1
            self.history.append(record)
            for callback in self.callbacks:
                callback.after_epoch(self, record)

    def evaluate(self, batches: Batches) -> Scores:
        """Loss and metrics of the network (or the average of its weights) as it is now."""
        return evaluate(self.final, self.task, batches, self.batch_size, self.accuracy_mode, self.compute, self.ranks)

    @property
    def averages(self) -> tuple[nn.Module, ...]:
        """The networks of the same shapes that follow every operation."""
        return self.followers if self.average is None else (self.average, *self.followers)

    def agreed(self, value: Any) -> Any:
        """The first rank's value."""
        return self.ranks.agreed(value)

    def operated(self, step: Step, changed: Sequence[nn.Parameter]) -> None:
        """What an operation does to training: the learning rate goes on as its step says, other layers than those with
        the ``changed`` parameters are frozen for as long as it says, and code is compiled anew.

        Raises:
            StudyError: it did not come out the same on all ranks.
        """
        self.ranks.settle((self.model, *self.averages), self.optimizer, str(step))
        self.rate.after(self.iteration, step.after, step.after_length)
        if step.lr_factor is not None:
            self.rate.scale(self.iteration, step.lr_factor)
        until = None if step.freeze is None else self.iteration + self.rate.steps(step.freeze, self.iteration)
        self.freezing.operated(self.iteration, changed, until)
        self.resized()

    def resized(self) -> None:
        """Whoever changes the sizes of the network calls this: what was compiled for the old ones is forgotten."""
        self._network = rewrap(self._network)
        self._compiled.clear()
        if self.graph is not None:
            self.graph.forget()

    @contextlib.contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """What a callback does in this ``with`` block is not time of training."""
        running = self._since is not None  # not within another such block
        self._stop_clock()
        yield
        if running:
            self._since = clock(self.device)
        if self.graph is not None:
            self.graph.doubt()

    def within(self) -> dict[str, Any] | None:
        """What an epoch has come to that is interrupted here, for ``resume``; None between epochs."""
        if self._losses is None:
            return None
        replayed, capture = (0, 0.0) if self.graph is None else (self.graph.replayed, self.graph.seconds)
        return self._losses.state() | {
            "seconds": self._seconds, "compile_seconds": self._compile_seconds, "replayed": replayed,
            "capture_seconds": capture,
        }  # fmt: skip

    def resume(self, within: Mapping[str, Any] | None) -> None:
        """Goes on with the epoch at the step after ``iteration`` others; ``within`` says what it has come to."""
        self._losses, self._seconds, self._compile_seconds = None, 0.0, 0.0
        if within is None:
            return
        self._begin_epoch().restore(within)
        self._seconds, self._compile_seconds = float(within["seconds"]), float(within["compile_seconds"])
        if self.graph is not None:
            self.graph.begin(within["replayed"], within["capture_seconds"])

    def _begin_epoch(self) -> Losses:
        self._seconds, self._compile_seconds = 0.0, 0.0
        if self.graph is not None:
            self.graph.begin()
        self._losses = Losses(self.device, self.scaler.is_enabled())
        return self._losses

    def _stop_clock(self) -> None:
        if self._since is not None:
            self._seconds, self._since = self._seconds + clock(self.device) - self._since, None

    def _train_epoch(self) -> dict[str, Any]:
        """Trains to the end of an epoch, or of the rest of one that was interrupted; returns its record."""
        epoch = self._losses or self._begin_epoch()
        done, together = self.iteration - self.epoch * self.per_epoch, self.optimization.accumulate
        seed = self.seed * 100_003 + self.epoch
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.train), generator=generator).to(self.train.home)
        parts = order.split(self.batch_size)[: batches_per_epoch(len(self.train), self.batch_size)]
        shards = [self.ranks.shard(part) for part in parts]
        batches = self.train.over([numbers for numbers, _ in shards[done * together :]], seed)
        if self.task.augments:
            batches = self._augmented(batches, generator, done * together)
        self.model.train()
        self._since = clock(self.device)
        for step in range(done, self.per_epoch):
            for callback in self.callbacks:
                callback.before_step(self)
            sizes = [len(part) for part in parts[step * together : (step + 1) * together]]
            shares = [size / sum(sizes) for size in sizes]
            self.optimizer.zero_grad(set_to_none=True)
            losses = []
            for place, share in enumerate(shares, step * together):
                weight = shards[place][1]
                with self.ranks.passes(weight, seed * len(parts) + place, self.device):
                    loss = self._backward(*next(batches), share * weight)
                losses.append(self.ranks.mean(loss, weight))
            self.ranks.combine(self.model)
            self._update()
            loss = epoch.add(losses, shares)
            for callback in self.callbacks:
                callback.after_step(self, loss)
        self._stop_clock()
        self._losses = None
        mean = epoch.mean(len(parts))
        if not math.isfinite(mean):
            raise Diverged(f"the training loss became {mean} in epoch {self.epoch + 1}")
        compiling: dict[str, Any] = {"compile_seconds": self._compile_seconds} if self.compute.compile else {}
        if self.graph is not None:
            compiling |= {"replayed": self.graph.replayed, "capture_seconds": self.graph.seconds}
        sparse = {"zero_weights": zeros(self.model)} if self.optimization.sparsity else {}
        return {
            "epoch": float(self.epoch + 1), "train_loss": mean, "train_seconds": self._seconds,
            "first_loss": float(epoch.first), "last_loss": float(epoch.last),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]), **compiling, **sparse,
        }  # fmt: skip

    def _augmented(self, batches: Iterator[Batch], generator: torch.Generator, done: int) -> Iterator[Batch]:
        """The batches as the task augments them, each by random numbers of its own; ``done`` batches came before."""
        seeds = (int(torch.randint(2**62, (), generator=generator)) for _ in itertools.count())
        for batch, seed in zip(batches, itertools.islice(seeds, done, None), strict=False):
            with apart(seed + self.ranks.rank, self.device), of_batch(self.task, "a training batch", self.epoch):
                batch = self.task.augment(*batch)
            yield batch

    def _backward(self, inputs: Any, targets: Any, share: float) -> Tensor:
        """The loss of a batch, whose gradient is added with its share in the step."""
        if self.compute.compile:
            self._compile(inputs, targets)
        return (self._ordinary if self.graph is None else self.graph.backward)(inputs, targets, share)

    def _ordinary(self, inputs: Any, targets: Any, share: float) -> Tensor:
        """The same, operator by operator."""
        with of_batch(self.task, "a training batch", self.epoch):
            loss = self._loss(inputs, targets)
        with self.compute.switched():
            self.scaler.scale(loss if share == 1 else loss * share).backward()
        return loss.detach()

    def _loss(self, inputs: Any, targets: Any) -> Tensor:
        outputs = self.compute.answer(self._network, inputs, self.device)
        loss = self.task.training_loss(outputs, targets).mean()
        return loss if self.teacher is None else self.teacher.join(loss, inputs, outputs)

    def _compile(self, inputs: Any, targets: Any) -> None:
        """Has the network compiled for batches of this size, off the clock, by a step of which nothing is left."""
        size = size_of(targets)
        if size in self._compiled:
            return
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        start = clock(self.device)
        with self.off_the_clock(), apart(0, self.device), self.compute.switched():
            try:
                torch.autograd.grad(self._loss(inputs, targets), parameters, allow_unused=True)
            except Exception as error:  # a compiler that is not there, or cannot do this network
                pass_on_memory(error)
                raise StudyError(
                    f"compile is true, but torch cannot compile this network here: {first_line(error)}"
                ) from error
            for buffer, before in buffers:
                buffer.copy_(before)
        self._compile_seconds += clock(self.device) - start
        self._compiled.add(size)

    def _update(self) -> None:
        """One step of the optimizer, at the learning rate of this moment, with all that trains; the average follows."""
        self.freezing.withhold(self.iteration)
        if self.optimization.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.optimization.clip)
        self.rate.apply(self.optimizer, self.iteration)
        sparsity = self.optimization.sparsity
        scale = self.scaler.get_scale() if sparsity else 1.0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if sparsity and self.scaler.get_scale() >= scale:  # a step that the scaler skips shrinks nothing
            sparsity.shrink(self.optimizer, self.model)
        self.iteration += 1
        if self.average is not None:
            self.average.update_parameters(self.model)


def batches_per_epoch(samples: int, batch_size: int) -> int:
    """Batches in an epoch; a last one of one sample is left out (BatchNorm cannot train on it).

    Raises:
        StudyError: there is none.
    """
    whole, rest = divmod(samples, batch_size)
    batches = whole + (rest > 1)
    if batches == 0:
        raise StudyError(f"{samples} training sample(s) make no batch; at least 2 are needed")
    return batches


def steps_per_epoch(samples: int, batch_size: int, accumulate: int = 1) -> int:
    """Optimizer steps in an epoch, each of ``accumulate`` batches. Raises StudyError where there is none."""
    return math.ceil(batches_per_epoch(samples, batch_size) / accumulate)
