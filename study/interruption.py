"""SIGTERM and SIGHUP end a command as Ctrl-C does: what has ended is kept, and no process is left."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

#: What ends a command, as far as the system knows it.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interruption:
    """The handler of these signals, for the time of a ``with`` block in the main thread.

    A signal is a ``KeyboardInterrupt``, or what ``softly`` does instead. ``code`` is the exit code afterwards: 128 and
    the signal's number. What is ignored (SIGHUP of ``nohup``) stays so.
    """

    def __init__(self) -> None:
        self.code = 128 + signal.SIGINT
        self._softly: Callable[[], bool] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        global _current
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else []:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._interrupt)
        _current = self
        return self

    def __exit__(self, *_: Any) -> None:
        global _current
        _current = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def again(self) -> None:
        """Takes the signals back that something else has taken meanwhile."""
        for number in self._before:
            signal.signal(number, self._interrupt)

    @contextlib.contextmanager
    def softly(self, stop: Callable[[], bool]) -> Iterator[None]:
        """The first signal in a ``with`` block calls ``stop`` in place of an exception, unless that returns False."""
        self._softly = stop
        try:
            yield
        finally:
            self._softly = None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.code = 128 + number
        stop, self._softly = self._softly, None
        if stop is None or not stop():
            raise KeyboardInterrupt


_current: Interruption | None = None


def current() -> Interruption | None:
    """The one that handles signals now, if any: programs that call Python handle theirs themselves."""
    return _current
