"""PCNS: how much variance may be lost, layers and timing. The basis is pivoted, which works after any activation."""

from __future__ import annotations

from optuna.trial import BaseTrial

from ops import PCNS, Operation, Schedule
from search_spaces.placement import EPOCHS, Layers, place


def operation(trial: BaseTrial) -> Operation:
    """PCNS with its hyperparameter ``variance_threshold``."""
    return PCNS(trial.suggest_float("variance_threshold", 1e-4, 0.3, log=True))


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule of PCNS: ``variance_threshold`` and the placement."""
    return place(trial, layers, operation(trial), epochs)
