"""The figure: accuracy compared with the network that is left alone, by removal and chain of repairs."""

from __future__ import annotations

import numpy as np
from matplotlib import style

from network_surgery.study.evidence.drawing import BLACK, COLOURS, MARKERS, STYLE, Drawing, Look, new_axes
from network_surgery.study.evidence.significance import half_interval
from network_surgery.study.experiments.repairs.arms import ARMS, CHAINS, NOTHING, REMOVALS, Found

LINES = (":", "--", "-.", "-", (0, (4, 1, 1, 1, 1, 1)), "-")
COLOUR = (BLACK, *COLOURS)
LOOKS: dict[str, Look] = {
    chain: {"color": COLOUR[at], "linestyle": LINES[at], "marker": MARKERS[at], "markersize": 4.5}
    for at, chain in enumerate(CHAINS)
}


def draw(found: Found) -> Drawing:
    """Differences to the network that is left alone: all of them above, what is left after the first epoch below."""
    base = 100 * found[NOTHING]["accuracy"]
    n, moments = base.shape
    at = np.arange(moments)
    words = []
    with style.context(["default", STYLE]):
        figure, single = new_axes(2.5 * len(REMOVALS) + 0.6, 6.2)
        single.remove()
        panels = figure.subplots(2, len(REMOVALS), sharex="col", sharey="row", squeeze=False)
        first, later = [0.0], [0.0]
        for column, removal in enumerate(REMOVALS):
            chains = [chain for name, chain in ARMS if name == removal]
            for chain in chains:
                gains = 100 * found[removal, chain]["accuracy"] - base
                middle, half = gains.mean(axis=0), half_interval(gains)
                for panel in panels[:, column]:
                    panel.plot(at, middle, label=chain, **LOOKS[chain])
                    if chain in (chains[0], chains[-1]):
                        low, high = middle - half, middle + half
                        panel.fill_between(at, low, high, color=LOOKS[chain]["color"], alpha=0.15, linewidth=0)
                first += [*middle]
                later += [*middle[1:]]
                words.append(f"{removal}, {chain}: {middle[0]:+.1f} points right after, {middle[-1]:+.1f} at the end")
            panels[0, column].set_title(removal)
            for panel in panels[:, column]:
                panel.axhline(0, color=BLACK, linewidth=0.8)
            panels[1, column].set(xlabel="epochs after the cut", xlim=(-0.1, moments - 0.9))
        for panel, values in zip(panels[:, 0], (first, later), strict=True):
            panel.set_ylim(min(values) - 2, max(values) + 2)
        for panel, told in zip(panels[:, 0], ("", " (enlarged)"), strict=True):
            panel.set_ylabel(f"validation accuracy −\nno operation, points{told}")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    caption = (
        f"Means over {n} seeds; bands are 95 % intervals of the difference, paired by seed, for the first and the last "
        "chain of each removal. 0 is the network that is left alone, on the same batches; epoch 0 is right after the "
        "cut. Below, the same, enlarged."
    )
    return Drawing(figure, "What repairs are worth", caption, "; ".join(words) + ".")
