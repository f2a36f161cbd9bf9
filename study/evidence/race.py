"""Why the first schedule of a comparison was chosen: how the race of the search's best ended, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from network_surgery.study.evidence.naming import letters
from network_surgery.study.search import objectives
from network_surgery.study.task.metric import Metric


def reason(results: Mapping[str, Any], metric: Metric) -> tuple[int, str] | None:
    """The trial that won the race of a study, and the sentence that says by what; None where there was no race.

    It is computed from the rows of the trials in ``results``: their means over seeds, and how far these are beyond the
    budget. The schedule is held against the best of those that ran on as many seeds.
    """
    names = letters(results)
    means = {row["trial"]: row for row in results["trials"] if row.get("repeats") and row["state"] != "failed"}
    winner = next(iter(names), None)
    if winner not in means or winner is None:
        return None
    objective = results["settings"]["objective"][0]  # the only one: with several there is no race
    first, sign = means[winner], objectives.sign(objective, metric)

    def seeds(row: Mapping[str, Any]) -> int:
        return 1 + sum(objectives.VALUES[objective] in each for each in row["repeats"])

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        return row.get("beyond", 0.0), -sign * objectives.value(row["mean"], objective)

    count, value = seeds(first), objectives.value(first["mean"], objective)
    words = f"{names[winner]} won the race of the best {len(means)} schedules of the search: over {count} seeds"
    rivals = [row for row in means.values() if row is not first and seeds(row) == count]
    if first.get("beyond"):
        return winner, f"{words} its means are the nearest to the budget, which none of them meets."
    words += f" it has {objectives.format_objective(value, objective, metric)} on average"
    if not rivals:
        return winner, f"{words}, and the others were left behind before."
    next_one = min(rivals, key=place)
    other = objectives.value(next_one["mean"], objective)
    called = names.get(next_one["trial"]) or f"trial {next_one['trial']}"
    better = sign * (other - value) > 0
    but = ", but is beyond the budget" if better and next_one.get("beyond") else ""
    return winner, f"{words}; the next, {called}, has {objectives.format_objective(other, objective, metric)}{but}."
