"""Removing units: by weight, by rank-reduced weight, with their mean left behind, or at random; how many."""

from __future__ import annotations

from optuna.trial import BaseTrial

from ops import EigenRemove, MeanReplace, MinWeight, Operation, RandomRemove, Schedule, SurgeryError
from ops.mean_replace import SCORES
from search_spaces.placement import EPOCHS, Layers, place

NAMES = ("eigen_remove", "mean_replace", "min_weight", "random_remove")


def operation(trial: BaseTrial, name: str) -> Operation:
    """The named removal with its hyperparameters: ``keep``; for EigenRemove ``rank`` (δ) and ``weights``, for
    MeanReplace ``score``.
    """
    keep = trial.suggest_float("keep", 0.2, 0.9)
    if name == "eigen_remove":
        rank = trial.suggest_float("rank", 1 / 16, 1.0, log=True)
        return EigenRemove(keep, rank, trial.suggest_categorical("weights", ("original", "reduced")))
    if name == "mean_replace":
        return MeanReplace(keep, trial.suggest_categorical("score", SCORES))
    if name == "min_weight":
        return MinWeight(keep)
    if name == "random_remove":
        return RandomRemove(keep)
    raise SurgeryError(f"there is no removal {name!r}; there are {', '.join(NAMES)}")


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule of removals: ``op``, ``keep``, ``rank``, ``weights``, ``score`` and the placement."""
    return place(trial, layers, operation(trial, trial.suggest_categorical("op", NAMES)), epochs)
