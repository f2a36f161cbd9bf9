"""Surgery against one arm: differences paired by seed, and what may be said of them.

Every contrast gets one of these decisions, from surgery's point of view, the first that holds:

``better``, ``worse``
    A difference of the metric on the test samples is shown.
``less compute``, ``more compute``
    One arm is shown to need fewer training FLOPs to a target (the hardest at which there is a test), and not to end
    worse: the 95 % interval of the metric's difference excludes its margin. Seconds are described, never decided on.
``as good``
    The difference is shown to be smaller than the margin. A difference may be shown and smaller, too.
``undecided``
    Neither is shown. ``not tested``: a contrast that comes later in the order than an undecided one.

**One error rate for a study** (``decide``). The contrasts have an order: the question's rival, the other arms as the
setting ``arms`` lists them, the original last. Each is tested once the one before it has shown a difference. Several
schedules share the level at first; one whose contrasts have all shown a difference passes its share on (Bretz et al.
2009). Of each contrast's share a fifth is for the compute to a target, and joins the rest if that is shown. So at most
5 % of studies claim a difference that is not there. Claims of *as good* have 5 % of their own: half for the question's
rival, half for the original, passed on in the same order.

**Looking again spends it.** The k-th look at a comparison, with more seeds, tests at 5 % / 2^k, so all looks together
stay below 5 %, and what one of them has shown stays shown: p-values are multiplied by 2^k, and the smallest counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from network_surgery.study.evidence import accounting, time_to_accuracy
from network_surgery.study.evidence.converged import convergence
from network_surgery.study.evidence.crossed import Mean, of_samples, of_seeds
from network_surgery.study.evidence.significance import (
    LEVEL,
    bootstrap,
    effect,
    graphical,
    permutation,
    seeds_needed,
)
from network_surgery.study.store.folder import Record
from network_surgery.study.task.metric import Metric

Contrast = dict[str, Any]
#: The values of a training's test samples, where they were kept.
Values = Callable[[Record], NDArray[np.float64] | None]
#: Findings where no arm is ahead.
UNDECIDED = "undecided"
UNTOUCHED = "the schedule never operated, so there is nothing to compare"
UNTESTED = "nothing can be said without a spread between seeds"
NOT_REACHED = "not tested, since the one before was undecided"
UNFINISHED = "no verdict before the end"
#: Arm → its name in a sentence.
NAMES = {
    "original": "the original",
    "restart": "restarting",
    "restart_flops": "restarting at equal compute",
    "restart_seconds": "restarting at equal seconds",
    "restart_fair": "restarting with the budget of pruning at the end",
    "restart_late": "restarting when surgery began",
    "restart_late_flops": "restarting when surgery began, at equal compute",
    "operate_first": "operating first",
    "operate_first_flops": "operating first, at equal compute",
    "uniform": "a uniformly thinner network",
    "prune_end": "pruning at the end",
    "prune_end_rewind_lr": "pruning at the end with the learning rate rewound",
    "prune_end_rewind": "pruning at the end with the weights rewound",
    "random": "removing random units",
    "distill": "restarting with a teacher",
    "snip": "pruning by SNIP before training",
    "random_init": "random pruning before training",
    "gradmax": "growing by GradMax",
    "net2net": "growing by Net2Net",
}
#: The part of a contrast's share of the level that is for its compute.
COMPUTE = 0.2
#: The fewest seeds from which it is said how many more would do.
ENOUGH = 5
#: The range of a deviation that a number of seeds is computed for, as probabilities.
RANGE = (0.1, 0.9)


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
    repeats on any machine) and of seconds (``time_ratio``) of whole trainings in this accounting, ``time_to_accuracy``
    (see there), ``convergence`` of both (see ``study.evidence.converged``), ``equivalence``: ``margin`` and ``p``, the
    ``deviation`` of single seeds' differences with the ``floor`` of the standard error, and ``tests``: the p-values of
    every look.
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
    """The differences ``[seeds, samples]``; None where a training has not kept its values, or they do not fit."""
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


def decide(studied: Sequence[Sequence[Contrast]], metric: Metric, whole: bool = True) -> None:
    """Decides all contrasts of a study: those of each schedule in the order in which they are tested.

    Adds ``p_adjusted`` (also to the tested target, and to ``equivalence``, with ``shown``), ``shown_with`` (the number
    of seeds of the look that showed the difference), ``reached`` (whether it was tested), ``decision`` and ``finding``,
    and ``more_seeds``: from how many to how many more would probably show a difference of the margin (None: no number
    would), or None where that is not said. ``whole``: whether every training of the comparison has ended; else only
    what an earlier look has shown is said.
    """
    flat = [contrast for contrasts in studied for contrast in contrasts]
    firsts, count = _firsts(studied), len(studied)
    # Twice as many tests as contrasts: the metric's differences, and after them the compute.
    n = len(flat)
    weights, passes = [0.0] * (2 * n), [dict[int, float]() for _ in range(2 * n)]
    for first in firsts:
        for test, share in _shares(first, flat, n).items():
            weights[test] = share / count
    for first, contrasts in zip(firsts, studied, strict=True):
        for place in range(len(contrasts)):
            here = first + place
            passes[n + here] = {here: 1.0}
            following = [here + 1] if place + 1 < len(contrasts) else [other for other in firsts if other != first]
            for each in following:
                for test, share in _shares(each, flat, n).items():
                    passes[here][test] = share / len(following)
    p = [_over_looks(each, "p") for each in flat] + [_over_looks(each, "p_compute") for each in flat]
    adjusted = graphical([p for p, _ in p], weights, passes)
    for place, contrast in enumerate(flat):
        contrast["p_adjusted"], contrast["shown_with"] = adjusted[place], p[place][1]
        _adjust_compute(contrast, adjusted[n + place])
    _decide_equivalences(studied)
    pooled = _pooled(studied)
    for contrasts in studied:
        before = True
        for place, contrast in enumerate(contrasts):
            contrast["reached"] = before
            contrast["decision"] = _decision(contrast, metric, before, whole)
            contrast["finding"] = _finding(contrast, metric)
            before = contrast["decision"] in ("better", "worse")
            contrast["more_seeds"] = _more(contrast, metric, pooled, count) if place == 0 else None


def _firsts(studied: Sequence[Sequence[Contrast]]) -> list[int]:
    """The numbers of the schedules' first contrasts among all."""
    return [sum(len(contrasts) for contrasts in studied[:number]) for number in range(len(studied))]


