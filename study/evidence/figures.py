"""The figures of a study, drawn from the content of ``results.json`` alone.

``draw`` returns each figure with a title that says its finding, a caption that says how to read it and a text for
those who cannot see it. A figure for which there is no data yet is left out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from scipy import stats

from ops import OPERATIONS
from study.arms import SHORT
from study.evidence.drawing import (
    ARMS,
    BLACK,
    COLOURS,
    GREY,
    MARKERS,
    STYLE,
    Drawing,
    Look,
    accuracy_scale,
    around,
    as_percent,
    count,
    log_scale,
    new_axes,
    percent,
    times,
    titled,
)
from study.evidence.redundancy import heat_map, panel

Results = Mapping[str, Any]

NOTHING = "no operation"
#: Above so many points a figure's points are stored as pixels, to keep the report small.
MANY = 600
#: How many trials the timeline shows.
ROWS = 10


def draw(results: Results) -> dict[str, Drawing]:
    """All figures for which ``results`` (see ``study.evidence.results``) holds data, by name, in reading order."""
    with style.context(["default", STYLE]):
        drawings = {name: figure(results) for name, figure in FIGURES.items()}
    return {name: drawing for name, drawing in drawings.items() if drawing is not None}


def save(drawings: Mapping[str, Drawing], folder: Path) -> list[Path]:
    """Writes ``NAME.png`` (150 dpi) and ``NAME.svg`` for each drawing into a folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, drawing in drawings.items():
        for kind in ("png", "svg"):
            paths.append(folder / f"{name}.{kind}")
            paths[-1].write_bytes(drawing.image(kind))
    return paths


#: The arms of the curves over epochs; more would not be readable.
LINES = ("original", "surgery", "restart")


def accuracy(results: Results) -> Drawing | None:
    """Validation accuracy over epochs of three arms, for the schedule of the first verdict."""
    cells, trial = _compared(results)
    arms = {arm: [c for c in cells if c["arm"] == arm and c["trial"] in (None, trial)] for arm in LINES}
    if not arms["surgery"]:
        return None
    figure, axes = new_axes(height=4.8)
    ends, bounds = {}, []
    for arm, members in arms.items():
        if members:
            curves = np.array([[epoch["validation_accuracy"] for epoch in cell["epochs"]] for cell in members])
            epochs = [epoch["epoch"] for epoch in members[0]["epochs"]]
            mean, deviation = curves.mean(0), _deviation(curves)
            low, high = mean - deviation, np.minimum(mean + deviation, 1.0)
            ends[arm] = f"{mean[-1]:.2%}"
            look = ARMS[arm] | {"markersize": 5, "markevery": math.ceil(len(epochs) / 15)}
            axes.plot(epochs, mean, label=f"{arm}: {ends[arm]} (n = {len(members)})", **look)
            axes.fill_between(epochs, low, high, color=ARMS[arm]["color"], alpha=0.13, linewidth=0)
            bounds += [low.min(), high.max()]
    accuracy_scale(axes, bounds)
    moments = _moments(arms["surgery"][0])
    axes.set(xlabel="epoch", ylabel="validation accuracy", xlim=(0, None))
    _mark_moments(axes, moments)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    figure.legend(loc="outside lower center", ncols=3, title="at the last epoch")
    when = ", ".join(f"{m['op']} at {m['epoch']:g}" for m in moments) or "none"
    return titled(
        figure, "Validation accuracy at the end: " + ", ".join(f"{arm} {end}" for arm, end in ends.items()),
        f"Mean over seeds, band: ± one standard deviation; schedule of trial {trial}. A dashed vertical line is an "
        "operation, with the units of its layers after ÷ before. The scale is stretched towards 100%.",
        f"Line chart of validation accuracy per epoch. At the last epoch: "
        f"{', '.join(f'{arm} {end} (n = {len(arms[arm])})' for arm, end in ends.items())}. Operations: {when}.",
    )  # fmt: skip


