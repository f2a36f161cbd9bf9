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
from network_surgery.study.evidence.figures.reading import Results, finished, unfinished
from network_surgery.study.evidence.state import in_words
from network_surgery.study.evidence.wording import overall
from network_surgery.study.store.folder import write_whole
from network_surgery.study.store.words import describe
from network_surgery.study.training.records import spikes_of

MISSING = "–"
#: So many trials stand in the open; all of them are folded away below. So are failures and layers, where they are more.
BEST, FEW = 20, 5
#: What not every arm can be measured by, in the order of its columns: how it is worded.
OPTIONAL: dict[str, Callable[[float], str]] = {
    "train_test_gap": lambda gap: f"{100 * gap:+.2f}",
    "top5": lambda share: f"{share:.2%}",
    "peak_memory": lambda size: f"{size / 2**20:,.0f} MiB",
    "joules": lambda energy: f"{energy:,.0f}",
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
    taken = {key: any(row.get(key) is not None for row in comparison.get("summary", ())) for key in OPTIONAL}
    page = environment.from_string(layout).render(
        settings=settings,
        yaml="\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items()),
        machine=results["machine"],
        layers=results["layers"],
        limits={"best": BEST, "few": FEW},
        state=in_words(results["state"], path.parent.name),
        verdicts=comparison.get("verdicts", ()),
        findings=_finding(comparison.get("verdicts", ())),
        progress=_progress(results),
        search=bool(results["state"]["search"]["of"]),
        taken=taken,
        times=_times(comparison.get("summary", ())),
        rows=[_arm(row, original, taken) for row in comparison.get("summary", ())],
        failures=[cell for cell in comparison.get("cells", ()) if "failure" in cell],
        figures=[_figure(name, drawing) for name, drawing in drawings.items()],
        trials=[_trial(trial, compared) for trial in sorted(results["trials"], key=_rank)],
    )
    write_whole(path, page)


def _finding(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """What was found, as a sentence; nothing before there is a verdict."""
    words = overall(verdicts) if verdicts else ""
    return words[:1].upper() + words[1:]


def _progress(results: Results) -> str:
    """What the search found, in a sentence or two."""
    if not results["state"]["search"]["of"]:
        compared = {cell["trial"] for cell in results["comparison"]["cells"] if cell["trial"] is not None}
        return f"Nothing is searched: every schedule is compared, of which {len(compared)} have ended."
    trials = results["trials"]
    ended = finished(trials)
    text = f"Of the search's {len(trials)} trials so far {unfinished(trials)}. " if len(ended) < len(trials) else ""
    if not ended:
        return text
    best = min(ended, key=_rank)
    return (
        f"{text}The most accurate trial of the search is #{best['trial']} ({describe(best['schedule'])}) with "
        f"{best['validation_metric']:.2%} validation accuracy and {best['parameters']:,} parameters."
    )


def _rank(trial: Mapping[str, Any]) -> tuple[bool, float, int]:
    """The most accurate first, the smaller one of equals; then those that were stopped early, failed ones last."""
    if "failure" in trial:
        return True, math.inf, trial["trial"]
    return "stopped" in trial, -trial["validation_metric"], trial["parameters"]


def _arm(row: Mapping[str, Any], original: Mapping[str, Any] | None, taken: Mapping[str, bool]) -> dict[str, Any]:
    """The closing table's cells of one arm; sizes also as multiples of the original's, and what was ``taken``."""

    def times(name: str) -> str:
        return "" if original is None or row is original else f" (×{row[name] / original[name]:.2f})"

    return {
        "arm": _name(row),
        "label": row["label"],
        "numbers": [
            row["n"],
            _around(100 * row["accuracy"], row["accuracy_deviation"], 100) + "%",
            f"{row['parameters']:,.0f}{times('parameters')}",
            f"{count(row['flops'])}{times('flops')}",
            _around(row["seconds"], row["seconds_deviation"]),
            MISSING if row["spike_factor"] is None else f"×{row['spike_factor']:,.2f}",
            MISSING if row["operation_to_epoch"] is None else f"{100 * row['operation_to_epoch']:.3g}%",
            " / ".join(f"{1000 * seconds:.3g}" for seconds in row["latency_seconds"].values()) or MISSING,
            *(MISSING if row.get(key) is None else words(row[key]) for key, words in OPTIONAL.items() if taken[key]),
        ],
    }


def _times(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of times: its accuracies, and for each arm the median seconds to them and how many seeds got there."""
    timed = [row for row in rows if row.get("reached")]
    entries = []
    for row in timed:
        medians = [MISSING if seconds is None else f"{seconds:.2f}" for seconds in row["seconds_to"].values()]
        numbers = [f"{text} ({n})" for text, n in zip(medians, row["reached"].values(), strict=True)]
        entries.append({"arm": _name(row), "numbers": [row["n"], *numbers]})
    return {"targets": [f"{float(key):.1%}" for key in timed[0]["reached"]] if timed else [], "rows": entries}


def _name(row: Mapping[str, Any]) -> str:
    return arm_name(row["arm"], row["trial"], ", trial ")


def _trial(trial: Mapping[str, Any], compared: set[int]) -> dict[str, Any]:
    entry = {"number": trial["trial"], "schedule": describe(trial["schedule"]), "compared": trial["trial"] in compared}
    entry["stopped"] = trial.get("stopped")
    if "failure" in trial:
        return entry | {"failure": str(trial["failure"])}
    factors = [spike.factor for spike in spikes_of(trial)]
    numbers = [
        f"{trial['validation_metric']:.2%}",
        f"{trial['parameters']:,}",
        f"×{max(factors):,.2f}" if factors else MISSING,
        f"{trial['seconds']:.2f}",
    ]
    return entry | {"numbers": numbers, "failure": None}


def _around(mean: float, deviation: float | None, scale: float = 1) -> str:
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {scale * deviation:.2f}"


def _harmless(value: Any) -> Any:
    """A setting without the user name and password that an address may hold."""
    return re.sub(r"://[^/@\s]+@", "://***@", value) if isinstance(value, str) else value


def _figure(name: str, drawing: Drawing) -> dict[str, str]:
    """A figure's words, and as ``source`` the address of an image that lies in the page itself."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(drawing.image('svg')).decode()}"
    words = {"title": drawing.title, "caption": drawing.caption, "alt": drawing.alt}
    return {"name": name, "source": source, **words}
