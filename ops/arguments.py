"""What arguments must be, where several functions take the same kind."""

from __future__ import annotations

from collections.abc import Iterable

from network_surgery.ops.errors import SurgeryError


def name_list(names: Iterable[str]) -> list[str]:
    """These names of layers or parameters as a list. Raises SurgeryError where they are something else."""
    if isinstance(names, Iterable) and not isinstance(names, str):
        found = list(names)
        if all(isinstance(name, str) for name in found):
            return found
    raise SurgeryError(f"what is called by name is given as a list of names, not {names!r:.60}")


def is_seed(value: object) -> bool:
    """Whether it is a whole number from 0 on, of 63 bits at most (as torch's seeds)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
