"""Looks at a network while it trains: what the loss would be without some of a layer's weights, and back.

At each moment every score ranks the weights of a layer on the same images; a fraction of them is set to zero, the loss
is taken, and the weights get their values back, so that training goes on as if nobody had looked. Evci 2018, 2.1.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from network_surgery.ops.signals.weight_scores import weight_scores
from network_surgery.study.data import Dataset
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import Tail
from network_surgery.study.experiments.rows import Row
from network_surgery.study.training.trainer import Trainer

#: Approximations of the change of the loss, and that change, measured weight by weight.
TAYLOR, MEASURED = ("taylor1", "taylor2", "hessian"), "loss_change"
SIGNED = (*TAYLOR, MEASURED)
#: Every score that prunes; those that end in ``_abs`` are the absolute values of the signed ones.
SCORES = ("magnitude", *SIGNED, *(f"{name}_abs" for name in SIGNED), "random")
#: Draws of the random score at each look.
DRAWS = 3


@dataclass(frozen=True)
class Looking:
    """How long a network trains, how often it is looked at, which fractions of which layers' weights are pruned.

    ``layers``: name → whether the change of the loss is measured for each of its weights alone, a forward pass each.
    """

    iterations: int = evci.ITERATIONS // 2
    looks: int = 6
    fractions: tuple[float, ...] = (0.01, 0.05, 0.2, 0.5, 0.8)
    layers: tuple[tuple[str, bool], ...] = (("conv1", True), ("fc1", False))


def looked(data: Dataset, activation: str, seed: int, looking: Looking) -> list[Row]:
    """One training, looked at."""
    return evci.looked(data, activation, seed, looking.iterations, looking.looks, lambda at: looks(at, looking))


def looks(trainer: Trainer, looking: Looking) -> Iterator[Row]:
    """What is seen of a network now; it is left as it was.

    Rows of ``kind`` ``loss`` (of the network itself), ``change`` (of the loss, by layer, score and fraction; scores and
    ``change`` are of the validation images, as in the thesis, ``elsewhere`` of training images; ``alone`` is the sum of
    what the same weights change one at a time, where that was measured), ``negative`` (the ``share`` of weights with a
    score below zero), ``rank`` (Spearman's correlation with the measured change: ``rho`` of the score, ``rho_abs`` of
    absolute values).
    """
    others, shown = evci.samples(trainer)
    draws = torch.Generator().manual_seed(trainer.seed * 1_000_003 + trainer.iteration)
    for place, (name, measuring) in enumerate(looking.layers):
        weight = trainer.model.get_parameter(f"{name}.weight")
        tail = Tail(trainer.model, name, (shown, others))
        before = tail.losses()
        if place == 0:
            yield {"kind": "loss", "loss": before[0], "elsewhere": before[1]}
        scores = scored(trainer, name, shown, measuring)
        for row in seen(scores):
            yield {"layer": name} | row
        scores |= {f"{signed}_abs": scores[signed].abs() for signed in SIGNED if signed in scores}
        for score in (*scores, "random"):
            drawn = [torch.rand(weight.shape, generator=draws) for _ in range(DRAWS)] if score == "random" else None
            for fraction in looking.fractions:
                each, alone = [], []
                for one in drawn or [scores[score]]:
                    gone = lowest(one, fraction)
                    with zeroed(weight, gone):
                        each.append(tail.losses())
                    if measuring:
                        alone.append(float(scores[MEASURED].flatten()[gone].sum()))
                change, elsewhere = np.mean(each, axis=0) - before
                yield {
                    "kind": "change", "layer": name, "score": score, "fraction": fraction, "change": float(change),
                    "elsewhere": float(elsewhere), "alone": float(np.mean(alone)) if alone else None,
                }  # fmt: skip


def scored(trainer: Trainer, name: str, shown: tuple[Tensor, Tensor], measuring: bool) -> dict[str, Tensor]:
    """The scores of a layer's weights, but for absolute and random ones."""
    tensor = f"{name}.weight"
    names = ("magnitude", *TAYLOR, *((MEASURED,) if measuring else ()))
    return {score: weight_scores(trainer.model, [tensor], score, *shown)[tensor] for score in names}


def seen(scores: Mapping[str, Tensor]) -> Iterator[Row]:
    """What the signed scores say themselves, and how they agree with the measured change."""
    for name in SIGNED:
        if name in scores:
            yield {"kind": "negative", "score": name, "share": float((scores[name] < 0).double().mean())}
    if MEASURED not in scores:
        return
    truth = scores[MEASURED].flatten().numpy()
    for name in ("magnitude", *TAYLOR):
        mine = scores[name].flatten().numpy()
        pairs = {"rho": (mine, truth), "rho_abs": (np.abs(mine), np.abs(truth))}
        yield {"kind": "rank", "score": name} | {key: _spearman(*pair) for key, pair in pairs.items()}


def lowest(scores: Tensor, fraction: float) -> Tensor:
    """The places, in the flattened tensor, of the fraction (rounded down) of weights with the lowest scores."""
    return scores.flatten().argsort(stable=True)[: math.floor(fraction * scores.numel() + 1e-9)]


@contextlib.contextmanager
def zeroed(weight: Tensor, gone: Tensor) -> Iterator[None]:
    """These entries of a tensor are zero for the time of a ``with`` block."""
    before = weight.detach().clone()
    try:
        weight.data.view(-1)[gone] = 0
        yield
    finally:
        weight.data.copy_(before)


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    rho = stats.spearmanr(one, other).statistic
    return float(rho) if math.isfinite(rho) else 0.0
