"""Panels draw what they are given, keep it in words, and have one legend that stays inside the figure."""

from __future__ import annotations

import numpy as np
import pytest

from network_surgery.study.bench.panels import Panels
from network_surgery.study.evidence.significance import half_interval

pytestmark = pytest.mark.pictures


@pytest.mark.parametrize("letters", [3, 22])
def test_the_legend_has_room(letters):
    panels = Panels([""], ["left", "right"], (9.6, 4.0))
    labels = [f"{number:0{letters}d}" for number in range(12)]
    for column in panels.columns:
        for label in labels:
            panels.curve("", column, [1, 2], np.ones((2, 2)), label, {})
    figure = panels.drawing("").figure
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == labels
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("band", [False, True])
def test_a_band_is_the_interval_of_the_mean(band):
    values = np.array([[0.0, 1.0], [0.5, 3.0], [1.0, 2.0]])
    panels = Panels(["loss"], ["a"], (3, 2))
    panels.curve("loss", "a", [0, 1], values, "one", {"color": "black"}, band=band)
    axes = panels["loss", "a"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), values.mean(axis=0))
    assert len(axes.collections) == band and panels.words == ["loss, a, one 0.5 to 2"]
    if band:
        (path,) = axes.collections[0].get_paths()
        low, high = values.mean(axis=0) - half_interval(values), values.mean(axis=0) + half_interval(values)
        np.testing.assert_allclose([path.vertices[:, 1].min(), path.vertices[:, 1].max()], [low.min(), high.max()])


def test_seeds_that_are_nan_are_left_out_of_an_interval():
    each = [np.array([1.0, 2.0, 4.0]), np.array([1.0, np.nan, 4.0]), np.array([np.nan, 3.0]), np.full(2, np.nan)]
    panels = Panels(["MRP"], ["a"], (3, 2))
    panels.intervals("MRP", "a", range(4), each, "one", {"color": "black"})
    assert panels.words == ["MRP, a, one 2.33, 2.5 (n = 2), 3 (n = 1), none (n = 0)"]
    ((line, _, (bars,)),) = panels["MRP", "a"].containers
    np.testing.assert_allclose(line.get_ydata(orig=False), [7 / 3, 2.5, 3.0, np.nan])
    halves = [
        np.ptp(segment[:, 1]) / 2 for segment in bars.get_segments() if np.isfinite(segment).all() and len(segment)
    ]
    assert halves == pytest.approx([half_interval(each[0]), half_interval(np.array([1.0, 4.0]))])
