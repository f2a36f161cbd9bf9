"""The arms of one seed. All cost the same seconds; those that share a beginning share its weights and its batches.

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
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn
from torch.optim import Adam, Optimizer

from network_surgery.ops import (
    PCNS,
    Anatomy,
    HiddenLayer,
    MinWeight,
    Operation,
    RandomRemove,
    Signals,
    describe,
    operate,
)
from network_surgery.ops.network.masks import parameters_of
from network_surgery.study import models
from network_surgery.study.data import Dataset
from network_surgery.study.experiments.claims.race import Runner, Track, prices
from network_surgery.study.models import Shape
from network_surgery.study.training.restart import renew
from network_surgery.study.training.trainer import Batches, Shown, evaluate

ORIGINAL, SURGERY, RESTART, PRUNED, LATE = "original", "PCNS", "restart", "pruned late", "PCNS late"
RANDOM, REFITTED = "random", "random, refitted"
THRESHOLDS = (0.1, 0.01, 0.001)
#: When PCNS operates during training, and when a finished network is shrunk, as shares of the seconds.
EARLY, FINAL = 1 / 3, 3 / 4
#: How often validation images are looked at; how many images one batch of the signals holds.
TICKS, LOOK = 24, 512
RATE = 1e-3
#: How often an operation is done, on copies, to know what it costs.
REPEATS = 3

Cut = Callable[[nn.Module, Optimizer], dict[str, int]]


def dense(shape: Shape, classes: int) -> nn.Module:
    """Pixels – 256 – 128 – classes, ReLU."""
    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(pixels, 256),
            relu1=nn.ReLU(),
            fc2=nn.Linear(256, 128),
            relu2=nn.ReLU(),
            fc3=nn.Linear(128, classes),
        )
    )


@dataclass(frozen=True)
class Setting:
    """A network, its batches, and how many epochs of it the seconds amount to."""

    name: str
    network: Callable[[Shape, int], nn.Module]
    batch: int
    epochs: int


DENSE = Setting("dense 256 – 128", dense, 64, 16)
CNN = Setting("small_cnn", models.small_cnn, 32, 10)


@dataclass(frozen=True)
class Outcome:
    """One arm of one seed. Accuracies are fractions; seconds are those that it was charged.

    ``curve``: validation accuracy after every ``1 / TICKS`` of the seconds, the untrained network first. ``before``,
    ``after``: validation accuracy around the operation; ``operation``: its seconds; ``price``: of a step at the end;
    ``epoch``: seconds of an epoch of the original; ``sizes``: units of each hidden layer at the end.
    """

    test: float
    curve: tuple[float, ...]
    parameters: int
    steps: int
    budget: float
    price: float
    epoch: float
    before: float = float("nan")
    after: float = float("nan")
    operation: float = float("nan")
    sizes: Mapping[str, int] = field(default_factory=dict)


#: (setting, threshold, arm) → an outcome for each seed; the original's threshold is None.
Found = dict[tuple[str, float | None, str], list[Outcome]]


@dataclass
class _Cut:
    """An arm that an operation began: where it is, what the operation took, what the operation left."""

    runner: Runner
    seconds: float
    sizes: dict[str, int]


@dataclass(frozen=True)
class _Course:
    """What is left of a race once the seconds are known: ``full`` is the price of the original's steps."""

    track: Track
    test: Batches
    budget: float
    full: float

    def goes_on(self, cut: _Cut, price: float) -> Outcome:
        """An arm is charged its operation and trains to the end."""
        runner, moment = cut.runner, len(cut.runner.seen)
        runner.charge(cut.seconds, self.track)
        found = self.ends(runner, price)
        before, after = (accuracy for _, accuracy in runner.seen[moment - 1 : moment + 1])
        return replace(found, before=before, after=after, operation=cut.seconds, sizes=cut.sizes)

    def ends(self, runner: Runner, price: float) -> Outcome:
        """Trains to the end; the test images are read, once."""
        runner.run(self.track, self.budget, price, TICKS, self.budget)
        return Outcome(
            evaluate(runner.model, self.test)[1], curve(runner, self.budget), parameters_of(runner.model), runner.steps,
            self.budget, price, self.full * self.track.per_epoch,
        )  # fmt: skip


