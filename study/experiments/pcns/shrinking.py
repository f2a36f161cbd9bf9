"""Every layer is shrunk, from the last to the first: by PCNS at several thresholds, and by other removals to its sizes.

All arms start from the same weights and optimizer state and go on with the same batches. The other removals keep as
many units as PCNS with the pivoted basis, layer by layer. The test images are read right after and after every epoch
of every arm alike; nothing is chosen by them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from network_surgery.ops import PCNS, EigenRemove, MeanReplace, MinWeight, Operation, RandomRemove, SurgeryError
from network_surgery.ops.network.masks import parameters_of
from network_surgery.study.data import Dataset
from network_surgery.study.experiments.pcns.trained import SETTINGS, Setting, Trained, cut

THRESHOLDS = (1e-1, 1e-2, 1e-3, 1e-4)
PIVOTED, EIGEN, UNINTERRUPTED = "PCNS, pivoted", "PCNS, eigen", "uninterrupted"
#: Other removals: an operation, given the fraction that stays and the seed, and its repairs.
OTHERS: dict[str, tuple[Callable[[float, int], Operation], tuple[str, ...]]] = {
    "min weight": (lambda keep, seed: MinWeight(keep), ()),
    "min weight + least squares": (lambda keep, seed: MinWeight(keep), ("least_squares",)),
    "EigenRemove 1/8": (lambda keep, seed: EigenRemove(keep, 0.125, weights="original"), ()),
    "mean replacement": (lambda keep, seed: MeanReplace(keep), ()),
    "random": (lambda keep, seed: RandomRemove(keep, seed=seed), ()),
    "random + least squares": (lambda keep, seed: RandomRemove(keep, seed=seed), ("least_squares",)),
}
#: Accuracy (0 … 1) before, after each operation and after each epoch; units kept, parameters, CPU seconds.
Record = dict[str, float]
#: (setting, threshold, arm) → measure → values ``[seeds]``; NaN where the arm cannot be had.
Found = dict[tuple[str, float, str], dict[str, NDArray[np.float64]]]


def measure(
    seed: int, dataset: Dataset, settings: tuple[Setting, ...] = SETTINGS
) -> dict[tuple[str, float, str], Record]:
    """Every arm of every setting, for one seed."""
    found = {}
    for setting in settings:
        for threshold, arm, record in arms(Trained(setting, seed, dataset)):
            found[setting.name, threshold, arm] = record
    return found


def arms(trained: Trained) -> Iterator[tuple[float, str, Record]]:
    """Threshold, arm and record; the threshold of ``uninterrupted`` is 0."""
    names = list(trained.anatomy(trained.model))[::-1]
    yield 0.0, UNINTERRUPTED, followed(trained, names, {})
    for threshold in THRESHOLDS:
        pivoted = followed(trained, names, {name: PCNS(threshold) for name in names})
        yield threshold, PIVOTED, pivoted
        with contextlib.suppress(SurgeryError):  # a form that cannot be had after every activation
            yield threshold, EIGEN, followed(trained, names, {name: PCNS(threshold, "eigen") for name in names})
        sizes = {name: pivoted[f"units {name}"] for name in names}
        units = {name: layer.units for name, layer in trained.anatomy(trained.model).items()}
        for arm, (make, repair) in OTHERS.items():
            chosen = {name: make(sizes[name] / units[name], trained.seed) for name in names}
            yield threshold, arm, followed(trained, names, chosen, repair)


def followed(
    trained: Trained, names: list[str], operations: dict[str, Operation], repair: tuple[str, ...] = ()
) -> Record:
    """One arm: its operations layer by layer, then training."""
    model, optimizer = trained.copy()
    record = {"before": trained.accuracy(model), "operation seconds": 0.0, "epoch seconds before": trained.seconds}
    for name in names:
        if name in operations:
            plan, seconds = cut(trained, model, optimizer, name, operations[name], repair)
            record["operation seconds"] += seconds
            record[f"units {name}"] = float(plan.units_after)
            record[f"error {name}"] = plan.error if plan.error is not None else float("nan")
            record[f"held-out error {name}"] = float(plan.evidence.get("held_out_error", float("nan")))
        record[f"after {name}"] = trained.accuracy(model)
    record["after 0"] = trained.accuracy(model)
    record["parameters"] = float(parameters_of(model))
    seconds = 0.0
    for epoch in range(trained.setting.after):
        seconds += trained.go_on(model, optimizer, 1, begin=trained.setting.before + epoch)
        record[f"after {epoch + 1}"] = trained.accuracy(model)
    record["epoch seconds"] = seconds / trained.setting.after
    return record


def epochs_of(record: Mapping[str, object]) -> list[int]:
    """After which epochs the accuracy was looked at; 0 is right after the operation."""
    return sorted(int(name[6:]) for name in record if name.startswith("after ") and name[6:].isdigit())


def gathered(parts: list[dict[tuple[str, float, str], Record]]) -> Found:
    """The records of several seeds; row ``i`` belongs to the same seed everywhere."""
    keys = list(dict.fromkeys(key for part in parts for key in part))
    found: Found = {}
    for key in keys:
        measures = list(dict.fromkeys(name for part in parts for name in part.get(key, {})))
        found[key] = {
            name: np.array([part.get(key, {}).get(name, float("nan")) for part in parts]) for name in measures
        }
    return found
