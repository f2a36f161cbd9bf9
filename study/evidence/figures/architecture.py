"""The architecture before and after surgery: the units of every layer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from network_surgery.ops import OPERATIONS
from network_surgery.study.evidence.drawing import (
    ARMS,
    BLACK,
    GREY,
    WIDE,
    Drawing,
    Look,
    add_title,
    count,
    log_scale,
    percent,
)
from network_surgery.study.evidence.figures.reading import SHORT, Results, find_compared, name_of
from network_surgery.study.evidence.naming import letters
from network_surgery.study.training.records import operations_of

#: Schedules beside each other, and layers below each other that have numbers, and that have names of their own.
PANELS, NAMED, SMALL = 4, 24, 60


def stacks(cells: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Container → blocks before the first operation on it, of those that operations have made deeper or shallower."""
    found: dict[str, int] = {}
    for cell in cells:
        for each in operations_of(cell):
            kind = OPERATIONS.get(SHORT.get(each.operation.split("(")[0], ""))
            if kind is not None and kind.of_blocks:
                found.setdefault(each.layer, each.units_before)
    return found


def widths(cell: Mapping[str, Any], layers: Mapping[str, int]) -> dict[str, int]:
    """Layer → units at the end of a training run, and container → blocks, from its operations in their order."""
    changed = {each.layer: each.units_after for each in operations_of(cell) if each.layer in layers}
    return {**layers, **changed}


def architecture(results: Results) -> Drawing | None:
    """Units of each layer, of the original network and after each compared schedule: mean and range over the seeds."""
    cells, _ = find_compared(results)
    layers = results["layers"]
    names = letters(results)
    trials = sorted({c["trial"] for c in cells if c["arm"] == "surgery"}, key=[*names].index)
    found = {trial: [c for c in cells if c["arm"] == "surgery" and c["trial"] == trial] for trial in trials}
    shown = {trial: members for trial, members in [*found.items()][:PANELS] if any(map(operations_of, members))}
    if not shown or not layers:
        return None
    blocks = stacks([cell for members in shown.values() for cell in members])
    layers = {**layers, **blocks}
    ends = {trial: [widths(cell, layers) for cell in members] for trial, members in shown.items()}
    height = min(max(0.3 * len(layers), 1.2), 9.0)
    figure = Figure(figsize=(max(6.0, 2.2 + 2.2 * len(shown)), 2.0 + height), layout="constrained")
    grid = figure.subplots(1, len(shown), sharey=True, sharex=True, squeeze=False)[0]
    sizes = [*layers.values(), *(units for each in ends.values() for end in each for units in end.values())]
    for axes, (trial, each) in zip(grid, ends.items(), strict=True):
        if max(sizes) > WIDE * min(sizes):
            log_scale(axes.xaxis, [min(sizes), 1.1 * max(sizes)], count)
        else:
            axes.set_xlim(0, 1.1 * max(sizes))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        _panel(axes, layers, each)
        name = name_of(shown[trial][0])
        axes.set_title(f"{names[trial]} (n = {len(each)})\n{name.replace(' + ', ' +' + chr(10))}", fontsize=9.5)
    grid[0].set(ylim=(len(layers) - 0.5, -0.5), ylabel="layer")
    step = math.ceil(len(layers) / SMALL)
    rows = [f"{name} (blocks)" if name in blocks else name for name in layers]
    grid[0].set_yticks(range(0, len(layers), step), rows[::step], fontsize=10 if len(layers) <= NAMED else 7.5)
    for axes in grid:
        axes.set_xlabel("units (log scale)" if max(sizes) > WIDE * min(sizes) else "units")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    units = {name: number for name, number in layers.items() if name not in blocks}
    kept = {
        trial: statistics.fmean(sum(end[name] for name in units) for end in each) / sum(units.values())
        for trial, each in ends.items()
    }
    means = {trial: {name: _mean(each, name) for name in layers} for trial, each in ends.items()}
    changes = [
        f"{names[trial]} ({name_of(shown[trial][0])}): "
        + (", ".join(f"{n} {u} → {end[n]:.3g}" for n, u in layers.items() if end[n] != u) or "as before")
        for trial, end in means.items()
    ]
    left_out = f" The first {len(shown)} of {len(found)} schedules." if len(found) > len(shown) else ""
    left_out += " Layers of blocks that came are not drawn, those of blocks that went as they were." if blocks else ""
    return add_title(
        figure,
        "Units after surgery, of the original's: " + ", ".join(f"{percent(k)} ({names[t]})" for t, k in kept.items())
        + (" in the layers that there were" if blocks else ""),
        "A ring is a layer of the original network, a square what surgery of the schedule ended with: mean over the "
        f"seeds, a bar where they differ (least to most).{left_out} Masked weights do not count here: units are whole.",
        f"Units of {len(layers)} layers before → after surgery (mean of the seeds): {'; '.join(changes)}.",
    )  # fmt: skip


def _panel(axes: Axes, layers: Mapping[str, int], ends: Sequence[Mapping[str, int]]) -> None:
    small = len(layers) > NAMED
    after = {name: _mean(ends, name) for name in layers}
    rows = range(len(layers))
    axes.hlines(rows, [*layers.values()], [*after.values()], color=GREY, linewidth=1.4, zorder=2)
    least, most = ([function(end[name] for end in ends) for name in layers] for function in (min, max))
    axes.hlines(rows, least, most, color=ARMS["surgery"]["color"], linewidth=5, alpha=0.35, zorder=2)
    ring: Look = {"facecolors": "white", "edgecolors": BLACK, "linewidths": 1.3, "s": 22 if small else 48}
    axes.scatter([*layers.values()], rows, zorder=3, label="original", **ring)
    look = {key: ARMS["surgery"][key] for key in ("color", "marker")} | {"s": 14 if small else 40}
    axes.scatter([*after.values()], rows, zorder=4, label="after surgery", **look)
    if not small:
        for row, (name, units) in enumerate(layers.items()):
            if after[name] != units:
                at: Look = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "fontsize": 8}
                axes.annotate(f"×{after[name] / units:.2f}", (after[name], row), zorder=5, **at)
    axes.grid(visible=False, axis="y")


def _mean(ends: Sequence[Mapping[str, int]], name: str) -> float:
    return statistics.fmean(end[name] for end in ends)
