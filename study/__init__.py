"""Does surgery pay? Train, operate, measure, search, compare, show.

``run``, ``resume``, ``compare``, ``report`` and ``open`` are those of ``study.api``, loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from network_surgery.study.api import Result, compare, open, report, resume, run

__all__ = ["Result", "compare", "open", "report", "resume", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from network_surgery.study import api

    return getattr(api, name)
