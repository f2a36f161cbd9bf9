"""The figure: validation accuracy against seconds, and test accuracy against size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from network_surgery.study.bench.panels import Panels, looks
from network_surgery.study.bench.rows import Rows, Values
from network_surgery.study.evidence.drawing import BLACK, Drawing, accuracy_scale, log_scale, percent
from network_surgery.study.experiments.pcns_claims.measure import ARMS, EARLY, FINAL, ORIGINAL, RANDOM, REFITTED
from network_surgery.study.experiments.pcns_claims.race import TICKS

LOOKS = {ORIGINAL: {"color": BLACK, "linestyle": ":", "marker": "o"}} | looks(ARMS, dotted=[RANDOM, REFITTED])


def values(rows: Rows, field: str, network: str, threshold: float | None, arm: str) -> Values:
    """One number of an arm ``[seeds]``, or one list ``[seeds, …]``; the original has no threshold."""
    where = {"kind": "arm", "network": network, "arm": arm, "threshold": None if arm == ORIGINAL else threshold}
    return rows.grid(field, **where)[:, 0]


def race(rows: Rows, thresholds: Mapping[str, float]) -> Drawing:
    """A row for each network: the race at the chosen threshold, and the ends at all thresholds."""
    left, right = "validation accuracy by CPU seconds", "test accuracy by parameters / the original's"
    panels = Panels(list(thresholds), [left, right], (10.5, 3.6 * len(thresholds) + 0.6))
    for network, threshold in thresholds.items():
        budget, whole = (values(rows, field, network, None, ORIGINAL).mean() for field in ("budget", "parameters"))
        seconds, shown, shares, ends = budget * np.arange(TICKS + 1) / TICKS, [], [], []
        for place, (arm, look) in enumerate(LOOKS.items()):
            curves = values(rows, "curve", network, threshold, arm)
            panels.curve(network, left, seconds, curves, arm, look | {"marker": ""})
            shown += list(curves[:, TICKS // 8 if arm == ORIGINAL else -1 :].mean(axis=0))
            at = rows.distinct("threshold", network=network, arm=arm)
            sizes = np.array([values(rows, "parameters", network, each, arm).mean() for each in at])
            tests = [values(rows, "test", network, each, arm) for each in at]
            shares += list(sizes / whole)
            ends += [test.mean() for test in tests]
            # Six arms at one size would hide each other.
            panels.intervals(network, right, sizes / whole * 1.03 ** (place - 3.5), tests, arm, look)
        accuracy_scale(panels[network, left], shown)
        accuracy_scale(panels[network, right], ends)
        log_scale(panels[network, right].xaxis, shares, percent)
        for moment in (EARLY, FINAL):
            panels[network, left].axvline(moment * budget, color="#bbbbbb", linewidth=1, zorder=0)
    return panels.drawing("PCNS at equal seconds")
