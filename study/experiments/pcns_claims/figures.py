"""The figure: validation accuracy against seconds, and test accuracy against size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from network_surgery.study.bench.panels import Panels, looks
from network_surgery.study.bench.rows import Rows
from network_surgery.study.evidence.drawing import BLACK, Drawing, accuracy_scale, log_scale, percent
from network_surgery.study.experiments.pcns_claims.measure import (
    EARLY,
    FINAL,
    LATE,
    ORIGINAL,
    PRUNED,
    RANDOM,
    REFITTED,
    RESTART,
    SURGERY,
)
from network_surgery.study.experiments.pcns_claims.race import TICKS

LOOKS = looks((SURGERY, RESTART, PRUNED, LATE, REFITTED, RANDOM), dotted=[RANDOM, REFITTED])


def race(rows: Rows, thresholds: Mapping[str, float]) -> Drawing:
    """A row for each network: the race at the chosen threshold, and the ends at all thresholds."""
    left, right = "validation accuracy by CPU seconds", "test accuracy by parameters / the original's"
    panels = Panels(list(thresholds), [left, right], (10.5, 3.6 * len(thresholds) + 0.6))
    for network, threshold in thresholds.items():
        original = {"kind": "arm", "network": network, "arm": ORIGINAL}
        budget, whole = (float(rows.grid(field, **original).mean()) for field in ("budget", "parameters"))
        seconds, shown, shares, ends = budget * np.arange(TICKS + 1) / TICKS, [], [1.0], []
        for place, (arm, look) in enumerate(({ORIGINAL: {"color": BLACK, "linestyle": ":"}} | LOOKS).items()):
            which = original | {"arm": arm, "threshold": None if arm == ORIGINAL else threshold}
            curves = rows.grid("curve", **which)[:, 0]
            panels.curve(network, left, seconds, curves, arm, look | {"marker": ""})
            shown += [curves[:, -1].mean(), *([] if arm in LOOKS else [curves[:, TICKS // 8].mean()])]
            each = [
                original | {"arm": arm, "threshold": at} for at in rows.distinct("threshold", network=network, arm=arm)
            ]
            share = np.array([rows.grid("parameters", **which).mean() / whole for which in each])
            tests = [rows.grid("test", **which)[:, 0] for which in each]
            # Six arms at one size would hide each other.
            panels.intervals(network, right, share * 1.03 ** (place - 3.5), tests, arm, look)
            shares += list(share)
            ends += [test.mean() for test in tests]
        accuracy_scale(panels[network, left], shown)
        accuracy_scale(panels[network, right], ends)
        log_scale(panels[network, right].xaxis, shares, percent)
        for moment in (EARLY, FINAL):
            panels[network, left].axvline(moment * budget, color="#bbbbbb", linewidth=1, zorder=0)
    return panels.drawing("PCNS at equal seconds")
