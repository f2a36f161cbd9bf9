"""What is said of EigenRemove and WeakExpand in isolation (Graham 2019, 4.2.1), and whether it holds here.

Every statement is put as differences that would be above zero if it held, paired by iteration or training. It holds
where all of them are above zero at 0.05 (paired t-test, two-sided, Holm over all tests on one layer), does not hold
where one is below, and is undecided otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from network_surgery.study.evidence.significance import Difference, family
from network_surgery.study.experiments.isolation.curves import (
    GROWTHS,
    LOWEST,
    MEAN_L2,
    MEAN_VARIANCE,
    MIN_WEIGHT,
    PIVOTED,
    RANDOM_REMOVE,
    RANKS,
    REPLACED,
    WEIGHTS,
    Curves,
    eigen,
)

#: Relative squared distances below this are rounding: of single precision, squared and summed.
ROUNDING = 1e-9
HOLDS, CONTRARY, UNDECIDED = "holds", "does not hold", "undecided"
Differences = dict[str, NDArray[np.float64]]


@dataclass
class Verdict:
    """A statement about one layer, with the tests that decide it; without tests it is decided exactly."""

    statement: str
    where: str
    weights: str
    tests: dict[str, Difference]
    exact: tuple[str, str] | None = None

    @property
    def finding(self) -> str:
        if self.exact:
            return self.exact[0]
        signs = {test.sign for test in self.tests.values()}
        return CONTRARY if -1 in signs else HOLDS if signs == {1} else UNDECIDED

    @property
    def weakest(self) -> tuple[str, Difference]:
        """The test that speaks most against the statement, in its own deviations, and what it compares."""
        return min(self.tests.items(), key=lambda each: each[1].mean if each[1].effect is None else each[1].effect)

    def to_data(self) -> dict[str, Any]:
        tests = [{"what": what} | asdict(test) | {"sign": test.sign} for what, test in self.tests.items()]
        return {
            "statement": self.statement, "where": self.where, "weights": self.weights, "finding": self.finding,
            "exact": self.exact[1] if self.exact else None, "tests": tests,
        }  # fmt: skip


def _gap(curves: Curves, low: str, at: int) -> NDArray[np.float64]:
    return np.abs(curves.relative[low] - curves.relative[MIN_WEIGHT])[:, at]


def _each_rank(curves: Curves, weights: str) -> Differences:
    ranks = list(RANKS)
    return {
        f"{RANKS[lower]} − {RANKS[rank]}": curves.average(eigen(lower, weights)) - curves.average(eigen(rank, weights))
        for rank, lower in itertools.pairwise(ranks)
    }


def _first_cut(curves: Curves, weights: str) -> Differences:
    full = curves.relative[eigen(1.0)]
    return {
        f"{RANKS[rank]} − 1 at {curves.sizes[-1]} units": (curves.relative[eigen(rank, weights)] - full)[:, -1]
        for rank in LOWEST
    }


def _flatter(curves: Curves, weights: str) -> Differences:
    def rise(rank: float) -> NDArray[np.float64]:
        values = curves.relative[eigen(rank, weights)]
        return np.asarray(values[:, 0] - values[:, -1])

    return {f"rise of 1 − rise of {RANKS[rank]}": rise(1.0) - rise(rank) for rank in LOWEST}


def _drastic(curves: Curves, weights: str) -> Differences:
    full = curves.relative[eigen(1.0)]
    return {
        f"1 − {RANKS[rank]} at {curves.sizes[at]} units": (full - curves.relative[eigen(rank, weights)])[:, at]
        for at in dict.fromkeys(curves.nearest(fraction) for fraction in (0.25, 0.125))
        for rank in (0.25, *LOWEST)
    }


def _converges(curves: Curves, weights: str) -> Differences:
    half, most = curves.nearest(0.5), curves.nearest(0.125)
    if half == most:
        return {}
    return {
        f"gap of {RANKS[rank]} at {curves.sizes[half]} − at {curves.sizes[most]} units": _gap(
            curves, eigen(rank, weights), half
        )
        - _gap(curves, eigen(rank, weights), most)
        for rank in LOWEST
    }


def _higher_error(curves: Curves, weights: str) -> Differences:
    return {
        f"{RANKS[rank]} − MinWeight": curves.average(eigen(rank, weights)) - curves.average(MIN_WEIGHT)
        for rank in list(RANKS)[1:]
    }


def _below_floor(curves: Curves, weights: str) -> Differences:
    return {
        f"replacement − {RANKS[rank]}": curves.average(REPLACED) - curves.average(eigen(rank, weights))
        for rank in RANKS
    }


def _worse(worse: str, better: str) -> Callable[[Curves, str], Differences]:
    return lambda curves, _: {f"{worse} − {better}": curves.average(worse) - curves.average(better)}


def _reduced(curves: Curves, _: str) -> Differences:
    return {
        f"reduced − original at {RANKS[rank]}": curves.average(eigen(rank, "reduced")) - curves.average(eigen(rank))
        for rank in list(RANKS)[1:]
    }


#: The thesis's statements about ranks, each tested for both forms of EigenRemove.
THESIS: dict[str, Callable[[Curves, str], Differences]] = {
    "Every reduction of rank adds error": _each_rank,
    "At the smallest cut full rank has the least error": _first_cut,
    "The curve of a low rank is flatter": _flatter,
    "For drastic cuts a low rank (δ < 0.5) is the better choice": _drastic,
    "At the deepest cuts EigenRemove and MinWeight converge": _converges,
    "EigenRemove below full rank has a higher error than MinWeight": _higher_error,
    "EigenRemove does better than replacing both matrices by random ones": _below_floor,
}
SAME_UNITS = "At full rank EigenRemove is MinWeight"
GROWTH = "WeakExpand and ZeroExpand do not change the output"
#: What the thesis does not ask.
OURS: dict[str, Callable[[Curves, str], Differences]] = {
    "Keeping the original weights (Algorithm 2) has less error than the reduced ones (Listing 6.1)": _reduced,
    "MinWeight has less error than random removal": _worse(RANDOM_REMOVE, MIN_WEIGHT),
    "Leaving the mean behind has less error than MinWeight of the same units": _worse(MIN_WEIGHT, MEAN_L2),
    "Choosing by variance has less error than by l2, the mean left behind": _worse(MEAN_L2, MEAN_VARIANCE),
    "PCNS has less error than mean replacement by variance": _worse(MEAN_VARIANCE, PIVOTED),
}


def judge(curves: Sequence[Curves]) -> list[Verdict]:
    """Every statement about every layer; p-values are adjusted over those on one layer."""
    verdicts = []
    for each in curves:
        found = list(_of(each))
        tests = family({(at, what): values for at, (_, asked) in enumerate(found) for what, values in asked.items()})
        for at, (verdict, asked) in enumerate(found):
            verdict.tests |= {what: tests[at, what] for what in asked}
            verdicts.append(verdict)
    return verdicts


def _of(curves: Curves) -> Iterator[tuple[Verdict, Differences]]:
    """Each statement, and the differences that are to decide it."""
    if curves.change == "grow":
        grown = [float(curves.relative[method].max()) for method in GROWTHS if method in curves.relative]
        if grown:
            worst = max(grown)
            finding = HOLDS if worst < ROUNDING else CONTRARY
            words = f"at most {worst:.1e} of the output's squared norm"
            yield Verdict(GROWTH, curves.where, "", {}, (finding, words)), {}
        return
    if {eigen(1.0), MIN_WEIGHT} <= curves.relative.keys():
        apart = float(np.abs(curves.distance[eigen(1.0)] - curves.distance[MIN_WEIGHT]).max())
        words = "equal in every digit" if apart == 0 else f"distances differ by up to {apart:.2g}"
        yield Verdict(SAME_UNITS, curves.where, "", {}, (HOLDS if apart == 0 else CONTRARY, words)), {}
    asked = [(name, ask, weights) for weights in WEIGHTS for name, ask in THESIS.items()]
    for statement, ask, weights in [*asked, *((name, ask, "") for name, ask in OURS.items())]:
        try:
            differences = ask(curves, weights)
        except KeyError:  # a method could not be measured on this layer; the report says which
            continue
        if differences:
            yield Verdict(statement, curves.where, weights, {}), differences
