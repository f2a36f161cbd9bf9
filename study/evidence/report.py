"""The report of a study: one HTML file that needs nothing else, from the content of ``results.json`` and the drawings.

The answer and its picture come first, then one table, then the details, folded. What is computed here is wording only;
numbers come from ``results``. The page is laid out in ``report.html.j2``.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from network_surgery.study.arms import LABELS
from network_surgery.study.evidence import front, race, wording
from network_surgery.study.evidence.drawing import Drawing, count
from network_surgery.study.evidence.figures.reading import (
    Results,
    describe_unfinished,
    find_finished,
    metric_of,
    unit_of,
)
from network_surgery.study.evidence.naming import arm_title, in_short, letters, schedules
from network_surgery.study.evidence.state import in_words
from network_surgery.study.store.folder import write_whole
from network_surgery.study.store.words import describe, short
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.records import spikes_of

MISSING = "–"
#: How many trials stand in the open; all of them are folded away below. So are failures and layers, if they are more.
BEST, FEW = 20, 5
#: A column: its title, what of a row it shows (None: nothing), and how that is worded.
Column = tuple[str, Callable[[Mapping[str, Any]], Any], Callable[[Any], str]]
Row = Mapping[str, Any]
#: Metrics beside the primary one that have words of their own.
OTHERS: dict[str, tuple[str, Callable[[float], str]]] = {
    "top 5": ("Among the first five", lambda share: f"{share:.2%}"),
}
#: Whether to use the network, as the page begins with it.
HEADS = {"yes": "Use it", "no": "Do not use it", "undecided": "Undecided"}
#: A contrast's decision in a narrow column, where it is not clear by itself whom it is about.
DECISIONS = {
    "better": "surgery is better", "worse": "surgery is worse", "less compute": "surgery needs less compute",
    "more compute": "surgery needs more compute",
}  # fmt: skip
#: What an arm is, for people who see the report first; of the others see ``study.arms.LABELS``.
ABOUT = {
    "original": "the network as it is made, trained without operations",
    "surgery": "the same network, operated on while it trains",
    "restart": "the architecture that surgery ended with, trained from fresh weights for the same epochs",
    "restart_flops": "the same for as many epochs as cost the training FLOPs of surgery",
    "restart_seconds": "the same for as many epochs as fit into the seconds of surgery",
    "original_flops": "the original for as many epochs as cost the training FLOPs of surgery",
    "restart_late": "the same for the epochs that were left when surgery began",
    "operate_first": "all operations before the first step, to the same sizes, then the whole training run",
    "operate_first_flops": "the same for as many epochs as cost the training FLOPs of surgery",
    "random": "random units removed from the same layers at the same moments: what the choice of units is worth",
}


def write(results: Results, path: Path, drawings: Mapping[str, Drawing]) -> None:
    """Writes the report of ``results`` (see ``study.store.folder``) with the drawings to ``path``.

    A study that still runs, or was interrupted, gets a report too: of the training runs so far, and it says so.
    """
    layout = (importlib.resources.files("network_surgery.study.evidence") / "report.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    comparison = results.get("comparison") or {}
    summary, names, words = comparison.get("summary", ()), letters(results), in_short(results)
    settings = {name: _harmless(value) for name, value in results["settings"].items()}
    metric, unit = metric_of(results), unit_of(results)
    columns = _columns(summary, metric, unit)
    drawn = {name: _figure(name, drawing) for name, drawing in drawings.items()}
    page = environment.from_string(layout).render(
        settings=settings,
        yaml="\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items()),
        subject=_subject(settings),
        metric=metric,
        unit=unit,
        sample=unit.removesuffix("s"),
        margin=_margin(settings, metric),
        machine=results["machine"],
        layers=results["layers"],
        limits={"best": BEST, "few": FEW},
        state=in_words(results["state"], path.parent.name),
        answer=_answer(results, metric, unit),
        picture=drawn.pop("answer", None),
        verdicts=[_verdict(v, names, words, race.reason(results, metric)) for v in comparison.get("verdicts", ())],
        groups=_groups(results, metric),
        glossary=[(arm_title(arm), ABOUT.get(arm) or LABELS.get(arm, "")) for arm in _arms(summary)],
        left_out=[
            (arm_title(each["arm"], names.get(each["trial"], "")), each["reason"])
            for each in comparison.get("left_out") or ()
        ],
        titles=[title for title, *_ in columns],
        measured=[
            {"arm": arm_title(row["arm"], names.get(row["trial"], "")), "numbers": [_cell(c, row) for c in columns]}
            for row in summary
        ],
        shared=_describe_sharing(comparison.get("cells", ())),
        moments=[_moment(row, names, metric) for row in results.get("moments") or ()],
        front=_front(results, names, words, metric),
        progress=_progress(results, metric, words),
        search=bool(results["state"]["search"]["of"]),
        times=_times(summary, names, metric),
        failures=[cell for cell in comparison.get("cells", ()) if "failure" in cell],
        figures=list(drawn.values()),
        trials=[
            _trial(trial, names, metric) for trial in sorted(results["trials"], key=lambda t: _rank(t, metric))
        ],
        schedules=[
            {"letter": letter, "words": describe(known[trial]), "trial": trial}
            for known in [schedules(results)] for trial, letter in names.items() if trial in known
        ],
    )  # fmt: skip
    write_whole(path, page)


def answer_line(results: Results) -> str:
    """The sentence that answers the study's question; before there is one, what was found so far."""
    answer, verdicts = results.get("answer") or {}, results["comparison"]["verdicts"]
    if answer.get("sentence"):
        return str(answer["sentence"])
    if verdicts:
        words = wording.overall(verdicts)
        return words[:1].upper() + words[1:]
    return "There is no answer yet: the comparison has no finished pair."


