"""What goes wrong in surgery, each as one sentence that names the operation, the layer and the remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class SurgeryError(ValueError):
    """An operation that cannot be done: the message says what, where, and what would be right."""


class NoSignal(SurgeryError):
    """The loss says nothing of a layer, so nothing can be chosen by it."""


def said(error: BaseException) -> str:
    """The first line of what somebody else's error says, or else its kind."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Lets somebody else's error in a ``with`` block become a SurgeryError: ``what`` went wrong, and what it says."""
    try:
        yield
    except SurgeryError:
        raise
    except Exception as error:  # whatever foreign code raises
        raise SurgeryError(f"{what}: {said(error)[:200]}") from error
