"""What may be said of all contrasts of a study, with one error rate.

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
setting ``arms`` lists them, the original last. Each is tested once the one before it has shown a difference. Arms that
answer the other question are a chain of their own, which has a fifth of the level. Several schedules share it; a chain
that has shown a difference in all its contrasts passes its share on to the others (Bretz et al. 2009). Of each
contrast's share a fifth is for the compute to a target, and joins the rest if that is shown. So at most 5 % of studies
claim a difference that is not there. Claims of *as good* have 5 % of their own: half for the question's rival, half for
the original, passed on in the same order.

**Looking again spends it.** The k-th look at a comparison, with more seeds, tests at 5 % / 2^k, so all looks together
stay below 5 %, and what one of them has shown stays shown: p-values are multiplied by 2^k, and the smallest counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from network_surgery.study.evidence.contrast import Contrast
from network_surgery.study.evidence.significance import LEVEL, graphical, seeds_needed
from network_surgery.study.task.metric import Metric

#: Findings where no arm is ahead.
UNDECIDED = "undecided"
UNTOUCHED = "the schedule never operated, so there is nothing to compare"
UNTESTED = "nothing can be said without a spread between seeds"
NOT_REACHED = "not tested, since the one before was undecided"
UNFINISHED = "no verdict before the end"
#: How the finding begins where a difference is shown to be smaller than the margin.
AS_GOOD = "as good"
#: Arm → its name in a sentence.
NAMES = {
    "original": "the original",
    "restart": "restarting",
    "restart_flops": "restarting at equal FLOPs",
    "restart_seconds": "restarting at equal seconds",
    "restart_fair": "restarting with the budget of pruning at the end",
    "original_flops": "the original at equal FLOPs",
    "restart_late": "restarting when surgery began",
    "restart_late_flops": "restarting when surgery began, at equal FLOPs",
    "operate_first": "operating first",
    "operate_first_flops": "operating first, at equal FLOPs",
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
    "stacking": "growing by stacking",
}
#: The part of a contrast's share of the level that is for its compute.
COMPUTE = 0.2
#: The part of a schedule's share that is for the other question, where there are arms that answer it.
OTHER = 0.2
#: The fewest seeds from which it is said how many more would do.
ENOUGH = 5
#: The range of a deviation that a number of seeds is computed for, as probabilities.
RANGE = (0.1, 0.9)


def decide(
    chains: Sequence[Sequence[Contrast]], metric: Metric, whole: bool = True, shares: Sequence[float] | None = None
) -> None:
    """Decides all contrasts of a study: chains of them, each in the order in which it is tested.

    ``shares``: the chains' shares of the level at first, by default equal ones. ``whole``: whether every training run
    of the comparison has ended; else only what an earlier look has shown is said.

    Adds ``p_adjusted`` (also to the tested target, and to ``equivalence``, with ``shown``), ``shown_with`` (the number
    of seeds of the look that showed the difference), ``reached`` (whether it was tested), ``decision`` and ``finding``,
    and ``more_seeds``: from how many to how many more would probably show a difference of the margin (None: no number
    would), or None where that is not said.
    """
    flat = [contrast for contrasts in chains for contrast in contrasts]
    shares = shares or [1 / max(len(chains), 1)] * len(chains)
    firsts = [sum(len(contrasts) for contrasts in chains[:number]) for number in range(len(chains))]
    _decide_differences(flat, chains, shares, firsts)
    _decide_equivalences(flat, chains, shares, firsts)
    pooled = _pool(chains)
    for contrasts, share in zip(chains, shares, strict=True):
        reached = True
        for place, contrast in enumerate(contrasts):
            contrast["reached"] = reached
            contrast["decision"] = _decision(contrast, metric, reached, whole)
            contrast["finding"] = _finding(contrast, metric)
            contrast["more_seeds"] = _more(contrast, metric, pooled, share) if place == 0 else None
            reached = contrast["decision"] in ("better", "worse")


def _decide_differences(
    flat: Sequence[Contrast], chains: Sequence[Sequence[Contrast]], shares: Sequence[float], firsts: Sequence[int]
) -> None:
    """Differences of the metric, and of the compute to a target: of n contrasts the tests n … 2n − 1."""
    n = len(flat)
    weights, passes = [0.0] * (2 * n), [dict[int, float]() for _ in range(2 * n)]
    for first, share in zip(firsts, shares, strict=True):
        for test, part in _shares(first, flat, n).items():
            weights[test] = share * part
    for first, contrasts in zip(firsts, chains, strict=True):
        for here in range(first, first + len(contrasts)):
            passes[n + here] = {here: 1.0}
            last = here == first + len(contrasts) - 1
            following = [other for other in firsts if other != first] if last else [here + 1]
            for each in following:
                for test, part in _shares(each, flat, n).items():
                    passes[here][test] = part / len(following)
    p = [_over_looks(each, "p") for each in flat] + [_over_looks(each, "p_compute") for each in flat]
    adjusted = graphical([value for value, _ in p], weights, passes)
    for place, contrast in enumerate(flat):
        contrast["p_adjusted"], contrast["shown_with"] = adjusted[place], p[place][1]
        _adjust_compute(contrast, adjusted[n + place])


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


def _decide_equivalences(
    flat: Sequence[Contrast], chains: Sequence[Sequence[Contrast]], shares: Sequence[float], firsts: Sequence[int]
) -> None:
    """*As good*: a chain's level is halved between its first contrast and the original, and passed on in order."""
    starts = []
    for first, contrasts in zip(firsts, chains, strict=True):
        chosen = {first, *(first + place for place, each in enumerate(contrasts) if each["arm"] == "original")}
        starts.append({place: 1 / len(chosen) for place in chosen})
    weights, passes = [0.0] * len(flat), [dict[int, float]() for _ in flat]
    for number, (first, contrasts) in enumerate(zip(firsts, chains, strict=True)):
        for place, part in starts[number].items():
            weights[place] = shares[number] * part
        last = first + len(contrasts) - 1
        passes[first:last] = [{place + 1: 1.0} for place in range(first, last)]
        others = [start for other, start in enumerate(starts) if other != number]
        passes[last] = {place: part / len(others) for start in others for place, part in start.items()}
    for each, p in zip(flat, graphical([_over_looks(e, "p_within")[0] for e in flat], weights, passes), strict=True):
        each["equivalence"] |= {"p_adjusted": p, "shown": p is not None and p < LEVEL}


