"""Other ways to grow: the same layers at the same moments to the same sizes; or blocks in place of units."""

from __future__ import annotations

from typing import Any

from network_surgery.ops.anatomy import WHOLE
from network_surgery.ops.operations.deepen import Deepen
from network_surgery.ops.operations.drop_block import DropBlock
from network_surgery.ops.operations.grad_max import GradMax
from network_surgery.study.arms.arm import Ended, LeftOut
from network_surgery.study.arms.stacked import Stacked
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import OperationRecord

#: Deviation of the noise on copied weights, as a fraction of the root mean square of the layer's.
NOISE = 0.01
STACKED = f"{Stacked.__module__}:{Stacked.__name__}"


def gradmax(ended: Ended) -> Cell:
    """New units by GradMax: their outgoing weights make the gradient of what feeds them largest (Evci et al. 2022,
    *GradMax: growing neural networks using gradient information*).
    """
    if ended.changed and all(each.operation.startswith(f"{GradMax.__name__}(") for each in ended.changed):
        raise LeftOut("surgery itself grows by GradMax")
    return ended.cell("gradmax", schedule=_steps(ended, {"op": "grad_max"}))


def net2net(ended: Ended) -> Cell:
    """New units are copies of old ones that share their outgoing weights equally, with a little noise on the incoming
    ones (Chen, Goodfellow and Shlens 2016, *Net2Net*).
    """
    copies = {"op": "weak_expand", "split": "equal", "noise": NOISE, "seed": ended.surgery.seed}
    return ended.cell("net2net", schedule=_steps(ended, copies))


def stacking(ended: Ended) -> Cell:
    """The stack of blocks once more on top of itself (Gong et al. 2019, *Efficient training of BERT by progressively
    stacking*; Du et al. 2024, *Stacking your transformers*).

    Where surgery adds blocks, as many at the same moments; where it adds units, blocks at the same moments, as many as
    come nearest to surgery's FLOPs then.
    """
    changed = _growing_steps(ended, "blocks")
    alike = repr(Deepen()).partition(", ")[2]  # but for how many
    if all(on_blocks(each) and each.operation.endswith(alike) for each in changed):
        raise LeftOut("surgery itself grows by stacking")
    if all(map(on_blocks, changed)):
        return ended.cell(
            "stacking", schedule=[_step(each, {"op": "deepen", "grow": _share(each)}) for each in changed]
        )
    if not ended.outcome.get("stacks"):
        raise LeftOut("the network has no blocks of equal shapes that follow each other")
    steps = []
    for iteration in dict.fromkeys(each.iteration for each in changed):
        at = [each for each in changed if each.iteration == iteration]
        step = {"op": STACKED, "flops": at[-1].flops_after / at[0].flops_before}
        steps.append(_step(at[0], step) | {"layer": WHOLE})
    return ended.cell("stacking", schedule=steps)


def on_blocks(record: OperationRecord) -> bool:
    """Whether an operation was one on blocks."""
    return record.operation.startswith(tuple(f"{kind.__name__}(" for kind in (Deepen, DropBlock, Stacked)))


def _growing_steps(ended: Ended, added: str) -> list[OperationRecord]:
    """The operations that changed the network. Raises LeftOut unless each of them added something."""
    if not ended.changed:
        raise LeftOut("surgery added no unit")
    for each in ended.changed:
        if each.units_after <= each.units_before:
            raise LeftOut(f"surgery removes units or weights of {each.layer}, and this arm only adds {added}")
    return ended.changed


def _share(record: OperationRecord) -> float:
    return record.units_after / record.units_before - 1


def _step(record: OperationRecord, operation: dict[str, Any]) -> dict[str, Any]:
    return {"when": f"{record.iteration}it", "layer": record.layer, **operation} | record.after


def _steps(ended: Ended, operation: dict[str, Any]) -> list[dict[str, Any]]:
    changed = _growing_steps(ended, "units")
    for each in changed:
        if on_blocks(each):
            raise LeftOut(f"surgery adds blocks to {each.layer}, and this arm adds units")
    return [_step(each, {**operation, "grow": _share(each)}) for each in changed]
