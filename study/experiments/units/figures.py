"""Figures: the loss change over training, what replacements are worth, rank correlations."""

from __future__ import annotations

from typing import Any

import numpy as np

from network_surgery.study.bench.panels import Panels, looks, over_training, symmetric_scale
from network_surgery.study.bench.rows import Rows
from network_surgery.study.evidence.drawing import BLACK, COLOURS, MARKERS, Drawing
from network_surgery.study.experiments.evci_page import ACTIVATIONS, cost
from network_surgery.study.experiments.units.measure import HALF, LAYERS, LEFT, RESTART, SCORES

LOOKS = looks(SCORES, dotted=("l1_in", "l2_in"), grey=("random",))
ARM_LOOKS = LOOKS | {RESTART: {"color": COLOURS[3]}}


def changes(rows: Rows) -> Drawing:
    """The change of the loss over training by every score."""
    shown = [*((layer, HALF) for layer in LAYERS), (LAYERS[-1], 0.2)]
    columns = {f"{layer}, {part:g} removed": {"layer": layer, "fraction": part} for layer, part in shown}
    lines = {each: {"kind": "change", "replacement": "mean", "activation": each} for each in ACTIVATIONS}
    panels = over_training(
        rows, "change", "score", lines, columns, LOOKS, (11.5, 6.0), "change of the loss", sharey=True
    )
    symmetric_scale(panels.axes[0, 0], 0.01)
    return panels.drawing("What the loss would be without some units", "iteration", rows.moments())


def replacements(rows: Rows) -> Drawing:
    """What a removal costs by what takes the units' place."""
    panels = Panels([""], ACTIVATIONS, (10.5, 4.6), "change of the loss, half of the units gone", sharey=True)
    for activation in ACTIVATIONS:
        for number, left in enumerate(LEFT):
            which: dict[str, Any] = {"replacement": left, "activation": activation, "score": "mrs", "fraction": HALF}
            values = [cost(rows, [layer], **which) for layer in LAYERS]
            look = {"color": (BLACK, *COLOURS)[number], "marker": MARKERS[number], "linestyle": "", "markersize": 6}
            panels.intervals("", activation, np.arange(len(LAYERS)) + (number - 2) * 0.14, values, left, look)
        panels["", activation].set_xticks(range(len(LAYERS)), LAYERS)
    symmetric_scale(panels["", activation], 0.03)
    return panels.drawing("What takes the place of removed units")


def ranks(rows: Rows) -> Drawing:
    """Spearman's correlation with MRP over training."""
    lines = {each: {"kind": "rank", "activation": each} for each in ACTIVATIONS}
    columns = {layer: {"layer": layer} for layer in LAYERS}
    panels = over_training(
        rows, "rho", "score", lines, columns, LOOKS, (10.5, 5.6), "rank correlation with MRP", sharey=True
    )
    return panels.drawing("How scores order units, compared with MRP", "iteration", rows.moments())
