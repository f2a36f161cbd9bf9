"""The application study of the thesis as a grid: four methods at five ratios, the same layers at the same moments.

Source: Graham 2019, *Applied HOSVD for weight compression and expansion*, 4.1.2 and its published code: eleven layers
of VGG16 in a fixed random order, one before each odd epoch, all at one ratio. A removal keeps that fraction of the
units, an expansion adds it.
"""

from __future__ import annotations

from collections.abc import Collection

from optuna.trial import BaseTrial

from network_surgery.ops import EigenRemove, MinWeight, Operation, Schedule, SurgeryError, WeakExpand, ZeroExpand
from network_surgery.ops.schedule import Moment, Step
from network_surgery.search_spaces.placement import EPOCHS, Layers
from network_surgery.study.experiments.thesis.operations import PublishedWeakExpand, PublishedZeroExpand

ORDER = ("conv10", "conv7", "conv2", "fc2", "conv9", "conv5", "conv6", "conv4", "conv3", "fc1", "conv8")
METHODS = ("eigen_remove", "min_weight", "weak_expand", "zero_expand")
RATIOS = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4)
DELTA = 1 / 8


def operation(method: str, ratio: float, published: bool = False) -> Operation:
    """The method as the thesis describes it, or as its published code has it.

    There EigenRemove goes on with the reduced weights of an iterated Tucker decomposition, both removals score
    convolutions by ``kernels``, expansions have the faults that ``operations`` names, and sizes are rounded down.
    """
    rounding, strength = ("down", "kernels") if published else ("nearest", "norm")
    if method == "eigen_remove":
        weights = "reduced" if published else "original"
        return EigenRemove(ratio, DELTA, weights, strength, iterated=published, rounding=rounding)
    if method == "min_weight":
        return MinWeight(ratio, strength, rounding)
    if method == "weak_expand":
        return PublishedWeakExpand(ratio) if published else WeakExpand(ratio, "equal")
    return PublishedZeroExpand(ratio) if published else ZeroExpand(ratio)


def place(layers: Collection[str], chosen: Operation, epochs: int) -> Schedule:
    """The operation on each of the eleven layers: after epochs 1, 3, 5, …, or 1, 2, 3, … where there are fewer epochs.

    Raises:
        SurgeryError: the network has other layers, or there are fewer than twelve epochs.
    """
    if missing := [name for name in ORDER if name not in layers]:
        raise SurgeryError(
            f"the thesis's schedule is for the layers of the model vgg16; this network has no {missing[0]}"
        )
    if epochs <= len(ORDER):
        raise SurgeryError(f"the thesis's schedule has {len(ORDER)} moments, so it needs more epochs than {epochs}")
    every = 2 if epochs >= 2 * len(ORDER) else 1
    return Schedule(tuple(Step(Moment(1 + every * turn), name, chosen) for turn, name in enumerate(ORDER)))


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """``op`` and ``ratio``, with correct operations."""
    method = trial.suggest_categorical("op", METHODS)
    return place(layers, operation(method, trial.suggest_categorical("ratio", RATIOS)), epochs)


def suggest_published(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """``op`` and ``ratio``, with the faults of the published code."""
    method = trial.suggest_categorical("op", METHODS)
    return place(layers, operation(method, trial.suggest_categorical("ratio", RATIOS), published=True), epochs)