def _answer(results: Results, metric: Metric, unit: str) -> dict[str, Any]:
    """The answer for the top of the page: the question, the word that decides, the rest of the sentence, the facts."""
    answer = results.get("answer") or {}
    head, rest = HEADS.get(answer.get("use", ""), ""), answer_line(results)
    if answer.get("network"):  # which stands among the facts
        rest = rest.removesuffix(f" File: {answer['network']}.")
    if not head:
        head, rest = rest, ""
    rest = rest.removeprefix(f"{head}: ")
    return {
        "question": answer.get("question") or "Does surgery beat starting over?",
        "use": answer.get("use", "none"), "head": head, "rest": rest[:1].upper() + rest[1:],
        "facts": _facts(answer, metric, unit) if answer else [], "load": answer.get("load"),
    }  # fmt: skip


def _facts(answer: Mapping[str, Any], metric: Metric, unit: str) -> list[tuple[str, str, str]]:
    """What the chosen network is: a title, a value and what is small beside it."""

    def of(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.3g}% of the original"

    size, flops, latency, lost = (answer.get(key) or {} for key in ("size", "flops", "latency", "lost"))
    found = [("Parameters", count(round(size["parameters"])), of(size["share"]))] if size else []
    found += (
        [(f"FLOPs per {unit.removesuffix('s')}", count(round(flops["value"])), of(flops["share"]))] if flops else []
    )
    if latency:
        found.append(("Latency", f"{1000 * latency['seconds']:.3g} ms", of(latency["share"])))
    if lost:
        low, high = map(metric.change, lost["interval"]) if lost.get("interval") else ("", "")
        between = f"95% interval {low} to {high}" if low else ""
        found.append((f"{metric.title} − original", metric.difference(lost["difference"]), between))
    if answer.get("network"):
        kilobytes = f"{answer['bytes'] / 1000:,.0f} kB" if answer.get("bytes") else ""
        found.append(("Network's file", str(answer["network"]), kilobytes))
    return found


