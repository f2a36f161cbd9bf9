"""What figures read from the content of ``results.json``: cells, operations by their short names, moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from network_surgery.ops import OPERATIONS
from network_surgery.study.training import spent

Results = Mapping[str, Any]

NOTHING = "no operation"
#: The class of an operation → its short name.
SHORT = {kind.__name__: name for name, kind in OPERATIONS.items()}


def comparison(results: Results, key: str) -> list[dict[str, Any]]:
    return (results.get("comparison") or {}).get(key) or []


def cells_of(results: Results, arm: str) -> list[dict[str, Any]]:
    return [cell for cell in comparison(results, "cells") if cell["arm"] == arm]


def finished(cells: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those trained to their end: neither failed nor stopped early."""
    return [cell for cell in cells if "failure" not in cell and "stopped" not in cell]


def unfinished(cells: Iterable[Mapping[str, Any]]) -> str:
    """How many of these are not among ``finished``, and why: "1 failed, 4 stopped early"."""
    cells = list(cells)
    words = [f"{sum('failure' in cell for cell in cells)} failed"]
    stopped = sum("stopped" in cell for cell in cells)
    return ", ".join(words + [f"{stopped} stopped early"] * bool(stopped))


def compared(results: Results) -> tuple[list[Mapping[str, Any]], int | None]:
    """The finished cells of the comparison, and the trial that comes first: the first verdict's, or the lowest."""
    cells = finished(comparison(results, "cells"))
    trials = [v["trial"] for v in comparison(results, "verdicts")] + sorted({c["trial"] for c in cells} - {None})
    return cells, trials[0] if trials else None


def operations_of(results: Results) -> list[dict[str, Any]]:
    """Every operation's record of the search and the comparison, with the operation's short name as ``op``."""
    cells = finished([*results["trials"], *comparison(results, "cells")])
    return [record for cell in cells for record in named(cell)]


def named(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of a cell's operations, each with its short name as ``op``."""
    return [operation | {"op": op} for operation, op in zip(cell["operations"], names_of(cell), strict=True)]


def names_of(cell: Mapping[str, Any]) -> list[str]:
    """The short name of each operation of a cell."""
    names = {(step["when"], step["layer"]): step["op"] for step in cell["schedule"]}
    kinds = (operation["operation"].split("(")[0] for operation in cell["operations"])
    return [  # by its class where ``when`` is written in another way
        names.get((operation["when"], operation["layer"]), SHORT.get(kind, kind))
        for operation, kind in zip(cell["operations"], kinds, strict=True)
    ]


def name_of(cell: Mapping[str, Any]) -> str:
    """The operations of a cell, in words."""
    return " + ".join(dict.fromkeys(step["op"] for step in cell["schedule"])) or NOTHING


def moments_of(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The operations of one moment taken together: ``op``, ``epoch``, ``kept`` (units after ÷ before)."""
    found: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for record in named(cell):
        found.setdefault((record["epoch"], record["op"]), []).append(record)

    def units(members: Iterable[Mapping[str, Any]], when: str) -> int:
        return sum(record[f"units_{when}"] for record in members)

    return [
        {"epoch": epoch, "op": op, "kept": units(members, "after") / units(members, "before")}
        for (epoch, op), members in sorted(found.items())
    ]


def elapsed(cell: Mapping[str, Any]) -> list[float]:
    """Seconds of training and surgery (and sunk ones) up to the end of each epoch; the last is the cell's."""
    return [spent.seconds(cell, epoch) for epoch in range(1, len(cell["epochs"]) + 1)]


def grouped(points: Iterable[tuple[str, Any]], order: Callable[[list[Any]], float]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for name, value in points:
        groups.setdefault(name, []).append(value)
    return dict(sorted(groups.items(), key=lambda item: (order(item[1]), item[0])))


def positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
