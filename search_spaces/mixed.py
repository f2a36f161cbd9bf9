"""Everything at once: which operation, how hard, where and when."""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import Schedule
from network_surgery.search_spaces import dead_units, expansion, pcns, pruning, removal
from network_surgery.search_spaces.placement import EPOCHS, Layers, place


def names(layers: Layers) -> tuple[str, ...]:
    """Every operation that the layers of this network can have."""
    return (*removal.NAMES, "pcns", *dead_units.NAMES, *expansion.names(layers), "prune_weights")


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule of one operation: ``op``, its own hyperparameters (conditional), ``repair`` and the placement.

    Pruning of weights is of the whole network and has moments of its own (see ``pruning``).
    """
    name = trial.suggest_categorical("op", names(layers))
    if name == "prune_weights":
        return pruning.suggest(trial, layers, epochs)
    repair: tuple[str, ...] = ()
    if name in removal.NAMES:
        operation = removal.operation(trial, name)
        repair = removal.repair(trial, operation)
    elif name in expansion.NAMES:
        operation = expansion.operation(trial, name)
    elif name in dead_units.NAMES:
        operation = dead_units.operation(trial, name)
    else:
        operation = pcns.operation(trial)
    return place(trial, layers, operation, epochs, repair=repair)
