"""What is tested, and what is counted. The sample of every test is the seeds: a network each, the mean over its layers.

Attacks are compared with the same network left alone, unit by unit: the logarithm of a ratio, or a difference. Every
family of tests is adjusted by Holm over all of its members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from network_surgery.ops.operations.dead_units import THRESHOLD
from network_surgery.study.evidence.significance import Difference, family, holm
from network_surgery.study.experiments.attack.arms import HARD, WHEN, Network, Record
from network_surgery.study.experiments.attack.attacker import Attack
from network_surgery.study.experiments.attack.results import FLOOR, Pair, Results

Key = TypeVar("Key")
#: A unit below this fraction of the penalty that it has without attack is called killed.
KILLED = 0.1
#: What is compared with the penalty as a score of units.
SCORES = ("mrs", "gradient", "in_l1", "in_l2", "out_l1", "out_l2")
#: Pairs of attacks: what the first has that the second has not.
DOSES = ((HARD[1], HARD[0]), (HARD[2], HARD[0]), (HARD[2], HARD[1]))
TIMES = ((WHEN[0], HARD[1]), (WHEN[1], HARD[1]))


def tested(differences: Mapping[Key, Sequence[float] | NDArray[np.float64]]) -> dict[Key, Difference]:
    """One family; a seed of which every training diverged is left out."""
    return family({key: [value for value in each if np.isfinite(value)] for key, each in differences.items()})


class Counts(NamedTuple):
    """Of the attacked units: how many there are, end with a lower penalty than without attack, end killed.

    ``low_after``, ``low_still``: lower right after the attack; of those, lower at the end. ``killed_after``,
    ``killed_still``: killed, likewise. ``idle``: had next to no penalty (``FLOOR``) before. ``diverged``: the training
    did not reach its end.
    """

    units: int
    lower: int
    killed: int
    low_after: int
    low_still: int
    killed_after: int
    killed_still: int
    idle: int
    diverged: int


def effects(results: Results, measure: str, at_end: bool = True) -> dict[tuple[str, str], Difference]:
    """(activation, attack) → the change of a measure by the attack, one family."""
    return tested(
        {
            (network.activation, attack.name): results.by_seed(network, attack, measure, at_end)
            for network in results.setting.networks
            for attack in network.attacks
        }
    )


def majority(results: Results) -> dict[tuple[str, str], Difference]:
    """(activation, attack) → whether most attacked units end with a higher or a lower penalty: sign tests, one family.

    Here the sample is the units (those of a seed share a network, but each has a training of its own), and it does not
    matter how far each goes: a unit that dies weighs no more than another. ``mean``: share of higher − share of lower.
    """
    found: dict[tuple[str, str], tuple[int, int, float]] = {}
    for network in results.setting.networks:
        for attack in network.attacks:
            changes = np.array([pair.change("mrp")[-1] for pair in results.pairs(network, attack)])
            higher, lower = int((changes > 0).sum()), int((changes < 0).sum())
            p = float(stats.binomtest(higher, higher + lower).pvalue) if higher + lower else 1.0
            found[network.activation, attack.name] = higher, lower, p
    adjusted = holm([p for *_, p in found.values()])
    return {
        key: Difference((higher - lower) / max(higher + lower, 1), None, each, n=higher + lower, alone=p)
        for (key, (higher, lower, p)), each in zip(found.items(), adjusted, strict=True)
    }


def compared(results: Results, pairs: tuple[tuple[Attack, Attack], ...]) -> dict[tuple[str, str, str], Difference]:
    """(activation, attack, other attack) → by how much more the first changes the penalty at the end, one family."""
    return tested(
        {
            (network.activation, one.name, other.name): results.by_seed(network, one, "mrp")
            - results.by_seed(network, other, "mrp")
            for network in results.setting.networks
            for one, other in pairs
            if one in network.attacks and other in network.attacks
        }
    )


def against(results: Results) -> dict[tuple[str, str, str], Difference]:
    """(activation, first activation, attack) → by how much more the attack changes the penalty there, one family."""
    first, *others = results.setting.networks
    return tested(
        {
            (network.activation, first.activation, attack.name): results.by_seed(network, attack, "mrp")
            - results.by_seed(first, attack, "mrp")
            for network in others
            if network.epochs == first.epochs
            for attack in network.attacks
        }
    )


def kills(results: Results) -> dict[str, tuple[int, int, float | None]]:
    """activation → units killed by at least one attack, of how many, and whether they are as many as in the first one.

    The last is McNemar's exact test over units (None for the first network itself), one family; networks that are
    trained for longer, with fewer attacks, are left out.
    """
    first = results.setting.networks[0]
    dead: dict[str, NDArray[np.bool_]] = {}
    for network in results.setting.networks:
        if network.epochs == first.epochs:
            change = [[pair.change("mrp")[-1] for pair in results.pairs(network, attack)] for attack in network.attacks]
            dead[network.activation] = (np.array(change) < np.log(KILLED)).any(axis=0)
    theirs = dead[first.activation]
    only = {name: (int((mine & ~theirs).sum()), int((theirs & ~mine).sum())) for name, mine in dead.items()}
    p = [
        None if name == first.activation else float(stats.binomtest(one, one + other).pvalue) if one + other else 1.0
        for name, (one, other) in only.items()
    ]
    return {name: (int(mine.sum()), len(mine), each) for (name, mine), each in zip(dead.items(), holm(p), strict=True)}


def others(results: Results) -> dict[str, Difference]:
    """activation → how the attacked unit's change goes with that of the others of its layer: one family.

    Rank correlation over a seed's attacks; networks with one attack are left out.
    """
    found: dict[str, list[float]] = {}
    for network in results.setting.networks:
        pairs = [pair for attack in network.attacks for pair in results.pairs(network, attack)]
        for seed in results.seeds if len(network.attacks) > 1 else ():
            mine = [pair for pair in pairs if pair.seed == seed and np.isfinite(pair.change("mrp")[-1])]
            own, rest = (
                [f(pair) for pair in mine] for f in (lambda pair: pair.change("mrp")[-1], Pair.change_of_others)
            )
            found.setdefault(network.activation, []).append(correlation(own, rest))
    return tested(found)


def counts(pairs: Sequence[Pair]) -> Counts:
    """Of some attacked units."""
    after = np.array([pair.change("mrp")[pair.end] for pair in pairs])
    end = np.array([pair.change("mrp")[-1] for pair in pairs])
    idle = sum(bool(pair.values("mrp")[1][0] <= FLOOR) for pair in pairs)
    low, lower, dying, killed = after < 0, end < 0, after < np.log(KILLED), end < np.log(KILLED)
    return Counts(
        len(pairs), lower.sum(), killed.sum(), low.sum(), (low & lower).sum(), dying.sum(), (dying & killed).sum(),
        idle, np.isnan(end).sum(),
    )  # fmt: skip


def rank(record: Record, row: int, score: str) -> float:
    """Spearman's correlation of a score with the penalty over the units of a layer at one moment."""
    return correlation(record[score][row], record["mrp"][row])


