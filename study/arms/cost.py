"""What an arm had cost, in the two accountings of a study's question.

``zero``
    Nothing is there. All compute counts from the first step: also what had been spent before on the original that an
    arm would not have begun without (``sunk``).
``given``
    The large network is there, since it was trained anyway. The original's training until surgery of the same seed
    began is sunk for everybody, and no arm is charged with it; all else counts, such as the whole training run of a
    network from fresh weights.

Both follow from outcomes (``study.training.run``); nothing is measured again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from network_surgery.study.arms import ARMS
from network_surgery.study.training import spent
from network_surgery.study.training.records import operations_of

Accounting = Literal["zero", "given"]


@dataclass(frozen=True)
class Cost:
    """``epochs`` and optimizer ``steps`` are those of networks of any size; ``flops`` are of training steps (see
    ``study.training.run``); ``seconds`` of a clock, operations included.
    """

    epochs: float
    steps: float
    flops: float
    seconds: float

    def __sub__(self, other: Cost) -> Cost:
        names = vars(self)
        return Cost(**{name: getattr(self, name) - getattr(other, name) for name in names})

    def __mul__(self, factor: float) -> Cost:
        return Cost(**{name: value * factor for name, value in vars(self).items()})


def began(surgery: Mapping[str, Any]) -> float:
    """The epoch of the first operation of a surgery's outcome, a number with its fraction; 0 where it never operated,
    since nothing can be separated then.
    """
    operations = operations_of(surgery)
    return operations[0].epoch if operations else 0.0


def cost(arm: str, outcome: Mapping[str, Any], accounting: Accounting, epoch: float) -> Cost:
    """What a training run of this arm had cost when it ended.

    ``epoch``: when surgery of the same seed and schedule began (see ``began``); only ``given`` needs it.
    """
    sunk = outcome.get("sunk", {})
    before = Cost(*(float(sunk.get(name, 0.0)) for name in ("epochs", "steps", "training_flops", "seconds")))
    steps = outcome.get("steps", 0)
    total = Cost(
        len(outcome["epochs"]) + before.epochs, steps + before.steps, outcome["training_flops"], outcome["seconds"]
    )
    if accounting == "zero":
        return total
    if before.epochs:  # it is not charged with the part of that which was there when surgery began
        return total - before * min(1.0, epoch / before.epochs)
    if not ARMS[arm].inherits:
        return total
    return total - Cost(
        epoch, steps * epoch / len(outcome["epochs"]), spent.training_flops(outcome, epoch),
        spent.training_seconds(outcome, epoch),
    )  # fmt: skip
