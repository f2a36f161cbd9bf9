"""A schedule in words, and nothing omitted: schedules that read alike are alike.

Of an operation that lies elsewhere (``MODULE:CLASS``) they have the class alone, as plans do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

from network_surgery.ops import Allocation, Condition, SurgeryError
from network_surgery.ops.operations import operation_class
from network_surgery.ops.schedule import parse_when

#: What a step has besides the hyperparameters of its operation.
PLACE = ("when", "layer", "op", "repair", "after", "after_length", "budget", "allocate", "layers")
#: The hyperparameters that are written even where they have their default: how much an operation does.
AMOUNTS = ("keep", "grow", "fraction", "variance_threshold", "threshold")

#: What becomes of the learning rate, in words, and what its length is of.
AFTERWARDS = {"rewarm": ("rewarmed", "over"), "rewind": ("rewound", "by")}


def describe(schedule: Sequence[Mapping[str, Any]]) -> str:
    """Each operation with its hyperparameters, on which layers, when; those with their default are left out.

    >>> shrink = {"op": "min_weight", "keep": 0.5}
    >>> describe([{"when": "2ep", "layer": name, **shrink} for name in ("fc1", "fc2")])
    'min_weight keep 0.5 on fc1, fc2 at 2ep'
    >>> describe([{"when": f"{n}ep", "layer": f"fc{n}", **shrink, "repair": ["bias"]} for n in (1, 2)])
    'min_weight keep 0.5, repaired by bias on fc1, fc2 at 1ep, 2ep in turn'
    >>> describe([{"when": "2ep", "layer": "fc1", **shrink, "after": "rewind", "after_length": "1ep"}])
    'min_weight keep 0.5, learning rate rewound by 1ep on fc1 at 2ep'
    >>> describe([{"when": "2ep", "layer": "*", "op": "min_weight", "budget": {"flops": 0.5}, "allocate": "saliency"}])
    'min_weight to 50 % of the FLOPs by saliency on * at 2ep'
    """
    parts = []
    for operation, steps in groupby(schedule, _operation):
        pairs = [(str(parse_when(step["when"])), str(step["layer"])) for step in steps]
        moments, layers = (list(dict.fromkeys(part)) for part in zip(*pairs, strict=True))
        if pairs == [(moment, layer) for moment in moments for layer in layers]:
            turn = ""
        else:
            moments, layers, turn = [moment for moment, _ in pairs], [layer for _, layer in pairs], " in turn"
        parts.append(f"{operation} on {', '.join(layers)} {_when(moments)}{turn}")
    return ", then ".join(parts) or "no operation"


def _operation(step: Mapping[str, Any]) -> str:
    """The operation of a step, its hyperparameters and repairs."""
    defaults: dict[str, Any] = {}
    with contextlib.suppress(SurgeryError):  # of another version, or of a module that is not there any more
        kind: Any = operation_class(step["op"])
        defaults = {field.name: field.default for field in fields(kind)}
    known = defaults | {key: value for key, value in step.items() if key not in PLACE}
    if known.get("threshold", known.get("quality")) is not None and known.get("fraction") == defaults.get("fraction"):
        known.pop("fraction", None)  # they say how much is pruned in its place
    if step.get("budget"):
        known.pop("keep", None)
    words = [
        f"{key} {'none' if value is None else value}"
        for key, value in sorted(known.items(), key=lambda item: item[0] not in AMOUNTS)
        if key not in defaults or value != defaults[key] or (key in AMOUNTS and value is not None)
    ]
    if step.get("budget"):
        words = [str(Allocation(step["budget"], step.get("allocate") or "uniform", step.get("layers") or ())), *words]
    words += [f"repaired by {' + '.join(step['repair'])}"] if step.get("repair") else []
    words += _after(step.get("after", "continue"), step.get("after_length"))
    return f"{short_name(step['op'])} {', '.join(words)}".rstrip()


def _after(after: str, length: Any) -> list[str]:
    """What becomes of the learning rate."""
    if after == "continue":
        return []
    done, mark = AFTERWARDS.get(after, (after, "by"))
    return [f"learning rate {done}" + ("" if length is None else f" {mark} {length}")]


def short_name(operation: str) -> str:
    """The name of an operation in a schedule without its module, if it has one.

    >>> short_name("min_weight"), short_name("my.operations:Balanced")
    ('min_weight', 'Balanced')
    """
    return operation.rpartition(":")[2]


def _when(moments: Iterable[str]) -> str:
    """Moments and conditions, in their order."""
    parts = []
    for waits, group in groupby(moments, lambda moment: isinstance(parse_when(moment), Condition)):
        word, mark = ("when", " or ") if waits else ("at", ", ")
        parts.append(f"{word} {mark.join(group)}")
    return " ".join(parts)
