"""Schedules in words: whole (``describe``: those that read alike are alike), ``short``, as letters (``names``).

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
from network_surgery.ops.schedule import AFTERWARDS, parse_when

#: What a step has besides the hyperparameters of its operation.
PLACE = ("when", "layer", "op", "repair", *AFTERWARDS, "budget", "allocate", "layers")
#: The hyperparameters that are written even where they have their default: how much an operation does.
AMOUNTS = ("keep", "grow", "fraction", "compression", "clusters", "variance_threshold", "threshold")

#: Fractions that have a sign of their own.
SIGNS = {"½": 1 / 2, "⅓": 1 / 3, "⅔": 2 / 3, "¼": 1 / 4, "¾": 3 / 4, "⅛": 1 / 8, "⅜": 3 / 8, "⅝": 5 / 8, "⅞": 7 / 8,
         "⅕": 1 / 5, "⅖": 2 / 5, "⅗": 3 / 5, "⅘": 4 / 5}  # fmt: skip
#: How a fraction ends in words, and what budgets are of.
FRACTIONS, UNITS = ("%", *SIGNS), {"flops": "FLOPs"}
#: Above this number a short text says of layers and moments how many there are.
FEW = 3

#: What becomes of the learning rate, in words, and what its length is of.
RATES = {"rewarm": ("rewarmed", "over"), "rewind": ("rewound", "by")}


def describe(schedule: Sequence[Mapping[str, Any]]) -> str:
    """Each operation with its hyperparameters, on which layers, when; those with their default are left out.

    >>> shrink = {"op": "min_weight", "keep": 0.5}
    >>> describe([{"when": "2ep", "layer": name, **shrink} for name in ("fc1", "fc2")])
    'min_weight keep 0.5 on fc1, fc2 at 2ep'
    >>> describe([{"when": f"{n}ep", "layer": f"fc{n}", **shrink, "repair": ["bias"]} for n in (1, 2)])
    'min_weight keep 0.5, repaired by bias on fc1, fc2 at 1ep, 2ep in turn'
    >>> describe([{"when": "2ep", "layer": "fc1", **shrink, "after": "rewind", "after_length": "1ep"}])
    'min_weight keep 0.5, learning rate rewound by 1ep on fc1 at 2ep'
    >>> describe([{"when": "2ep", "layer": "fc1", **shrink, "freeze": "2ep", "lr_factor": 0.1}])
    'min_weight keep 0.5, learning rate times 0.1, other layers frozen for 2ep on fc1 at 2ep'
    >>> describe([{"when": "2ep", "layer": "fc1", "op": "stretch", "rank": None, "variance": 0.9}])
    'stretch variance 0.9 on fc1 at 2ep'
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
        parts.append(f"{operation} on {', '.join(layers)} {_describe_moments(moments)}{turn}")
    return ", then ".join(parts) or "no operation"


def names(trials: Iterable[int]) -> dict[int, str]:
    """A letter for each trial, in this order: that of the comparison's ranking, the best first.

    People read letters wherever schedules are compared; trial numbers stay in the data.

    >>> names([7, 0])
    {7: 'A', 0: 'B'}
    >>> list(names(range(28)).values())[-2:]
    ['AA', 'AB']
    """
    return {trial: _letters(place) for place, trial in enumerate(dict.fromkeys(trials))}


def _letters(place: int) -> str:
    """The place in columns of letters as spreadsheets count them: A … Z, AA, AB …"""
    before, letter = divmod(place, 26)
    return (_letters(before - 1) if before else "") + chr(ord("A") + letter)