def _verdict(
    verdict: Row, names: Mapping[int, str], words: Mapping[int, str], why: tuple[int, str] | None
) -> dict[str, Any]:
    trial = verdict["trial"]
    chosen = why[1] if why is not None and why[0] == trial else None
    return {
        "letter": names[trial], "trial": trial, "schedule": words.get(trial, verdict.get("label", "")),
        "sentences": [s for s in (verdict["sentence"], verdict.get("also"), chosen) if s],
        "details": verdict["details"], "others": [each["sentence"] for each in verdict["others"]],
    }  # fmt: skip


def _arms(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in rows))


def _groups(results: Results, metric: Metric) -> list[dict[str, Any]]:
    """The table of arms: for each schedule the original, surgery and its rivals, with surgery minus each of them."""
    rows, names, words = results["comparison"]["summary"], letters(results), in_short(results)
    originals = [row for row in rows if row["arm"] == "original"]
    known = {
        verdict["trial"]: {each["arm"]: each for each in (verdict, *verdict["others"])}
        for verdict in results["comparison"]["verdicts"]
    }
    trials = list(dict.fromkeys(row["trial"] for row in rows if row["trial"] is not None))
    found = []
    for trial in trials or [None]:
        members = [*originals, *(row for row in rows if row["trial"] == trial and row["arm"] != "original")]
        entries = [_entry(row, originals, known.get(trial, {}).get(row["arm"]), metric) for row in members]
        if entries:
            found.append({
                "letter": names.get(trial, "") if trial is not None else "", "trial": trial,
                "schedule": words.get(trial, "") if trial is not None else "", "rows": entries,
            })  # fmt: skip
    return found


def _entry(row: Row, originals: Sequence[Row], contrast: Row | None, metric: Metric) -> dict[str, Any]:
    def times(name: str) -> str:
        if not originals or row["arm"] == "original" or not originals[0].get(name):
            return ""
        return f"×{row[name] / originals[0][name]:.2f}"

    difference, interval, decision = MISSING, "", ""
    if contrast is not None and contrast.get("difference") is not None:
        difference = metric.change(contrast["difference"])
        if contrast.get("interval"):
            interval = "[{}, {}]".format(*map(metric.change, contrast["interval"]))
        decision = DECISIONS.get(str(contrast.get("decision")), str(contrast.get("decision") or contrast["finding"]))
    return {
        "arm": arm_title(row["arm"]), "n": row["n"], "ours": row["arm"] == "surgery",
        "value": _mean(row, metric), "difference": difference, "interval": interval, "decision": decision,
        "parameters": count(round(row["parameters"])), "size": times("parameters"),
        "training": count(row["training_flops"]) if row.get("training_flops") else MISSING,
        "work": times("training_flops") if row.get("training_flops") else "",
        "seconds": f"{row['seconds']:.3g}",
        "slack": "" if row["seconds_deviation"] is None else f"± {row['seconds_deviation']:.2g}",
    }  # fmt: skip


def _columns(rows: Sequence[Row], metric: Metric, unit: str) -> list[Column]:
    """What else was measured of the arms; what none of them was measured by is left out."""
    sample = unit.removesuffix("s")
    found: list[Column] = [
        ("Parameters", lambda row: row["parameters"], lambda value: f"{value:,.0f}"),
        (f"FLOPs per {sample}", lambda row: row["flops"], count),
        ("Loss spike, median", lambda row: row["spike_factor"], lambda value: f"×{value:,.2f}"),
        ("Operation ÷ epoch, median", lambda row: row["operation_to_epoch"], lambda value: f"{100 * value:.3g}%"),
        (f"Milliseconds for 1 / 256 {unit}", lambda row: row["latency_seconds"] or None, _latencies),
        ("Still improving at the end", _convergence, lambda known: f"{known['improving']} of {known['n']}"),
        (f"{metric.gap.capitalize()} {metric.name}{metric.unit and ', points'}",
         lambda row: row.get("train_test_gap"), metric.change),
    ]  # fmt: skip
    for name in dict.fromkeys(name for row in rows for name in row.get("metrics", ())):
        title, words = OTHERS.get(name, (f"Test {name}", lambda value: f"{value:.4g}"))
        found.append((title, lambda row, name=name: row.get("metrics", {}).get(name), words))  # type: ignore[misc]
    found.append(("Peak GPU memory", lambda row: row.get("peak_memory"), lambda size: f"{size / 2**20:,.0f} MiB"))
    found.append(("Joules", lambda row: row.get("joules"), lambda energy: f"{energy:,.0f}"))
    return [column for column in found if any(column[1](row) is not None for row in rows)]


