"""WeakExpand alone: ratio, how the copies share, their noise, layers, their order and timing."""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import Schedule
from network_surgery.search_spaces import expansion
from network_surgery.search_spaces.placement import EPOCHS, Layers, place


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule of WeakExpand: ``grow``, ``split``, ``noise`` and the placement with its ``order``."""
    return place(trial, layers, expansion.operation(trial, "weak_expand"), epochs, ordered=True)
