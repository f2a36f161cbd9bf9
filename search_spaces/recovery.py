"""What comes after an operation, for any space: the learning rate, and how long other layers are frozen.

Where the rate is not constant it is always worth a choice; the other two are chosen where somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from optuna.trial import BaseTrial

from network_surgery.ops import Schedule
from network_surgery.ops.anatomy import WHOLE
from network_surgery.ops.schedule import AFTER
from network_surgery.search_spaces.placement import EPOCHS, Layers

#: Over how much of what is left the rate rises again.
REWARM = (0.05, 0.1, 0.3)
#: How far it goes back: a fraction of the steps that are left, or to where the warm-up ended.
REWIND = (0.5, 1.0, "beginning")
#: How long other layers are frozen, as a fraction of what is left; 0 is not at all.
FREEZE = (0.0, 0.1, 0.3)
#: By what the learning rate is multiplied.
FACTORS = (1.0, 0.3, 0.1)


def choosing_after(suggest: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """The space with the parameter ``after`` for all its steps and, by that, ``rewarm_length`` or ``rewind_length``.

    A schedule some of whose steps say it themselves is left as it is.
    """

    def choosing(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
        schedule = suggest(trial, layers, epochs)
        if not isinstance(schedule, Schedule) or any(step.after != AFTER[0] for step in schedule.steps):
            return schedule
        after = trial.suggest_categorical("after", AFTER)
        length: float | None = None
        if after == "rewarm":
            length = trial.suggest_categorical("rewarm_length", REWARM)
        elif after == "rewind":
            back = trial.suggest_categorical("rewind_length", REWIND)
            length = back if isinstance(back, float) else None
        return Schedule(tuple(replace(step, after=after, after_length=length) for step in schedule.steps))

    return choosing


def choosing_aftercare(suggest: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """The space with the parameter ``lr_factor`` for all its steps and, where they are of single layers or of blocks,
    ``freeze``.

    A schedule some of whose steps say either themselves is left as it is.
    """

    def choosing(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
        schedule = suggest(trial, layers, epochs)
        known = isinstance(schedule, Schedule) and schedule.steps
        if not known or any((step.freeze, step.lr_factor) != (None, None) for step in schedule.steps):
            return schedule
        factor = trial.suggest_categorical("lr_factor", FACTORS)
        whole = any(s.layer == WHOLE and s.allocation is None and not s.operation.of_blocks for s in schedule.steps)
        freeze = 0.0 if whole else trial.suggest_categorical("freeze", FREEZE)
        found = {"lr_factor": None if factor == 1 else factor, "freeze": freeze or None}
        return Schedule(tuple(replace(step, **found) for step in schedule.steps))  # type: ignore[arg-type]

    return choosing
