"""The result in words: a short sentence for each schedule with the question and the finding, and its numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from network_surgery.study.arms import LABELS
from network_surgery.study.evidence.accounting import WORDS
from network_surgery.study.evidence.converged import find_unconverged
from network_surgery.study.evidence.deciding import NAMES, UNDECIDED, UNTESTED, UNTOUCHED, sooner
from network_surgery.study.task.metric import ACCURACY, Metric

Contrast = Mapping[str, Any]


def sentence(verdict: Contrast, metric: Metric = ACCURACY, unit: str = "images") -> str:
    """A schedule's verdict: which arm had not converged, which question it answers, and then surgery or its rival."""
    late, outcome = _late(verdict), _outcome(verdict, metric, unit)
    question = WORDS[str(verdict.get("accounting", "zero"))]
    words = outcome if verdict["decision"] in ("untouched", "untested", "unfinished") else f"{question}, {outcome}"
    return _capital(f"{late}: {words}" if late else words)


def _late(verdict: Contrast) -> str:
    """Which of the two arms of a verdict had not converged; empty where both had."""
    sides = verdict.get("convergence", {})
    names = {"surgery": "surgery", "rival": rival_of(verdict)}
    return find_unconverged({name: sides[side] for side, name in names.items() if side in sides})


def rival_of(contrast: Contrast) -> str:
    """What surgery is held against, as a sentence calls it.

    >>> rival_of({"arm": "restart_flops"}), rival_of({"arm": "original"})
    ('restarting at equal FLOPs', 'the original')
    """
    return NAMES[str(contrast.get("arm", "restart"))]


def _outcome(verdict: Contrast, metric: Metric, unit: str) -> str:
    decision, n, rival = verdict["decision"], verdict["n"], rival_of(verdict)
    if decision == "untouched":
        return f"{UNTOUCHED}."
    if decision == "untested":
        return f"{UNTESTED} (n = {n})."
    if decision == "unfinished":
        ended, of = verdict["progress"]
        return f"{ended:,} of {of:,} training runs have ended; no verdict before the end."
    if decision in ("undecided", "not tested"):
        last = "not tested, since a contrast before it is undecided" if decision == "not tested" else "undecided"
        words = f"surgery against {rival} is {last}: {metric.difference(verdict['difference'])}{_in(metric)}"
        return f"{words}{_of_these(verdict, unit)}{_brackets(verdict, metric, True)}{_more(verdict, metric)}."
    if decision == "as good":
        words = f"surgery is as good as {rival} within {metric.smallest}{_in(metric)}{_of_these(verdict, unit)}"
        return f"{words}: {metric.difference(verdict['difference'])}{_brackets(verdict, metric)}."
    ours = decision in ("better", "less compute")
    ahead, behind = ("surgery", rival) if ours else (rival, "surgery")
    if decision in ("better", "worse"):
        small = f", less than {metric.smallest}" if verdict["equivalence"]["shown"] else ""
        bounds = verdict["interval"] or [verdict["difference"]] * 2
        low, high = (metric.amount(bound) for bound in sorted(abs(bound) for bound in bounds))
        between = f"95 % interval {low.removesuffix(metric.unit)} to {high.removesuffix(metric.unit)}, "
        between = between if verdict["interval"] else "the same in every seed, "
        return (
            f"{ahead} is better than {behind} by {metric.amount(verdict['difference'])}{_in(metric)}{small}"
            f"{_of_these(verdict, unit)} ({between}n = {n}{_earlier(verdict)})."
        )
    entry = sooner(verdict, metric)
    assert entry is not None  # that is what the decision means
    test, target = entry["training_flops"], metric.named(metric.goal(entry["target"]))
    if test["test"] == "log-rank":
        reached, theirs = entry["reached"] if ours else reversed(entry["reached"])
        return (
            f"{ahead} reaches {target} with less compute than {behind} ({reached} against {theirs} of {n} seeds get "
            f"there) and ends no worse."
        )
    ratio, (low, high) = test["ratio"], test["interval"] or [test["ratio"]] * 2
    if not ours:
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    between = f"95 % interval {100 * low:.0f}–{100 * high:.0f} %, " if test["interval"] else ""
    return (
        f"{ahead} reaches {target} with {100 * ratio:.0f} % of the training FLOPs of {behind} "
        f"({between}n = {n}) and ends no worse."
    )


def _brackets(contrast: Contrast, metric: Metric, undecided: bool = False) -> str:
    """The interval and the number of seeds, in brackets; a p-value where the interval does not show ``undecided``."""
    n, interval = contrast["n"], contrast["interval"]
    if not interval:
        return f" (the same in every seed, n = {n})" if n > 1 else f" (n = {n})"
    low, high = map(metric.change, interval)
    p = f", adjusted p = {contrast['p_adjusted']:.2g}" if undecided and interval[0] * interval[1] > 0 else ""
    return f" (95 % interval {low} to {high}, n = {n}{p if contrast.get('reached', True) else ''})"


def _of_these(contrast: Contrast, unit: str) -> str:
    """Where it holds for the very samples of the test alone: which those are."""
    return "" if contrast.get("samples") else f" for these test {unit}"


def _earlier(contrast: Contrast) -> str:
    """Which look has shown it, where that was an earlier one."""
    seeds = contrast.get("shown_with")
    return "" if seeds in (None, contrast["n"]) else f"; shown with the first {seeds}"


