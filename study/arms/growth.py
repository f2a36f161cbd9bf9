"""Other ways to grow: the same layers at the same moments to the same sizes."""

from __future__ import annotations

from typing import Any

from network_surgery.ops.operations.grad_max import GradMax
from network_surgery.study.arms.arm import Ended, LeftOut
from network_surgery.study.training.cell import Cell

#: Deviation of the noise on copied weights, as a fraction of the root mean square of the layer's.
NOISE = 0.01


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


def _steps(ended: Ended, operation: dict[str, Any]) -> list[dict[str, Any]]:
    changed = ended.changed
    if not changed:
        raise LeftOut("surgery added no unit")
    for each in changed:
        if each.units_after <= each.units_before:
            raise LeftOut(f"surgery removes units or weights of {each.layer}, and this arm only adds units")
    return [
        {
            "when": f"{each.iteration}it",
            "layer": each.layer,
            **operation,
            "grow": each.units_after / each.units_before - 1,
        }
        | each.after
        for each in changed
    ]