def spike(results: Results) -> Drawing | None:
    """What each operation did to the loss on the held-out batch, by operation."""
    points = [(o["op"], o["spike_factor"]) for o in _operations(results) if _positive(o["spike_factor"])]
    if not points:
        return None
    groups = _grouped(points, statistics.median)
    figure, axes = new_axes(height=1.6 + 0.5 * len(groups))
    marks, jitter = _marks(results), np.random.default_rng(0)
    for row, (name, factors) in enumerate(groups.items()):
        spread = row + jitter.uniform(-0.22, 0.22, len(factors))
        axes.scatter(factors, spread, s=26, alpha=0.6, zorder=3, rasterized=len(points) > MANY, **marks[name])
        axes.plot([statistics.median(factors)] * 2, [row - 0.4, row + 0.4], color=BLACK, linewidth=2.4)
    log_scale(axes.xaxis, [*(factor for _, factor in points), 0.8, 1.25], lambda value: f"×{value:g}")
    axes.axvline(1, color=BLACK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(groups)), [f"{name} (n = {len(factors)})" for name, factors in groups.items()])
    axes.set(xlabel="held-out loss after ÷ before the operation (log scale)", ylim=(len(groups) - 0.5, -0.5))
    medians = [f"{name} {times(statistics.median(factors))}" for name, factors in groups.items()]
    extremes = f"least for {medians[0]}, most for {medians[-1]}" if len(medians) > 1 else medians[0]
    return titled(
        figure, f"Median jump of the held-out loss: {extremes}",
        "Each point is one operation on one layer, in the search or in the comparison; the bar is the median. "
        "×1 (dashed) leaves the loss where it was. Operations of the same moment follow one another, and each is "
        "measured against the loss right before it.",
        f"Strip chart of spike factors by operation. Medians: {', '.join(medians)}. "
        f"Range {times(min(f for _, f in points))} to {times(max(f for _, f in points))}.",
    )  # fmt: skip


def timing(results: Results) -> Drawing | None:
    """Seconds of every operation against the seconds of its epoch."""
    operations = [o for o in _operations(results) if _positive(o["epoch_seconds"]) and _positive(o["seconds"])]
    if not operations:
        return None

    def share(group: Iterable[Look]) -> float:
        return statistics.median(o["seconds"] / o["epoch_seconds"] for o in group)

    groups = _grouped(((o["op"], o) for o in operations), share)
    shares = {name: f"{name} {percent(share(group))}" for name, group in groups.items()}
    figure, axes = new_axes(height=4.8)
    marks = _marks(results)
    for name, group in groups.items():
        across, up = ([o[key] for o in group] for key in ("epoch_seconds", "seconds"))
        axes.scatter(across, up, s=34, alpha=0.7, label=shares[name], rasterized=len(operations) > MANY, **marks[name])
    epochs = [o["epoch_seconds"] for o in operations]
    log_scale(axes.xaxis, [min(epochs) / 1.3, max(epochs) * 1.3], lambda value: f"{value:g}")
    low, high = axes.get_xlim()
    log_scale(axes.yaxis, [*(o["seconds"] for o in operations), low / 200, high], lambda value: f"{value:g}")
    for ratio, line, words in ((1, "-", "as long"), (0.1, "--", "a tenth"), (0.01, ":", "a hundredth")):
        axes.plot([low, high], [low * ratio, high * ratio], color=GREY, linewidth=1, linestyle=line)
        axes.annotate(words, (high, high * ratio), (4, 0), textcoords="offset points", color=GREY, va="center")
    axes.set(xlabel="seconds of the epoch (log scale)", ylabel="seconds of the operation (log scale)", xlim=(low, high))
    figure.legend(loc="outside lower center", ncols=3, title="median share of an epoch")
    slowest = list(shares.values())[-1]
    return titled(
        figure, f"An operation takes {percent(share(operations))} of an epoch (median); the slowest, {slowest}",
        "Each point is one operation on one layer. Lines: the operation takes as long as its epoch, a tenth, a "
        "hundredth of it; far below, training hardly notices the interruption.",
        f"Scatter of operation seconds against epoch seconds. Median shares of an epoch: {', '.join(shares.values())}. "
        f"{len(operations)} operations.",
    )  # fmt: skip


