"""The trials of a search: their metric against their size."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from network_surgery.study.counts import format_count
from network_surgery.study.evidence.drawing import (
    BLACK,
    GREY,
    Drawing,
    Look,
    add_title,
    count,
    halo,
    log_scale,
    metric_label,
    metric_scale,
    new_axes,
)
from network_surgery.study.evidence.figures.marks import MANY, marks_of
from network_surgery.study.evidence.figures.reading import (
    Results,
    cells_of,
    describe_unfinished,
    find_finished,
    group_cells,
    metric_of,
    name_of,
)
from network_surgery.study.evidence.naming import letters
from network_surgery.study.search.front import find_front
from network_surgery.study.task.metric import ACCURACY, Metric


def search(results: Results) -> Drawing | None:
    """The validation metric against parameters of all trials, with the original network and the chosen schedules."""
    trials, metric = find_finished(results["trials"]), metric_of(results)
    if not trials:
        return None
    figure, axes = new_axes(height=5)
    marks, many = marks_of(results), len(trials) > MANY
    points = group_cells(((name_of(t), (t["parameters"], t["validation_metric"])) for t in trials), lambda _: 0)
    for name, members in points.items():
        across, up = zip(*members, strict=True)
        axes.scatter(across, up, s=18 if many else 44, alpha=0.8, label=name, rasterized=many, **marks[name])
    front = pareto_front([point for members in points.values() for point in members], metric)
    look: Look = {"color": GREY, "linewidth": 1.2, "label": "no trial is both smaller and better"}
    axes.step(*zip(*front, strict=True), where="post", **look)
    sizes, values = [t["parameters"] for t in trials], [t["validation_metric"] for t in trials]
    originals = find_finished(cells_of(results, "original"))
    if originals:
        size, value = (statistics.fmean(c[key] for c in originals) for key in ("parameters", "validation_metric"))
        words = f"original, mean of n = {len(originals)}"
        axes.scatter(size, value, marker="*", s=210, color=BLACK, label=words, zorder=3)
    limit = (results.get("budget") or {}).get("limits", {}).get("parameters", {}).get("limit")
    if limit is not None:
        axes.axvline(limit, color=BLACK, linewidth=1, linestyle="--", label=f"budget: {limit:,.0f} parameters")
    everything = [*trials, *originals]
    log_scale(axes.xaxis, [t["parameters"] * pad for t in everything for pad in (0.8, 1.25)], count)
    scale = metric_scale(axes, metric, [t["validation_metric"] for t in everything])
    _ring(
        axes, [t for t in trials if t["trial"] in {c["trial"] for c in cells_of(results, "surgery")}], letters(results)
    )
    axes.set(xlabel="parameters at the end (log scale)", ylabel=metric_label("validation", metric))
    figure.legend(loc="outside lower center", ncols=3)
    within = [trial for trial in trials if trial.get("state") != "infeasible"] or trials
    best = max(within, key=lambda t: (metric.gain(t["validation_metric"], 0.0), -t["parameters"]))
    most = metric.named(metric.label(best["validation_metric"]))
    found = f"{most} at {best['parameters']:,} parameters, with {name_of(best)}"
    return add_title(
        figure, f"The best of {format_count(len(trials), 'trial')}: {found}",
        "Each point is one trial of the search, one seed each. The line joins the trials that no other trial beats in "
        f"both {metric.name} and size. {scale}",
        f"Scatter of validation {metric.name} against parameters of {len(trials)} finished trials "
        f"({describe_unfinished(results['trials'])}). Best: {found}. "
        f"{metric.title} from {metric.label(metric.worst(values))}, "
        f"parameters from {min(sizes):,} to {max(sizes):,}.",
    )  # fmt: skip


def pareto_front(points: Iterable[tuple[float, float]], metric: Metric = ACCURACY) -> list[tuple[float, float]]:
    """The (parameters, metric) points that no other point beats in both, smallest first."""
    found = list(points)
    losses = np.array([(size, metric.gain(0.0, value)) for size, value in found])
    return sorted({found[row] for row in find_front(losses)})


def _ring(axes: Axes, trials: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> None:
    """A ring with a letter around each of these trials."""
    look: Look = {"facecolors": "none", "edgecolors": BLACK, "linewidths": 1.6}
    for trial in trials:
        at = (trial["parameters"], trial["validation_metric"])
        axes.scatter(*at, s=170, label="in the comparison" if trial is trials[0] else None, **look)
        axes.annotate(names[trial["trial"]], at, (0, 10), textcoords="offset points", ha="center", fontsize=9, **halo())
