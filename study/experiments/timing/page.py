"""Epochs over operations, measured and predicted: the interruptibility index (Graham 2019, 3.1.4)."""

from __future__ import annotations

import itertools

import numpy as np

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part
from network_surgery.study.bench.panels import Panels
from network_surgery.study.bench.rows import Measured, Rows, Values
from network_surgery.study.bench.tables import cross
from network_surgery.study.evidence.drawing import BLACK, COLOURS, GREY, MARKERS, Drawing, Look, log_scale
from network_surgery.study.experiments.timing.measure import BATCH, IMAGES, OPERATIONS
from network_surgery.study.training.trainer import steps_per_epoch

NETS = {"vgg16": "VGG16", "dense": "dense, n – n – n", "conv": "3 × 3, c – c – c"}
COLORS = (*COLOURS, BLACK, GREY, "#882255", "#44AA99", "#332288", "#999933", "#AA4499")
LOOKS: dict[str, Look] = {
    name: {"color": colour, "marker": marker, "linestyle": "", "markersize": 5}
    for name, colour, marker in zip(OPERATIONS, COLORS, (*MARKERS, "*", "h", "p", "d", "H"), strict=True)
}
#: Above this index an operation takes less than 1 % of an epoch.
BAR = 100


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows = measured.rows
    return {"claims": claims(rows), "seeds": str(len(rows.distinct("seed"))), "shares": draw(rows),
            "predictions": predictions(rows), **{net: to_table(rows, net) for net in NETS}}  # fmt: skip


def index(rows: Rows, net: str, layer: str, name: str, seconds: str = "operation") -> Values:
    """An epoch's seconds over an operation's, measured or ``predicted``, by seed."""
    epoch, taken = (rows.grid(field, net=net, layer=layer, name=name)[:, 0] for field in ("epoch", seconds))
    return np.asarray(epoch / taken)


def layers(rows: Rows, net: str) -> list[str]:
    """The layers of a kind of net: sizes, or names."""
    return rows.distinct("layer", net=net)


def claims(rows: Rows) -> list[Claim]:
    """Whether operations take less than 1 % of an epoch: how many times less, in the worst layer of each net."""
    return [
        Claim(
            f"{NETS[net]}: an operation takes less than 1 % of an epoch, in every layer", "",
            {name: np.log(np.min([index(rows, net, layer, name) for layer in layers(rows, net)], axis=0) / BAR)
             for name in OPERATIONS}, unit="factor",
        )
        for net in NETS if layers(rows, net)
    ]  # fmt: skip


def to_table(rows: Rows, net: str) -> str:
    """The median index over seeds of every operation and layer; in brackets predicted over measured seconds."""

    def cell(name: str, layer: str) -> str:
        if name not in OPERATIONS:
            return f"{np.median(index(rows, net, layer, next(iter(OPERATIONS)), 'forward')):,.0f}"
        each = index(rows, net, layer, name)
        ratio = np.median(each / index(rows, net, layer, name, "predicted"))
        return f"{float(f'{np.median(each):.2g}'):,g} ({ratio:.1f})"

    return cross("operation", [*OPERATIONS, "*forward pass*"], {each: each for each in layers(rows, net)}, cell)


def predictions(rows: Rows) -> str:
    """How near predicted seconds come to measured ones, in words."""
    off = np.array([row["predicted"] / row["operation"] for row in rows])
    near = np.mean((off > 1 / 3) & (off < 3))
    return f"{near:.0%} of {len(off)} lie within a factor of 3 (median of predicted / measured: {np.median(off):.2f})"


def draw(rows: Rows) -> Drawing:
    """The part of an epoch that operations take, by size: points measured, lines predicted."""
    nets = [net for net in NETS if net != "vgg16" and layers(rows, net)]
    panels = Panels([""], [NETS[net] for net in nets], (9.6, 5.6), "operation / epoch", sharey=True)
    values: list[float] = []
    for net, name in itertools.product(nets, OPERATIONS):
        sizes = [int(layer) for layer in layers(rows, net)]
        measured, predicted = (
            np.stack([1 / index(rows, net, str(size), name, field) for size in sizes], axis=1)
            for field in ("operation", "predicted")
        )
        panels.curve("", NETS[net], sizes, measured, name, LOOKS[name])
        panels["", NETS[net]].plot(sizes, predicted.mean(axis=0), color=LOOKS[name]["color"], linewidth=1)
        values += [*measured.mean(axis=0), *predicted.mean(axis=0)]
    for net in nets:
        axes, sizes = panels["", NETS[net]], [int(layer) for layer in layers(rows, net)]
        axes.axhline(1 / BAR, color=GREY, linestyle="--", label="1 % of an epoch")
        axes.axhline(1 / steps_per_epoch(IMAGES, BATCH), color=GREY, linestyle=":", label="one training step")
        log_scale(axes.xaxis, sizes, lambda value: f"{value:g}")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        log_scale(axes.yaxis, [*values, 1 / BAR], lambda value: f"{100 * value:g} %")
    return panels.drawing("The part of an epoch that an operation takes, measured and predicted", "units of each layer")
