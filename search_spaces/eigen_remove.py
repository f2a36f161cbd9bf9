"""EigenRemove alone: ratio, rank δ, which weights are kept, layers and timing."""

from __future__ import annotations

from optuna.trial import BaseTrial

from ops import Schedule
from search_spaces import removal
from search_spaces.placement import EPOCHS, Layers, place


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule of EigenRemove: ``keep``, ``rank``, ``weights`` and the placement."""
    return place(trial, layers, removal.operation(trial, "eigen_remove"), epochs)