def search(results: Results) -> Drawing | None:
    """Validation accuracy against parameters of all trials, with the original network and the chosen schedules."""
    trials = _finished(results["trials"])
    if not trials:
        return None
    figure, axes = new_axes(height=5)
    marks, many = _marks(results), len(trials) > MANY
    points = _grouped(((_name(t), (t["parameters"], t["validation_accuracy"])) for t in trials), lambda _: 0)
    for name, members in points.items():
        across, up = zip(*members, strict=True)
        axes.scatter(across, up, s=44, alpha=0.8, label=name, rasterized=many, **marks[name])
    front = _front([point for members in points.values() for point in members])
    look: Look = {"color": GREY, "linewidth": 1.2, "label": "no trial is both smaller and better"}
    axes.step(*zip(*front, strict=True), where="post", **look)
    sizes, values = [t["parameters"] for t in trials], [t["validation_accuracy"] for t in trials]
    originals = _finished(_cells(results, "original"))
    if originals:
        size, value = (statistics.fmean(c[key] for c in originals) for key in ("parameters", "validation_accuracy"))
        words = f"original, mean of n = {len(originals)}"
        axes.scatter(size, value, marker="*", s=210, color=BLACK, label=words, zorder=3)
    everything = [*trials, *originals]
    log_scale(axes.xaxis, [t["parameters"] * pad for t in everything for pad in (0.8, 1.25)], count)
    accuracy_scale(axes, [t["validation_accuracy"] for t in everything])
    _ring(axes, [t for t in trials if t["trial"] in {c["trial"] for c in _cells(results, "surgery")}])
    axes.set(xlabel="parameters at the end (log scale)", ylabel="validation accuracy")
    figure.legend(loc="outside lower center", ncols=3)
    best = max(trials, key=lambda t: (t["validation_accuracy"], -t["parameters"]))
    found = f"{best['validation_accuracy']:.2%} at {best['parameters']:,} parameters, with {_name(best)}"
    return titled(
        figure, f"The best of {len(trials)} trial{'s' * (len(trials) > 1)}: {found}",
        "Each point is one trial of the search, one seed each. The line joins the trials that no other trial beats in "
        "both accuracy and size. The scale is stretched towards 100%.",
        f"Scatter of validation accuracy against parameters of {len(trials)} finished trials "
        f"({len(results['trials']) - len(trials)} failed). Best: trial {best['trial']}, {found}. "
        f"Accuracy from {min(values):.2%}, parameters from {min(sizes):,} to {max(sizes):,}.",
    )  # fmt: skip


def arms(results: Results) -> Drawing | None:
    """Test accuracy of every seed; surgery and restart of one seed are joined."""
    cells, first = _compared(results)
    trials = sorted({c["trial"] for c in cells} - {None}, key=lambda trial: (trial != first, trial))
    order = [("original", None), *((arm, trial) for trial in trials for arm in ARMS if arm != "original")]
    found = {key: {c["seed"]: c["test_accuracy"] for c in cells if (c["arm"], c["trial"]) == key} for key in order}
    groups = {key: seeds for key, seeds in found.items() if seeds}
    if not groups:
        return None
    figure, axes = new_axes(width=max(7.5, 2.2 + 0.9 * len(groups)))
    seeds_of = sorted({c["seed"] for c in cells})
    shift = {seed: 0.12 * (i / max(1, len(seeds_of) - 1) - 0.5) for i, seed in enumerate(seeds_of)}
    place = {key: i + (0.5 + 0.5 * trials.index(key[1]) if key[1] in trials else 0) for i, key in enumerate(groups)}
    words = []
    for (arm, trial), seeds in groups.items():
        mean, half = _interval(list(seeds.values()))
        at, look = place[arm, trial], {key: ARMS[arm][key] for key in ("color", "marker")}
        axes.scatter([at + shift[seed] for seed in seeds], list(seeds.values()), s=34, alpha=0.75, zorder=3, **look)
        axes.errorbar(at + 0.26, mean, half, markersize=8, capsize=4, zorder=4, **look)
        words.append(f"{arm}{'' if trial is None else f' of trial {trial}'} {around(mean, half)}")
        other = groups.get(("restart", trial), {}) if arm == "surgery" else {}
        for seed in seeds.keys() & other.keys():
            ends = at + shift[seed], place["restart", trial] + shift[seed]
            axes.plot(ends, (seeds[seed], other[seed]), color=GREY, linewidth=0.8, zorder=2)
    names = [
        SHORT.get(arm, arm).replace(" ", "\n") + ("" if trial is None else f"\ntrial {trial}") for arm, trial in groups
    ]
    axes.set_xticks([*place.values()], names)
    axes.yaxis.set_major_formatter(as_percent)
    axes.set(xlabel="arm, and the trial whose schedule it is about", ylabel="test accuracy")
    axes.grid(False, axis="x")
    verdicts = [
        f"Trial {v['trial']}: {v['finding']} (surgery − restart {100 * v['difference']:+.2f} points, n = {v['n']})"
        for v in _comparison(results, "verdicts")
    ]
    return titled(
        figure, "\n".join(verdicts[:3]) or "Test accuracy of every seed",
        "Small points are seeds, a line joins surgery and restart of the same seed; the large point is the mean with "
        "its 95% interval (Student's t). Points are shifted sideways so that equal ones can be told apart.",
        f"Dot chart of test accuracy, mean ± half of its 95% interval: {'; '.join(words)}. {'. '.join(verdicts)}",
    )  # fmt: skip