def _shares(place: int, flat: Sequence[Contrast], n: int) -> dict[int, float]:
    """How a contrast's share of the level is divided between its metric and its compute."""
    if not _has_compute(flat[place]):
        return {place: 1.0}
    return {place: 1 - COMPUTE, n + place: COMPUTE}


def _has_compute(contrast: Contrast) -> bool:
    """Of the original no compute is compared: surgery was it until its final network began."""
    return contrast["arm"] != "original" and bool(contrast["time_to_accuracy"])


def _over_looks(contrast: Contrast, name: str) -> tuple[float | None, int | None]:
    """The smallest p-value of all looks, each times 2^k, and the number of seeds of that look.

    What has changed its sign since is not claimed.
    """
    if name == "p_compute" and not _has_compute(contrast):
        return None, None
    tests, found = contrast["tests"], []
    for k, test in enumerate(tests):
        turned = (test[name] is not None and (name == "p" and test["difference"] * contrast["difference"] < 0)) or (
            name == "p_compute" and test["sooner"] != tests[-1]["sooner"]
        )
        if test[name] is not None and not turned:
            found.append((min(1.0, 2 ** (k + 1) * test[name]), test["n"]))
    return min(found) if found else (None, None)


def _adjust_compute(contrast: Contrast, adjusted: float | None) -> None:
    for entry in contrast["time_to_accuracy"]:
        entry["training_flops"]["p_adjusted"] = None
    tested = [test["compute"] for test in contrast["tests"] if test["compute"] is not None]
    if tested:
        contrast["time_to_accuracy"][tested[-1]]["training_flops"]["p_adjusted"] = adjusted


def _decide_equivalences(studied: Sequence[Sequence[Contrast]]) -> None:
    """*As good*: the level is halved between the question's rival and the original, and passed on in order."""
    flat = [contrast for contrasts in studied for contrast in contrasts]
    firsts, starts = _firsts(studied), list[dict[int, float]]()
    for first, contrasts in zip(firsts, studied, strict=True):
        chosen = {first, *(first + place for place, each in enumerate(contrasts) if each["arm"] == "original")}
        starts.append({place: 1 / len(chosen) for place in chosen} if contrasts else {})
    weights, passes = [0.0] * len(flat), [dict[int, float]() for _ in flat]
    for number, (first, contrasts) in enumerate(zip(firsts, studied, strict=True)):
        for place, share in starts[number].items():
            weights[place] = share / len(studied)
        for place in range(first, first + len(contrasts) - 1):
            passes[place] = {place + 1: 1.0}
        others = [start for other, start in enumerate(starts) if other != number]
        if contrasts:
            passes[first + len(contrasts) - 1] = {
                place: share / len(others) for start in others for place, share in start.items()
            }
    for each, p in zip(flat, graphical([_over_looks(e, "p_within")[0] for e in flat], weights, passes), strict=True):
        each["equivalence"] |= {"p_adjusted": p, "shown": p is not None and p < LEVEL}