def short(schedule: Sequence[Mapping[str, Any]]) -> str:
    """What a schedule does in a few words, for tables and figures; ``describe`` says all of it.

    >>> half = {"op": "eigen_remove", "keep": 0.5, "repair": ["bias"]}
    >>> short([{"when": "4ep", "layer": layer, **half} for layer in ("conv2", "fc1")])
    'eigen_remove to ½ of conv2, fc1 at 4ep'
    >>> short([{"when": "4ep", "layer": f"conv{n}", "op": "min_weight", "keep": n / 10} for n in range(1, 9)])
    'min_weight to 10–80 % of 8 layers at 4ep'
    >>> short([{"when": "2ep", "layer": "*", "op": "weak_expand", "grow": 0.5}])
    'weak_expand by ½ at 2ep'
    >>> short([{"when": f"{n}ep", "layer": "fc1", "op": "weak_expand", "grow": 0.44} for n in range(1, 6)])
    'weak_expand fc1 by 44 % at 1ep–5ep (5 times)'
    >>> short([{"when": "8ep", "layer": "fc1", "op": "pcns", "variance_threshold": 0.01}])
    'pcns (1 % of the variance) of fc1 at 8ep'
    >>> short([{"when": "2ep", "layer": "*", "op": "hash_weights", "compression": 0.125}])
    'hash_weights all weights to ⅛ of the numbers at 2ep'
    >>> short([{"when": "2ep", "layer": "fc1", "op": "share_weights", "clusters": 16}])
    'share_weights fc1 to 16 values at 2ep'
    >>> short([{"when": "2ep", "layer": "fc1", "op": "stretch", "rank": 0.25}])
    'stretch fc1 to ¼ of the rank at 2ep'
    >>> short([{"when": "2ep", "layer": "*", "op": "tri_factorize", "fraction": 0.8}])
    'tri_factorize ⅘ of the weights at 2ep'
    >>> budget = {"budget": {"parameters": 0.2, "flops": 0.5}, "allocate": "saliency"}
    >>> short([{"when": "4ep", "layer": "*", "op": "min_weight", **budget}])
    'min_weight to ⅕ of the parameters and ½ of the FLOPs by saliency at 4ep'
    >>> more = {"layer": "*", "op": "pcns"}
    >>> twice = [{"when": at, "budget": {"flops": to}, **more} for at, to in (("1ep", 0.5), ("3ep", 0.2))]
    >>> short(twice)
    'pcns to ½, ⅕ of the FLOPs by uniform at 1ep, 3ep'
    """
    parts = []
    for (operation, kinds, by), group in groupby(
        schedule, lambda step: (short_name(step["op"]), *_describe_budget(step))
    ):
        steps = list(group)
        moments = list(dict.fromkeys(str(parse_when(step["when"])) for step in steps))
        if kinds:
            limits = [list(dict.fromkeys(_format_limit(step["budget"][kind]) for step in steps)) for kind in kinds]
            amount = " and ".join(
                f"{', '.join(each)}{' of the' * each[-1].endswith(FRACTIONS)} {UNITS.get(kind, kind)}"
                for each, kind in zip(limits, kinds, strict=True)
            )
            parts.append(f"{operation} to {amount} {by} {_moments(moments)}")
            continue
        amounts: dict[tuple[str, float | None], list[str]] = {}
        for step in steps:
            layers = amounts.setdefault(_amount(step), [])
            layers += [str(step["layer"])] if str(step["layer"]) not in layers else []
        parts.append(f"{operation} {_amounts(amounts)}".rstrip() + f" {_moments(moments)}")
    return ", then ".join(parts) or "no operation"


