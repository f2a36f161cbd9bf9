"""What a terminal shows of a study at its end: the answer first, a table that fits, the verdicts, where to look."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from network_surgery.study.evidence import front, race
from network_surgery.study.evidence.naming import arm_title, in_short, letters
from network_surgery.study.evidence.report import answer_line
from network_surgery.study.evidence.state import in_words
from network_surgery.study.store.folder import Folder
from network_surgery.study.task import Metric
from network_surgery.study.terminal import say, say_path

Results = Mapping[str, Any]
Row = Mapping[str, Any]
#: A column of the closing table: its heading, and what it says of a row ("": nothing).
Column = tuple[str, Callable[[Row], str]]


def show(results: Results, folder: Folder, console: Console) -> None:
    """The answer, the closing table, a verdict for each schedule, the front, and where to look."""
    verdicts, names, words = results["comparison"]["verdicts"], letters(results), in_short(results)
    why = race.reason(results, folder.metric)
    show_answer(results, folder, console)
    if results["comparison"]["summary"]:
        console.print()
        console.print(table(results, folder, console), highlight=False)
    for each in results["comparison"].get("left_out") or ():
        say(console, f"Not there: {arm_title(each['arm'], names.get(each['trial'], ''))}, since {each['reason']}")
    for verdict in verdicts:
        trial = verdict["trial"]
        console.print()
        say(console, f"{names[trial]}  {words.get(trial, verdict['label'])}", style="bold")
        chosen = why[1] if why is not None and why[0] == trial else None
        for sentence in filter(None, (verdict["sentence"], verdict.get("also"), chosen)):
            say(console, sentence)
    if results["front"]:
        sentence = front.sentence(results["front"], folder.metric)
        console.print()
        say(console, f"Front: {sentence}")
        for trial in results["front"]["trials"]:
            say(console, f"  {names.get(trial, '·')}  {words.get(trial, '')} (trial {trial})", style="dim")
    if results["state"]["now"] != "finished":
        state = in_words(results["state"], str(folder.path))
        console.print()
        say_path(console, f"{state['now'].capitalize()}: {state['words']}")
    console.print()
    for name, path in paths(folder, results).items():
        say_path(console, f"{name[:1].upper() + name[1:]:8} {path}")


def show_answer(results: Results, folder: Folder, console: Console) -> None:
    """The answer in one line, and how to load the network that it is about."""
    say(console, answer_line(results), style="bold")
    answer = results.get("answer") or {}
    if answer.get("network") and answer.get("load"):
        for line in str(answer["load"]).splitlines():
            say_path(console, f"  {line}")


def document(results: Results, folder: Folder) -> dict[str, Any]:
    """What ``--json`` prints: the answer, a verdict for each schedule by its letter, the state, and where to look."""
    names, words = letters(results), in_short(results)
    verdicts = [
        {"name": names[verdict["trial"]], "schedule": words.get(verdict["trial"]), **verdict}
        for verdict in results["comparison"]["verdicts"]
    ]
    return {
        "answer": results.get("answer"), "sentence": answer_line(results), "verdicts": verdicts,
        "state": results["state"],
        "paths": {name: str(path) for name, path in paths(folder, results, whole=True).items()},
    }  # fmt: skip


def paths(folder: Folder, results: Results, whole: bool = False) -> dict[str, str]:
    """Where to look: the network of the answer, the report, the results, a page of the settings' own, MLflow."""
    here = Path.cwd()
    path = folder.path.relative_to(here) if not whole and folder.path.is_relative_to(here) else folder.path
    network = (results.get("answer") or {}).get("network")
    found = {"network": os.path.join(path, network)} if network else {}
    found |= {"report": str(path / folder.report.name), "results": str(path / folder.results.name)}
    if folder.page is not None and folder.page.exists():
        found[folder.page.stem.replace("_", " ")] = str(path / folder.page.name)
    return found | {"MLflow": folder.settings.tracking_uri or f"surgery ui {path}"}


def table(results: Results, folder: Folder, console: Console) -> Table:
    """The closing table with as many of its columns as fit the terminal."""
    rows, metric = results["comparison"]["summary"], folder.metric
    columns = [column for column in _columns(rows, metric) if any(column[1](row) for row in rows)]
    count = len(columns)
    while count > 1 and _width(_table(results, columns[:count]), console) > console.width:
        count -= 1
    left_out = ", ".join(" ".join(title.split()).replace("/ ", "/") for title, _ in columns[count:])
    found = _table(results, columns[:count])
    if left_out:
        found.caption, found.caption_justify = f"More in the report: {left_out}", "left"
    return found


def _width(table: Table, console: Console) -> int:
    """The characters that a table needs where nothing is cut off."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _columns(rows: list[Row], metric: Metric) -> list[Column]:
    """What matters most comes first."""
    original = next((row for row in rows if row["arm"] == "original"), None)

    def share(key: str) -> Callable[[Row], str]:
        return lambda row: "" if original is None else f"{100 * row[key] / original[key]:.3g} %"

    def mean(row: Row) -> str:
        spread = row["metric_deviation"]
        return metric.number(row["metric"]) + (f" ± {metric.spread(spread)}" if spread is not None else "")

    def seconds(row: Row) -> str:
        slack = row["seconds_deviation"]
        return f"{row['seconds']:.1f}" + (f" ± {slack:.1f}" if slack is not None else "")

    def gap(row: Row) -> str:
        return "" if row.get("train_test_gap") is None else metric.change(row["train_test_gap"])

    return [
        ("n", lambda row: str(row["n"])),
        (metric.name.replace(" ", "\n") + " %" * metric.percent, mean),
        ("size", share("parameters")),
        ("FLOPs", share("flops")),
        ("seconds", seconds),
        ("parameters", lambda row: f"{row['parameters']:,.0f}"),
        ("loss\nspike", lambda row: "" if row["spike_factor"] is None else f"×{row['spike_factor']:.2f}"),
        ("op/\nepoch", lambda row: "" if row["operation_to_epoch"] is None else f"{row['operation_to_epoch']:.1%}"),
        (metric.gap.replace(" ", "\n", 1), gap),
    ]


def _table(results: Results, columns: list[Column]) -> Table:
    names = letters(results)
    found = Table(
        title=f"Means over n seeds, on the test {results.get('unit', 'images')}; size and FLOPs of the original",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    found.add_column("arm", no_wrap=True)
    for title, _ in columns:
        found.add_column(title, justify="right", no_wrap=True)
    for row in results["comparison"]["summary"]:
        found.add_row(arm_title(row["arm"], names.get(row["trial"], "")), *(words_of(row) for _, words_of in columns))
    return found
