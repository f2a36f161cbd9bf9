"""Time to a target: the share of every arm's seeds that has reached a value of the metric, against the seconds."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from network_surgery.study.evidence.drawing import ARMS, Drawing, Look, add_title, as_percent, look_of
from network_surgery.study.evidence.figures.arms import schedule_of
from network_surgery.study.evidence.figures.reading import Results, find_compared, metric_of, rival_arm, unit_of
from network_surgery.study.evidence.naming import arm_title
from network_surgery.study.evidence.time_to_accuracy import Times, targets, times


def time_to_accuracy(results: Results) -> Drawing | None:
    """A panel for each target, shares by Kaplan and Meier; for the schedule of the first verdict."""
    cells, trial = find_compared(results)
    metric = metric_of(results)
    found = {arm: [c for c in cells if c["arm"] == arm and c["trial"] in (None, trial)] for arm in ARMS}
    groups = {arm: members for arm, members in found.items() if members}
    wanted = targets(results["settings"].get("targets") or (), groups.get("original", ()), metric)
    if not wanted or "surgery" not in groups:
        return None
    figure = Figure(figsize=(max(7.5, 2.6 * len(wanted)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(wanted), sharex=True, sharey=True, squeeze=False)[0]
    lines = {}
    for axes, target in zip(panels, wanted, strict=True):
        runs = {arm: times(members, target, metric=metric) for arm, members in groups.items()}
        for arm, each in runs.items():
            _steps(axes, arm, each)
        axes.set_title(metric.goal(target).replace(" %", "%"))
        axes.set(xlabel="seconds", ylim=(-0.03, 1.06))
        axes.yaxis.set_major_formatter(as_percent)
        lines[target] = {arm_title(arm): _words(each) for arm, each in runs.items()}
    panels[0].set(ylabel="seeds that are there", xlim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    halves = {
        arm_title(arm): times(groups[arm], wanted[-1], metric=metric).median()
        for arm in ("surgery", rival_arm(results))
        if arm in groups
    }
    words = ", ".join(f"{arm} {'never' if half is None else f'{half:.3g} s'}" for arm, half in halves.items())
    goals = {target: metric.goal(target).replace(" %", "%") for target in wanted}
    an = "an" if metric.name[0].lower() in "aeiou" else "a"
    return add_title(
        figure, f"Until half of the seeds have {metric.named(goals[wanted[-1]])} on validation: {words}",
        f"Each panel is {an} {metric.name} on validation {unit_of(results)}; a line rises where an epoch ends at "
        "which a seed's final network has it (Kaplan and Meier). A bar marks seeds that ended without it. "
        f"It is about {schedule_of(results, trial)}; seconds of training and operations, for a late restart those "
        "before it, too.",
        f"Step chart of the share of seeds that has reached {an} {metric.name}, against seconds. "
        + " ".join(f"{goals[target]}: {'; '.join(map(' '.join, arms.items()))}." for target, arms in lines.items()),
    )  # fmt: skip


def _steps(axes: Axes, arm: str, runs: Times) -> None:
    """An arm's share over time, up to where its last run ends; its marker at every step, a bar where runs end."""
    steps, look = runs.shares(), look_of(arm)
    across, up = zip((0.0, 0.0), *steps, strict=True)
    marks: Look = {"markersize": 4.5, "markevery": slice(1, None)}
    axes.plot(across, up, drawstyle="steps-post", label=arm_title(arm), **look | marks)
    ends = [(at, there) for at, there in steps if at in runs.censored]
    if ends:
        axes.plot(*zip(*ends, strict=True), linestyle="none", marker="|", markersize=13, color=look["color"])


def _words(runs: Times) -> str:
    """How many runs got there, and when half of them were."""
    n, half = len(runs.reached) + len(runs.censored), runs.median()
    return f"{len(runs.reached)} of {n} seeds" + (f", half by {half:.3g} s" if half is not None else "")