def _describe_budget(step: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """What the budget of a step limits (nothing: it has none), and how it is divided, among which layers."""
    budget = step.get("budget") or {}
    by = step.get("allocate", "uniform")
    among = f" among {_few(step['layers'])}" if step.get("layers") else ""
    return tuple(budget), f"by {by if isinstance(by, str) else 'shares'}{among}" if budget else ""


def _format_limit(value: float) -> str:
    """A fraction up to 1, or a number."""
    return part(value) if value <= 1 else f"{value:,.0f}"


def _amount(step: Mapping[str, Any]) -> tuple[str, float | None]:
    """How much a step does: the kind of the amount (see ``_some``), and a fraction."""
    defaults = _defaults(step["op"])
    by_itself = step.get("threshold", step.get("quality")) is not None  # how much is pruned
    for kind in ("keep", "grow", "compression", "clusters", "variance", "variance_threshold", "fraction", "rank"):
        if kind == "fraction" and by_itself:
            continue
        if (value := step.get(kind, defaults.get(kind))) is not None:
            return (kind, float(value)) if value else ("", None)
    return "", None


def _amounts(found: Mapping[tuple[str, float | None], Sequence[str]]) -> str:
    """Amounts with their layers; of many different ones the range."""
    kinds = {kind for kind, _ in found}
    if len(found) <= FEW or len(kinds) > 1:
        return ", ".join(_some(kind, _number(kind, value), _few(layers)) for (kind, value), layers in found.items())
    values = sorted(value for _, value in found if value is not None)
    layers = list(dict.fromkeys(layer for each in found.values() for layer in each))
    if (kind := kinds.pop()) == "clusters":
        return _some(kind, f"{values[0]:g}–{values[-1]:g}", f"{len(layers)} layers")
    return _some(kind, f"{100 * values[0]:.3g}–{100 * values[-1]:.3g} %", f"{len(layers)} layers")


def _number(kind: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:g}" if kind == "clusters" else part(value)


def _some(kind: str, amount: str, layers: str) -> str:
    """An amount of a kind in some layers; ``*`` is the whole network."""
    where = "" if layers == "*" else layers
    of = f" of {where}" if where else ""
    if kind == "grow":
        return f"{where} by {amount}".lstrip()
    if kind == "rank":
        return f"{where or 'all layers'} to {amount} of the rank"
    if kind == "compression":
        return f"{where or 'all weights'} to {amount} of the numbers"
    if kind == "clusters":
        return f"{where or 'all weights'} to {amount} values"
    if kind == "keep":
        return f"to {amount}{of}"
    if kind in ("variance", "variance_threshold"):
        return f"({amount} of the variance){of}"
    return f"{amount} of {where or 'the weights'}" if amount else of.strip()


def part(value: float) -> str:
    """A fraction as people write it.

    >>> part(0.5), part(0.123), part(2.0), part(1 / 3)
    ('½', '12.3 %', '200 %', '⅓')
    """
    sign = next((sign for sign, known in SIGNS.items() if abs(value - known) < 0.0005), None)
    return sign or f"{100 * value:.3g} %"


def _few(layers: Sequence[str]) -> str:
    return ", ".join(layers) if len(layers) <= FEW else f"{len(layers)} layers"


def _moments(moments: Sequence[str]) -> str:
    """Moments in a few words; a condition without its fine print."""
    if len(moments) <= FEW:
        return _describe_moments(moments).split(" from ")[0]
    return f"at {moments[0]}–{moments[-1]} ({len(moments)} times)"


def _defaults(operation: str) -> dict[str, Any]:
    """The hyperparameters of an operation that this version knows; of another none."""
    with contextlib.suppress(SurgeryError):  # of another version, or of a module that is not there any more
        kind: Any = operation_class(operation)
        return {field.name: field.default for field in fields(kind)}
    return {}


def _alternatives(operation: str) -> tuple[str, ...]:
    """The hyperparameters of which one at most has a value, of an operation that this version knows."""
    with contextlib.suppress(SurgeryError):
        return operation_class(operation).alternatives
    return ()


def _operation(step: Mapping[str, Any]) -> str:
    """The operation of a step, its hyperparameters and repairs."""
    defaults = _defaults(step["op"])
    known = defaults | {key: value for key, value in step.items() if key not in PLACE}
    if known.get("threshold", known.get("quality")) is not None and known.get("fraction") == defaults.get("fraction"):
        known.pop("fraction", None)  # they say how much is pruned in its place
    if step.get("budget"):
        known.pop("keep", None)
    for each in _alternatives(step["op"]):  # another of them has a value
        if known.get(each) is None:
            known.pop(each, None)
    words = [
        f"{key} {'none' if value is None else value}"
        for key, value in sorted(known.items(), key=lambda item: item[0] not in AMOUNTS)
        if key not in defaults or value != defaults[key] or (key in AMOUNTS and value is not None)
    ]
    if step.get("budget"):
        words = [str(Allocation(step["budget"], step.get("allocate") or "uniform", step.get("layers") or ())), *words]
    words += [f"repaired by {' + '.join(step['repair'])}"] if step.get("repair") else []
    words += _after(step.get("after", "continue"), step.get("after_length"))
    words += [] if step.get("lr_factor") is None else [f"learning rate times {step['lr_factor']}"]
    words += [] if step.get("freeze") is None else [f"other layers frozen for {step['freeze']}"]
    return f"{short_name(step['op'])} {', '.join(words)}".rstrip()


def _after(after: str, length: Any) -> list[str]:
    """What becomes of the learning rate."""
    if after == "continue":
        return []
    done, mark = RATES.get(after, (after, "by"))
    return [f"learning rate {done}" + ("" if length is None else f" {mark} {length}")]


def short_name(operation: str) -> str:
    """The name of an operation in a schedule without its module, if it has one.

    >>> short_name("min_weight"), short_name("my.operations:Balanced")
    ('min_weight', 'Balanced')
    """
    return operation.rpartition(":")[2]


def _describe_moments(moments: Iterable[str]) -> str:
    """Moments and conditions, in their order."""
    parts = []
    for waits, group in groupby(moments, lambda moment: isinstance(parse_when(moment), Condition)):
        word, mark = ("when", " or ") if waits else ("at", ", ")
        parts.append(f"{word} {mark.join(group)}")
    return " ".join(parts)
