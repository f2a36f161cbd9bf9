"""Panels have one legend, which has each label once and stays inside the figure."""

from __future__ import annotations

import numpy as np
import pytest

from network_surgery.study.bench.panels import Panels


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
