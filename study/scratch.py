"""Temporary folders of a study's processes: removed at their end; of those that were killed, by another process."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX, LOCK = "network-surgery-", "in-use"
#: Where a folder lies whose path must be short, if the temporary directory of the environment is not.
SHORT = "/tmp"
#: How often a folder is removed while others write there, and the seconds in between.
TRIES, PAUSE = 10, 0.1


@contextlib.contextmanager
def scratch(most: int | None = None) -> Iterator[Path]:
    """A temporary folder for the time of a ``with`` block. Its lock says that its process lives.

    ``most``: the number of characters that its path should have at most (a socket's name has few).
    """
    place = tempfile.gettempdir()
    if most is not None and len(place) + len(PREFIX) + 9 > most and Path(SHORT).is_dir():
        place = SHORT
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    lock = FileLock(path / LOCK)
    lock.acquire()
    try:
        yield path
    finally:
        lock.release()
        _remove(path)


def sweep() -> None:
    """Removes the folders of processes that are gone: their locks are free. One without a lock is left alone."""
    for place in {Path(tempfile.gettempdir()), Path(SHORT)}:
        for lock in place.glob(f"{PREFIX}*/{LOCK}"):
            with contextlib.suppress(OSError, Timeout), FileLock(lock).acquire(timeout=0):
                _remove(lock.parent)


def _remove(path: Path) -> None:
    """Processes that are ending may still write there. What they leave, the next start removes."""
    for _ in range(TRIES):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(PAUSE)
    with contextlib.suppress(OSError):
        (path / LOCK).touch()
