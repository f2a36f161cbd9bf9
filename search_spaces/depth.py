"""More blocks, or fewer: how many come and how they begin, or which go, when.

Sources: see ``ops.operations.deepen`` and ``ops.operations.drop_block``.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import Deepen, DropBlock, Operation, Schedule
from network_surgery.ops.anatomy import WHOLE
from network_surgery.ops.operations.deepen import INIT, STATE, WHERE
from network_surgery.ops.schedule import Moment, Step
from network_surgery.search_spaces.placement import EPOCHS, Layers, beginning, sample

NAMES = ("deepen", "drop_block")
SCORES = ("cosine", "loss")
#: What others are held against.
CONTROLS = ("random",)


def operation(trial: BaseTrial, controls: bool = False) -> Operation:
    """``op``; ``grow``, ``where``, ``init`` and ``state``, or ``keep`` and ``score`` (``controls``: random, too)."""
    if trial.suggest_categorical("op", NAMES) == "deepen":
        return Deepen(
            sample(trial, "grow", 0.5, 2.0), trial.suggest_categorical("where", WHERE),
            trial.suggest_categorical("init", INIT), trial.suggest_categorical("state", STATE),
        )  # fmt: skip
    keep = sample(trial, "keep", 0.3, 0.9)
    return DropBlock(keep, trial.suggest_categorical("score", SCORES + CONTROLS * controls))


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS, *, controls: bool = False) -> Schedule:
    """A schedule that changes the depth of the whole network once: ``operation``, ``first_epoch``.

    Raises:
        SurgeryError: there are fewer than 2 epochs.
    """
    return Schedule((Step(Moment(beginning(trial, epochs)), WHOLE, operation(trial, controls)),))
