"""The figure: validation accuracy against seconds, and test accuracy against size."""

from __future__ import annotations

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from network_surgery.study.evidence.drawing import (
    BLACK,
    BLUE,
    STYLE,
    VERMILLION,
    Drawing,
    Look,
    accuracy_scale,
    log_scale,
    new_axes,
    percent,
)  # fmt: skip
from network_surgery.study.evidence.significance import half_interval
from network_surgery.study.experiments.claims.arms import (
    EARLY,
    FINAL,
    LATE,
    ORIGINAL,
    PRUNED,
    RANDOM,
    REFITTED,
    RESTART,
    SURGERY,
    THRESHOLDS,
    TICKS,
    Found,
)  # fmt: skip
from network_surgery.study.experiments.claims.verdicts import arms_of, chosen, curves, settings_of, values

LOOKS: dict[str, Look] = {
    ORIGINAL: {"color": BLACK, "linestyle": ":", "marker": "o"},
    SURGERY: {"color": BLUE, "linestyle": "-", "marker": "s"},
    RESTART: {"color": VERMILLION, "linestyle": "--", "marker": "^"},
    PRUNED: {"color": "#009E73", "linestyle": "-.", "marker": "D"},
    LATE: {"color": "#56B4E9", "linestyle": (0, (3, 1)), "marker": "v"},
    REFITTED: {"color": "#CC79A7", "linestyle": (0, (5, 1, 1, 1)), "marker": "P"},
    RANDOM: {"color": "#E69F00", "linestyle": (0, (1, 2)), "marker": "X"},
}
#: The arms whose intervals are drawn in the race: seven bands would hide each other.
BANDS = (ORIGINAL, SURGERY, RESTART, PRUNED)


def draw(found: Found) -> Drawing:
    """A row for each network: the race at the chosen threshold, and the ends of all thresholds."""
    settings = settings_of(found)
    n = len(found[settings[0], None, ORIGINAL])
    words: list[str] = []
    with style.context(["default", STYLE]):
        figure, single = new_axes(10.5, 3.6 * len(settings) + 0.6)
        single.remove()
        panels = figure.subplots(len(settings), 2, squeeze=False)
        for row, setting in enumerate(settings):
            words += _race(panels[row, 0], found, setting)
            _ends(panels[row, 1], found, setting)
        panels[-1, 0].set_xlabel("CPU seconds, operations included")
        panels[-1, 1].set_xlabel("parameters at the end / the original's")
        handles, labels = panels[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    caption = (
        f"Means over {n} seeds; bars, and bands for four of the arms, are 95 % intervals. Left: validation accuracy at "
        "the threshold chosen on validation images; grey lines mark PCNS's moment and that of shrinking a trained "
        "network. Right: test accuracy of every arm at the end of the same seconds, for the thresholds "
        f"{', '.join(map(str, THRESHOLDS))} (from left to right); the dotted line is the original."
    )
    return Drawing(figure, "PCNS at equal seconds", caption, "; ".join(words) + ".")


def _race(axes: Axes, found: Found, setting: str) -> list[str]:
    threshold = chosen(found, setting)
    arms = arms_of(found, setting, threshold)
    budget = float(values(arms[ORIGINAL], "budget").mean())
    seconds = budget * np.arange(TICKS + 1) / TICKS
    words, shown = [], []
    for arm, look in LOOKS.items():
        lines = curves(arms[arm])
        mean, half = lines.mean(axis=0), half_interval(lines)
        axes.plot(seconds, mean, label=arm, **(look | {"marker": None}))
        if arm in BANDS:
            axes.fill_between(seconds, mean - half, mean + half, color=look["color"], alpha=0.14, linewidth=0)
        shown.append(mean[-1])
        words.append(f"{setting}, {arm}: {mean[-1]:.2%} at the end")
    start = curves(arms[ORIGINAL]).mean(axis=0)[TICKS // 8]
    accuracy_scale(axes, [*shown, start, max(shown) + 0.2 * (1 - max(shown))])
    for moment in (EARLY, FINAL):
        axes.axvline(moment * budget, color="#bbbbbb", linewidth=1, zorder=0)
    axes.set(xlim=(0, budget), ylabel="validation accuracy")
    axes.set_title(f"{setting}, threshold {threshold:g}")
    return words


def _ends(axes: Axes, found: Found, setting: str) -> None:
    original = found[setting, None, ORIGINAL]
    whole = original[0].parameters
    level = values(original, "test")
    shares, heights = [1.0], [float(level.mean())]
    axes.axhline(level.mean(), label=ORIGINAL, color=BLACK, linestyle=":")
    half = float(half_interval(level))
    axes.axhspan(level.mean() - half, level.mean() + half, color=BLACK, alpha=0.08, linewidth=0)
    for place, (arm, look) in enumerate(list(LOOKS.items())[1:]):
        ends = [found[setting, threshold, arm] for threshold in THRESHOLDS]
        share = np.array([values(end, "parameters").mean() / whole for end in ends])
        tests = [values(end, "test") for end in ends]
        means, halves = np.array([each.mean() for each in tests]), np.array([half_interval(each) for each in tests])
        aside = 1.03 ** (place - 2.5)  # six arms at one size would hide each other
        axes.errorbar(share * aside, means, halves, label=arm, markersize=5, elinewidth=1, **look)
        shares += list(share)
        heights += list(means)
    log_scale(axes.xaxis, shares, percent)
    accuracy_scale(axes, heights)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(ylabel="test accuracy")
