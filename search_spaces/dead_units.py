"""Dead and frozen units: removed or revived, how near to zero they must be, and when.

When: at moments, or once enough of a layer's units are dead.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import RemoveDead, Revive, Schedule
from network_surgery.ops.operations.dead_units import KINDS
from network_surgery.search_spaces.placement import EPOCHS, Layers, place, sample, watch

NAMES = ("remove_dead", "revive")
#: What decides when it operates: the epoch, or the dead units that are found.
WHEN = ("moment", "dead_fraction")


def operation(trial: BaseTrial, name: str) -> RemoveDead | Revive:
    """The named operation with its hyperparameters ``threshold`` and ``kind``."""
    threshold = sample(trial, "threshold", 1e-3, 0.5, log=True)
    kind = trial.suggest_categorical("kind", KINDS)
    return RemoveDead(threshold, kind) if name == "remove_dead" else Revive(threshold, kind)


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule for dead units: ``op``, ``threshold``, ``kind``, ``when`` and the placement; for ``dead_fraction`` the
    ``gain`` too. The condition counts dead units at the operation's own threshold.
    """
    chosen = operation(trial, trial.suggest_categorical("op", NAMES))
    if trial.suggest_categorical("when", WHEN) == "moment":
        return place(trial, layers, chosen, epochs)
    return watch(trial, layers, chosen, epochs, chosen.threshold, "dead_fraction")
