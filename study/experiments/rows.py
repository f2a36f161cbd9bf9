"""What an experiment measures as rows of plain data: measured by processes, kept, asked for, and put to the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from network_surgery.study.errors import StudyError
from network_surgery.study.evidence.significance import Difference, family, half_interval
from network_surgery.study.experiments.processes import processes

#: One thing that was measured: plain data by name.
Row = dict[str, Any]


class Rows(list[Row]):
    """Rows that are asked for often: those that agree in ``FIELDS`` are found together. Not to be changed."""

    FIELDS = ("kind", "activation", "layer", "score", "replacement", "fraction", "training", "arm", "f_nz")

    @cached_property
    def groups(self) -> dict[tuple[Any, ...], list[Row]]:
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in self:
            found.setdefault(tuple(row.get(name) for name in self.FIELDS), []).append(row)
        return found


def measured(tasks: Sequence[tuple[str, Callable[[], list[Row]]]], workers: int, kept: Path | None) -> Rows:
    """The rows of all tasks, by so many processes; with ``kept``, a folder, tasks that lie there are read instead.

    A task is a name and a function of no arguments that can be pickled (``functools.partial``).
    """
    found: dict[str, list[Row]] = {}
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        for name, _ in tasks:
            if (kept / f"{name}.jsonl").exists():
                lines = (kept / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
                found[name] = [json.loads(line) for line in lines]
    left = [(name, task) for name, task in tasks if name not in found]
    if left:
        with processes(min(workers, len(left))) as pool:
            futures = [(name, pool.submit(task)) for name, task in left]
            for name, future in futures:
                found[name] = future.result()
                if kept is not None:
                    text = "".join(json.dumps(row) + "\n" for row in found[name])
                    (kept / f"{name}.part").write_text(text, encoding="utf-8")
                    (kept / f"{name}.part").replace(kept / f"{name}.jsonl")
    return Rows(row for name, _ in tasks for row in found[name])


def grid(rows: Sequence[Row], field: str, **which: Any) -> NDArray[np.float64]:
    """One number of the rows that are ``which`` (of ``Rows.FIELDS``), by seed and moment: ``[seeds, moments]``.

    Raises:
        StudyError: there are no such rows, or not as many for every seed.
    """
    groups = (rows if isinstance(rows, Rows) else Rows(rows)).groups
    asked = [(Rows.FIELDS.index(name), wanted) for name, wanted in which.items()]
    found: dict[int, list[tuple[int, float]]] = {}
    for key, members in groups.items():
        if all(key[at] == wanted for at, wanted in asked):
            for row in members:
                found.setdefault(row["seed"], []).append((row.get("iteration", 0), float(row[field])))
    if not found or len({len(values) for values in found.values()}) > 1:
        raise StudyError(f"{field} of {which} was measured for {len(found)} seeds, not equally often for each")
    return np.array([[value for _, value in sorted(found[seed])] for seed in sorted(found)])


@dataclass(frozen=True)
class Claim:
    """What can be asked of paired differences ``[seeds]``: whether they are above zero (``wanted`` 1) or below (−1).

    ``again``: the same of images that no score has seen, where there is such a thing.
    """

    text: str
    differences: NDArray[np.float64]
    wanted: int = 1
    again: NDArray[np.float64] | None = None


def told(claims: Sequence[Claim]) -> str:
    """The claims as a table: what is asked, the difference with its interval, the verdict. One family for Holm."""
    found = family({at: claim.differences for at, claim in enumerate(claims)})
    seen = [at for at, claim in enumerate(claims) if claim.again is not None]
    elsewhere = family({at: again for at in seen if (again := claims[at].again) is not None})
    lines = ["| claim | difference | |", "|---|--:|---|"]
    if seen:
        lines = ["| claim | difference | | on images that no score has seen | |", "|---|--:|---|--:|---|"]
    for at, claim in enumerate(claims):
        cells = [claim.text, *_verdict(found[at], claim.wanted)]
        if seen:
            cells += _verdict(elsewhere[at], claim.wanted) if at in elsewhere else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: NDArray[np.float64], digits: int = 3) -> str:
    """The mean over seeds ± half of its 95 % interval."""
    return f"{values.mean():.{digits}f} ± {float(half_interval(values)):.{digits}f}"


def _verdict(difference: Difference, wanted: int) -> list[str]:
    """The difference in words and what it says of the claim; "(alone)": but for Holm's correction."""
    if difference.interval is None:
        return [f"{difference.mean:+.3g}", "undecided"]
    low, high = difference.interval
    said = "undecided"
    if low > 0 or high < 0:
        said = "holds" if (difference.mean > 0) == (wanted > 0) else "does not hold"
        said = f"**{said}**" if difference.sign else f"{said} (alone)"
    return [f"{difference.mean:+.3g} [{low:+.3g}, {high:+.3g}]", said]
