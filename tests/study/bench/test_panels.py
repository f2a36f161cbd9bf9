"""Pictures of panels keep within their width."""

from __future__ import annotations

import numpy as np
import pytest

from network_surgery.study.bench.panels import Panels, looks


@pytest.mark.parametrize("label", ["l1", "min weight + least squares and more"])
def test_a_legend_fits_its_figure(label):
    panels = Panels([""], [""], (7.5, 4.0))
    for name, look in looks([f"{label} {number}" for number in range(8)]).items():
        panels.curve("", "", [0, 1], np.zeros((2, 2)), name, look)
    figure = panels.drawing("Any").figure
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
