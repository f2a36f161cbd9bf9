"""The claims as differences paired by seed: which threshold is meant, what is tested, and what the tests say.

A network's threshold is chosen on validation images; the claims are tested at that threshold on test images, all of
them one family for Holm. What is said of the other thresholds is description.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from network_surgery.study.evidence.significance import Difference, family
from network_surgery.study.experiments.claims.arms import (
    LATE,
    ORIGINAL,
    PRUNED,
    REFITTED,
    RESTART,
    SURGERY,
    THRESHOLDS,
    TICKS,
    Found,
    Outcome,
)  # fmt: skip

#: A loss of accuracy that still counts as the same performance: half a point.
MARGIN = 0.005
#: Ticks at the end of a race that an accuracy is averaged over where it chooses or is a target.
LAST = TICKS // 8

Arms = Mapping[str, Sequence[Outcome]]


@dataclass(frozen=True)
class Statement:
    """A statement of a claim that a paired difference, plus ``margin``, lies above zero. ``factor``: of logarithms."""

    claim: str
    words: str
    difference: Callable[[Arms], NDArray[np.float64]]
    margin: float = 0.0
    factor: bool = False


def _ahead(one: str, other: str, measure: str = "test") -> Callable[[Arms], NDArray[np.float64]]:
    return lambda arms: values(arms[one], measure) - values(arms[other], measure)


def _sooner(one: str, other: str) -> Callable[[Arms], NDArray[np.float64]]:
    def difference(arms: Arms) -> NDArray[np.float64]:
        wanted = targets(arms[ORIGINAL])
        return np.log(arrival(arms[other], wanted) / arrival(arms[one], wanted))

    return difference


CLAIMS = {"a": "a smaller network at the same performance", "b": "less training time", "c": "better to operate"}
#: The first of each claim is the claim; the others say what it is owed to.
STATEMENTS = (
    Statement(
        "a", f"The shrunk network ends as accurate as the original, to within {100 * MARGIN:g} points.",
        _ahead(SURGERY, ORIGINAL), MARGIN,
    ),
    Statement("a", "It ends more accurate than its architecture from fresh weights.", _ahead(SURGERY, RESTART)),
    Statement(
        "b", "It is sooner where the original ends (factor of seconds).", _sooner(SURGERY, ORIGINAL), factor=True
    ),
    Statement(
        "b", "It is sooner there than its architecture from fresh weights.", _sooner(SURGERY, RESTART), factor=True
    ),
    Statement(
        "c", "It ends more accurate than a network trained first and pruned by minimum weight to the same sizes.",
        _ahead(SURGERY, PRUNED),
    ),
    Statement(
        "c", "On a trained network PCNS leaves more accuracy, before any tuning, than pruning (validation images).",
        _ahead(LATE, PRUNED, "after"),
    ),
    Statement(
        "c", "Choosing units by PCNS is better than at random, with the same refit.", _ahead(SURGERY, REFITTED)
    ),
)  # fmt: skip


def values(outcomes: Sequence[Outcome], measure: str) -> NDArray[np.float64]:
    """One measure ``[seeds]``."""
    return np.array([getattr(outcome, measure) for outcome in outcomes], dtype=np.float64)


def curves(outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """Validation accuracies ``[seeds, TICKS + 1]``."""
    return np.array([outcome.curve for outcome in outcomes])


def targets(original: Sequence[Outcome]) -> NDArray[np.float64]:
    """``[seeds]``: the validation accuracy that the original ends with, over its last ticks."""
    return curves(original)[:, -LAST:].mean(axis=1)


def arrival(outcomes: Sequence[Outcome], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds ``[seeds]`` until an arm is first seen at its target; all of its seconds where it never is."""
    reached = curves(outcomes) >= wanted[:, None]
    ticks = np.where(reached.any(axis=1), reached.argmax(axis=1), TICKS)
    return np.maximum(ticks, 1) / TICKS * values(outcomes, "budget")


def arms_of(found: Found, setting: str, threshold: float) -> dict[str, list[Outcome]]:
    """All arms of a setting at one threshold, the original among them."""
    return {arm: outcomes for (name, at, arm), outcomes in found.items() if name == setting and at in (None, threshold)}


def settings_of(found: Found) -> list[str]:
    return list(dict.fromkeys(setting for setting, _, _ in found))


def chosen(found: Found, setting: str) -> float:
    """The largest threshold at which PCNS ends, on validation images, within the margin of the original; else the one
    at which it ends highest."""
    ends = {}
    for threshold in THRESHOLDS:
        arms = arms_of(found, setting, threshold)
        ends[threshold] = float((targets(arms[SURGERY]) - targets(arms[ORIGINAL])).mean())
    good = [threshold for threshold, gap in ends.items() if gap >= -MARGIN]
    return max(good) if good else max(ends, key=lambda threshold: ends[threshold])


#: By the statement's number and the setting.
Tests = dict[tuple[int, str], Difference]


def tests(found: Found) -> Tests:
    """Every statement in every setting, at its chosen threshold; differences are told with their margin."""
    return family(
        {
            (number, setting): statement.difference(arms_of(found, setting, chosen(found, setting))) + statement.margin
            for setting in settings_of(found)
            for number, statement in enumerate(STATEMENTS)
        }
    )


def finding(signs: Sequence[int]) -> str:
    """What the tests of one statement say together, a sign for each setting.

    >>> finding([1, 1]), finding([1, 0]), finding([0, 0]), finding([-1, 0]), finding([1, -1])
    ('holds', 'holds in 1 of 2 settings', 'undecided', 'does not hold', 'holds in 1 of 2 settings, not in 1')
    """
    for_it, against = signs.count(1), signs.count(-1)
    if for_it == len(signs):
        return "holds"
    if for_it:
        return f"holds in {for_it} of {len(signs)} settings" + (f", not in {against}" if against else "")
    return "does not hold" if against else "undecided"


def lines(found: Found) -> list[str]:
    """Each claim with its finding, and what it is owed to."""
    decided, settings = tests(found), settings_of(found)
    written = []
    for claim, words in CLAIMS.items():
        mine = [number for number, statement in enumerate(STATEMENTS) if statement.claim == claim]
        for number in mine:
            results = {setting: decided[number, setting] for setting in settings}
            outcome = finding([result.sign for result in results.values()])
            told = "; ".join(f"{said(STATEMENTS[number], result)} ({setting})" for setting, result in results.items())
            lead = f"- **({claim}) {words}: {outcome}.**" if number == mine[0] else f"  - **{outcome}**:"
            written.append(f"{lead} {STATEMENTS[number].words} {told}.")
    return written


def said(statement: Statement, result: Difference) -> str:
    """A result in points, or as a factor; a star where it is shown."""
    if statement.factor:
        return f"× {result.factor()}"
    shift = statement.margin
    bounds = None if result.interval is None else [bound - shift for bound in result.interval]
    return Difference(result.mean - shift, bounds, result.p).words(100)


def described(one: NDArray[np.float64], other: NDArray[np.float64], scale: float = 100) -> str:
    """A paired difference outside the family: the mean with its interval, no star."""
    (result,) = family({"": one - other}).values()
    return Difference(result.mean, result.interval, None).words(scale)


def geometric(seconds: NDArray[np.float64]) -> float:
    return math.exp(float(np.log(seconds).mean()))