def _more(verdict: Contrast, metric: Metric) -> str:
    """How many more seeds would show a difference of the margin, probably."""
    if verdict.get("more_seeds") is None:
        return ""
    low, high = verdict["more_seeds"]
    one = f"a difference of {metric.smallest}{_in(metric)}"
    if low is None:
        return f"; no number of seeds would show {one} with so few test samples"
    if high == 0:
        return f"; {one} would probably have been shown"
    if high is None:
        return (
            f"; {low:,} more seeds or many more would show {one}"
            if low
            else f"; it may take many more seeds to show {one}"
        )
    number = f"{low:,} to {high:,}" if low != high else f"{low:,}"
    return f"; {number} more seed{'s' * (high > 1)} would probably show {one}"


def details(verdict: Contrast, metric: Metric = ACCURACY, unit: str = "images") -> str:
    """The numbers of a schedule's sentence, beginning with the schedule."""
    rival = rival_of(verdict)
    lost = f"; {verdict['failed']} more failed in one arm" if verdict["failed"] else ""
    if verdict["untouched"]:
        lost += f"; its condition was never met in {verdict['untouched']}"
    return (
        f"{verdict['label']}: {metric.named(metric.text(verdict['surgery']))} on the test {unit}, {rival} "
        f"{metric.text(verdict['rival'])}, {spread(verdict, metric)} (n = {verdict['n']} seeds{lost}; "
        f"{_describe_draw(verdict, unit)}); {verdict['compute_ratio']:.2f} × the training FLOPs and "
        f"{verdict['time_ratio']:.2f} × the seconds of "
        f"{rival}{_until(verdict, metric)}."
    )


def other(contrast: Contrast, metric: Metric = ACCURACY, unit: str = "images") -> str:
    """The contrast with another arm, in a line; of compute where it is what was shown, and whether it had converged."""
    compute = _until(contrast, metric) if sooner(contrast, metric) else ""
    rival = contrast.get("convergence", {}).get("rival", {"converged": None})
    late = f"; {words}" if (words := find_unconverged({"it": rival})) else ""
    return f"{LABELS[contrast['arm']]}: {spread(contrast, metric)}{compute}: {contrast['finding']}{late}"


def with_interval(contrast: Contrast, metric: Metric = ACCURACY) -> str:
    """The difference (in points, of a percentage), with its interval where there is one."""
    words = metric.difference(contrast["difference"])
    if contrast["interval"]:
        low, high = map(metric.change, contrast["interval"])
        words += f" [{low}, {high}]"
    return words


def spread(contrast: Contrast, metric: Metric = ACCURACY) -> str:
    """The difference (in points, of a percentage), with its interval and adjusted p-values where there are any."""
    words, known = with_interval(contrast, metric), list[str]()
    if contrast["p_adjusted"] is not None and contrast.get("reached", True):
        known.append(f"{contrast['p_adjusted']:.2g} for a difference")
    within = contrast["equivalence"].get("p_adjusted")
    if within is not None and within < 1:
        known.append(f"{within:.2g} for less than {metric.smallest}")
    return f"{words}, adjusted p = {' and '.join(known)}" if known else words


def overall(verdicts: Sequence[Contrast]) -> str:
    """All schedules in one line: the question, whether an arm had not converged, and who won."""
    late = [words for verdict in verdicts if (words := _late(verdict))]
    question, findings = WORDS[str(verdicts[0].get("accounting", "zero"))], _findings(verdicts)
    whole = f"of {len(verdicts)} schedules"
    if late and len(verdicts) > 1:
        counted = f"an arm had not converged in {len(late)} {whole}"
        return f"{question}, {counted}; {findings.removeprefix(f'{whole}, ')}"
    return f"{late[0]}: {question}, {findings}" if late else f"{question}, {findings}"


def _findings(verdicts: Sequence[Contrast]) -> str:
    found = Counter(verdict["finding"] for verdict in verdicts)
    rival = rival_of(verdicts[0])
    if len(verdicts) == 1 or set(found) <= {UNTESTED, UNTOUCHED}:
        return f"surgery against {rival} is undecided." if UNDECIDED in found else f"{verdicts[0]['finding']}."
    if set(found) == {UNDECIDED}:
        return f"surgery against {rival} is undecided for all {len(verdicts)} schedules."
    return f"of {len(verdicts)} schedules, " + "; ".join(f"{finding} for {n}" for finding, n in found.items()) + "."


def _describe_draw(contrast: Contrast, unit: str) -> str:
    """Of what the interval and the p-values are."""
    if contrast.get("samples"):
        return f"for new seeds and new {unit}, of {contrast['samples']:,} here"
    return f"for new seeds and these test {unit}"


def _until(contrast: Contrast, metric: Metric) -> str:
    """Compute to the target that a claim is made of; else to the hardest one that all reach, if there is one."""
    entries = contrast["time_to_accuracy"]
    whole = [entry for entry in entries if entry["training_flops"]["n"] == contrast["n"]]
    entry = sooner(contrast, metric) or (whole[-1] if whole else entries[-1] if entries else None)
    if entry is None:
        return ""
    test, target = entry["training_flops"], f"{metric.named(metric.goal(entry['target']))} on validation"
    if test["n"] < contrast["n"]:
        ours, theirs = entry["reached"]
        return f"; {target} reached by {ours} of {contrast['n']}, the other arm by {theirs}{_p(test)}"
    bounds = "" if test["interval"] is None else " [{:.2f}, {:.2f}]".format(*test["interval"])
    seconds = f", {entry['seconds']['ratio']:.2f} × the seconds"
    return f"; {test['ratio']:.2f} ×{bounds} the FLOPs to {target}{_p(test)}{seconds}"


def _p(test: Mapping[str, Any]) -> str:
    return "" if test.get("p_adjusted") is None else f", adjusted p = {test['p_adjusted']:.2g} ({test['test']})"


def _in(metric: Metric) -> str:
    """What a difference is in, of a metric whose differences have no unit."""
    return "" if metric.percent else f" in {metric.name}"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
