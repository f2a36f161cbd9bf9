"""Colour and marker of each operation of a study, the same in all its figures, and where operations happened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from study.evidence.drawing import COLOURS, GREY, MARKERS, Look
from study.evidence.figures.reading import NOTHING, Results, comparison, name_of, operations_of

#: Above so many points a figure's points are stored as pixels, to keep the report small.
MANY = 600


def marks_of(results: Results) -> dict[str, Look]:
    """Colour and marker of each operation, and of each combination of operations, in this study."""
    cells = [*results["trials"], *comparison(results, "cells")]
    names = {name_of(cell) for cell in cells} | {record["op"] for record in operations_of(results)}
    marks: dict[str, Look] = {NOTHING: {"color": GREY, "marker": "x"}}
    for index, name in enumerate(sorted(names - {NOTHING})):
        marks[name] = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
    return marks


def mark_moments(axes: Axes, moments: Sequence[Mapping[str, Any]]) -> None:
    """A vertical line at each moment, named where there is room."""
    named = -math.inf
    for moment in moments:
        axes.axvline(moment["epoch"], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        if moment["epoch"] - named > 0.04 * axes.get_xlim()[1]:
            named = moment["epoch"]
            look: Look = {"rotation": 90, "ha": "right", "va": "bottom", "fontsize": 8.5, "color": "#444444"}
            look |= {"xycoords": axes.get_xaxis_transform(), "xytext": (-2, 4), "textcoords": "offset points"}
            axes.annotate(f"{moment['op']} ×{moment['kept']:.2f}", (moment["epoch"], 0), **look)
