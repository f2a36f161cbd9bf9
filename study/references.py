"""What a setting names in anyone's code: ``MODULE:NAME``, or ``FILE.py:NAME`` for a file that is no module.

What Python gave to a study, and no text can name elsewhere, is called ``python:NAME`` and known within ``lent`` alone.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from network_surgery.ops.errors import first_line
from network_surgery.ops.references import reference_to
from network_surgery.study.errors import StudyError

#: The module of names whose objects Python gave.
PYTHON = "python"
_LENT: ContextVar[Mapping[str, Any]] = ContextVar("lent", default={})  # noqa: B039  # nobody changes it


@contextlib.contextmanager
def lent(objects: Mapping[str, Any]) -> Iterator[None]:
    """Lets references ``python:NAME`` name these objects for the time of a ``with`` block, in this thread."""
    token = _LENT.set({**_LENT.get(), **objects})
    try:
        yield
    finally:
        _LENT.reset(token)


def name_of(value: Any) -> str:
    """The reference by which ``theirs`` finds this class or function, also in another process; else ``python:NAME``.

    The latter of what was made in ``__main__`` (a notebook, say) or inside a function, and of instances.
    """
    with contextlib.suppress(Exception):  # it has no such name, or its module cannot be found
        reference = reference_to(value)
        if importlib.util.find_spec(value.__module__) is not None and value.__module__ != "__main__":
            return reference
    name = getattr(value, "__name__", type(value).__name__)
    return f"{PYTHON}:{name if name.isidentifier() else type(value).__name__}"


def theirs(reference: str, what: str) -> Any:
    """The object that a reference names; ``what`` it is, for errors. A file is run once in a process.

    Raises:
        StudyError: it cannot be loaded, or there is no such name in it.
    """
    place, _, name = reference.rpartition(":")
    if place == PYTHON:
        if reference not in _LENT.get():
            word = what.rpartition(" ")[2]
            raise StudyError(
                f"the {what} {name} was given from Python, so only Python can go on with it: "
                f"network_surgery.study.resume(path, {word}=…)"
            )
        return _LENT.get()[reference]
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


def make(factory: Callable[..., Any], **given: Any) -> Any:
    """What somebody's factory makes of these values in their order, or of nothing where it takes no arguments.

    >>> make(lambda shape, classes: classes, shape=(1, 8, 8), classes=10), make(lambda: 3, shape=(1, 8, 8), classes=10)
    (10, 3)

    Raises:
        TypeError: it takes other arguments.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some that are compiled have none
        return factory(*given.values())
    for arguments in (tuple(given.values()), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return factory(*arguments)
    raise TypeError(f"it is called with ({', '.join(given)}) or with nothing, but takes {signature}")


def _run(path: Path) -> ModuleType:
    """The module that a file makes, under a name that no import could mean.

    As in a script, it may import what lies beside it.
    """
    name = f"{path.stem}@{path.parent}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
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
