"""The report of a study: one HTML file that needs nothing else, from the content of ``results.json`` and the drawings.

What is computed here is wording only; numbers come from ``results``. The page is laid out in ``report.html.j2``.
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

from network_surgery.study.arms import arm_name
from network_surgery.study.evidence.drawing import Drawing, count
from network_surgery.study.evidence.figures.reading import Results, finished, metric_of, unfinished, unit_of
from network_surgery.study.evidence.state import in_words
from network_surgery.study.evidence.wording import overall
from network_surgery.study.store.folder import write_whole
from network_surgery.study.store.words import describe
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.records import spikes_of

MISSING = "–"
#: So many trials stand in the open; all of them are folded away below. So are failures and layers, where they are more.
BEST, FEW = 20, 5
#: What not every arm can be measured by, in the order of its columns: the column's title, and how it is worded.
Column = tuple[str, Callable[[Mapping[str, Any]], float | None], Callable[[float], str]]
#: Metrics beside the primary one that have words of their own.
OTHERS: dict[str, tuple[str, Callable[[float], str]]] = {
    "top 5": ("Among the first five", lambda share: f"{share:.2%}"),
}


def write(results: Results, path: Path, drawings: Mapping[str, Drawing]) -> None:
    """Writes the report of ``results`` (see ``study.store.folder``) with the drawings to ``path``.

    A study that still runs, or was interrupted, gets a report too: of the trainings so far, and it says so.
    """
    layout = (importlib.resources.files("network_surgery.study.evidence") / "report.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    comparison = results.get("comparison") or {}
    original = next((row for row in comparison.get("summary", ()) if row["arm"] == "original"), None)
    compared = {verdict["trial"] for verdict in comparison.get("verdicts", ())}
    settings = {name: _harmless(value) for name, value in results["settings"].items()}
    metric, unit = metric_of(results), unit_of(results)
    taken = _columns(comparison.get("summary", ()), metric)
    page = environment.from_string(layout).render(
        settings=settings,
        yaml="\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items()),
        subject=_subject(settings),
        metric=metric,
        unit=unit,
        sample=unit.removesuffix("s"),
        margin="half a point" if metric == ACCURACY else metric.smallest,
        machine=results["machine"],
        layers=results["layers"],
        limits={"best": BEST, "few": FEW},
        state=in_words(results["state"], path.parent.name),
        verdicts=comparison.get("verdicts", ()),
        findings=_finding(comparison.get("verdicts", ())),
        progress=_progress(results, metric),
        search=bool(results["state"]["search"]["of"]),
        taken=[title for title, *_ in taken],
        times=_times(comparison.get("summary", ()), metric),
        rows=[_arm(row, original, taken, metric) for row in comparison.get("summary", ())],
        failures=[cell for cell in comparison.get("cells", ()) if "failure" in cell],
        figures=[_figure(name, drawing) for name, drawing in drawings.items()],
        trials=[_trial(trial, compared, metric) for trial in sorted(results["trials"], key=lambda t: _rank(t, metric))],
    )
    write_whole(path, page)


def _finding(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """What was found, as a sentence; nothing before there is a verdict."""
    words = overall(verdicts) if verdicts else ""
    return words[:1].upper() + words[1:]


def _progress(results: Results, metric: Metric) -> str:
    """What the search found, in a sentence or two."""
    if not results["state"]["search"]["of"]:
        compared = {cell["trial"] for cell in results["comparison"]["cells"] if cell["trial"] is not None}
        return f"Nothing is searched: every schedule is compared, of which {len(compared)} have ended."
    trials = results["trials"]
    ended = finished(trials)
    text = f"Of the search's {len(trials)} trials so far {unfinished(trials)}. " if len(ended) < len(trials) else ""
    if not ended:
        return text
    best = min(ended, key=lambda trial: _rank(trial, metric))
    most = "most accurate" if metric.name == "accuracy" else "best"
    return (
        f"{text}The {most} trial of the search is #{best['trial']} ({describe(best['schedule'])}) with "
        f"{metric.label(best['validation_metric'])} validation {metric.name} and {best['parameters']:,} parameters."
    )


def _columns(rows: Sequence[Mapping[str, Any]], metric: Metric) -> list[Column]:
    """The columns of what some arm was measured by, that not every one can be."""
    gap = f"{metric.gap.capitalize()} {metric.name}{metric.unit and ', points'}"
    found: list[Column] = [(gap, lambda row: row.get("train_test_gap"), metric.change)]
    for name in dict.fromkeys(name for row in rows for name in row.get("metrics", ())):
        title, words = OTHERS.get(name, (f"Test {name}", lambda value: f"{value:.4g}"))
        found.append((title, lambda row, name=name: row.get("metrics", {}).get(name), words))  # type: ignore[misc]
    found.append(("Peak GPU memory", lambda row: row.get("peak_memory"), lambda size: f"{size / 2**20:,.0f} MiB"))
    found.append(("Joules", lambda row: row.get("joules"), lambda energy: f"{energy:,.0f}"))
    return [column for column in found if any(column[1](row) is not None for row in rows)]


def _converged(row: Mapping[str, Any]) -> str:
    """How many of an arm's seeds were still improving at their end, of those of which it is known."""
    known = row.get("convergence") or {"n": 0}
    return f"{known['improving']} of {known['n']}" if known["n"] else MISSING


