"""The figures of the isolation study: the thesis's 4.1 and 4.2 with bands, and the same for trained layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from network_surgery.study.evidence.drawing import (
    BLACK,
    COLOURS,
    GREY,
    STYLE,
    VERMILLION,
    Drawing,
    Look,
    as_percent,
    percent,
)
from network_surgery.study.experiments.isolation.curves import (
    GROWTHS,
    MEAN_VARIANCE,
    MIN_WEIGHT,
    PIVOTED,
    RANDOM_REMOVE,
    RANKS,
    REPLACED,
    WEIGHTS,
    Curves,
    eigen,
)

#: One hue for EigenRemove, darker for higher ranks; every curve has its own marker too.
BLUES = dict(zip(RANKS, ("#08306b", "#2171b5", "#4f9bd0", "#7fbbe0", "#93c7e8", "#a9d3ef"), strict=True))
RANK_MARKERS = dict(zip(RANKS, ("o", "s", "^", "D", "h", "v"), strict=True))
LOOKS: dict[str, Look] = {
    REPLACED: {"color": VERMILLION, "linestyle": (0, (1, 1.2)), "marker": "x"},
    RANDOM_REMOVE: {"color": GREY, "linestyle": (0, (4, 2)), "marker": "P"},
    MEAN_VARIANCE: {"color": COLOURS[3], "linestyle": "-", "marker": "<"},
    PIVOTED: {"color": COLOURS[2], "linestyle": "-", "marker": ">"},
    **{
        eigen(rank, weights): {"color": BLUES[rank], "linestyle": "-", "marker": RANK_MARKERS[rank]}
        for weights in WEIGHTS
        for rank in RANKS
    },
    MIN_WEIGHT: {"color": BLACK, "linestyle": (0, (1, 2.5)), "marker": "+", "markersize": 8},
    "WeakExpand, equal": {"color": COLOURS[0], "linestyle": "-", "marker": "o"},
    "WeakExpand, uneven": {"color": COLOURS[4], "linestyle": "--", "marker": "s"},
    "WeakExpand, signed": {"color": COLOURS[2], "linestyle": "-.", "marker": "^"},
    "ZeroExpand": {"color": BLACK, "linestyle": (0, (1, 2.5)), "marker": "+"},
}
#: Layers that the figure of trained layers shows at most; the report's tables and JSON have all.
MOST_LAYERS = 4


def shrinking(curves: Curves) -> Drawing:
    """The thesis's figure 4.1, for both forms of EigenRemove."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(8.4, 7.0), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True, sharey="row")
        for weights, (above, below) in zip(WEIGHTS, panels.T, strict=True):
            for method in _shown(weights):
                _curve(above, curves, method)
                if method.startswith(("EigenRemove", RANDOM_REMOVE)) and method != eigen(1.0):
                    _curve(below, curves, method, than=MIN_WEIGHT)
            above.set_title(f"EigenRemove keeps the {weights} weights", fontsize=10)
            above.set_ylim(0, None)
            below.axhline(0, **LOOKS[MIN_WEIGHT] | {"marker": "", "linewidth": 1.4})
            below.set_yscale("symlog", linthresh=0.01, linscale=0.9)
            below.yaxis.set_major_locator(FixedLocator([-0.01, 0, 0.01, 0.1, 1]))
            below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
            below.yaxis.set_minor_locator(NullLocator())
            below.set_xlabel("hidden units left")
        panels[0, 0].invert_xaxis()
        panels[0, 0].set_ylabel("squared distance of the output,\nrelative to its squared norm")
        panels[1, 0].set_ylabel("the same, compared with MinWeight\n(paired; linear below 0.01)")
        _legend(figure, panels[0])
    caption = (
        f"One hidden layer of {curves.units} random tanh units, shrunk (to the right) by each method: the squared "
        f"distance of the output before and after, over its squared norm; below, what lies between EigenRemove or "
        f"random removal and MinWeight on the same network. Mean over {curves.n} networks; bands, many narrower than "
        "the lines, are one standard deviation. EigenRemove at full rank and MinWeight coincide."
    )
    at = curves.nearest(0.5)
    return Drawing(figure, "Shrinking a layer of random weights", caption, _words(curves, at))


