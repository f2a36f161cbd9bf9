"""How far a study is: running, interrupted or finished, and how many training runs of how many have ended.

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
from network_surgery.study.search.sampled import listed_cells
from network_surgery.study.store.folder import Folder
from network_surgery.study.training.cell import Cell

#: Stage → what its runs are.
STAGES = {
    "search": "trials of the search", "racing": "repeats of the best of them",
    "comparison": "training runs of the comparison",
}  # fmt: skip


def state(folder: Folder) -> dict[str, Any]:
    """``{"now": "running" | "interrupted" | "finished"}``, and of each stage ``{"ended", "of"}``.

    Stages are ``search``, ``racing`` (the best trials on more seeds) and ``comparison``.

    A stage that a study does not have is 0 of 0. Until the search has ended, and until surgeries have, the numbers of
    the later stages are what is expected of them: at most.
    """
    settings, trials = folder.settings, [record for record in folder.records("search") if not record.lost]
    done = [record for record in folder.records() if record.compared and not record.lost]
    listed = _list_schedules(folder)
    search = {"ended": len(trials), "of": 0 if listed else settings.trials}
    repeated = [record for record in folder.records(comparing.RACING) if not record.lost]
    whole = bool(listed) or len(trials) >= settings.trials
    race = None if listed or not whole else comparing.race_of(folder)
    left = race.left if race else 0 if listed else comparing.expect(settings)
    racing = {"ended": len(repeated), "of": len(repeated) + left if whole else max(left, len(repeated))}
    if whole and not left:
        chosen = listed or [record.cell for record in (race.order[: settings.top] if race else ())]
        missing = comparing.cells(chosen, settings, done).total if chosen else 0
    else:
        missing = max(0, expect(settings, settings.top) - len(done))
    ended = whole and not left and not missing
    now = "running" if folder.running else "finished" if ended else "interrupted"
    comparison = {"ended": len(done), "of": len(done) + missing}
    return {"now": now, "search": search, "racing": racing, "comparison": comparison}


def expect(settings: Settings, schedules: int) -> int:
    """Training runs of a comparison of that number of schedules: at most, since surgeries decide which arms follow."""
    each = sum(arm in settings.arms for arm in ("surgery", *RIVALS))
    return settings.seeds * (("original" in settings.arms) + schedules * each)


def epochs(folder: Folder) -> dict[str, int]:
    """``trained_epochs``: those of all runs that were trained; ``shared_epochs``: those that were not, because another
    run had computed the same (``study.search.once``). Stopped runs count as far as they came, failed ones do not.
    """
    whole = shared = 0
    for record in folder.records():
        number = len(record.result.get("epochs", ()))
        whole += number
        shared += number if "same_as" in record.result else record.result.get("forked", {}).get("epoch", 0)
    return {"trained_epochs": whole - shared, "shared_epochs": shared}


def in_words(state: Mapping[str, Any], folder: str) -> dict[str, str]:
    """Whether the study runs, how many of its runs have ended, and how to go on: ``now``, ``words``, ``hint``."""
    stages = [
        f"{state[stage]['ended']:,} of {state[stage]['of']:,} {words}"
        for stage, words in STAGES.items()
        if state.get(stage, {}).get("of")
    ]
    hints = {
        "running": f"This page shows what had ended by {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; write it anew with "
        f"surgery report {folder}",
        "interrupted": f"Go on with surgery resume {folder}",
        "finished": "",
    }
    words = ", ".join(stages[:-1]) + " and " * (len(stages) > 1) + "".join(stages[-1:]) + " have ended."
    if shared := state.get("shared_epochs", 0):
        words += f" {shared:,} of {shared + state['trained_epochs']:,} epochs were not trained twice."
    return {"now": state["now"], "words": words, "hint": hints[state["now"]]}


def _list_schedules(folder: Folder) -> list[Cell]:
    """The schedules that are all compared; those that were, where this version cannot list an older study's grid."""
    try:
        return listed_cells(folder.settings, folder.layers, folder.original)
    except (StudyError, SurgeryError):
        return list({record.cell.trial: record.cell for record in folder.records("surgery")}.values())