def _convergence(row: Row) -> Row | None:
    known = row.get("convergence")
    return known if known and known["n"] else None


def _cell(column: Column, row: Row) -> str:
    _, value_of, words = column
    value = value_of(row)
    return MISSING if value is None else words(value)


def _latencies(seconds: Mapping[str, float]) -> str:
    return " / ".join(f"{1000 * each:.3g}" for each in seconds.values())


def _describe_sharing(cells: Sequence[Row]) -> str:
    """What was not trained twice: epochs that are the original's, and training runs that count for two arms."""
    forked = [cell["forked"]["epoch"] for cell in cells if cell.get("forked")]
    same = sum("same_as" in cell for cell in cells)
    parts = []
    if forked:
        parts.append(
            f"{len(forked)} of {len(cells)} training runs went on from the original's checkpoint at their first "
            f"operation, which saved {sum(forked):,.0f} epochs"
        )
    if same:
        parts.append(f"{same} would have repeated another one exactly, which counts for both")
    words = "; ".join(parts)
    return f"{words[:1].upper()}{words[1:]}. Seconds and FLOPs are counted as if each had been trained alone." * bool(
        parts
    )


def _moment(row: Row, names: Mapping[int, str], metric: Metric) -> dict[str, Any]:
    """The operations of a moment: what they did to loss and metric, and when the loss was back."""

    def changed(change: Row | None, words: Callable[[float], str]) -> str:
        if change is None:
            return MISSING
        interval = change.get("samples") or change.get("seeds")
        return words(change["mean"]) + (" [{}, {}]".format(*map(words, interval)) if interval else "")

    def back(recovery: Row | None) -> str:
        if recovery is None:
            return MISSING
        rest = f", {recovery['never']} of {row['n']} never" if recovery["never"] else ""
        return ("never" if recovery["median"] is None else f"{recovery['median']:g}") + rest * (
            recovery["median"] is not None
        )

    return {
        "letter": names.get(row["trial"], ""), "epoch": f"{row['epoch']:g}", "operations": row["operations"],
        "numbers": [
            row["n"], f"×{row['factor']:.2f}", changed(row["loss"], lambda value: f"{value:+.3f}".replace("-", "−")),
            changed(row["metric"], metric.change), back(row["recovery"]["back"]), back(row["recovery"]["original"]),
        ],
    }  # fmt: skip


def _front(
    results: Results, names: Mapping[int, str], words: Mapping[int, str], metric: Metric
) -> dict[str, Any] | None:
    found = results.get("front")
    if not found:
        return None
    members = [
        f"{names[trial]}: {words.get(trial, '')}" if trial in names else f"{words.get(trial, '')} (trial {trial})"
        for trial in found["trials"]
    ]
    return {"sentence": front.sentence(found, metric), "members": members}


def _progress(results: Results, metric: Metric, words: Mapping[int, str]) -> str:
    """What the search found, in a sentence or two."""
    if not results["state"]["search"]["of"]:
        compared = {cell["trial"] for cell in results["comparison"]["cells"] if cell["trial"] is not None}
        have = "has" if len(compared) == 1 else "have"
        return f"Nothing is searched: every schedule is compared, of which {len(compared)} {have} ended."
    trials, budget = results["trials"], results.get("budget") or {}
    ended = find_finished(trials)
    text = (
        f"Of the search's {len(trials)} trials so far {describe_unfinished(trials)}. "
        if len(ended) < len(trials)
        else ""
    )
    if budget:
        text += f"{budget['feasible']} of {budget['of']} are within the budget ({budget['words']}). "
    if not ended:
        return text
    best = min(ended, key=lambda trial: _rank(trial, metric))
    most = "most accurate" if metric.name == "accuracy" else "best"
    within = " within the budget" * bool(budget and budget["feasible"])
    return (
        f"{text}The {most} trial of the search{within}: {words[best['trial']]} with "
        f"{metric.label(best['validation_metric'])} validation {metric.name} and {best['parameters']:,} parameters."
    )


