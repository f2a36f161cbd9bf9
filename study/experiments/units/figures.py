"""Figures: the loss change over training, what replacements are worth, rank correlations, the schedule and its maps."""

from __future__ import annotations

from collections.abc import Sequence

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
from network_surgery.study.experiments.units.claims import HALF, LAYERS, change, ends
from network_surgery.study.experiments.units.looks import LEFT, SCORES
from network_surgery.study.experiments.units.schedule import RESTART, UNPRUNED

ACTIVATIONS = ("ReLU", "tanh")
#: Below this change of the loss the scale is linear, so that negative changes have a place.
LINEAR = 0.02
LOOKS: dict[str, Look] = {
    score: {"color": colour, "marker": MARKERS[at], "markersize": 3.5, "linewidth": 1.3, "linestyle": line}
    for at, (score, colour, line) in enumerate(
        zip(
            SCORES,
            (*COLOURS[:2], COLOURS[2], COLOURS[2], COLOURS[3], COLOURS[3], *COLOURS[4:6], GREY),
            ("-", "-", "-", ":", "-", ":", "--", "--", "-."),
            strict=True,
        )
    )
}


def draw(rows: Sequence[Row]) -> dict[str, Drawing]:
    """The figures by their names."""
    with style.context(["default", STYLE]):
        figures = {
            "units": _changes(rows),
            "units_replacement": _replacements(rows),
            "units_ranks": _ranks(rows),
            "units_schedule": _schedule(rows),
        }
    maps = {row["arm"]: row["maps"] for row in rows if row["kind"] == "map" and row["seed"] == 0}
    pair = {UNPRUNED: maps[UNPRUNED], "pruned by MRS": maps["mrs"]}
    return figures | {"units_maps": magnitude_maps.draw(pair, "Sizes of weights with and without pruning of units")}


def moments(rows: Sequence[Row]) -> list[int]:
    """The iterations at which networks were looked at."""
    return sorted({row["iteration"] for row in rows if row["kind"] == "loss"})


