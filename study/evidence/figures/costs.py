"""What a metric costs: the arms of a comparison against parameters, FLOPs and seconds, with the Pareto fronts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from network_surgery.study.evidence.drawing import (
    ARMS,
    Drawing,
    Look,
    add_title,
    count,
    halo,
    log_scale,
    look_of,
    metric_label,
    metric_scale,
)
from network_surgery.study.evidence.figures.reading import Results, find_compared, metric_of, positive
from network_surgery.study.evidence.figures.trials import pareto_front
from network_surgery.study.evidence.naming import arm_title, letters

COSTS = {"parameters": "parameters at the end", "training_flops": "FLOPs of training", "seconds": "seconds of training"}
#: Above this number of schedules their letters would cover each other; only those on a front keep theirs.
NUMBERED = 4
FRONT: Look = {"color": "#444444", "linewidth": 1.6, "zorder": 1}

Group = tuple[str, int | None]


def costs(results: Results) -> Drawing | None:
    """The test metric of every arm against each of its costs, means and seeds; one panel a cost that all cells know."""
    cells, _ = find_compared(results)
    metric, names = metric_of(results), letters(results)
    groups: dict[Group, list[Mapping[str, Any]]] = {}
    for cell in sorted(cells, key=lambda cell: [*ARMS, cell["arm"]].index(cell["arm"])):
        groups.setdefault((cell["arm"], cell["trial"]), []).append(cell)
    known = {cost: words for cost, words in COSTS.items() if cells and all(positive(c.get(cost)) for c in cells)}
    if len(groups) < 2 or not known:
        return None
    figure = Figure(figsize=(max(4.0, 3.1 * len(known)), 4.6), layout="constrained")
    grid = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    values = {key: statistics.fmean(c["test_metric"] for c in members) for key, members in groups.items()}
    fronts: dict[str, list[Group]] = {}
    for axes, (cost, words) in zip(grid, known.items(), strict=True):
        means = {key: (statistics.fmean(c[cost] for c in g), values[key]) for key, g in groups.items()}
        front = pareto_front(means.values(), metric)
        fronts[cost] = [key for key, mean in means.items() if mean in front]
        log_scale(axes.xaxis, [c[cost] * pad for c in cells for pad in (0.85, 1.18)], count)
        _panel(axes, cost, groups, means, fronts[cost], names)
        ends = [*front, (axes.get_xlim()[1], front[-1][1])]
        axes.step(*zip(*ends, strict=True), where="post", **FRONT)
        axes.set_xlabel(f"{words} (log scale)")
        axes.tick_params(axis="x", labelsize=8.5)
    scale = metric_scale(grid[0], metric, [c["test_metric"] for c in cells])
    grid[0].set_ylabel(metric_label("test", metric))
    arms = dict.fromkeys(arm for arm, _ in groups)
    handles = [Line2D([], [], label=arm_title(a), **look_of(a) | {"linestyle": "none"}) for a in arms]
    handles.append(Line2D([], [], label="Pareto front of the means", **FRONT))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
    listed = {cost: ", ".join(_title(key, names) for key in keys) for cost, keys in fronts.items()}
    ours = {
        cost: [names[trial] for arm, trial in keys if arm == "surgery" and trial is not None]
        for cost, keys in fronts.items()
    }
    found = [f"{COSTS[cost].split(' (')[0]} ({', '.join(numbers)})" for cost, numbers in ours.items() if numbers]
    points = "; ".join(
        f"{_title(key, names)} {metric.label(values[key])} at "
        + ", ".join(f"{count(statistics.fmean(c[cost] for c in g))} {COSTS[cost].split()[0]}" for cost in known)
        for key, g in groups.items()
    )
    where = f"the Pareto front of {metric.name} and {'; '.join(found)}" if found else "no Pareto front"
    return add_title(
        figure, f"Surgery is on {where}",
        "Large points are means over the seeds, small ones the seeds; dots join a schedule's surgery (with its "
        "letter) and its rivals. On the dark line lie the means that no other mean beats at the same cost or less. "
        f"{scale}",
        f"{len(known)} scatter charts of mean test {metric.name}. {points}. On the fronts: "
        + "; ".join(f"{COSTS[cost]}: {names}" for cost, names in listed.items()) + ".",
    )  # fmt: skip


def _title(group: Group, names: Mapping[int, str]) -> str:
    arm, trial = group
    return arm_title(arm, names.get(trial, "") if trial is not None else "")


def _panel(
    axes: Axes, cost: str, groups: Mapping[Group, list[Mapping[str, Any]]],
    means: Mapping[Group, tuple[float, float]], front: list[Group], names: Mapping[int, str],
) -> None:  # fmt: skip
    trials = sorted({trial for arm, trial in groups if arm == "surgery"}, key=lambda trial: means["surgery", trial])
    for (arm, trial), members in groups.items():
        look = {name: look_of(arm)[name] for name in ("color", "marker")}
        seeds = [c[cost] for c in members], [c["test_metric"] for c in members]
        axes.scatter(*seeds, s=9, alpha=0.35, linewidths=0, zorder=2, **look)
        at = means[arm, trial]
        axes.scatter(*at, s=62, edgecolors="white", linewidths=0.8, zorder=4, **look)
        if arm == "surgery" and (len(trials) <= NUMBERED or (arm, trial) in front):
            side = (-8, 8)[trials.index(trial) % 2]  # neighbours' numbers keep apart
            label: Look = {"xytext": (side, 6), "textcoords": "offset points", "ha": "right" if side < 0 else "left"}
            axes.annotate(names.get(trial or 0, ""), at, fontsize=8.5, **label, **halo())
        if ("surgery", trial) in means and arm != "surgery":
            ends = zip(at, means["surgery", trial], strict=True)
            axes.plot(*ends, color="#aaaaaa", linewidth=0.8, linestyle=":", zorder=1)