def race(setting: Setting, data: Dataset, seed: int) -> Iterator[tuple[float | None, str, Outcome]]:
    """Every arm of a seed, the original first."""
    track = Track.of(data, setting.batch, seed)
    make = partial(setting.network, data.shape, len(data.classes))
    torch.manual_seed(seed)
    original = _starts(make(), track)
    steps = setting.epochs * track.per_epoch
    original.run(track, steps * EARLY, 1.0, TICKS, steps)
    third = original.fork()
    for to_warm_up in (partial(shrink, track, 0.01), partial(remove, track, {}, MinWeight, False)):
        _after(third, to_warm_up)
    early = {threshold: _after(third, partial(shrink, track, threshold)) for threshold in THRESHOLDS}
    price = prices({ORIGINAL: third} | {str(threshold): cut.runner for threshold, cut in early.items()}, track)
    full = price[ORIGINAL]
    course = _Course(track, Batches(data.test, torch.device("cpu")), steps * full, full)
    third.rescale(full)
    original.rescale(full)
    original.run(track, course.budget * FINAL, full, TICKS, course.budget)
    ripe = original.fork()
    yield None, ORIGINAL, course.ends(original, full)
    draw = partial(RandomRemove, seed=seed)
    for threshold, cut in early.items():
        small, to_sizes = price[str(threshold)], partial(remove, track, cut.sizes)
        shape = describe(cut.runner.model)
        cut.runner.rescale(full)
        yield threshold, SURGERY, course.goes_on(cut, small)
        yield threshold, RANDOM, course.goes_on(_after(third, partial(to_sizes, draw, False)), small)
        yield threshold, REFITTED, course.goes_on(_after(third, partial(to_sizes, draw, True)), small)
        yield threshold, PRUNED, course.goes_on(_after(ripe, partial(to_sizes, MinWeight, False)), small)
        yield threshold, LATE, course.goes_on(_after(ripe, partial(to_sizes, _as_many, True)), small)
        torch.manual_seed(seed)
        fresh = make()
        renew(fresh, shape, seed)
        yield threshold, RESTART, course.ends(_starts(fresh, track), small)


def shrink(track: Track, threshold: float, model: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """PCNS on every hidden layer, last to first, from one look; returns the units left."""
    layers = _layers(model, track)
    signals = Signals.over(model, Shown(track.train, LOOK), layers)
    for layer in reversed(layers):
        operate(layer, PCNS(threshold), optimizer, signals)
    return {layer.name: layer.units for layer in layers}


def remove(
    track: Track,
    sizes: Mapping[str, int],
    operation: Callable[[float], Operation],
    fitted: bool,
    model: nn.Module,
    optimizer: Optimizer,
) -> dict[str, int]:
    """An operation that keeps a fraction of the units, down to these sizes; ``fitted``: from signals, with readers
    that are refitted to what they received."""
    layers = _layers(model, track)
    signals = Signals.over(model, Shown(track.train, LOOK), layers) if fitted else None
    for layer in reversed(layers):
        what = operation(sizes.get(layer.name, layer.units) / layer.units)
        repair = ("least_squares",) if fitted and not what.needs_signals else ()
        operate(layer, what, optimizer, signals, repair=repair)
    return {layer.name: layer.units for layer in layers}


def curve(runner: Runner, budget: float) -> tuple[float, ...]:
    """The validation accuracy last seen at every tick of the race."""
    at = [budget * tick / TICKS for tick in range(TICKS + 1)]
    return tuple([accuracy for seconds, accuracy in runner.seen if seconds <= moment * 1.0001][-1] for moment in at)


def _after(start: Runner, cut: Cut) -> _Cut:
    """A copy of a runner, cut, and the seconds of the process that the cut takes: the median of several copies."""
    taken = []
    for _ in range(REPEATS):
        runner = start.fork()
        begun = time.process_time()
        sizes = cut(runner.model, runner.optimizer)
        taken.append(time.process_time() - begun)
    return _Cut(runner, statistics.median(taken), sizes)


def _as_many(keep: float) -> PCNS:
    return PCNS(keep=keep)


def _starts(model: nn.Module, track: Track) -> Runner:
    runner = Runner(model, Adam(model.parameters(), RATE))
    runner.look(track)
    return runner


def _layers(model: nn.Module, track: Track) -> list[HiddenLayer]:
    return list(Anatomy(model, track.train.take(slice(0, 2))[0]).values())
