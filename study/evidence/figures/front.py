"""The front of a search with several objectives: each two of them against each other, and how the front grew."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from network_surgery.study.config import METRIC
from network_surgery.study.evidence.drawing import (
    BLUE,
    GREY,
    VERMILLION,
    Drawing,
    Look,
    add_title,
    count,
    log_scale,
    metric_label,
    metric_scale,
)
from network_surgery.study.evidence.figures.reading import Results, find_finished, metric_of, name_of
from network_surgery.study.evidence.front import join_words, sentence
from network_surgery.study.evidence.naming import letters
from network_surgery.study.search.objectives import format_objective, label, title, value
from network_surgery.study.task.metric import Metric


def front(results: Results) -> Drawing | None:
    """Pairs of objectives with the front marked, and hypervolume over trials; none for a study of one objective."""
    found, metric = results.get("front"), metric_of(results)
    if not found:
        return None
    among = {number for number, _ in found["history"]}  # those within the budget
    trials = [trial for trial in find_finished(results["trials"]) if trial["trial"] in among]
    pairs = list(itertools.combinations(found["objectives"], 2))
    rows = math.ceil((len(pairs) + 1) / 2)
    figure = Figure(figsize=(9, 0.8 + 3.3 * rows), layout="constrained")
    panels = [figure.add_subplot(rows, 2, place + 1) for place in range(len(pairs) + 1)]
    for axes, (one, other) in zip(panels, pairs, strict=False):
        across, up = (one, other) if other in METRIC else (other, one)
        _pair(axes, trials, found, across, up, metric, letters(results))
    _growth(panels[-1], found)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return _label(figure, trials, found, metric, letters(results))


def _pair(
    axes: Axes,
    trials: Sequence[Mapping[str, Any]],
    found: Mapping[str, Any],
    across: str,
    up: str,
    metric: Metric,
    names: Mapping[int, str],
) -> None:
    at = {trial["trial"]: (value(trial, across), value(trial, up)) for trial in trials}
    corner = [found["reference"][found["objectives"].index(name)] for name in (across, up)]
    beaten, best = ([at[number] for number in at if (number in found["trials"]) == inside] for inside in (False, True))
    look: Look = {"s": 30, "color": GREY, "alpha": 0.7, "label": "beaten by another trial"}
    if beaten:
        axes.scatter(*zip(*beaten, strict=True), **look)
    look = {"s": 150, "color": BLUE, "alpha": 0.85, "marker": "s", "linewidths": 0, "zorder": 3}
    axes.scatter(*zip(*best, strict=True), label="beaten by no other; with a letter: compared", **look)
    look = {"s": 60, "color": VERMILLION, "marker": "x", "linewidths": 2, "label": "reference point"}
    axes.scatter(*corner, **look)
    for number in found["trials"]:
        axes.annotate(
            names.get(number, ""), at[number], color="white", ha="center", va="center", fontsize=7.5, zorder=4
        )
    points = [*at.values(), corner]
    for axis, name, values in zip((axes.xaxis, axes.yaxis), (across, up), zip(*points, strict=True), strict=True):
        words = label(name, metric)
        if name in METRIC:
            metric_scale(axes, metric, values)
            words = metric_label("validation", metric)
        elif name != "loss" or min(values) > 0:
            log_scale(axis, [max(each, 1e-9) * pad for each in values for pad in (0.85, 1.2)], count)
            words += " (log scale)"
        axis.set_label_text(words)


def _growth(axes: Axes, found: Mapping[str, Any]) -> None:
    numbers, volumes = zip(*found["history"], strict=True)
    axes.step(numbers, volumes, where="post", color=BLUE, marker="s", markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trials so far", ylabel="how good the front was so far", ylim=(0, 1))


def _label(
    figure: Figure,
    trials: Sequence[Mapping[str, Any]],
    found: Mapping[str, Any],
    metric: Metric,
    names: Mapping[int, str],
) -> Drawing:
    known = {trial["trial"]: trial for trial in trials}
    members = [
        f"{names.get(number, 'not compared')} ({name_of(known[number])}): "
        + ", ".join(format_objective(value(known[number], name), name, metric) for name in found["objectives"])
        for number in found["trials"]
    ]
    volumes = [volume for _, volume in found["history"]]
    whole = sentence(found, metric)
    return add_title(
        figure, whole.split(":")[0],
        "Each point is one finished trial of the search, one seed each. On the front (squares) are the trials that no "
        "other is as good as in every objective and better in one; a trial may lie on it that looks beaten in one of "
        "the panels. The last panel shows how the search came closer to one schedule that is best in everything, which "
        "would be 1; it is the hypervolume of the front, measured from the cross.",
        f"Scatter plots of {join_words([title(name, metric) for name in found['objectives']])}, each against each. "
        f"{whole} On the front: {'; '.join(members)}. "
        f"Hypervolume after the first of {len(volumes)} trials {volumes[0]:.2f}, after half of them "
        f"{volumes[(len(volumes) - 1) // 2]:.2f}, after all {volumes[-1]:.2f}.",
    )  # fmt: skip
