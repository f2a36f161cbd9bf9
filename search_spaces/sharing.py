"""Shared weights: how many values a codebook has, of how many entries, or fastfood products; of which layers, when.

Sources: Gong et al. 2014, *Compressing deep convolutional networks using vector quantization*; Han, Mao and Dally 2016,
*Deep compression*; Yang et al. 2015, *Deep fried convnets*.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import Fastfood, Operation, Schedule, ShareWeights
from network_surgery.search_spaces.placement import EPOCHS, Layers, once

NAMES = ("share_weights", "fastfood")


def operation(trial: BaseTrial) -> Operation:
    """``op`` and, of codebooks, ``clusters`` and ``block``."""
    if trial.suggest_categorical("op", NAMES) == "fastfood":
        return Fastfood()
    clusters = trial.suggest_categorical("clusters", (4, 16, 64, 256))
    return ShareWeights(clusters, trial.suggest_categorical("block", (1, 2, 4)))


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule that shares once: ``operation``, ``layers`` (also ``network``, all weights at once), ``first_epoch``.

    Raises:
        SurgeryError: there are fewer than 2 epochs.
    """
    return once(trial, layers, operation(trial), epochs)