def timeline(results: Results) -> Drawing | None:
    """When the most accurate trials operated, and how much was left of the layers they operated on."""
    trials = sorted(_finished(results["trials"]), key=lambda t: (-t["validation_accuracy"], t["parameters"]))[:ROWS]
    rows = [(trial, _moments(trial)) for trial in trials]
    if not any(moments for _, moments in rows):
        return None
    figure, axes = new_axes(height=1.9 + 0.42 * len(rows))
    marks = _marks(results)
    for row, (_, moments) in enumerate(rows):
        axes.axhline(row, color="#bbbbbb", linewidth=0.8, zorder=0)
        for moment in moments:
            size, at = 60 * min(max(moment["kept"], 0.4), 3), (moment["epoch"], row)
            axes.scatter(*at, s=size, zorder=3, **marks[moment["op"]])
            above: Look = {"xytext": (0, math.sqrt(size) / 2 + 1.5), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"×{moment['kept']:.2f}", at, fontsize=8, **above)
    used = sorted({moment["op"] for _, moments in rows for moment in moments})
    handles = [Line2D([], [], linestyle="none", label=name, **marks[name]) for name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    labels = [f"#{trial['trial']}: {trial['validation_accuracy']:.2%}" for trial, _ in rows]
    axes.set_yticks(range(len(rows)), labels)
    epochs = max(len(trial["epochs"]) for trial, _ in rows)
    axes.set(xlabel="epoch", ylabel="trial", xlim=(0, 1.03 * epochs), ylim=(len(rows) - 0.5, -0.75))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.grid(False, axis="y")
    firsts = [moments[0]["epoch"] for _, moments in rows if moments]
    which = f"{len(rows)} most accurate trials" if len(rows) > 1 else "only finished trial"
    said = [", ".join(f"{m['op']} at {m['epoch']:g}" for m in moments) or NOTHING for _, moments in rows]
    told = [f"{label} ({words})" for label, words in zip(labels, said, strict=True)]
    return titled(
        figure, f"First operation of the {which}: epoch {statistics.median(firsts):g} of {epochs} (median)",
        "One row a trial with its validation accuracy, the best on top. The number is the operated layers' units "
        "after ÷ before.",
        f"Timeline of operations: {'; '.join(told)}.",
    )  # fmt: skip


def redundancy(results: Results) -> Drawing | None:
    """How many of their units the layers need over training: uninterrupted, and under the first verdict's schedule."""
    cells, trial = _compared(results)
    arms = {"original": [c for c in cells if c["arm"] == "original"]}
    arms[f"surgery of trial {trial}"] = [c for c in cells if c["arm"] == "surgery" and c["trial"] == trial]
    found = [
        panel(name, members, [(o["epoch"], o["layer"], o["op"]) for member in members for o in _named(member)])
        for name, members in arms.items()
    ]
    panels = [each for each in found if each is not None]
    return heat_map(panels, results["settings"]["epochs"], _marks(results)) if panels else None


FIGURES: dict[str, Callable[[Results], Drawing | None]] = {
    "arms": arms,
    "accuracy": accuracy,
    "search": search,
    "timeline": timeline,
    "spike": spike,
    "timing": timing,
    "redundancy": redundancy,
}


def _comparison(results: Results, key: str) -> list[dict[str, Any]]:
    return (results.get("comparison") or {}).get(key) or []


def _cells(results: Results, arm: str) -> list[dict[str, Any]]:
    return [cell for cell in _comparison(results, "cells") if cell["arm"] == arm]


def _finished(cells: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [cell for cell in cells if "failure" not in cell]


def _compared(results: Results) -> tuple[list[Mapping[str, Any]], int | None]:
    """The finished cells of the comparison, and the trial that comes first: the first verdict's, or the lowest."""
    cells = _finished(_comparison(results, "cells"))
    trials = [v["trial"] for v in _comparison(results, "verdicts")] + sorted({c["trial"] for c in cells} - {None})
    return cells, trials[0] if trials else None


def _operations(results: Results) -> list[dict[str, Any]]:
    """Every operation's record of the search and the comparison, with the operation's short name as ``op``."""
    cells = _finished([*results["trials"], *_comparison(results, "cells")])
    return [record for cell in cells for record in _named(cell)]


def _named(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = {(step["when"], step["layer"]): step["op"] for step in cell["schedule"]}
    known = {kind.__name__: name for name, kind in OPERATIONS.items()}  # where ``when`` is written in another way

    def name(operation: Mapping[str, Any]) -> str:
        kind = operation["operation"].split("(")[0]
        return names.get((operation["when"], operation["layer"]), known.get(kind, kind))

    return [operation | {"op": name(operation)} for operation in cell["operations"]]


def _name(cell: Mapping[str, Any]) -> str:
    """The operations of a cell, in words."""
    return " + ".join(dict.fromkeys(step["op"] for step in cell["schedule"])) or NOTHING


def _moments(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The operations of one moment taken together: ``op``, ``epoch``, ``kept`` (units after ÷ before)."""
    found: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for record in _named(cell):
        found.setdefault((record["epoch"], record["op"]), []).append(record)

    def units(members: Iterable[Look], when: str) -> int:
        return sum(record[f"units_{when}"] for record in members)

    return [
        {"epoch": epoch, "op": op, "kept": units(members, "after") / units(members, "before")}
        for (epoch, op), members in sorted(found.items())
    ]


def _marks(results: Results) -> dict[str, Look]:
    """Colour and marker of each operation, and of each combination of operations, in this study."""
    cells = [*results["trials"], *_comparison(results, "cells")]
    names = {_name(cell) for cell in cells} | {record["op"] for record in _operations(results)}
    marks: dict[str, Look] = {NOTHING: {"color": GREY, "marker": "x"}}
    for index, name in enumerate(sorted(names - {NOTHING})):
        marks[name] = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
    return marks


def _grouped(points: Iterable[tuple[str, Any]], order: Callable[[list[Any]], float]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for name, value in points:
        groups.setdefault(name, []).append(value)
    return dict(sorted(groups.items(), key=lambda item: (order(item[1]), item[0])))


def _front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (parameters, accuracy) points that no other point beats in both, smallest first."""
    front: list[tuple[float, float]] = []
    for size, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((size, value))
    return front


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _deviation(curves: np.ndarray) -> np.ndarray:
    """Sample standard deviation over seeds (axis 0), zero for one seed."""
    return curves.std(0, ddof=1) if len(curves) > 1 else np.zeros(curves.shape[1])


def _interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half of its 95 % interval by Student's t; None for one value."""
    if len(values) < 2:
        return values[0], None
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), float(half)


def _mark_moments(axes: Axes, moments: Sequence[Mapping[str, Any]]) -> None:
    """A vertical line at each moment, named where there is room."""
    named = -math.inf
    for moment in moments:
        axes.axvline(moment["epoch"], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        if moment["epoch"] - named > 0.04 * axes.get_xlim()[1]:
            named = moment["epoch"]
            look: Look = {"rotation": 90, "ha": "right", "va": "bottom", "fontsize": 8.5, "color": "#444444"}
            look |= {"xycoords": axes.get_xaxis_transform(), "xytext": (-2, 4), "textcoords": "offset points"}
            axes.annotate(f"{moment['op']} ×{moment['kept']:.2f}", (moment["epoch"], 0), **look)


def _ring(axes: Axes, trials: Sequence[Mapping[str, Any]]) -> None:
    """A ring with a number around each of these trials."""
    look: Look = {"facecolors": "none", "edgecolors": BLACK, "linewidths": 1.6}
    for trial in trials:
        at = (trial["parameters"], trial["validation_accuracy"])
        axes.scatter(*at, s=170, label="compared with restarting" if trial is trials[0] else None, **look)
        axes.annotate(f"#{trial['trial']}", at, (0, 10), textcoords="offset points", ha="center", fontsize=9)
