"""Ends a process whose training hangs, and keeps the stack of one that hangs or crashes.

``faulthandler`` does both from a thread of its own in C, so that also code which never returns to Python is seen. What
it writes is a file in the study's folder; the driver, or the next try, reads why the process has gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from torch import Tensor

from network_surgery.study.training.trainer import Callback, Trainer

#: Seconds that are always waited for an epoch, and for any step while nobody knows how long an epoch takes.
LEAST, UNKNOWN = 300.0, 3600.0


@dataclass(frozen=True)
class Limits:
    """How long a training run may take for its ``first`` epoch, from its start, and for each one after that.

    Seconds; None: not known. ``factor``: times the median of its own epochs that it may take for the next one (0: no
    limit at all), but always ``least``.
    """

    factor: float
    first: float | None = None
    later: float | None = None
    least: float = LEAST


@dataclass
class Pace:
    """Learns from the training runs of a study how long one may take."""

    factor: float
    least: float = LEAST
    _firsts: list[float] = field(default_factory=list)
    _laters: list[float] = field(default_factory=list)
    _since: dict[str, tuple[float, bool]] = field(default_factory=dict)

    def started(self, name: str) -> None:
        self._since[name] = time.monotonic(), True

    def epoch(self, name: str) -> None:
        now = time.monotonic()
        since, first = self._since.get(name, (now, False))
        (self._firsts if first else self._laters).append(now - since)
        self._since[name] = now, False

    def ended(self, name: str) -> None:
        self._since.pop(name, None)

    @property
    def limits(self) -> Limits:
        return Limits(self.factor, self._of(self._firsts), self._of(self._laters), self.least)

    def _of(self, seconds: list[float]) -> float | None:
        return max(self.least, self.factor * statistics.median(seconds)) if seconds else None


class Watch(Callback):
    """Watches a training run for the time of a ``with`` block; also a callback, which hears of steps and epochs.

    ``path``: the file of the stack, which is there afterwards only where the process has ended here.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path, self._limits = path, limits
        self._seconds: list[float] = []
        self._since = self._armed = time.monotonic()
        self._file: IO[Any] | None = None
        self._enabled = False  # whether somebody else wants the stacks of crashes

    def __enter__(self) -> Watch:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w")
        except OSError:  # a node without the study's folder: nothing can be kept there
            return self
        self._enabled = faulthandler.is_enabled()
        faulthandler.enable(self._file, all_threads=False)
        self._arm(self._limits.first or UNKNOWN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()
            if self._enabled:
                with contextlib.suppress(Exception):  # standard error may be no file
                    faulthandler.enable(all_threads=False)
            self._file.close()
            self._path.unlink(missing_ok=True)
            self._file = None

    def after_step(self, trainer: Trainer, loss: Tensor) -> None:
        unknown = not self._seconds and self._limits.first is None
        if unknown and time.monotonic() - self._armed > 1:  # each step is a sign of life while nothing else is known
            self._arm(UNKNOWN)

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        now = time.monotonic()
        self._seconds.append(now - self._since)
        self._since = now
        usual = self._limits.factor * statistics.median(self._seconds)
        self._arm(max(self._limits.least, self._limits.later or 0.0, usual))

    def _arm(self, seconds: float) -> None:
        self._armed = time.monotonic()
        if self._limits.factor and self._file is not None:
            faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)
