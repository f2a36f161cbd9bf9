"""An attacked unit compared with the same unit left alone, and scores compared with the penalty.

A run that diverged is NaN; means are of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from network_surgery.ops.operations.dead_units import THRESHOLD
from network_surgery.study.bench.rows import Row, Rows, Values
from network_surgery.study.experiments.attack.measure import LAYERS, NONE

#: A penalty (mean change of the loss), or a gradient, below this counts as this much: a dead unit has a logarithm.
FLOOR = 1e-5
#: Our own threshold, not of the thesis: a unit below this fraction of the MRP that it has without attack is killed.
KILLED = 0.1
#: Scores of units that are compared with MRP, as pages name them.
SCORES = {"mrs": "MRS", "gradient": "output gradient", "in_l1": "L1 in", "in_l2": "L2 in", "out_l1": "L1 out",
          "out_l2": "L2 out"}  # fmt: skip
AFTER, END = {"after": True}, {"end": True}
Names = Sequence[str]


@dataclass(frozen=True)
class Attacked:
    """Rows of all networks. Where no ``attacks`` are named, all of the network's are meant."""

    rows: Rows

    def attacks(self, network: str) -> list[str]:
        """The names of the attacks on a network."""
        return self.rows.distinct("attack", kind="unit", network=network)

    def courses(self, network: str, attack: str, layer: str, field: str, **which: Any) -> Values:
        """``[seeds, looks]``: the logarithm of attacked / alone; the difference of loss, accuracy and flat outputs."""
        which |= {"kind": "unit", "network": network, "attack": attack, "layer": layer}
        attacked, alone = self.rows.grid(field, **which), self.rows.grid(f"{field}_alone", **which)
        if field in ("loss", "accuracy", "flat"):
            return attacked - alone
        least = FLOOR if field.startswith("mrp") or field == "gradient" else 0
        return np.asarray(np.log(np.maximum(attacked, least) / np.maximum(alone, least)))

    def changes(
        self, network: str, attacks: Names = (), field: str = "mrp", when: Row = END, layers: Names = LAYERS
    ) -> Values:
        """``[seeds, attacks × layers]``: the change of each attacked unit at one look."""
        attacks = attacks or self.attacks(network)
        each = [self.courses(network, attack, layer, field, **when) for attack in attacks for layer in layers]
        return np.concatenate(each, axis=1)

    def effect(self, network: str, *which: Any, **more: Any) -> Values:
        """``[seeds]``: the mean of ``changes`` over attacks and layers."""
        return mean(self.changes(network, *which, **more))

    def fallen(self, network: str, attacks: Names = (), below: float = 1.0) -> Values:
        """``[seeds]``: the share of the attacked units that end with an MRP below this fraction of what it is alone."""
        each = self.changes(network, attacks)
        return mean(np.where(np.isnan(each), np.nan, each < np.log(below)))

    def over_layers(
        self, network: str, number: Callable[[Row], float], attacks: Names = (NONE,), part: str = "end"
    ) -> Values:
        """``[seeds, attacks × layers]``: a number of each layer's units; NaN where a run did not get there."""
        which = {"kind": "layer", "network": network, "part": part}
        found = {(row["seed"], row["attack"], row["layer"]): number(row)
                 for row in self.rows.where(**which) if row["attack"] in attacks}  # fmt: skip
        places = [(attack, layer) for attack in attacks for layer in LAYERS]
        seeds = sorted(self.rows.distinct("seed", **which))
        return np.array([[found.get((seed, *place), np.nan) for place in places] for seed in seeds], dtype=np.float64)

    def others(self, network: str) -> Values:
        """``[seeds]``: how the attacked unit's change of MRP goes with the mean change of the others of its layer.

        Spearman's correlation over a seed's attacks and layers.
        """

        def rest(row: Row) -> float:
            which = {"kind": "layer", "network": network, "attack": NONE, "part": "end", "layer": row["layer"]}
            (alone,) = self.rows.where(seed=row["seed"], **which)
            pair = (np.delete(np.maximum(each["mrp"], FLOOR), row["unit"]) for each in (row, alone))
            return float(np.subtract(*map(np.log, pair)).mean())

        own, others = self.changes(network), self.over_layers(network, rest, self.attacks(network))
        known = np.isfinite(own) & np.isfinite(others)
        pairs = zip(own, others, known, strict=True)
        return np.array([correlation(one[there], other[there]) for one, other, there in pairs])


def mean(values: Values) -> Values:
    """Over all axes but the first, of those that are no NaN; NaN where all are."""
    known = np.isfinite(values).sum(axis=1)
    return np.asarray(np.nansum(values, axis=1) / np.where(known, known, np.nan))


def rank(row: Row, score: str = "mrs") -> float:
    """Spearman's correlation of a score with MRP over the units of a layer."""
    return correlation(row[score], row["mrp"])


def correlation(one: Sequence[float] | Values, other: Sequence[float] | Values) -> float:
    """Spearman's; 0 where one of them does not vary."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(stats.rankdata(one), stats.rankdata(other))[0, 1])


def lowest(row: Row) -> bool:
    """Whether the unit with the lowest MRS is one with the lowest MRP."""
    return bool(row["mrp"][np.argmin(row["mrs"])] == min(row["mrp"]))


def idle(row: Row, signal: str) -> int:
    """How many units are dead (by ``mrs``) or frozen (by ``largest``), as ``ops.operations.dead_units`` has it."""
    return int((np.array(row[signal]) <= THRESHOLD * np.mean(row[signal])).sum())
