"""Which trainings a comparison needs: the schedules that are chosen from a search, and their arms (``study.arms``).

The schedules are chosen on validation. The comparison's seeds are not the search's, so that luck in the search is not
counted for surgery. Arms have the same seeds and data order; rivals follow when the surgery of their seed has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from network_surgery.study.arms import RIVALS, rivals
from network_surgery.study.config import Settings
from network_surgery.study.search import front
from network_surgery.study.search.sources import Listed
from network_surgery.study.store.folder import Record
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import operations_of


def choose(trials: Sequence[Record], settings: Settings, metric: Metric = ACCURACY) -> list[Record]:
    """The best schedules of a search that changed the network, at most ``settings.top``.

    With one objective those with the best values (the smaller network where they are equal), the best of every
    operation first, since two that hardly differ answer one question twice. With several those of the front (see
    ``study.search.front``) that stand for it: the best in the first objective, then what adds most hypervolume.
    """
    able = [r for r in trials if r.finished and any(each.changed for each in operations_of(r.result))]
    losses = front.losses([r.result for r in able], settings.objective, metric)
    if len(settings.objective) > 1 and able:
        return [able[index] for index in front.leading(losses, settings.top)]
    able = [able[i] for i in sorted(range(len(able)), key=lambda i: (losses[i, 0], able[i].result["parameters"]))]
    leading: dict[str, Record] = {}
    for record in able:
        leading.setdefault(_operation(record), record)
    rest = [record for record in able if record is not leading[_operation(record)]]
    return [*leading.values(), *rest][: settings.top]


def cells(chosen: Sequence[Cell], settings: Settings, done: Iterable[Record]) -> Listed:
    """The trainings that the comparison of these schedules still needs, in the arms that the settings ask for.

    Rivals follow when the surgery of their seed has ended; those that learn from the original, when it has, too.
    """
    seeds = range(settings.seed + 1, settings.seed + 1 + settings.seeds)
    ended = {record.cell.name: record for record in done if not record.result.get("lost")}  # those are tried again
    wanted = []
    for seed in seeds:
        if "original" in settings.arms:
            wanted.append(Cell("original", seed, test=True))
        for cell in chosen:
            wanted.append(Cell("surgery", seed, cell.schedule, trial=cell.trial, params=cell.params, test=True))

    known = set(ended)
    outcomes: dict[int, dict[str, tuple[Cell, dict[str, Any]]]] = {}  # by seed and name, of originals and surgeries

    def follow(cell: Cell, outcome: dict[str, Any]) -> list[Cell]:
        if cell.arm not in ("original", "surgery"):
            return []
        same = outcomes.setdefault(cell.seed, {})
        same[cell.name] = (cell, outcome)
        original = next((found for each, found in same.values() if each.arm == "original"), None)
        surgeries = [each for each in same.values() if each[0].arm == "surgery"]
        if cell.arm == "surgery":
            surgeries = [same[cell.name]]
        found = [rival for each in surgeries for rival in rivals(*each, settings, original)]
        found = [rival for rival in found if rival.name not in known]
        known.update(rival.name for rival in found)
        return found

    missing = [cell for cell in wanted if cell.name not in ended]
    for cell in wanted:
        if cell.name in ended and not ended[cell.name].failed:
            missing += follow(cell, ended[cell.name].result)
    each = sum(arm in settings.arms for arm in RIVALS)
    return Listed(missing, follow, lambda cell: each if cell.arm == "surgery" else 0)


def _operation(record: Record) -> str:
    return str(record.cell.schedule[0]["op"])
