"""What chapter 4 of the thesis prints, and the same numbers from ``results.json`` of a study over its grid (``space``).

Source: Graham 2019, *Applied HOSVD for weight compression and expansion*, tables 4.1 to 4.4. Differences between two
methods are paired: the same seed, ratio, data and first epochs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from network_surgery.study.bench.rows import Values
from network_surgery.study.experiments.thesis import space
from network_surgery.study.training.records import operations_of

Results = Mapping[str, Any]

#: The grid's ratios, and how they are written.
RATIOS = dict(zip(space.RATIOS, ("1/4", "1/3", "1/2", "2/3", "3/4"), strict=True))
NAMES = {
    "eigen_remove": "EigenRemove", "min_weight": "Minimum Weight Selection",
    "weak_expand": "WeakExpand", "zero_expand": "Zero Weight Expansion",
}  # fmt: skip
#: The thesis's method and the one that it is compared with.
PAIRS = {"removal": ("eigen_remove", "min_weight"), "expansion": ("weak_expand", "zero_expand")}
#: What the thesis prints, by measure and method, in the order of ``RATIOS``.
PRINTED = {
    ("accuracy", "eigen_remove"): (0.7486, 0.7661, 0.7865, 0.7974, 0.8023),
    ("accuracy", "min_weight"): (0.7544, 0.7584, 0.7709, 0.7850, 0.7869),
    ("factor", "eigen_remove"): (1.173, 1.263, 1.133, 1.158, 1.146),
    ("factor", "min_weight"): (1.214, 1.038, 0.902, 0.829, 0.799),
    ("accuracy", "weak_expand"): (0.7913, 0.7839, 0.7844, 0.7982, 0.7971),
    ("accuracy", "zero_expand"): (0.7744, 0.7845, 0.7815, 0.7861, 0.7871),
    ("factor", "weak_expand"): (0.847, 0.822, 0.781, 0.723, 0.792),
    ("factor", "zero_expand"): (0.803, 0.862, 0.714, 0.773, 0.789),
}
#: The last layer of the order: its published code operates on it and records nothing of it, and its text lists ten.
UNRECORDED = space.ORDER[-1]


@dataclass(frozen=True)
class Training:
    """What the thesis reads from one training run; ``factor`` and ``seconds`` are medians over its operations.

    ``gap``: accuracy on the training images less ``accuracy``; None where an older study did not take it.
    ``longest``: the largest share of an epoch that an operation took.
    ``recorded``: the loss factors that the thesis has recorded, of every operation but that on ``UNRECORDED``.
    ``change``: by how much the held-out loss changed most at an operation, as a fraction of it. ``curve``: the
    validation loss after every epoch.
    """

    accuracy: float
    factor: float
    seconds: float
    epoch_seconds: float
    recorded: tuple[float, ...] = ()
    longest: float | None = None
    gap: float | None = None
    change: float = 0.0
    curve: tuple[float, ...] = ()

    @property
    def share(self) -> float:
        """The seconds of an operation over those of an epoch."""
        return self.seconds / self.epoch_seconds


class Trainings(dict[tuple[str, float], dict[int, Training]]):
    """The finished surgery training runs of a study over the thesis's grid: (method, ratio) → seed → training."""

    def __init__(self, results: Results) -> None:
        for cell in results["comparison"]["cells"]:
            if cell["arm"] != "surgery" or "failure" in cell:
                continue
            ratio = min(RATIOS, key=lambda known: abs(known - cell["params"]["ratio"]))
            operations = operations_of(cell)
            factors = [(each.layer, each.loss_factor) for each in operations if each.loss_factor is not None]
            self.setdefault((cell["params"]["op"], ratio), {})[cell["seed"]] = Training(
                cell["test_metric"],
                statistics.median(factor for _, factor in factors),
                statistics.median(each.seconds for each in operations),
                statistics.median(each.epoch_seconds for each in operations if each.epoch_seconds is not None),
                tuple(factor for layer, factor in factors if layer != UNRECORDED),
                max(each.seconds / each.epoch_seconds for each in operations if each.epoch_seconds),
                cell.get("train_test_gap"),
                max(abs(each.spike_factor - 1) for each in operations),
                tuple(each["validation_loss"] for each in cell.get("epochs", ()) if "validation_loss" in each),
            )

    def repeats(self, method: str, ratio: float, seed: int) -> bool:
        """Whether this training run repeats one at a smaller ratio to the last digit: units that never learn, however
        many they are, leave the others' training as it is.
        """
        curve = self[method, ratio][seed].curve
        smaller = [self.get((method, other), {}).get(seed) for other in RATIOS if other < ratio]
        return bool(curve) and any(other.curve == curve for other in smaller if other is not None)

    @property
    def repeated(self) -> int:
        """How many training runs repeat another."""
        return sum(self.repeats(*place, seed) for place, members in self.items() for seed in members)

    def of(self, method: str, measure: str, *ratios: float) -> list[Any]:
        """A field of every training run of a method, at these ratios or at all, where it was taken."""
        members = [self.get((method, ratio), {}).values() for ratio in ratios or RATIOS]
        each = [getattr(training, measure) for group in members for training in group]
        return [value for value in each if value is not None]

    def pairs(self, methods: tuple[str, str], measure: str) -> dict[tuple[float, int], tuple[float, float]]:
        """Both methods' values at each ratio and seed that both have."""
        one, other = methods
        both = {
            (ratio, seed): (getattr(training, measure), getattr(self[other, ratio][seed], measure))
            for ratio in RATIOS
            for seed, training in sorted(self.get((one, ratio), {}).items())
            if seed in self.get((other, ratio), {})
        }
        return {place: pair for place, pair in both.items() if None not in pair}

    def differences(self, methods: tuple[str, str], measure: str, *ratios: float) -> Values:
        """The first method's values less the other's, of the ``pairs`` at these ratios or at all."""
        pairs = self.pairs(methods, measure)
        return np.array([one - other for (ratio, _), (one, other) in pairs.items() if ratio in (ratios or RATIOS)])

    def by_seed(self, methods: tuple[str, str], measure: str) -> Values:
        """The ``differences`` of each seed, in the mean over ratios: those of one seed share an initialization.

        What repeats another training run is not counted again.
        """
        gaps: dict[int, list[float]] = {}
        for (ratio, seed), (one, other) in self.pairs(methods, measure).items():
            if not any(self.repeats(method, ratio, seed) for method in methods):
                gaps.setdefault(seed, []).append(one - other)
        return np.array([np.mean(gaps[seed]) for seed in sorted(gaps)])

    def as_printed(self, method: str, ratio: float, measure: str) -> float | None:
        """The number that the thesis prints, from these training runs; None where there are none.

        ``accuracy``: the median of the training runs' final test accuracies (it is called an average there).
        ``factor``: the median of the recorded loss factors of all training runs pooled (ten operations × five training
        runs there), which is not the mean of the training runs' medians.
        """
        if measure == "accuracy":
            values = self.of(method, measure, ratio)
        else:
            values = [factor for factors in self.of(method, "recorded", ratio) for factor in factors]
        return statistics.median(values) if values else None


def without_operation(results: Results) -> list[float]:
    """The median loss factor of each original training, at the moments of the others' operations, with none there."""
    cells = [cell for cell in results["comparison"]["cells"] if "failure" not in cell]
    moments = {each.epoch for cell in cells if cell["arm"] == "surgery" for each in operations_of(cell)}
    whole = sorted(int(moment) for moment in moments if moment == int(moment) and moment >= 1)
    found = []
    for cell in cells:
        epochs = cell["epochs"] if cell["arm"] == "original" else []
        factors = [
            epochs[at]["first_loss"] / epochs[at - 1]["last_loss"]
            for at in whole
            if at < len(epochs) and "first_loss" in epochs[at] and epochs[at - 1]["last_loss"] > 0
        ]
        found += [statistics.median(factors)] if factors else []
    return found
