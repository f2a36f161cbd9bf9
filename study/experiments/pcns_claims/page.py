"""The three claims of the draft, at a threshold that one half of the seeds chooses and the other half tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part
from network_surgery.study.bench.rows import Measured, Row, Rows, Values
from network_surgery.study.bench.tables import deviation, spread, table
from network_surgery.study.experiments.pcns_claims import figures
from network_surgery.study.experiments.pcns_claims.figures import values
from network_surgery.study.experiments.pcns_claims.measure import LATE, ORIGINAL, PRUNED, REFITTED, RESTART, SURGERY
from network_surgery.study.experiments.pcns_claims.race import TICKS

#: A loss of accuracy that still counts as the same performance: half a point.
MARGIN = 0.005
#: Ticks at the end of a race that an accuracy is averaged over where it chooses or is a target.
LAST = TICKS // 8


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows, thresholds = measured.rows, choose_thresholds(measured.rows)
    return {
        "raced_on": raced_on(measured),
        "race": figures.race(rows, thresholds),
        "thresholds": threshold_words(rows, thresholds),
        "claims": claims(rows, thresholds),
        "arms": arms(rows),
    }


def raced_on(measured: Measured) -> str:
    """The networks and their images, in words."""
    line = (
        "- **{}** on {label}: {train:,} training, {validation:,} validation, {test:,} test images; seconds for "
        "{epochs} epochs of the original."
    )
    return "\n".join(line.format(network, **facts) for network, facts in measured.facts.items())


def half(rows: Rows) -> int:
    """The number of seeds that choose, those of the lowest numbers; the others are tested."""
    return len(rows.distinct("seed")) // 2


def targets(rows: Rows, network: str, threshold: float | None = None, arm: str = ORIGINAL) -> Values:
    """``[seeds]``: the validation accuracy that an arm ends with, over its last ticks."""
    return np.mean(values(rows, "curve", network, threshold, arm)[:, -LAST:], axis=1)


def arrival(rows: Rows, network: str, threshold: float | None, arm: str) -> tuple[Values, int]:
    """Seconds ``[seeds]`` until an arm is first seen where the original ends, or all of its seconds; and how many
    seeds never are."""
    reached = values(rows, "curve", network, threshold, arm) >= targets(rows, network)[:, None]
    ever = np.any(reached, axis=1)
    ticks = np.where(ever, reached.argmax(axis=1), TICKS)
    return np.maximum(ticks, 1) / TICKS * values(rows, "budget", network, threshold, arm), sum(~ever)


def choose_thresholds(rows: Rows) -> dict[str, float]:
    """By network, the largest threshold at which PCNS ends, on the validation images of the first half of the seeds,
    within the margin of the original; else the one at which it ends highest."""
    found = {}
    for network in rows.distinct("network"):
        gaps = {
            threshold: (targets(rows, network, threshold, SURGERY) - targets(rows, network))[: half(rows)].mean()
            for threshold in rows.distinct("threshold", network=network, arm=SURGERY)
        }
        good = [threshold for threshold, gap in gaps.items() if gap >= -MARGIN]
        found[network] = max(good) if good else max(gaps, key=lambda threshold: gaps[threshold])
    return found


def threshold_words(rows: Rows, thresholds: Mapping[str, float]) -> str:
    """Which thresholds were chosen on which seeds, and which seeds are tested."""
    seeds = sorted(rows.distinct("seed"))
    words = []
    for network, threshold in thresholds.items():
        size = partial(values, rows, "parameters", network, threshold)
        left = (size(SURGERY) / size(ORIGINAL)).mean()
        words.append(f"{threshold:g} for {network} ({left:.0%} of the parameters left)")
    choosing, testing = (", ".join(map(str, part)) for part in (seeds[: half(rows)], seeds[half(rows) :]))
    return f"Seeds {choosing} choose {', '.join(words)}; seeds {testing} are tested"


def claims(rows: Rows, thresholds: Mapping[str, float]) -> list[Claim]:
    """The claims on the seeds that did not choose: the first of (a), (b) and (c) is the draft's, the others say what
    it is owed to."""

    def ahead(number: Callable[[str, float, str], Values], one: str, other: str) -> dict[str, Values]:
        gaps = {network: number(network, at, one) - number(network, at, other) for network, at in thresholds.items()}
        return {network: gap[half(rows) :] for network, gap in gaps.items()}

    test, after = partial(values, rows, "test"), partial(values, rows, "after")

    def haste(*arm: Any) -> Values:
        return -np.log(arrival(rows, *arm)[0])

    def cheapness(*arm: Any) -> Values:
        return -np.log(values(rows, "operation", *arm))

    return [
        Claim(f"(a) the shrunk network ends as accurate as the original, to within {100 * MARGIN:g} points", "",
              ahead(test, SURGERY, ORIGINAL), margin=MARGIN, unit="points"),
        Claim("(a) it ends more accurate than its architecture from fresh weights", "", ahead(test, SURGERY, RESTART),
              unit="points"),
        Claim("(b) it is sooner where the original ends (factor of seconds)", "", ahead(haste, SURGERY, ORIGINAL),
              unit="factor"),
        Claim("(b) it is sooner there than its architecture from fresh weights", "", ahead(haste, SURGERY, RESTART),
              unit="factor"),
        Claim("(c) it ends more accurate than a network trained first and pruned by minimum weight to the same sizes",
              "", ahead(test, SURGERY, PRUNED), unit="points"),
        Claim("(c) on a trained network PCNS leaves more accuracy, before any tuning, than pruning (validation images)",
              "", ahead(after, LATE, PRUNED), unit="points"),
        Claim("(c) choosing units by PCNS is better than at random, with the same refit", "",
              ahead(test, SURGERY, REFITTED), unit="points"),
        Claim("(c) the operation takes less time than minimum weight (factor of seconds)", "",
              ahead(cheapness, LATE, PRUNED), unit="factor"),
    ]  # fmt: skip


def arms(rows: Rows) -> str:
    """Every arm at every threshold, all seeds."""
    lines = []
    for place in rows.groups("network", "threshold", "arm", kind="arm"):
        each, test = rows.where(kind="arm", **place), values(rows, "test", **place)
        (seconds, never), original = arrival(rows, **place), values(rows, "test", place["network"], None, ORIGINAL)

        def mean(field: str, digits: int = 0, scale: int = 1, rows: list[Row] = each) -> str:
            return f"{scale * np.mean([row[field] for row in rows]):,.{digits}f}" if field in rows[0] else ""

        sizes = np.mean([list(row.get("sizes", {}).values()) for row in each], axis=0)
        lines.append([
            *place.values(), " – ".join(f"{size:.0f}" for size in sizes), mean("parameters"), mean("price", 2, 1000),
            mean("steps"), mean("operation", 0, 1000), mean("before", 1, 100), mean("after", 1, 100),
            deviation(test, 2, 100), "" if place["arm"] == ORIGINAL else spread(test - original, 2, 100, "+"),
            f"{np.exp(np.log(seconds).mean()):.2f}" + (f" ({never} never)" if never else ""),
        ])  # fmt: skip
    columns = ("parameters", "ms a step", "steps", "operation, ms", "before it, %", "after it, %", "test accuracy, %",
               "− original", "at the target, s")  # fmt: skip
    return table(["network", "threshold", "arm", "units", *columns], lines, words=4)
