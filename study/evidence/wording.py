"""The result in words: a short sentence for each schedule with the finding first, and the numbers behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from network_surgery.study.arms import LABELS
from network_surgery.study.evidence.contrast import AHEAD, UNDECIDED, UNTESTED, UNTOUCHED, sooner
from network_surgery.study.evidence.converged import unconverged
from network_surgery.study.task.metric import ACCURACY, Metric

Contrast = Mapping[str, Any]


def sentence(verdict: Contrast, metric: Metric = ACCURACY) -> str:
    """A schedule's verdict: which arm had not converged, and then surgery or its rival.

    >>> sentence({"finding": "no difference was found", "n": 5, "more_seeds": 14})
    'No difference found (n = 5); 14 more seeds would probably find one of 0.5 points.'
    """
    late, outcome = _late(verdict), _outcome(verdict, metric)
    return f"{_capital(late)}: {outcome[0].lower()}{outcome[1:]}" if late else outcome


def _late(verdict: Contrast) -> str:
    """Which of the two arms of a verdict had not converged; empty where both had."""
    sides = verdict.get("convergence", {})
    names = {"surgery": "surgery", "rival": AHEAD[str(verdict.get("arm", "restart"))]}
    return unconverged({name: sides[side] for side, name in names.items() if side in sides})


def _outcome(verdict: Contrast, metric: Metric) -> str:
    finding, n = verdict["finding"], verdict["n"]
    if finding == UNTOUCHED:
        return "The schedule never operated, so there is nothing to compare."
    if finding == UNTESTED:
        return f"Nothing can be said without a spread between seeds (n = {n})."
    if finding == UNDECIDED:
        more, one = verdict["more_seeds"], f"one of {metric.smallest}{_in(metric)}"
        if more == 0:
            return f"No difference found (n = {n}); {one} would probably have been."
        return f"No difference found (n = {n}); {more:,} more seed{'s' * (more > 1)} would probably find {one}."
    rival = AHEAD[str(verdict.get("arm", "restart"))]
    ours = finding.startswith("surgery")
    ahead, behind = ("Surgery", rival) if ours else (rival.capitalize(), "surgery")
    if finding.endswith("better"):
        low, high = (metric.amount(bound) for bound in sorted(abs(bound) for bound in verdict["interval"]))
        return (
            f"{ahead} is better by {metric.amount(verdict['difference'])}{_in(metric)} "
            f"(95 % interval {low.removesuffix(metric.unit)} to {high.removesuffix(metric.unit)}, n = {n})."
        )
    entry = sooner(verdict, metric)
    assert entry is not None  # that is what "faster" means
    test, target = entry["seconds"], metric.named(metric.goal(entry["target"]))
    if test["test"] == "log-rank":
        reached, theirs = entry["reached"] if ours else reversed(entry["reached"])
        return (
            f"{ahead} reaches {target} sooner than {behind} (with {reached} against {theirs} of {n} seeds) "
            "and ends no worse."
        )
    ratio, (low, high) = test["ratio"], test["interval"]
    if not ours:
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    return (
        f"{ahead} reaches {target} in {100 * ratio:.0f} % of the time of {behind} "
        f"(95 % interval {100 * low:.0f}–{100 * high:.0f} %, n = {n}) and ends no worse."
    )


def details(verdict: Contrast, metric: Metric = ACCURACY, unit: str = "images") -> str:
    """The numbers behind a schedule's sentence, beginning with the schedule."""
    rival = AHEAD[str(verdict.get("arm", "restart"))]
    lost = f"; {verdict['failed']} more failed in one arm" if verdict["failed"] else ""
    if verdict["untouched"]:
        lost += f"; its condition was never met in {verdict['untouched']}"
    return (
        f"{verdict['label']}: {metric.named(metric.text(verdict['surgery']))} on the test {unit}, {rival} "
        f"{metric.text(verdict['rival'])}, {spread(verdict, metric)} (n = {verdict['n']} seeds{lost}); "
        f"{verdict['compute_ratio']:.2f} × the training FLOPs and {verdict['time_ratio']:.2f} × the seconds of "
        f"{rival}{_until(verdict, metric)}."
    )


def other(contrast: Contrast, metric: Metric = ACCURACY) -> str:
    """The contrast with another arm, in a line; of time where it is what was found, and whether it had converged."""
    time = _until(contrast, metric) if sooner(contrast, metric) else ""
    rival = contrast.get("convergence", {}).get("rival", {"converged": None})
    late = f"; {words}" if (words := unconverged({"it": rival})) else ""
    return f"{LABELS[contrast['arm']]}: {spread(contrast, metric)}{time}: {contrast['finding']}{late}"


def spread(contrast: Contrast, metric: Metric = ACCURACY) -> str:
    """The difference (in points, of a percentage), with its interval and p-value where there are any."""
    words = metric.difference(contrast["difference"])
    if contrast["interval"]:
        low, high = map(metric.change, contrast["interval"])
        words += f" [{low}, {high}], p = {contrast['p_adjusted']:.2g} after Holm"
    return words


def overall(verdicts: Sequence[Contrast]) -> str:
    """All schedules in one line; before who won, whether an arm had not converged."""
    late = [words for verdict in verdicts if (words := _late(verdict))]
    findings, whole = _findings(verdicts), f"of {len(verdicts)} schedules"
    if late and len(verdicts) > 1:
        return f"an arm had not converged in {len(late)} {whole}; {findings.removeprefix(f'{whole}, ')}"
    return f"{late[0]}: {findings}" if late else findings


def _findings(verdicts: Sequence[Contrast]) -> str:
    found = Counter(verdict["finding"] for verdict in verdicts)
    if len(verdicts) == 1 or set(found) <= {UNTESTED, UNTOUCHED}:
        return f"{verdicts[0]['finding']}{' with these seeds' * (UNDECIDED in found)}."
    if set(found) == {UNDECIDED}:
        rival = AHEAD[str(verdicts[0].get("arm", "restart"))]
        return f"no difference between surgery and {rival} was found with these seeds."
    return f"of {len(verdicts)} schedules, " + "; ".join(f"{finding} for {n}" for finding, n in found.items()) + "."


def _until(contrast: Contrast, metric: Metric) -> str:
    """Time to the target that a claim is made of; else to the hardest one that all reach, if there is one."""
    entries = contrast["time_to_accuracy"]
    whole = [entry for entry in entries if entry["seconds"]["n"] == contrast["n"]]
    entry = sooner(contrast, metric) or (whole[-1] if whole else entries[-1] if entries else None)
    if entry is None:
        return ""
    test, target = entry["seconds"], f"{metric.named(metric.goal(entry['target']))} on validation"
    if test["n"] < contrast["n"]:
        ours, theirs = entry["reached"]
        return f"; {target} reached by {ours} of {contrast['n']}, the other arm by {theirs}{_p(test)}"
    bounds = "" if test["interval"] is None else " [{:.2f}, {:.2f}]".format(*test["interval"])
    flops = f", {entry['training_flops']['ratio']:.2f} × the FLOPs"
    return f"; {test['ratio']:.2f} ×{bounds} the seconds to {target}{_p(test)}{flops}"


def _p(test: Mapping[str, Any]) -> str:
    return "" if test["p_adjusted"] is None else f", p = {test['p_adjusted']:.2g} after Holm ({test['test']})"


def _in(metric: Metric) -> str:
    """What a difference is in, of a metric whose differences have no unit."""
    return "" if metric.percent else f" in {metric.name}"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