def _rank(trial: Mapping[str, Any], metric: Metric) -> tuple[int, float, int]:
    """The best first, the smaller one of equals; then those beyond the budget or stopped early, failed ones last."""
    if "failure" in trial:
        return 3, math.inf, trial["trial"]
    later = 2 if "stopped" in trial else int(trial.get("state") == "infeasible")
    return later, metric.gain(0.0, trial["validation_metric"]), trial["parameters"]


def _times(rows: Sequence[Row], names: Mapping[int, str], metric: Metric) -> dict[str, Any]:
    """The table of times: its targets, and for each arm the median seconds to them and how many seeds got there."""
    timed = [row for row in rows if row.get("reached")]
    entries = []
    for row in timed:
        medians = [MISSING if seconds is None else f"{seconds:.2f}" for seconds in row["seconds_to"].values()]
        numbers = [f"{text} ({n})" for text, n in zip(medians, row["reached"].values(), strict=True)]
        entries.append({"arm": arm_title(row["arm"], names.get(row["trial"], "")), "numbers": [row["n"], *numbers]})
    return {
        "targets": [metric.goal(float(key)).replace(" %", "%") for key in timed[0]["reached"]] if timed else [],
        "rows": entries,
    }


def _trial(trial: Mapping[str, Any], names: Mapping[int, str], metric: Metric) -> dict[str, Any]:
    over = {name: value for name, value in (trial.get("violations") or {}).items() if value > 0}
    notes = [f"stopped early, after epoch {trial['stopped']}"] if trial.get("stopped") else []
    notes += (
        ["over the budget in " + ", ".join(f"{name} by {value:.0%}" for name, value in over.items())] if over else []
    )
    entry = {
        "number": trial["trial"], "letter": names.get(trial["trial"], ""), "schedule": short(trial["schedule"]),
        "notes": "; ".join(notes), "whole": describe(trial["schedule"]),
    }  # fmt: skip
    if "failure" in trial:
        return entry | {"failure": str(trial["failure"]), "numbers": []}
    factors = [spike.factor for spike in spikes_of(trial)]
    numbers = [
        metric.label(trial["validation_metric"]),
        f"{trial['parameters']:,}",
        f"×{max(factors):,.2f}" if factors else MISSING,
        f"{trial['seconds']:.2f}",
    ]
    return entry | {"numbers": numbers, "failure": None}


def _mean(row: Row, metric: Metric) -> str:
    mean, deviation = row["metric"], row["metric_deviation"]
    return metric.number(mean) + ("" if deviation is None else f" ± {metric.spread(deviation)}") + "%" * metric.percent


def _margin(settings: Mapping[str, Any], metric: Metric) -> str:
    """The smallest difference that matters, in words."""
    return "half a point" if metric == ACCURACY and not settings.get("margin") else metric.smallest


def _subject(settings: Mapping[str, Any]) -> str:
    """What is trained, in a few words (see ``Settings.subject``)."""
    own = str(settings.get("task", "images"))
    return own if ":" in own else f"{settings['model']} on {settings['data']}"


def _harmless(value: Any) -> Any:
    """A setting without the user name and password that an address may hold."""
    return re.sub(r"://[^/@\s]+@", "://***@", value) if isinstance(value, str) else value


def _figure(name: str, drawing: Drawing) -> dict[str, str]:
    """A figure's words, and as ``source`` the address of an image that lies in the page itself."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(drawing.image('svg')).decode()}"
    words = {"title": drawing.title, "caption": drawing.caption, "alt": drawing.alt}
    return {"name": name, "source": source, **words}
