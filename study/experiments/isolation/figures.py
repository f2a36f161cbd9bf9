"""How far each removal moves the output, by the size that a layer is left with: the thesis's figure 4.1, and more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from network_surgery.study.bench.panels import Panels, symmetric_scale
from network_surgery.study.evidence.drawing import BLACK, COLOURS, GREY, VERMILLION, Drawing, Look, as_percent
from network_surgery.study.experiments.isolation import curves
from network_surgery.study.experiments.isolation.curves import RANKS, Layer, eigen

#: One hue for EigenRemove, darker for higher ranks.
BLUES = ("#08306b", "#2171b5", "#4f9bd0", "#7fbbe0", "#93c7e8", "#a9d3ef")
#: What a panel shows, from the back to the front.
LOOKS: dict[str, Look] = {
    curves.REPLACED: {"color": VERMILLION, "linestyle": ":", "marker": "x"},
    curves.RANDOM_REMOVE: {"color": GREY, "linestyle": "--", "marker": "P"},
    **{eigen(rank): {"color": BLUES[at], "marker": "os^Dhv"[at]} for at, rank in enumerate(RANKS)},
    curves.MIN_WEIGHT: {"color": BLACK, "linestyle": (0, (1, 2.5)), "marker": "+", "markersize": 8},
    curves.MEAN_VARIANCE: {"color": COLOURS[3], "marker": "<"},
    curves.PIVOTED: {"color": COLOURS[2], "marker": ">"},
}
#: Each line of panels, the end of EigenRemove's name there, and what is shown.
LINES = {
    "original weights kept": ("", "relative"), "reduced weights kept": (", reduced", "relative"),
    "original weights kept, accuracy": ("", "accuracy"),
}  # fmt: skip


def shrinking(layers: Sequence[Layer]) -> Drawing:
    """A column for each layer; of many layers for four, evenly spread."""
    chosen = np.linspace(0, len(layers) - 1, min(4, len(layers))).round().astype(int)
    columns = {f"{layers[at].where} ({layers[at].units} units)": layers[at] for at in chosen}
    panels = Panels(list(LINES), list(columns), (1.2 + 2.6 * len(columns), 8.2), sharey="row")
    for column, layer in columns.items():
        for line, (end, field) in LINES.items():
            axes, known = panels[line, column], getattr(layer, field)
            for name, look in LOOKS.items():
                values = known.get(name + end if name + end in known else name)
                if values is not None:
                    middle, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
                    axes.fill_between(layer.sizes, middle - spread, middle + spread, color=look["color"], alpha=0.1)
                    panels.curve(line, column, layer.sizes, values, name, {"markersize": 4, "linewidth": 1.3} | look)
            axes.set_xlim(layer.units, 0)
            axes.set_visible(bool(known))
            if field == "accuracy":
                axes.set_ylim(0, 1.02)
                axes.yaxis.set_major_formatter(as_percent)
            else:
                symmetric_scale(axes, 0.001)
                axes.set_ylim(0, 6)
    return panels.drawing("Shrinking one layer", "units left")
