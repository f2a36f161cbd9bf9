"""Operating before training: what people do who hold trained weights.

All operations of surgery come before the first step, to the sizes that surgery of the same seed ended with. It starts
from the same weights as surgery (``--start``), so that *when* is operated is all that differs.

It chooses anew: an operation looks at the network that it is given, as it would for people who operate before they
train. The units that surgery chose later, with what training had shown by then, nobody could know at step 0; and
operations that recombine units have no list of chosen ones. Only the amounts are surgery's. A learning rate that
surgery lowered after an operation (``lr_factor``) is not lowered here: all of the training would be at that rate.
"""

from __future__ import annotations

from typing import Any

from network_surgery.study.arms.arm import Ended
from network_surgery.study.arms.steps import at
from network_surgery.study.training.cell import Cell


def operate_first(ended: Ended) -> Cell:
    """For the same epochs."""
    return ended.cell("operate_first", schedule=_steps(ended))


def operate_first_flops(ended: Ended) -> Cell:
    """For as many epochs as cost the FLOPs of surgery's training, rounded up."""
    return ended.cell(
        "operate_first_flops", schedule=_steps(ended),
        epochs=ended.epochs_of(ended.outcome["training_flops"]),
    )  # fmt: skip


def _steps(ended: Ended) -> list[dict[str, Any]]:
    steps = at("0it", ended.surgery.schedule, ended.outcome)
    return [{name: value for name, value in step.items() if name != "lr_factor"} for step in steps]
