"""The operations of a surgery as steps of another schedule: all at one moment, to the sizes that they led to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from network_surgery.ops import Condition
from network_surgery.ops.operations import operation_class
from network_surgery.ops.schedule import parse_when
from network_surgery.study.training.records import OperationRecord, checks_of, operations_of


def at(when: str, schedule: Sequence[Mapping[str, Any]], outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The operations that a schedule came to, all of them at one moment, each to the size that it led to.

    A budget becomes what it came to in surgery, layer by layer. Where an operation finds out by itself how many units
    go, its fraction is that of surgery, by the same criterion; ``compact``, which removes what pruning has emptied, and
    operations of anyone's without ``keep``, ``grow`` or ``fraction`` stay as they are, and may lead to other sizes.
    """
    steps, checks = list(schedule), checks_of(outcome)
    waiting = [place for place, step in enumerate(steps) if not isinstance(parse_when(step["when"]), Condition)]
    found, allocated = [], set[tuple[int, str]]()
    for each in operations_of(outcome):
        places = [c.step for c in checks if c.operated and (c.iteration, c.layer) == (each.iteration, each.layer)]
        places = [place for place in (*waiting, *places) if _is_of(steps[place], each)]
        places = [place for place in places if (place, each.layer) not in allocated]
        if steps[places[0]].get("budget"):
            allocated.add((places[0], each.layer))
        elif places[0] in waiting:
            waiting.remove(places[0])
        found.append(_with_size(steps[places[0]], each) | {"when": when})
    return found


def _is_of(step: Mapping[str, Any], record: OperationRecord) -> bool:
    on_it = bool(step.get("budget")) or str(step["layer"]) == record.layer
    return on_it and str(parse_when(step["when"])) == record.when


def _with_size(step: Mapping[str, Any], record: OperationRecord) -> dict[str, Any]:
    """The step with the amounts that lead to the size that it led to once."""
    same, share = dict(step), round(record.units_after / max(record.units_before, 1), 6)
    if step.get("budget"):
        same = {key: value for key, value in same.items() if key not in ("budget", "allocate", "layers")}
        same["layer"] = record.layer
    names = {field.name for field in fields(operation_class(step["op"]))}  # type: ignore[arg-type]
    nearest = {"rounding": "nearest"} if "rounding" in step else {}
    if step["op"] == "prune_weights":
        by_itself = step.get("threshold") is not None or step.get("quality") is not None
        return same | ({"threshold": None, "quality": None, "fraction": _sparsity(record)} if by_itself else {})
    if step["op"] == "remove_dead":  # the units that the loss would miss least, as many as there were
        known = {key: value for key, value in same.items() if key not in ("threshold", "kind", "by")}
        return known | {"op": "mean_replace", "keep": share, "score": step.get("by", "mrs")}
    if "keep" in names and share <= 1:
        return same | {"keep": share} | nearest
    return same | ({"grow": round(share - 1, 6)} | nearest if "grow" in names and share > 1 else {})


def _sparsity(record: OperationRecord) -> float:
    return max(record.evidence.get("sparsity", 0.0), 1e-6)
