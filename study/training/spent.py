"""What a training run had cost at any moment, from its outcome: seconds, FLOPs, joules.

An outcome (``study.training.run``) books seconds and joules by epoch and operation and knows when the network had which
size, so nothing needs to be measured again. A moment is a number of epochs; its fraction is a part of an epoch, an
operation belongs to what comes after it. ``sunk`` is what had been spent before a training run began that would not
have begun without it (``study.arms``); totals and moments count it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from network_surgery.study.training.records import OperationRecord, Outcome, checks_of, operations_of


def seconds(outcome: Outcome, epoch: float) -> float:
    """Seconds of training and of all that surgery did before this moment: the outcome's ``seconds`` at its end."""
    later = sum(each.seconds for each in operations_of(outcome) if each.epoch >= epoch) + sum(
        each.seconds for each in checks_of(outcome) if not each.operated and each.epoch >= epoch
    )
    return _sunk(outcome, "seconds") + _by(outcome, "train_seconds", epoch) + outcome["operation_seconds"] - later


def training_seconds(outcome: Outcome, epoch: float) -> float:
    """Seconds of training alone before this moment, without sunk ones."""
    return _by(outcome, "train_seconds", epoch)


def training_flops(outcome: Outcome, epoch: float) -> float:
    """FLOPs of the training steps before this moment: the outcome's ``training_flops`` at its end."""
    sunk, operations, size = _sunk(outcome, "training_flops"), operations_of(outcome), flops_a_sample(outcome)
    batch = outcome.get("batch", 1)
    whole, part = (
        work(operations, size, until, lambda each: each.epoch, batch) for until in (len(outcome["epochs"]), epoch)
    )
    return sunk + (outcome["training_flops"] - sunk) * part / whole


def flops_a_sample(outcome: Outcome) -> float:
    """FLOPs of the forward pass of a training batch, divided by its samples: with those that compute weights once."""
    return float(outcome["flops"]) + outcome.get("weights_flops", 0) / outcome.get("batch", 1)


def work(
    operations: Sequence[OperationRecord], flops: float, until: float, moment: Callable[[OperationRecord], float],
    batch: int,
) -> float:  # fmt: skip
    """The network's FLOPs a sample times how long it had them, summed up to a moment of the kind that ``moment``
    returns.

    ``flops`` are those that it ends with (``flops_a_sample``); ``batch`` is the number of samples in a batch.
    """
    ends = [*(min(moment(each), until) for each in operations), until]
    sizes = [*(each.flops_before + each.weights_flops / batch for each in operations), flops]
    return sum((end - start) * size for start, end, size in zip([0, *ends], ends, sizes, strict=False))


def before_surgery(outcome: Outcome) -> dict[str, float]:
    """What training had cost when the first operation came, without looks at the network: epochs, steps, seconds, FLOPs
    and, where it was taken, joules.
    """
    first = operations_of(outcome)[0]
    epoch = first.epoch
    spent = {"epochs": epoch, "steps": first.iteration, "seconds": training_seconds(outcome, epoch)}
    spent["training_flops"] = training_flops(outcome, epoch)
    return spent | ({"joules": _by(outcome, "joules", epoch)} if outcome.get("joules") is not None else {})


def whole(outcome: Outcome) -> dict[str, float]:
    """What a whole training run had cost, in the form of ``before_surgery``."""
    names = ("steps", "seconds", "training_flops", "joules")
    return {"epochs": float(len(outcome["epochs"]))} | {
        name: outcome[name] for name in names if outcome.get(name) is not None
    }


def joules(history: Sequence[Mapping[str, Any]], sunk: Mapping[str, float]) -> float | None:
    """The joules of all epochs and of what was sunk; None where those of a part are not known."""
    parts = [record.get("joules") for record in history] + ([sunk.get("joules")] if sunk else [])
    known = [joules for joules in parts if joules is not None]
    return sum(known) if len(known) == len(parts) else None


def _by(outcome: Outcome, name: str, epoch: float) -> float:
    """What the epochs' records hold under this name, until this moment."""
    whole, part = math.floor(epoch), epoch - math.floor(epoch)
    values = [record[name] for record in outcome["epochs"][: whole + 1]]
    return float(sum(values[:whole]) + (part * values[whole] if part else 0.0))


def _sunk(outcome: Outcome, name: str) -> float:
    return float(outcome.get("sunk", {}).get(name, 0.0))
