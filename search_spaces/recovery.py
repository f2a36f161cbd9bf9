"""What an operation does to the learning rate, for any space: where that rate is not constant, it is worth a choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from optuna.trial import BaseTrial

from network_surgery.ops import Schedule
from network_surgery.ops.schedule import AFTER
from network_surgery.search_spaces.placement import EPOCHS, Layers

#: Over how much of what is left the rate rises again.
REWARM = (0.05, 0.1, 0.3)
#: How far it goes back: a fraction of the steps that are left, or to where the warm-up ended.
REWIND = (0.5, 1.0, "beginning")


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
            chosen = trial.suggest_categorical("rewind_length", REWIND)
            length = None if chosen == "beginning" else float(chosen)
        return Schedule(tuple(replace(step, after=after, after_length=length) for step in schedule.steps))

    return choosing