def _decision(contrast: Contrast, metric: Metric, reached: bool, whole: bool) -> str:
    if "untouched" in contrast and contrast["untouched"] == contrast["n"]:
        return "untouched"
    if reached and _shown(contrast):
        return "better" if metric.gain(contrast["difference"], 0.0) > 0 else "worse"
    if reached and (entry := sooner(contrast, metric)) is not None:
        return "less compute" if entry["training_flops"]["sooner"] else "more compute"
    if contrast["equivalence"]["shown"]:
        return "as good"
    if not whole:
        return "unfinished"
    if contrast["p_adjusted"] is None:
        return "untested"
    return "undecided" if reached else "not tested"


def _finding(contrast: Contrast, metric: Metric) -> str:
    """What may be said, in a few words."""
    decision, rival = contrast["decision"], NAMES[contrast["arm"]]
    fixed = {
        "untouched": UNTOUCHED, "untested": UNTESTED, "undecided": UNDECIDED, "unfinished": UNFINISHED,
        "not tested": NOT_REACHED, "as good": f"as good within {metric.smallest}",
    }  # fmt: skip
    if decision in fixed:
        return fixed[decision]
    small = f", by less than {metric.smallest}" if contrast["equivalence"]["shown"] and _shown(contrast) else ""
    if decision == "better":
        return f"surgery is better{small}"
    if decision == "worse":
        return f"{rival} is better{small}"
    if decision == "less compute":
        return "surgery needs less compute"
    return f"{rival} needs less compute"


def sooner(contrast: Mapping[str, Any], metric: Metric) -> dict[str, Any] | None:
    """The target to which one arm is shown to need fewer FLOPs, unless that arm may end worse.

    None against the original, which surgery was until its final network began: it comes later, whatever it is worth.
    """
    shown = [entry for entry in contrast["time_to_accuracy"] if _shown(entry["training_flops"])]
    if not shown or contrast["arm"] == "original":
        return None
    bounds = contrast["interval"] or [contrast["difference"]] * 2
    low, high = sorted(metric.gain(bound, 0.0) for bound in bounds)
    harmless = low > -metric.margin if shown[-1]["training_flops"]["sooner"] else high < metric.margin
    return shown[-1] if harmless else None


def _shown(test: Mapping[str, Any]) -> bool:
    return test.get("p_adjusted") is not None and test["p_adjusted"] < LEVEL


def _pooled(studied: Sequence[Sequence[Contrast]]) -> tuple[float, int]:
    """The deviation of single seeds' differences, pooled over all contrasts, and its degrees of freedom.

    The contrasts of a schedule share its surgeries, so they count as one for those.
    """
    known = [each for contrasts in studied for each in contrasts if each["n"] > 1]
    freedom = sum(each["n"] - 1 for each in known)
    if not freedom:
        return 0.0, 0
    squares = sum((each["n"] - 1) * each["deviation"] ** 2 for each in known)
    return math.sqrt(squares / freedom), sum(contrasts[0]["n"] - 1 for contrasts in studied if contrasts)


def _more(contrast: Contrast, metric: Metric, pooled: tuple[float, int], schedules: int) -> list[int | None] | None:
    """From how many to how many more seeds would probably show a difference of the margin, at the next look."""
    deviation, freedom = pooled
    if contrast["n"] < ENOUGH or freedom < 1 or deviation <= 0:
        return None
    share = (1 - COMPUTE if _has_compute(contrast) else 1.0) / schedules
    level = LEVEL / 2 ** (len(contrast["tests"]) + 1) * share
    found = []
    for probability in RANGE:  # of a deviation that is not larger
        high = deviation * math.sqrt(freedom / stats.chi2.ppf(1 - probability, freedom))
        wanted = seeds_needed(high, metric.margin, level=level, floor=contrast["floor"])
        found.append(None if wanted is None else max(0, wanted - contrast["n"]))
    return found
