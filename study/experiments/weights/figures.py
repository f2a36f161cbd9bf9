"""Figures: the loss change over training, what scores say of themselves, the schedule with compaction, and the maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from network_surgery.study.evidence.drawing import (
    BLACK,
    COLOURS,
    GREY,
    MARKERS,
    STYLE,
    Drawing,
    Look,
    log_scale,
    new_axes,
)
from network_surgery.study.evidence.significance import half_interval
from network_surgery.study.experiments import magnitude_maps
from network_surgery.study.experiments.rows import Row, grid
from network_surgery.study.experiments.weights.claims import (
    ACTIVATIONS,
    DENSE,
    FIRST,
    change,
    compact,
    dependency,
    ends,
    ranks,
)
from network_surgery.study.experiments.weights.looks import MEASURED, SCORES, SIGNED, TAYLOR
from network_surgery.study.experiments.weights.schedule import COMPACTED, F_NZ, UNPRUNED

#: Below this change of the loss the scale is linear, so that negative changes have a place.
LINEAR = 0.01
COLOUR = dict(zip((*SIGNED, "magnitude"), COLOURS, strict=False)) | {"random": GREY}
LOOKS: dict[str, Look] = {
    score: {
        "color": COLOUR[score.removesuffix("_abs")], "marker": MARKERS[list(COLOUR).index(score.removesuffix("_abs"))],
        "linestyle": ":" if score in SIGNED else "-", "markersize": 3.5, "linewidth": 1.3,
    }
    for score in SCORES
}  # fmt: skip
#: The rows of the large figure, and the fractions of its columns.
PANELS = ((ACTIVATIONS[0], FIRST), (ACTIVATIONS[1], FIRST), (ACTIVATIONS[0], DENSE))
FRACTIONS = (0.01, 0.05, 0.5, 0.8)


def draw(rows: Sequence[Row]) -> dict[str, Drawing]:
    """The figures by their names."""
    with style.context(["default", STYLE]):
        figures = {
            "weights": _changes(rows),
            "weights_scores": _scores(rows),
            "weights_schedule": _schedule(rows),
        }
    maps = {row["arm"]: row["maps"] for row in rows if row["kind"] == "map" and row["seed"] == 0}
    pair = {UNPRUNED: maps[UNPRUNED], f"pruned by {COMPACTED}": maps[COMPACTED]}
    return figures | {"weights_maps": magnitude_maps.draw(pair, "Sizes of weights with and without pruning")}


def moments(rows: Sequence[Row]) -> list[int]:
    """The iterations at which networks were looked at."""
    return sorted({row["iteration"] for row in rows if row["kind"] == "loss"})


def seeds_of(rows: Sequence[Row]) -> int:
    return len({row["seed"] for row in rows if row["kind"] == "loss"})


def _changes(rows: Sequence[Row]) -> Drawing:
    at = moments(rows)
    figure, single = new_axes(11.5, 8.2)
    single.remove()
    panels = figure.subplots(len(PANELS), len(FRACTIONS), sharex=True, sharey="col")
    words = []
    for row, (activation, layer) in enumerate(PANELS):
        for column, fraction in enumerate(FRACTIONS):
            axes = panels[row, column]
            for score in SCORES:
                if layer == DENSE and score.startswith(MEASURED):
                    continue
                found = change(rows, activation=activation, layer=layer, score=score, fraction=fraction)
                middle = found.mean(axis=0)
                axes.plot(at, middle, label=score, **LOOKS[score])
                words.append(f"{activation}, {layer}, {fraction:g}, {score}: {middle[-1]:+.4f} at the end")
            if row == 0:
                axes.set_title(f"{fraction:g} pruned", fontsize=9)
            _symlog(axes, LINEAR if fraction > 0.1 else LINEAR / 10)
            axes.axhline(0, color=BLACK, linewidth=0.8)
        panels[row, 0].set_ylabel(f"{activation}, {layer}\nchange of the loss")
    for axes in panels[-1]:
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(FixedLocator([0, at[-1] // 2, at[-1]]))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    caption = (
        f"Change of the loss on the validation images when a fraction of one layer's weights is set to zero, by the "
        f"score that chooses them, undone after each look. Means over {seeds_of(rows)} seeds. Signed scores dotted, "
        "absolute values solid. Scales differ by column and are linear around zero."
    )
    return Drawing(figure, "What the loss would be without some weights", caption, "; ".join(words) + ".")


def _symlog(axes: Any, linear: float) -> None:
    axes.set_yscale("symlog", linthresh=linear, linscale=0.5)
    steps = [step * 10.0**power for power in range(-4, 2) for step in (1, 3) if step * 10.0**power >= linear]
    axes.yaxis.set_major_locator(FixedLocator([*(-step for step in steps), 0, *steps]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _scores(rows: Sequence[Row]) -> Drawing:
    at = moments(rows)
    figure, single = new_axes(11.5, 6.2)
    single.remove()
    panels = figure.subplots(2, 3, sharex=True, sharey="col")
    words = []
    for row, activation in enumerate(ACTIVATIONS):
        negative, rank, joint = panels[row]
        for score in (MEASURED, "taylor1", "taylor2"):
            found = grid(rows, "share", kind="negative", activation=activation, layer=FIRST, score=score)
            negative.plot(at, (100 * found).mean(axis=0), label=score, **LOOKS[score])
            words.append(f"{activation}, {score}: {found.mean():.0%} negative")
        for score in TAYLOR:
            found = ranks(rows, activation, score)
            rank.plot(at, found.mean(axis=0), label=score, **LOOKS[score])
            words.append(f"{activation}, {score}: rank correlation {found.mean():.2f}")
        for score in (MEASURED, f"{MEASURED}_abs", "magnitude", "random"):
            found = dependency(rows, activation, score=score)
            joint.plot(at, found.mean(axis=0), label=score, **LOOKS[score])
            words.append(f"{activation}, {score}: {found.mean():+.4f} more together than one by one")
        negative.axhline(35, color=BLACK, linewidth=0.8, linestyle=":")
        joint.axhline(0, color=BLACK, linewidth=0.8)
        negative.set_ylabel(f"{activation}\n% of {FIRST}'s weights")
        if row == 0:
            negative.set_title("score below zero", fontsize=9)
            rank.set_title("rank correlation with the measured change", fontsize=9)
            joint.set_title("5 % pruned: together less one by one", fontsize=9)
    for axes in panels[1]:
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(FixedLocator([0, at[-1] // 2, at[-1]]))
    handles = {
        label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    caption = (
        f"Of the {FIRST} layer's weights. Left: how many have a score below zero (dotted: the thesis's 35 %). Middle: "
        "Spearman's correlation of the approximations with the measured change. Right: how much more the loss changes "
        f"with 5 % of the weights gone together than in the sum of one by one. Means over {seeds_of(rows)} seeds."
    )
    return Drawing(figure, "What scores of single weights say", caption, "; ".join(words) + ".")


def _schedule(rows: Sequence[Row]) -> Drawing:
    figure, single = new_axes(11.5, 3.9)
    single.remove()
    losses, points, sizes = figure.subplots(1, 3, width_ratios=(1, 0.7, 1.2))
    test, words = ends(rows), []
    colours = {UNPRUNED: BLACK, COMPACTED: COLOURS[0], "random": GREY}
    for number, (arm, values) in enumerate(test.items()):
        curve = np.array([row["train_losses"] for row in rows if row["kind"] == "arm" and row["arm"] == arm])
        losses.plot(np.arange(1, curve.shape[1] + 1), curve.mean(axis=0), label=arm, color=colours[arm])
        place = number + np.linspace(-0.12, 0.12, len(values))
        points.plot(place, 100 * values, linestyle="", marker="o", markersize=4, color=colours[arm])
        points.plot([number - 0.25, number + 0.25], [100 * values.mean()] * 2, color=colours[arm])
        words.append(f"{arm}: {values.mean():.2%}")
    log_scale(losses.yaxis, np.concatenate([line.get_ydata() for line in losses.lines]), lambda value: f"{value:g}")
    losses.set(xlabel="epoch", ylabel="training loss of the epoch")
    losses.legend()
    points.set_xticks(range(len(test)), list(test), rotation=20)
    points.set_ylabel("test accuracy, %")
    points.grid(axis="x", visible=False)
    dense = [compact(rows, "dense", f_nz) for f_nz in F_NZ]
    accuracy = [100 * compact(rows, "test", f_nz) for f_nz in F_NZ]
    whole = float(grid(rows, "parameters", kind="arm", arm=UNPRUNED).mean())
    sizes.errorbar(
        F_NZ, [d.mean() for d in dense], [float(half_interval(d)) for d in dense], color=COLOURS[0], marker="o",
        markersize=4, capsize=2,
    )  # fmt: skip
    sizes.axhline(whole, color=COLOURS[0], linestyle="--", linewidth=1)
    sizes.set(xlabel="f_nz", ylim=(0, 1.06 * whole))
    sizes.set_ylabel("parameters after compaction", color=COLOURS[0])
    other = sizes.twinx()
    other.grid(visible=False)
    other.spines["right"].set_visible(True)
    other.errorbar(
        F_NZ, [a.mean() for a in accuracy], [float(half_interval(a)) for a in accuracy], color=COLOURS[1], marker="s",
        markersize=4, capsize=2, linestyle="-.",
    )  # fmt: skip
    other.set_ylabel("test accuracy, %", color=COLOURS[1])
    words += [
        f"f_nz {f:g}: {d.mean():,.0f} parameters, {a.mean():.2f} %"
        for f, d, a in zip(F_NZ, dense, accuracy, strict=True)
    ]
    caption = (
        "Left: mean training loss by epoch. Middle: test accuracy of every seed, a line for the mean. Right: the "
        "network pruned by magnitude, without the units that have at most a fraction f_nz of nonzero incoming or "
        "outgoing weights: parameters that are left (zeros included; dashed: before), test accuracy; means, bars: 95 % "
        "intervals."
    )
    return Drawing(figure, "Pruning by schedule, then compaction", caption, "; ".join(words) + ".")
