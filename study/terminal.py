"""The terminal: what goes on is written to standard error, the answer to standard output, and nothing in between.

It imports nothing heavy, since the first line must come at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

#: Parts of the path of a file that is nobody's own code: of what is installed, and of Python itself.
INSTALLED = ("site-packages", "dist-packages", os.path.dirname(os.__file__), os.path.dirname(__file__))


class Lasting:
    """A stream whose reader may leave, as ``head`` does: what comes later is dropped, and the study goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Sends what is still written there, also at the interpreter's end, nowhere, if the reader or the terminal has
        gone.
        """
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@dataclass(frozen=True)
class Terminal:
    """Where a command writes. ``quiet``: only the answer; ``as_json``: one document in its place."""

    quiet: bool = False
    as_json: bool = False

    @property
    def narration(self) -> Console:
        """For what goes on: standard error."""
        return _console(sys.stderr, self.quiet)

    @property
    def answer(self) -> Console:
        """For what came of it: standard output."""
        return _console(sys.stdout, False)

    def begin(self, command: str, about: object = "") -> None:
        """The first line: what runs, before anything heavy is imported."""
        words = f"surgery {command}" + (f": {about}" if str(about) else "")
        say(self.narration, words)

    def document(self, content: Any) -> None:
        """Writes one JSON document to standard output."""
        stream = Lasting(sys.stdout)
        stream.write(json.dumps(content, indent=1, ensure_ascii=False, default=_plain) + "\n")
        stream.flush()


def say(console: Console, words: str, **look: Any) -> None:
    """A line as it is: whole words on a terminal, and one line where it is written to a file or a pipe."""
    console.print(words, highlight=False, markup=False, soft_wrap=not console.is_terminal, **look)


def say_path(console: Console, words: str, **look: Any) -> None:
    """A line with a path or a command in it, which is never broken."""
    console.print(words, highlight=False, markup=False, soft_wrap=True, **look)


def prepare() -> None:
    """What holds for every command: characters that the terminal has not are replaced, and warnings of libraries are
    left out (Python's ``-W`` and ``PYTHONWARNINGS`` show them); those of people's own files are a line each.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if not sys.warnoptions:
        warnings.showwarning = _own_warning
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # such as that its cache lies elsewhere


def _own_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    if not any(part in filename for part in INSTALLED):
        first = (str(message).splitlines() or [category.__name__])[0]
        print(f"surgery: warning: {first} ({os.path.basename(filename)}, line {lineno})", file=Lasting(sys.stderr))


def _console(stream: TextIO, quiet: bool) -> Console:
    from rich.console import Console

    return Console(file=Lasting(stream), quiet=quiet)  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else repr(value)
