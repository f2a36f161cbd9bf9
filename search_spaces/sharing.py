"""Shared weights: how many values a codebook has, of how many entries, of which layers, from when on.

Sources: Gong et al. 2014, *Compressing deep convolutional networks using vector quantization*; Han, Mao and Dally 2016,
*Deep compression*.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import Schedule, ShareWeights
from network_surgery.search_spaces.placement import EPOCHS, Layers, once


def operation(trial: BaseTrial) -> ShareWeights:
    """``clusters``, ``block``."""
    clusters = trial.suggest_categorical("clusters", (4, 16, 64, 256))
    return ShareWeights(clusters, trial.suggest_categorical("block", (1, 2, 4)))


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule that shares once: ``operation``, ``layers`` (also ``network``, all weights at once), ``first_epoch``.

    Raises:
        SurgeryError: there are fewer than 2 epochs.
    """
    return once(trial, layers, operation(trial), epochs)
