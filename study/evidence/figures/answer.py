"""The answer in one picture: the metric against size, of the original, the chosen schedule's surgery and its rivals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from network_surgery.study.evidence.drawing import (
    ARMS,
    GREY,
    Drawing,
    Look,
    add_title,
    count,
    format_interval,
    halo,
    log_scale,
    look_of,
    metric_label,
    metric_scale,
    new_axes,
    percent,
)
from network_surgery.study.evidence.figures.reading import Results, find_compared, metric_of, positive
from network_surgery.study.evidence.naming import arm_title, in_short, letters
from network_surgery.study.evidence.significance import half_interval

#: What a budget may be of → what an axis calls it, and how it is read from an outcome.
SIZES: dict[str, tuple[str, Callable[[Mapping[str, Any]], float | None]]] = {
    "parameters": ("parameters", lambda cell: cell.get("parameters")),
    "flops": ("FLOPs of a forward pass", lambda cell: cell.get("flops")),
    "latency": ("seconds of a forward pass", lambda cell: (cell.get("latency_seconds") or {}).get("1")),
}
#: Sizes that differ by less than this factor are drawn beside each other.
SAME = 1.02
#: Points (1/72 inch) between points of one size, between them and their labels, and from label to label.
APART, AWAY, LINE = 13, 9, 12.5
#: Points that those of one size take together at most, and that a letter of a label takes.
MOST, LETTER = 130, 5.4


@dataclass(frozen=True)
class Point:
    """An arm: its size, its metric in every seed, their mean, and half of its 95 % interval."""

    arm: str
    name: str
    size: float
    value: float
    half: float | None
    seeds: list[float]

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the interval."""
        return self.value - (self.half or 0.0), self.value + (self.half or 0.0)


