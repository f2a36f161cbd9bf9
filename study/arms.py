"""The arms of a comparison: what surgery is held against, as cells made from how a surgery ended.

``original``
    The network as it is made, uninterrupted.
``surgery``
    A schedule of the search.
``operate_first``
    What people do who hold trained weights: all operations of surgery before the first step, to the sizes that surgery
    of the same seed ended with, then the whole training. It starts from the same weights as surgery (``--start``), so
    that *when* is operated is all that differs.
``operate_first_flops``
    The same for as many epochs as cost the FLOPs of surgery's training, rounded up.
``restart``
    The architecture that surgery of the same seed ended with, from fresh weights, for the same epochs: so also *the
    final architecture from the start*.
``restart_flops``
    The same for as many epochs as cost the FLOPs of surgery's training, rounded up in favour of restarting. It repeats
    on any machine; operations are not in it.
``restart_seconds``
    The same for as many epochs as fit into surgery's seconds, operations included, rounded up: what people pay.
``restart_late``
    The same for the epochs that were left at surgery's first operation: restarting as people live it, who have trained
    the original until then. What that had cost is *sunk*: it counts in this arm's epochs, seconds, FLOPs and joules.
``random``
    Random units removed from the same layers at the same moments down to the same sizes, with the same repairs.

Restarts have *fresh* weights, whatever the others start from. The ``question`` of a study is surgery against
``restart``; where training starts from given weights, against ``operate_first``.

``operate_first`` chooses anew: an operation looks at the network that it is given, as it would for people who operate
before they train. The units that surgery chose later, with what training had shown by then, nobody could know at step
0; and operations that recombine units have no list of chosen ones. Only the amounts are surgery's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from network_surgery.ops import Condition
from network_surgery.ops.operations import operation_class
from network_surgery.ops.schedule import parse_when
from network_surgery.study.config import Settings
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import OperationRecord, checks_of, operations_of
from network_surgery.study.training.spent import before_surgery

#: Arm → what it is in a table.
LABELS = {
    "original": "original, uninterrupted",
    "restart": "restart of the final architecture",
    "restart_flops": "restart at equal compute",
    "restart_seconds": "restart at equal seconds",
    "restart_late": "restart when surgery began",
    "operate_first": "all operations first, then training",
    "operate_first_flops": "all operations first, at equal compute",
    "random": "random units of the same layers",
}
#: Arm → its name in a narrow table.
SHORT = {
    "operate_first": "operate first", "operate_first_flops": "first, equal FLOPs",
    "restart_flops": "equal FLOPs", "restart_seconds": "equal time", "restart_late": "late restart",
}  # fmt: skip
#: Arms that need a surgery's outcome.
RIVALS = tuple(arm for arm in LABELS if arm != "original")


def question(settings: Settings) -> str:
    """The arm that the verdict is about: ``restart``, or ``operate_first`` where training starts from given weights.

    The other one where only that is asked for.
    """
    first, second = ("restart", "operate_first")[:: 1 if settings.start == "none" else -1]
    return second if second in settings.arms and first not in settings.arms else first


def arm_name(arm: str, trial: int | None = None, mark: str = " ") -> str:
    """An arm in a few words, and after a mark the trial whose schedule it is about.

    >>> arm_name("restart_flops", 3), arm_name("original")
    ('equal FLOPs 3', 'original')
    """
    return SHORT.get(arm, arm) + ("" if trial is None else f"{mark}{trial}")


def rivals(surgery: Cell, outcome: Mapping[str, Any], settings: Settings) -> list[Cell]:
    """The trainings that this surgery is held against, in the arms that the settings ask for.

    Where surgery never operated, only the arm of the question is; ``random`` is left out where something else than
    removing units has changed the network's size.
    """
    found, operations = [], operations_of(outcome)
    for arm in [arm for arm in RIVALS if arm in settings.arms]:
        common: dict[str, Any] = {"trial": surgery.trial, "params": surgery.params, "test": True}
        if arm == "random":
            if schedule := randomly(operations, surgery.seed):
                found.append(Cell(arm, surgery.seed, schedule, **common))
        elif arm == question(settings) or operations:
            epochs = None if arm in ("restart", "operate_first") else _epochs(arm, outcome, settings)
            if arm.startswith("operate_first"):
                common |= {"schedule": at_first(surgery.schedule, outcome)}
            else:
                common |= {"architecture": outcome["architecture"]}
            common |= {"sunk": before_surgery(outcome)} if arm == "restart_late" else {}
            found.append(Cell(arm, surgery.seed, epochs=epochs, **common))
    return found


def randomly(operations: Sequence[OperationRecord], seed: int) -> list[dict[str, Any]]:
    """A schedule that removes as many units as these operations did, at random, with what they did to the learning
    rate; empty where that cannot be said.
    """
    removals = [each for each in operations if each.parameters_after != each.parameters_before]
    if any(each.units_after >= each.units_before for each in removals):
        return []
    return [
        {
            "when": f"{each.iteration}it", "layer": each.layer, "op": "random_remove",
            "keep": each.units_after / each.units_before, "seed": seed + number,
        } | ({"repair": each.repair} if each.repair else {}) | each.after
        for number, each in enumerate(removals)
    ]  # fmt: skip


def at_first(schedule: Sequence[Mapping[str, Any]], outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The operations that a schedule came to, all of them before the first step, each to the size that it led to.

    A budget becomes what it came to in surgery, layer by layer. Where an operation finds out by itself how many units
    go, its fraction is that of surgery, by the same criterion;
    ``compact``, which removes what pruning has emptied, and operations of anyone's without ``keep``, ``grow`` or
    ``fraction`` stay as they are, and may lead to other sizes.
    """
    steps, checks = list(schedule), checks_of(outcome)
    waiting = [place for place, step in enumerate(steps) if not isinstance(parse_when(step["when"]), Condition)]
    found, allocated = [], set[tuple[int, str]]()
    for each in operations_of(outcome):
        places = [c.step for c in checks if c.operated and (c.iteration, c.layer) == (each.iteration, each.layer)]
        places = [place for place in (*waiting, *places) if _is_of(steps[place], each)]
        places = [place for place in places if (place, each.layer) not in allocated]
        if steps[places[0]].get("budget"):
            allocated.add((places[0], each.layer))
        elif places[0] in waiting:
            waiting.remove(places[0])
        found.append(_sized(steps[places[0]], each))
    return found


