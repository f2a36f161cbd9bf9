"""Surgery against one arm: differences paired by seed, with their intervals and p-values, at every look.

What may be said of them is decided for a whole study (``study.evidence.deciding``).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from network_surgery.study.evidence import accounting, time_to_accuracy
from network_surgery.study.evidence.converged import convergence
from network_surgery.study.evidence.crossed import Mean, of_samples, of_seeds
from network_surgery.study.evidence.significance import bootstrap, effect, permutation
from network_surgery.study.store.folder import Record
from network_surgery.study.task.metric import Metric

Contrast = dict[str, Any]
#: The values of a training run's test samples, where they were kept.
Values = Callable[[Record], NDArray[np.float64] | None]


def contrast(
    arm: str, surgery: Mapping[int, Record], others: Mapping[int, Record], targets: Sequence[float], metric: Metric,
    *, question: str = "zero", trained: bool = True, looks: Sequence[Sequence[int]] = (),
    values: Values = lambda record: None,
) -> Contrast:  # fmt: skip
    """Surgery against an arm, paired by seed.

    ``question``: the accounting of what counts as cost (see ``study.evidence.accounting``), where the large network was
    ``trained`` here. ``looks``: the seeds of every look at
    which something is claimed. ``values``: of the test samples; where both arms of every seed have them, what is said
    is of new samples, too.

    ``arm``, ``accounting``, ``n``, mean of the ``metric`` on the test samples of ``surgery`` and of ``rival``
    (accuracies: 0 … 1), ``differences`` (surgery − rival, whichever direction is better) in the order of ``seeds``,
    their mean (``difference``) with its 95 % ``interval``, ``p`` and ``samples`` (the number of test samples, where
    they hold for new ones; see ``study.evidence.crossed``), a ``bootstrap`` interval, ``p_permutation`` (signs
    exchanged; both for these samples), ``effect`` (Cohen's d), the ratios of training FLOPs (``compute_ratio``, which
    repeats on any machine) and of seconds (``time_ratio``) of whole training runs in this accounting,
    ``time_to_accuracy`` (see there), ``convergence`` of both (see ``study.evidence.converged``), ``equivalence``:
    ``margin`` and ``p``, the ``deviation`` of single seeds' differences with the ``floor`` of the standard error, and
    ``tests``: the p-values of every look.
    """
    seeds = sorted(surgery.keys() & others.keys())
    pairs = [(surgery[seed].result, others[seed].result) for seed in seeds]
    given = question == "given" and trained
    sunk = [
        (accounting.sunk(one, "surgery", one, given), accounting.sunk(one, arm, other, given)) for one, other in pairs
    ]
    totals = [
        [statistics.fmean(pair[side][key] - gone[side][key] for pair, gone in zip(pairs, sunk, strict=True))
         for side in (0, 1)]
        for key in accounting.COSTS
    ]  # fmt: skip
    compute, seconds = (one / max(other, 1e-12) for one, other in totals)
    differences = [one["test_metric"] - other["test_metric"] for one, other in pairs]
    each = _each(surgery, others, seeds, values)
    mean = _mean(differences, each, range(len(seeds)))
    times = time_to_accuracy.contrasts(pairs, targets, metric, sunk)
    tests = []
    for look in looks:
        places = [place for place, seed in enumerate(seeds) if seed in look]
        if places:
            now = mean if len(places) == len(seeds) else _mean(differences, each, places)
            then = times if len(places) == len(seeds) else time_to_accuracy.contrasts(
                [pairs[place] for place in places], targets, metric, [sunk[place] for place in places]
            )  # fmt: skip
            tests.append(_tests(now, then, metric))
        else:
            tests.append(dict.fromkeys(("difference", "p", "p_within", "p_compute", "compute", "sooner")) | {"n": 0})
    return {
        "arm": arm, "accounting": question, "n": len(pairs), "seeds": seeds,
        "surgery": statistics.fmean(one["test_metric"] for one, _ in pairs),
        "rival": statistics.fmean(other["test_metric"] for _, other in pairs),
        "differences": differences, "difference": mean.value, "interval": mean.interval(), "p": mean.p(),
        "samples": mean.samples, "deviation": mean.deviation, "floor": mean.floor,
        "bootstrap": bootstrap(differences), "p_permutation": permutation(differences), "effect": effect(differences),
        "equivalence": {"margin": metric.margin, "p": mean.p_within(metric.margin), "shown": False},
        "compute_ratio": compute, "time_ratio": seconds, "time_to_accuracy": times, "tests": tests,
        "convergence": {
            "surgery": convergence([one for one, _ in pairs], metric),
            "rival": convergence([other for _, other in pairs], metric),
        },
    }  # fmt: skip


def _each(
    surgery: Mapping[int, Record], others: Mapping[int, Record], seeds: Sequence[int], values: Values
) -> NDArray[np.float64] | None:
    """The differences ``[seeds, samples]``; None where a training run has not kept its values, or they do not fit."""
    rows = []
    for seed in seeds:
        one, other = values(surgery[seed]), values(others[seed])
        if one is None or other is None or one.shape != other.shape:
            return None
        rows.append(one - other)
    return np.array(rows) if rows and len({len(row) for row in rows}) == 1 else None


def _mean(differences: Sequence[float], each: NDArray[np.float64] | None, places: Sequence[int]) -> Mean:
    if each is None:
        return of_seeds([differences[place] for place in places])
    return of_samples(each[list(places)])


def _tests(mean: Mean, times: Sequence[Mapping[str, Any]], metric: Metric) -> dict[str, Any]:
    """The p-values of a look, and the place of the target whose compute is tested."""
    tested = [place for place, entry in enumerate(times) if entry["training_flops"]["p"] is not None]
    flops = times[tested[-1]]["training_flops"] if tested else {"p": None, "sooner": None}
    return {
        "n": mean.seeds, "difference": mean.value, "p": mean.p(), "p_within": mean.p_within(metric.margin),
        "p_compute": flops["p"], "compute": tested[-1] if tested else None, "sooner": flops["sooner"],
    }  # fmt: skip
