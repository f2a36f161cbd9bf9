"""Pruning at the end and training on: the original is trained whole, and then cut.

Surgery's operations come after the last epoch, to the sizes that surgery of the same seed ended with, and training goes
on for as many epochs as surgery had from its first operation on. The three differ in what becomes of the learning rate
and of the weights (Renda, Frankle and Carbin 2020, *Comparing rewinding and fine-tuning in neural network pruning*).
"""

from __future__ import annotations

from typing import Any

from network_surgery.ops.schedule import Moment
from network_surgery.study.arms.arm import Ended, LeftOut
from network_surgery.study.arms.steps import at
from network_surgery.study.arms.survivors import Survivors
from network_surgery.study.training.cell import Cell

#: What a step has besides its operation, and what it says of the learning rate.
AROUND, RATE = ("when", "layer", "freeze"), ("after", "after_length", "lr_factor")
SURVIVORS = f"{Survivors.__module__}:{Survivors.__name__}"


def prune_end(ended: Ended) -> Cell:
    """Fine-tuning at the last learning rate of the schedule (Han et al. 2015, *Learning both weights and connections
    for efficient neural networks*), which is stretched over the original's epochs.
    """
    return _cell("prune_end", ended, _steps(ended))


def prune_end_rewind_lr(ended: Ended) -> Cell:
    """Learning-rate rewinding: the last part of the learning rate's schedule is trained once more."""
    steps = _steps(ended)
    if ended.settings.lr_schedule == "constant":
        raise LeftOut("the learning rate is constant, so rewinding it is prune_end")
    return _cell("prune_end_rewind_lr", ended, [step | _rewind(ended) for step in steps])


def prune_end_rewind(ended: Ended) -> Cell:
    """Weight rewinding: the units that are left get back the weights that they had when surgery began, and the learning
    rate goes back to there, too.
    """
    constant = ended.settings.lr_schedule == "constant"
    steps = []
    for step in _steps(ended):
        chosen = {name: value for name, value in step.items() if name not in (*AROUND, "repair")}
        around = {name: step[name] for name in AROUND if name in step}
        steps.append(around | {"op": SURVIVORS, "of": chosen} | ({} if constant else _rewind(ended)))
    return _cell("prune_end_rewind", ended, steps, rewind=ended.began)


def _cell(arm: str, ended: Ended, steps: list[dict[str, Any]], **more: Any) -> Cell:
    epochs = ended.settings.epochs
    return ended.cell(arm, schedule=steps, epochs=epochs + ended.epochs_left, curve=epochs, **more)


def _steps(ended: Ended) -> list[dict[str, Any]]:
    """Surgery's operations after the last epoch, without what they do to the learning rate."""
    ended.refuse_growth("this arm only prunes")
    if not ended.changed:
        raise LeftOut("surgery removed nothing")
    steps = at(f"{ended.settings.epochs}ep", ended.surgery.schedule, ended.outcome)
    return [{name: value for name, value in step.items() if name not in RATE} for step in steps]


def _rewind(ended: Ended) -> dict[str, str]:
    return {"after": "rewind", "after_length": str(Moment(ended.epochs_left))}
