"""Panels draw what they are given, and keep it in words."""

from __future__ import annotations

import numpy as np
import pytest

from network_surgery.study.bench.panels import Panels
from network_surgery.study.evidence.significance import half_interval


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
