"""The answer of a study in one line: use it or not, its size, its speed, what is lost, the file, how to load it.

It is computed from the closing table's rows and the verdicts. Whether to use the network that surgery made is decided
by these rules, in this order (``use``):

1. *no*: a rival is shown to be better, or to need less compute and to end no worse, or it is as good within the margin
   and costs less.
2. *undecided*: the network misses a size of the budget, or is shown to lose more against the original than the budget
   allows of the metric (without such a limit: than the margin).
3. *yes*: surgery is shown to be better than the question's rival, or to need less compute and to end no worse, or it is
   as good within the margin and costs less.
4. *undecided*: anything else.

Costs are the training FLOPs in the question's accounting (``study.evidence.accounting``); rivals are the arms that
answer it. Of several schedules the answer is about the first one, in the order of the search, that gets *yes*; if none
does, about the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from network_surgery.study.config import SIZES
from network_surgery.study.counts import format_count
from network_surgery.study.evidence import accounting
from network_surgery.study.evidence.deciding import AS_GOOD
from network_surgery.study.evidence.wording import rival_of
from network_surgery.study.search.comparing import budget_of
from network_surgery.study.store.folder import Folder, Record, network_of
from network_surgery.study.store.words import names, short
from network_surgery.study.task.metric import Metric

#: Costs that differ by less than this fraction are the same.
SAME = 0.01

Row = Mapping[str, Any]
Contrast = Mapping[str, Any]


def answer(folder: Folder, rows: Sequence[Row], verdicts: Sequence[Contrast]) -> dict[str, Any] | None:
    """The answer of a study; None where there is no verdict.

    ``question`` in words, ``accounting``, ``budget``, ``met`` (None without one), ``trial``, its ``name`` and
    ``schedule`` in words, ``use`` (yes, no, undecided), ``finding``, ``sentence``, ``against`` (the rival that
    decided), ``size`` (``parameters`` and their ``share`` of the original's), ``flops`` of an answer (``value``,
    ``share``), ``latency`` of one sample (``seconds``, ``share``) and ``bytes`` of the file, where they are known, what
    is ``lost`` against the original (``difference``, ``interval``, ``finding``), the ``network``'s file in the folder,
    of the seed that is best on validation, and ``load``: Python that loads and exports it.
    """
    if not verdicts:
        return None
    original = next((row for row in rows if row["arm"] == "original"), None)
    found = [_answer(folder, rows, original, verdict) for verdict in verdicts]
    return next((each for each in found if each["use"] == "yes"), found[0])


def _answer(folder: Folder, rows: Sequence[Row], original: Row | None, verdict: Contrast) -> dict[str, Any]:
    metric, settings = folder.metric, folder.settings
    trial = verdict["trial"]
    row = next(row for row in rows if row["arm"] == "surgery" and row["trial"] == trial)
    budget = budget_of(folder)
    missed = [
        budget.words(limit)
        for limit in budget.limits
        if limit.name in SIZES and (limit.violation(row, metric) or 0.0) > 0
    ]
    contrasts = [verdict, *verdict["others"]]
    against = next((each for each in contrasts if each["arm"] == "original"), None)
    allowed = next((abs(limit.setting) for limit in budget.limits if limit.name == "metric"), metric.margin)
    rivals = [each for each in contrasts if each["accounting"] == verdict["accounting"] and each["arm"] != "original"]
    use, decided = judge(verdict, rivals, bool(missed), loses(against, allowed, metric))
    record = _best(folder, trial)
    network = network_of(record.cell, folder.path)
    kept = network.exists()
    ordered = [v for v in dict.fromkeys(row["trial"] for row in rows) if v is not None]
    found: dict[str, Any] = {
        "question": question(folder, verdict),
        "accounting": verdict["accounting"],
        "budget": dict(settings.budget or {}),
        "met": not missed if budget else None,
        "trial": trial,
        "name": names(ordered)[trial],
        "schedule": short(record.cell.schedule),
        "use": use,
        "finding": decided["finding"],
        "against": decided["arm"],
        "size": _share(row, original, "parameters", "parameters"),
        "flops": _share(row, original, "flops", "value"),
        "latency": _latency(row, original),
        "bytes": network.stat().st_size if kept else None,
        "lost": None if against is None else {key: against[key] for key in ("difference", "interval", "finding")},
        "network": network.relative_to(folder.path).as_posix() if kept else None,
        "load": load(folder, record) if kept else None,
    }
    return found | {"sentence": sentence(found, verdict, decided, missed, allowed, metric)}


def judge(verdict: Contrast, rivals: Sequence[Contrast], missed: bool, lost: bool) -> tuple[str, Contrast]:
    """``yes``, ``no`` or ``undecided`` by the rules of this module, and the contrast that decided.

    ``missed``: whether a size misses its budget; ``lost``: whether more than is allowed is shown to be lost.
    """
    for each in rivals:
        if _wins(each, "worse", "more compute", dearer=True):
            return "no", each
    if not missed and not lost and _wins(verdict, "better", "less compute", dearer=False):
        return "yes", verdict
    return "undecided", verdict


def _wins(contrast: Contrast, shown: str, compute: str, dearer: bool) -> bool:
    """Whether one side of a contrast wins: it is shown to, or both are as good and surgery is dearer (cheaper)."""
    if contrast["decision"] in (shown, compute):
        return True
    ratio = contrast["compute_ratio"]
    return bool(contrast["decision"] == "as good" and (ratio > 1 + SAME if dearer else ratio < 1 - SAME))


def loses(against: Contrast | None, allowed: float, metric: Metric) -> bool:
    """Whether surgery is shown to be worse than the original by more than is allowed: its whole 95 % interval is."""
    if against is None or against["interval"] is None or against["decision"] == "unfinished":
        return False
    return all(metric.gain(bound, 0.0) < -allowed for bound in against["interval"])


def question(folder: Folder, verdict: Contrast) -> str:
    """The question of a study as a sentence."""
    budget, words = budget_of(folder), accounting.WORDS[verdict["accounting"]]
    what = f"With {budget.sentence}: should" if budget else "Should"
    return f"{what} one operate on {folder.settings.subject}, or prefer {rival_of(verdict)}, {words}?"


def _share(row: Row, original: Row | None, name: str, key: str) -> dict[str, Any]:
    return {key: row[name], "share": None if original is None else row[name] / original[name]}


def _latency(row: Row, original: Row | None) -> dict[str, Any] | None:
    """Of one sample."""
    seconds = row["latency_seconds"].get("1")
    if seconds is None:
        return None
    before = None if original is None else original["latency_seconds"].get("1")
    return {"seconds": seconds, "share": seconds / before if before else None}


def _best(folder: Folder, trial: int) -> Record:
    """The surgery of this trial whose seed is best on validation."""
    records = [r for r in folder.records("surgery") if r.cell.trial == trial and not r.failed]
    return max(records, key=lambda r: folder.metric.gain(r.result["validation_metric"], 0.0))


def load(folder: Folder, record: Record) -> str:
    """Three lines of Python that load a network and export it for use without this package."""
    here = f'study.open("{folder.path}"{task_of(folder)})'
    return (
        f"import torch; from network_surgery import study; result = {here}\n"
        f"network = result.network(trial={record.cell.trial}, seed={record.cell.seed}).eval()\n"
        'torch.export.save(torch.export.export(network, *result.example()), "network.pt2")'
    )


def task_of(folder: Folder) -> str:
    """What ``study.open`` needs besides the folder: the task, where Python gave it."""
    name = folder.settings.task
    return f", task={name.rpartition(':')[2]}" if name.startswith("python:") else ""


def sentence(
    found: Mapping[str, Any], verdict: Contrast, decided: Contrast, missed: Sequence[str], allowed: float,
    metric: Metric,
) -> str:  # fmt: skip
    """The answer in one line."""
    words, what = accounting.WORDS[found["accounting"]], f"{found['name']} ({found['schedule']})"
    rival, numbers = rival_of(decided), f"{_sizes(found)}{_describe_lost(found, metric)}"
    file = f" File: {found['network']}." if found["network"] else ""
    if decided["decision"] == "unfinished":
        ended, of = verdict["progress"]
        return f"No answer yet: {ended:,} of {format_count(of, 'training run')} of the comparison have ended."
    if found["use"] == "yes":
        return f"Use {what}: {numbers}; it {_reason(decided, rival, metric)}, {words}.{file}"
    if found["use"] == "no":
        return f"Do not use {what}: {rival} {_counter(decided, metric)}, {words}; it has {numbers}."
    if missed:
        return f"Undecided about {what}: it misses the budget ({'; '.join(missed)}); it has {numbers}.{file}"
    if _wins(verdict, "better", "less compute", dearer=False):
        why = f"it {_reason(decided, rival, metric)}, {words}"
        limit = f"more than the {metric.amount(allowed)}{_in(metric)} that may be lost"
        return f"Undecided about {what}: {why}, but it has {numbers}, {limit}.{file}"
    return f"Undecided about {what}: {_why_open(decided, rival, metric)}, {words}; it has {numbers}.{file}"


def _sizes(found: Mapping[str, Any]) -> str:
    """Size and speed, as shares of the original's where it is there."""
    size, flops, latency = found["size"], found["flops"], found["latency"]
    if size["share"] is None:
        return f"{size['parameters']:,.0f} parameters"
    words = f"{100 * size['share']:.3g} % of the parameters, {100 * flops['share']:.3g} % of the FLOPs"
    return words + (f", {100 * latency['share']:.0f} % of the latency" if latency and latency["share"] else "")


