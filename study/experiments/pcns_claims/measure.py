"""What is measured: the arms of a race. All cost the same seconds; what they share, they share with weights and batches.

``original``
    The large network, uninterrupted.
``PCNS``
    Every hidden layer shrunk once (pivoted basis) after a third of the seconds. All that follow end with its sizes.
``restart``
    The architecture that PCNS ended with, from fresh weights, for all the seconds.
``pruned late``
    The large network for three quarters of the seconds, then Minimum Weight Selection to the same sizes, then tuning.
``PCNS late``
    The same, cut by PCNS instead.
``random``, ``random, refitted``
    Units drawn at random go at PCNS's moment; ``refitted`` with PCNS's second half, least squares into the next layer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Adam

from network_surgery.ops import PCNS, Anatomy, MinWeight, Operation, RandomRemove, Signals, describe, operate
from network_surgery.ops.network.masks import parameters_of
from network_surgery.study import models
from network_surgery.study.bench import experiment
from network_surgery.study.bench.experiment import image_facts
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.data import Dataset, load
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.pcns.measure import CPU, SHOWN, dense
from network_surgery.study.experiments.pcns_claims.race import Runner, prices
from network_surgery.study.models import Shape
from network_surgery.study.training.restart import renew
from network_surgery.study.training.trainer import Batches, Shown, evaluate

ORIGINAL, SURGERY, RESTART, PRUNED, LATE = "original", "PCNS", "restart", "pruned late", "PCNS late"
RANDOM, REFITTED = "random", "random, refitted"
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
    ``epochs`` of each original that the seconds amount to. ``thresholds`` of PCNS, of which half of the seeds choose.

    Raises:
        StudyError: fewer than four seeds.
    """

    seeds: int = 16
    train_images: int | None = 6000
    epochs: tuple[int, int] = (16, 10)
    thresholds: tuple[float, ...] = (0.1, 0.01, 0.001)

    def __post_init__(self) -> None:
        if self.seeds < 4:
            raise StudyError(f"seeds is {self.seeds}; one half chooses a threshold, the other tests it: give 4 or more")


