"""The figures of chapter 4 of the thesis (Graham 2019, 4.3 to 4.12) from a study's own results, with its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from numpy.typing import NDArray

from network_surgery.study.evidence.drawing import (
    BLACK,
    BLUE,
    GREY,
    STYLE,
    VERMILLION,
    Drawing,
    Look,
    add_title,
    as_percent,
    log_scale,
    new_axes,
    percent,
)
from network_surgery.study.experiments.thesis.chapter import NAMES, PAIRS, PRINTED, RATIOS, Results, Trainings

LOOKS: tuple[Look, Look] = (
    {"color": BLUE, "marker": "o", "linestyle": "-"},
    {"color": VERMILLION, "marker": "s", "linestyle": "--"},
)
FIGURES = {"removal": "figures 4.3 to 4.6 and 4.9", "expansion": "figures 4.7, 4.8 and 4.10 to 4.12"}


def draw(results: Results) -> dict[str, Drawing]:
    """The thesis's figures, for each pair of methods that has runs: ``thesis_removal``, ``thesis_expansion``."""
    found = Trainings(results)
    with style.context(["default", STYLE]):
        return {
            f"thesis_{name}": _draw(found, name, methods)
            for name, methods in PAIRS.items()
            if all(found.of(method, "accuracy") for method in methods)
        }


def _draw(found: Trainings, name: str, methods: tuple[str, str]) -> Drawing:
    figure, single = new_axes(10.0, 6.4)
    single.remove()
    (accuracy, factor, time), (accuracies, factors, gain) = figure.subplots(2, 3)
    at = np.arange(len(RATIOS))
    words = []
    for method, look in zip(methods, LOOKS, strict=True):
        for axes, measure in ((accuracy, "accuracy"), (factor, "factor")):
            columns = [found.of(method, measure, ratio) for ratio in RATIOS]
            _with_bars(axes, at, columns, NAMES[method], look)
            printed = {"linestyle": ":", "linewidth": 1, "markersize": 5, "markerfacecolor": "none", "alpha": 0.7}
            axes.plot(at, PRINTED[measure, method], **(look | printed))
            words.append(
                f"{NAMES[method]}, {measure}: " + ", ".join(f"{np.mean(c):.3f}" if c else "–" for c in columns)
            )
        _with_bars(time, at, [found.of(method, "share", ratio) for ratio in RATIOS], NAMES[method], look)
        for axes, measure in ((accuracies, "accuracy"), (factors, "factor")):
            axes.hist(found.of(method, measure), bins=12, color=look["color"], alpha=0.45, label=NAMES[method])
    for place, ratio in enumerate(RATIOS):
        here = found.differences(methods, "accuracy", ratio)
        gain.plot([place] * len(here), here, "o", color=GREY, markersize=4)
        if len(here):
            gain.plot([place - 0.25, place + 0.25], [np.mean(here)] * 2, color=BLACK)
    gain.axhline(0, color=BLACK, linewidth=0.8, linestyle=":")
    for axes in (accuracy, factor, time, gain):
        axes.set_xticks(at, list(RATIOS.values()))
        axes.set_xlabel("ratio kept" if name == "removal" else "ratio added")
    for axes, title in (
        (accuracy, "test accuracy"), (factor, "loss factor"), (time, "operation / epoch"),
        (accuracies, "all accuracies"), (factors, "all loss factors"), (gain, "paired difference, points"),
    ):  # fmt: skip
        axes.set_title(title)
    log_scale(time.yaxis, [share for method in methods for share in found.of(method, "share")], percent)
    for axis in (accuracy.yaxis, accuracies.xaxis):
        axis.set_major_formatter(as_percent)
    gain.yaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g}")
    accuracies.set_ylabel("training runs")
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    n = max((len(members) for members in found.values()), default=0)
    return add_title(
        figure,
        f"{NAMES[methods[0]]} against {NAMES[methods[1]]}",
        f"The thesis's {FIGURES[name]}. Points: means over at most {n} seeds, bars one standard deviation; hollow and "
        "dotted: what the thesis prints (VGG16 at full width, 50 epochs). Loss factor: training loss of the first "
        "batch after an operation / of the last before it, median over a training run's operations. Last panel: every "
        "pair of training runs of one seed and ratio, in points; the line is their mean.",
        "; ".join(words) + ".",
    )


def _with_bars(axes: Axes, at: NDArray[np.int64], columns: Sequence[Sequence[float]], label: str, look: Look) -> None:
    there = [i for i, column in enumerate(columns) if column]
    means = [float(np.mean(columns[i])) for i in there]
    bars = [float(np.std(columns[i], ddof=1)) if len(columns[i]) > 1 else 0.0 for i in there]
    axes.errorbar(at[there], means, bars, label=label, capsize=3, markersize=5, **look)
