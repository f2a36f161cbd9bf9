"""What the two heuristics about δ say (Graham 2019, 4.2), asked of what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part, images
from network_surgery.study.bench.rows import Measured, Rows, Values
from network_surgery.study.bench.tables import spread, table
from network_surgery.study.experiments.heuristics.measure import DELTAS, FREQUENCIES, MOMENTS, SIZES, WEIGHTS

#: What the heuristics call a low and a high δ: below and above one half.
LOW, HIGH = (tuple(delta for delta in DELTAS if (delta > 0.5) == high) for high in (False, True))


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows = measured.rows
    return {
        "images": images(measured),
        "accuracy_claims": claims(rows, "accuracy"),
        "accuracy": to_table(rows, "test", 2, 100),
        "loss_claims": claims(rows, "loss"),
        "loss": to_table(rows, "spike", 3),
    }


def advantage(rows: Rows, field: str, **which: Any) -> Values:
    """How much more of a field a high δ has than a low one ``[seeds]``, in the mean over all that is not ``which``."""
    high, low = (
        np.mean([rows.grid(field, delta=delta, **which).mean(axis=1) for delta in deltas], axis=0)
        for deltas in (HIGH, LOW)
    )
    return np.asarray(high - low)


def claims(rows: Rows, measure: Literal["accuracy", "loss"]) -> list[Claim]:
    """What the heuristics say of one measure, for both forms of EigenRemove; above zero a high δ is better."""
    field, better = {"accuracy": ("test", 1), "loss": ("spike", -1)}[measure]

    def of(**which: str) -> dict[str, Values]:
        return {f"{weights} weights": better * advantage(rows, field, weights=weights, **which) for weights in WEIGHTS}

    def between(by: str, one: str, other: str) -> dict[str, Values]:
        ours, theirs = of(**{by: one}), of(**{by: other})
        return {name: ours[name] - theirs[name] for name in ours}

    statements: Sequence[tuple[str, str, dict[str, Values], Literal[-1, 1]]] = [
        ("high δ is better for infrequent, contained changes", "4.2.1",
         of(frequency="infrequent", size="contained"), 1),
        ("low δ is better for frequent, drastic changes", "4.2.1", of(frequency="frequent", size="drastic"), -1),
        ("high δ is better for frequent, contained changes", "4.2.3", of(frequency="frequent", size="contained"), 1),
        ("low δ is better for infrequent, drastic changes", "4.2.3", of(frequency="infrequent", size="drastic"), -1),
        ("more speaks for a high δ where changes are infrequent", "4.2.1; 4.2.3 says the opposite",
         between("frequency", "infrequent", "frequent"), 1),
        ("more speaks for a high δ where changes are contained", "both", between("size", "contained", "drastic"), 1),
        ("more speaks for a high δ late in training", "4.2.1", between("moment", "late", "early"), 1),
    ]  # fmt: skip
    unit: Literal["points", "factor"] = "points" if measure == "accuracy" else "factor"
    return [
        Claim(f"{measure}: {text}", source, values, wanted, unit=unit) for text, source, values, wanted in statements
    ]


def to_table(rows: Rows, field: str, digits: int, scale: float = 1) -> str:
    """Mean ± half of the 95 % interval: a row for each combination, a column for each δ."""
    lines = []
    for frequency, size, moment, weights in itertools.product(FREQUENCIES, SIZES, MOMENTS, WEIGHTS):
        which = {"frequency": frequency, "size": size, "moment": moment, "weights": weights}
        cells = [spread(rows.grid(field, delta=delta, **which)[:, 0], digits, scale) for delta in DELTAS]
        left = rows.distinct("parameters", **which)
        lines.append([*which.values(), *cells, " – ".join(f"{each:,}" for each in sorted(left))])
    columns = ["frequency", "size", "moment", "weights", *(f"δ {name}" for name in DELTAS.values()), "parameters"]
    return table(columns, lines, words=4)
