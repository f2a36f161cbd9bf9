"""What people call the schedules and arms of a comparison, the same and in the same order in text, table and figures.

A schedule has a letter by its rank, the best first; a trial's number stays in the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from network_surgery.study.arms import arm_name
from network_surgery.study.store.words import names, short

#: The beginning of an arm's name → what its short name leaves out where it stands alone, and what it has in its place.
KINDS = {
    "original": ("original", "original, "),
    "restart": ("restart", ""),
    "operate_first": ("operate first", "first, "),
    "prune_end": ("prune at end", "end, "),
}


def letters(results: Mapping[str, Any]) -> dict[int, str]:
    """Trial → letter, of the schedules that are compared, in the order of the closing table."""
    comparison = results.get("comparison") or {}
    trials = [each["trial"] for part in ("summary", "verdicts", "cells") for each in comparison.get(part) or ()]
    return names(trial for trial in trials if trial is not None)


def schedules(results: Mapping[str, Any]) -> dict[int, Sequence[Mapping[str, Any]]]:
    """Trial → its schedule, of all trials that are known."""
    comparison = results.get("comparison") or {}
    cells = [*(results.get("trials") or ()), *(c for c in comparison.get("cells") or () if c["arm"] == "surgery")]
    return {cell["trial"]: cell["schedule"] for cell in cells}


def in_short(results: Mapping[str, Any]) -> Mapping[int, str]:
    """Trial → its schedule in a few words."""
    return _InShort(schedules(results))


class _InShort(Mapping[int, str]):
    """The words of these schedules, put together where they are read: of thousands that is a few."""

    def __init__(self, schedules: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
        self._schedules = schedules

    def __getitem__(self, trial: int) -> str:
        return short(self._schedules[trial])

    def __iter__(self) -> Iterator[int]:
        return iter(self._schedules)

    def __len__(self) -> int:
        return len(self._schedules)


def arm_title(arm: str, letter: str = "") -> str:
    """An arm as it is called where it stands alone, and the letter of its schedule.

    >>> arm_title("restart_flops", "A"), arm_title("restart_late"), arm_title("original")
    ('restart A, equal FLOPs', 'late restart', 'original')
    >>> arm_title("operate_first_flops", "A")
    'operate first A, equal FLOPs'
    """
    name, mark = arm_name(arm), f" {letter}" if letter else ""
    kind, instead = next((words for start, words in KINDS.items() if arm.startswith(f"{start}_")), ("", ""))
    own = name.removeprefix(instead)
    return name + mark if not kind or kind in own else f"{kind}{mark}, {own}"
