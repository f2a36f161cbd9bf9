"""The arms of a comparison: their metric over training, and of every seed at the end."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from network_surgery.study.evidence.converged import convergence, find_unconverged
from network_surgery.study.evidence.drawing import (
    ARMS,
    GREY,
    Drawing,
    add_title,
    as_percent,
    format_interval,
    look_of,
    metric_label,
    metric_scale,
    new_axes,
)
from network_surgery.study.evidence.figures.marks import MOMENT, mark_moments
from network_surgery.study.evidence.figures.reading import (
    Results,
    comparison,
    elapsed_seconds,
    find_compared,
    metric_of,
    moments_of,
    rival_arm,
)
from network_surgery.study.evidence.naming import arm_title, in_short, letters
from network_surgery.study.evidence.significance import half_interval

#: Schedules beside each other; more would be too small.
SCHEDULES = 6


def curves(results: Results) -> Drawing | None:
    """The metric on validation over epochs, for the schedule of the first verdict: original, surgery, and the arm that
    the verdict is about. More would not be readable.
    """
    cells, trial = find_compared(results)
    metric = metric_of(results)
    lines = ("original", "surgery", rival_arm(results))
    arms = {arm: [c for c in cells if c["arm"] == arm and c["trial"] in (None, trial)] for arm in lines}
    if not arms["surgery"]:
        return None
    figure = Figure(figsize=(9.0, 4.8), layout="constrained")
    axes, clock = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    ends, bounds = {}, []
    counts = {arm_title(arm): len(members) for arm, members in arms.items()}
    for arm, members in arms.items():
        if members:
            shared = min(len(cell["epochs"]) for cell in members)  # at equal FLOPs seeds may have different numbers
            values = np.array([[epoch["validation_metric"] for epoch in cell["epochs"][:shared]] for cell in members])
            epochs = [epoch["epoch"] for epoch in members[0]["epochs"][:shared]]
            seconds = np.mean([elapsed_seconds(cell)[:shared] for cell in members], 0)
            mean, deviation = values.mean(0), _deviation(values)
            low, high = mean - deviation, np.minimum(mean + deviation, 1.0 if metric.percent else np.inf)
            last = [cell["epochs"][-1]["validation_metric"] for cell in members]
            ends[arm_title(arm)] = end = metric.label(float(np.mean(last)))
            look = look_of(arm) | {"markersize": 5, "markevery": math.ceil(len(epochs) / 12)}
            axes.plot(epochs, mean, label=f"{arm_title(arm)}: {end} (n = {len(members)})", **look)
            clock.plot(seconds, mean, **look)
            for panel, across in ((axes, epochs), (clock, seconds)):
                panel.fill_between(across, low, high, color=look_of(arm)["color"], alpha=0.13, linewidth=0)
            if arm == "surgery":
                moments = moments_of(members[0])
                at = np.interp([moment.epoch for moment in moments], [0, *epochs], [0, *seconds])
            bounds += [low.min(), high.max()]
    scale = metric_scale(axes, metric, bounds)
    for panel, words in ((axes, "epoch"), (clock, "seconds of training and surgery")):
        panel.set(xlabel=words, xlim=(0, None))
    axes.set_ylabel(metric_label("validation", metric))
    mark_moments(axes, moments)
    for second in at:
        clock.axvline(second, **MOMENT)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    clock.xaxis.set_major_locator(MaxNLocator(6))
    figure.legend(loc="outside lower center", ncols=3, title="at the last epoch")
    late = find_unconverged({arm: convergence(members, metric) for arm, members in arms.items()})
    late = f" At the end {late}." if late else ""
    when = ", ".join(f"{m.op} at {m.epoch:g}" for m in moments) or "none"
    return add_title(
        figure, f"Validation {metric.name} at the end: " + ", ".join(map(" ".join, ends.items())),
        f"Mean over seeds, as far as all of them go, band: ± one standard deviation; {schedule_of(results, trial)}. "
        "Left by epoch, right by the mean seconds spent until then. A dashed line is an operation, with the units of "
        f"its layers after ÷ before. {scale}{late}",
        f"Line chart of validation {metric.name} per epoch. At the last epoch: "
        f"{', '.join(f'{each} {end} (n = {counts[each]})' for each, end in ends.items())}. Operations: {when}.{late}",
    )  # fmt: skip


def arms(results: Results) -> Drawing | None:
    """The test metric of every seed; surgery and the arm of the verdict of one seed are joined."""
    cells, _ = find_compared(results)
    metric, rival = metric_of(results), rival_arm(results)
    names = letters(results)
    trials = sorted({c["trial"] for c in cells} - {None}, key=[*names].index)
    shown = trials[:SCHEDULES]
    order = [("original", None), *((arm, trial) for trial in shown for arm in ARMS if arm != "original")]
    found = {key: {c["seed"]: c["test_metric"] for c in cells if (c["arm"], c["trial"]) == key} for key in order}
    groups = {key: seeds for key, seeds in found.items() if seeds}
    if not groups:
        return None
    figure, axes = new_axes(width=max(7.5, 2.2 + 0.9 * len(groups)))
    seeds_of = sorted({c["seed"] for c in cells})
    shift = {seed: 0.12 * (i / max(1, len(seeds_of) - 1) - 0.5) for i, seed in enumerate(seeds_of)}
    place = {key: i + (0.5 + 0.5 * trials.index(key[1]) if key[1] in trials else 0) for i, key in enumerate(groups)}
    words = []
    for (arm, trial), seeds in groups.items():
        ends = np.array([*seeds.values()])
        mean, half = ends.mean(), float(half_interval(ends)) if len(ends) > 1 else None
        at, look = place[arm, trial], {key: look_of(arm)[key] for key in ("color", "marker")}
        axes.scatter([at + shift[seed] for seed in seeds], list(seeds.values()), s=34, alpha=0.75, zorder=3, **look)
        axes.errorbar(at + 0.26, mean, half, markersize=8, capsize=4, zorder=4, **look)
        words.append(f"{arm_title(arm, names.get(trial, ''))} {format_interval(metric, mean, half)}")
        other = groups.get((rival, trial), {}) if arm == "surgery" else {}
        for seed in seeds.keys() & other.keys():
            pair = at + shift[seed], place[rival, trial] + shift[seed]
            axes.plot(pair, (seeds[seed], other[seed]), color=GREY, linewidth=0.8, zorder=2)
    titles = [arm_title(arm, names.get(trial, "")).replace(", ", ",\n") for arm, trial in groups]
    axes.set_xticks([*place.values()], titles, fontsize=9 if len(groups) < 8 else 7.5)
    if metric.percent:
        axes.yaxis.set_major_formatter(as_percent)
    axes.set(xlabel="arm, and the letter of its schedule", ylabel=metric_label("test", metric))
    axes.grid(False, axis="x")
    left_out = f" The first {len(shown)} of {len(trials)} schedules." if len(trials) > len(shown) else ""
    other_arm = arm_title(rival)
    verdicts = [
        f"{names[v['trial']]}: {v['finding']} (surgery − {other_arm} {metric.difference(v['difference'])}, "
        f"n = {v['n']})"
        for v in comparison(results, "verdicts")
    ]
    return add_title(
        figure, "\n".join(verdicts[:3]) or f"Test {metric.name} of every seed",
        f"Small points are seeds, a line joins surgery and {other_arm} of the same seed; the large point is the mean "
        "with its 95% interval (Student's t). Points are shifted sideways so that equal ones can be told apart."
        + left_out,
        f"Dot chart of test {metric.name}, mean ± half of its 95% interval: {'; '.join(words)}. {'. '.join(verdicts)}",
    )  # fmt: skip


def schedule_of(results: Results, trial: int | None) -> str:
    """The schedule of a figure about one of them: its letter, and what it does."""
    if trial is None:
        return "no schedule"
    return f"schedule {letters(results).get(trial, '')} ({in_short(results).get(trial, 'unknown')})"


def _deviation(values: np.ndarray) -> np.ndarray:
    """Sample standard deviation over seeds (axis 0), zero for one seed."""
    return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
