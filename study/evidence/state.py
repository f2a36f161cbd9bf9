"""How far a study is: running, interrupted or finished, and how many trainings of how many have ended.

Nothing is kept for it. What is still missing follows from the ledger as ``resume`` would find it, and a study runs as
long as a process holds its lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from network_surgery.ops import SurgeryError
from network_surgery.study.arms import RIVALS
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search import comparing
from network_surgery.study.search.sources import given
from network_surgery.study.store.folder import Folder
from network_surgery.study.training.cell import Cell


def state(folder: Folder) -> dict[str, Any]:
    """``{"now": "running" | "interrupted" | "finished", "search": {"ended", "of"}, "comparison": {"ended", "of"}}``.

    A stage that a study does not have is 0 of 0. Until the search has ended, and until surgeries have, the comparison's
    number is what is expected of them: at most.
    """
    settings, trials = folder.settings, folder.records("search")
    done = [record for record in folder.records() if record.cell.arm != "search" and not record.result.get("lost")]
    listed = _listed(folder)
    search = {"ended": len(trials), "of": 0 if listed else settings.trials}
    if listed or len(trials) >= settings.trials:
        chosen = listed or [record.cell for record in comparing.choose(trials, settings, folder.metric)]
        missing = comparing.cells(chosen, settings, done).total if chosen else 0
    else:
        missing = max(0, expected(settings, settings.top) - len(done))
    whole = not missing and search["ended"] >= search["of"]
    now = "running" if folder.running else "finished" if whole else "interrupted"
    return {"now": now, "search": search, "comparison": {"ended": len(done), "of": len(done) + missing}}


def expected(settings: Settings, schedules: int) -> int:
    """Training runs of a comparison of that number of schedules: at most, since surgeries decide which arms follow."""
    each = sum(arm in settings.arms for arm in ("surgery", *RIVALS))
    return settings.seeds * (("original" in settings.arms) + schedules * each)


def in_words(state: Mapping[str, Any], folder: str) -> dict[str, str]:
    """Whether the study runs, how many of its trainings have ended, and how to go on: ``now``, ``words``, ``hint``."""
    stages = [
        f"{state[stage]['ended']:,} of {state[stage]['of']:,} {words}"
        for stage, words in (("search", "trials of the search"), ("comparison", "trainings of the comparison"))
        if state[stage]["of"]
    ]
    hints = {
        "running": f"This page shows what had ended by {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; write it anew with "
        f"surgery report {folder}",
        "interrupted": f"Go on with surgery resume {folder}",
        "finished": "",
    }
    return {"now": state["now"], "words": " and ".join(stages) + " have ended.", "hint": hints[state["now"]]}


def _listed(folder: Folder) -> list[Cell]:
    """The schedules that are all compared; those that were, where this version cannot list an older study's grid."""
    try:
        return given(folder.settings, folder.layers)
    except (StudyError, SurgeryError):
        return list({record.cell.trial: record.cell for record in folder.records("surgery")}.values())
