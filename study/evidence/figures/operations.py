"""The operations of a study: what each did to the loss, how long it took, and when the best trials operated."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from network_surgery.study.evidence.drawing import (
    BLACK,
    GREY,
    Drawing,
    Look,
    add_title,
    as_percent,
    log_scale,
    new_axes,
    percent,
    times,
)
from network_surgery.study.evidence.figures.marks import MANY, marks_of
from network_surgery.study.evidence.figures.reading import (
    NOTHING,
    Results,
    all_operations,
    comparison,
    find_finished,
    group_cells,
    metric_of,
    moments_of,
    positive,
)
from network_surgery.study.evidence.naming import letters

#: How many trials the timeline shows.
ROWS = 10
#: Epochs until the loss was back, least and most, and the look of their part of a bar: the longer the darker.
RECOVERED: dict[str, tuple[int, float | None, Look]] = {
    "it never rose": (0, 0, {"color": "#f0e9d2"}),
    "1 epoch": (1, 1, {"color": "#cfc06f"}),
    "2 or 3": (2, 3, {"color": "#8f8f80"}),
    "more": (4, math.inf, {"color": "#48577a"}),
    "not by the end": (0, None, {"color": "#111111", "hatch": "///"}),
}


def spike(results: Results) -> Drawing | None:
    """What each operation did to the loss on the held-out batch, by operation."""
    operations = all_operations(results)
    points = [(op, each.spike_factor) for op, each in operations if positive(each.spike_factor)]
    if not points:
        return None
    groups = group_cells(points, statistics.median)
    figure = Figure(figsize=(9.5, 1.9 + 0.45 * len(groups)), layout="constrained")
    axes, shares = figure.subplots(1, 2, sharey=True, width_ratios=(5, 4))
    marks, jitter = marks_of(results), np.random.default_rng(0)
    for row, (name, factors) in enumerate(groups.items()):
        spread = row + jitter.uniform(-0.22, 0.22, len(factors))
        axes.scatter(factors, spread, s=26, alpha=0.6, zorder=3, rasterized=len(points) > MANY, **marks[name])
        axes.plot([statistics.median(factors)] * 2, [row - 0.4, row + 0.4], color=BLACK, linewidth=2.4)
    log_scale(axes.xaxis, [*(factor for _, factor in points), 0.8, 1.25], lambda value: f"×{value:g}")
    axes.axvline(1, color=BLACK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(groups)), [f"{name} (n = {len(factors)})" for name, factors in groups.items()])
    axes.set(xlabel="held-out loss after ÷ before (log scale)", ylim=(len(groups) - 0.5, -0.5))
    back: dict[str, list[int | None]] = {name: [] for name in groups}
    for op, each in operations:
        back.get(op, []).append(each.epochs_to_recover)
    _recovery(shares, [*back.values()])
    figure.legend(*shares.get_legend_handles_labels(), loc="outside lower center", ncols=len(RECOVERED))
    medians = [f"{name} {times(statistics.median(factors))}" for name, factors in groups.items()]
    extremes = f"least for {medians[0]}, most for {medians[-1]}" if len(medians) > 1 else medians[0]
    every = [epochs for group in back.values() for epochs in group]
    never = percent(sum(epochs is None for epochs in every) / len(every))
    return add_title(
        figure, f"Median jump of the held-out loss: {extremes}; not back by the end after {never} of all operations",
        "Left: each point is one operation on one layer, in the search or in the comparison; the bar is the median. "
        "×1 (dashed) leaves the loss where it was. Operations of the same moment follow one another, and each is "
        "measured against the loss right before it. Right: how many epochs it took until the loss was back where "
        "it was before that moment.",
        f"Strip chart of spike factors by operation. Medians: {', '.join(medians)}. "
        f"Range {times(min(f for _, f in points))} to {times(max(f for _, f in points))}. Not back by the end: "
        + ", ".join(f"{name} {sum(e is None for e in group)} of {len(group)}" for name, group in back.items()) + ".",
    )  # fmt: skip


def _recovery(axes: Axes, back: Sequence[Sequence[int | None]]) -> None:
    """One bar a row, of the shares of operations whose loss was back after a number of epochs."""
    starts = np.zeros(len(back))
    for words, (least, most, look) in RECOVERED.items():
        inside = [
            [most is None if epochs is None else most is not None and least <= epochs <= most for epochs in each]
            for each in back
        ]
        widths = np.array([sum(each) / len(each) for each in inside])
        axes.barh(range(len(back)), widths, 0.7, starts, label=words, edgecolor="white", linewidth=0.6, **look)
        starts += widths
    axes.set(xlabel="operations whose loss was back after", xlim=(0, 1))
    axes.xaxis.set_major_formatter(as_percent)
    axes.grid(False, axis="y")


def timing(results: Results) -> Drawing | None:
    """Seconds of every operation against the seconds of the epoch before it."""
    operations = [
        (op, (each.epoch_seconds, each.seconds))
        for op, each in all_operations(results)
        if each.epoch_seconds is not None and positive(each.epoch_seconds) and positive(each.seconds)
    ]
    if not operations:
        return None

    def share(group: Iterable[tuple[float, float]]) -> float:
        return statistics.median(seconds / epoch for epoch, seconds in group)

    groups = group_cells(operations, share)
    shares = {name: f"{name} {percent(share(group))}" for name, group in groups.items()}
    figure, axes = new_axes(height=4.8)
    marks = marks_of(results)
    for name, group in groups.items():
        across, up = zip(*group, strict=True)
        axes.scatter(across, up, s=34, alpha=0.7, label=shares[name], rasterized=len(operations) > MANY, **marks[name])
    epochs, taken = zip(*(both for _, both in operations), strict=True)
    log_scale(axes.xaxis, [min(epochs) / 1.3, max(epochs) * 1.3], lambda value: f"{value:g}")
    low, high = axes.get_xlim()
    log_scale(axes.yaxis, [*taken, low / 200, high], lambda value: f"{value:g}")
    for ratio, line, words in ((1, "-", "as long"), (0.1, "--", "a tenth"), (0.01, ":", "a hundredth")):
        axes.plot([low, high], [low * ratio, high * ratio], color=GREY, linewidth=1, linestyle=line)
        axes.annotate(words, (high, high * ratio), (4, 0), textcoords="offset points", color=GREY, va="center")
    axes.set(
        xlabel="seconds of the epoch before it (log scale)",
        ylabel="seconds of the operation (log scale)",
        xlim=(low, high),
    )
    figure.legend(loc="outside lower center", ncols=3, title="median share of an epoch")
    slowest, typical = list(shares.values())[-1], share(both for _, both in operations)
    return add_title(
        figure, f"An operation takes {percent(typical)} of an epoch (median); the slowest, {slowest}",
        f"Each point is one operation on one layer, on {_devices(results)}. Lines: the operation takes as long as the "
        "epoch before it, a tenth, a hundredth of it; far below, training hardly notices the interruption."
        + _anatomies(results),
        f"Scatter of operation seconds against epoch seconds. Median shares of an epoch: {', '.join(shares.values())}. "
        f"{len(operations)} operations.",
    )  # fmt: skip


def _devices(results: Results) -> str:
    """What the training runs used, by the names that torch has for it."""
    cells = find_finished([*results["trials"], *comparison(results, "cells")])
    names = sorted({str(cell.get("device", "cpu")) for cell in cells})
    return " and ".join("a CPU" if name == "cpu" else name for name in names)


def _anatomies(results: Results) -> str:
    """What finding out which layers can be changed took, once in a training run; older studies do not know it."""
    cells = find_finished([*results["trials"], *comparison(results, "cells")])
    known = [cell["anatomy_seconds"] for cell in cells if cell.get("anatomy_seconds")]
    if not known:
        return ""
    seconds = statistics.median(known)
    share = statistics.median(cell["anatomy_seconds"] / cell["epochs"][0]["train_seconds"] for cell in cells
                              if cell.get("anatomy_seconds") and cell["epochs"][0]["train_seconds"])  # fmt: skip
    return (
        f" Apart from that, once in each training run, the anatomy of the network: {seconds:.2g} s, {percent(share)} "
        "of an epoch (medians)."
    )


def timeline(results: Results) -> Drawing | None:
    """When the best trials operated, and how much was left of the layers they operated on."""
    metric = metric_of(results)
    trials = sorted(
        find_finished(results["trials"]), key=lambda t: (metric.gain(0.0, t["validation_metric"]), t["parameters"])
    )[:ROWS]
    rows = [(trial, moments_of(trial)) for trial in trials]
    if not any(moments for _, moments in rows):
        return None
    figure, axes = new_axes(height=1.9 + 0.42 * len(rows))
    marks, epochs = marks_of(results), max(len(trial["epochs"]) for trial, _ in rows)
    for row, (_, moments) in enumerate(rows):
        axes.axhline(row, color="#bbbbbb", linewidth=0.8, zorder=0)
        for place, moment in enumerate(moments):
            together = [other for other in moments if other.epoch == moment.epoch]
            beside = place - moments.index(together[0]) - (len(together) - 1) / 2
            size, at = 60 * min(max(moment.kept, 0.4), 3), (moment.epoch + 0.07 * epochs * beside, row)
            axes.scatter(*at, s=size, zorder=3, **marks[moment.op])
            above: Look = {"xytext": (0, math.sqrt(size) / 2 + 1.5), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"×{moment.kept:.2f}", at, fontsize=8, **above)
    used = sorted({moment.op for _, moments in rows for moment in moments})
    handles = [Line2D([], [], linestyle="none", label=name, **marks[name]) for name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    names = letters(results)
    labels = [f"{names.get(t['trial'], '')} {metric.label(t['validation_metric'])}".strip() for t, _ in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set(xlabel="epoch", ylabel="trial", xlim=(0, 1.03 * epochs), ylim=(len(rows) - 0.5, -0.75))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.grid(False, axis="y")
    firsts = [moments[0].epoch for _, moments in rows if moments]
    most = "most accurate" if metric.name == "accuracy" else "best"
    which = f"{len(rows)} {most} trials" if len(rows) > 1 else "only finished trial"
    words = [", ".join(f"{m.op} at {m.epoch:g}" for m in moments) or NOTHING for _, moments in rows]
    lines = [f"{label} ({each})" for label, each in zip(labels, words, strict=True)]
    return add_title(
        figure, f"First operation of the {which}: epoch {statistics.median(firsts):g} of {epochs} (median)",
        f"One row a trial with its validation {metric.name}, the best on top. The number is the operated layers' units "
        "after ÷ before. Marks that touch are operations of one moment, one after the other.",
        f"Timeline of operations: {'; '.join(lines)}.",
    )  # fmt: skip
