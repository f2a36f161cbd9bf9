"""The change of the loss, predicted from training images before an operation, and measured on test images after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from network_surgery.ops import (
    PCNS,
    EigenRemove,
    MeanReplace,
    MinWeight,
    Operation,
    RandomRemove,
    Signals,
    trial_surgery,
)
from network_surgery.ops.surgery.prediction import predicted_loss_change
from network_surgery.study.data import Dataset
from network_surgery.study.experiments.pcns.trained import CPU, SETTINGS, Setting, Trained
from network_surgery.study.training.trainer import Batches, evaluate

KEEPS = (0.9, 0.75, 0.5, 0.25, 0.1)
#: Training images that the prediction looks at.
IMAGES = 1024
METHODS: dict[str, Callable[[float, int], Operation]] = {
    "PCNS, pivoted": lambda keep, seed: PCNS(keep=keep),
    "mean replacement": lambda keep, seed: MeanReplace(keep),
    "min weight": lambda keep, seed: MinWeight(keep),
    "EigenRemove 1/8": lambda keep, seed: EigenRemove(keep, 0.125, weights="original"),
    "random": lambda keep, seed: RandomRemove(keep, seed=seed),
}


@dataclass(frozen=True)
class Point:
    """One operation on one layer: what was said of it, and what came."""

    setting: str
    layer: str
    method: str
    keep: float
    predicted: float
    slope: float
    tried: float
    actual: float


def measure(seed: int, dataset: Dataset, settings: tuple[Setting, ...] = SETTINGS) -> list[Point]:
    """Every method at every size on every layer of every setting, one at a time, undone afterwards.

    ``tried`` is the change on the very images that the prediction looked at, ``actual`` that on the test images.
    """
    found = []
    for setting in settings:
        trained = Trained(setting, seed, dataset)
        model, shown = trained.model, Batches(dataset.train.thinned(IMAGES), CPU)
        inputs, targets = shown.take(slice(None))
        base, seen = trained.loss(model), evaluate(model, shown)[0]
        signals = Signals(model, inputs, targets)
        for name, layer in trained.anatomy(model).items():
            for method, make in METHODS.items():
                for keep in KEEPS:
                    plan = make(keep, seed).propose(layer, signals)
                    said = predicted_loss_change(plan, inputs, targets)
                    with trial_surgery(plan):
                        tried, actual = evaluate(model, shown)[0] - seen, trained.loss(model) - base
                    found.append(Point(setting.name, name, method, keep, said.change, said.slope, tried, actual))
    return found
