"""Adding units: as shares of old ones or with zero weights; how many."""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import Operation, Schedule, SurgeryError, WeakExpand, ZeroExpand
from network_surgery.search_spaces.placement import EPOCHS, Layers, place, sample

NAMES = ("weak_expand",)
#: What nobody would use, and others are held against.
CONTROLS = ("zero_expand",)


def operation(trial: BaseTrial, name: str) -> Operation:
    """The named expansion with its hyperparameters: ``grow``; for WeakExpand ``split``."""
    grow = sample(trial, "grow", 0.1, 1.0)
    if name == "weak_expand":
        return WeakExpand(grow, trial.suggest_categorical("split", ("equal", "uneven", "signed")))
    if name == "zero_expand":
        return ZeroExpand(grow)
    raise SurgeryError(f"there is no expansion {name!r}; there are {', '.join((*NAMES, *CONTROLS))}")


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS, *, controls: bool = False) -> Schedule:
    """A schedule of expansions: ``op``, ``grow``, ``split`` and the placement. ``controls``: dead units, too."""
    name = trial.suggest_categorical("op", NAMES + CONTROLS * controls)
    return place(trial, layers, operation(trial, name), epochs)
