"""What goes wrong in surgery, each as one sentence that names the operation, the layer and the remedy."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch


class SurgeryError(ValueError):
    """An operation that cannot be done: the message says what, where, and what would be right, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"\s*\n\s*", " ", message))


class Unsuitable(SurgeryError):
    """An operation that cannot be done on this layer whatever its values: by the kind of its modules, or by how its
    weights are stored.
    """


class NoSignal(SurgeryError):
    """The loss says nothing of a layer, so nothing can be chosen by it."""


def first_line(error: BaseException) -> str:
    """The first line of what somebody else's error says, or else its kind."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return f"sys.exit({error.code if error.code is not None else ''}) was called"
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def reason_of(error: BaseException) -> str:
    """What an error says in one line: the operating system's words, where it is one of its errors.

    >>> reason_of(FileNotFoundError(2, "No such file or directory", "a")), reason_of(ValueError("no"))
    ('No such file or directory', 'no')
    """
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return allocator or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def pass_on_memory(error: BaseException) -> None:
    """Raises this error again if it says that memory ran out: that is nobody's fault but the machine's.

    To be called first wherever somebody else's errors are caught.
    """
    if is_of_memory(error):
        raise error


@contextlib.contextmanager
def without_foreign_errors() -> Iterator[None]:
    """Ends a ``with`` block at somebody else's error, unless memory ran out."""
    try:
        yield
    except Exception as error:  # whatever foreign code raises
        pass_on_memory(error)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Lets somebody else's error in a ``with`` block become a SurgeryError: ``what`` went wrong, and what it says.

    Where memory runs out the error stays what it is.
    """
    try:
        yield
    except SurgeryError:
        raise
    except Exception as error:  # whatever foreign code raises
        pass_on_memory(error)
        raise SurgeryError(f"{what}: {first_line(error)[:200]}") from error
