"""Everything at once: which operation, how hard, where and when."""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import Schedule
from network_surgery.search_spaces import dead_units, expansion, pcns, pruning, removal
from network_surgery.search_spaces.placement import EPOCHS, Layers, place

REMOVALS = (*removal.NAMES, *removal.CONTROLS)
EXPANSIONS = (*expansion.NAMES, *expansion.CONTROLS)


def names(layers: Layers, controls: bool = False) -> tuple[str, ...]:
    """The operations that all of these layers can have; ``controls``: with those that others are held against."""
    expansions = expansion.names(layers) + expansion.CONTROLS * controls
    return (*(REMOVALS if controls else removal.NAMES), "pcns", *dead_units.NAMES, *expansions, "prune_weights")


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS, *, controls: bool = False) -> Schedule:
    """A schedule of one operation: ``op``, its own hyperparameters (conditional), ``repair`` and the placement.

    Pruning of weights is of the whole network and has moments of its own (see ``pruning``). ``controls``: as in
    ``names``.
    """
    name = trial.suggest_categorical("op", names(layers, controls))
    if name == "prune_weights":
        return pruning.suggest(trial, layers, epochs)
    repair: tuple[str, ...] = ()
    if name in REMOVALS:
        operation = removal.operation(trial, name, controls)
        repair = removal.repair(trial, operation)
    elif name in EXPANSIONS:
        operation = expansion.operation(trial, name)
    elif name in dead_units.NAMES:
        operation = dead_units.operation(trial, name)
    else:
        operation = pcns.operation(trial)
    return place(trial, layers, operation, epochs, repair=repair)