def _is_of(step: Mapping[str, Any], record: OperationRecord) -> bool:
    on_it = bool(step.get("budget")) or str(step["layer"]) == record.layer
    return on_it and str(parse_when(step["when"])) == record.when


def _sized(step: Mapping[str, Any], record: OperationRecord) -> dict[str, Any]:
    """The step before the first one of training, with the amounts that lead to the size that it led to once."""
    first, share = {**step, "when": "0it"}, round(record.units_after / max(record.units_before, 1), 6)
    if step.get("budget"):
        first = {key: value for key, value in first.items() if key not in ("budget", "allocate", "layers")}
        first["layer"] = record.layer
    names = {field.name for field in fields(operation_class(step["op"]))}  # type: ignore[arg-type]
    nearest = {"rounding": "nearest"} if "rounding" in step else {}
    if step["op"] == "prune_weights":
        by_itself = step.get("threshold") is not None or step.get("quality") is not None
        return first | ({"threshold": None, "quality": None, "fraction": _sparsity(record)} if by_itself else {})
    if step["op"] == "remove_dead":  # the units that the loss would miss least, as many as there were
        known = {key: value for key, value in first.items() if key not in ("threshold", "kind", "by")}
        return known | {"op": "mean_replace", "keep": share, "score": step.get("by", "mrs")}
    if "keep" in names and share <= 1:
        return first | {"keep": share} | nearest
    return first | ({"grow": round(share - 1, 6)} | nearest if "grow" in names and share > 1 else {})


def _sparsity(record: OperationRecord) -> float:
    return max(record.evidence.get("sparsity", 0.0), 1e-6)


def _epochs(arm: str, outcome: Mapping[str, Any], settings: Settings) -> int:
    operations = operations_of(outcome)
    if arm == "restart_late":
        return max(1, settings.epochs - math.floor(operations[0].epoch))
    if arm.endswith("_flops"):
        batches = outcome.get("batches", outcome["steps"])
        epoch = 3 * settings.batch_size * outcome["flops"] * batches / settings.epochs
        return max(1, math.ceil(outcome["training_flops"] / epoch - 1e-9))
    last = operations[-1].epoch
    after = [each["train_seconds"] for each in outcome["epochs"] if each["epoch"] > last]
    return max(1, math.ceil(outcome["seconds"] / statistics.median(after)))
