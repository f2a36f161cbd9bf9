"""The result in words: a short sentence for each schedule with the finding first, and the numbers behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from network_surgery.study.arms import LABELS
from network_surgery.study.evidence.contrast import AHEAD, MARGIN, UNDECIDED, UNTESTED, UNTOUCHED, sooner

Contrast = Mapping[str, Any]


def sentence(verdict: Contrast) -> str:
    """A schedule's verdict: surgery or restarting.

    >>> sentence({"finding": "no difference was found", "n": 5, "more_seeds": 14})
    'No difference found (n = 5); 14 more seeds would probably find one of 0.5 points.'
    """
    finding, n = verdict["finding"], verdict["n"]
    if finding == UNTOUCHED:
        return "The schedule never operated, so there is nothing to compare."
    if finding == UNTESTED:
        return f"Nothing can be said without a spread between seeds (n = {n})."
    if finding == UNDECIDED:
        more, one = verdict["more_seeds"], f"one of {100 * MARGIN:g} points"
        if more == 0:
            return f"No difference found (n = {n}); {one} would probably have been."
        return f"No difference found (n = {n}); {more:,} more seed{'s' * (more > 1)} would probably find {one}."
    rival = AHEAD[str(verdict.get("arm", "restart"))]
    ours = finding.startswith("surgery")
    ahead, behind = ("Surgery", rival) if ours else (rival.capitalize(), "surgery")
    if finding.endswith("better"):
        low, high = sorted(abs(bound) for bound in verdict["interval"])
        return (
            f"{ahead} is better by {_points(abs(verdict['difference']))} points "
            f"(95 % interval {_points(low)} to {_points(high)}, n = {n})."
        )
    entry = sooner(verdict)
    assert entry is not None  # that is what "faster" means
    test, target = entry["seconds"], f"{100 * entry['target']:.1f} %"
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


def details(verdict: Contrast) -> str:
    """The numbers behind a schedule's sentence, beginning with the schedule."""
    rival = AHEAD[str(verdict.get("arm", "restart"))]
    lost = f"; {verdict['failed']} more failed in one arm" if verdict["failed"] else ""
    if verdict["untouched"]:
        lost += f"; its condition was never met in {verdict['untouched']}"
    return (
        f"{verdict['label']}: {100 * verdict['surgery']:.2f} % on the test images, {rival} "
        f"{100 * verdict['rival']:.2f} %, {spread(verdict)} (n = {verdict['n']} seeds{lost}); "
        f"{verdict['compute_ratio']:.2f} × the training FLOPs and {verdict['time_ratio']:.2f} × the seconds of "
        f"{rival}{_until(verdict)}."
    )


def other(contrast: Contrast) -> str:
    """The contrast with another arm, in a line; of time where it is what was found."""
    time = _until(contrast) if sooner(contrast) else ""
    return f"{LABELS[contrast['arm']]}: {spread(contrast)}{time}: {contrast['finding']}"


def spread(contrast: Contrast) -> str:
    """The difference in points, with its interval and p-value where there are any."""
    words = f"{_signed(contrast['difference'])} points"
    if contrast["interval"]:
        low, high = map(_signed, contrast["interval"])
        words += f" [{low}, {high}], p = {contrast['p_adjusted']:.2g} after Holm"
    return words


def overall(verdicts: Sequence[Contrast]) -> str:
    """All schedules in one line."""
    found = Counter(verdict["finding"] for verdict in verdicts)
    if len(verdicts) == 1 or set(found) <= {UNTESTED, UNTOUCHED}:
        return f"{verdicts[0]['finding']}{' with these seeds' * (UNDECIDED in found)}."
    if set(found) == {UNDECIDED}:
        rival = AHEAD[str(verdicts[0].get("arm", "restart"))]
        return f"no difference between surgery and {rival} was found with these seeds."
    return f"of {len(verdicts)} schedules, " + "; ".join(f"{finding} for {n}" for finding, n in found.items()) + "."


def _until(contrast: Contrast) -> str:
    """Time to the accuracy that a claim is made of; else to the highest one that all reach, if there is one."""
    entries = contrast["time_to_accuracy"]
    whole = [entry for entry in entries if entry["seconds"]["n"] == contrast["n"]]
    entry = sooner(contrast) or (whole[-1] if whole else entries[-1] if entries else None)
    if entry is None:
        return ""
    test, target = entry["seconds"], f"{100 * entry['target']:.1f} % on validation"
    if test["n"] < contrast["n"]:
        ours, theirs = entry["reached"]
        return f"; {target} reached by {ours} of {contrast['n']}, the other arm by {theirs}{_p(test)}"
    bounds = "" if test["interval"] is None else " [{:.2f}, {:.2f}]".format(*test["interval"])
    flops = f", {entry['training_flops']['ratio']:.2f} × the FLOPs"
    return f"; {test['ratio']:.2f} ×{bounds} the seconds to {target}{_p(test)}{flops}"


def _p(test: Mapping[str, Any]) -> str:
    return "" if test["p_adjusted"] is None else f", p = {test['p_adjusted']:.2g} after Holm ({test['test']})"


def _signed(value: float) -> str:
    """A fraction in points, with its sign; zero is not negative."""
    return f"{round(100 * value, 2) + 0.0:+.2f}"


def _points(value: float) -> str:
    """A fraction in points, to one digit after the point or two."""
    return f"{100 * value:.1f}" if value >= 0.00995 else f"{100 * value:.2f}"
