"""The methods that are compared, and the curves of their rows: how far each moves the output, by the layer's size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from network_surgery import ops
from network_surgery.study.bench.rows import Rows, Values

#: The ranks of the thesis, and how they are written. The fifth is one fifth in its text and 1/8 in its code and figure.
RANKS = {1.0: "1", 0.75: "3/4", 0.5: "1/2", 0.25: "1/4", 0.2: "1/5", 0.125: "1/8"}
#: The ranks below the full one, and the lowest as the thesis's text and as its code have it.
REDUCED, LOWEST = tuple(RANKS)[1:], (0.2, 0.125)
MIN_WEIGHT, RANDOM_REMOVE, PIVOTED = "MinWeight", "RandomRemove", "PCNS"
MEAN_L2, MEAN_VARIANCE = "MeanReplace, l2", "MeanReplace, variance"
#: The matrices on both sides of the layer drawn anew: the thesis's floor.
REPLACED = "random replacement"


def eigen(rank: float, weights: str = "original") -> str:
    """The name of EigenRemove at a rank; at full rank there is nothing to reduce."""
    return f"EigenRemove {RANKS[rank]}" + (", reduced" if weights == "reduced" and rank < 1 else "")


def removals(keep: float, seed: int) -> dict[str, ops.Operation]:
    """Every removal that leaves this fraction of the units."""
    return {
        **{eigen(rank, each): ops.EigenRemove(keep, rank, each) for each in ("original", "reduced") for rank in RANKS},
        MIN_WEIGHT: ops.MinWeight(keep), RANDOM_REMOVE: ops.RandomRemove(keep, seed),
        MEAN_L2: ops.MeanReplace(keep, "l2"), MEAN_VARIANCE: ops.MeanReplace(keep, "variance"),
        PIVOTED: ops.PCNS(keep=keep),
    }  # fmt: skip


def growths(grow: float, seed: int) -> dict[str, ops.Operation]:
    """Every growth by this fraction of the units."""
    weak = {f"WeakExpand, {split}": ops.WeakExpand(grow, split, seed) for split in ("equal", "uneven", "signed")}
    return {**weak, "ZeroExpand": ops.ZeroExpand(grow)}


def leading(rank: float, full: int) -> int:
    """The number of singular vectors that a rank leaves of ``full`` ones."""
    return max(1, math.floor(rank * full))


@dataclass(frozen=True)
class Layer:
    """A layer that is shrunk or grown to ``sizes``, ascending; what was measured of each method ``[networks, sizes]``.

    ``accuracy`` (0 … 1, right after) is empty for random weights. A method that the layer refused is missing.
    """

    where: str
    units: int
    sizes: list[int]
    relative: Mapping[str, Values]
    accuracy: Mapping[str, Values]

    def nearest(self, fraction: float) -> int:
        """The index of the size nearest to this fraction of the layer."""
        return min(range(len(self.sizes)), key=lambda at: abs(self.sizes[at] - fraction * self.units))

    def error(self, method: str, at: int | None = None) -> Values:
        """The relative squared distance ``[networks]`` at a size, or in the mean of all; NaN of a missing method."""
        values = self.relative.get(method, np.full_like(self.relative[REPLACED], np.nan))
        return np.asarray(values.mean(axis=1) if at is None else values[:, at])


def layers(rows: Rows, kind: str) -> list[Layer]:
    """Every layer that was shrunk (``kind`` ``shrink``) or grown (``grow``), the one of random weights first."""
    found = []
    for where in rows.distinct("where", kind=kind):
        here = {"kind": kind, "where": where}
        first, refused = rows.where(**here)[0], [row["method"] for row in rows.where(kind="missing", where=where)]
        names = [name for name in rows.distinct("method", **here) if name not in refused]
        relative, accuracy = (
            {name: rows.grid(field, "size", method=name, **here) for name in names if field in first}
            for field in ("relative", "accuracy")
        )
        found.append(Layer(where, first["units"], sorted(rows.distinct("size", **here)), relative, accuracy))
    return found
