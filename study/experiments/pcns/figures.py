"""Figures: accuracy after shrinking, errors by the size of the sample, the loss predicted against the loss measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from network_surgery.study.bench.panels import Panels, looks
from network_surgery.study.bench.rows import Rows, Values
from network_surgery.study.evidence.drawing import BLACK, Drawing, accuracy_scale, log_scale
from network_surgery.study.experiments.pcns import measure
from network_surgery.study.experiments.pcns.measure import EIGEN, OTHERS, PIVOTED, REMOVALS, UNINTERRUPTED

LOOKS = looks((PIVOTED, EIGEN, *OTHERS), [arm for arm in OTHERS if arm not in REMOVALS], grey=["random"])
LOOKS[UNINTERRUPTED] = {"color": BLACK, "linestyle": ":"}
#: A smaller change of the loss is drawn at the edge.
LEAST = 1e-4


def accuracies(rows: Rows, **which: Any) -> Values:
    """Of an arm on test images, right after and after each epoch: ``[seeds, epochs + 1]``."""
    return rows.grid("accuracies", kind="arm", **which)[:, 0]


def shrunk(rows: Rows) -> Drawing:
    """Accuracy by epochs after the operation: networks by thresholds."""
    networks, thresholds = rows.distinct("network"), rows.distinct("threshold", kind="arm", arm=PIVOTED)
    columns = {f"dropped variance {threshold:g}": threshold for threshold in thresholds}
    panels = Panels(networks, list(columns), (10.5, 2.9 * len(networks) + 0.6), "test accuracy", sharey="row")
    for network in networks:
        means: list[float] = []
        for column, threshold in columns.items():
            for arm, look in LOOKS.items():
                which = {"network": network, "threshold": 0.0 if arm == UNINTERRUPTED else threshold, "arm": arm}
                if rows.where(kind="arm", **which):
                    values = accuracies(rows, **which)
                    means += list(values.mean(axis=0))
                    panels.curve(network, column, range(values.shape[1]), values, arm, look)
        accuracy_scale(panels.axes[networks.index(network), 0], means)
    return panels.drawing(
        "Accuracy right after shrinking, and as training goes on", "epochs after", [values.shape[1] - 1]
    )


def samples(rows: Rows) -> Drawing:
    """Errors and components by the number of samples for each unit."""
    errors, components = "error on new images / on the sample", "components needed / with the largest sample"
    panels = Panels([""], [errors, components], (9.5, 4.4))
    every = sorted(rows.distinct("ratio", kind="sample"))
    places = {", ".join(place.values()): place for place in rows.groups("network", "layer", kind="sample")}
    for label, look in looks(places).items():
        which = {"kind": "sample"} | places[label]
        ratios = rows.distinct("ratio", **which)
        seen, unseen, needed = (
            np.concatenate([rows.grid(field, ratio=ratio, **which) for ratio in ratios], axis=1)
            for field in ("seen", "unseen", "components")
        )
        panels.curve("", errors, ratios, unseen / seen, label, look)
        panels.curve("", components, ratios, needed / needed[:, -1:], label, look)
    limit = [measure.expected(1000 * ratio, 1000 * measure.KEEP) for ratio in every]  # that of many units
    panels["", errors].plot(every, limit, linestyle=":", color=BLACK, label="normal distribution")
    for axes in panels.axes.flat:
        log_scale(axes.xaxis, every, lambda value: f"{value:g}")
    return panels.drawing("How many samples PCNS needs", "samples for each unit")


def predictions(rows: Rows) -> Drawing:
    """Each operation: the change of the loss predicted and measured."""
    networks, label = rows.distinct("network"), "measured change on test images"
    panels = Panels([""], networks, (3.4 * len(networks) + 0.4, 4.4), label, sharex=True, sharey=True)
    every = [max(row[field], LEAST) for row in rows.where(kind="prediction") for field in ("predicted", "actual")]
    for network in networks:
        axes = panels["", network]
        for method, look in looks(REMOVALS).items():
            points = rows.where(kind="prediction", network=network, method=method)
            x, y = ([max(row[field], LEAST) for row in points] for field in ("predicted", "actual"))
            axes.plot(x, y, label=method, alpha=0.6, **(look | {"linestyle": ""}))
        for axis in (axes.xaxis, axes.yaxis):
            log_scale(axis, every, lambda value: f"{value:g}")
        axes.plot([min(every), max(every)], [min(every), max(every)], linestyle=":", color=BLACK, linewidth=1)
    panels.words.append(correlations(rows))
    return panels.drawing("The change of the loss, predicted and measured", "predicted change of the loss")


def correlations(rows: Rows) -> str:
    """Spearman's rank correlations with the measured change of the loss, in words."""
    words = []
    for network in rows.distinct("network"):
        points = rows.where(kind="prediction", network=network)
        ranks = {
            name: stats.spearmanr([row[name] for row in points], [row["actual"] for row in points]).statistic
            for name in ("predicted", "slope", "tried")
        }
        words.append(f"{network}: {', '.join(f'{name} {value:.3f}' for name, value in ranks.items())}")
    return "; ".join(words)
