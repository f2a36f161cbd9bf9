"""Objectives as losses, and the front of a search: trials that no other beats, and the volume that they dominate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray

from network_surgery.study.search.objectives import sign, value
from network_surgery.study.task.metric import ACCURACY, Metric

#: How far beyond the front's worst values the reference point lies, as a fraction of the front's range.
BEYOND = 0.1


def signs(objectives: Sequence[str], metric: Metric = ACCURACY) -> NDArray[np.float64]:
    """What turns values into losses, of which less is better: 1 or −1 for each objective."""
    return np.array([-float(sign(name, metric)) for name in objectives])


def losses(
    results: Sequence[Mapping[str, Any]], objectives: Sequence[str], metric: Metric = ACCURACY
) -> NDArray[np.float64]:
    """The objectives of some outcomes as ``[n, objectives]``, of which less is better."""
    values = [[value(result, name) for name in objectives] for result in results]
    return np.array(values).reshape(len(results), len(objectives)) * signs(objectives, metric)


def find_front(losses: NDArray[np.float64]) -> list[int]:
    """The rows of ``losses [n, objectives]`` that no other row is as good as in everything and better in something."""
    return np.flatnonzero(moocore.is_nondominated(losses, keep_weakly=True)).tolist()


def reference_point(losses: NDArray[np.float64], best: Sequence[int]) -> NDArray[np.float64]:
    """A loss for each objective: a tenth of the front's range beyond its worst. ``best`` are the front's rows.

    Where the front has no range, that of all trials counts; where they have none either, anything does.
    """
    span = np.ptp(losses[best], axis=0)
    span = np.where(span > 0, span, np.ptp(losses, axis=0))
    return losses[best].max(axis=0) + BEYOND * np.where(span > 0, span, 1.0)


def hypervolume(losses: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """The volume that the rows of ``losses [n, objectives]`` dominate up to ``reference [objectives]``, exactly."""
    return float(moocore.hypervolume(losses, ref=reference))


def leading(points: NDArray[np.float64], count: int) -> list[int]:
    """At most ``count`` rows of the front of ``points [n, objectives]`` (losses) that stand for it.

    The best in the first objective, then always the row that adds most to the hypervolume of those that were taken
    (greedy, as the volume's gains only shrink): no two that hardly differ, and the bends of the front before its ends.
    """
    best = find_front(points)
    reference = reference_point(points, best)
    taken = [min(best, key=lambda row: tuple(points[row]))]
    while rest := [row for row in best if row not in taken]:
        if len(taken) == count:
            break
        taken.append(max(rest, key=lambda row: hypervolume(points[[*taken, row]], reference)))
    return taken
