"""The two heuristics about δ: what is compared is what they say, and the verdicts follow the rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from network_surgery.study.bench import page as bench
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.experiment import Options
from network_surgery.study.bench.rows import Measured, Rows
from network_surgery.study.experiments.heuristics import EXPERIMENT, measure, page
from network_surgery.study.experiments.heuristics.measure import DELTAS, FREQUENCIES, MOMENTS, SIZES, WEIGHTS
from network_surgery.study.experiments.heuristics.page import HIGH
from tests.study.experiments.made_up import measured_of

Gain = Callable[[str, str, str], float]


def made_up(gain: Gain, seeds: int = 5) -> Measured:
    """Rows in which a high δ is better by ``gain(frequency, size, moment)`` hundredths, with some noise."""
    noise = np.random.default_rng(1)
    rows = Rows()
    for seed, *which in itertools.product(range(seeds), FREQUENCIES, SIZES, MOMENTS, WEIGHTS, DELTAS):
        frequency, size, moment, weights, delta = which
        better = (gain(frequency, size, moment) * (delta in HIGH) + noise.normal(0, 0.05)) / 100
        rows.append({
            "seed": seed, "frequency": frequency, "size": size, "moment": moment, "weights": weights, "delta": delta,
            "test": 0.9 + better, "spike": 0.5 - better, "parameters": 1000,
        })  # fmt: skip
    facts = {"train": 10, "validation": 10, "test": 10}
    return measured_of("heuristics", Options(), facts, rows)


def infrequent(frequency: str, size: str, moment: str) -> float:
    return 1.0 if frequency == "infrequent" else -1.0


def verdicts(measured: Measured) -> dict[str, str]:
    families = (part for part in page.parts(measured).values() if isinstance(part, list))
    return {
        f"{verdict.claim.source} {verdict.claim.text}": verdict.word.partition(":")[0]
        for family in families for verdict in judge(family)
    }  # fmt: skip


def test_either_heuristic_holds_where_rows_say_so() -> None:
    one, other = (verdicts(made_up(lambda *which, sign=sign: sign * infrequent(*which))) for sign in (1, -1))
    for claim in one:
        if "late" in claim or claim.startswith("both"):
            assert one[claim] == other[claim] == "undecided"
        elif claim.startswith("4.2.1"):
            assert (one[claim], other[claim]) == ("holds", "does not hold"), claim
        else:
            assert (one[claim], other[claim]) == ("does not hold", "holds"), claim


def test_moment_and_size_are_kept_apart() -> None:
    late = verdicts(made_up(lambda frequency, size, moment: float(moment == "late")))
    small = verdicts(made_up(lambda frequency, size, moment: 1.0 if size == "contained" else -1.0))
    for measured in ("accuracy", "loss"):
        assert late[f"4.2.1 {measured}: more speaks for a high δ late in training"] == "holds"
        assert small[f"both {measured}: more speaks for a high δ where changes are contained"] == "holds"
    assert set(verdicts(made_up(lambda *_: 0.0)).values()) == {"undecided"}


def test_the_advantage_is_paired_by_seed_and_of_high_over_low() -> None:
    rows = made_up(lambda *_: 2.0, seeds=3).rows
    gained = page.advantage(rows, "test", size="drastic")
    chosen = [row for row in rows if row["size"] == "drastic" and row["seed"] == 1]
    means = [np.mean([row["test"] for row in chosen if (row["delta"] in HIGH) == high]) for high in (True, False)]
    assert gained.shape == (3,) and gained[1] == pytest.approx(means[0] - means[1])


def test_the_page_follows_its_rows(tmp_path) -> None:
    texts = []
    for sign in (1, -1):
        measured = made_up(lambda *which, sign=sign: sign * infrequent(*which))
        file = bench.write(EXPERIMENT.folder / "page.md", page.parts(measured), measured, tmp_path)
        texts.append(file.read_text(encoding="utf-8"))
        assert "nan" not in texts[-1] and "$" not in texts[-1] and measured.rows.digest in texts[-1]
        assert texts[-1].count("| infrequent | contained | early | original |") == 2 and "5 seeds" in texts[-1]
    holds = [next(line for line in text.splitlines() if line.startswith("- **holds**: accuracy")) for text in texts]
    assert "accuracy: high δ is better for frequent, contained" in holds[1] and "infrequent, contained" in holds[0]
    assert "low δ is better for frequent, drastic" in holds[0] and "infrequent, drastic" in holds[1]


def test_rows_are_measured_of_every_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOMENTS", {"early": 1})
    monkeypatch.setattr(measure, "FREQUENCIES", {"infrequent": 1, "frequent": 2})
    monkeypatch.setattr(measure, "SIZES", {"drastic": 0.5})
    monkeypatch.setattr(measure, "DELTAS", {0.25: "1/4", 1.0: "1"})
    monkeypatch.setattr(measure, "SETTINGS", replace(measure.SETTINGS, epochs=3))
    _, tasks = measure.measure(Options(seeds=2))
    assert len(dict(tasks)) == 4
    by = {
        (row["frequency"], row["weights"], row["delta"]): row
        for name, task in tasks if name.startswith("0-") for row in task()
    }  # fmt: skip
    assert len(by) == 8 and {row["seed"] for row in by.values()} == {0}
    assert by["infrequent", "original", 1.0]["test"] == by["infrequent", "reduced", 1.0]["test"]
    assert by["frequent", "original", 1.0]["parameters"] < by["infrequent", "original", 1.0]["parameters"]
