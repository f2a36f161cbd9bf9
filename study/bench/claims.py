"""One rule for what holds.

A claim is put as differences, paired by seed, that lie above zero if it holds: one for each condition that it speaks
of (a layer, a network, other images). Each is tested by Student's paired t-test, two-sided (by the sign test if a
difference is the same for every seed); the claims of one table are one family, whose p-values are corrected by Holm's
method. A difference is shown to go one way where p < 0.05 then. The claim *holds* where every difference is shown to go
its way, *does not hold* where none is and one is shown to go the other way, *depends* where some go one way and some
the other, and is *undecided* where nothing is shown. Where what is compared is the same by construction, no test is
made: *no difference is possible*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from network_surgery.study.bench.rows import Values
from network_surgery.study.bench.tables import table
from network_surgery.study.errors import StudyError
from network_surgery.study.evidence.significance import LEVEL, compare_paired, holm

HOLDS, DEPENDS, CONTRARY, UNDECIDED, UNTRIED = "holds", "depends", "does not hold", "undecided", "not tried"
IMPOSSIBLE = "no difference is possible"
#: All words that a verdict begins with, the strongest first.
WORDS = (HOLDS, DEPENDS, CONTRARY, IMPOSSIBLE, UNDECIDED, UNTRIED)


@dataclass(frozen=True)
class Claim:
    """What somebody says, and the differences that decide it.

    ``source``: who says so, and where. ``differences``: ``[seeds]`` for each condition, or for the only one.
    ``wanted``: 1 where they lie above zero if it holds, −1 below, 0 where they are none. ``margin``: by how much a
    difference may miss that (negative: by how much it is to exceed it); for 0 how far from zero is still none.
    ``exact``: no chance is in them (rounding, counts), so that every value decides instead of a test.
    ``unit``: of the differences as they are written; those of logarithms are factors. ``same``: why there can be no
    difference, where there can be none; then none is tested.

    Raises:
        ValueError: ``wanted`` is 0 without a margin, which no test can show.
    """

    text: str
    source: str
    differences: Values | Mapping[str, Values]
    wanted: Literal[-1, 0, 1] = 1
    margin: float = 0.0
    exact: bool = False
    unit: Literal["", "points", "factor"] = ""
    same: str = ""

    def __post_init__(self) -> None:
        if self.wanted == 0 and self.margin <= 0 and not self.exact:
            raise ValueError(f"no test can show that there is no difference at all: {self.text!r} needs a margin")

    @property
    def conditions(self) -> dict[str, Values]:
        """The differences by condition."""
        if self.same:
            return {}
        each = self.differences if isinstance(self.differences, Mapping) else {"": self.differences}
        return {name: np.asarray(values, dtype=np.float64) for name, values in each.items()}

    def edge(self, values: Values) -> float:
        """What a difference is tested against: zero but for the margin, on the side where the mean is."""
        return math.copysign(self.margin, values.mean()) if self.wanted == 0 else -self.wanted * self.margin


@dataclass(frozen=True)
class Result:
    """A mean difference with its 95 % interval; ``sign``: 1 shown to go the claim's way, −1 the other way, 0 neither.

    ``p`` is after Holm, against the edge; None without a test.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float | None
    sign: int

    def words(self, unit: str = "") -> str:
        """The mean with its interval, and a star where a test shows it to go one way; rounding errors are zero."""
        scale = 100 if unit == "points" else 1
        numbers = [round(scale * n, 12) + 0.0 for n in (self.mean, *(self.interval or ()))]
        middle, *bounds = (f"× {math.exp(n):.3g}" if unit == "factor" else f"{n:+.3g}" for n in numbers)
        return middle + (f" [{', '.join(bounds)}]" if bounds else "") + "*" * bool(self.sign and self.p is not None)


@dataclass(frozen=True)
class Verdict:
    """A claim with its results by condition."""

    claim: Claim
    results: Mapping[str, Result]

    @property
    def word(self) -> str:
        """The verdict: the same words for every claim.

        >>> result = {sign: Result(sign, None, None, sign) for sign in (-1, 0, 1)}
        >>> claim = Claim("", "", np.zeros(0))
        >>> for signs in ((1, 1), (1, 0), (1, -1), (0, -1), (0, 0)):
        ...     print(Verdict(claim, {str(at): result[sign] for at, sign in enumerate(signs)}).word)
        holds
        holds in 1 of 2
        depends: holds in 1, the opposite in 1 of 2
        does not hold: the opposite in 1 of 2
        undecided
        """
        if self.claim.same:
            return f"{IMPOSSIBLE}: {self.claim.same}"
        signs = [result.sign for result in self.results.values()]
        n, good, bad = len(signs), signs.count(1), signs.count(-1)
        if not signs:
            return UNTRIED
        if good and bad:
            return f"{DEPENDS}: {HOLDS} in {good}, the opposite in {bad} of {n}"
        if bad:
            return CONTRARY if n == 1 else f"{CONTRARY}: the opposite in {bad} of {n}"
        return UNDECIDED if not good else HOLDS if good == n else f"{HOLDS} in {good} of {n}"


