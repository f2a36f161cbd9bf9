"""The mean over seeds and samples: against its definition, and how often its interval is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from network_surgery.study.evidence.crossed import of_samples, of_seeds
from tests.study.evidence.simulated import coverage


def squares(differences: np.ndarray) -> tuple[float, float, float]:
    """The mean squares of seeds, samples and the rest, one term after another."""
    n, m = differences.shape
    mean = differences.mean()
    seeds = sum(m * (differences[i].mean() - mean) ** 2 for i in range(n)) / (n - 1)
    samples = sum(n * (differences[:, j].mean() - mean) ** 2 for j in range(m)) / (m - 1)
    rest = sum(
        (differences[i, j] - differences[i].mean() - differences[:, j].mean() + mean) ** 2
        for i in range(n)
        for j in range(m)
    ) / ((n - 1) * (m - 1))
    return float(seeds), float(samples), float(rest)


def test_it_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.1, 1, (4, 30)) + rng.normal(0, 1, (1, 30)) + rng.normal(0, 0.2, (4, 1))
    seeds, samples, rest = squares(differences)
    found = of_samples(differences)
    error, freedom = found.spreads[1]
    assert error == pytest.approx(math.sqrt((seeds + samples - rest) / (4 * 30)))
    assert freedom == pytest.approx(3 * ((seeds + samples - rest) / seeds) ** 2)  # Hillis 2007
    assert found.value == pytest.approx(differences.mean()) and found.samples == 30
    assert found.floor == pytest.approx(math.sqrt((samples - rest) / (4 * 30)))


def test_it_is_never_narrower_than_students_over_the_seeds() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        differences = rng.integers(-1, 2, (3, 40)) + rng.normal(0, 0.1, (3, 1))
        crossed, alone = of_samples(differences), of_seeds(differences.mean(axis=1).tolist())
        reference = stats.ttest_1samp(differences.mean(axis=1), 0)
        assert alone.interval() == pytest.approx(list(reference.confidence_interval(0.95)))
        assert alone.p() == pytest.approx(reference.pvalue)
        one, other = crossed.interval(), alone.interval()
        assert one is not None and other is not None and one[0] <= other[0] + 1e-12 and one[1] >= other[1] - 1e-12
        assert (crossed.p() or 0) >= (alone.p() or 0) - 1e-12


@pytest.mark.parametrize(("seeds", "shown"), [(5, False), (6, True)])
def test_differences_that_are_equal_in_every_seed_count(seeds: int, shown: bool) -> None:
    """By the sign test: n equal signs."""
    found = of_seeds([0.01] * seeds)
    assert found.p() == 2 / 2**seeds and (found.p() < 0.05) == shown  # type: ignore[operator]
    assert found.interval() is None and found.p_within(0.005) == 1.0 and found.p_within(0.02) == 2.0**-seeds
    assert of_seeds([0.0] * seeds).p() == 1.0 and of_seeds([0.01]).p() is of_seeds([0.01]).p_within(1.0) is None


def test_equal_networks_are_as_good_and_equal_differences_still_depend_on_the_samples() -> None:
    same = of_samples(np.zeros((5, 100)))
    assert same.p() == 1.0 and same.p_within(0.005) == 2.0**-5 and same.interval() is None
    shifted = np.zeros((8, 100))
    for seed in range(8):
        shifted[seed, [seed, seed + 20]] = 1  # two more hits in every seed, each of other samples
    found = of_samples(shifted)
    assert found.equal and found.interval() is not None and found.p() >= 2.0**-7  # type: ignore[operator]


def test_two_one_sided_tests_are_the_90_percent_interval() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        found = of_seeds(rng.normal(0.1, 0.3, 6).tolist())
        low, high = found.interval(0.9)  # type: ignore[misc]
        assert (found.p_within(0.5) < 0.05) == (low > -0.5 and high < 0.5)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("n", "m", "kind"), [(3, 100, "95 %, both"), (5, 359, "97 %, samples"), (10, 359, "97 %, samples")]
)
def test_its_interval_holds_the_truth_for_new_seeds_and_samples(n: int, m: int, kind: str) -> None:
    """Student's over ten seeds alone does not: it is about these samples."""
    held, alone, alike = coverage(400, kind, n, m)
    assert 0.92 <= held <= 0.99 and alike <= 0.08
    assert n < 10 or alone < 0.88
