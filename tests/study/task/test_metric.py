"""Metrics: a direction, and values and differences in words."""

from __future__ import annotations

import pytest

from network_surgery.study.errors import StudyError
from network_surgery.study.task.metric import ACCURACY, Metric


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_what_is_better_follows_the_direction(better: str) -> None:
    metric = Metric("error", better)  # type: ignore[arg-type]
    values = [0.3, -1.0, 2.5]
    assert metric.best(values) == (max if better == "higher" else min)(values)
    assert metric.gain(2.0, 1.0) == -metric.gain(1.0, 2.0) == metric.sign
    assert Metric.from_data(metric.to_data()) == metric


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0045, "+0.45 points"), (-0.0004, "−0.04 points"), (-1e-9, "+0.00 points"), (0, "+0.00 points")],
)
def test_differences_of_fractions_are_points(value: float, text: str) -> None:
    assert ACCURACY.difference(value) == text
    assert ACCURACY.amount(-abs(value)) == text.lstrip("+−")


@pytest.mark.parametrize(("margin", "text"), [(1.0, "+12.3"), (0.05, "+12.346"), (0.2, "+12.35"), (100.0, "+12.3")])
def test_other_differences_show_a_tenth_of_the_margin(margin: float, text: str) -> None:
    assert Metric("error", "lower", margin).difference(12.3456) == text


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("", "higher"), "a metric needs a name"),
        (("error", "less"), "the metric 'error' must say whether 'higher' or 'lower' is better"),
        (("error", "lower", 0.0), "the margin of the metric 'error' is 0.0, but it must be above 0"),
    ],
)
def test_a_metric_that_says_too_little(parts: tuple[object, ...], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        Metric(*parts)  # type: ignore[arg-type]