def growing(curves: Curves) -> Drawing:
    """The thesis's figure 4.2; its zeros are rounding."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        panel = figure.subplots()
        for method in (REPLACED, *GROWTHS):
            _curve(panel, curves, method)
        panel.set_yscale("symlog", linthresh=1e-16, linscale=0.6)
        panel.set_ylim(-3e-17, 30)
        panel.yaxis.set_major_locator(FixedLocator([0, *(10.0**power for power in range(-16, 1, 4))]))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value else "0"))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set(xlabel="hidden units after growing", ylabel="squared distance of the output,\nrelative to its norm²")
        _legend(figure, [panel], beside=True)
    caption = (
        f"The same layer of {curves.units} units grown by each method. Mean over {curves.n} networks, bands of one "
        "standard deviation. Logarithmic, with zero at the foot: what is left of WeakExpand is rounding of single "
        "precision."
    )
    return Drawing(figure, "Growing a layer of random weights", caption, _words(curves, 0))


def trained(curves: Sequence[Curves]) -> Drawing:
    """A column a layer: the distance for both forms of EigenRemove, and the accuracy right after."""
    chosen = np.linspace(0, len(curves) - 1, min(MOST_LAYERS, len(curves))).round().astype(int)
    shown = [curves[i] for i in chosen]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(max(6.0, 1.2 + 2.6 * len(shown)), 8.2), layout="constrained")
        axes = figure.subplots(3, len(shown), squeeze=False, sharey="row")
        for layer, column in zip(shown, axes.T, strict=True):
            for panel, weights in zip(column, (*WEIGHTS, "original"), strict=True):
                accuracy = panel is column[2]
                for method in _shown(weights):
                    _curve(panel, layer, method, accuracy)
                panel.set_xlim(layer.units, 0)
                panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
                if accuracy:
                    panel.set(xlabel="units left", ylim=(0, 1.02))
                    panel.yaxis.set_major_formatter(as_percent)
                else:
                    panel.set_yscale("symlog", linthresh=1e-3, linscale=0.5)
                    panel.set_ylim(0, 6)
                    panel.yaxis.set_major_locator(FixedLocator([0, 0.001, 0.01, 0.1, 1]))
                    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                    panel.yaxis.set_minor_locator(NullLocator())
            column[0].set_title(f"{layer.where} ({layer.units} units)")
        axes[0, 0].set_ylabel("relative squared distance\n(original weights kept)")
        axes[1, 0].set_ylabel("relative squared distance\n(reduced weights kept)")
        axes[2, 0].set_ylabel("accuracy right after\n(original weights kept)")
        _legend(figure, axes[0])
    left = "" if len(shown) == len(curves) else f" {len(shown)} of {len(curves)} layers."
    caption = (
        f"Each hidden layer of the trained network alone, shrunk (to the right) by each method: the squared distance "
        f"of the logits on validation images over their squared norm (logarithmic, linear below 0.001), and the "
        f"accuracy right after. Mean over {shown[0].n} trainings; bands are one standard deviation.{left}"
    )
    words = " ".join(f"{layer.where}, {_words(layer, layer.nearest(0.5))}" for layer in shown)
    return Drawing(figure, "Shrinking trained layers", caption, words)


def _shown(weights: str) -> list[str]:
    """What a panel shows, from the back to the front."""
    return [
        REPLACED, RANDOM_REMOVE, *(eigen(rank, weights) for rank in RANKS), MIN_WEIGHT, MEAN_VARIANCE, PIVOTED,
    ]  # fmt: skip


def _curve(panel: Axes, curves: Curves, method: str, accuracy: bool = False, than: str | None = None) -> None:
    """One method's mean and band; ``than``: in difference from another one."""
    found = (curves.accuracy if accuracy else curves.relative).get(method)
    if found is None:
        return
    if than is not None:
        found = found - curves.relative[than]
    mean, deviation = found.mean(axis=0), found.std(axis=0, ddof=1) if len(found) > 1 else 0 * found[0]
    look = {"markersize": 4.5, "linewidth": 1.4, **LOOKS[method]}
    panel.plot(curves.sizes, mean, label=method.removesuffix(", reduced"), **look)
    low = mean - deviation if than else np.maximum(mean - deviation, 0)
    panel.fill_between(curves.sizes, low, mean + deviation, color=look["color"], alpha=0.1, linewidth=0)


def _legend(figure: Figure, panels: Sequence[Axes], beside: bool = False) -> None:
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    look: Look = {"loc": "outside right center", "ncols": 1} if beside else {"loc": "outside lower center", "ncols": 4}
    figure.legend(list(handles.values()), list(handles), handlelength=3.2, **look)


def _words(curves: Curves, at: int) -> str:
    found = "; ".join(f"{method} {percent(values[:, at].mean())}" for method, values in curves.relative.items())
    return f"relative squared distance at {curves.sizes[at]} of {curves.units} units: {found}."
