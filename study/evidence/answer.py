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

from network_surgery.study.evidence import accounting
from network_surgery.study.evidence.wording import rival_of
from network_surgery.study.store.folder import Folder, Record, network_of
from network_surgery.study.store.words import names, short
from network_surgery.study.task.metric import Metric

#: Costs that differ by less than this fraction are the same.
SAME = 0.01
#: What a budget may limit besides the metric, as rows call it.
SIZES = {"parameters": "parameters", "flops": "flops"}

Row = Mapping[str, Any]
Contrast = Mapping[str, Any]


def answer(folder: Folder, rows: Sequence[Row], verdicts: Sequence[Contrast]) -> dict[str, Any] | None:
    """The answer of a study; None where there is no verdict.

    ``question`` in words, ``accounting``, ``budget``, ``met`` (None without one), ``trial``, its ``name`` and
    ``schedule`` in words, ``use`` (yes, no, undecided), ``finding``, ``sentence``, ``against`` (the rival that decided),
    ``size`` (``parameters`` and their ``share`` of the original's), ``flops`` of an answer (``value``, ``share``),
    ``latency`` of one sample (``seconds``, ``share``) and ``bytes`` of the file, where they are known, what is ``lost``
    against the original (``difference``, ``interval``, ``finding``), the ``network``'s file in the folder, of the seed
    that is best on validation, and ``load``: Python that loads and exports it.
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
    budget: dict[str, float] = dict(getattr(settings, "budget", None) or {})
    missed = _missed(budget, row, original)
    contrasts = [verdict, *verdict["others"]]
    against = next((each for each in contrasts if each["arm"] == "original"), None)
    allowed = next((abs(value) for name, value in budget.items() if name in ("metric", metric.name)), metric.margin)
    rivals = [each for each in contrasts if each["accounting"] == verdict["accounting"] and each["arm"] != "original"]
    use, decided = judge(verdict, rivals, bool(missed), loses(against, allowed, metric))
    record = _best(folder, trial)
    network = None if record is None else network_of(record.cell, folder.path)
    known = network is not None and network.exists()
    schedule = folder.records("surgery") and next(
        r.cell.schedule for r in folder.records("surgery") if r.cell.trial == trial
    )
    ordered = [v for v in dict.fromkeys(row["trial"] for row in rows) if v is not None]
    found: dict[str, Any] = {
        "question": question(folder, verdict),
        "accounting": verdict["accounting"],
        "budget": budget,
        "met": not missed if budget else None,
        "trial": trial,
        "name": names(ordered)[trial],
        "schedule": short(schedule),
        "use": use,
        "finding": decided["finding"],
        "against": decided["arm"],
        "size": _share(row, original, "parameters", "parameters"),
        "flops": _share(row, original, "flops", "value"),
        "latency": _latency(row, original),
        "bytes": network.stat().st_size if known and network else None,
        "lost": None if against is None else {key: against[key] for key in ("difference", "interval", "finding")},
        "network": str(network.relative_to(folder.path).as_posix()) if known and network else None,
        "load": load(folder, record) if known and record else None,
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
    """Whether one side of a contrast wins: it is shown to, or it is as good and the other one is ``dearer`` (or not)."""
    if contrast["decision"] in (shown, compute):
        return True
    ratio = contrast["compute_ratio"]
    return bool(contrast["decision"] == "as good" and (ratio > 1 + SAME if dearer else ratio < 1 - SAME))


def loses(against: Contrast | None, allowed: float, metric: Metric) -> bool:
    """Whether surgery is shown to be worse than the original by more than is allowed: its whole 95 % interval is."""
    if against is None or against["interval"] is None or against["decision"] == "unfinished":
        return False
    return all(metric.gain(bound, 0.0) < -allowed for bound in against["interval"])


def _missed(budget: Mapping[str, float], row: Row, original: Row | None) -> list[str]:
    """The sizes that miss their budget, in words."""
    found = []
    for name, setting in budget.items():
        value, whole = _value(row, name), None if original is None else _value(original, name)
        limit = setting if setting > 1 else None if whole is None else setting * whole
        if value is not None and limit is not None and value > limit * (1 + 1e-6) + (setting <= 1):
            over = f"{100 * value / whole:.0f} % of the {name}" if whole else f"{value:,.0f} {name}"
            found.append(f"{over}, where {100 * setting:.3g} % are asked for" if setting <= 1 else over)
    return found


def _value(row: Row, name: str) -> float | None:
    if name == "latency":
        seconds = next(iter(row["latency_seconds"].values()), None)
        return None if seconds is None else 1000 * seconds
    return row[SIZES[name]] if name in SIZES else None


def question(folder: Folder, verdict: Contrast) -> str:
    """The question of a study as a sentence."""
    budget = getattr(folder.settings, "budget", None) or {}
    limits = [
        f"{100 * value:.3g} % of the {name}" if value <= 1 else f"{value:,.0f} {name}"
        for name, value in budget.items()
        if name in (*SIZES, "latency", "bytes")
    ]
    what = f"With {' and '.join(limits)}, should" if limits else "Should"
    words = accounting.WORDS[verdict["accounting"]]
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


def _best(folder: Folder, trial: int) -> Record | None:
    """The surgery of this trial whose seed is best on validation."""
    records = [r for r in folder.records("surgery") if r.cell.trial == trial and not r.failed]
    return max(records, key=lambda r: folder.metric.gain(r.result["validation_metric"], 0.0), default=None)


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
    words = accounting.WORDS[found["accounting"]]
    network = f"{found['name']} ({found['schedule']}) has {_sizes(found)}{_lost(found, metric)}"
    rival = rival_of(decided)
    file = f" Network: {found['network']}." if found["network"] else ""
    if found["use"] == "yes":
        return f"Use it: {network}; {_reason(decided, rival, metric)}, {words}.{file}"
    if found["use"] == "no":
        return f"Do not use it: {_capital(rival)} {_counter(decided, metric)}, {words}. {_capital(network)}."
    if decided["decision"] == "unfinished":
        ended, of = verdict["progress"]
        return f"No answer yet: {ended:,} of {of:,} trainings of the comparison have ended."
    if missed:
        return f"Undecided: {found['name']} ({found['schedule']}) has {' and '.join(missed)}{_lost(found, metric)}."
    if _wins(verdict, "better", "less compute", dearer=False):
        limit = f"more than the {metric.amount(allowed)}{_in(metric)} that are allowed"
        return f"Undecided: {_reason(decided, rival, metric)}, {words}, but {network}, {limit}.{file}"
    return f"Undecided: {_open(decided, rival, metric)}, {words}; {network}.{file}"


def _sizes(found: Mapping[str, Any]) -> str:
    """Size and speed, as shares of the original's where it is there."""
    size, flops, latency = found["size"], found["flops"], found["latency"]
    if size["share"] is None:
        return f"{size['parameters']:,.0f} parameters"
    words = f"{100 * size['share']:.3g} % of the parameters, {100 * flops['share']:.3g} % of the FLOPs"
    return words + (f", {100 * latency['share']:.0f} % of the latency" if latency and latency["share"] else "")


