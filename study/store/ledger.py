"""The ledger of a study: a line of JSON for each cell that has ended, with a checksum.

A line that a killed process left unfinished is no damage: its cell is run again. Any other line that is not one of the
ledger's is an error, and ``surgery doctor`` sets it aside.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from network_surgery.ops.errors import first_line
from network_surgery.study.config import ARMS
from network_surgery.study.errors import StudyError
from network_surgery.study.training import records
from network_surgery.study.training.cell import Cell

#: The arms of a search: its trials, and the best of them on other seeds.
SEARCHING = ("search", "racing")
#: What ends a line: the CRC-32 of what goes before. Lines of earlier versions have none.
SUM = re.compile(r', "crc32": "([0-9a-f]{8})"\}$')
#: Numbers of an outcome, where it has them.
NUMBERS = ("validation_metric", "validation_loss", "test_metric", "test_loss", "parameters", "flops", "seconds")
#: What every training run that has not failed has.
NEEDED = ("validation_metric", "parameters")


@dataclass(frozen=True)
class Record:
    """A cell and how it ended: an outcome (see ``study.training.run``), a failure (``study.training.failure``), or what
    a trial had reached that was ``stopped`` early (see ``study.search.stopping``).
    """

    cell: Cell
    result: dict[str, Any]

    @property
    def failed(self) -> bool:
        return "failure" in self.result

    @property
    def lost(self) -> bool:
        """Failed for a reason that may go otherwise, so that it is run again when its study goes on."""
        return bool(self.result.get("lost"))

    @property
    def finished(self) -> bool:
        """Trained to its end."""
        return records.is_finished(self.result)

    @functools.cached_property
    def changed(self) -> bool:
        """Trained to its end, with an operation that changed the network."""
        return self.finished and any(each.changed for each in records.operations_of(self.result))

    @property
    def compared(self) -> bool:
        """Part of the comparison, not of the search, which trains originals, too, but reads no test samples."""
        return self.cell.arm not in SEARCHING and (self.cell.arm != "original" or self.cell.test)


@dataclass(frozen=True)
class Line:
    """A line of the file as it is, its number from 1, and its record; without one, what is ``wrong`` with it.

    One that is cut off has neither.
    """

    number: int
    content: bytes
    record: Record | None = None
    wrong: str = ""


def add(path: Path, cell: Cell, result: Mapping[str, Any], study: str = "") -> None:
    """Writes a line, at once. Raises OSError where it cannot; the lines before stay as they are.

    ``study``: the identity of the study whose line it is.
    """
    whose = {"study": study} if study else {}
    text = json.dumps({"cell": asdict(cell), "result": result} | whose)
    line = f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}'
    with path.open("ab") as ledger:
        # A line that a killed process left unfinished must not swallow this one.
        ledger.write(b"\n" * (ledger.tell() > 0) + line.encode())
        ledger.flush()
        os.fsync(ledger.fileno())


def read(path: Path, study: str = "") -> list[Record]:
    """The records in the order of the file.

    Raises:
        StudyError: a line is damaged or not of this ``study``, or the file cannot be read.
    """
    found = []
    for line in lines(path, study):
        if line.wrong:
            raise StudyError(
                f"line {line.number} of {path} {line.wrong}; surgery doctor {path.parent} sets it aside, and surgery "
                "resume runs it again"
            )
        if line.record is not None:
            found.append(line.record)
    return found


def lines(path: Path, study: str = "") -> Iterator[Line]:
    """All lines that are not empty. Raises StudyError where the file cannot be read.

    One of another ``study`` than this is wrong; lines of earlier versions do not say whose they are.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield _line(number, line, study)


def _line(number: int, content: bytes, study: str) -> Line:
    try:
        text = content.decode().strip()
        entry = json.loads(text)
    except UnicodeDecodeError:
        return Line(number, content, wrong="is not text")
    except (ValueError, RecursionError):
        return Line(number, content, wrong="" if _cut_off(content) else "is not JSON")
    if (found := SUM.search(text)) and f"{zlib.crc32((text[: found.start()] + '}').encode()):08x}" != found[1]:
        return Line(number, content, wrong="is not as it was written: its checksum is of something else")
    if study and isinstance(entry, dict) and entry.get("study", study) != study:
        return Line(number, content, wrong="is of another study than the study.json beside it")
    try:
        return Line(number, content, _record(entry))
    except StudyError as error:
        return Line(number, content, wrong=str(error))


def _cut_off(content: bytes) -> bool:
    """Whether a line is the beginning of one: more is opened in it than is closed."""
    begin = b'{"cell": '
    bare = re.sub(rb'"(?:[^"\\]|\\.)*(?:"|\\?$)', b"", content)  # without texts, also one that is cut off
    return content[: len(begin)] == begin[: len(content)] and bare.count(b"{") > bare.count(b"}")


def _record(entry: Any) -> Record:
    """The record of a line. Raises StudyError, the end of a sentence, where it is none."""
    if not isinstance(entry, dict) or not isinstance(entry.get("cell"), dict):
        raise StudyError(f"is no training run, but {json.dumps(entry):.40}")
    if not isinstance(entry.get("result"), dict):
        raise StudyError("is a training run without a result")
    cell = _cell(entry["cell"])
    try:
        return _check(cell, records.rename(entry["result"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # parts of other kinds than they must be
        raise StudyError(f"({cell.name}) is damaged: {first_line(error):.80}") from None


def _check(cell: Cell, result: dict[str, Any]) -> Record:
    for name in NUMBERS:
        value = result.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise StudyError(f"({cell.name}) has the {name} {value!r:.40}, which is no number")
        if value is not None and not math.isfinite(value):
            raise StudyError(f"({cell.name}) has the {name} {value}")
    if "failure" not in result:
        if not all(isinstance(epoch, dict) for epoch in result.get("epochs", ())):
            raise StudyError(f"({cell.name}) has epochs that are no mappings")
        lacks = [name for name in NEEDED if result.get(name) is None]
        if lacks:
            raise StudyError(f"({cell.name}) lacks {lacks[0]!r}")
    try:
        records.check(result)
    except StudyError as error:
        raise StudyError(f"({cell.name}) is damaged: {error}") from None
    return Record(cell, result)


def _cell(data: Mapping[str, Any]) -> Cell:
    """Raises StudyError where a cell lacks something, or has what this version does not know."""
    known = {field.name: field for field in fields(Cell)}
    if odd := [name for name in data if name not in known]:
        raise StudyError(f"has a cell with {odd[0]!r}, which this version does not know")
    if lacks := [
        n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in data
    ]:
        raise StudyError(f"has a cell without {lacks[0]!r}")
    cell = Cell(**data)
    kinds = {"arm": str, "seed": int, "schedule": (list, tuple), "params": dict, "sunk": dict, "test": bool}
    for name, kind in kinds.items():
        if not isinstance(getattr(cell, name), kind):  # type: ignore[arg-type]
            raise StudyError(f"has a cell whose {name} is {getattr(cell, name)!r:.40}")
    if cell.arm not in (*SEARCHING, *ARMS):
        raise StudyError(f"has a cell of the arm {cell.arm!r:.40}, which this version does not know")
    if not all(isinstance(step, dict) and {"when", "layer", "op"} <= {*step} for step in cell.schedule):
        raise StudyError(f"has a cell whose schedule is {cell.schedule!r:.40}")
    if (cell.trial is not None and type(cell.trial) is not int) or (cell.arm == "search" and cell.trial is None):
        raise StudyError(f"has a cell whose trial is {cell.trial!r:.40}")
    return cell
