"""Weights are pruned by a schedule while a network trains; then the units that this left useless are removed.

Evci 2018, 2.2: after epochs 2, 3, 4 and 5 of 10 the smallest weights of the whole network go, until 0.2, 0.5, 0.8 and
0.9 of them are zero. Then units with at most a fraction ``f_nz`` of nonzero incoming or outgoing weights are removed;
here the mean of what such a unit sends on stays in the next bias, so that at 0 the network computes what it did.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from network_surgery.ops import Anatomy, Moment, PruneWeights, Schedule, Signals, Step, compact
from network_surgery.ops.anatomy import WHOLE, evaluating
from network_surgery.ops.network.masks import parameters_of
from network_surgery.study.data import Dataset
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import CPU
from network_surgery.study.experiments.rows import Row
from network_surgery.study.training.records import spikes
from network_surgery.study.training.theatre import Theatre
from network_surgery.study.training.trainer import Batches, Trainer, evaluate, steps_per_epoch

#: After which tenth of training which fraction of the weights is zero.
PLAN = ((2, 0.2), (3, 0.5), (4, 0.8), (5, 0.9))
TENTHS = 10
UNPRUNED = "unpruned"
#: The score whose network is compacted, and the fractions of nonzero weights at which units are removed.
COMPACTED, F_NZ = "magnitude", (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)


@dataclass(frozen=True)
class Training:
    """How many epochs, and which scores prune."""

    epochs: int = 10
    scores: tuple[str, ...] = ("magnitude", "random")


def schedule(score: str, seed: int, iterations: int) -> Schedule:
    """The thesis's schedule for a training of so many iterations."""
    steps = [
        Step(Moment(round(iterations * tenth / TENTHS), "it"), WHOLE, PruneWeights(part, score=score, seed=seed))
        for tenth, part in PLAN
    ]
    return Schedule(tuple(steps))


def arms(data: Dataset, seed: int, training: Training) -> list[Row]:
    """Every arm for one seed, ``kind`` ``arm``: all go on from one network, which is shared until the first pruning.

    Of the one pruned by magnitude also what compaction leaves (``compact``), of seed 0 the sizes of weights (``map``).
    """
    iterations = training.epochs * steps_per_epoch(len(data.train), evci.BATCH)
    shared = evci.prepared(data, "ReLU", seed, training.epochs * PLAN[0][0] // TENTHS)
    shared.fit()
    about = {"seed": seed}
    rows: list[Row] = []
    for arm in (UNPRUNED, *training.scores):
        steps = Schedule() if arm == UNPRUNED else schedule(arm, seed, iterations)
        theatre = Theatre(steps, data.validation, evci.SAMPLE)
        trainer = evci.branch(shared, data, training.epochs, [theatre])
        peaks = [[spike.epoch, spike.loss_before, spike.loss_after] for spike in spikes(theatre.records)]
        rows.append(about | {"kind": "arm", "arm": arm, "peaks": peaks} | evci.ended(trainer, data))
        if seed == 0:
            maps = evci.magnitudes(trainer.model, shared.model, {})
            rows.append(about | {"kind": "map", "arm": arm, "maps": maps})
        if arm == COMPACTED:
            rows += [about | {"kind": "compact", "arm": arm} | row for row in compacted(trainer, data)]
    return rows


def compacted(trainer: Trainer, data: Dataset) -> Iterator[Row]:
    """What is left for each ``f_nz``: units by layer, parameters (``dense``: zeros included), accuracy on test images.

    ``moved`` is the largest change of a logit of the test images, relative to the largest logit.
    """
    shown, _ = evci.samples(trainer)
    test = Batches(data.test, CPU)
    before = logits(trainer.model, test)
    for fraction in F_NZ:
        model = copy.deepcopy(trainer.model)
        anatomy = Anatomy(model, shown[0][:2])
        compact(anatomy, (), Signals(model, *shown), fraction=fraction)
        after = logits(model, test)
        yield {
            "f_nz": fraction, "units": {name: layer.units for name, layer in anatomy.items()},
            "dense": sum(parameter.numel() for parameter in model.parameters()), "live": parameters_of(model),
            "test": evaluate(model, test)[1], "moved": float((after - before).abs().max() / before.abs().max()),
        }  # fmt: skip


def logits(model: nn.Module, images: Batches) -> torch.Tensor:
    """Of all images, ``[images, classes]``, in evaluation mode."""
    with evaluating(model), torch.no_grad():
        parts = [images.take(slice(at, at + evci.TOGETHER))[0] for at in range(0, len(images), evci.TOGETHER)]
        return torch.cat([model(part) for part in parts])
