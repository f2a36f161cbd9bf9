"""The arms of a comparison: what surgery is held against, as cells made from how a surgery ended.

``original``
    The network as it is made, uninterrupted.
``surgery``
    A schedule of the search.
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
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from network_surgery.study.config import Settings
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import OperationRecord, operations_of
from network_surgery.study.training.spent import before_surgery

#: Arm → what it is in a table.
LABELS = {
    "original": "original, uninterrupted",
    "restart": "restart of the final architecture",
    "restart_flops": "restart at equal compute",
    "restart_seconds": "restart at equal seconds",
    "restart_late": "restart when surgery began",
    "random": "random units of the same layers",
}
#: Arm → its name in a narrow table.
SHORT = {"restart_flops": "equal FLOPs", "restart_seconds": "equal time", "restart_late": "late restart"}
#: Arms that need a surgery's outcome.
RIVALS = tuple(arm for arm in LABELS if arm != "original")


def arm_name(arm: str, trial: int | None = None, mark: str = " ") -> str:
    """An arm in a few words, and after a mark the trial whose schedule it is about.

    >>> arm_name("restart_flops", 3), arm_name("original")
    ('equal FLOPs 3', 'original')
    """
    return SHORT.get(arm, arm) + ("" if trial is None else f"{mark}{trial}")


def rivals(surgery: Cell, outcome: Mapping[str, Any], settings: Settings) -> list[Cell]:
    """The trainings that this surgery is held against, in the arms that the settings ask for.

    Where surgery never operated, only the restart is; ``random`` is left out where something else than removing units
    has changed the network's size.
    """
    found, operations = [], operations_of(outcome)
    for arm in [arm for arm in RIVALS if arm in settings.arms]:
        common: dict[str, Any] = {"trial": surgery.trial, "params": surgery.params, "test": True}
        if arm == "random":
            if schedule := randomly(operations, surgery.seed):
                found.append(Cell(arm, surgery.seed, schedule, **common))
        elif arm == "restart" or operations:
            epochs = None if arm == "restart" else _epochs(arm, outcome, settings)
            common |= {"sunk": before_surgery(outcome)} if arm == "restart_late" else {}
            found.append(Cell(arm, surgery.seed, architecture=outcome["architecture"], epochs=epochs, **common))
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


def _epochs(arm: str, outcome: Mapping[str, Any], settings: Settings) -> int:
    operations = operations_of(outcome)
    if arm == "restart_late":
        return max(1, settings.epochs - math.floor(operations[0].epoch))
    if arm == "restart_flops":
        batches = outcome.get("batches", outcome["steps"])
        epoch = 3 * settings.batch_size * outcome["flops"] * batches / settings.epochs
        return max(1, math.ceil(outcome["training_flops"] / epoch - 1e-9))
    last = operations[-1].epoch
    after = [each["train_seconds"] for each in outcome["epochs"] if each["epoch"] > last]
    return max(1, math.ceil(outcome["seconds"] / statistics.median(after)))
