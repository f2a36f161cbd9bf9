"""EigenRemove alone: ratio, δ (a rank or a threshold), which weights are kept, how units are weighed; where, when."""

from __future__ import annotations

from dataclasses import replace

from optuna.trial import BaseTrial

from network_surgery.ops import EigenRemove, Schedule
from network_surgery.search_spaces import removal
from network_surgery.search_spaces.placement import EPOCHS, Layers, place


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule of EigenRemove: ``keep``, ``delta`` with ``rank`` or ``singular_threshold``, ``weights``, ``strength``
    and the placement with its ``order``.
    """
    chosen = removal.operation(trial, "eigen_remove")
    assert isinstance(chosen, EigenRemove)
    strength = trial.suggest_categorical("strength", ("norm", "mean"))
    return place(trial, layers, replace(chosen, strength=strength), epochs, ordered=True)
