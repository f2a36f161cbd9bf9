"""Rows, and claims by a rule of their own, of ``heuristics``, which has not moved to ``study.bench`` yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from network_surgery.study.bench.rows import Row, Rows
from network_surgery.study.bench.tables import spread
from network_surgery.study.evidence.significance import Difference, family
from network_surgery.study.experiments.processes import processes

__all__ = ["Claim", "Row", "measured", "spread", "told"]


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


@dataclass(frozen=True)
class Claim:
    """What can be asked of paired differences ``[seeds]``: whether they are above zero (``wanted`` 1) or below (−1)."""

    text: str
    differences: NDArray[np.float64]
    wanted: int = 1


def told(claims: Sequence[Claim]) -> str:
    """The claims as a table: what is asked, the difference with its interval, the verdict. One family for Holm."""
    found = family({at: claim.differences for at, claim in enumerate(claims)})
    lines = ["| claim | difference | |", "|---|--:|---|"]
    for at, claim in enumerate(claims):
        lines.append(f"| {' | '.join([claim.text, *_verdict(found[at], claim.wanted)])} |")
    return "\n".join(lines)


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
