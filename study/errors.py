"""What a user can put right, as one sentence: what is wrong, where, what would be right."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class StudyError(Exception):
    """Bad input or an environment that a study cannot work in. The command line shows it, in one line, and exits with
    code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"\s*\n\s*", " ", message))


class PageError(StudyError):
    """A study's own page could not be made; everything else is written."""


class Diverged(Exception):
    """Training has become NaN or infinite; the message says when. A trial that diverges is recorded as failed."""


def near(name: object, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: a known one that is written almost like it, if there is one.

    >>> near("epoch", ["epochs", "seed"]), near("ADAM", ["adam", "sgd"]), near("x", ["epochs"])
    ("; did you mean 'epochs'?", "; did you mean 'adam'?", '')
    """
    small = {each.lower(): each for each in known}
    alike = difflib.get_close_matches(str(name).lower(), small, n=1)
    return f"; did you mean {small[alike[0]]!r}?" if alike else ""


def explain(error: OSError) -> str:
    """What the operating system refused, as a sentence.

    >>> explain(PermissionError(13, "Permission denied", "out/report.html"))
    'out/report.html cannot be used: Permission denied'
    """
    reason = error.strerror or str(error) or type(error).__name__
    where = next((str(name) for name in (error.filename, error.filename2) if name is not None), None)
    return f"the operating system refuses: {reason}" if where is None else f"{where} cannot be used: {reason}"
