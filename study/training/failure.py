"""Why a training run failed, as plain data: one sentence, the exception, and the line of the user's own code.

``lost`` marks what may go otherwise the next time: memory ran out, a file or a network was away, the process was lost
or hung. Such a cell is run again whenever its study goes on. Everything else is a property of what was run, and stays.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from typing import Any

from network_surgery import ops, search_spaces, study
from network_surgery.ops.errors import SurgeryError, first_line, is_of_memory
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.terminal import INSTALLED

#: The most characters of an exception's message that are kept, and of those in a sentence.
LONGEST, SHORT = 2000, 300
#: Parts of the path of code that is no user's.
OTHERS = (*INSTALLED, *(os.path.dirname(str(package.__file__)) for package in (ops, search_spaces, study)), "<frozen ")
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)$')


def failure(error: BaseException) -> dict[str, Any]:
    """The outcome of a training run that this exception ended.

    ``failure``: a sentence with the exception's type, its message and the user's own line; ``error``: ``type`` and
    ``message`` of its first cause, and ``where`` (None where no code of the user's took part); ``lost``: whether it may
    go otherwise the next time; ``memory``: whether memory ran out.

    >>> failure(ValueError("two\\nlines"))["failure"]
    'ValueError: two'
    """
    root, where, memory = next(_causes(error)), _where(error), is_of_memory(error)
    kind, sentence = type(root).__name__, first_line(error)[:SHORT]
    ours = isinstance(error, (Diverged, StudyError, SurgeryError))
    if memory:
        sentence = f"out of memory: {sentence}"
    elif not ours and sentence != kind:
        sentence = f"{kind}: {sentence}"
    place = where if where is None or not ours or isinstance(root, type(error)) else f"{kind} at {where}"
    about = {"type": kind, "message": str(root)[:LONGEST], "where": where}
    outcome: dict[str, Any] = {"failure": sentence + (f" ({place})" if place else ""), "error": about}
    if memory or any(isinstance(each, OSError) for each in _causes(error)):
        outcome["lost"] = True
    return outcome | ({"memory": True} if memory else {})


def describe_lost(reason: str, stack: str | None = None) -> dict[str, Any]:
    """The outcome of a training run whose process has gone, by what is known of it.

    ``reason``: what Ray says of it; ``stack``: what ``faulthandler`` wrote, if it did.

    >>> describe_lost("The actor died.\\nWorker exit detail: Worker exits with code 3. There may be causes.")["failure"]
    'the process was lost: Worker exits with code 3'
    """
    where = None if stack is None else where_in(stack)
    memory = "low on memory" in reason
    detail = re.search(r"exit detail: ([^\n]+?)\.(?: |$)", reason)
    last = detail[1] if detail else (reason.strip().splitlines() or ["nothing is known of it"])[-1]
    if stack and (limit := re.match(r"Timeout \((\d+):(\d+):([\d.]+)\)!", stack)):
        seconds = 3600 * int(limit[1]) + 60 * int(limit[2]) + float(limit[3])
        kind, sentence = "Hung", f"it hung: no epoch ended within {seconds:,.0f} s"
    elif stack and (fatal := re.match(r"Fatal Python error: (.*)", stack)):
        kind, sentence = "Crashed", f"its process crashed: {fatal[1]}"
    elif memory:
        kind, sentence = "OutOfMemory", "out of memory: Ray ended the process, since its node ran low on memory"
    else:
        kind, sentence = "Lost", f"the process was lost: {last[:SHORT]}"
    about = {"type": kind, "message": reason.strip()[:LONGEST], "where": where}
    outcome = {"failure": sentence + (f" ({where})" if where else ""), "error": about, "lost": True}
    return outcome | ({"memory": True} if memory else {})


def where_in(stack: str) -> str | None:
    """The user's own line in a stack as ``faulthandler`` writes it, the most recent call first; of several threads
    that of the first which has one.
    """
    for line in stack.splitlines():
        if (found := _FRAME.match(line)) and is_own(found["file"]):
            return _in_words(found["file"], int(found["line"]), found["name"])
    return None


def _where(error: BaseException) -> str | None:
    """The last line of the user's own code that an exception, or what caused it, has passed."""
    for each in _causes(error):
        for frame in reversed(traceback.extract_tb(each.__traceback__)):
            if is_own(frame.filename):
                return _in_words(frame.filename, frame.lineno or 0, frame.name)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it was raised from, the first cause first."""
    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in chain:
        chain.append(each)
        each = each.__cause__
    return reversed(chain)


def is_own(file: str) -> bool:
    """Whether a file of Python is the user's own: no installed package's and none of ours."""
    return not any(part in file for part in OTHERS) and file not in ("<string>", "")


def _in_words(file: str, line: int, name: str) -> str:
    return f"{os.path.basename(file)}, line {line}, in {name}"