def judge(claims: Sequence[Claim]) -> list[Verdict]:
    """The verdict of each claim; all of their tests are one family.

    Raises:
        StudyError: a difference is not a number, as after a run that diverged.
    """
    known = {(at, name): values for at, claim in enumerate(claims) for name, values in claim.conditions.items()}
    for (at, name), values in known.items():
        if values.ndim != 1 or not np.isfinite(values).all():
            raise StudyError(f"the differences of {claims[at].text!r} {name} are no finite numbers by seed: {values}")
    gaps = {
        key: values - claims[key[0]].edge(values)
        for key, values in known.items() if len(values) and not claims[key[0]].exact
    }  # fmt: skip
    outcomes = {key: _tested_gap(gap) for key, gap in gaps.items()}
    adjusted = dict(zip(outcomes, holm([p for _, p in outcomes.values()]), strict=True))
    results = {
        key: _result(claims[key[0]], values, (outcomes[key][0], adjusted[key]) if key in gaps else None)
        for key, values in known.items() if len(values)
    }  # fmt: skip
    return [
        Verdict(claim, {name: results[at, name] for name in claim.conditions if (at, name) in results})
        for at, claim in enumerate(claims)
    ]


def _tested_gap(gap: Values) -> tuple[list[float] | None, float | None]:
    """The 95 % interval of a mean and its p-value: Student's, or where nothing varies the sign test's, if not zero."""
    mean, interval, p = compare_paired(gap.tolist())
    if interval is None and len(gap) > 1 and abs(mean) > 1e-12:
        p = 2 * 0.5 ** len(gap)
    return interval, p


def _result(claim: Claim, values: Values, test: tuple[list[float] | None, float | None] | None) -> Result:
    edge = claim.edge(values)
    if test is None:
        gap = values - edge
        good = np.abs(values) <= claim.margin if claim.wanted == 0 else claim.wanted * gap > 0
        return Result(float(values.mean()), None, None, 1 if good.all() else -1)
    interval, p = test
    shown = 0 if p is None or p >= LEVEL else 1 if values.mean() > edge else -1
    sign = shown * (claim.wanted or (-1 if edge > 0 else 1))
    bounds = None if interval is None else (interval[0] + edge, interval[1] + edge)
    return Result(float(values.mean()), bounds, p, sign)


def to_table(claims: Sequence[Claim]) -> str:
    """The claims with their differences and verdicts, and how they were tested."""
    verdicts = judge(claims)
    named = any(name for verdict in verdicts for name in verdict.results)
    lines: list[list[object]] = []
    for verdict in verdicts:
        claim, unit = verdict.claim, " points" if verdict.claim.unit == "points" else ""
        text = f"{claim.text} ({claim.source})" if claim.source else claim.text
        results = {name: result.words(claim.unit) + unit for name, result in verdict.results.items()} or {"": ""}
        for at, cells in enumerate(results.items()):
            lines.append(["" if at else text, *cells[not named :], "" if at else f"**{verdict.word}**"])
    columns = ["claim", *["where"] * named, "difference", "verdict"]
    return table(columns, lines, words=len(columns)) + _describe_tests(verdicts)


def _describe_tests(verdicts: Sequence[Verdict]) -> str:
    """How the claims of a table were tested; nothing where none was."""
    results = [result for verdict in verdicts for result in verdict.results.values()]
    tests = sum(result.p is not None for result in results)
    tested = [verdict.claim for verdict in verdicts if not verdict.claim.exact]
    sizes = {len(values) for claim in tested for values in claim.conditions.values() if len(values)}
    if not tests:
        return ""
    n = " to ".join(str(size) for size in dict.fromkeys((min(sizes), max(sizes))))
    same = any(result.p is not None and result.interval is None for result in results)
    signs = "; those that are the same for every seed are tested by the sign test" * same
    return (
        f"\n\nDifferences are paired by seed (n = {n}), with 95 % intervals (Student's t){signs}; *: p < 0.05 after "
        f"Holm's correction over the {tests} tests of this table."
    )


def to_summary(claims: Sequence[Claim]) -> str:
    """A line for each verdict, with the claims that have it, in the order of their families."""
    groups: dict[str, list[str]] = {}
    for verdict in judge(claims):
        groups.setdefault(verdict.word.partition(":")[0], []).append(verdict.claim.text)
    order = sorted(groups, key=lambda word: (next(at for at, w in enumerate(WORDS) if word.startswith(w)), len(word)))
    return "\n".join(f"- **{word}**: {'; '.join(groups[word])}." for word in order)
