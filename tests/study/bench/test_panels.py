"""Panels draw what they are given, keep it in words, and have one legend that stays inside the figure."""

from __future__ import annotations

import numpy as np
import pytest

from network_surgery.study.bench.panels import Panels
from network_surgery.study.evidence.significance import half_interval


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
