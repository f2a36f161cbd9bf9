"""What an experiment measures, as rows of plain data: measured by processes, kept in one file, asked for by name."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from network_surgery.study.errors import StudyError

#: One thing that was measured: plain data by name. ``seed`` is that of its run, ``iteration`` the moment of a look.
Row = dict[str, Any]
#: A name and a function of no arguments that returns rows and can be pickled (``functools.partial``).
Task = tuple[str, Callable[[], list[Row]]]
Values = NDArray[np.float64]
#: Where the rows lie beside a page.
FILE = "rows.jsonl.gz"
#: Significant digits that are kept of a number, about those of single precision.
DIGITS = 7


class Rows(list[Row]):
    """Rows that are asked for by the values of their fields. Not to be changed once they are asked for."""

    @cached_property
    def _groups(self) -> dict[tuple[str, ...], dict[tuple[Any, ...], list[Row]]]:
        return {}

    def where(self, **which: Any) -> list[Row]:
        """The rows whose fields have these values."""
        names = tuple(sorted(which))
        if names not in self._groups:
            groups = self._groups[names] = {}
            for row in self:
                groups.setdefault(tuple(row.get(name) for name in names), []).append(row)
        return self._groups[names].get(tuple(which[name] for name in names), [])

    def distinct(self, name: str, **which: Any) -> list[Any]:
        """The values of a field, each once, in the order of the rows."""
        return list(dict.fromkeys(row[name] for row in self.where(**which)))

    def groups(self, *names: str, **which: Any) -> list[Row]:
        """The values of several fields together, each combination once, in the order of the rows."""
        values = dict.fromkeys(tuple(row[name] for name in names) for row in self.where(**which))
        return [dict(zip(names, each, strict=True)) for each in values]

    def grid(self, field: str, by: str = "iteration", /, **which: Any) -> Values:
        """One number of the rows that are ``which``, by seed and iteration (or another field): ``[seeds, moments]``.

        Raises:
            StudyError: there are no such rows, not as many for every seed, or some have no such number.
        """
        found: dict[int, list[tuple[int, Any]]] = {}
        for row in self.where(**which):
            found.setdefault(row["seed"], []).append((row.get(by, 0), row.get(field)))
        if not found or len({len(values) for values in found.values()}) > 1:
            raise StudyError(f"{field} of {which} was measured for {len(found)} seeds, not equally often for each")
        if any(value is None for values in found.values() for _, value in values):
            raise StudyError(f"some of the rows of {which} have no {field}")
        return np.array([[value for _, value in sorted(found[seed])] for seed in sorted(found)], dtype=np.float64)

    def moments(self) -> list[int]:
        """The iterations at which networks were looked at."""
        return sorted({row["iteration"] for row in self if "iteration" in row})

    @cached_property
    def digest(self) -> str:
        """Twelve letters that are equal for equal rows, in whatever order their fields are."""
        lines = (json.dumps(row, sort_keys=True) for row in self)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Measured:
    """Rows, and what they are about: ``experiment``, ``options``, ``facts``, ``command``, ``machine``."""

    about: Mapping[str, Any]
    rows: Rows

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the page says besides of what was measured on."""
        return self.about["facts"]  # type: ignore[no-any-return]

    def save(self, path: Path) -> None:
        """One file of compressed JSON lines: what the rows are about, then each row; equal rows make equal bytes."""
        text = "".join(json.dumps(line) + "\n" for line in (self.about, *self.rows))
        path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))

    @classmethod
    def load(cls, path: Path) -> Measured:
        """Reads the file, or the one in this folder.

        Raises:
            StudyError: it is not there, or not of this format.
        """
        path = path / FILE if path.is_dir() else path
        try:
            about, *rows = map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines())
            if {"experiment", "options", "facts", "command", "machine"} <= about.keys():
                return cls(about, Rows(rows))
        except OSError as error:
            reason = error.strerror or "it is not compressed by gzip"
            raise StudyError(f"the rows {path} cannot be read ({reason}); give a {FILE} or its folder") from None
        except (ValueError, EOFError, AttributeError):
            pass
        raise StudyError(f"{path} holds no rows of an experiment; give a {FILE} that was written beside a page")


def measure(
    about: Mapping[str, Any], tasks: Sequence[Task], workers: int, folder: Path, report: Callable[[str], None]
) -> Measured:
    """The rows of all tasks, in their order, kept in ``folder``; ``report`` receives how many of them have ended.

    Tasks that have ended are kept at once, so that a measurement that was interrupted goes on where it was.

    Raises:
        StudyError: the folder holds an interrupted measurement of something else.
    """
    about = json.loads(json.dumps(about))  # as it is read again
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "rows.part"
    done = _read_unfinished(part, about) if part.exists() else {}
    with part.open("w", encoding="utf-8") as file:
        for line in (about, *done.items()):
            file.write(json.dumps(line) + "\n")
        file.flush()
        for name, rows in _results([task for task in tasks if task[0] not in done], workers):
            done[name] = [_round(row) for row in rows]
            file.write(json.dumps([name, done[name]]) + "\n")
            file.flush()
            report(f"{len(done)} of {len(tasks)} tasks")
    measured = Measured(about, Rows(row for name, _ in tasks for row in done[name]))
    measured.save(folder / FILE)
    part.unlink()
    return measured


def _read_unfinished(part: Path, about: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of the tasks that ended before an interruption, which may have cut the last line."""
    whole = [line for line in part.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    if whole and json.loads(whole[0]) != about:
        raise StudyError(f"{part} was begun with other options, images or versions; remove it, or give another --out")
    return dict(map(json.loads, whole[1:]))


def _results(tasks: Sequence[Task], workers: int) -> Iterator[tuple[str, list[Row]]]:
    """Each task's rows when it ends; one thread each, for more threads cost small networks more than they save."""
    if workers == 1 or len(tasks) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from ((name, task()) for name, task in tasks)
        finally:
            torch.set_num_threads(threads)
        return
    # Started anew, for a fork would inherit torch's threads.
    with ProcessPoolExecutor(min(workers, len(tasks)), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(task): name for name, task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _round(value: Any) -> Any:
    """Plain data with ``DIGITS`` significant digits."""
    if isinstance(value, dict):
        return {name: _round(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_round(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