def _rank(trial: Mapping[str, Any], metric: Metric) -> tuple[int, float, int]:
    """The best first, the smaller one of equals; then those beyond the budget or stopped early, failed ones last."""
    if "failure" in trial:
        return 3, math.inf, trial["trial"]
    later = 2 if "stopped" in trial else int(trial.get("state") == "infeasible")
    return later, metric.gain(0.0, trial["validation_metric"]), trial["parameters"]


def _arm(
    row: Mapping[str, Any], original: Mapping[str, Any] | None, taken: Sequence[Column], metric: Metric
) -> dict[str, Any]:
    """The closing table's cells of one arm; sizes also as multiples of the original's, and what was ``taken``."""

    def times(name: str) -> str:
        return "" if original is None or row is original else f" (×{row[name] / original[name]:.2f})"

    return {
        "arm": _name(row),
        "label": row["label"],
        "numbers": [
            row["n"],
            _mean(row, metric),
            f"{row['parameters']:,.0f}{times('parameters')}",
            f"{count(row['flops'])}{times('flops')}",
            _around(row["seconds"], row["seconds_deviation"]),
            MISSING if row["spike_factor"] is None else f"×{row['spike_factor']:,.2f}",
            MISSING if row["operation_to_epoch"] is None else f"{100 * row['operation_to_epoch']:.3g}%",
            " / ".join(f"{1000 * seconds:.3g}" for seconds in row["latency_seconds"].values()) or MISSING,
            _converged(row),
            *(MISSING if (value := get(row)) is None else words(value) for _, get, words in taken),
        ],
    }


def _times(rows: Sequence[Mapping[str, Any]], metric: Metric) -> dict[str, Any]:
    """The table of times: its targets, and for each arm the median seconds to them and how many seeds got there."""
    timed = [row for row in rows if row.get("reached")]
    entries = []
    for row in timed:
        medians = [MISSING if seconds is None else f"{seconds:.2f}" for seconds in row["seconds_to"].values()]
        numbers = [f"{text} ({n})" for text, n in zip(medians, row["reached"].values(), strict=True)]
        entries.append({"arm": _name(row), "numbers": [row["n"], *numbers]})
    return {
        "targets": [metric.goal(float(key)).replace(" %", "%") for key in timed[0]["reached"]] if timed else [],
        "rows": entries,
    }


def _name(row: Mapping[str, Any]) -> str:
    return arm_name(row["arm"], row["trial"], ", trial ")


def _trial(trial: Mapping[str, Any], compared: set[int], metric: Metric) -> dict[str, Any]:
    entry = {"number": trial["trial"], "schedule": describe(trial["schedule"]), "compared": trial["trial"] in compared}
    entry |= {"stopped": trial.get("stopped"), "infeasible": trial.get("state") == "infeasible"}
    if "failure" in trial:
        return entry | {"failure": str(trial["failure"])}
    factors = [spike.factor for spike in spikes_of(trial)]
    numbers = [
        metric.label(trial["validation_metric"]),
        f"{trial['parameters']:,}",
        f"×{max(factors):,.2f}" if factors else MISSING,
        f"{trial['seconds']:.2f}",
    ]
    return entry | {"numbers": numbers, "failure": None}


def _mean(row: Mapping[str, Any], metric: Metric) -> str:
    mean, deviation = row["metric"], row["metric_deviation"]
    return metric.number(mean) + ("" if deviation is None else f" ± {metric.spread(deviation)}") + "%" * metric.percent


def _around(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


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
