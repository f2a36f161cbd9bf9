"""References: text that names something in any module, ``MODULE:NAME``, as Python's entry points do."""

from __future__ import annotations

import pkgutil
from typing import Any

from network_surgery.ops.errors import SurgeryError, first_line


def resolve(reference: str, what: str) -> Any:
    """The object that a reference names, from a module that can be imported; ``what`` it is, for errors.

    >>> resolve("math:pi", "number")
    3.141592653589793

    Raises:
        SurgeryError: it is no reference, the module cannot be imported, or has no such name.
    """
    if ":" not in reference:
        raise SurgeryError(f"the {what} {reference!r} is no reference; write it as MODULE:NAME")
    try:
        return pkgutil.resolve_name(reference)
    except (Exception, SystemExit) as error:  # importing anyone's module may fail in any way, or end the program
        raise SurgeryError(f"the {what} {reference!r} cannot be loaded: {first_line(error)}") from error


def reference_to(value: Any) -> str:
    """The reference by which ``resolve`` returns this class or function.

    Raises:
        SurgeryError: it is not at the top of a module.
    """
    reference = f"{value.__module__}:{value.__qualname__}"
    if "<" in reference:
        raise SurgeryError(f"{reference} is made inside a function, so no text can name it; define it in a module")
    return reference
