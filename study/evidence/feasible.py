"""What a search under a budget found: which trials are within it, how far the others are from it, the repeats of each.

For ``results.json``, for what is printed, and for ``Result.trials``.
"""

from __future__ import annotations

from typing import Any

from network_surgery.study.search import comparing
from network_surgery.study.search.budget import Budget, mean
from network_surgery.study.search.samplers import knows_constraints
from network_surgery.study.store.folder import Folder, Record


def state_of(record: Record, budget: Budget) -> str:
    """``failed``, ``stopped`` (early), ``infeasible`` (beyond the budget) or ``finished``."""
    if record.failed:
        return "failed"
    if not record.finished:
        return "stopped"
    return "finished" if budget.feasible(record.result) else "infeasible"


def trials(folder: Folder) -> list[dict[str, Any]]:
    """The trials of a search as ``results.json`` has them: outcomes, with ``state`` and ``violations`` of the budget.

    A trial that was repeated (``comparing.race``) has ``repeats``, what it reached on each other seed, ``mean``, over
    all of its seeds, and ``beyond``, how far that is beyond the budget (0: within, or there is none).
    """
    budget, again = comparing.budget_of(folder), repeats(folder)
    found = []
    for record in folder.records("search"):
        row = {**folder.flat(record), **judge(record, budget)}
        others = again.get(record.cell.trial, [])
        if others:
            row["repeats"] = [
                {"seed": r.cell.seed, "state": state_of(r, budget), **(mean([r.result]) if r.finished else {})}
                for r in others
            ]
            ended = [record, *(r for r in others if r.finished)]
            row["mean"] = mean(r.result for r in ended)
            row["beyond"] = comparing.budget_of(folder, [r.cell.seed for r in ended]).distance(row["mean"])
        found.append(row)
    return found


def judge(record: Record, budget: Budget) -> dict[str, Any]:
    """The ``state`` of a trial, and its ``violations`` where there is a budget and it did not fail."""
    violations = budget.violations(record.result) if budget and not record.failed else {}
    return {"state": state_of(record, budget)} | ({"violations": violations} if violations else {})


def repeats(folder: Folder) -> dict[int | None, list[Record]]:
    """Trial → its runs on other seeds, in the order of these."""
    found: dict[int | None, list[Record]] = {}
    for record in folder.records(comparing.RACING):
        found.setdefault(record.cell.trial, []).append(record)
    return found


def feasibility(folder: Folder) -> dict[str, Any]:
    """The budget of a study and how its search fares under it; empty where there is no budget.

    ``limits`` (see ``Budget.to_data``), ``words``, the number of ``feasible`` trials ``of`` those that ended with a
    changed network, and ``sentence``, where none of them is feasible.
    """
    budget = comparing.budget_of(folder)
    if not budget:
        return {}
    ended = [record for record in folder.records("search") if record.changed]
    within = sum(budget.feasible(record.result) for record in ended)
    about = {"limits": budget.to_data(), "words": budget.sentence, "feasible": within, "of": len(ended)}
    return about | {"sentence": _nearest(folder, budget, len(ended)) if ended and not within else None}


def _nearest(folder: Folder, budget: Budget, count: int) -> str:
    nearest = comparing.find_chosen(folder)[0]
    over = {name: value for name, value in budget.violations(nearest.result).items() if value > 0}
    words = ", ".join(f"{name} by {value:.1%}" for name, value in over.items())
    return (
        f"none of the {count} trials meets the budget ({budget.sentence}); the nearest are compared, the first of them "
        f"trial {nearest.cell.trial}, which exceeds it in {words}"
    )


def budget_note(folder: Folder) -> str:
    """What is printed of the budget before a search begins; empty where there is none."""
    settings, budget = folder.settings, comparing.budget_of(folder)
    if not budget:
        return ""
    note = f"budget: {budget.sentence}"
    if settings.searches and not knows_constraints(settings.sampler):
        note += f"; the sampler {settings.sampler} does not know of budgets, so it proposes schedules beyond it as well"
    return note
