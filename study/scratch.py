"""Temporary folders of a study's processes: removed at their end; of those that were killed, by another process."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX, LOCK = "network-surgery-", "in-use"
#: Where a folder lies whose path must be short, if the temporary directory of the environment is not.
SHORT = "/tmp"
#: Seconds for which a process empties its folder while others still write there, and the pause in between.
PATIENCE, PAUSE = 10.0, 0.1


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
        _remove(path, lock, PATIENCE)


def sweep() -> None:
    """Removes the folders of processes that are gone: their locks are free. One without a lock is left alone."""
    for place in {Path(tempfile.gettempdir()), Path(SHORT)}:
        for path in place.glob(f"{PREFIX}*/{LOCK}"):
            lock = FileLock(path)
            with contextlib.suppress(OSError, Timeout):
                lock.acquire(timeout=0)
                _remove(path.parent, lock)  # nobody writes there


def _remove(path: Path, lock: FileLock, patience: float = 0.0) -> None:
    """Processes that are ending may still write there. What they leave, or who is killed here, the next start removes:
    the lock goes last.
    """
    end = time.monotonic() + patience
    while (left := _keeps(path)) and time.monotonic() < end:
        time.sleep(PAUSE)
    lock.release()
    if not left:
        (path / LOCK).unlink(missing_ok=True)
        try:
            path.rmdir()
        except OSError:  # somebody has written there once more
            with contextlib.suppress(OSError):
                (path / LOCK).touch()


def _keeps(path: Path) -> bool:
    """Removes what it can of a folder, but for its lock: whether something is left."""
    left = False
    for each in path.glob("*"):
        if each.name != LOCK:
            with contextlib.suppress(OSError):
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
            left = left or os.path.lexists(each)
    return left