def _describe_lost(found: Mapping[str, Any], metric: Metric) -> str:
    lost = found["lost"]
    if lost is None:
        return ""
    interval = "" if lost["interval"] is None else " [{}, {}]".format(*map(metric.change, lost["interval"]))
    shown = f" ({lost['finding']})" if str(lost["finding"]).startswith(AS_GOOD) else ""
    return f", {metric.name} {metric.difference(lost['difference'])}{interval} against the original{shown}"


def _reason(decided: Contrast, rival: str, metric: Metric) -> str:
    """Why surgery is to be preferred."""
    if decided["decision"] == "better":
        return f"is better than {rival} by {metric.amount(decided['difference'])}{_in(metric)}"
    if decided["decision"] == "less compute":
        return f"gets there with less compute than {rival} and ends no worse"
    cost = f"{100 * decided['compute_ratio']:.0f} % of its training FLOPs"
    return f"is as good as {rival} within {metric.smallest}{_in(metric)} for {cost}"


def _counter(decided: Contrast, metric: Metric) -> str:
    """Why the rival is to be preferred."""
    if decided["decision"] == "worse":
        return f"is better by {metric.amount(decided['difference'])}{_in(metric)}"
    if decided["decision"] == "more compute":
        return "gets there with less compute and ends no worse"
    cost = f"{100 / decided['compute_ratio']:.0f} % of the training FLOPs"
    return f"is as good within {metric.smallest}{_in(metric)} for {cost}"


def _why_open(decided: Contrast, rival: str, metric: Metric) -> str:
    """Why neither is."""
    if decided["decision"] == "as good":
        return f"it is as good as {rival} within {metric.smallest}{_in(metric)} for the same training FLOPs"
    if decided["decision"] in ("untouched", "untested"):
        return str(decided["finding"])
    interval = "" if decided["interval"] is None else " [{}, {}]".format(*map(metric.change, decided["interval"]))
    return f"against {rival} {metric.name} is {metric.difference(decided['difference'])}{interval}"


def _in(metric: Metric) -> str:
    return "" if metric.percent else f" in {metric.name}"
