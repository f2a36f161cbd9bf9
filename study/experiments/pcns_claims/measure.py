"""The arms of a race: all cost the same seconds; those that share a beginning share its weights and its batches.

``page.md`` says what each of them is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Adam

from network_surgery.ops import PCNS, Anatomy, MinWeight, Operation, RandomRemove, Signals, describe, operate
from network_surgery.ops.network.masks import parameters_of
from network_surgery.study import models
from network_surgery.study.bench import experiment
from network_surgery.study.bench.experiment import image_facts
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.pcns.measure import CPU, SHOWN, dense
from network_surgery.study.experiments.pcns_claims.race import Runner, prices
from network_surgery.study.models import Shape
from network_surgery.study.task.images import ImageTask, load
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import CLASSIFICATION
from network_surgery.study.training.evaluation import evaluate
from network_surgery.study.training.restart import renew
from network_surgery.study.training.trainer import Shown

ORIGINAL, SURGERY, RESTART, PRUNED, LATE = "original", "PCNS", "restart", "pruned late", "PCNS late"
RANDOM, REFITTED = "random", "random, refitted"
#: Those that end with PCNS's sizes, itself first.
ARMS = (SURGERY, RESTART, PRUNED, LATE, REFITTED, RANDOM)
#: The large networks with the size of their batches.
NETWORKS: dict[str, tuple[Callable[[Shape, int], nn.Module], int]] = {
    "dense 256 – 128": (partial(dense, nn.ReLU), 64),
    "small_cnn": (models.small_cnn, 32),
}
#: When PCNS operates during training, and when a trained network is shrunk, as shares of the seconds.
EARLY, FINAL = 1 / 3, 3 / 4
#: How often an operation is done, on copies, to know what it costs.
REPEATS = 3


@dataclass(frozen=True)
class Options(experiment.Options):
    """``data``: of the dense network; the other one has the digits. ``train_images``: validation images included.
    ``lengths``: epochs of each original that the seconds amount to. ``thresholds`` of PCNS, of which half of the seeds
    choose.

    Raises:
        StudyError: fewer than four seeds.
    """

    seeds: int = 16
    train_images: int | None = 6000
    lengths: tuple[int, int] = (16, 10)
    thresholds: tuple[float, ...] = (0.1, 0.01, 0.001)

    def __post_init__(self) -> None:
        if self.seeds < 4:
            raise StudyError(f"seeds is {self.seeds}; one half chooses a threshold, the other tests it: give 4 or more")


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts by network, and the tasks: a race of each network with each seed."""
    images = (load(options.data, 0.2, options.train_images), load("digits", 0.2))
    labels = (options.public()["label"], "scikit-learn’s digits")
    races = list(zip(NETWORKS, images, options.lengths, labels, strict=True))
    facts = {name: image_facts(data) | {"label": label, "epochs": epochs} for name, data, epochs, label in races}
    return facts, [
        (f"{name}-{seed}", partial(race, name, data, epochs, seed, options.thresholds))
        for seed in range(options.seeds)
        for name, data, epochs, _ in races
    ]


def race(network: str, data: ImageTask, epochs: int, seed: int, thresholds: tuple[float, ...]) -> list[Row]:
    """Rows of ``kind`` ``arm``, the original first, whose threshold is None.

    ``test`` accuracy, read once; ``curve``: see ``Runner.curve``; ``budget``: seconds, ``price`` those of a step at the
    end; ``before``, ``after``: validation accuracy around the operation, ``operation`` its seconds, ``sizes`` the units
    of each hidden layer.
    """
    build, batch = NETWORKS[network]
    train, validation, test = (Batches(images, CPU) for images in (data.train, data.validation, data.test))
    rows: list[Row] = []

    def start(*shape: Any) -> Runner:
        torch.manual_seed(seed)
        model = build(data.shape, len(data.classes))
        for each in shape:
            renew(model, each, seed)
        runner = Runner(model, Adam(model.parameters(), 1e-3), train, validation, batch, seed)
        runner.look()
        return runner

    def end(threshold: float | None, arm: str, runner: Runner, price: float) -> None:
        row: Row = {"kind": "arm", "network": network, "seed": seed, "threshold": threshold, "arm": arm}
        if runner.sizes:
            row |= {"before": runner.seen[-1][1], "operation": runner.operation, "sizes": runner.sizes}
            runner.seconds += runner.operation
            runner.look()
            row["after"] = runner.seen[-1][1]
        runner.run(budget, price, budget)
        rows.append(row | {
            "test": evaluate(runner.model, CLASSIFICATION, test)[1], "curve": runner.curve(budget),
            "parameters": parameters_of(runner.model), "steps": runner.steps, "budget": budget, "price": price,
        })  # fmt: skip

    original = start()
    steps = epochs * original.per_epoch
    original.run(steps * EARLY, 1.0, steps)
    third = original.fork()
    cut_copy(third, lambda layer: PCNS(0.01))  # to warm up, as the next one
    cut_copy(third, lambda layer: MinWeight(1.0), False)
    early = {threshold: cut_copy(third, lambda layer, at=threshold: PCNS(at)) for threshold in thresholds}
    price = prices({ORIGINAL: third} | {str(threshold): small for threshold, small in early.items()})
    full = price[ORIGINAL]
    budget = steps * full
    for runner in (third, original):
        runner.rescale(full)
    original.run(budget * FINAL, full, budget)
    ripe = original.fork()
    end(None, ORIGINAL, original, full)
    draw = partial(RandomRemove, seed=seed)
    removals: dict[str, tuple[Runner, Callable[[float], Operation], bool]] = {
        RANDOM: (third, draw, False), REFITTED: (third, draw, True), PRUNED: (ripe, MinWeight, False),
        LATE: (ripe, lambda keep: PCNS(keep=keep), True),
    }  # fmt: skip
    for threshold, small in early.items():
        shape, sizes, each = describe(small.model), small.sizes, price[str(threshold)]
        small.rescale(full)
        end(threshold, SURGERY, small, each)
        for arm, (begin, remove, fitted) in removals.items():
            other = cut_copy(begin, lambda layer, to=remove, n=sizes: to(n[layer.name] / layer.units), fitted)
            end(threshold, arm, other, each)
        end(threshold, RESTART, start(shape), each)
    return rows


def cut(runner: Runner, operation: Callable[..., Operation], fitted: bool = True) -> dict[str, int]:
    """Does ``operation(layer)`` to every hidden layer, last to first, from one look; returns the units left.

    ``fitted``: from signals, and what reads a layer is refitted to what it received.
    """
    layers = list(Anatomy(runner.model, runner.train.take(slice(0, 2))[0]).values())
    signals = Signals.over(runner.model, Shown(runner.train, SHOWN), layers) if fitted else None
    for layer in reversed(layers):
        removal = operation(layer)
        repair = ("least_squares",) if fitted and not removal.needs_signals else ()
        operate(layer, removal, runner.optimizer, signals, repair=repair)
    return {layer.name: layer.units for layer in layers}


def cut_copy(start: Runner, *how: Any) -> Runner:
    """A copy of a runner, ``cut`` in this way; its ``operation`` is the median of several copies."""
    taken = []
    for _ in range(REPEATS):
        runner = start.fork()
        begun = time.process_time()
        runner.sizes = cut(runner, *how)
        taken.append(time.process_time() - begun)
    runner.operation = statistics.median(taken)
    return runner
