"""Pruning by a tri-factorization of all weights: how much, by factors of which rank, in how many turns.

Source: the draft *Convolutional network pruning with matrix factorization*, which says neither.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import Schedule, TriFactorize
from network_surgery.ops.operations.prune_weights import SCOPES
from network_surgery.ops.operations.tri_factorize import CONVOLUTIONS, EXPLAINED, MEASURES
from network_surgery.search_spaces.placement import EPOCHS, Layers, sample
from network_surgery.search_spaces.pruning import place


def operation(trial: BaseTrial) -> TriFactorize:
    """``fraction`` (the last one), ``rank``, ``explained``, ``measure``, ``convolutions`` and ``scope``."""
    return TriFactorize(
        sample(trial, "fraction", 0.2, 0.95),
        sample(trial, "rank", 1 / 16, 0.75, log=True),
        explained=trial.suggest_categorical("explained", EXPLAINED),
        measure=trial.suggest_categorical("measure", MEASURES),
        convolutions=trial.suggest_categorical("convolutions", CONVOLUTIONS),
        scope=trial.suggest_categorical("scope", SCOPES),
    )


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule of pruning and compaction (see ``operation`` and ``pruning.place``)."""
    return place(trial, layers, operation(trial), epochs)
