"""What is measured: each operation on the layer between two equal ones, timed, undone, and predicted from its work.

What is timed is what ``operate`` does, proposing and applying, with an Adam optimizer that has stepped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import scipy.linalg
import torch
from torch import Tensor, nn
from torch.optim import Adam

from network_surgery import ops
from network_surgery.ops.maths.hosvd import eigenvectors
from network_surgery.ops.signals.signals import MOST_SAMPLES
from network_surgery.study import models
from network_surgery.study.bench import experiment
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.timing import complexity
from network_surgery.study.experiments.timing.complexity import Sizes
from network_surgery.study.training.trainer import steps_per_epoch

IMAGES, BATCH, SIGNAL_IMAGES, PIXELS = 50_000, 64, 512, 8
OPERATIONS: dict[str, ops.Operation] = {
    "eigen_remove, rank 1/8": ops.EigenRemove(keep=0.5, rank=0.125),
    "eigen_remove, rank 1/4": ops.EigenRemove(keep=0.5, rank=0.25),
    "eigen_remove, rank 1/2": ops.EigenRemove(keep=0.5, rank=0.5),
    "eigen_remove, rank 1": ops.EigenRemove(keep=0.5, rank=1.0),
    "mean_replace": ops.MeanReplace(keep=0.5),
    "min_weight": ops.MinWeight(keep=0.5),
    "random_remove": ops.RandomRemove(keep=0.5),
    "pcns": ops.PCNS(),
    "remove_dead": ops.RemoveDead(threshold=0.9),
    "revive": ops.Revive(threshold=0.9),
    "prune_weights": ops.PruneWeights(fraction=0.5),
    "compact": ops.Compact(),
    "weak_expand": ops.WeakExpand(grow=0.5),
    "zero_expand": ops.ZeroExpand(grow=0.5),
}
#: Rows of the matrices that this machine's rates are measured on.
SIDE = 1024
#: Times that what is quick is done (operations on 8 units, training steps); a median is taken.
TIMES = 7


@dataclass(frozen=True)
class Options(experiment.Options):
    """``dense``, ``conv``: units of the layers of these nets; ``vgg16``: the layers of that network.

    Raises:
        StudyError: an option about images, of which there are none here.
    """

    seeds: int = 3
    dense: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    conv: tuple[int, ...] = (64, 128, 256, 512, 1024)
    vgg16: tuple[str, ...] = ("conv4", "conv7", "conv10", "fc1", "fc2")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.data, self.label or self.data, self.train_images) != ("digits", "digits", None):
            raise StudyError("timing takes random inputs: leave out --data, --label and --train-images")


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """A task for each layer of each kind of net."""
    nets = [(net, str(layer)) for net in ("dense", "conv", "vgg16") for layer in getattr(options, net)]
    return {}, [("-".join(net), partial(timings, *net, options.seeds)) for net in nets]


class Net(NamedTuple):
    """A network, its optimizer, the layer that is operated on, and inputs for signals."""

    model: nn.Module
    adam: Adam
    layer: ops.HiddenLayer
    inputs: Tensor


def timings(net: str, layer: str, seeds: int) -> list[Row]:
    """A row for each operation and seed, all in one run.

    Seconds of the ``operation`` (its signals included), of a ``forward`` pass of a batch, of an ``epoch``, and those
    ``predicted`` at the rates of this run; ``units`` before and after.
    """
    rates, tiny = measure_rates(), build("dense", "8", 0)
    fixed = {name: median(interrupt(tiny, each)[0] for _ in range(TIMES)) for name, each in OPERATIONS.items()}
    rows: list[Row] = []
    for seed in range(seeds):
        subject = build(net, layer, seed)
        model, adam, hidden, inputs = subject
        seen = ops.Signals(model, inputs).samples(hidden)
        with torch.no_grad():
            forward = time_median(partial(model, inputs[:BATCH]))
        step = time_median(partial(train, model, adam, inputs[:BATCH]))
        epoch = step * steps_per_epoch(IMAGES, BATCH)
        about = {"net": net, "layer": layer, "seed": seed, "forward": forward, "epoch": epoch}
        for name, operation in OPERATIONS.items():
            tries = [interrupt(subject, operation)]
            if tries[0][0] < 1:  # it warmed up; one that takes longer needs no warming
                tries = [interrupt(subject, operation) for _ in range(3)]
            taken, after = sorted(tries)[len(tries) // 2]
            samples, passed = 0, 0.0
            if operation.needs_signals:
                samples = seen
                passes = 3 if isinstance(operation, (ops.RemoveDead, ops.Revive)) else 1  # they look at gradients
                passed = passes * forward * len(inputs) / BATCH
            amounts = complexity.work(operation, Sizes.of(hidden, samples, after))
            predicted = fixed[name] + passed + complexity.seconds(amounts, rates)
            units = [hidden.units, after]
            rows.append(about | {"name": name, "operation": taken, "predicted": predicted, "units": units})
    return rows


def build(net: str, layer: str, seed: int) -> Net:
    """VGG16 and one of its layers, or a net of two layers of equal size."""
    torch.manual_seed(seed)
    shape: tuple[int, ...]
    if net == "vgg16":
        model, shape = models.build("vgg16", (3, 32, 32), 10), (SIGNAL_IMAGES, 3, 32, 32)
    else:
        size = int(layer)
        first, second = (
            nn.Linear(size, size) if net == "dense" else nn.Conv2d(size, size, 3, padding=1) for _ in range(2)
        )
        model = nn.Sequential(first, nn.ReLU(), second)
        many = min(max(SIGNAL_IMAGES, 2 * size), MOST_SAMPLES)
        shape = (many, size) if net == "dense" else (SIGNAL_IMAGES, size, PIXELS, PIXELS)
    inputs, adam = torch.randn(shape), Adam(model.parameters())
    train(model, adam, inputs[:BATCH])
    return Net(model, adam, ops.Anatomy(model, inputs[:2])[layer if net == "vgg16" else "0"], inputs)


def interrupt(net: Net, operation: ops.Operation) -> tuple[float, int]:
    """Seconds of what ``operate`` does, signals included, and the units afterwards; it is undone."""
    with torch.no_grad():
        answer = net.model(net.inputs[:2])[:1, 0]
    targets = torch.zeros(len(net.inputs), *answer.shape[1:], dtype=torch.int64)
    start = perf_counter()
    signals = ops.Signals.over(net.model, [net.inputs], [net.layer], targets) if operation.needs_signals else None
    plan = operation.propose(net.layer, signals)
    undo = ops.apply(plan, net.adam)
    seconds = perf_counter() - start
    for step in reversed(undo):
        step()
    return seconds, plan.units_after


def train(model: nn.Module, adam: Adam, batch: Tensor) -> None:
    """One training step."""
    adam.zero_grad(set_to_none=True)
    model(batch).square().mean().backward()
    adam.step()


def time_median(action: Callable[[], object]) -> float:
    """The median seconds of an action, after two that warm up."""
    taken = []
    for _ in range(TIMES + 2):
        start = perf_counter()
        action()
        taken.append(perf_counter() - start)
    return median(taken[2:])


def measure_rates() -> dict[str, float]:
    """What each kind of work reaches here, per second: one number for all sizes."""
    generator, side = torch.Generator().manual_seed(0), SIDE
    square = torch.randn(side, side, dtype=torch.float64, generator=generator)
    tall, symmetric = torch.cat([square, square.T]), square @ square.T
    order, large = torch.randperm(4 * side, generator=generator), torch.zeros(4 * side, 4 * side)
    actions: dict[str, tuple[float, Callable[[], object]]] = {
        "products": (2 * side**3, lambda: square @ square),
        "eigen": (4 / 3 * side**3, lambda: eigenvectors(symmetric, side // 8)),
        "values": (4 / 3 * side**3, lambda: torch.linalg.eigvalsh(symmetric)),
        "qr": (2 * 2 * side * side**2 - 2 / 3 * side**3, lambda: torch.linalg.qr(tall, mode="r")),
        "pivoting": (4 / 3 * side**3, lambda: scipy.linalg.qr(square.numpy(), mode="r", pivoting=True)),
        "bytes": (2 * 4 * (4 * side) ** 2, lambda: large.index_select(0, order)),
    }
    return {kind: amount / time_median(action) for kind, (amount, action) in actions.items()}
