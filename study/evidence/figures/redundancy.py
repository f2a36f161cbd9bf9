"""The heat map of redundancy over training: layers × looks, coloured by the fraction of units that a layer needs.

What is drawn was found by ``study.training.probe``; numbers are means over the seeds of an arm.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import MaxNLocator

from network_surgery.ops.signals.signals import SAMPLES_PER_UNIT
from network_surgery.study.evidence.drawing import BLACK, Drawing, Look, add_title, as_percent, percent
from network_surgery.study.evidence.figures.marks import marks_of
from network_surgery.study.evidence.figures.reading import Results, find_compared, name_operations
from network_surgery.study.evidence.naming import arm_title, letters

#: The part of the variance, in percent, that the figure is about.
PART = 99
#: Fields that still hold a number, across and down; more would not be readable.
ACROSS, DOWN = 12, 40


@dataclass(frozen=True)
class Panel:
    """One arm: ``units`` and ``needed [layers, looks]``, means over its seeds (NaN where a layer was not seen).

    ``rows``: the fewest samples a unit that a layer was ever seen with. ``operations``: (epoch, layer, operation).
    """

    name: str
    seeds: int
    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    units: np.ndarray
    needed: np.ndarray
    rows: Mapping[str, float]
    operations: tuple[tuple[float, str, str], ...]

    @property
    def fraction(self) -> np.ndarray:
        return self.needed / self.units

    def whole(self, look: int) -> float:
        """The fraction of all layers' units together that one look (by its place) found to be needed."""
        return float(np.nansum(self.needed[:, look]) / np.nansum(self.units[:, look]))


def panel(name: str, cells: Sequence[Mapping[str, Any]], operations: Iterable[tuple[float, str, str]]) -> Panel | None:
    """What the cells of an arm found; None where nobody looked."""
    looks = [(int(e["epoch"]), e["redundancy"]) for cell in cells for e in cell["epochs"] if e.get("redundancy")]
    if not looks:
        return None
    layers = tuple(dict.fromkeys(layer for _, found in looks for layer in found))
    epochs = tuple(sorted({epoch for epoch, _ in looks}))

    def means(key: str) -> np.ndarray:
        table = [
            [[found[layer][key] for at, found in looks if at == epoch and layer in found] for epoch in epochs]
            for layer in layers
        ]
        return np.array([[statistics.fmean(field) if field else math.nan for field in row] for row in table])

    rows = {
        layer: min(found[layer]["samples"] / found[layer]["units"] for _, found in looks if layer in found)
        for layer in layers
    }
    marks = tuple(dict.fromkeys(operations))
    return Panel(name, len(cells), layers, epochs, means("units"), means(f"units_{PART}"), rows, marks)


def heat_map(panels: Sequence[Panel], end: int, marks: Mapping[str, Look]) -> Drawing:
    """The panels below each other; ``end`` is the last epoch, ``marks`` how each operation is drawn."""
    heights = [min(max(0.27 * len(each.layers), 0.8), 7.0) for each in panels]
    figure = Figure(figsize=(7.5, 1.5 + sum(heights) + 0.75 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, each in zip(grid, panels, strict=True):
        image = _paint(axes, each, marks)
        axes.set(xlim=(0, end), ylabel="layer", title=f"{each.name} (n = {each.seeds})")
        axes.title.set_fontsize(10)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    bar = figure.colorbar(image, ax=list(grid), format=as_percent, pad=0.01, aspect=max(25, 5 * sum(heights)))
    bar.set_label(f"units needed for {PART}% of the variance")
    used = dict.fromkeys(op for each in panels for _, layer, op in each.operations if layer in each.layers)
    handles = [Line2D([], [], linestyle="none", label=op, **marks[op]) for op in used]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
    few = any(_few(each, layer) for each in panels for layer in each.layers)
    words = [f"{each.name} {percent(each.whole(0))} → {percent(each.whole(-1))}" for each in panels]
    changes = [
        f"{each.name}: " + ", ".join(
            f"{layer} {percent(first)} → {percent(last)}"
            for layer, first, last in zip(each.layers, each.fraction[:, 0], each.fraction[:, -1], strict=True)
            if not math.isnan(first + last)
        )
        for each in panels
    ]  # fmt: skip
    return add_title(
        figure, f"Units needed for {PART}% of the variance, first → last look: {', '.join(words)}",
        f"A field is the look at the end of its last epoch: the principal components that hold {PART}% of the variance "
        "of a layer's outputs ÷ its units, mean over the seeds; where there is room, both numbers. Dark fields are "
        "redundant. A mark is an operation, between the look before and the look after it."
        + (" *: seen with fewer than 5 samples a unit, where the number is rather too low." if few else ""),
        f"Heat map of layers by epochs, {len(panels[0].epochs)} looks. First → last look: {'; '.join(changes)}.",
    )  # fmt: skip


def _paint(axes: Axes, each: Panel, marks: Mapping[str, Look]) -> Any:
    edges, rows = [0, *each.epochs], np.arange(len(each.layers) + 1) - 0.5
    shown = np.ma.masked_invalid(each.fraction)
    image = axes.pcolormesh(edges, rows, shown, cmap="cividis", norm=Normalize(0, 1), edgecolors="white", linewidth=0.5)
    if len(each.epochs) <= ACROSS and len(each.layers) <= DOWN:
        for row, column in zip(*np.nonzero(~np.isnan(each.fraction)), strict=True):
            at = (edges[column] + edges[column + 1]) / 2, row - 0.1
            colour = BLACK if each.fraction[row, column] > 0.55 else "white"
            text = f"{each.needed[row, column]:.0f}/{each.units[row, column]:.0f}"
            axes.annotate(text, at, ha="center", va="center", fontsize=7.5, color=colour)
    for epoch, layer, op in each.operations:
        if layer in each.layers:
            edge = {"edgecolors": "white"} if MarkerStyle(marks[op]["marker"]).is_filled() else {}
            look = marks[op] | edge | {"linewidths": 1.2, "s": 44, "clip_on": False}
            axes.scatter(epoch, each.layers.index(layer) + 0.3, zorder=4, **look)  # below the numbers
    step = math.ceil(len(each.layers) / DOWN)
    names = [f"{layer}*" if _few(each, layer) else layer for layer in each.layers]
    axes.set_yticks(range(0, len(names), step), names[::step])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False)
    return image


def _few(each: Panel, layer: str) -> bool:
    return each.rows[layer] < SAMPLES_PER_UNIT / 2


def redundancy(results: Results) -> Drawing | None:
    """How many of their units the layers need over training: uninterrupted, and under the first verdict's schedule."""
    cells, trial = find_compared(results)
    arms = {"original": [c for c in cells if c["arm"] == "original"]}
    arms[arm_title("surgery", letters(results).get(trial, "") if trial is not None else "")] = [
        c for c in cells if c["arm"] == "surgery" and c["trial"] == trial
    ]
    found = [
        panel(
            name, members, [(each.epoch, each.layer, op) for member in members for op, each in name_operations(member)]
        )
        for name, members in arms.items()
    ]
    panels = [each for each in found if each is not None]
    return heat_map(panels, results["settings"]["epochs"], marks_of(results)) if panels else None
