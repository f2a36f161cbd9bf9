"""What is measured of weights: looks at a network while it trains, and a schedule that prunes them.

Looks (Evci 2018, 2.1): at each moment every score ranks a layer's weights on the same images; a fraction of them is set
to zero, the loss is taken, and the weights get their values back, so that training goes on as if nobody had looked.

Schedule (2.2): after epochs 2, 3, 4 and 5 of 10 the smallest weights of the whole network go, until 0.2, 0.5, 0.8 and
0.9 of them are zero. Then units with at most a fraction ``f_nz`` of nonzero incoming or outgoing weights are removed;
here the mean of what such a unit sends on stays in the next bias, so that at 0 the network computes what it did.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from network_surgery.ops import Anatomy, Moment, PruneWeights, Schedule, Signals, Step, compact
from network_surgery.ops.anatomy import WHOLE
from network_surgery.ops.network.masks import parameters_of
from network_surgery.ops.signals.weight_scores import weight_scores
from network_surgery.study.bench.experiment import image_facts
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import CPU, TENTHS, UNPRUNED, outputs, tail_losses
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import CLASSIFICATION
from network_surgery.study.training.evaluation import evaluate
from network_surgery.study.training.trainer import Trainer

#: Approximations of the change of the loss, and that change, measured weight by weight.
TAYLOR, MEASURED = ("taylor1", "taylor2", "hessian"), "loss_change"
SIGNED = (*TAYLOR, MEASURED)
#: Every score that prunes; those that end in ``_abs`` are the absolute values of the signed ones.
SCORES = ("magnitude", *SIGNED, *(f"{name}_abs" for name in SIGNED), "random")
#: Draws of the random score at each look.
DRAWS = 3
#: The fractions of the weights that are zero after each of ``evci.MOMENTS``.
GONE = (0.2, 0.5, 0.8, 0.9)
#: The score whose network is compacted, and the fractions of nonzero weights at which units are removed.
COMPACTED, F_NZ = "magnitude", (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)
#: The layer whose weights are measured one by one, and one that is not.
FIRST, DENSE = "conv1", "fc1"


@dataclass(frozen=True)
class Options(evci.Options):
    """``fractions`` of a layer's weights are pruned at each look; ``arms``: the scores that prune by the schedule."""

    iterations: int = evci.Options.iterations // 2
    looks: int = 6
    fractions: tuple[float, ...] = (0.01, 0.05, 0.2, 0.5, 0.8)
    arms: tuple[str, ...] = (COMPACTED, "random")


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts, and the tasks: schedule and looks with each seed."""
    data = evci.images(options)
    schedules = [(f"schedule-{seed}", partial(arms, data, seed, options.arms)) for seed in range(options.seeds)]
    return image_facts(data), [*schedules, *evci.look_tasks(data, options, looks)]


def looks(trainer: Trainer, options: Options) -> Iterator[Row]:
    """What is seen of a network now; it is left as it was.

    Rows of ``kind`` ``loss`` (of the network itself), ``change`` (of the loss, by layer, score and fraction; scores and
    ``change`` are of the validation images, as in the thesis, ``elsewhere`` of training images; ``alone`` is the sum of
    what the same weights change one at a time, where that was measured), ``negative`` (the ``share`` of weights with a
    score below zero), ``rank`` (Spearman's correlation with the measured change: ``rho`` of the score, ``rho_abs`` of
    absolute values).
    """
    others, shown = evci.samples(trainer)
    draws = torch.Generator().manual_seed(trainer.seed * 1_000_003 + trainer.iteration)
    for name in (FIRST, DENSE):
        tensor = f"{name}.weight"
        weight, losses = trainer.model.get_parameter(tensor).data, tail_losses(trainer.model, name, (shown, others))
        before, whole = losses(), weight.clone()
        if name == FIRST:
            yield {"kind": "loss", "loss": before[0], "elsewhere": before[1]}
        names = ("magnitude", *(SIGNED if name == FIRST else TAYLOR))
        scores = {score: weight_scores(trainer.model, [tensor], score, *shown)[tensor] for score in names}
        for row in agreement(scores):
            yield {"layer": name} | row
        scores |= {f"{signed}_abs": scores[signed].abs() for signed in SIGNED if signed in scores}
        for score in (*scores, "random"):
            drawn = [torch.rand(weight.shape, generator=draws) for _ in range(DRAWS)] if score == "random" else None
            for fraction in options.fractions:
                each, alone = [], []
                for one in drawn or [scores[score]]:
                    gone = lowest(one, fraction)
                    weight.view(-1)[gone] = 0
                    each.append(losses())
                    weight.copy_(whole)
                    if MEASURED in scores:
                        alone.append(float(scores[MEASURED].flatten()[gone].sum()))
                change, elsewhere = np.mean(each, axis=0) - before
                yield {
                    "kind": "change", "layer": name, "score": score, "fraction": fraction, "change": float(change),
                    "elsewhere": float(elsewhere), "alone": float(np.mean(alone)) if alone else None,
                }  # fmt: skip


def agreement(scores: Mapping[str, Tensor]) -> Iterator[Row]:
    """What the signed scores say themselves, and how they agree with the measured change."""
    for name in SIGNED:
        if name in scores:
            yield {"kind": "negative", "score": name, "share": float((scores[name] < 0).double().mean())}
    for name in ("magnitude", *TAYLOR) if MEASURED in scores else ():
        one, truth = (scores[each].flatten().numpy() for each in (name, MEASURED))
        pairs = {"rho": (one, truth), "rho_abs": (np.abs(one), np.abs(truth))}
        rho = {key: float(stats.spearmanr(*pair).statistic) for key, pair in pairs.items()}
        yield {"kind": "rank", "score": name} | {key: each if math.isfinite(each) else 0.0 for key, each in rho.items()}


def lowest(scores: Tensor, fraction: float) -> Tensor:
    """The places, in the flattened tensor, of the fraction (rounded down) of weights with the lowest scores."""
    return scores.flatten().argsort(stable=True)[: math.floor(fraction * scores.numel() + 1e-9)]


def arms(data: ImageTask, seed: int, scores: tuple[str, ...]) -> list[Row]:
    """Every arm with one seed; of the one pruned by magnitude also what compaction leaves (``kind`` ``compact``)."""
    rows: list[Row] = []
    for trainer, each in evci.arms(data, seed, TENTHS, (UNPRUNED, *scores), schedule, True):
        rows += each
        if each[0]["arm"] == COMPACTED:
            rows += [{"kind": "compact", "seed": seed, "arm": COMPACTED} | row for row in compact_sizes(trainer, data)]
    return rows


def schedule(trainer: Trainer, score: str, moments: Sequence[Moment]) -> evci.Steps:
    """The thesis's schedule; every unit is left."""
    return Schedule(tuple(
        Step(moment, WHOLE, PruneWeights(fraction, score=score, seed=trainer.seed))
        for moment, fraction in zip(moments, GONE, strict=True)
    )), {}  # fmt: skip


def compact_sizes(trainer: Trainer, data: ImageTask) -> Iterator[Row]:
    """What is left for each ``f_nz``: units by layer, parameters (``dense``: zeros included), accuracy on test images.

    ``moved`` is the largest change of a logit of the test images, relative to the largest logit.
    """
    (shown, _), test = evci.samples(trainer), Batches(data.test, CPU)
    before = outputs(trainer.model, test.take(slice(None))[0])
    for fraction in F_NZ:
        model = copy.deepcopy(trainer.model)
        anatomy = Anatomy(model, shown[0][:2])
        compact(anatomy, (), Signals(model, *shown), fraction=fraction)
        after = outputs(model, test.take(slice(None))[0])
        yield {
            "f_nz": fraction, "units": {name: layer.units for name, layer in anatomy.items()},
            "dense": sum(parameter.numel() for parameter in model.parameters()), "live": parameters_of(model),
            "test": evaluate(model, CLASSIFICATION, test)[1],
            "moved": float((after - before).abs().max() / before.abs().max()),
        }  # fmt: skip