def _decision(contrast: Contrast, metric: Metric, reached: bool, whole: bool) -> str:
    if "untouched" in contrast and contrast["untouched"] == contrast["n"]:
        return "untouched"
    if reached and _is_shown(contrast):
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
        "not tested": NOT_REACHED, "as good": f"{AS_GOOD} within {metric.smallest}",
    }  # fmt: skip
    if decision in fixed:
        return fixed[decision]
    small = f", by less than {metric.smallest}" if contrast["equivalence"]["shown"] and _is_shown(contrast) else ""
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
    shown = [entry for entry in contrast["time_to_accuracy"] if _is_shown(entry["training_flops"])]
    if not shown or contrast["arm"] == "original":
        return None
    bounds = contrast["interval"] or [contrast["difference"]] * 2
    low, high = sorted(metric.gain(bound, 0.0) for bound in bounds)
    harmless = low > -metric.margin if shown[-1]["training_flops"]["sooner"] else high < metric.margin
    return shown[-1] if harmless else None


def _is_shown(test: Mapping[str, Any]) -> bool:
    return test.get("p_adjusted") is not None and test["p_adjusted"] < LEVEL


def _pool(chains: Sequence[Sequence[Contrast]]) -> tuple[float, int]:
    """The deviation of single seeds' differences, pooled over all contrasts, and its degrees of freedom.

    The contrasts of a schedule share its surgeries, so they count as one for those.
    """
    known = [each for contrasts in chains for each in contrasts if each["n"] > 1]
    freedom = sum(each["n"] - 1 for each in known)
    if not freedom:
        return 0.0, 0
    squares = sum((each["n"] - 1) * each["deviation"] ** 2 for each in known)
    schedules = {each.get("trial"): each["n"] - 1 for contrasts in chains for each in contrasts[:1]}
    return math.sqrt(squares / freedom), sum(schedules.values())


def _more(contrast: Contrast, metric: Metric, pooled: tuple[float, int], share: float) -> list[int | None] | None:
    """From how many to how many more seeds would probably show a difference of the margin, at the next look."""
    deviation, freedom = pooled
    if contrast["n"] < ENOUGH or freedom < 1 or deviation <= 0:
        return None
    part = 1 - COMPUTE if _has_compute(contrast) else 1.0
    level = LEVEL / 2 ** (len(contrast["tests"]) + 1) * share * part
    found = []
    for probability in RANGE:  # of a deviation that is not larger
        high = deviation * math.sqrt(freedom / stats.chi2.ppf(1 - probability, freedom))
        wanted = seeds_needed(high, metric.margin, level=level, floor=contrast["floor"])
        found.append(None if wanted is None else max(0, wanted - contrast["n"]))
    return found