def answer(results: Results) -> Drawing | None:
    """A point an arm with its interval, the labels at the points, the budget as a line."""
    found = results.get("answer") or {}
    cells, first = find_compared(results)
    trial, metric = found.get("trial", first), metric_of(results)
    budget = found.get("budget") or {}
    kind = next((name for name in SIZES if name in budget), "parameters")
    words, size = SIZES[kind]
    if trial is None or not all(positive(size(cell)) for cell in cells):
        return None
    points = _points([c for c in cells if c["trial"] in (None, trial)], size, letters(results).get(trial, ""))
    ours = next((point for point in points if point.arm == "surgery"), None)
    if ours is None:  # it failed in every seed
        return None
    originals = [point for point in points if point.arm == "original"]
    whole = originals[0].size if originals else None
    figure, axes = new_axes(height=max(4.4, 1 + LINE * (len(points) + 2) / 72))  # all labels may lie in one column
    span = [point.size / (whole or 1) for point in points]
    limit = _find_limit(budget, kind, whole)
    text = percent if whole else count
    log_scale(axes.xaxis, [each * pad for each in [*span, *([limit] if limit else [])] for pad in (0.8, 1.2)], text)
    scale = metric_scale(axes, metric, _bounds(points, metric.percent))
    places = _places(points, whole or 1, axes, limit)
    _make_room(axes, points, places)
    for point, across in zip(points, places, strict=True):
        _draw(axes, point, across)
    if originals:
        axes.axhline(originals[0].value, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    if limit:
        axes.axvline(limit, color=GREY, linewidth=1.2, linestyle="--", zorder=1)
        axes.annotate(
            f"budget: {text(limit)}", (limit, 1), xycoords=("data", "axes fraction"), xytext=(4, -2),
            textcoords="offset points", fontsize=8.5, color="#444444", va="top", **halo(),
        )  # fmt: skip
    of = ", of the original's" if whole else ""
    axes.set(xlabel=f"{words}{of} (log scale)", ylabel=metric_label("test", metric))
    listed = "; ".join(
        f"{point.name} {format_interval(metric, point.value, point.half)} at {text(point.size / (whole or 1))}"
        for point in points
    )
    beside = f", the original {metric.label(originals[0].value)}" if originals else ""
    drawing = add_title(
        figure, f"{metric.title} against size: {ours.name} {metric.label(ours.value)} at "
        f"{text(ours.size / (whole or 1))}{beside}",
        f"Points are means over the seeds, bars their 95% intervals (Student's t); up is "
        f"{'better' if metric.better == 'higher' else 'worse'}, left is smaller. Points of one size stand beside each "
        f"other. {ours.name.rpartition(' ')[2]} is {in_short(results).get(trial, 'the schedule of the answer')}."
        f" {scale}",
        f"Scatter of mean test {metric.name} ± half of its 95% interval against {words}{of}. {listed}.",
    )  # fmt: skip
    place_labels(axes, points, places, metric.label)
    return drawing


def _points(
    cells: Sequence[Mapping[str, Any]], size: Callable[[Mapping[str, Any]], float | None], letter: str
) -> list[Point]:
    """The original, surgery and its rivals, in the order of the closing table."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    order = [*ARMS]
    for cell in sorted(cells, key=lambda cell: order.index(cell["arm"]) if cell["arm"] in ARMS else len(order)):
        groups.setdefault(cell["arm"], []).append(cell)
    found = []
    for arm, members in groups.items():
        seeds = [cell["test_metric"] for cell in members]
        sizes = [value for cell in members if (value := size(cell)) is not None]
        half = float(half_interval(np.array(seeds))) if len(seeds) > 1 else None
        name = arm_title(arm, "" if arm == "original" else letter)
        found.append(Point(arm, name, statistics.fmean(sizes), statistics.fmean(seeds), half, seeds))
    return found


def _find_limit(budget: Mapping[str, float], kind: str, whole: float | None) -> float | None:
    """Where the budget lies on the axis: a fraction of the original up to 1, else as it is."""
    limit = budget.get(kind)
    if limit is None or not limit > 0:
        return None
    if whole is None:
        return limit if limit > 1 else None
    return limit if limit <= 1 else limit / whole


def _bounds(points: Sequence[Point], percent: bool) -> list[float]:
    """What the axis must show: every mean, and of its interval no more than what the seeds of all arms span."""
    seeds = [value for point in points for value in point.seeds]
    most = max(seeds) - min(seeds)
    ends = [point.value + sign * min(point.half or 0.0, most) for point in points for sign in (-1, 1)]
    return [min(max(end, 0.0), 1.0) if percent else end for end in ends]


def _places(points: Sequence[Point], whole: float, axes: Axes, limit: float | None) -> list[float]:
    """Where each point is drawn: those of one size beside each other, and on the side of the budget where they are."""
    point = _one_point(axes)
    places = [point.size / whole for point in points]
    for members in clusters([point.size for point in points]):
        middle = statistics.fmean(points[index].size for index in members) / whole
        step = point ** min(APART, MOST / len(members))
        ends = [middle * step ** (turn - (len(members) - 1) / 2) for turn in range(len(members))]
        if limit and middle <= limit * 1.0001:
            ends = [end * min(1.0, limit / step**0.6 / ends[-1]) for end in ends]
        for index, end in zip(members, ends, strict=True):
            places[index] = end
    return places


def _make_room(axes: Axes, points: Sequence[Point], places: Sequence[float]) -> None:
    """Widens the axis so that points that were moved are on it, and the labels of the last ones."""
    low, high = axes.get_xlim()
    low = min(low, 0.94 * min(places))
    last = clusters([point.size for point in points])[-1]
    longest = AWAY + LETTER * max(len(points[index].name) + 8 for index in last)
    part = longest / (1 if len(last) > 1 else 2) / _width(axes)
    axes.set_xlim(low, max(high, low * (max(places) / low) ** (1 / (1 - part))))


def _width(axes: Axes) -> float:
    """Points that the axis has, about."""
    return float(72 * 0.86 * axes.figure.get_figwidth())  # type: ignore[union-attr]


def _one_point(axes: Axes) -> float:
    """The factor between sizes that are a point (1/72 inch) apart on the axis, about."""
    low, high = axes.get_xlim()
    return float((high / low) ** (1 / _width(axes)))


def clusters(sizes: Sequence[float]) -> list[list[int]]:
    """The places of sizes that are about the same, smallest first; within one in the order that they have."""
    found: list[list[int]] = []
    last = -math.inf
    for index in sorted(range(len(sizes)), key=lambda index: sizes[index]):
        if sizes[index] <= last * SAME:
            found[-1].append(index)
        else:
            found.append([index])
        last = sizes[index]
    return [sorted(members) for members in found]


def _draw(axes: Axes, point: Point, across: float) -> None:
    look = {key: look_of(point.arm)[key] for key in ("color", "marker")}
    bars: Look = {"elinewidth": 1.4, "capsize": 3, "markersize": 10 if point.arm == "surgery" else 7}
    axes.errorbar(across, point.value, point.half, linestyle="none", zorder=4, **look, **bars)


def place_labels(
    axes: Axes, points: Sequence[Point], places: Sequence[float], label: Callable[[float], str]
) -> list[Annotation]:
    """Names and values at the points: beside those of one size, each above the next with a thin line to its point."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # so that it is known where the points are
    box, unit = axes.get_window_extent(), 72 / figure.dpi
    at = [axes.transData.transform((x, point.value)) * unit for x, point in zip(places, points, strict=True)]
    found = []
    for members in clusters([point.size for point in points]):
        if len(members) == 1:
            heights = [axes.transData.transform((1.0, end))[1] * unit for end in points[members[0]].ends]
            up = max(heights) + 2 * LINE < box.y1 * unit  # else below its bar
            half = LETTER * (len(points[members[0]].name) + 8) / 2
            across = min(max(at[members[0]][0], box.x0 * unit + half), box.x1 * unit - half)
            spots = {members[0]: (across, max(heights) + LINE / 1.5 if up else min(heights) - LINE / 1.5)}
        else:
            order = sorted(members, key=lambda index: at[index][1])
            spread_out = spread([at[index][1] for index in order], LINE, box.y0 * unit + 5, box.y1 * unit - 5)
            across = max(at[index][0] for index in members) + AWAY
            spots = {index: (across, y) for index, y in zip(order, spread_out, strict=True)}
        line: Look = {"arrowstyle": "-", "color": "#b0b0b0", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
        for index, (x, y) in spots.items():
            point = points[index]
            look: Look = {"fontsize": 9, "va": "center", "ha": "center" if len(members) == 1 else "left"}
            look["fontweight"] = "bold" if point.arm == "surgery" else "normal"
            note = axes.annotate(
                f"{point.name}  {label(point.value)}", (places[index], point.value),
                (x - at[index][0], y - at[index][1]), textcoords="offset points",
                arrowprops=line if len(members) > 1 else None, **look, **halo(),
            )  # fmt: skip
            note.set_in_layout(False)
            found.append(note)
    return found


def spread(heights: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Ascending heights moved as little as it takes to be ``least`` apart, between ``low`` and ``high`` if that can be.

    >>> spread([1.0, 1.0, 9.0], 2.0, 0.0, 10.0)
    [0.0, 2.0, 9.0]
    """
    groups: list[list[float]] = []  # of each its members' wanted heights
    placed: list[float] = []  # the lowest of each group

    def lowest(group: Sequence[float]) -> float:
        middle = statistics.fmean(group) - least * (len(group) - 1) / 2
        return max(low, min(middle, high - least * (len(group) - 1)))

    for height in heights:
        groups.append([height])
        placed.append(lowest([height]))
        while len(groups) > 1 and placed[-2] + least * len(groups[-2]) > placed[-1]:
            last = groups.pop()
            placed.pop()
            groups[-1] += last
            placed[-1] = lowest(groups[-1])
    return [start + least * turn for start, group in zip(placed, groups, strict=True) for turn in range(len(group))]
