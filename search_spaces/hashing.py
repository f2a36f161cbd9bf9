"""Hashed weights: how few numbers are stored, of which layers, from when on; random edges are their rival.

Source: Chen et al. 2015, *Compressing neural networks with the hashing trick*: factors from 1/2 to 1/64.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import HashWeights, Operation, RandomEdges, Schedule
from network_surgery.search_spaces.placement import EPOCHS, Layers, once, sample

NAMES = ("hash_weights",)
CONTROLS = ("random_edges",)


def operation(trial: BaseTrial, controls: bool = False) -> Operation:
    """``op``, ``compression`` and, of hashes, ``sign``. ``controls``: random edges, too."""
    name = trial.suggest_categorical("op", NAMES + CONTROLS * controls)
    compression = sample(trial, "compression", 0.0156, 0.5, log=True)
    if name in CONTROLS:
        return RandomEdges(compression)
    return HashWeights(compression, sign=trial.suggest_categorical("sign", (True, False)))


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS, *, controls: bool = False) -> Schedule:
    """A schedule that hashes once: ``operation``, ``layers`` (also ``network``, all weights at once), ``first_epoch``.

    Raises:
        SurgeryError: there are fewer than 2 epochs.
    """
    return once(trial, layers, operation(trial, controls), epochs)
