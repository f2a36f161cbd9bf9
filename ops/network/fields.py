"""What the description of a compressed weight may hold, field by field: plain data from a file, which may be doctored.

A file's checksum says that it is as it was written, not that whoever wrote it meant well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from network_surgery.ops.errors import SurgeryError

#: Whether a value is right, and what would be.
Field = tuple[Callable[[Any], bool], str]
#: Entries of a weight: their positions are hashed as whole numbers of 32 bits.
MOST = 2**32


def whole(least: int, most: int = 2**63 - 1) -> Field:
    """A whole number."""
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"


def number(least: float = 0.0, above: bool = False) -> Field:
    """A finite number of at least (or ``above``) this."""
    right = f"a finite number {'above' if above else 'of at least'} {least:g}"
    return (
        lambda value: (
            type(value) in (int, float) and math.isfinite(value) and (value > least if above else value >= least)
        ),
        right,
    )


def one_of(*values: str) -> Field:
    """One of these texts."""
    return lambda value: type(value) is str and value in values, f"one of {', '.join(values)}"


def _lengths(value: Any) -> bool:
    listed = isinstance(value, (list, tuple)) and all(type(each) is int and each > 0 for each in value)
    return listed and math.prod(value) <= MOST


SEED = whole(-(2**63))
TRUTH: Field = lambda value: type(value) is bool, "true or false"
LAYOUT: Field = _lengths, f"a list of whole numbers of at least 1, with a product of at most {MOST}"
SHAPE: Field = lambda value: _lengths(value) and len(value) > 0, LAYOUT[1]


def check(name: str, data: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
    """Raises SurgeryError where the description of a parameter lacks a field or has a wrong one.

    ``fields``: those that it must have besides ``kind``. It may have ``names``, positions in the ``shape`` by axis.
    """
    for field in [*fields, *data]:
        if field in ("kind", "names"):
            continue
        if field not in fields or field not in data:
            verb = "has no" if field in fields else "has the unknown"
            raise SurgeryError(f"the description of {name} in the architecture {verb} {field!r:.40}")
        right, words = fields[field]
        if not right(data[field]):
            _refuse(name, field, data[field], words)
    names, shape = data.get("names", {}), data["shape"]
    if not isinstance(names, Mapping):
        _refuse(name, "names", names, "positions by axis")
    now = dict(enumerate(shape))
    for axis, positions in names.items():
        if axis not in map(str, range(len(shape))):
            _refuse(name, "names", names, f"positions by axis, of {len(shape)} axes")
        length = shape[int(axis)]
        listed = isinstance(positions, (list, tuple)) and 0 < len(positions) <= MOST
        if not listed or not all(type(each) is int and 0 <= each < length for each in positions):
            _refuse(name, f"names of axis {axis}", positions, f"a list of positions from 0 to {length - 1}")
        now[int(axis)] = len(positions)
    if math.prod(now.values()) > MOST:
        _refuse(name, "names", names, f"positions of at most {MOST} entries")


def _refuse(name: str, field: str, value: Any, words: str) -> None:
    shown = " ".join(f"{value!r:.60}".split())
    raise SurgeryError(f"the description of {name} in the architecture has the {field} {shown}, which is not {words}")
