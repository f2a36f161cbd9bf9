"""What is measured of units: looks at a network while it trains, and a schedule that removes them.

Looks (Evci 2018, 4.1): at each moment every score ranks a layer's units on the same training images; a fraction of
them is removed (``ops.trial_surgery``), the loss is taken, and the removal is undone, so that training goes on as if
nobody had looked.

Schedule (4.2): after epochs 2, 3, 4 and 5 of 10 the units of the lowest scores go, with bias propagation, until 0.1,
0.2, 0.4 and 0.6 of them are gone; 4,019 of 20,522 parameters are left, he counts. He does not say of what these are
fractions; here they are of each layer's own units, as there were before training, rounded down: that leaves 4,019.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from network_surgery.ops import (
    Anatomy,
    HiddenLayer,
    MeanReplace,
    MinWeight,
    Moment,
    Plan,
    Schedule,
    Signals,
    Step,
    describe,
    trial_surgery,
)
from network_surgery.ops.network.masks import parameters_of
from network_surgery.ops.operations.min_weight import strongest
from network_surgery.ops.signals.replacement import REPLACEMENTS, constants
from network_surgery.ops.signals.unit_scores import unit_scores
from network_surgery.ops.surgery.repair import leave
from network_surgery.study.bench.experiment import image_facts
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.bench.training import read_end
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import TENTHS, UNPRUNED
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.restart import renew
from network_surgery.study.training.trainer import Trainer

LAYERS = ("conv1", "conv2", "fc1")
#: The fraction of a layer's units that most of the page is about.
HALF = 0.5
#: The thesis's four first (its norms are of a unit's own, incoming weights), then those that it does not have.
SCORES = ("mrp", "mrs", "l1_in", "l2_in", "l1", "l2", "variance", "taylor", "random")
#: Those that rank by the loss of a replacement, so that the replacement is part of the score.
REPLACING = ("mrp", "mrs")
#: Draws of the random score at each look.
DRAWS = 3
#: What takes the place of a removed unit; ``none``: zero, without bias propagation.
LEFT = (*REPLACEMENTS, "none")
#: The fractions of the units that are gone after each of ``evci.MOMENTS``.
GONE = (0.1, 0.2, 0.4, 0.6)
#: The arm that trains the final shape from fresh weights.
RESTART = "restart"


@dataclass(frozen=True)
class Options(evci.Options):
    """``fractions`` of each layer go by every score and mean replacement; ``halves`` by ``scores`` and every
    replacement. ``short`` and ``long``: the scores of the schedule over ten epochs, and over ``iterations``.
    """

    fractions: tuple[float, ...] = (0.1, 0.2, 0.4, 0.5, 0.6)
    halves: tuple[float, ...] = (0.2, 0.5)
    scores: tuple[str, ...] = ("mrp", "mrs", "l2_in", "random")
    short: tuple[str, ...] = ("mrs", "mrp", "l2_in", "random")
    long: tuple[str, ...] = ("mrs",)


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts, and the tasks: looks and both schedules with each seed, and the readings."""
    data = evci.images(options)
    facts, epochs = image_facts(data), evci.epochs_of(options.iterations, data)
    lengths = {TENTHS: options.short} | ({epochs: options.long} if epochs != TENTHS else {})
    schedules = [
        (f"schedule-{length}-{seed}", partial(arms, data, seed, length, scores))
        for length, scores in lengths.items()
        for seed in range(options.seeds)
    ]
    return facts, [*evci.look_tasks(data, options, looks), *schedules]


def count_removed(units: int, fraction: float) -> int:
    """How many of these units a fraction is: rounded down, as in the thesis; two stay in any case.

    >>> [count_removed(units, 0.6) for units in (8, 16, 64)]
    [4, 9, 38]
    """
    return max(0, min(units - 2, math.floor(fraction * units + 1e-9)))


