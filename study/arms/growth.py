"""Other ways to grow: the same layers at the same moments to the same sizes."""

from __future__ import annotations

from typing import Any

from network_surgery.study.arms.arm import Ended, LeftOut
from network_surgery.study.training.cell import Cell

#: Deviation of the noise on copied weights, as a fraction of that of the layer's.
NOISE = 0.01


def gradmax(ended: Ended) -> Cell:
    """New units by GradMax: their outgoing weights make the gradient of what feeds them largest (Evci et al. 2022,
    *GradMax: growing neural networks using gradient information*).
    """
    return ended.cell("gradmax", schedule=_steps(ended, {"op": "gradmax"}))


def net2net(ended: Ended) -> Cell:
    """New units are copies of old ones, with a little noise (Chen, Goodfellow and Shlens 2016, *Net2Net*)."""
    return ended.cell(
        "net2net", schedule=_steps(ended, {"op": "weak_expand", "noise": NOISE, "seed": ended.surgery.seed})
    )


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
