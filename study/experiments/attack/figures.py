"""Figures: what becomes of attacked units, and where each of them ends."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from network_surgery.study.bench.panels import Panels
from network_surgery.study.evidence.drawing import BLACK, COLOURS, GREY, MARKERS, Drawing, Look
from network_surgery.study.experiments.attack.measure import HARD, LAYERS, NETWORKS
from network_surgery.study.experiments.attack.numbers import KILLED, Attacked, mean

#: Fields of rows, and what their panels are called; those of factors are logarithms.
COURSES = {
    "mrp": "MRP, factor", "in_l1": "L1 norm of incoming\nweights, factor", "gradient": "output gradient,\nfactor",
    "flat": "flat outputs,\ndifference",
}  # fmt: skip


def draw_attack(units: Attacked) -> Drawing:
    """The attacked unit compared with itself left alone, over training, by how hard the attack was."""
    panels = Panels(list(COURSES.values()), list(NETWORKS), (11.4, 8.4), sharex="col")
    for name in NETWORKS:
        for number, attack in enumerate(HARD):
            if attack.name not in units.attacks(name):
                continue
            where = {"network": name, "attack": attack.name, "layer": LAYERS[0]}
            at = units.rows.grid("iteration", kind="unit", **where)[0]
            look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3.5, "linewidth": 1.2}
            for field, label in COURSES.items():
                each = np.stack([units.courses(name, attack.name, layer, field) for layer in LAYERS], axis=2)
                values = [mean(each[:, moment]) for moment in range(len(at))]
                panels.intervals(label, name, at, values, f"×{attack.multiplier:g}", look)
        for field, label in COURSES.items():
            panels[label, name].axhline(0, color=BLACK, linewidth=0.8)
            if field != "flat":
                factor_scale(panels[label, name])
    return panels.drawing("What becomes of an attacked unit", "iteration")


def ends(units: Attacked) -> Drawing:
    """The factor on MRP at the end, of every attacked unit."""
    panels = Panels([""], list(NETWORKS), (11.4, 4.6), "MRP at the end, attacked / alone", sharey=True)
    for name in NETWORKS:
        axes, attacks = panels["", name], units.attacks(name)
        for number, layer in enumerate(LAYERS):
            each = units.changes(name, layers=[layer])  # [seeds, attacks]
            places = np.arange(len(attacks)) + 0.22 * (number - 1) + np.linspace(-0.05, 0.05, len(each))[:, None]
            look: Look = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": "", "markersize": 4.5}
            axes.plot(places.ravel(), each.ravel(), label=layer, alpha=0.75, **look)
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.axhline(math.log(KILLED), color=GREY, linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(attacks)), attacks, rotation=55, ha="right", fontsize=8)
        axes.set_xlim(-0.6, len(attacks) - 0.4)
        factor_scale(axes)
    return panels.drawing("Where every attacked unit ends")


def factor_scale(axes: Axes) -> None:
    """Ticks of logarithms as factors, fewer of each decade where there are more decades."""
    decades = float(np.ptp(axes.get_ylim())) / math.log(10)
    steps = (1, 1.2, 1.5, 2, 3, 5, 7) if decades < 0.7 else (1, 2, 5) if decades < 2 else (1,)
    ticks = [math.log(step * 10.0**power) for power in range(-9, 10) for step in steps]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{math.exp(value):.3g}"))
