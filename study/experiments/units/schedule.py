"""Units are removed by a schedule while a network trains, and it is compared with its uninterrupted self.

Evci 2018, 4.2: after epochs 2, 3, 4 and 5 of 10 the units of the lowest scores go, with bias propagation, until 0.1,
0.2, 0.4 and 0.6 of them are gone; 4,019 of 20,522 parameters are left, he counts. He does not say of what these are
fractions; ``left`` takes each of a layer's own units, as there were before training, rounded down, for that leaves
4,019 (``READINGS`` has others, which do not).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

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
from network_surgery.study import models
from network_surgery.study.data import Dataset
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.rows import Row
from network_surgery.study.experiments.units.looks import removed
from network_surgery.study.training.records import spikes
from network_surgery.study.training.restart import renew
from network_surgery.study.training.theatre import Theatre
from network_surgery.study.training.trainer import steps_per_epoch

#: After which tenth of training which fraction of the units is gone.
PLAN = ((2, 0.1), (3, 0.2), (4, 0.4), (5, 0.6))
TENTHS = 10
#: The arms beside the scores.
UNPRUNED, RESTART = "unpruned", "restart"

#: How many units are left: of the layer as it was before training and as it is now, by the fraction.
READINGS: dict[str, Callable[[int, int, float], int]] = {
    "of each layer as it was, rounded down": lambda at_first, now, fraction: at_first - removed(at_first, fraction),
    "of each layer as it was, to the nearest": lambda at_first, now, fraction: at_first - round(fraction * at_first),
    "of what is left of each layer, rounded down": lambda at_first, now, fraction: now - removed(now, fraction),
    "of what is left of each layer, to the nearest": lambda at_first, now, fraction: now - round(fraction * now),
}
(left, *_) = READINGS.values()


@dataclass(frozen=True)
class Watched(MeanReplace):
    """Mean replacement that tells which units stayed: ``told`` gets (layer, sources)."""

    told: list[tuple[str, tuple[int, ...]]] = field(default_factory=list, compare=False, repr=False)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        plan = super().propose(layer, signals)
        self.told.append((layer.name, plan.sources))
        return plan


@dataclass(frozen=True)
class Training:
    """How long, in epochs; which scores choose; whether the unpruned network is trained here, too, and whether the
    sizes of weights are kept (of seed 0).
    """

    name: str
    epochs: int
    scores: tuple[str, ...]
    unpruned: bool = True
    maps: bool = False


def schedule(
    sizes: Mapping[str, int], score: str, seed: int, iterations: int, told: list[tuple[str, tuple[int, ...]]]
) -> Schedule:
    """The thesis's schedule for a training of so many iterations, for layers of these sizes."""
    now, steps = dict(sizes), []
    for number, (tenth, fraction) in enumerate(PLAN):
        when = Moment(round(iterations * tenth / TENTHS), "it")
        for name, at_first in sizes.items():
            stay = left(at_first, now[name], fraction)
            if stay < now[name]:
                operation = Watched(stay / now[name], score, seed=seed * len(PLAN) + number, told=told)
                steps.append(Step(when, name, operation))
                now[name] = stay
    return Schedule(tuple(steps))


def arms(data: Dataset, seed: int, training: Training) -> list[Row]:
    """Every arm for one seed: all go on from one network, which is shared until the first units go."""
    iterations = training.epochs * steps_per_epoch(len(data.train), evci.BATCH)
    shared = evci.prepared(data, "ReLU", seed, training.epochs * PLAN[0][0] // TENTHS)
    shared.fit()
    sizes = {name: layer.units for name, layer in Anatomy(shared.model, shared.train.take(slice(0, 2))[0]).items()}
    about = {"kind": "arm", "training": training.name, "seed": seed}
    rows: list[Row] = []
    maps = training.maps and seed == 0
    if training.unpruned:
        whole = evci.branch(shared, data, training.epochs)
        rows.append(about | {"arm": UNPRUNED} | evci.ended(whole, data))
        if maps:
            sizes_of = evci.magnitudes(whole.model, shared.model, {})
            rows.append(about | {"kind": "map", "arm": UNPRUNED, "maps": sizes_of})
    for score in training.scores:
        told: list[tuple[str, tuple[int, ...]]] = []
        theatre = Theatre(schedule(sizes, score, seed, iterations, told), data.validation, evci.SAMPLE)
        cut = evci.branch(shared, data, training.epochs, [theatre])
        peaks = [[spike.epoch, spike.loss_before, spike.loss_after] for spike in spikes(theatre.records)]
        rows.append(about | {"arm": score, "peaks": peaks} | evci.ended(cut, data))
        if maps:
            sizes_of = evci.magnitudes(cut.model, shared.model, survivors(sizes, told))
            rows.append(about | {"kind": "map", "arm": score, "maps": sizes_of})
    torch.manual_seed(seed)
    fresh = models.build(evci.NETWORKS["ReLU"], data.shape, len(data.classes))
    renew(fresh, describe(cut.model), seed)
    again = evci.trainer_of(fresh, data, seed, training.epochs)
    again.fit()
    return [*rows, about | {"arm": RESTART} | evci.ended(again, data)]


def survivors(sizes: Mapping[str, int], told: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, list[int]]:
    """By layer, which of its units as it was before training are left."""
    found = {name: list(range(size)) for name, size in sizes.items()}
    for name, sources in told:
        found[name] = [found[name][source] for source in sources]
    return found


def readings(data: Dataset) -> list[Row]:
    """What each reading of the fractions leaves: units by layer and parameters, ``kind`` ``reading``."""
    sizes = {layer.name: layer.units for layer in _fresh(data).values()}
    rows: list[Row] = [
        {"kind": "reading", "reading": "none", "units": sizes, "parameters": parameters_left(data, sizes)}
    ]
    for name, reading in READINGS.items():
        units = dict(sizes)
        for _, fraction in PLAN:
            units = {layer: reading(sizes[layer], now, fraction) for layer, now in units.items()}
        rows.append({"kind": "reading", "reading": name, "units": units, "parameters": parameters_left(data, units)})
    return rows


def parameters_left(data: Dataset, units: Mapping[str, int]) -> int:
    """The parameters of the network for these images with so many units in its layers (two at least)."""
    anatomy = _fresh(data)
    with trial_surgery(*(MinWeight(units[layer.name] / layer.units).propose(layer) for layer in anatomy.values())):
        return parameters_of(anatomy.model)


def _fresh(data: Dataset) -> Anatomy:
    model = models.build(evci.NETWORKS["ReLU"], data.shape, len(data.classes))
    return Anatomy(model, torch.zeros(2, *data.shape))
