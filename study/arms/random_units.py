"""Random units, or blocks: whether it matters which ones go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from network_surgery.study.arms.arm import Ended, LeftOut
from network_surgery.study.arms.growth import on_blocks
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import OperationRecord


def random(ended: Ended) -> Cell:
    """Random units go from the same layers at the same moments down to the same sizes, with the same repairs."""
    return ended.cell("random", schedule=randomly(ended.operations, ended.surgery.seed))


def randomly(operations: Sequence[OperationRecord], seed: int) -> list[dict[str, Any]]:
    """A schedule that removes as many units as these operations did, at random, with what came after them (the
    learning rate, frozen layers).

    Raises:
        LeftOut: something else than removing units has changed the network's size, or nothing has.
    """
    removals = [each for each in operations if each.parameters_after != each.parameters_before]
    for each in removals:
        if each.units_after > each.units_before:
            what = "blocks" if on_blocks(each) else "units"
            raise LeftOut(f"surgery adds {what} to {each.layer}, and the random arm only removes some")
        if each.units_after in (0, each.units_before):  # none: two modules became one
            raise LeftOut(f"surgery changes weights of {each.layer} and no units, and the random arm removes units")
    if not removals:
        raise LeftOut("surgery removed no unit")
    return [
        {
            "when": f"{each.iteration}it", "layer": each.layer,
            **({"op": "drop_block", "score": "random"} if on_blocks(each) else {"op": "random_remove"}),
            "keep": each.units_after / each.units_before, "seed": seed + number,
        } | ({"repair": each.repair} if each.repair else {}) | each.after
        for number, each in enumerate(removals)
    ]  # fmt: skip
