"""A copy of a study's folder on a storage that a URI names, kept up to date while the study runs.

A study works in a folder of a file system, since it appends to its ledger and locks it, which object stores cannot. The
copy is what is left where the machine is lost: ``restore`` makes a folder of it, and the study goes on there. The
ledger is copied after the files that its lines name. Databases are copied as one transaction sees them.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from network_surgery.ops.errors import first_line
from network_surgery.study import secrets
from network_surgery.study.errors import StudyError
from network_surgery.study.training.cell import Cell

#: Seconds from one round to the next, at least; and how often as long as a round takes it waits after it.
PAUSE, REST = 15.0, 9.0
LEDGER = "cells.jsonl"
#: What pyarrow calls storages that have neither folders nor files that are half written.
OBJECTS = ("s3", "gcs", "abfs")
#: What is of no use elsewhere, and the password that only this machine's owner may read.
LEFT_OUT = re.compile(rf"(^|/)(\.(?!study\.json$)|lock$|{secrets.FILE}$)|\.part$|-(journal|wal|shm)$")


def is_uri(text: str) -> bool:
    """Whether a text names a place of another file system, also as ``Path`` spells it.

    >>> is_uri("s3://bucket/x"), is_uri("gs:/bucket"), is_uri("runs/x"), is_uri("C:/runs")
    (True, True, False, False)
    """
    return re.match(r"[a-z][a-z0-9+.-]+:/", text) is not None


def spell(text: str) -> str:
    """A URI as it was given before it became a path.

    >>> spell("s3:/bucket/x"), spell("file:/runs/x")
    ('s3://bucket/x', 'file:///runs/x')
    """
    scheme, _, rest = text.partition(":")
    return f"{scheme}://{'/' * (scheme == 'file')}{rest.lstrip('/')}"


def at_hand(study: Path | str) -> Path:
    """The study's folder: the one that is given, or for a URI one under ``runs`` that is made of the copy there.

    Raises:
        StudyError: there is such a folder already, no such copy, or it cannot be read.
    """
    if not is_uri(str(study)):
        return Path(study)
    uri = spell(str(study))
    place = Path("runs") / uri.rstrip("/").rpartition("/")[2]
    if place.exists():
        raise StudyError(f"{place}, where the study at {uri} would go on, is there already; resume that, or remove it")
    restore(uri, place)
    return place


def open_uri(uri: str) -> tuple[Any, str]:
    """The file system (pyarrow's) that a URI names, and the path in it.

    Raises:
        StudyError: there is none of this kind, or it has credentials in it.
    """
    from pyarrow import fs

    parts = urlsplit(uri)
    if parts.username or parts.password:
        raise StudyError(
            f"copy_to is a {parts.scheme} URI with credentials, which would be written to study.json; leave them to "
            "the environment, where the storage's own tools find them"
        )
    try:
        system, path = fs.FileSystem.from_uri(uri)
    except Exception as error:  # of pyarrow, of many types
        raise StudyError(
            f"{uri} names no storage ({first_line(error)}); give s3://BUCKET/PATH, gs://, abfs://, hdfs:// or file:///"
        ) from None
    return system, path


def check(uri: str) -> None:
    """Raises StudyError where nothing can be written there."""
    system, path = open_uri(uri)
    try:
        _write(system, f"{path}/probe", b"can be written")
        system.delete_file(f"{path}/probe")
    except Exception as error:
        raise StudyError(f"nothing can be written to {uri}: {first_line(error)}") from None


def restore(uri: str, folder: Path) -> None:
    """Makes the folder of a study from its copy.

    Raises:
        StudyError: there is none, or it cannot be read.
    """
    from pyarrow import fs

    system, path = open_uri(uri)
    try:
        there = system.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
        names = {each.path.removeprefix(f"{path.rstrip('/')}/"): each for each in there if each.is_file}
        if "study.json" not in names:
            raise StudyError(f"there is no study at {uri} (it has no study.json)")
        for name in sorted(names, key=lambda name: name == "study.json"):  # last: then the folder is whole
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with system.open_input_stream(f"{path}/{name}") as stream:
                target.write_bytes(stream.read())
    except StudyError:
        raise
    except Exception as error:
        raise StudyError(f"{uri} cannot be read: {first_line(error)}") from None


class Copy:
    """A listener (see ``study.search.tuner``) and, as a ``with`` block, the thread that copies; without a URI, nothing.

    ``reason``: why the copy is not complete, empty where it is.
    """

    def __init__(self, folder: Path, uri: str | None) -> None:
        self._folder, self._uri = folder, uri
        self.reason = ""
        self._news, self._over = threading.Event(), threading.Event()
        self._sent: dict[str, tuple[int, int]] = {}
        self._thread = threading.Thread(target=self._work, name="copy", daemon=True)

    def __enter__(self) -> Copy:
        if self._uri is not None:
            check(self._uri)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._uri is not None:
            self._over.set()
            self._news.set()
            self._thread.join()
            self._round()

    def started(self, cell: Cell) -> None: ...

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None:
        self._news.set()

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        self._news.set()

    def _work(self) -> None:
        while not self._over.is_set():
            self._news.wait()
            self._news.clear()
            began = time.monotonic()
            if not self._over.is_set():
                self._round()
                self._over.wait(max(PAUSE, REST * (time.monotonic() - began)))

    def _round(self) -> None:
        """Copies what has changed. A storage that fails is tried again in the next round."""
        try:
            self.send()
            self.reason = ""
        except Exception as error:  # of the storage or the network, of many types
            self.reason = first_line(error)

    def send(self) -> None:
        """Copies what has changed since the last time, and removes there what is gone here."""
        assert self._uri is not None
        system, place = open_uri(self._uri)
        ledger = self._folder / LEDGER
        ended = ledger.read_bytes() if ledger.exists() else None
        here = {}
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder).as_posix()
            if not LEFT_OUT.search(name) and path.is_file():
                here[name] = path
        for name, path in here.items():
            with contextlib.suppress(FileNotFoundError):  # a checkpoint that was removed meanwhile
                state = _state(path)
                if name != LEDGER and self._sent.get(name) != state:
                    _write(system, f"{place}/{name}", _content(path))
                    self._sent[name] = state
        if ended is not None and self._sent.get(LEDGER) != (0, len(ended)):  # it only grows
            _write(system, f"{place}/{LEDGER}", ended)
            self._sent[LEDGER] = 0, len(ended)
        for name in self._sent.keys() - here.keys():
            system.delete_file(f"{place}/{name}")
            del self._sent[name]


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size


def _content(path: Path) -> bytes:
    if path.suffix != ".db":
        return path.read_bytes()
    with (
        tempfile.NamedTemporaryFile(suffix=".db") as file,
        contextlib.closing(sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(file.name)) as target,
    ):
        source.backup(target)
        target.close()
        return Path(file.name).read_bytes()


def _write(system: Any, path: str, content: bytes) -> None:
    """Writes one file, whole or not at all, which object stores do by themselves."""
    if system.type_name in OBJECTS:
        with system.open_output_stream(path) as stream:
            stream.write(content)
        return
    system.create_dir(path.rpartition("/")[0], recursive=True)
    with system.open_output_stream(f"{path}.part") as stream:
        stream.write(content)
    system.move(f"{path}.part", path)
