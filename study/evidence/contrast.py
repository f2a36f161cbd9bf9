"""Surgery against one arm: differences paired by seed, and what may be said of them.

A finding is the first of these that holds. *Better*: the difference of the metric on the test samples is shown, after
Holm. *Faster*: an arm is shown, after Holm, to need less time to a target (the hardest at which a difference is shown),
and not to end worse: the 95 % interval of the metric's difference excludes its margin (said of every arm but the
original). Else no difference was found. The margin is also what an undecided comparison is asked about.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from network_surgery.study.evidence import time_to_accuracy
from network_surgery.study.evidence.converged import convergence
from network_surgery.study.evidence.significance import (
    LEVEL,
    bootstrap,
    effect,
    holm,
    paired,
    permutation,
    seeds_needed,
)
from network_surgery.study.store.folder import Record
from network_surgery.study.task.metric import Metric

#: Findings where no arm is ahead.
UNDECIDED = "no difference was found"
UNTOUCHED = "the schedule never operated, so there is nothing to compare"
UNTESTED = "nothing can be said without a spread between seeds"


def contrast(
    arm: str, surgery: Mapping[int, Record], others: Mapping[int, Record], targets: Sequence[float], metric: Metric
) -> dict[str, Any]:
    """Surgery against an arm, paired by seed.

    ``arm``, ``n``, mean of the ``metric`` on the test samples of ``surgery`` and of ``rival`` (accuracies: 0 … 1),
    ``differences`` (surgery − rival, whichever direction is better) in the order of ``seeds``, their mean
    (``difference``) with Student's 95 % ``interval`` and ``p``, a ``bootstrap`` interval, ``p_permutation`` (signs
    exchanged), ``effect`` (Cohen's d), the ratios of training FLOPs (``compute_ratio``, which repeats on any machine)
    and of seconds (``time_ratio``, operations and sunk epochs included) of whole trainings, ``time_to_accuracy`` (see
    ``study.evidence.time_to_accuracy``), and ``convergence`` of both (see ``study.evidence.converged``).
    """
    seeds = sorted(surgery.keys() & others.keys())
    pairs = [(surgery[seed].result, others[seed].result) for seed in seeds]
    compute, seconds = (
        statistics.fmean(one[key] for one, _ in pairs) / statistics.fmean(other[key] for _, other in pairs)
        for key in ("training_flops", "seconds")
    )
    differences = [one["test_metric"] - other["test_metric"] for one, other in pairs]
    mean, interval, p = paired(differences)
    return {
        "arm": arm, "n": len(pairs), "seeds": seeds,
        "surgery": statistics.fmean(one["test_metric"] for one, _ in pairs),
        "rival": statistics.fmean(other["test_metric"] for _, other in pairs),
        "differences": differences, "difference": mean, "interval": interval, "p": p,
        "bootstrap": bootstrap(differences), "p_permutation": permutation(differences), "effect": effect(differences),
        "compute_ratio": compute, "time_ratio": seconds,
        "time_to_accuracy": time_to_accuracy.contrasts(pairs, targets, metric),
        "convergence": {
            "surgery": convergence([one for one, _ in pairs], metric),
            "rival": convergence([other for _, other in pairs], metric),
        },
    }  # fmt: skip


def decide(family: Sequence[dict[str, Any]], metric: Metric) -> None:
    """Adds ``p_adjusted`` and ``finding`` to every contrast of a family, and ``more_seeds``: how many more would show a
    difference of the metric's margin even if it were the only one of the family (None where nothing varies).

    Differences of the metric are one family for Holm, the times to all targets another, and so are FLOPs.
    """
    _adjust(family)
    tests = sum(each["p"] is not None for each in family)
    for each in family:
        wanted = seeds_needed(each["differences"], metric.margin, level=LEVEL / max(1, tests))
        each["more_seeds"] = None if wanted is None else max(0, wanted - each["n"])
    for cost in time_to_accuracy.COSTS:
        _adjust([entry[cost] for each in family for entry in each["time_to_accuracy"]])
    for each in family:
        each["finding"] = _finding(each, metric)


def _adjust(family: Sequence[dict[str, Any]]) -> None:
    for test, p in zip(family, holm([test["p"] for test in family]), strict=True):
        test["p_adjusted"] = p


def _finding(contrast: Mapping[str, Any], metric: Metric) -> str:
    """What may be said, in a few words."""
    restart = contrast["arm"].startswith("restart")
    if "untouched" in contrast and contrast["untouched"] == contrast["n"]:
        return UNTOUCHED
    if contrast["p_adjusted"] is None:
        return UNTESTED
    if contrast["p_adjusted"] < LEVEL:
        if metric.gain(contrast["difference"], 0.0) > 0:
            return "surgery is better"
        return "restarting is better" if restart else "surgery is worse"
    if (entry := sooner(contrast, metric)) is None:
        return UNDECIDED
    if entry["seconds"]["sooner"]:
        return "surgery is faster"
    return "restarting is faster" if restart else "surgery is slower"


def sooner(contrast: Mapping[str, Any], metric: Metric) -> dict[str, Any] | None:
    """The hardest target to which one arm is shown to need less time, unless that arm may end worse.

    None against the original, which surgery was until its final network began: it comes later, whatever it is worth.
    """
    shown = [entry for entry in contrast["time_to_accuracy"] if _shown(entry["seconds"])]
    if not shown or contrast["interval"] is None or contrast["arm"] == "original":
        return None
    low, high = sorted(metric.gain(bound, 0.0) for bound in contrast["interval"])
    harmless = low > -metric.margin if shown[-1]["seconds"]["sooner"] else high < metric.margin
    return shown[-1] if harmless else None


def _shown(test: Mapping[str, Any]) -> bool:
    return test["p_adjusted"] is not None and test["p_adjusted"] < LEVEL
