"""A study's folder: what lies where, the ledger of finished cells, the lock, and ``results.json``.

The ledger (``cells.jsonl``) gets one line for each cell that ends, at once, so whatever is interrupted later is not
lost. Everything else that a study shows is computed from it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from network_surgery.study import secrets
from network_surgery.study.config import OLDER, Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.store.copies import is_uri, spelled
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training import convergence, records, values
from network_surgery.study.training.cell import Cell

FORMAT = 1
#: The arms of a search: its trials, and the best of them on other seeds.
SEARCHING = ("search", "racing")
#: Parts of a cell that ``results.json`` does without.
LEFT_OUT = ("architecture", "test", "fork", "keep")
#: Seconds to wait for the lock: one that only asks whether a study runs holds it for less.
PATIENCE = 0.5


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
        return records.finished(self.result)

    @property
    def compared(self) -> bool:
        """Part of the comparison, not of the search, which trains originals, too, but reads no test samples."""
        return self.cell.arm not in SEARCHING and (self.cell.arm != "original" or self.cell.test)


class Folder:
    """A study's folder. ``Folder.make`` starts one, ``Folder.open`` finds one.

    Also a listener (see ``study.search.tuner``): it writes the ledger.
    """

    def __init__(
        self, path: Path, settings: Settings, layers: dict[str, int], identity: str, preset: str | None = None,
        metric: Metric = ACCURACY, unit: str = "images", original: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        """``preset``: the name of the settings that the study was started with, before options overlaid them.

        ``metric``: the task's primary one; ``unit``: what the task calls its samples; ``original``: the sizes of the
        network before it is trained (``parameters``, ``flops``), which older studies do not have.
        """
        self.path, self.settings, self.layers, self.identity, self.preset = path, settings, layers, identity, preset
        self.metric = metric if settings.margin is None else replace(metric, margin=settings.margin)
        self._own, self.unit, self.original = metric, unit, dict(original or {})
        self._ours = False
        self._read: tuple[tuple[int, int], list[Record]] = (0, 0), []

    optuna = property(lambda self: self.path / "optuna.db")
    mlflow = property(lambda self: self.path / "mlflow.db")
    artifacts = property(lambda self: self.path / "mlflow-artifacts")
    figures = property(lambda self: self.path / "figures")
    results = property(lambda self: self.path / "results.json")
    report = property(lambda self: self.path / "report.html")
    _ledger = property(lambda self: self.path / "cells.jsonl")

    @property
    def page(self) -> Path | None:
        """The page that a function of the settings (``page``) adds to the report, under that function's name."""
        return self.path / f"{self.settings.page.rpartition(':')[2]}.md" if self.settings.page else None

    @staticmethod
    def check(path: Path) -> None:
        """Raises StudyError where something lies already, so that no study can be made there, or it is no path."""
        if is_uri(str(path)):
            raise StudyError(
                f"{spelled(str(path))} is a URI, but a study works in a folder of this machine; give --out runs/NAME "
                f"--copy-to {spelled(str(path))}"
            )
        if (path / "study.json").exists():
            raise StudyError(f"{path} holds a study already; continue it with 'surgery resume {path}' or choose --out")
        if path.exists() and not path.is_dir():
            raise StudyError(f"{path} is a file; choose another --out")
        if path.exists() and any(path.iterdir()):
            raise StudyError(f"{path} is not empty; choose another --out")

    @classmethod
    def make(
        cls, path: Path, settings: Settings, layers: dict[str, int], preset: str | None = None,
        metric: Metric = ACCURACY, unit: str = "images", data: dict[str, Any] | None = None,
        original: Mapping[str, int] | None = None,
    ) -> Folder:  # fmt: skip
        """A new study in an empty or missing folder. ``data``: the fingerprint of what it is trained on.

        Raises:
            StudyError: as ``check``, or where it cannot be written.
        """
        cls.check(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"{path} cannot be made: {error.strerror}") from None
        identity = uuid.uuid4().hex
        content = {
            "format": FORMAT, "identity": identity, "preset": preset, "settings": settings.to_data(),
            "layers": layers, "metric": metric.to_data(), "unit": unit, "data": data, "machine": machine(),
            "original": dict(original or {}),
        }  # fmt: skip
        secrets.keep(settings.tracking_uri, path)
        _write(path / "study.json", content)
        return cls(path.resolve(), settings, layers, identity, preset, metric, unit, original)

    @classmethod
    def open(cls, path: Path) -> Folder:
        """The study in this folder. Raises StudyError where there is none or it is of another version."""
        try:
            content = json.loads((path / "study.json").read_text())
        except FileNotFoundError:
            raise StudyError(f"there is no study in {path} (it has no study.json)") from None
        except (OSError, ValueError) as error:
            raise StudyError(f"{path / 'study.json'} cannot be read: {error}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise StudyError(f"{path / 'study.json'} is not of the format {FORMAT} that this version reads")
        try:
            settings, layers, identity = content["settings"], content["layers"], content["identity"]
        except KeyError as error:
            raise StudyError(f"{path / 'study.json'} is damaged: it lacks {error}") from None
        known = Settings.from_data({**OLDER, **settings}, str(path / "study.json"))
        metric = Metric.from_data(content["metric"]) if "metric" in content else ACCURACY  # older studies had no other
        unit = content.get("unit", "images")
        original = content.get("original")
        return cls(path.resolve(), known, layers, identity, content.get("preset"), metric, unit, original)

    @property
    def data(self) -> dict[str, Any] | None:
        """The fingerprint of what it is trained on; older studies, and those of some streams, have none."""
        return json.loads((self.path / "study.json").read_text()).get("data")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from running this study in a ``with`` block, which may be inside another one.

        Raises:
            StudyError: another process runs it.
        """
        if self._ours:
            yield
            return
        try:
            lock = self._lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise StudyError(f"{self.path} is being run by another process; wait for it, or stop it") from None
        with lock:
            self._ours = True
            try:
                yield
            finally:
                self._ours = False

    @property
    def running(self) -> bool:
        """Whether another process runs this study now; one that was killed holds its lock no more."""
        if self._ours or not (self.path / "lock").exists():
            return False
        try:
            with self._lock.acquire(timeout=PATIENCE):
                return False
        except Timeout:
            return True

    @property
    def _lock(self) -> FileLock:
        return FileLock(self.path / "lock", poll_interval=PATIENCE / 10)

    def changed(self, **settings: Any) -> Folder:
        """The same study with other settings of its comparison, kept for when it is resumed or reported."""
        content = json.loads((self.path / "study.json").read_text())
        content["settings"] |= settings
        _write(self.path / "study.json", content)
        known = replace(self.settings, **settings)
        same = Folder(self.path, known, self.layers, self.identity, self.preset, self._own, self.unit, self.original)
        same._ours = self._ours
        return same

    def looks(self, whole: bool = False) -> list[int]:
        """The numbers of seeds with which its comparison was complete, and looked at. ``whole``: it is complete now."""
        known: list[int] = json.loads((self.path / "study.json").read_text()).get("looks", [])
        again = whole and self.settings.seeds > max(known, default=0)
        return [*known, self.settings.seeds] if again else known

    def looked(self) -> None:
        """Keeps that its complete comparison is looked at: each look with more seeds spends some of the error rate."""
        content = json.loads((self.path / "study.json").read_text())
        if (looks := self.looks(whole=True)) != content.get("looks", []):
            _write(self.path / "study.json", content | {"looks": looks})

    def test_values(self, record: Record) -> NDArray[np.float64] | None:
        """The metric of each test sample ``[n]`` of a finished cell; None where they were not kept."""
        count, name = record.result.get("test_values"), record.result.get("same_as") or record.cell.name
        return None if count is None else values.read(self.path / "networks" / f"{name}.pt", count)

    def records(self, *arms: str) -> list[Record]:
        """The cells that ended, of these arms or of all, in the order of search trials, arms and seeds."""
        return [record for record in self._ended() if not arms or record.cell.arm in arms]

    def _ended(self) -> list[Record]:
        """The ledger, read again only where it has changed: it is asked for many times and may be long."""
        if not self._ledger.exists():
            return []
        known = self._ledger.stat()
        if self._read[0] != (known.st_size, known.st_mtime_ns):
            found: dict[str, Record] = {}
            for line in self._ledger.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # a line cut off by a killed process
                    continue
                record = Record(Cell(**entry["cell"]), records.renamed(entry["result"]))
                try:
                    records.check(record.result)
                except StudyError as error:
                    raise StudyError(f"{self._ledger}, {record.cell.name}: {error}") from None
                found[record.cell.name] = record
            ordered = sorted(
                found.values(), key=lambda r: (r.cell.arm, -1 if r.cell.trial is None else r.cell.trial, r.cell.seed)
            )
            self._read = (known.st_size, known.st_mtime_ns), ordered
        return self._read[1]

    def run_again(self) -> int:
        """Marks every failed cell as one that is run again when the study goes on; returns their number."""
        failed = [record for record in self.records() if record.failed]
        for record in failed:
            if not record.lost:
                self.ended(record.cell, {**record.result, "lost": True})
        return len(failed)

    def started(self, cell: Cell) -> None: ...

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None: ...

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        line = json.dumps({"cell": asdict(cell), "result": result})
        with self._ledger.open("ab") as ledger:
            # A line that a killed process left unfinished must not swallow this one.
            ledger.write(b"\n" * (ledger.tell() > 0) + line.encode())
            ledger.flush()
            os.fsync(ledger.fileno())

    def write(
        self,
        summary: Sequence[dict[str, Any]],
        verdicts: Sequence[dict[str, Any]],
        left_out: Sequence[dict[str, Any]] = (),
        **more: Any,
    ) -> dict[str, Any]:
        """Writes ``results.json`` from the ledger, a comparison and what else is to be kept; returns its content.

        ``more`` may have its own ``trials``, which say more of them.
        """
        study = json.loads((self.path / "study.json").read_text())
        content = {
            "format": FORMAT,
            "settings": self.settings.to_data(),
            "machine": study["machine"],
            "layers": self.layers,
            "metric": self.metric.to_data(),
            "unit": self.unit,
            "data": study.get("data"),
            "original": self.original,
            "trials": [self.flat(record) for record in self.records("search")],
            "comparison": {
                "summary": list(summary),
                "verdicts": list(verdicts),
                "left_out": list(left_out),
                "cells": [self.flat(record) for record in self.records() if record.compared],
            },
            **more,
        }
        _write(self.results, content)
        return content

    def flat(self, record: Record) -> dict[str, Any]:
        """A cell and its outcome as ``results.json`` has them."""
        cell = {key: value for key, value in vars(record.cell).items() if key not in LEFT_OUT}
        improving = {"improving": convergence.improving(record.result, self.metric)} if record.finished else {}
        return {"name": record.cell.name, **cell, **record.result, **improving}


def checkpoint_of(cell: Cell, settings: Settings, folder: Path) -> Path:
    """Where a cell that is being trained keeps its checkpoint in the study's folder, by what it computes."""
    return checkpoints_of(folder) / f"{cell.name}-{cell.key(settings)}.pt"


def checkpoints_of(folder: Path) -> Path:
    """Where a study keeps the checkpoints of cells, their own and those that they keep for each other."""
    return folder / "checkpoints"


def network_of(cell: Cell | str, folder: Path) -> Path:
    """Where the final network of a cell, or of the cell of this name, lies in the study's folder."""
    return folder / "networks" / f"{cell if isinstance(cell, str) else cell.name}.pt"


def stack_of(cell: Cell, folder: Path) -> Path:
    """Where the stack of a cell is written whose process hangs or crashes (see ``study.training.watch``)."""
    return folder / "stacks" / f"{cell.name}.txt"


def _write(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, _laid_out(content, 3) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that is whole or not there; several processes may write it, and read it, at once."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(part, path)


def _laid_out(value: Any, levels: int, margin: str = "") -> str:
    """JSON with an entry a line down to this number of levels, which is a tenth of the work of indenting all of it."""
    if not levels or not value or not isinstance(value, (dict, list)):
        return json.dumps(value)
    inner = margin + " "
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {_laid_out(entry, levels - 1, inner)}" for key, entry in value.items()]
    else:
        lines = [_laid_out(entry, levels - 1, inner) for entry in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}\n{inner}" + f",\n{inner}".join(lines) + f"\n{margin}{last}"


def machine() -> dict[str, str]:
    """What the results were computed with: versions, processor, number of cores."""
    packages = ("torch", "ray", "optuna", "mlflow", "tensorly", "network-surgery")
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except Exception:  # a source tree that is not installed
            found[package] = "not installed"
    return {"python": platform.python_version(), "system": platform.platform(), "cores": str(os.cpu_count()), **found}
