"""What a setting names in anyone's code: ``MODULE:NAME``, or ``FILE.py:NAME`` for a file that is no module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from network_surgery.ops.errors import first_line
from network_surgery.study.errors import StudyError


def theirs(reference: str, what: str) -> Any:
    """The object that a reference names; ``what`` it is, for errors. A file is run once in a process.

    Raises:
        StudyError: it cannot be loaded, or there is no such name in it.
    """
    place, _, name = reference.rpartition(":")
    wrong = f"{what} {reference!r} cannot be loaded"
    if not place or not name:
        raise StudyError(f"{wrong}: write it as MODULE:NAME or FILE.py:NAME")
    try:
        module = _run(Path(place).resolve()) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # running anyone's code may fail in any way, or end the program
        raise StudyError(f"{wrong}: {first_line(error)}") from error
    try:
        return attrgetter(name)(module)
    except AttributeError:
        raise StudyError(f"{wrong}: there is no {name!r} in {Path(place).name}") from None


def _run(path: Path) -> ModuleType:
    """The module that a file makes, under a name that no import could mean."""
    name = f"{path.stem}@{path.parent}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