class Cut(NamedTuple):
    """An arm that an operation began: the seconds that it took, and the units that it left."""

    runner: Runner
    seconds: float
    sizes: dict[str, int]


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts by network, and the tasks: a race of each network with each seed."""
    images = (load(options.data, 0.2, options.train_images), load("digits", 0.2))
    races = list(zip(NETWORKS, images, options.epochs, strict=True))
    return {name: image_facts(data) for name, data, _ in races}, [
        (f"{name}-{seed}", partial(measure_race, name, data, epochs, seed, options.thresholds))
        for seed in range(options.seeds)
        for name, data, epochs in races
    ]


def measure_race(network: str, data: Dataset, epochs: int, seed: int, thresholds: tuple[float, ...]) -> list[Row]:
    """Rows of ``kind`` ``arm``, the original first, whose threshold is None.

    ``test`` accuracy, read once; ``curve``: see ``Runner.curve``; ``budget``: seconds, ``price`` those of a step at the
    end, ``epoch`` those of an epoch of the original; ``before``, ``after``: validation accuracy around the operation,
    ``operation`` its seconds, ``sizes`` the units of each hidden layer.
    """
    about = {"kind": "arm", "network": network, "seed": seed}
    return [about | row for row in race(network, data, epochs, seed, thresholds)]


def race(network: str, data: Dataset, epochs: int, seed: int, thresholds: tuple[float, ...]) -> Iterator[Row]:
    """Every arm of a seed, the original first."""
    build, batch = NETWORKS[network]
    train, validation, test = (Batches(images, CPU) for images in (data.train, data.validation, data.test))

    def start(*shape: Any) -> Runner:
        torch.manual_seed(seed)
        model = build(data.shape, len(data.classes))
        for each in shape:
            renew(model, each, seed)
        runner = Runner(model, Adam(model.parameters(), 1e-3), train, validation, batch, seed)
        runner.look()
        return runner

    def end(threshold: float | None, arm: str, runner: Runner, price: float, cut: Cut | None = None) -> Row:
        row: Row = {"threshold": threshold, "arm": arm}
        if cut:
            row |= {"before": runner.seen[-1][1], "operation": cut.seconds, "sizes": cut.sizes}
            runner.charge(cut.seconds)
            row["after"] = runner.seen[-1][1]
        runner.run(budget, price, budget)
        return row | {
            "test": evaluate(runner.model, test)[1], "curve": runner.curve(budget),
            "parameters": parameters_of(runner.model), "steps": runner.steps, "budget": budget, "price": price,
            "epoch": full * runner.per_epoch,
        }  # fmt: skip

    original = start()
    steps = epochs * original.per_epoch
    original.run(steps * EARLY, 1.0, steps)
    third = original.fork()
    for warm_up in (partial(shrink, 0.01), partial(remove, {}, MinWeight, False)):
        cut_copy(third, warm_up)
    early = {threshold: cut_copy(third, partial(shrink, threshold)) for threshold in thresholds}
    price = prices({ORIGINAL: third} | {str(threshold): cut.runner for threshold, cut in early.items()})
    full = price[ORIGINAL]
    budget = steps * full
    for runner in (third, original):
        runner.rescale(full)
    original.run(budget * FINAL, full, budget)
    ripe = original.fork()
    yield end(None, ORIGINAL, original, full)
    draw = partial(RandomRemove, seed=seed)
    for threshold, cut in early.items():
        shape = describe(cut.runner.model)
        cut.runner.rescale(full)
        yield end(threshold, SURGERY, cut.runner, price[str(threshold)], cut)
        for arm, begin, operation, fitted in (
            (RANDOM, third, draw, False), (REFITTED, third, draw, True), (PRUNED, ripe, MinWeight, False),
            (LATE, ripe, lambda keep: PCNS(keep=keep), True),
        ):  # fmt: skip
            other = cut_copy(begin, partial(remove, cut.sizes, operation, fitted))
            yield end(threshold, arm, other.runner, price[str(threshold)], other)
        yield end(threshold, RESTART, start(shape), price[str(threshold)])


def shrink(threshold: float, runner: Runner) -> dict[str, int]:
    """PCNS on every hidden layer, last to first, from one look; returns the units left."""
    layers = list(Anatomy(runner.model, runner.train.take(slice(0, 2))[0]).values())
    signals = Signals.over(runner.model, Shown(runner.train, SHOWN), layers)
    for layer in reversed(layers):
        operate(layer, PCNS(threshold), runner.optimizer, signals)
    return {layer.name: layer.units for layer in layers}


def remove(
    sizes: Mapping[str, int], operation: Callable[[float], Operation], fitted: bool, runner: Runner
) -> dict[str, int]:
    """An operation that keeps a fraction of the units, down to these sizes; ``fitted``: from signals, with readers
    that are refitted to what they received."""
    layers = list(Anatomy(runner.model, runner.train.take(slice(0, 2))[0]).values())
    signals = Signals.over(runner.model, Shown(runner.train, SHOWN), layers) if fitted else None
    for layer in reversed(layers):
        removal = operation(sizes.get(layer.name, layer.units) / layer.units)
        repair = ("least_squares",) if fitted and not removal.needs_signals else ()
        operate(layer, removal, runner.optimizer, signals, repair=repair)
    return {layer.name: layer.units for layer in layers}


def cut_copy(start: Runner, operate: Callable[[Runner], dict[str, int]]) -> Cut:
    """A copy of a runner, cut, and the CPU seconds that the cut takes: the median of several copies."""
    taken = []
    for _ in range(REPEATS):
        runner = start.fork()
        begun = time.process_time()
        sizes = operate(runner)
        taken.append(time.process_time() - begun)
    return Cut(runner, statistics.median(taken), sizes)
