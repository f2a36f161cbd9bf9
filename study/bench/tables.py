"""Tables in markdown, and how their cells are worded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from network_surgery.study.bench.rows import Values
from network_surgery.study.evidence.significance import half_interval

One = TypeVar("One")
Other = TypeVar("Other")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> str:
    """A table; the first ``words`` columns hold words, the others numbers, which are set to the right.

    >>> print(table(["layer", "units"], [["fc1", 64]]))
    | layer | units |
    |---|--:|
    | fc1 | 64 |

    Raises:
        ValueError: a row has not as many cells as there are columns.
    """
    lines = [_line(columns), "|" + "---|" * words + "--:|" * (len(columns) - words)]
    for cells in rows:
        if len(cells) != len(columns):
            raise ValueError(f"a row of {len(cells)} cells {list(cells)} in a table of the columns {list(columns)}")
        lines.append(_line(cells))
    return "\n".join(lines)


def cross(
    corner: str, rows: Iterable[One], columns: Mapping[str, Other], cell: Callable[[One, Other], str | None]
) -> str:
    """A table with ``cell(row, column)`` for each row and each column; None is an empty cell."""
    return table([corner, *columns], ([row, *(cell(row, column) for column in columns.values())] for row in rows))


def spread(values: Values, digits: int = 3, scale: float = 1, sign: str = "") -> str:
    """The mean over seeds ± half of its 95 % interval (Student's t); ``sign`` "+" writes that of the mean, too."""
    return f"{scale * values.mean():{sign}.{digits}f} ± {scale * float(half_interval(values)):.{digits}f}"


def deviation(values: Values, digits: int = 2, scale: float = 1) -> str:
    """The mean over seeds ± their standard deviation."""
    return f"{scale * values.mean():,.{digits}f} ± {scale * values.std(ddof=1):,.{digits}f}"


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join('' if cell is None else str(cell).replace('|', chr(92) + '|') for cell in cells)} |"
