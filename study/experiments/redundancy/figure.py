"""The figure: for every network the share of its units that each layer needs, over depth, before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from network_surgery.study.evidence.drawing import STYLE, Drawing, new_axes
from network_surgery.study.experiments.redundancy.measure import SHARES, Measured

#: From the smallest share of the variance to the largest.
COLOURS = ("#9ecae1", "#56B4E9", "#0072B2", "#08306b")


def draw(found: Mapping[str, Sequence[Measured]]) -> Drawing:
    """A panel for each network; layers from first to last, means over seeds."""
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    words = []
    with style.context(["default", STYLE]):
        figure, single = new_axes(3.4 * columns, 2.7 * rows + 0.5)
        single.remove()
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for panel in panels.flat[len(found) :]:
            panel.remove()
        for panel, (name, several) in zip(panels.flat, found.items(), strict=False):
            before, after = (fractions(several, moment) for moment in ("before", "after"))
            at = np.linspace(0, 1, len(before)) if len(before) > 1 else np.array([0.5])
            size = 3.0 if len(at) < 40 else 1.5
            for number, (share, colour) in enumerate(zip(SHARES, COLOURS, strict=True)):
                panel.plot(at, before[:, number], color=colour, linestyle=":", linewidth=1.2)
                panel.plot(
                    at, after[:, number], color=colour, marker="o", markersize=size, linewidth=1.3,
                    label=f"{share:.4g} of the variance",
                )  # fmt: skip
            accuracy = np.mean([each.trained for each in several])
            panel.set_title(name)
            panel.set_title(f"{len(at)} layers, {accuracy:.0%}", loc="right", fontsize=9, fontweight="normal")
            panel.set(ylim=(-0.02, 1.02))
            panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            words.append(
                f"{name}: median layer at 0.99 {np.median(before[:, 1]):.0%} of its units untrained, "
                f"{np.median(after[:, 1]):.0%} trained"
            )
        for panel in panels[:, 0]:
            panel.set_ylabel("components / units")
        for panel in panels.flat[max(0, len(found) - columns) : len(found)]:
            panel.set_xlabel("depth (first to last hidden layer)")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    caption = (
        "Principal components that a layer's outputs need, as a share of its units, layer by layer; means over the "
        "seeds. Dotted: the untrained network; lines with points: after the training described. Above each panel: "
        "its layers and its validation accuracy."
    )
    return Drawing(figure, "Redundancy of classical networks", caption, "; ".join(words) + ".")


def fractions(several: Sequence[Measured], moment: str) -> NDArray[np.float64]:
    """``[layers, shares]``: components needed over units, ``before`` or ``after`` training; means over seeds."""
    return np.array([getattr(each, moment).fractions for each in several]).mean(axis=0)
