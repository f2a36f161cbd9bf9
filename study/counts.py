"""Numbers of things, in words."""

from __future__ import annotations


def format_count(number: float, noun: str) -> str:
    """A number of things, with the noun's plural where it is not one of them.

    >>> format_count(1, "epoch"), format_count(1200, "training run"), format_count(0.5, "CPU")
    ('1 epoch', '1,200 training runs', '0.5 CPUs')
    """
    return f"{number:{',' if isinstance(number, int) else 'g'}} {noun}{'s' * (number != 1)}"
