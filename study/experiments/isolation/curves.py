"""What both parts of the isolation study measure, and the methods that they compare."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from network_surgery.ops import (
    PCNS,
    EigenRemove,
    MeanReplace,
    MinWeight,
    Operation,
    RandomRemove,
    WeakExpand,
    ZeroExpand,
)

#: The ranks of the thesis, and how they are written. The fifth is one fifth in its text and 1/8 in its code and figure.
RANKS = {1.0: "1", 0.75: "3/4", 0.5: "1/2", 0.25: "1/4", 0.2: "1/5", 0.125: "1/8"}
#: The thesis's lowest rank, as its text and as its code have it.
LOWEST = (0.2, 0.125)
WEIGHTS = ("original", "reduced")
MIN_WEIGHT, RANDOM_REMOVE, PIVOTED = "MinWeight", "RandomRemove", "PCNS"
MEAN_L2, MEAN_VARIANCE = "MeanReplace, l2", "MeanReplace, variance"
ZERO, REPLACED = "ZeroExpand", "random replacement"
SPLITS = {f"WeakExpand, {split}": split for split in ("equal", "uneven", "signed")}


def eigen(rank: float, weights: str = "original") -> str:
    """What EigenRemove at a rank is called; at full rank there is nothing to reduce."""
    return f"EigenRemove {RANKS[rank]}" + (", reduced" if weights == "reduced" and rank < 1 else "")


#: Every removal: from the fraction that stays and a seed to the operation.
REMOVALS: dict[str, Callable[[float, int], Operation]] = {
    **{
        eigen(rank, weights): lambda keep, seed, rank=rank, weights=weights: EigenRemove(keep, rank, weights)  # type: ignore[misc]
        for weights in WEIGHTS
        for rank in RANKS
    },
    MIN_WEIGHT: lambda keep, seed: MinWeight(keep),
    RANDOM_REMOVE: lambda keep, seed: RandomRemove(keep, seed),
    MEAN_L2: lambda keep, seed: MeanReplace(keep, "l2"),
    MEAN_VARIANCE: lambda keep, seed: MeanReplace(keep, "variance"),
    PIVOTED: lambda keep, seed: PCNS(keep=keep),
}
#: Every growth: from the fraction that is added and a seed to the operation.
GROWTHS: dict[str, Callable[[float, int], Operation]] = {
    **{name: lambda grow, seed, split=split: WeakExpand(grow, split, seed) for name, split in SPLITS.items()},  # type: ignore[misc]
    ZERO: lambda grow, seed: ZeroExpand(grow),
}


@dataclass
class Curves:
    """How far each method moves the network's output, by the size that a layer is left with.

    Attributes:
        where: the layer, or ``random weights``.
        change: ``shrink`` or ``grow``.
        units: the layer's size before.
        sizes: its sizes after, ascending.
        distance: by method, the squared Frobenius distance of the output before and after, ``[n, sizes]``.
        relative: the same over the squared norm of the output before.
        accuracy: accuracy right after (0 … 1), ``[n, sizes]``; empty for random weights.
        missing: by method, why it could not be measured.
    """

    where: str
    change: str
    units: int
    sizes: list[int]
    distance: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    relative: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    accuracy: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(next(iter(self.relative.values()), ()))

    def nearest(self, fraction: float) -> int:
        """The index of the size nearest to this fraction of the layer."""
        return min(range(len(self.sizes)), key=lambda i: abs(self.sizes[i] - fraction * self.units))

    def average(self, method: str) -> NDArray[np.float64]:
        """The relative distance in the mean over all sizes, ``[n]``."""
        return self.relative[method].mean(axis=1)

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        values = {
            name: {method: array.tolist() for method, array in getattr(self, name).items()}
            for name in ("distance", "relative", "accuracy")
        }
        return {
            "where": self.where, "change": self.change, "units": self.units, "sizes": self.sizes, "n": self.n,
            "missing": self.missing, **values,
        }  # fmt: skip


class Gatherer:
    """Collects one curve an iteration into ``Curves``; a method that failed anywhere is missing everywhere."""

    def __init__(self, curves: Curves) -> None:
        self.curves = curves
        self._found: dict[str, list[list[tuple[float, float, float]]]] = {}

    def add(self, method: str, points: list[tuple[float, float, float]]) -> None:
        """One iteration's ``(squared distance, squared norm of the output before, accuracy)`` at every size."""
        self._found.setdefault(method, []).append(points)

    def lacks(self, method: str, why: str) -> None:
        self.curves.missing.setdefault(method, why)

    def done(self) -> Curves:
        for method, found in self._found.items():
            if method in self.curves.missing:
                continue
            values = np.array(found)
            self.curves.distance[method] = values[..., 0]
            self.curves.relative[method] = values[..., 0] / np.maximum(values[..., 1], np.finfo(float).tiny)
            if not math.isnan(values[0, 0, 2]):
                self.curves.accuracy[method] = values[..., 2]
        return self.curves