def _lost(found: Mapping[str, Any], metric: Metric) -> str:
    lost = found["lost"]
    if lost is None:
        return ""
    low, high = map(metric.change, lost["interval"]) if lost["interval"] else (None, None)
    interval = f" [{low}, {high}]" if low else ""
    return f", {metric.difference(lost['difference'])}{interval} {_of(metric)} against the original"


def _reason(decided: Contrast, rival: str, metric: Metric) -> str:
    """Why surgery is to be preferred."""
    if decided["decision"] == "better":
        return f"it is better than {rival} by {metric.amount(decided['difference'])}{_in(metric)}"
    if decided["decision"] == "less compute":
        return f"it gets there with less compute than {rival} and ends no worse"
    cost = f"{100 * decided['compute_ratio']:.0f} % of its training FLOPs"
    return f"it is as good as {rival} within {metric.smallest}{_in(metric)} for {cost}"


def _counter(decided: Contrast, metric: Metric) -> str:
    """Why the rival is to be preferred."""
    if decided["decision"] == "worse":
        return f"is better by {metric.amount(decided['difference'])}{_in(metric)}"
    if decided["decision"] == "more compute":
        return "gets there with less compute and ends no worse"
    cost = f"{100 / decided['compute_ratio']:.0f} % of the training FLOPs"
    return f"is as good within {metric.smallest}{_in(metric)} for {cost}"


def _open(decided: Contrast, rival: str, metric: Metric) -> str:
    """Why neither is."""
    if decided["decision"] == "as good":
        return f"it is as good as {rival} within {metric.smallest}{_in(metric)} for the same training FLOPs"
    if decided["decision"] in ("untouched", "untested"):
        return str(decided["finding"])
    interval = ""
    if decided["interval"]:
        low, high = map(metric.change, decided["interval"])
        interval = f" [{low}, {high}]"
    return f"against {rival} it is {metric.difference(decided['difference'])}{interval}{_in(metric)}"


def _of(metric: Metric) -> str:
    return f"of {metric.name}"


def _in(metric: Metric) -> str:
    return "" if metric.percent else f" in {metric.name}"


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
