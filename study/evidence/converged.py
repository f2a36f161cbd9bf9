"""Whether the arms of a comparison had converged, pooled over their seeds (see ``study.training.convergence``).

An arm had not converged where its seeds' mean gain is above the metric's margin and shown to be above zero (the 95 %
interval of the mean, by Student's t). It had where that mean is at most the margin. In between, and of one seed, it is
not known: of flat curves whose metric moves by two margins from epoch to epoch four single runs in ten seem to improve,
and of three seeds that do improve the interval often includes zero (simulated in the tests).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from network_surgery.study.evidence.significance import compare_paired
from network_surgery.study.task.metric import Metric
from network_surgery.study.training.convergence import gain
from network_surgery.study.training.records import Outcome


def convergence(outcomes: Sequence[Outcome], metric: Metric) -> dict[str, Any]:
    """``n`` runs that can be judged, how many of them were still ``improving``, their mean ``gain`` in as many epochs
    again (None of no run), and whether the arm had ``converged`` (None where that is not known).
    """
    gains = [found for each in outcomes if (found := gain(each, metric)) is not None]
    known: dict[str, Any] = {"n": len(gains), "improving": sum(each > metric.margin for each in gains)}
    if not gains:
        return known | {"gain": None, "converged": None}
    mean, interval, _ = compare_paired(gains)
    if len(gains) == 1:
        return known | {"gain": mean, "converged": None}
    shown = interval is None or interval[0] > 0
    return known | {"gain": mean, "converged": mean <= metric.margin or (False if shown else None)}


def find_unconverged(convergences: Mapping[str, Mapping[str, Any]]) -> str:
    """Which of these arms, by the name that a sentence has for them, had not converged; empty where that is shown
    of none.

    >>> late = {"n": 5, "improving": 4, "converged": False}
    >>> find_unconverged({"surgery": {"n": 5, "improving": 1, "converged": True}, "restarting": late})
    'restarting had not converged (4 of 5 seeds were still improving)'
    >>> find_unconverged({"surgery": late, "restarting": late})
    'surgery and restarting had not converged (4 of 5 and 4 of 5 seeds were still improving)'
    """
    late = {name: each for name, each in convergences.items() if each["converged"] is False}
    if not late:
        return ""
    counts = " and ".join(f"{each['improving']} of {each['n']}" for each in late.values())
    return f"{' and '.join(late)} had not converged ({counts} seeds were still improving)"
