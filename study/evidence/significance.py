"""Differences paired by seed, their intervals and tests, and what may be said of a family of them."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

#: The largest p-value, after adjustment, at which a difference counts as shown.
LEVEL = 0.05
#: No larger number of seeds is asked for.
MOST_SEEDS = 10_000
Key = TypeVar("Key")


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences with its 95 % interval; ``p`` is after Holm, ``alone`` before. None where nothing
    varies.

    ``effect``: Cohen's d, the mean over the differences' standard deviation; ``n``: how many there are.
    """

    mean: float
    interval: list[float] | None
    p: float | None
    effect: float | None = None
    n: int = 0
    alone: float | None = None

    @property
    def sign(self) -> int:
        """Which way the difference is shown to go; 0 where it is not."""
        return 0 if self.p is None or self.p >= LEVEL else 1 if self.mean > 0 else -1

    def words(self, scale: float = 1) -> str:
        """The mean with its interval, and a star where it is shown not to be zero."""
        middle = f"{scale * self.mean:+.2f}"
        if self.interval is None:
            return middle
        low, high = (f"{scale * bound:+.2f}" for bound in self.interval)
        return f"{middle} [{low}, {high}]{'*' if self.sign else ''}"

    def factor(self, rounding: float = 0.0) -> str:
        """A difference of logarithms as a factor; one below ``rounding`` is none."""
        middle = f"{math.exp(self.mean):.3f}"
        if self.interval is None or abs(self.mean) < rounding:
            return middle
        low, high = (f"{math.exp(bound):.3f}" for bound in self.interval)
        return f"{middle} [{low}, {high}]{'*' if self.sign else ''}"


def family(differences: Mapping[Key, Sequence[float] | NDArray[np.float64]]) -> dict[Key, Difference]:
    """Every mean difference, with p-values that are adjusted by Holm over all of them."""
    values = {key: [float(value) for value in each] for key, each in differences.items()}
    outcomes = [compare_paired(each) for each in values.values()]
    adjusted = holm([p for _, _, p in outcomes])
    found = {}
    for (key, each), (mean, interval, alone), p in zip(values.items(), outcomes, adjusted, strict=True):
        found[key] = Difference(mean, interval, p, effect(each), len(each), alone)
    return found


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjustment of p-values that belong to one family; None (no test) stays None.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    tested = sorted((p, i) for i, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = highest
    return adjusted


def graphical(
    values: Sequence[float | None], weights: Sequence[float], passes: Sequence[Mapping[int, float]]
) -> list[float | None]:
    """The adjusted p-values of tests that share one error rate and pass it on (Bretz et al. 2009, algorithm 2).

    ``weights``: each test's share of the level, at most 1 in all. ``passes``: where a test's share goes once it has
    shown something, by the number of the receiving test, at most 1 in all. None (no test) stays None, and passes
    nothing on.

    >>> order = [{1: 1.0}, {2: 1.0}, {}]
    >>> graphical([0.01, 0.2, 0.001], [1, 0, 0], order)
    [0.01, 0.2, 0.2]
    >>> holms = [{1: 0.5, 2: 0.5}, {0: 0.5, 2: 0.5}, {0: 0.5, 1: 0.5}]
    >>> [round(p, 9) for p in graphical([0.01, 0.04, 0.03], [1 / 3] * 3, holms)]
    [0.03, 0.06, 0.06]
    """
    share = dict(enumerate(weights))
    way = {i: {j: float(passes[i].get(j, 0.0)) for j in share if j != i} for i in share}
    adjusted: list[float | None] = [None if p is None else 1.0 for p in values]
    highest = 0.0
    while able := [i for i in way if values[i] is not None and share[i] > 1e-12]:
        i = min(able, key=lambda i: values[i] / share[i])  # type: ignore[operator]
        adjusted[i] = highest = max(highest, min(1.0, values[i] / share[i]))  # type: ignore[operator]
        gone = way.pop(i)
        for j in way:
            share[j] += share[i] * gone[j]
            back = way[j].pop(i)
            for k in way[j]:
                way[j][k] = (way[j][k] + back * gone[k]) / (1 - back * gone[j]) if back * gone[j] < 1 else 0.0
    return adjusted


def compare_paired(differences: Sequence[float]) -> tuple[float, list[float] | None, float | None]:
    """Mean of paired differences, its 95 % interval and p-value by Student's t; None where nothing varies."""
    mean = statistics.fmean(differences)
    if len(differences) < 2 or statistics.stdev(differences) < 1e-12:
        return mean, None, None
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(0.95)
    return mean, [float(interval.low), float(interval.high)], float(test.pvalue)


def half_interval(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[seeds, …] → […]``: half of the mean's 95 % interval (Student's t)."""
    n = len(values)
    return stats.t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)


def effect(differences: Sequence[float]) -> float | None:
    """Cohen's d of paired differences: their mean over their standard deviation; None where nothing varies."""
    if len(differences) < 2 or statistics.stdev(differences) < 1e-12:
        return None
    return statistics.fmean(differences) / statistics.stdev(differences)


def bootstrap(differences: Sequence[float]) -> list[float] | None:
    """The 95 % interval of the mean by resampling (Efron 1987, corrected for bias and skewness); seeded.

    None where nothing varies. With few seeds it is too narrow; Student's is not, if differences are about normal.
    """
    if effect(differences) is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of degenerate samples
        found = stats.bootstrap((list(differences),), np.mean, n_resamples=2000, rng=np.random.default_rng(0))
    interval = found.confidence_interval
    return [float(interval.low), float(interval.high)] if math.isfinite(interval.low + interval.high) else None


def permutation(differences: Sequence[float]) -> float | None:
    """The p-value of the mean by exchanging signs, exact up to 13 seeds; None where nothing varies.

    It assumes nothing of the distribution. With ``n`` seeds it cannot fall below 2 / 2ⁿ: 0.06 for five.
    """
    if effect(differences) is None:
        return None
    found = stats.permutation_test(
        (list(differences),), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0)
    )
    return float(found.pvalue)


def seeds_needed(
    deviation: float, wanted: float, power: float = 0.8, level: float = LEVEL, floor: float = 0.0
) -> int | None:
    """How many seeds would show a mean difference of ``wanted`` at this level with this power, by a paired t-test.

    ``deviation``: of the differences of single seeds, ``floor``: the standard error that no number of seeds takes away
    (that of the samples). None where no number would do.
    """

    def enough(n: int) -> bool:
        edge = stats.t.ppf(1 - level / 2, n - 1)
        return bool(stats.nct.sf(edge, n - 1, wanted / math.sqrt(deviation**2 / n + floor**2)) >= power)

    if deviation <= 0 and floor <= 0:
        return None
    if not enough(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