def _changes(rows: Sequence[Row]) -> Drawing:
    at = moments(rows)
    shown = [(layer, HALF) for layer in LAYERS] + [(LAYERS[-1], 0.2)]
    figure, single = new_axes(11.5, 6.0)
    single.remove()
    panels = figure.subplots(2, len(shown), sharex=True, sharey=True)
    words = []
    for row, activation in enumerate(ACTIVATIONS):
        for column, (layer, fraction) in enumerate(shown):
            axes = panels[row, column]
            for score in SCORES:
                found = change(rows, activation=activation, layer=layer, score=score, fraction=fraction)
                middle = found.mean(axis=0)
                axes.plot(at, middle, label=score, **LOOKS[score])
                words.append(f"{activation}, {layer}, {fraction:g}, {score}: {middle[-1]:+.3f} at the end")
            axes.set_title(f"{layer}, {fraction:g} removed" if row == 0 else "", fontsize=9)
            _symlog(axes)
        panels[row, 0].set_ylabel(f"{activation}\nchange of the loss")
    for axes in panels[1]:
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(FixedLocator([0, at[-1] // 2, at[-1]]))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    seeds = len({row["seed"] for row in rows if row["kind"] == "loss"})
    caption = (
        f"Change of the loss on some training images when a fraction of one layer's units goes, by the score that "
        f"chooses them (mean after the activation left behind), undone after each look. Means over {seeds} seeds. "
        f"The scale is linear below {LINEAR:g}."
    )
    return Drawing(figure, "What the loss would be without some units", caption, "; ".join(words) + ".")


def _symlog(axes) -> None:  # type: ignore[no-untyped-def]
    axes.set_yscale("symlog", linthresh=LINEAR, linscale=0.5)
    ticks = (-0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _replacements(rows: Sequence[Row]) -> Drawing:
    at = moments(rows)
    figure, single = new_axes(10.5, 4.6)
    single.remove()
    panels = figure.subplots(1, 2, sharey=True)
    words, shown = [], []
    for axes, activation in zip(panels, ACTIVATIONS, strict=True):
        for number, replacement in enumerate(LEFT):
            middles, halves = [], []
            for layer in LAYERS:
                found = change(rows, replacement=replacement, activation=activation, layer=layer, score="mrs")
                found = found.mean(axis=1)
                middles.append(float(found.mean()))
                halves.append(float(half_interval(found)))
                words.append(f"{activation}, {layer}, {replacement}: {middles[-1]:+.3f}")
            places = np.arange(len(LAYERS)) + (number - 2) * 0.14
            axes.errorbar(
                places, middles, halves, label=replacement, color=(BLACK, *COLOURS)[number], marker=MARKERS[number],
                linestyle="", capsize=2, markersize=6,
            )  # fmt: skip
            shown += [max(m - h, 0.02) for m, h in zip(middles, halves, strict=True)]
            shown += [m + h for m, h in zip(middles, halves, strict=True)]
        axes.set_xticks(range(len(LAYERS)), LAYERS)
        axes.set_title(activation)
        axes.grid(axis="x", visible=False)
    log_scale(panels[0].yaxis, shown, lambda value: f"{value:g}")
    panels[0].set_ylabel("change of the loss, half of the units gone")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    seeds = len({row["seed"] for row in rows if row["kind"] == "loss"})
    caption = (
        f"Half of a layer's units go, those of the lowest MRS (of the same replacement). Means over {len(at)} looks "
        f"and {seeds} seeds, bars: 95 % intervals over seeds. none: no bias propagation."
    )
    return Drawing(figure, "What is left behind in the next bias", caption, "; ".join(words) + ".")


def _ranks(rows: Sequence[Row]) -> Drawing:
    at = moments(rows)
    figure, single = new_axes(10.5, 5.6)
    single.remove()
    panels = figure.subplots(2, len(LAYERS), sharex=True, sharey=True)
    words = []
    for row, activation in enumerate(ACTIVATIONS):
        for column, layer in enumerate(LAYERS):
            axes = panels[row, column]
            for score in SCORES[1:-1]:
                found = grid(rows, "rho", kind="rank", activation=activation, layer=layer, score=score)
                axes.plot(at, found.mean(axis=0), label=score, **LOOKS[score])
                words.append(f"{activation}, {layer}, {score}: {found.mean():.2f}")
            axes.set_title(layer if row == 0 else "")
        panels[row, 0].set_ylabel(f"{activation}\nrank correlation with MRP")
    for axes in panels[1]:
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(FixedLocator([0, at[-1] // 2, at[-1]]))
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    seeds = len({row["seed"] for row in rows if row["kind"] == "loss"})
    caption = f"Spearman's correlation of each score with the mean replacement penalty (MRP). Means over {seeds} seeds."
    return Drawing(figure, "How scores order units, compared with MRP", caption, "; ".join(words) + ".")


def _schedule(rows: Sequence[Row]) -> Drawing:
    trainings = list(dict.fromkeys(row["training"] for row in rows if row["kind"] == "arm"))
    figure, single = new_axes(11.0, 3.9 * len(trainings))
    single.remove()
    panels = figure.subplots(len(trainings), 2, squeeze=False, width_ratios=(1, 1))
    words = []
    for row, training in enumerate(trainings):
        axes, points = panels[row]
        test = ends(rows, training)
        looks = {UNPRUNED: {"color": BLACK, "linestyle": "-"}, RESTART: {"color": COLOURS[3], "linestyle": "-."}} | {
            score: {"color": LOOKS[score]["color"], "linestyle": "-"} for score in SCORES
        }
        looks["random"] = {"color": GREY, "linestyle": "-"}
        for arm in test:
            if arm in (UNPRUNED, "mrs", "random", RESTART):
                losses = np.array([
                    each["train_losses"] for each in rows
                    if each["kind"] == "arm" and each["training"] == training and each["arm"] == arm
                ])  # fmt: skip
                epochs = np.arange(1, losses.shape[1] + 1)
                axes.plot(epochs, losses.mean(axis=0), label=arm, **looks[arm])
        log_scale(axes.yaxis, np.concatenate([line.get_ydata() for line in axes.lines]), lambda value: f"{value:g}")
        axes.set(xlabel="epoch", ylabel="training loss of the epoch", title=training)
        axes.legend()
        for number, (arm, values) in enumerate(test.items()):
            place = np.full(len(values), float(number)) + np.linspace(-0.12, 0.12, len(values))
            points.plot(place, 100 * values, linestyle="", marker="o", markersize=4, color=looks[arm]["color"])
            points.plot([number - 0.25, number + 0.25], [100 * values.mean()] * 2, color=looks[arm]["color"])
            words.append(f"{training}, {arm}: {values.mean():.2%}")
        points.set_xticks(range(len(test)), list(test), rotation=30, ha="right")
        points.set(ylabel="test accuracy, %")
        points.grid(axis="x", visible=False)
    caption = (
        "Left: mean training loss by epoch. Right: test accuracy of every seed at the end, a line for the mean. All "
        "arms but the unpruned one end with the same sizes; restart: these sizes from fresh weights."
    )
    return Drawing(figure, "The schedule against the unpruned network", caption, "; ".join(words) + ".")