def looks(trainer: Trainer, options: Options) -> Iterator[Row]:
    """What is seen of a network now; it is left as it was.

    Rows of ``kind`` ``loss`` (of the network itself), ``change`` (of the loss, by layer, score, replacement and
    fraction; ``elsewhere`` on validation images, which no score has seen), ``rank`` (Spearman's correlation with the
    mean replacement penalty, and the ``shared`` part of the units that both remove at one half), ``scores`` (the two
    of mean replacement, unit by unit).
    """
    shown, others = evci.samples(trainer)
    anatomy, signals = Anatomy(trainer.model, shown[0][:2]), Signals(trainer.model, *shown)
    draws = trainer.seed * 1_000_003 + trainer.iteration
    for place, layer in enumerate(anatomy.values()):
        losses = evci.tail_losses(trainer.model, layer.name, (shown, others))
        before, tried = losses(), without(layer, signals, losses)
        if place == 0:
            yield {"kind": "loss", "loss": before[0], "elsewhere": before[1]}
        scores = {score: [unit_scores(layer, signals, score)] for score in SCORES if score != "random"}
        scores["random"] = [unit_scores(layer, signals, "random", seed=draws + at) for at in range(DRAWS)]
        for row in ranks(layer, {name: each[0] for name, each in scores.items()}):
            yield {"kind": "rank", "layer": layer.name} | row
        both = {name: [float(f"{value:.5g}") for value in scores[name][0]] for name in REPLACING}
        yield {"kind": "scores", "layer": layer.name} | both
        for left in LEFT:
            fractions, names = (options.fractions, SCORES) if left == "mean" else (options.halves, options.scores)
            for score in names:
                each = scores[score]
                if score in REPLACING and left not in ("mean", "none"):
                    each = [unit_scores(layer, signals, score, replacement=left)]
                for fraction in fractions:
                    stay = layer.units - count_removed(layer.units, fraction)
                    change, elsewhere = np.mean([tried(strongest(one, stay), left) for one in each], axis=0) - before
                    yield {
                        "kind": "change", "layer": layer.name, "score": score, "replacement": left,
                        "fraction": fraction, "change": float(change), "elsewhere": float(elsewhere),
                    }  # fmt: skip


def without(layer: HiddenLayer, signals: Signals, losses: Callable[[], list[float]]) -> Callable[..., list[float]]:
    """The losses if only the units ``sources`` stayed and ``left`` took the others' place; the same is tried once."""
    constant = {name: constants(layer, signals, name) for name in REPLACEMENTS} | {"none": {}}

    @functools.cache
    def try_out(sources: tuple[int, ...], left: str) -> list[float]:
        with trial_surgery(leave(Plan(layer, "removal", sources, error=0.0), signals, constant[left])):
            return losses()

    return try_out


def ranks(layer: HiddenLayer, scores: Mapping[str, Tensor]) -> Iterator[Row]:
    """How each score orders the units, compared with the mean replacement penalty."""
    half = layer.units - count_removed(layer.units, 0.5)
    gone = {name: set(range(layer.units)) - set(strongest(each, half)) for name, each in scores.items()}
    for name, each in scores.items():
        if name != "mrp":
            rho = float(stats.spearmanr(each.numpy(), scores["mrp"].numpy()).statistic)
            shared = len(gone[name] & gone["mrp"]) / len(gone["mrp"])
            yield {"score": name, "rho": rho if math.isfinite(rho) else 0.0, "shared": shared}


@dataclass(frozen=True)
class Watched(MeanReplace):
    """Mean replacement that notes in ``stayed`` which of a layer's first units are left."""

    stayed: dict[str, list[int]] = field(default_factory=dict, compare=False, repr=False)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        plan = super().propose(layer, signals)
        units = self.stayed.setdefault(layer.name, list(range(layer.units)))
        self.stayed[layer.name] = [units[source] for source in plan.sources]
        return plan


def schedule(trainer: Trainer, score: str, moments: Sequence[Moment]) -> evci.Steps:
    """The thesis's schedule: which units of each layer go, and how many, as it was before training, rounded down."""
    anatomy = Anatomy(trainer.model, trainer.train.take(slice(0, 2))[0])
    sizes = {name: layer.units for name, layer in anatomy.items()}
    now, steps, stayed = dict(sizes), [], dict[str, list[int]]()
    for number, (moment, fraction) in enumerate(zip(moments, GONE, strict=True)):
        for name, at_first in sizes.items():
            stay = at_first - count_removed(at_first, fraction)
            if stay < now[name]:
                operation = Watched(stay / now[name], score, seed=trainer.seed * len(GONE) + number, stayed=stayed)
                steps.append(Step(moment, name, operation))
                now[name] = stay
    return Schedule(tuple(steps)), stayed


def arms(data: ImageTask, seed: int, epochs: int, scores: Sequence[str]) -> list[Row]:
    """Every arm with one seed; the unpruned one of a longer schedule is the network that is looked at."""
    names = (*[UNPRUNED] * (epochs == TENTHS), *scores)
    rows: list[Row] = []
    for trainer, each in evci.arms(data, seed, epochs, names, schedule, epochs == TENTHS):
        rows, last = [*rows, *each], trainer.model
    torch.manual_seed(seed)
    fresh = evci.build(image_facts(data))
    renew(fresh, describe(last), seed)
    again = evci.trainer_of(fresh, data, seed, epochs)
    again.fit()
    about = {"kind": "arm", "training": f"{epochs} epochs", "seed": seed, "arm": RESTART}
    return [*rows, about | read_end(again, data)]


def parameters_left(facts: Mapping[str, Any], units: Mapping[str, int]) -> int:
    """The parameters of the network for these images with this number of units in each layer (two at least)."""
    anatomy = Anatomy(evci.build(facts), torch.zeros(2, *facts["shape"]))
    with trial_surgery(*(MinWeight(units[layer.name] / layer.units).propose(layer) for layer in anatomy.values())):
        return parameters_of(anatomy.model)
