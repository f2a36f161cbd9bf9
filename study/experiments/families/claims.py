"""What the sources say of their families, as claims about the rows.

HashedNets: Chen et al. 2015; dictionaries: Denil et al. 2013; pruning: Han et al. 2015.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.rows import Rows, Values
from network_surgery.study.experiments.families.families import (
    DICTIONARIES,
    DISTILLED,
    EDGES,
    EIGEN,
    GAUSSIAN,
    HALF_HASHED,
    HASHED,
    MIN_WEIGHT,
    ORIGINAL,
    SHARED,
    SMALL,
    STRETCHED,
)
from network_surgery.study.experiments.families.han import (
    CURVES,
    ITERATIVE,
    L1,
    L2,
    LEFT,
    ONE_SHOT,
    TARGETS,
    UNTRAINED,
    target,
)

#: Accuracies that differ by less are as good (0 … 1): of families, and of a network before and after pruning.
AS_GOOD, WITHOUT_LOSS = 0.005, 0.002
#: What distillation changes is little below this.
LITTLE = 0.01
#: Down to this factor families are said to be about equal, and apart beyond it.
APART = 8
#: Names of the pruned networks on the page.
NAMES = {"lenet_300_100": "LeNet-300-100", "lenet_5": "LeNet-5"}


def tests(rows: Rows, family: str, factor: int) -> Values:
    """Test accuracy ``[seeds]`` of a family at a size."""
    return rows.grid("test", kind="arm", family=family, factor=factor)[:, 0]


def factors_of(rows: Rows, *families: str) -> list[int]:
    """The factors at which all of these families were measured, from the largest file to the smallest."""
    each = [set(rows.distinct("factor", kind="arm", family=family)) for family in families]
    return sorted(set.intersection(*each))


def gaps(rows: Rows, one: str, other: str) -> dict[str, Values]:
    """What one family is ahead of another, at every size that both have."""
    return {f"1/{k}": tests(rows, one, k) - tests(rows, other, k) for k in factors_of(rows, one, other)}


def better(rows: Rows, one: str, other: str, source: str = "") -> Claim:
    return Claim(f"{one} is better than {other}", source, gaps(rows, one, other), unit="points")


def hashed_claims(rows: Rows) -> list[Claim]:
    """The orderings of HashedNets."""
    points = f"{100 * AS_GOOD:g} points"
    return [
        *(Claim(f"{HASHED} is at least as good as {other}, within {points}", source, gaps(rows, HASHED, other),
                margin=AS_GOOD, unit="points")
          for other, source in ((GAUSSIAN, "Chen"), (EDGES, "Chen"), (SMALL, "Chen"))),
        better(rows, DISTILLED, HASHED, "Chen"),
        Claim(f"distillation changes it by less than {100 * LITTLE:g} point", "Chen", gaps(rows, DISTILLED, HASHED), 0,
              margin=LITTLE, unit="points"),
        Claim(f"beyond 1/{APART} {HASHED} is further ahead than before", "Chen",
              {f"of {other}": gap for other in (GAUSSIAN, EDGES, SMALL)
               if len(gap := opening(rows, HASHED, other))}, unit="points"),
    ]  # fmt: skip


def opening(rows: Rows, one: str, other: str) -> Values:
    """The mean gap of two families in files that are more than ``APART`` times smaller, less that in the others."""
    each = factors_of(rows, one, other)
    far, near = ([tests(rows, one, k) - tests(rows, other, k) for k in each if (k > APART) == far] for far in (1, 0))
    return np.mean(far, axis=0) - np.mean(near, axis=0) if far and near else np.zeros(0)


def dictionary_claims(rows: Rows) -> list[Claim]:
    """Which dictionary is better than the one that HashedNets were compared with."""
    return [better(rows, dictionary, GAUSSIAN, "Denil") for dictionary in list_known(rows, DICTIONARIES)]


def reversal_claims(rows: Rows) -> list[Claim]:
    """Whether a better dictionary reverses what HashedNets found of low rank."""
    return [better(rows, dictionary, HASHED, "the review") for dictionary in list_known(rows, DICTIONARIES)]


def halfway_claims(rows: Rows) -> list[Claim]:
    """Whether half of the training with the whole network is worth it."""
    ones = list_known(rows, (STRETCHED, SHARED, MIN_WEIGHT, EIGEN, HALF_HASHED))
    return [*(better(rows, one, SMALL) for one in ones), better(rows, HALF_HASHED, HASHED)]


def list_known(rows: Rows, families: Sequence[str]) -> list[str]:
    """Those of the families that were measured."""
    return [family for family in families if rows.where(kind="arm", family=family)]


def pruned_values(rows: Rows, field: str, penalty: str, way: str, left: float, network: str = CURVES) -> Values:
    """A field ``[seeds]`` of the networks that were pruned in one way to a fraction of their weights."""
    return rows.grid(field, kind="pruned", network=network, penalty=penalty, way=way, left=left)[:, 0]


def trained_values(rows: Rows, field: str, network: str, penalty: str = L2) -> Values:
    """A field ``[seeds]`` of the networks before pruning."""
    return rows.grid(field, kind="trained", network=network, penalty=penalty)[:, 0]


def pruned_networks(rows: Rows) -> list[str]:
    return rows.distinct("network", kind="trained")


def han_claims(rows: Rows) -> list[Claim]:
    """The table: as few weights without loss."""

    def find_loss(field: str) -> dict[str, Values]:
        return {
            f"{NAMES[network]}, {TARGETS[network][0]} K → {TARGETS[network][1]} K":
                pruned_values(rows, "test", L2, ITERATIVE, target(network), network)
                - trained_values(rows, field, network)
            for network in pruned_networks(rows)
        }  # fmt: skip

    within = f"within {100 * WITHOUT_LOSS:g} points"
    return [
        Claim(f"the pruned network is as good as before pruning, {within}", "Han", find_loss("test"),
              margin=WITHOUT_LOSS, unit="points"),
        Claim(f"it is as good as the whole network that trains on for as long, {within}", "", find_loss("alone"),
              margin=WITHOUT_LOSS, unit="points"),
    ]  # fmt: skip


def curve_claims(rows: Rows) -> list[Claim]:
    """The curves, and the picture."""
    if CURVES not in pruned_networks(rows):
        return []

    def ahead(one: tuple[str, str], other: tuple[str, str], first: int = 0) -> dict[str, Values]:
        return {
            f"{left:.0%} left": pruned_values(rows, "test", *one, left) - pruned_values(rows, "test", *other, left)
            for left in LEFT[CURVES][first:]
        }

    # The first step of the iterative way is the same as one shot.
    half = pruned_values(rows, "test", L2, UNTRAINED, LEFT[CURVES][0]) - trained_values(rows, "test", CURVES)
    centre, border = by_place(rows)
    return [
        Claim(f"half of the weights can go without retraining, within {100 * WITHOUT_LOSS:g} points", "Han", half,
              margin=WITHOUT_LOSS, unit="points"),
        Claim("without retraining L1 is better than L2", "Han", ahead((L1, UNTRAINED), (L2, UNTRAINED)), unit="points"),
        Claim("with retraining L2 is better than L1", "Han", ahead((L2, ONE_SHOT), (L1, ONE_SHOT)), unit="points"),
        Claim("retraining is better than none (L2)", "Han", ahead((L2, ONE_SHOT), (L2, UNTRAINED)), unit="points"),
        Claim("iterative pruning is better than one shot (L2, as many epochs)", "Han",
              ahead((L2, ITERATIVE), (L2, ONE_SHOT), 1), unit="points"),
        Claim("more of the first layer is left at the image's centre than at its border (fraction of the weights)",
              "Han", centre - border),
    ]  # fmt: skip


def by_place(rows: Rows) -> tuple[Values, Values]:
    """The fraction of the first layer's weights that is left ``[seeds]``: in the middle half of rows and columns, and
    outside of it."""
    density = densities(rows)
    side = density.shape[1]
    middle = np.zeros((side, side), dtype=bool)
    middle[side // 4 : side - side // 4, side // 4 : side - side // 4] = True
    return density[:, middle].mean(axis=1), density[:, ~middle].mean(axis=1)


def densities(rows: Rows) -> Values:
    """The fraction of the units that read each pixel, ``[seeds, rows, columns]``, after iterative pruning."""
    found = {row["seed"]: np.array(row["by_pixel"]) / row["units"] for row in rows.where(kind="mask")}
    each = np.array([found[seed] for seed in sorted(found)])
    side = round((each.shape[1]) ** 0.5)
    return each.reshape(len(each), -1, side, side).mean(axis=1)


def original(rows: Rows) -> Values:
    """Test accuracy ``[seeds]`` of the network that nobody made smaller."""
    return tests(rows, ORIGINAL, 1)
