"""The three claims of the draft, at a threshold that one half of the seeds chooses and the other half tests."""

from __future__ import annotations

import numpy as np

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part
from network_surgery.study.bench.rows import Measured, Rows, Values
from network_surgery.study.bench.tables import deviation, spread, table
from network_surgery.study.experiments.pcns_claims import figures
from network_surgery.study.experiments.pcns_claims.measure import (
    LATE,
    NETWORKS,
    ORIGINAL,
    PRUNED,
    REFITTED,
    RESTART,
    SURGERY,
)
from network_surgery.study.experiments.pcns_claims.race import TICKS

#: A loss of accuracy that still counts as the same performance: half a point.
MARGIN = 0.005
#: Ticks at the end of a race that an accuracy is averaged over where it chooses or is a target.
LAST = TICKS // 8


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows, thresholds = measured.rows, chosen(measured.rows)
    return {
        "raced_on": raced_on(measured),
        "race": figures.race(rows, thresholds),
        "thresholds": threshold_words(rows, thresholds),
        "claims": claims(rows, thresholds),
        "costs": costs(rows, thresholds),
        "arms": arms(rows),
    }


def raced_on(measured: Measured) -> str:
    """The networks and their images, in words."""
    options = measured.about["options"]
    labels = zip(NETWORKS, (options["label"], "scikit-learn’s digits"), options["epochs"], strict=True)
    return "\n".join(
        f"- **{name}** on {label}: {{train:,}} training, {{validation:,}} validation, {{test:,}} test images; batches of "
        f"{NETWORKS[name][1]}; seconds for {epochs} epochs of the original.".format(**measured.facts[name])
        for name, label, epochs in labels
    )


def values(rows: Rows, field: str, network: str, threshold: float | None, arm: str) -> Values:
    """One number of an arm ``[seeds]``, or one list ``[seeds, …]``; the original has no threshold."""
    where = {"kind": "arm", "network": network, "arm": arm, "threshold": None if arm == ORIGINAL else threshold}
    return rows.grid(field, **where)[:, 0]


def half(rows: Rows) -> int:
    """The number of seeds that choose, those of the lowest numbers; the others are tested."""
    return len(rows.distinct("seed")) // 2


def targets(rows: Rows, network: str, threshold: float | None = None, arm: str = ORIGINAL) -> Values:
    """``[seeds]``: the validation accuracy that an arm ends with, over its last ticks."""
    return values(rows, "curve", network, threshold, arm)[:, -LAST:].mean(axis=1)


def arrival(rows: Rows, network: str, threshold: float | None, arm: str) -> tuple[Values, Values]:
    """Seconds ``[seeds]`` until an arm is first seen where the original ends; all its seconds if it never is.

    And whether it ever is ``[seeds]``.
    """
    reached = values(rows, "curve", network, threshold, arm) >= targets(rows, network)[:, None]
    ticks = np.where(reached.any(axis=1), reached.argmax(axis=1), TICKS)
    return np.maximum(ticks, 1) / TICKS * values(rows, "budget", network, threshold, arm), reached.any(axis=1)


def chosen(rows: Rows) -> dict[str, float]:
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


def threshold_words(rows: Rows, thresholds: dict[str, float]) -> str:
    """Which thresholds were chosen on which seeds, and which seeds are tested."""
    seeds = sorted(rows.distinct("seed"))
    words = []
    for network, threshold in thresholds.items():
        left = values(rows, "parameters", network, threshold, SURGERY) / values(
            rows, "parameters", network, None, ORIGINAL
        )
        words.append(f"{threshold:g} for {network} ({left.mean():.0%} of the parameters left)")
    choosing, testing = (", ".join(map(str, part)) for part in (seeds[: half(rows)], seeds[half(rows) :]))
    return f"Seeds {choosing} choose {', '.join(words)}; seeds {testing} are tested"


