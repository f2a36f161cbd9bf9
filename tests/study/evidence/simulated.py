"""Studies of which the truth is known, decided by the product's own functions: how often is something false claimed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from network_surgery.study.evidence import contrast as contrasting
from network_surgery.study.evidence import deciding
from network_surgery.study.evidence.contrast import contrast
from network_surgery.study.evidence.crossed import Mean, of_samples
from network_surgery.study.evidence.deciding import decide
from network_surgery.study.store.folder import Record
from network_surgery.study.task.metric import ACCURACY
from network_surgery.study.training.cell import Cell

#: The arms of a study in the order of their tests.
RIVALS = ("restart", "restart_flops", "random", "original")
Truth = dict[str, tuple[float, float]]


def run(metric: float, flops: float) -> dict[str, Any]:
    """An outcome of one epoch that reaches every target at this cost."""
    return {
        "test_metric": metric, "validation_metric": 0.9, "training_flops": flops, "seconds": 1.0, "flops": 1.0,
        "epochs": [{"epoch": 1.0, "validation_metric": 0.9, "train_seconds": 1.0}], "operations": [],
        "operation_seconds": 0.0,
    }  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """The fractions of studies that claim a difference, or less compute, that is not there; *as good*, where it is not;
    and, of each arm of the first schedule, the decisions.
    """

    difference: float
    alike: float
    decisions: dict[str, dict[str, float]]


def studies(
    count: int, truths: Sequence[Truth], looks: Sequence[int] = (5,), spread: float = 0.004, seed: int = 0
) -> Rates:
    """``truths``: for each schedule, arm → the true difference of the metric and of the logarithm of the FLOPs."""
    rng, false, alike = np.random.default_rng(seed), 0, 0
    decisions: dict[str, dict[str, float]] = {arm: {} for arm in RIVALS}
    without = mock.patch.multiple(contrasting, bootstrap=lambda d: None, permutation=lambda d: None)
    with without, mock.patch.object(deciding, "_more", lambda *more: None):  # which are slow, and decide nothing
        for _ in range(count):
            studied = [_schedule(rng, truth, looks, spread) for truth in truths]
            decide(studied, ACCURACY)
            wrong, same = False, False
            for truth, contrasts in zip(truths, studied, strict=True):
                for each in contrasts:
                    shift, flops = truth[each["arm"]]
                    wrong |= _wrong(each["decision"], shift, flops)
                    same |= each["equivalence"]["shown"] and abs(shift) >= ACCURACY.margin - 1e-12
            false, alike = false + wrong, alike + same
            for each in studied[0]:
                known = decisions[each["arm"]]
                known[each["decision"]] = known.get(each["decision"], 0) + 1 / count
    return Rates(false / count, alike / count, decisions)


def _wrong(decision: str, shift: float, flops: float) -> bool:
    signs = {"better": shift, "worse": -shift, "less compute": -flops, "more compute": flops}
    return decision in signs and signs[decision] <= 0


def _schedule(rng: np.random.Generator, truth: Truth, looks: Sequence[int], spread: float) -> list[dict[str, Any]]:
    seeds = range(1, max(looks) + 1)

    def arm(name: str, shift: float, flops: float) -> dict[int, Record]:
        metrics, costs = 0.9 - shift + rng.normal(0, spread, len(seeds)), rng.normal(-flops, 0.1, len(seeds))
        return {
            seed: Record(Cell(name, seed), run(metric, float(np.exp(cost))))
            for seed, metric, cost in zip(seeds, metrics, costs, strict=True)
        }

    surgery, each = arm("surgery", 0.0, 0.0), [range(1, look + 1) for look in looks]
    return [
        contrast(name, surgery, arm(name, *truth[name]), [0.8], ACCURACY, looks=each)
        for name in RIVALS
        if name in truth
    ]


def values(
    rng: np.random.Generator, n: int, m: int, base: float, sample: float, arm: float, seed: float
) -> NDArray[np.float64]:
    """Hits of one arm minus those of another, ``[seeds, samples]``, which differ by chance alone.

    In logits: the mean of ``base``, and the deviations between samples, between the arms of a sample, between seeds.
    """
    logits = base + sample * rng.standard_normal((1, 1, m)) + arm * rng.standard_normal((2, 1, m))
    logits = logits + seed * rng.standard_normal((2, n, 1))
    hits = rng.random((2, n, m), dtype=np.float32) < 1 / (1 + np.exp(-logits))
    return hits[0].astype(np.float64) - hits[1]


#: What arms and samples may be like: the arguments of ``values``.
KINDS = {
    "98 %, noise alone": (6.0, 3.0, 0.0, 0.0), "97 %, seeds": (5.0, 3.0, 0.0, 0.3),
    "97 %, samples": (5.0, 3.0, 1.0, 0.0), "95 %, both": (4.5, 3.0, 0.7, 0.3), "85 %, both": (2.5, 2.0, 0.7, 0.15),
}  # fmt: skip


def coverage(count: int, kind: str, n: int, m: int, seed: int = 0) -> tuple[float, float, float]:
    """How often the 95 % interval holds the true difference, zero; the same for Student's over seeds alone; and how
    often *as good* is shown at 5 % of arms whose true difference is the margin.
    """
    rng, held, alone, alike = np.random.default_rng(seed), 0, 0, 0
    for _ in range(count):
        mean = of_samples(values(rng, n, m, *KINDS[kind]))
        held += _holds(mean.interval())
        alone += _holds(Mean(mean.value, n, mean.spreads[:1] if not mean.equal else ()).interval())
        off = Mean(mean.value + 0.005, n, mean.spreads, mean.deviation, mean.floor, m)
        p = off.p_within(0.005)
        alike += p is not None and p < 0.05
    return held / count, alone / count, alike / count


def _holds(interval: list[float] | None) -> bool:
    return interval is None or interval[0] <= 0 <= interval[1]
