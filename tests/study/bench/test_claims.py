"""One rule for what holds: it follows the differences, their margin, and their whole family."""

from __future__ import annotations

import numpy as np
import pytest

from network_surgery.study.bench.claims import (
    CONTRARY,
    DEPENDS,
    HOLDS,
    UNDECIDED,
    UNTRIED,
    Claim,
    judge,
    to_summary,
    to_table,
)
from network_surgery.study.errors import StudyError


def spread_around(mean, deviation=0.1, n=8, seed=0):
    values = np.random.default_rng(seed).normal(size=n)
    return mean + deviation * (values - values.mean()) / values.std(ddof=1)


def word(*claims):
    return judge(claims)[0].word


@pytest.mark.parametrize(("wanted", "right", "wrong"), [(1, 1.0, -1.0), (-1, -1.0, 1.0)])
def test_a_claim_holds_where_its_differences_go_its_way(wanted, right, wrong):
    assert word(Claim("", "", spread_around(right), wanted)) == HOLDS
    assert word(Claim("", "", spread_around(wrong), wanted)) == CONTRARY
    assert word(Claim("", "", spread_around(0.0), wanted)) == UNDECIDED


def test_every_verdict_flips_with_the_sign_of_all_differences():
    flipped = {HOLDS: CONTRARY, CONTRARY: HOLDS, UNDECIDED: UNDECIDED}
    for mean in (1.0, 0.01, -1.0):
        claim, other = (Claim("", "", sign * spread_around(mean)) for sign in (1, -1))
        assert word(other) == flipped[word(claim)]


def test_conditions_are_counted():
    good, bad, none = spread_around(1.0), spread_around(-1.0, seed=1), spread_around(0.0, seed=2)
    assert word(Claim("", "", {"a": good, "b": good})) == HOLDS
    assert word(Claim("", "", {"a": good, "b": none, "c": none})) == "holds in 1 of 3"
    assert word(Claim("", "", {"a": good, "b": bad})) == f"{DEPENDS}: holds in 1, the opposite in 1 of 2"
    assert word(Claim("", "", {"a": none, "b": bad})) == f"{CONTRARY}: the opposite in 1 of 2"
    assert word(Claim("", "", {})) == word(Claim("", "", np.zeros(0))) == UNTRIED


def test_a_margin_is_what_a_difference_may_miss():
    little = spread_around(-0.3)
    assert word(Claim("", "", little)) == CONTRARY
    assert word(Claim("", "", little, margin=1.0)) == HOLDS  # not worse by one
    assert word(Claim("", "", -little, margin=-1.0)) == CONTRARY  # not better by one
    assert word(Claim("", "", -little, -1, margin=1.0)) == HOLDS


def test_no_difference_is_shown_by_a_margin_on_both_sides():
    assert word(Claim("", "", spread_around(0.1), 0, margin=1.0)) == HOLDS
    assert word(Claim("", "", spread_around(-0.1), 0, margin=1.0)) == HOLDS
    assert word(Claim("", "", spread_around(3.0), 0, margin=1.0)) == CONTRARY
    assert word(Claim("", "", spread_around(0.95), 0, margin=1.0)) == UNDECIDED
    with pytest.raises(ValueError, match="needs a margin"):
        Claim("the same", "", spread_around(0.0), 0)


def test_a_larger_family_shows_less():
    borderline = Claim("", "", spread_around(0.1, 0.1))  # alone p = 0.025
    assert word(borderline) == HOLDS
    assert word(borderline, *(Claim("", "", spread_around(0.0)) for _ in range(5))) == UNDECIDED


def test_every_value_decides_what_is_exact():
    assert word(Claim("", "", np.zeros(3), 0, exact=True)) == HOLDS
    assert word(Claim("", "", np.array([0.0, 1e-12]), 0, margin=1e-9, exact=True)) == HOLDS
    assert word(Claim("", "", np.array([1.0, 1.0, -1.0]), exact=True)) == CONTRARY
    assert word(Claim("", "", np.full(3, 0.2))) == UNDECIDED  # equal by chance: no test, so nothing is shown


def test_what_diverged_is_refused():
    with pytest.raises(StudyError, match="no finite numbers"):
        judge([Claim("it ends well", "", np.array([1.0, np.nan]))])


def test_tables_and_summaries_say_the_same():
    claims = [Claim("more", "2.1", {"a": spread_around(1.0), "b": spread_around(0.0)}),
              Claim("less", "", spread_around(1.0), -1, unit="points"),
              Claim("twice", "", np.log(2) + spread_around(0.0, 0.01), unit="factor")]  # fmt: skip
    lines = to_table(claims).splitlines()
    assert lines[0].count("|") == lines[2].count("|") == 5
    assert lines[2].startswith("| more (2.1) | a | +1 [") and lines[2].endswith("]* | **holds in 1 of 2** |")
    assert "+100 [" in lines[4] and "points | **does not hold** |" in lines[4]
    assert "× 2 [" in lines[5] and "over the 4 tests" in lines[-1] and "n = 8" in lines[-1]
    assert to_summary(claims).splitlines() == [
        "- **holds**: twice.", "- **holds in 1 of 2**: more.", "- **does not hold**: less."
    ]  # fmt: skip


def test_rounding_errors_are_written_as_zero():
    assert to_table([Claim("", "", np.array([-1e-16, 0.0]), 0, 1e-9, True, "points")]).count("| +0 points |") == 1


@pytest.mark.parametrize(("seeds", "word"), [(5, "undecided"), (6, "holds")])
def test_what_is_the_same_for_every_seed_is_decided_by_the_sign_test(seeds: int, word: str) -> None:
    above, within = Claim("above", "", np.full(seeds, 0.1)), Claim("none", "", np.zeros(seeds), 0, margin=0.01)
    for claim in (above, within):
        (verdict,) = judge([claim])
        assert verdict.word == word and verdict.results[""].p == 2 * 0.5**seeds
    (verdict,) = judge([Claim("above", "", np.zeros(seeds))])
    assert verdict.word == "undecided" and verdict.results[""].p is None