def claims(rows: Rows, thresholds: dict[str, float]) -> list[Claim]:
    """The claims on the seeds that did not choose: the first of (a), (b) and (c) is the draft's, the others say what
    it is owed to."""

    def ahead(one: str, other: str, field: str = "test") -> dict[str, Values]:
        return {
            network: (values(rows, field, network, at, one) - values(rows, field, network, at, other))[half(rows) :]
            for network, at in thresholds.items()
        }

    def sooner(other: str) -> dict[str, Values]:
        return {
            network: np.log(arrival(rows, network, at, other)[0] / arrival(rows, network, at, SURGERY)[0])[half(rows) :]
            for network, at in thresholds.items()
        }

    return [
        Claim(f"(a) the shrunk network ends as accurate as the original, to within {100 * MARGIN:g} points", "",
              ahead(SURGERY, ORIGINAL), margin=MARGIN, unit="points"),
        Claim("(a) it ends more accurate than its architecture from fresh weights", "", ahead(SURGERY, RESTART),
              unit="points"),
        Claim("(b) it is sooner where the original ends (factor of seconds)", "", sooner(ORIGINAL), unit="factor"),
        Claim("(b) it is sooner there than its architecture from fresh weights", "", sooner(RESTART), unit="factor"),
        Claim("(c) it ends more accurate than a network trained first and pruned by minimum weight to the same sizes",
              "", ahead(SURGERY, PRUNED), unit="points"),
        Claim("(c) on a trained network PCNS leaves more accuracy, before any tuning, than pruning (validation images)",
              "", ahead(LATE, PRUNED, "after"), unit="points"),
        Claim("(c) choosing units by PCNS is better than at random, with the same refit", "", ahead(SURGERY, REFITTED),
              unit="points"),
    ]  # fmt: skip


def costs(rows: Rows, thresholds: dict[str, float]) -> str:
    """What PCNS and minimum weight cost, in words."""
    words = []
    for network, threshold in thresholds.items():
        cut, pruned = (values(rows, "operation", network, threshold, arm).mean() for arm in (SURGERY, PRUNED))
        epoch, budget = (values(rows, field, network, threshold, SURGERY).mean() for field in ("epoch", "budget"))
        words.append(
            f"{1000 * cut:.0f} ms for PCNS ({cut / epoch:.0%} of an epoch, {cut / budget:.1%} of all seconds) and "
            f"{1000 * pruned:.0f} ms for minimum weight ({network})"
        )
    return "; ".join(words)


def arms(rows: Rows) -> str:
    """Every arm at every threshold, all seeds."""
    lines = []
    for place in rows.groups("network", "threshold", "arm", kind="arm"):
        mean = {field: values(rows, field, **place).mean() for field in ("parameters", "price", "steps")}
        test, first = values(rows, "test", **place), rows.where(kind="arm", **place)[0]
        around = operation = units = ""
        if "operation" in first:
            before, after, seconds = (values(rows, each, **place).mean() for each in ("before", "after", "operation"))
            around, operation = f"{100 * before:.1f} → {100 * after:.1f}", f"{1000 * seconds:.0f}"
            sizes = [list(row["sizes"].values()) for row in rows.where(kind="arm", **place)]
            units = " – ".join(f"{each:.0f}" for each in np.mean(sizes, axis=0))
        gap = test - values(rows, "test", place["network"], None, ORIGINAL)
        seconds, reached = arrival(rows, **place)
        never = (~reached).sum()
        lines.append([
            *place.values(), units, around, f"{mean['parameters']:,.0f}", f"{1000 * mean['price']:.2f}",
            f"{mean['steps']:.0f}", operation, deviation(test, 2, 100),
            "" if place["arm"] == ORIGINAL else spread(gap, 2, 100, "+"),
            f"{np.exp(np.log(seconds).mean()):.2f}" + (f" ({never} never)" if never else ""),
        ])  # fmt: skip
    words = ("network", "threshold", "arm", "units", "right after, %")
    numbers = (
        "parameters",
        "ms a step",
        "steps",
        "operation, ms",
        "test accuracy, %",
        "− original",
        "at the target, s",
    )
    return table([*words, *numbers], lines, words=5)
