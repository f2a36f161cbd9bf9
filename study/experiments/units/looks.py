"""Looks at a network while it trains: what the loss would be without some of a layer's units, and back.

At each moment every score ranks the units of every layer on the same training images; a fraction of each layer is
removed (``ops.trial_surgery``), the loss is taken, and the removal is undone, so that training goes on as if nobody had
looked. Evci 2018, 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from network_surgery.ops import Anatomy, HiddenLayer, Signals, trial_surgery
from network_surgery.ops.operations.min_weight import strongest
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.replacement import REPLACEMENTS, constants
from network_surgery.ops.signals.unit_scores import unit_scores
from network_surgery.ops.surgery.repair import leave
from network_surgery.study.data import Dataset
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import Tail
from network_surgery.study.experiments.rows import Row
from network_surgery.study.training.trainer import Trainer

#: The thesis's four first (its norms are of a unit's own, incoming weights), then those that it does not have.
SCORES: tuple[str, ...] = ("mrp", "mrs", "l1_in", "l2_in", "l1", "l2", "variance", "taylor", "random")
#: Those that rank by the loss of a replacement, so that the replacement is part of the score.
REPLACING = ("mrp", "mrs")
#: Draws of the random score at each look.
DRAWS = 3
#: What takes the place of a removed unit; ``none``: zero, without bias propagation.
LEFT: tuple[str, ...] = (*REPLACEMENTS, "none")


@dataclass(frozen=True)
class Looking:
    """How long a network trains, how often it is looked at, and what is removed.

    ``fractions`` of each layer by every score and mean replacement; ``halves`` by ``scores`` and every replacement.
    """

    iterations: int = evci.ITERATIONS
    looks: int = 8
    fractions: tuple[float, ...] = (0.1, 0.2, 0.4, 0.5, 0.6)
    halves: tuple[float, ...] = (0.2, 0.5)
    scores: tuple[str, ...] = ("mrp", "mrs", "l2_in", "random")


def removed(units: int, fraction: float) -> int:
    """How many of so many units a fraction is: rounded down, as in the thesis; two stay in any case.

    >>> [removed(units, 0.6) for units in (8, 16, 64)]
    [4, 9, 38]
    """
    return max(0, min(units - 2, math.floor(fraction * units + 1e-9)))


def looked(data: Dataset, activation: str, seed: int, looking: Looking) -> list[Row]:
    """One training, looked at."""
    return evci.looked(data, activation, seed, looking.iterations, looking.looks, lambda at: looks(at, looking))


def looks(trainer: Trainer, looking: Looking) -> Iterator[Row]:
    """What is seen of a network now; it is left as it was.

    Rows of ``kind`` ``loss`` (of the network itself), ``change`` (of the loss, by layer, score, replacement and
    fraction; ``elsewhere`` on validation images, which no score has seen), ``rank`` (Spearman's correlation with the
    mean replacement penalty, and the ``shared`` part of the units that both remove at one half), ``scores`` (the two
    of mean replacement, unit by unit).
    """
    shown, others = evci.samples(trainer)
    anatomy = Anatomy(trainer.model, shown[0][:2])
    signals = Signals(trainer.model, *shown)
    draws = trainer.seed * 1_000_003 + trainer.iteration
    for place, layer in enumerate(anatomy.values()):
        tail = Tail(trainer.model, layer.name, (shown, others))
        before = tail.losses()
        if place == 0:
            yield {"kind": "loss", "loss": before[0], "elsewhere": before[1]}
        removals = Removals(layer, signals, tail)
        scores = {score: [unit_scores(layer, signals, score)] for score in SCORES if score != "random"}
        scores["random"] = [unit_scores(layer, signals, "random", seed=draws + at) for at in range(DRAWS)]
        for row in ranks(layer, {name: each[0] for name, each in scores.items()}):
            yield {"kind": "rank", "layer": layer.name} | row
        both = {name: [float(f"{value:.5g}") for value in scores[name][0]] for name in REPLACING}
        yield {"kind": "scores", "layer": layer.name} | both
        for replacement in LEFT:
            fractions, names = looking.fractions, SCORES
            if replacement != "mean":
                fractions, names = looking.halves, looking.scores
            for score in names:
                mine = scores[score]
                if score in REPLACING and replacement not in ("mean", "none"):
                    mine = [unit_scores(layer, signals, score, replacement=replacement)]
                for fraction in fractions:
                    each = [removals.losses(one, fraction, replacement) for one in mine]
                    change, elsewhere = np.mean(each, axis=0) - before
                    yield {
                        "kind": "change", "layer": layer.name, "score": score, "replacement": replacement,
                        "fraction": fraction, "change": float(change), "elsewhere": float(elsewhere),
                    }  # fmt: skip


class Removals:
    """Removes units of a layer on trial. Scores often agree on the units; the same removal is tried once."""

    def __init__(self, layer: HiddenLayer, signals: Signals, tail: Tail) -> None:
        self._layer, self._signals, self._tail = layer, signals, tail
        self._left = {name: constants(layer, signals, name) for name in REPLACEMENTS} | {"none": {}}
        self._known: dict[tuple[str, tuple[int, ...]], list[float]] = {}

    def losses(self, scores: Tensor, fraction: float, replacement: str) -> list[float]:
        """Without the fraction of the units that have the lowest scores, and with what is left behind in biases."""
        sources = strongest(scores, self._layer.units - removed(self._layer.units, fraction))
        if (replacement, sources) not in self._known:
            plan = leave(Plan(self._layer, "removal", sources, error=0.0), self._signals, self._left[replacement])
            with trial_surgery(plan):
                self._known[replacement, sources] = self._tail.losses()
        return self._known[replacement, sources]


def ranks(layer: HiddenLayer, scores: Mapping[str, Tensor]) -> Iterator[Row]:
    """How each score orders the units, compared with the mean replacement penalty."""
    half = layer.units - removed(layer.units, 0.5)
    gone = set(range(layer.units)) - set(strongest(scores["mrp"], half))
    for name, each in scores.items():
        if name == "mrp":
            continue
        rho = stats.spearmanr(each.numpy(), scores["mrp"].numpy()).statistic
        mine = set(range(layer.units)) - set(strongest(each, half))
        yield {
            "score": name, "rho": float(rho) if math.isfinite(rho) else 0.0, "shared": len(mine & gone) / len(gone),
        }  # fmt: skip
