"""Figures: the loss change over training, what scores say of themselves, compaction."""

from __future__ import annotations

import numpy as np

from network_surgery.study.bench.panels import Panels, looks, over_training, symmetric_scale
from network_surgery.study.bench.rows import Rows, Values
from network_surgery.study.evidence.drawing import BLACK, COLOURS, Drawing
from network_surgery.study.experiments.evci import UNPRUNED
from network_surgery.study.experiments.evci_page import ACTIVATIONS
from network_surgery.study.experiments.weights.measure import DENSE, F_NZ, FIRST, MEASURED, SCORES, SIGNED, TAYLOR

LOOKS = looks(SCORES, dotted=SIGNED, grey=("random",))


def changes(rows: Rows) -> Drawing:
    """The change of the loss over training by every score."""
    shown = (("ReLU", FIRST), ("tanh", FIRST), ("ReLU", DENSE))
    lines = {f"{each}, {layer}": {"kind": "change", "activation": each, "layer": layer} for each, layer in shown}
    columns = {f"{part:g} pruned": {"fraction": part} for part in (0.01, 0.05, 0.5, 0.8)}
    panels = over_training(
        rows, "change", "score", lines, columns, LOOKS, (11.5, 8.2), "change of the loss", sharey="col"
    )
    for axes, linear in zip(panels.axes[0], (0.001, 0.001, 0.01, 0.01), strict=True):
        symmetric_scale(axes, linear)
    return panels.drawing("What the loss would be without some weights", "iteration", rows.moments())


def scores(rows: Rows) -> Drawing:
    """How many weights of the first layer have a score below zero, how scores rank them, how their changes add up."""
    negative, rank, joint = columns = ("score below zero, %", "rank correlation with the measured change",
                                       "0.05 pruned: together less one by one")  # fmt: skip
    panels = Panels(ACTIVATIONS, columns, (11.5, 6.2), sharex=True, sharey="col")
    for activation in ACTIVATIONS:
        which = {"activation": activation, "layer": FIRST}
        curves = {(negative, score): 100 * rows.grid("share", kind="negative", score=score, **which)
                  for score in (MEASURED, "taylor1", "taylor2")}  # fmt: skip
        curves |= {(rank, score): rows.grid("rho", kind="rank", score=score, **which) for score in TAYLOR}
        curves |= {
            (joint, score): dependency(rows, activation, score)
            for score in (MEASURED, f"{MEASURED}_abs", "magnitude", "random")
        }
        for (column, score), values in curves.items():
            panels.curve(activation, column, rows.moments(), values, score, LOOKS[score])
        panels[activation, negative].axhline(35, color=BLACK, linewidth=0.8, linestyle=":")
        panels[activation, joint].axhline(0, color=BLACK, linewidth=0.8)
    return panels.drawing("What scores of single weights say", "iteration", rows.moments())


def dependency(rows: Rows, activation: str, score: str = MEASURED) -> Values:
    """Change of the loss with 0.05 of the first layer's weights gone together, less the sum of one by one."""
    which = {"kind": "change", "activation": activation, "layer": FIRST, "score": score, "fraction": 0.05}
    return rows.grid("change", **which) - rows.grid("alone", **which)


def compaction(rows: Rows) -> Drawing:
    """Parameters that are left, and test accuracy, by ``f_nz``."""
    sizes, accuracy = "parameters after compaction", "test accuracy, %"
    panels = Panels([""], (sizes, accuracy), (10.5, 3.9))
    for column, field, scale in ((sizes, "dense", 1), (accuracy, "test", 100)):
        values = [scale * rows.grid(field, kind="compact", f_nz=f_nz)[:, 0] for f_nz in F_NZ]
        look = {"color": COLOURS[0], "marker": "o", "markersize": 4}
        panels.intervals("", column, np.array(F_NZ), values, "pruned by magnitude", look)
        panels["", column].set_xlabel("f_nz")
    whole = rows.grid("parameters", kind="arm", arm=UNPRUNED).mean()
    panels["", sizes].axhline(whole, color=BLACK, linestyle="--", linewidth=1, label=UNPRUNED)
    panels["", sizes].set_ylim(0, 1.06 * whole)
    return panels.drawing("Compaction after pruning by schedule")
