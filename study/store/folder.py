"""A study's folder: what lies where, the ledger of finished cells, the lock, and ``results.json``.

The ledger (``cells.jsonl``) gets one line for each cell that ends, at once, so whatever is interrupted later is not
lost. Everything else that a study shows is computed from it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from network_surgery.study import secrets
from network_surgery.study.config import OLDER, Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.store import about
from network_surgery.study.store import ledger as lines
from network_surgery.study.store.copies import is_uri, spell
from network_surgery.study.store.ledger import Record
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training import convergence, values
from network_surgery.study.training.cell import Cell

#: Parts of a cell that ``results.json`` does without.
LEFT_OUT = ("architecture", "test", "fork", "keep")
#: Seconds to wait for the lock: one that only asks whether a study runs holds it for less.
PATIENCE = 0.5
#: Bytes that there must be room for before anything is run.
PROBE = 2**16
#: What a study keeps, besides ``study.json``: in folders, and in files.
FOLDERS = ("networks", "checkpoints", "figures", "mlflow-artifacts")
FILES = ("cells.jsonl", "results.json", "report.html", "optuna.db", "mlflow.db", "lock")


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
    ledger = property(lambda self: self.path / "cells.jsonl")

    @property
    def page(self) -> Path | None:
        """The page that a function of the settings (``page``) adds to the report, under that function's name."""
        return self.path / f"{self.settings.page.rpartition(':')[2]}.md" if self.settings.page else None

    @staticmethod
    def check(path: Path) -> None:
        """Raises StudyError where something lies already, so that no study can be made there, or it is no path."""
        if is_uri(str(path)):
            raise StudyError(
                f"{spell(str(path))} is a URI, but a study works in a folder of this machine; give --out runs/NAME "
                f"--copy-to {spell(str(path))}"
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
            "format": about.FORMAT, "identity": identity, "preset": preset, "settings": settings.to_data(),
            "layers": layers, "metric": metric.to_data(), "unit": unit, "data": data, "machine": machine(),
            "original": dict(original or {}),
        }  # fmt: skip
        secrets.keep(settings.tracking_uri, path)
        about.write(path, content, write_whole)
        return cls(path.resolve(), settings, layers, identity, preset, metric, unit, original)

    @classmethod
    def open(cls, path: Path) -> Folder:
        """The study in this folder.

        Raises:
            StudyError: there is none, it is damaged or of another version, or it was changed by hand.
        """
        content = about.read(path)
        settings, layers, identity = content["settings"], content["layers"], content["identity"]
        known = Settings.from_data({**OLDER, **settings}, str(path / "study.json"))
        metric = Metric.from_data(content["metric"]) if "metric" in content else ACCURACY  # older studies had no other
        unit = content.get("unit", "images")
        original = content.get("original")
        return cls(path.resolve(), known, layers, identity, content.get("preset"), metric, unit, original)

    @property
    def data(self) -> dict[str, Any] | None:
        """The fingerprint of what it is trained on; older studies, and those of some streams, have none."""
        return about.read(self.path).get("data")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from running this study in a ``with`` block, which may hold another of its own.

        Raises:
            StudyError: another process runs it, or nothing can be written there.
        """
        if self._ours:
            yield
            return
        self.check_places(writing=True)
        with held(self.path):
            self._ours = True
            try:
                yield
            finally:
                self._ours = False

    @property
    def running(self) -> bool:
        """Whether another process runs this study now; one that was killed holds its lock no more."""
        if self._ours or not (self.path / "lock").is_file():
            return False
        try:
            with _lock(self.path).acquire(timeout=PATIENCE):
                return False
        except Timeout:
            return True
        except OSError:  # read-only: nobody can run it
            return False

    def check_places(self, writing: bool = False) -> None:
        """Raises StudyError where a file lies in the place of a folder, or the other way round, or, for ``writing``,
        where nothing can be written.
        """
        for path, right in self.misplaced():
            raise StudyError(
                f"{path} is a {'file' if right == 'folder' else 'folder'}, but it must be a {right}; surgery doctor "
                f"{self.path} moves it away"
            )
        probe = self.path / f".probe.{os.getpid()}"
        try:
            if writing:
                probe.write_bytes(bytes(PROBE))
        except OSError as error:
            raise StudyError(f"{self.path} cannot be written: {error.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def misplaced(self) -> list[tuple[Path, str]]:
        """What lies in the place of something else: a path, and what must be there (``file``, ``folder``)."""
        folders = [self.path / name for name in FOLDERS if (self.path / name).exists()]
        files = [self.path / name for name in FILES]
        return [(path, "folder") for path in folders if not path.is_dir()] + [
            (path, "file") for path in files if path.is_dir()
        ]

    def changed(self, **settings: Any) -> Folder:
        """The same study with other settings of its comparison, kept for when it is resumed or reported.

        Raises:
            StudyError: one of them can have no such value; then nothing is kept.
        """
        known, content = replace(self.settings, **settings), about.read(self.path)
        content["settings"] |= settings
        about.write(self.path, content, write_whole)
        other = Folder(self.path, known, self.layers, self.identity, self.preset, self._own, self.unit, self.original)
        other._ours = self._ours
        return other

    def looks(self, whole: bool = False) -> list[int]:
        """The numbers of seeds with which its comparison was complete, and looked at. ``whole``: it is complete now."""
        known: list[int] = about.read(self.path).get("looks", [])
        again = whole and self.settings.seeds > max(known, default=0)
        return [*known, self.settings.seeds] if again else known

    def looked(self) -> None:
        """Keeps that its complete comparison is looked at: each look with more seeds spends some of the error rate."""
        content = about.read(self.path)
        if (looks := self.looks(whole=True)) != content.get("looks", []):
            about.write(self.path, content | {"looks": looks}, write_whole)

    def test_values(self, record: Record) -> NDArray[np.float64] | None:
        """The metric of each test sample ``[n]`` of a finished cell; None where they were not kept.

        Raises:
            StudyError: they are damaged, or others than those of the ledger.
        """
        count, name = record.result.get("test_values"), record.result.get("same_as") or record.cell.name
        network = network_of(name, self.path)
        found = None if count is None else values.read(network, count)
        if found is not None and not math.isclose(found.mean(), record.result["test_metric"], rel_tol=2e-3):
            raise StudyError(
                f"{values.place(network)} has the mean {found.mean():g}, but the ledger says "
                f"{record.result['test_metric']:g}; surgery doctor {self.path} sets it aside"
            )
        return found

    def records(self, *arms: str) -> list[Record]:
        """The cells that ended, of these arms or of all, in the order of search trials, arms and seeds."""
        return [record for record in self._ended() if not arms or record.cell.arm in arms]

    def _ended(self) -> list[Record]:
        """The ledger, read again only where it has changed: it is asked for many times and may be long."""
        if not self.ledger.exists():
            return []
        known = self.ledger.stat()
        if self._read[0] != (known.st_size, known.st_mtime_ns):
            found = {record.cell.name: record for record in lines.read(self.ledger, self.identity)}
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
        """Keeps how a cell ended. Raises StudyError where that cannot be written."""
        try:
            lines.add(self.ledger, cell, result, self.identity)
        except OSError as error:
            raise StudyError(
                f"{self.ledger} cannot be written ({error.strerror}); what had ended before {cell.name} is kept, so "
                f"make room and go on with surgery resume {self.path}"
            ) from None

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
        study = about.read(self.path)
        content = {
            "format": about.FORMAT,
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


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keeps other processes from running the study in this folder in a ``with`` block, where anything can be written.

    Raises:
        StudyError: another process runs it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_lock(path).acquire(timeout=PATIENCE))
        except Timeout:
            raise StudyError(f"{path} is being run by another process; wait for it, or stop it") from None
        except OSError:  # there is no such folder, it is read-only, or another folder lies in the lock's place
            pass
        yield


def _lock(path: Path) -> FileLock:
    return FileLock(path / "lock", poll_interval=PATIENCE / 10)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that is whole or not there; several processes may write it, and read it, at once."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    except OSError as error:  # of a full disk Python does not say which file it is
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


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
