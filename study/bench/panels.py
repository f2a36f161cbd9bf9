"""Small multiples with one legend, whose words and numbers are kept for those who cannot see them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from network_surgery.study.bench.rows import Row, Rows, Values
from network_surgery.study.evidence.drawing import COLOURS, GREY, MARKERS, STYLE, Drawing, Look, log_scale, new_axes
from network_surgery.study.evidence.significance import half_interval


class Panels:
    """A figure of panels, named by row and column: a row's name stands at its left, a column's on top.

    ``sharex``, ``sharey`` and further options: those of ``matplotlib.figure.Figure.subplots``.
    """

    def __init__(
        self, rows: Sequence[str], columns: Sequence[str], size: tuple[float, float], label: str = "", **options: Any
    ) -> None:
        self.rows, self.columns, self.words = list(rows), list(columns), list[str]()
        with style.context(["default", STYLE]):
            self.figure, single = new_axes(*size)
            single.remove()
            self.axes = self.figure.subplots(len(rows), len(columns), squeeze=False, **options)
        for axes, name in zip(self.axes[0], columns, strict=True):
            axes.set_title(name, fontsize=9)
        for axes, name in zip(self.axes[:, 0], rows, strict=True):
            axes.set_ylabel("\n".join(filter(None, (name, label))))

    def __getitem__(self, place: tuple[str, str]) -> Axes:
        row, column = place
        return self.axes[self.rows.index(row), self.columns.index(column)]  # type: ignore[no-any-return]

    def curve(
        self, row: str, column: str, at: Sequence[float], values: Values, label: str, look: Look, band: bool = False
    ) -> None:
        """The mean over seeds of ``values [seeds, moments]``; with ``band`` its 95 % intervals, shaded."""
        middle = values.mean(axis=0)
        self[row, column].plot(at, middle, label=label, **look)
        if band:
            half = half_interval(values)
            shade = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
            self[row, column].fill_between(at, middle - half, middle + half, **shade)
        self._say(row, column, f"{label} {middle[0]:.3g} to {middle[-1]:.3g}")

    def intervals(self, row: str, column: str, places: Any, values: Sequence[Values], label: str, look: Look) -> None:
        """A mean with its 95 % interval at each place, of values ``[seeds]``; seeds that are NaN are left out there.

        One seed has no interval, and none has no point.
        """
        known = [each[np.isfinite(each)] for each in values]
        middles = [each.mean() if len(each) else math.nan for each in known]
        halves = [float(half_interval(each)) if len(each) > 1 else math.nan for each in known]
        self[row, column].errorbar(places, middles, halves, label=label, capsize=2, **look)
        words = [
            (f"{middle:.3g}" if len(some) else "none") + f" (n = {len(some)})" * (len(some) < len(each))
            for middle, some, each in zip(middles, known, values, strict=True)
        ]
        self._say(row, column, f"{label} {', '.join(words)}")

    def dots(self, row: str, column: str, values: Mapping[str, Values], looks: Mapping[str, Look]) -> None:
        """Every seed of each group ``[seeds]`` as a point, and a line for the mean."""
        axes = self[row, column]
        for at, (name, each) in enumerate(values.items()):
            colour = looks[name]["color"]
            axes.plot(at + np.linspace(-0.12, 0.12, len(each)), each, "o", markersize=4, color=colour)
            axes.plot([at - 0.25, at + 0.25], [each.mean()] * 2, color=colour)
            self._say(row, column, f"{name} {each.mean():.4g}")
        axes.set_xticks(range(len(values)), list(values), rotation=20, ha="right")
        axes.grid(axis="x", visible=False)

    def drawing(self, title: str, xlabel: str = "", at: Sequence[int] = ()) -> Drawing:
        """The finished figure, with one legend that has each label once; its caption is in the page's template.

        The lowest x-axes have this label, and few ticks up to the last of ``at``.
        """
        handles: dict[str, Any] = {}
        for axes in self.axes.flat:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        with style.context(["default", STYLE]):
            for axes in self.axes[-1] if xlabel else ():
                axes.set_xlabel(xlabel)
                if at:
                    axes.xaxis.set_major_locator(FixedLocator([0, at[-1] // 2, at[-1]]))
            if handles:
                columns = self.figure.get_figwidth() / max(0.6 + 0.085 * max(map(len, handles)), 1)  # about, in inches
                columns = max(1, min(len(handles), int(columns)))
                self.figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)
        return Drawing(self.figure, title, "", "; ".join(self.words) + ".")

    def _say(self, row: str, column: str, words: str) -> None:
        self.words.append(", ".join(filter(None, (row, column, words))))


def over_training(
    rows: Rows, field: str, by: str, lines: Mapping[str, Row], columns: Mapping[str, Row], looks: Mapping[str, Look],
    size: tuple[float, float], label: str, **options: Any,
) -> Panels:  # fmt: skip
    """A field over the iterations at which networks were looked at, a curve for each value of the field ``by``.

    Each panel is of the rows that have the values of its line and its column.
    """
    panels = Panels(list(lines), list(columns), size, label, sharex=True, **options)
    for line, column in itertools.product(lines, columns):
        which = lines[line] | columns[column]
        for name in rows.distinct(by, **which):
            values = rows.grid(field, **which, **{by: name})
            panels.curve(line, column, rows.moments(), values, name, looks[name])
    return panels


def looks(names: Iterable[str], dotted: Sequence[str] = (), grey: Sequence[str] = ()) -> dict[str, Look]:
    """A colour and a marker for each name; those of ``grey`` have none, the lines of ``dotted`` are dotted.

    A name that ends in ``_abs`` or ``_in`` has the colour of the one without.
    """
    stems: list[str] = []
    found: dict[str, Look] = {}
    for name in names:
        stem = name.removesuffix("_abs").removesuffix("_in")
        stems += [stem] if stem not in stems and stem not in grey else []
        at = stems.index(stem) if stem in stems else -1
        found[name] = {
            "color": COLOURS[at % len(COLOURS)] if at >= 0 else GREY, "marker": MARKERS[at % len(MARKERS)],
            "linestyle": ":" if name in dotted else "-", "markersize": 3.5, "linewidth": 1.3,
        }  # fmt: skip
    return found


def symmetric_scale(axes: Axes, linear: float) -> None:
    """A logarithmic y-axis on both sides of zero; linear below this size. Ticks at 1 and 3 of each decade."""
    axes.set_yscale("symlog", linthresh=linear, linscale=0.5)
    steps = [step * 10.0**power for power in range(-4, 2) for step in (1, 3) if step * 10.0**power >= linear]
    axes.yaxis.set_major_locator(FixedLocator([*(-step for step in steps), 0, *steps]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def lines_scale(axes: Axes) -> None:
    """A logarithmic y-axis around the lines that are drawn."""
    log_scale(axes.yaxis, np.concatenate([line.get_ydata() for line in axes.lines]), lambda value: f"{value:g}")