def correlation(one: Sequence[float] | NDArray[np.float64], other: Sequence[float] | NDArray[np.float64]) -> float:
    """Spearman's; 0 where one of them does not vary."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(stats.spearmanr(one, other).statistic)


def lowest(record: Record, row: int, score: str) -> bool:
    """Whether the unit with the lowest score is one with the lowest penalty."""
    penalty = record["mrp"][row]
    return bool(penalty[record[score][row].argmin()] == penalty.min())


def over_layers(
    results: Results, network: Network, what: Callable[[Record, int], float], row: int = -1
) -> NDArray[np.float64]:
    """``[seeds, layers]`` of what is asked of each layer of the network without attack."""
    return np.array(
        [[what(results.alone(network, seed, layer), row) for layer in results.layers] for seed in results.seeds]
    )


def ranks(results: Results) -> dict[tuple[str, str], Difference]:
    """(activation, score) → how much better MRS ranks a layer's units than the score does, at the end; one family."""
    return tested(
        {
            (network.activation, score): (
                over_layers(results, network, partial(rank, score="mrs"))
                - over_layers(results, network, partial(rank, score=score))
            ).mean(axis=1)
            for network in results.setting.networks
            for score in SCORES[1:]
        }
    )


def dead(record: Record, row: int) -> NDArray[np.bool_]:
    """Which units are dead as ``ops.operations.dead_units`` has it."""
    return record["mrs"][row] <= THRESHOLD * record["mrs"][row].mean()


def frozen(record: Record, row: int) -> NDArray[np.bool_]:
    """Which units are frozen as ``ops.frozen_units`` has it."""
    return record["largest"][row] <= THRESHOLD * record["largest"][row].mean()


def how_many(record: Record, row: int, which: Callable[[Record, int], NDArray[np.bool_]]) -> float:
    """Of a layer's units."""
    return float(which(record, row).sum())


def uneven(record: Record, row: int) -> float:
    """The deviation of the penalty over a layer's units, as a fraction of its mean."""
    return float(record["mrp"][row].std() / record["mrp"][row].mean())


def activations(results: Results) -> dict[tuple[str, str, str], Difference]:
    """(measure, activation, ReLU) → networks without attack, compared with those with ReLU; one family."""
    first, *others = results.setting.networks
    measures: dict[str, Callable[[Record, int], float]] = {
        "unevenness": uneven,
        "dead units": partial(how_many, which=dead),
        "frozen units": partial(how_many, which=frozen),
    }
    return tested(
        {
            (name, network.activation, first.activation): (
                over_layers(results, network, what) - over_layers(results, first, what)
            ).mean(axis=1)
            for name, what in measures.items()
            for network in others
            if network.epochs == first.epochs
        }
    )
