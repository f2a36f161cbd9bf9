"""What figures read from the content of ``results.json``: cells, operations by their short names, moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from network_surgery.ops import OPERATIONS
from network_surgery.study.evidence.naming import letters
from network_surgery.study.store.words import short_name
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training import records, spent
from network_surgery.study.training.records import OperationRecord, operations_of

Results = Mapping[str, Any]

NOTHING = "no operation"
#: The class of an operation → its short name.
SHORT = {kind.__name__: name for name, kind in OPERATIONS.items()}


def metric_of(results: Results) -> Metric:
    """The primary metric of the study's task; older studies had no other than accuracy."""
    return Metric.from_data(results["metric"]) if "metric" in results else ACCURACY


def unit_of(results: Results) -> str:
    """What the study's task calls its samples."""
    return str(results.get("unit", "images"))


def comparison(results: Results, key: str) -> list[dict[str, Any]]:
    return (results.get("comparison") or {}).get(key) or []


def cells_of(results: Results, arm: str) -> list[dict[str, Any]]:
    return [cell for cell in comparison(results, "cells") if cell["arm"] == arm]


def find_finished(cells: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those trained to their end: neither failed nor stopped early."""
    return list(filter(records.is_finished, cells))


def describe_unfinished(cells: Iterable[Mapping[str, Any]]) -> str:
    """How many of these are not among those of ``find_finished``, and why: "1 failed, 4 stopped early"."""
    cells = list(cells)
    words = [f"{sum('failure' in cell for cell in cells)} failed"]
    stopped = sum("stopped" in cell for cell in cells)
    return ", ".join(words + [f"{stopped} stopped early"] * bool(stopped))


def find_compared(results: Results) -> tuple[list[Mapping[str, Any]], int | None]:
    """The finished cells of the comparison, and the trial that comes first: the answer's, else the closing table's."""
    cells = find_finished(comparison(results, "cells"))
    answered = (results.get("answer") or {}).get("trial")
    trials = [answered] if answered is not None else [*letters(results)] or sorted({c["trial"] for c in cells} - {None})
    return cells, trials[0] if trials else None


def rival_arm(results: Results) -> str:
    """The arm that the verdicts are about (see ``study.arms.question``)."""
    return next((verdict["arm"] for verdict in comparison(results, "verdicts") if "arm" in verdict), "restart")


@dataclass(frozen=True)
class Moment:
    """The operations of one kind at one time: ``kept`` are their layers' units after ÷ before."""

    epoch: float
    op: str
    kept: float


def all_operations(results: Results) -> list[tuple[str, OperationRecord]]:
    """Every operation of the search and the comparison, after its short name."""
    cells = find_finished([*results["trials"], *comparison(results, "cells")])
    return [entry for cell in cells for entry in name_operations(cell)]


def name_operations(cell: Mapping[str, Any]) -> list[tuple[str, OperationRecord]]:
    """The operations of a cell, each after its short name."""
    return list(zip(names_of(cell), operations_of(cell), strict=True))


def names_of(cell: Mapping[str, Any]) -> list[str]:
    """The short name of each operation of a cell."""
    names = {(step["when"], step["layer"]): short_name(step["op"]) for step in cell["schedule"]}
    found = []
    for each in cell["operations"]:
        kind = each["operation"].split("(")[0]  # by its class where ``when`` is written in another way
        found.append(names.get((each["when"], each["layer"]), SHORT.get(kind, kind)))
    return found


def name_of(cell: Mapping[str, Any]) -> str:
    """The operations of a cell, in words."""
    return " + ".join(dict.fromkeys(short_name(step["op"]) for step in cell["schedule"])) or NOTHING


def moments_of(cell: Mapping[str, Any]) -> list[Moment]:
    """The operations of a cell, those of one moment taken together."""
    found: dict[tuple[float, str], list[OperationRecord]] = {}
    for op, record in name_operations(cell):
        found.setdefault((record.epoch, op), []).append(record)
    return [
        Moment(epoch, op, sum(each.units_after for each in members) / sum(each.units_before for each in members))
        for (epoch, op), members in sorted(found.items())
    ]


def elapsed_seconds(cell: Mapping[str, Any]) -> list[float]:
    """Seconds of training and surgery (and sunk ones) up to the end of each epoch; the last is the cell's."""
    return [spent.seconds(cell, epoch) for epoch in range(1, len(cell["epochs"]) + 1)]


def group_cells(points: Iterable[tuple[str, Any]], order: Callable[[list[Any]], float]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for name, value in points:
        groups.setdefault(name, []).append(value)
    return dict(sorted(groups.items(), key=lambda item: (order(item[1]), item[0])))


def positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
