"""Figures: accuracy against bytes, FLOPs and latency; what pruning costs; what it leaves of the first layer."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from network_surgery.ops.network.masks import unpack
from network_surgery.study.bench.panels import Panels
from network_surgery.study.bench.rows import Rows
from network_surgery.study.evidence.drawing import (
    BLACK,
    COLOURS,
    MARKERS,
    STYLE,
    Drawing,
    Look,
    accuracy_scale,
    count,
    log_scale,
)
from network_surgery.study.experiments.families.claims import (
    NAMES,
    densities,
    factors_of,
    list_known,
    original,
    pruned_networks,
    pruned_values,
    tests,
    trained_values,
)
from network_surgery.study.experiments.families.families import (
    DICTIONARIES,
    DISTILLED,
    EDGES,
    EIGEN,
    FASTFOOD,
    GAUSSIAN,
    HALF_HASHED,
    HASHED,
    MIN_WEIGHT,
    ORIGINAL,
    PRUNED,
    SHARED,
    SMALL,
    STRETCHED,
)
from network_surgery.study.experiments.families.han import CURVES, LEFT, WAYS

GROUPS = {
    "from the start": (HASHED, DISTILLED, EDGES, SMALL, GAUSSIAN, FASTFOOD),
    "dictionaries": (HASHED, GAUSSIAN, *DICTIONARIES),
    "halfway": (SMALL, HALF_HASHED, STRETCHED, SHARED, MIN_WEIGHT, EIGEN, PRUNED),
}
#: Colour and marker of each family, by their numbers: no two of one panel have the same colour.
KINDS = {
    HASHED: (0, 0), DISTILLED: (1, 0), EDGES: (2, 2), SMALL: (3, 1), GAUSSIAN: (4, 3), FASTFOOD: (5, 4),
    "identity": (1, 5), "orthogonal": (2, 6), "rbf": (3, 7), "covariance": (5, 8), "autoencoder": (6, 4),
    HALF_HASHED: (0, 7), STRETCHED: (1, 8), SHARED: (2, 4), MIN_WEIGHT: (4, 5), EIGEN: (5, 2), PRUNED: (6, 6),
}  # fmt: skip
LOOKS: dict[str, Look] = {
    name: {"color": COLOURS[colour], "marker": MARKERS[marker], "markersize": 4.5, "linewidth": 1.1}
    for name, (colour, marker) in KINDS.items()
}
AXES = {"bytes of the file": "bytes", "FLOPs of one image": "flops", "milliseconds for one image": "milliseconds"}


def families(rows: Rows) -> Drawing:
    """Accuracy of every family at every size, against what it costs."""
    panels = Panels(list(GROUPS), list(AXES), (12.0, 10.5), "test accuracy")
    whole = float(original(rows).mean())
    shown = [row["test"] for row in rows.where(kind="arm")]
    for column, field in AXES.items():
        costs = [row[field] for row in rows.where(kind="arm")]
        for group, members in GROUPS.items():
            for family in list_known(rows, members):
                each = factors_of(rows, family)
                places = [np.median(rows.grid(field, kind="arm", family=family, factor=k)) for k in each]
                values = [tests(rows, family, k) for k in each]
                panels.intervals(group, column, places, values, family, LOOKS[family])
            axes = panels[group, column]
            axes.axhline(whole, color=BLACK, linewidth=0.9, linestyle=":", label=ORIGINAL)
            log_scale(axes.xaxis, costs, count if field != "milliseconds" else "{:g}".format)
            accuracy_scale(axes, shown)
    return panels.drawing("Accuracy against bytes, FLOPs and latency")


def curves(rows: Rows) -> Drawing:
    """What pruning costs, by the fraction of the weights that is left."""
    names = {NAMES[network]: network for network in pruned_networks(rows)}
    panels = Panels([""], list(names), (10.5, 4.6), "test accuracy − before pruning, points", sharey=True)
    for at, (penalty, way) in enumerate(WAYS):
        look = {"color": COLOURS[at], "marker": MARKERS[at], "markersize": 4.5, "linewidth": 1.2}
        for title, network in names.items():
            lefts = LEFT[network]
            if not rows.where(kind="pruned", network=network, penalty=penalty, way=way, left=lefts[0]):
                continue
            before = trained_values(rows, "test", network, penalty)
            values = [100 * (pruned_values(rows, "test", penalty, way, left, network) - before) for left in lefts]
            panels.intervals("", title, lefts, values, f"{penalty}, {way}", look)
    for title, network in names.items():
        axes = panels["", title]
        axes.axhline(0, color=BLACK, linewidth=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(LEFT[network]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.2g}%"))
        axes.invert_xaxis()
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_locator(FixedLocator([-80, -40, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return panels.drawing("What pruning costs", "weights left")


def sparsity(rows: Rows) -> Drawing:
    """The mask of the first layer, of the first seed, and how many units read each pixel, mean over seeds."""
    (row,) = (row for row in rows.where(kind="mask") if "mask" in row)
    density = densities(rows).mean(axis=0)
    pixels = len(row["by_pixel"])
    mask = unpack(row["mask"], torch.Size((row["units"], pixels))).numpy()
    with style.context(["default", STYLE, {"axes.grid": False}]):
        figure = Figure(figsize=(11.0, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(784 / 300, 1))
        left.imshow(mask, cmap="Greys", interpolation="nearest", aspect="auto")
        left.set_title("weights that are left (black), first seed", fontsize=9)
        left.set(xlabel="pixel, row after row of the image", ylabel="unit")
        image = right.imshow(100 * density, cmap="viridis", vmin=0, interpolation="nearest")
        right.set_title("units that read a pixel, %", fontsize=9)
        right.set(xticks=[], yticks=[])
        figure.colorbar(image, ax=right, fraction=0.046)
    edge = density[[0, -1]].mean()
    middle = density[density.shape[0] // 2].mean()
    words = f"{mask.mean():.1%} of the weights left; first and last row {edge:.1%}, middle row {middle:.1%}."
    return Drawing(figure, f"What is left of the first layer of {NAMES[CURVES]}", "", words)
