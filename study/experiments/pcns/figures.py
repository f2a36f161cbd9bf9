"""The figure: accuracy after shrinking, and as training goes on."""

from __future__ import annotations

from typing import Any

from network_surgery.study.bench.panels import Panels, looks
from network_surgery.study.bench.rows import Rows, Values
from network_surgery.study.evidence.drawing import BLACK, Drawing, accuracy_scale
from network_surgery.study.experiments.pcns.measure import EIGEN, OTHERS, PIVOTED, REMOVALS, UNINTERRUPTED

LOOKS = looks((PIVOTED, EIGEN, *OTHERS), [arm for arm in OTHERS if arm not in REMOVALS], grey=["random"])
LOOKS[UNINTERRUPTED] = {"color": BLACK, "linestyle": ":"}


def accuracies(rows: Rows, **which: Any) -> Values:
    """Of an arm on test images, right after and after each epoch: ``[seeds, epochs + 1]``."""
    return rows.grid("accuracies", kind="arm", **which)[:, 0]


def shrunk(rows: Rows) -> Drawing:
    """Accuracy by epochs after the operation: networks by thresholds."""
    networks, thresholds = rows.distinct("network"), rows.distinct("threshold", kind="arm", arm=PIVOTED)
    columns = {f"dropped variance {threshold:g}": threshold for threshold in thresholds}
    size = (10.5, 2.9 * len(networks) + 0.6)
    panels = Panels(networks, list(columns), size, "test accuracy", sharex=True, sharey="row")
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
    return panels.drawing("Accuracy right after shrinking, and later", "epochs after", [values.shape[1] - 1])
