"""The training loop. It is closed: operations, reports and checkpoints enter as callbacks.

The order of the data depends on the seed and the epoch alone, so a run that resumes at an epoch sees what it would have
seen. Times are of training; a callback that does more than look takes itself off the clock and keeps its own.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from network_surgery.study.data import Dataset, Images
from network_surgery.study.errors import Diverged, StudyError


class Callback:
    """What may happen around training. ``state`` and ``restore`` travel with checkpoints as plain data."""

    def before_step(self, trainer: Trainer) -> None: ...

    def after_step(self, trainer: Trainer, loss: Tensor) -> None: ...

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


class Batches:
    """Images on a device: ``pixels [n, channels, height, width]`` uint8 and ``labels [n]``, normalized when taken."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self.pixels = torch.tensor(images.pixels, device=device)
        self.labels = torch.tensor(images.labels, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Inputs in −1 … 1 (mean and deviation 0.5) and class numbers."""
        return self.pixels[index].float().div_(127.5).sub_(1.0), self.labels[index]


class Shown:
    """The inputs of a set's images in batches of ``size``, again and again the same.

    The first batch is spread evenly over the set, so that it holds every class; the others are drawn from the rest.
    """

    def __init__(self, images: Batches, size: int) -> None:
        self._images, self._size = images, min(size, len(images))

    @property
    def targets(self) -> Tensor:
        """The class numbers of the first batch."""
        return self._images.labels[self._first.to(self._images.labels.device)]

    def __iter__(self) -> Iterator[Tensor]:
        rest = torch.ones(len(self._images), dtype=torch.bool).index_fill(0, self._first, False).nonzero().flatten()
        rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))]
        for index in (self._first, *rest.split(self._size)):
            if len(index) > 1:
                yield self._images.take(index.to(self._images.labels.device))[0]

    @property
    def _first(self) -> Tensor:
        return torch.linspace(0, len(self._images) - 1, self._size, dtype=torch.float64).round().long()


class Trainer:
    """Trains ``model`` by cross entropy for ``epochs`` epochs.

    ``history`` holds a record for each finished epoch: ``train_loss`` (the mean over batches, and that of the first
    and last one: ``first_loss``, ``last_loss``), ``validation_loss``, ``validation_accuracy`` (0 … 1) and
    ``train_seconds``; callbacks may add plain data. ``iteration`` counts optimizer steps. ``accuracy_mode``: in which
    mode losses and accuracies are taken, see ``answers``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        data: Dataset,
        *,
        epochs: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        callbacks: Sequence[Callback] = (),
        accuracy_mode: str = "evaluation",
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.epochs, self.batch_size, self.seed, self.device = epochs, batch_size, seed, device
        self.callbacks = list(callbacks)
        self.train = Batches(data.train, device)
        self.validation = Batches(data.validation, device)
        self.epoch = 0
        self.iteration = 0
        self.history: list[dict[str, Any]] = []
        self.accuracy_mode = accuracy_mode
        self._paused = 0.0

    @property
    def per_epoch(self) -> int:
        """Optimizer steps in an epoch; a last batch of one image is left out (BatchNorm cannot train on it)."""
        return steps_per_epoch(len(self.train), self.batch_size)

    def fit(self) -> None:
        """Trains to the last epoch. Raises Diverged when the loss is no longer finite."""
        while self.epoch < self.epochs:
            record = self._train_epoch()
            loss, accuracy = evaluate(self.model, self.validation, mode=self.accuracy_mode)
            if not math.isfinite(loss):
                raise Diverged(f"the validation loss became {loss} in epoch {self.epoch + 1}")
            record |= {"validation_loss": loss, "validation_accuracy": accuracy}
            self.epoch += 1
            self.history.append(record)
            for callback in self.callbacks:
                callback.after_epoch(self, record)

    @contextlib.contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """What a callback does in this ``with`` block is not time of training."""
        start = clock(self.device)
        yield
        self._paused += clock(self.device) - start

    def _train_epoch(self) -> dict[str, Any]:
        order = torch.randperm(
            len(self.train), generator=torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        ).to(self.device)
        self.model.train()
        total = first = loss = torch.zeros((), device=self.device)
        self._paused, start = 0.0, clock(self.device)
        for step in range(self.per_epoch):
            for callback in self.callbacks:
                callback.before_step(self)
            inputs, targets = self.train.take(order[step * self.batch_size : (step + 1) * self.batch_size])
            self.optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(self.model(inputs), targets)
            loss.backward()
            self.optimizer.step()
            self.iteration += 1
            loss = loss.detach()
            total = total + loss
            first = loss if step == 0 else first
            for callback in self.callbacks:
                callback.after_step(self, loss)
        seconds = clock(self.device) - start - self._paused
        mean = float(total) / self.per_epoch
        if not math.isfinite(mean):
            raise Diverged(f"the training loss became {mean} in epoch {self.epoch + 1}")
        return {
            "epoch": float(self.epoch + 1), "train_loss": mean, "train_seconds": seconds,
            "first_loss": float(first), "last_loss": float(loss),
        }  # fmt: skip


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches in an epoch. Raises StudyError where there is none."""
    whole, rest = divmod(images, batch_size)
    steps = whole + (rest > 1)
    if steps == 0:
        raise StudyError(f"{images} training image(s) make no batch; at least 2 are needed")
    return steps


#: Images that are looked at together in training mode, where they depend on each other (as the thesis's code has it).
TOGETHER = 1000


def evaluate(model: nn.Module, batches: Batches, most: int = 1024, mode: str = "evaluation") -> tuple[float, float]:
    """Mean cross entropy and accuracy (0 … 1); the model is left in the mode it was in. ``mode``: see ``answers``."""
    loss = torch.zeros((), dtype=torch.float64, device=batches.labels.device)
    hits = torch.zeros((), dtype=torch.int64, device=batches.labels.device)
    for scores, targets in answers(model, batches, most, mode):
        loss += nn.functional.cross_entropy(scores, targets, reduction="sum").double()
        hits += (scores.argmax(dim=1) == targets).sum()
    return float(loss) / len(batches), int(hits) / len(batches)


def answers(
    model: nn.Module, batches: Batches, most: int = 1024, mode: str = "evaluation"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores ``[n, classes]`` and class numbers of all images, in order, without gradients.

    In evaluation mode, or with ``mode="training"`` as in training: BatchNorm by the batch's own statistics, in batches
    of ``TOGETHER`` (a rest of one image joins the batch before it). Nothing is left of that: buffers and random numbers
    are as before.
    """
    from network_surgery.ops.anatomy import evaluating
    from network_surgery.ops.anatomy.running import plainly

    training = mode == "training"
    parts = torch.arange(len(batches)).split(TOGETHER if training else most)
    if training and len(parts) > 1 and len(parts[-1]) == 1:
        parts = (*parts[:-2], torch.cat(parts[-2:]))
    with plainly(model, training=True) if training else evaluating(model), torch.no_grad():
        for part in parts:
            inputs, targets = batches.take(slice(int(part[0]), int(part[-1]) + 1))
            yield model(inputs), targets


def clock(device: torch.device) -> float:
    """Seconds, after the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def pick_device(name: str) -> torch.device:
    """``auto`` is a GPU where the process sees one. Raises StudyError for ``cuda`` without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise StudyError("device is 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
