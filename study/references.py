"""What a setting names in anyone's code: ``MODULE:NAME``, or ``FILE.py:NAME`` for a file that is no module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from network_surgery.ops import SurgeryError
from network_surgery.ops.errors import first_line
from network_surgery.ops.references import resolve
from network_surgery.study.errors import StudyError


def theirs(reference: str, what: str) -> Any:
    """The object that a reference names; ``what`` it is, for errors. A file is run once in a process.

    Raises:
        StudyError: it cannot be loaded, or there is no such name in it.
    """
    place, _, name = reference.rpartition(":")
    if not place.endswith(".py"):
        try:
            return resolve(reference, what)
        except SurgeryError as error:
            raise StudyError(str(error)) from error
    path = Path(place).resolve()
    known = f"network_surgery_file_{path.stem}_{abs(hash(str(path)))}"
    try:
        module = sys.modules.get(known)
        if module is None:
            spec = importlib.util.spec_from_file_location(known, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[known] = module  # dataclasses and pickle look their module up there
            spec.loader.exec_module(module)
        return getattr(module, name)
    except (Exception, SystemExit) as error:  # running anyone's file may fail in any way, or end the program
        sys.modules.pop(known, None)
        raise StudyError(f"the {what} {reference!r} cannot be loaded: {first_line(error)}") from error
