"""Colour and marker of each operation of a study, the same in all its figures, and where operations happened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.markers import MarkerStyle

from network_surgery.study.evidence.drawing import COLOURS, GREY, MARKERS, Look
from network_surgery.study.evidence.figures.reading import (
    NOTHING,
    Moment,
    Results,
    comparison,
    find_finished,
    name_of,
    names_of,
)

#: Above this number of points a figure's points are stored as pixels, to keep the report small.
MANY = 600
#: Of more moments only those are named that differ from the one before.
SEVERAL = 5
#: How a marker is filled the first, second and third time that its colour is used.
FILLS: tuple[Literal["full", "none", "left", "bottom"], ...] = ("full", "none", "left", "bottom")
#: The line of a moment at which something was operated on.
MOMENT: Look = {"color": GREY, "linewidth": 1, "linestyle": (0, (4, 3)), "zorder": 1}


def marks_of(results: Results) -> dict[str, Look]:
    """Colour and marker of each operation, and of each combination of operations, in this study.

    There are fewer colours than operations: each has another shape the second time, and is hollow, then half.
    """
    cells = [*results["trials"], *comparison(results, "cells")]
    names = {name_of(cell) for cell in cells} | {name for cell in find_finished(cells) for name in names_of(cell)}
    marks: dict[str, Look] = {NOTHING: {"color": GREY, "marker": "x"}}
    for index, name in enumerate(sorted(names - {NOTHING})):
        turn, colour = divmod(index, len(COLOURS))
        marker = MarkerStyle(MARKERS[index % len(MARKERS)], fillstyle=FILLS[turn % len(FILLS)])
        marks[name] = {"color": COLOURS[colour], "marker": marker}
    return marks


def mark_moments(axes: Axes, moments: Sequence[Moment], top: bool = False) -> None:
    """A vertical line at each moment; its operations are named where there is room, below or at the ``top``."""
    named, last = -math.inf, ""
    together: dict[float, list[str]] = {}
    for moment in moments:
        together.setdefault(moment.epoch, []).append(f"{moment.op} ×{moment.kept:.2f}")
    for epoch, operations in together.items():
        axes.axvline(epoch, **MOMENT)
        words = ", ".join(operations)
        if epoch - named > 0.04 * axes.get_xlim()[1] and (len(together) <= SEVERAL or words != last):
            named, last = epoch, words
            look: Look = {"rotation": 90, "ha": "right", "fontsize": 8.5, "color": "#444444"}
            look |= {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
            look |= {"va": "top" if top else "bottom"}
            axes.annotate(words, (epoch, int(top)), xytext=(-2, -4 if top else 4), **look)
