"""The two heuristics about δ: what is compared is what they say, and the verdicts follow the rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from network_surgery.study.experiments import heuristics
from network_surgery.study.experiments.heuristics import (
    DELTAS,
    FREQUENCIES,
    HIGH,
    MOMENTS,
    SIZES,
    WEIGHTS,
    advantage,
    claims,
    text,
)
from network_surgery.study.experiments.rows import Row, told

Gain = Callable[[str, str, str], float]


def made(gain: Gain, seeds: int = 5) -> list[Row]:
    """Rows in which a high δ is better by ``gain(frequency, size, moment)``, with some noise."""
    rows = []
    for seed, *which in itertools.product(range(seeds), FREQUENCIES, SIZES, MOMENTS, WEIGHTS, DELTAS):
        frequency, size, moment, weights, delta = which
        noise = np.random.default_rng([seed, *map(hash_of, map(str, which))]).normal(0, 0.05)
        better = gain(frequency, size, moment) * (delta in HIGH) + noise
        rows.append({
            "seed": seed, "frequency": frequency, "size": size, "moment": moment, "weights": weights, "delta": delta,
            "accuracy": 90 + better, "spike": 0.5 - better, "parameters": 1000,
        })  # fmt: skip
    return rows


def hash_of(word: str) -> int:
    return sum(map(ord, word))


def verdicts(rows: list[Row], measure: str = "accuracy") -> dict[str, str]:
    lines = told(claims(rows, measure, "original")).splitlines()[2:]
    cells = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    return {claim: verdict for claim, _, verdict in cells}


@pytest.mark.parametrize("measure", ["accuracy", "spike"])
def test_either_heuristic_holds_where_rows_say_so(measure: str) -> None:
    one = verdicts(made(lambda frequency, size, moment: 1.0 if frequency == "infrequent" else -1.0), measure)
    other = verdicts(made(lambda frequency, size, moment: 1.0 if frequency == "frequent" else -1.0), measure)
    for claim in one:
        if claim.startswith("4.2.1") and "late" not in claim:
            assert (one[claim], other[claim]) == ("holds", "does not hold")
        elif claim.startswith("4.2.3"):
            assert (one[claim], other[claim]) == ("does not hold", "holds")
        else:
            assert one[claim] == other[claim] == "undecided"


def test_moment_and_size_are_told_apart() -> None:
    late = verdicts(made(lambda frequency, size, moment: float(moment == "late")))
    assert late["4.2.1: it speaks more for it late in training"] == "holds"
    small = verdicts(made(lambda frequency, size, moment: 1.0 if size == "contained" else -1.0))
    assert small["both: it speaks more for it where changes are contained"] == "holds"
    assert set(verdicts(made(lambda *_: 0.0)).values()) == {"undecided"}


def test_the_advantage_is_paired_by_seed_and_of_high_over_low() -> None:
    rows = made(lambda *_: 2.0, seeds=3)
    found = advantage(rows, "accuracy", size="drastic")
    chosen = [row for row in rows if row["size"] == "drastic" and row["seed"] == 1]
    means = [np.mean([row["accuracy"] for row in chosen if (row["delta"] in HIGH) == high]) for high in (True, False)]
    assert found.shape == (3,) and found[1] == pytest.approx(means[0] - means[1])


def test_the_report_counts_its_own_verdicts() -> None:
    page = text(made(lambda frequency, size, moment: 1.0 if frequency == "infrequent" else -1.0), 1.0)
    assert "4.2.3: it speaks more for it there: holds in 0, does not hold in 4, undecided in 0." in page
    assert page.count("| infrequent | contained | early | original |") == 2 and "5 seeds" in page


def test_rows_are_measured_of_every_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heuristics, "MOMENTS", {"early": 1})
    monkeypatch.setattr(heuristics, "FREQUENCIES", {"infrequent": 1, "frequent": 2})
    monkeypatch.setattr(heuristics, "SIZES", {"drastic": 0.5})
    monkeypatch.setattr(heuristics, "DELTAS", {0.25: "1/4", 1.0: "1"})
    rows = heuristics.measure(0, replace(heuristics.SETTINGS, epochs=3))
    assert len(rows) == 8 and len({tuple(row[name] for name in ("frequency", "weights", "delta")) for row in rows}) == 8
    by = {(row["frequency"], row["weights"], row["delta"]): row for row in rows}
    assert by["infrequent", "original", 1.0]["accuracy"] == by["infrequent", "reduced", 1.0]["accuracy"]
    assert by["frequent", "original", 1.0]["parameters"] < by["infrequent", "original", 1.0]["parameters"]
