"""The claims of the thesis, each with what was found: a test shows it, shows the opposite, or shows nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from network_surgery.study.evidence.significance import Difference
from network_surgery.study.experiments.attack.arms import Network
from network_surgery.study.experiments.attack.findings import (
    DOSES,
    KILLED,
    SCORES,
    TIMES,
    activations,
    against,
    compared,
    counts,
    dead,
    effects,
    frozen,
    kills,
    lowest,
    majority,
    others,
    over_layers,
    rank,
    ranks,
)
from network_surgery.study.experiments.attack.results import Pair, Results
from network_surgery.study.experiments.attack.tables import SCORE_NAMES, attacked_ranking

Key = TypeVar("Key")
#: The loss counts as unchanged where its interval stays within this many nats.
SAME_LOSS = 0.05
#: A rank correlation above this is called a good one.
RANKED = 0.9
#: What the thesis says of each of its networks, and which way MRP is to go.
EXPECTED = {
    "ReLU": ("Most units with ReLU gain MRP by an attack (3.6, where 2 of 4 in the second layer died)", 1),
    "ReLU + BatchNorm": ("Attacked units with ReLU and BatchNorm lose MRP (3.4)", -1),
    "tanh": ("Attacked units with tanh lose MRP (3.5: ×1000, by half or more)", -1),
    "tanh, 20 epochs": ("So they do where training is longer (3.5 has three times as many epochs for tanh)", -1),
}


def claims(results: Results) -> list[str]:
    """Each claim of the thesis, whether it holds here, and the figures that decide it."""
    return [
        *_by_activation(results), _bounded(results), _doses(results), _starts(results), _loss(results),
        _persistence(results), _mrs(results), _other_scores(results), _norms(results), _hypothesis(results),
        _alone(results),
    ]  # fmt: skip


def finding(tests: Iterable[Difference], expected: int) -> str:
    """What a family of tests says of a claim on the sign of all of them."""
    signs = [test.sign * expected for test in tests]
    shown, opposite = signs.count(1), signs.count(-1)
    if not signs:
        return "**not tried**"
    if shown and opposite:
        return f"**depends** (shown in {shown}, the opposite in {opposite} of {len(signs)})"
    if opposite:
        return f"**does not hold** (the opposite is shown in {opposite} of {len(signs)})"
    if shown == len(signs):
        return "**holds**"
    return f"**holds in {shown} of {len(signs)}**" if shown else "**undecided**"


def _by_activation(results: Results) -> Iterable[str]:
    factors, signs = effects(results, "mrp"), majority(results)
    for network in results.setting.networks:
        claim, sign = EXPECTED[network.activation]
        mine = [signs[network.activation, attack.name] for attack in network.attacks]
        told = ", ".join(
            f"× {factors[network.activation, attack.name].factor()} ({attack.name})" for attack in network.attacks
        )
        count = counts(_pairs(results, network))
        more = {"had next to none before": count.idle, "diverged": count.diverged}
        also = "".join(f", {number} {what}" for what, number in more.items() if number)
        yield (
            f"- {finding(mine, sign)}: {claim}. MRP at the end, attacked / left alone: {told}. Of "
            f"{count.units} attacked units {count.lower} end lower, {count.killed} are killed{also}."
        )


def _bounded(results: Results) -> str:
    tests = against(results)
    told = ", ".join(
        f"{name} {killed} of {units}" + ("" if p is None else f" (p = {p:.2g})")
        for name, (killed, units, p) in kills(results).items()
    )
    return (
        f"- {finding(tests.values(), -1)}: It is the bounded output that makes units vulnerable (3.7): the same attack "
        f"lowers MRP more with BatchNorm or tanh than with ReLU alone. Factors on MRP there / with ReLU: "
        f"{_factors(tests, lambda key: f'{key[0]}, {key[2]}')}. Units killed by one of the attacks at least: {told}; p "
        f"of McNemar's exact test against {results.setting.networks[0].activation}, after Holm."
    )


def _doses(results: Results) -> str:
    tests = compared(results, DOSES)
    theirs = [test for key, test in tests.items() if key[0] == "ReLU + BatchNorm"]  # what 3.4.2 is about
    told = _factors(tests, lambda key: f"{key[0]}, {key[1]} / {key[2]}")
    return (
        f"- {finding(theirs, -1)}: With ReLU and BatchNorm MRP falls further with the multiplier (3.4.2). Of all "
        f"networks: {told}."
    )


def _starts(results: Results) -> str:
    tests = compared(results, TIMES)
    shown = sum(test.sign != 0 for test in tests.values())
    word = f"holds in {shown} of {len(tests)}" if shown else "undecided"
    told = _factors(tests, lambda key: f"{key[0]}, {key[1]} / {key[2]}")
    return f"- **{word}**: It matters when (3.5.1, tanh; with BatchNorm in no clear order, 3.4.1). {told}."


def _loss(results: Results) -> str:
    tests = effects(results, "loss")
    shown = sum(test.sign != 0 for test in tests.values())
    bounds = [bound for test in tests.values() for bound in test.interval or [test.mean]]
    same = max(map(abs, bounds)) < SAME_LOSS
    word = "holds" if same else "does not hold" if shown else "undecided"
    means = [test.mean for test in tests.values()]
    accuracy = [100 * test.mean for test in effects(results, "accuracy").values()]
    return (
        f"- **{word}**: The loss does not tell of an attack (3.4; 3.6: 61 % either way). Validation loss at the end, "
        f"attacked − left alone: means of {len(tests)} attacks from {min(means):+.4f} to {max(means):+.4f}, intervals "
        f"within {min(bounds):+.3f} … {max(bounds):+.3f} (the same: within ± {SAME_LOSS:g}), shown to differ from zero "
        f"in {shown}; accuracy {min(accuracy):+.1f} to {max(accuracy):+.1f} points."
    )


def _persistence(results: Results) -> str:
    each = {network.activation: counts(_pairs(results, network)) for network in results.setting.networks}
    after, still = (sum(getattr(count, name) for count in each.values()) for name in ("killed_after", "killed_still"))
    words = {
        "not tried": not after,
        "holds": still > 0.9 * after,
        "does not hold": still < 0.5 * after,
        "depends": True,
    }
    word = next(word for word, fits in words.items() if fits)
    killed = ", ".join(f"{name} {count.killed_still} of {count.killed_after}" for name, count in each.items())
    low = ", ".join(f"{name} {count.low_still} of {count.low_after}" for name, count in each.items())
    return (
        f"- **{word}**: What is dead stays dead (3.2). Killed right after an attack, and still so at the end: "
        f"{killed}. Lower right after, and still lower at the end: {low}."
    )


def _mrs(results: Results) -> str:
    told, rho, hits, many = [], [], 0, 0
    for network in results.setting.networks:
        mine = over_layers(results, network, partial(rank, score="mrs"))
        first = over_layers(results, network, partial(lowest, score="mrs"))
        hits, many = hits + int(first.sum()), many + first.size
        rho += [*mine.flat]
        told.append(f"{network.activation} {mine.mean():.3f}")
    well = sum(each > RANKED for each in rho)
    attacked = "; ".join(
        f"{name} {mean:.3f} ({found} of {count})" for name, mean, found, count in attacked_ranking(results)
    )
    return (
        f"- **{'holds' if well == many else f'holds in {well} of {many} layers'}**: MRS ranks units as MRP does (3.7): "
        f"a rank correlation above {RANKED:g} at the end. Means: {', '.join(told)}; the lowest {min(rho):.3f}.\n"
        f"- **{'holds' if hits == many else f'holds in {hits} of {many} layers'}**: MRS never misses the unit with the "
        f"lowest MRP (3.7). In the layers that were attacked, correlation and how often: {attacked}."
    )


def _other_scores(results: Results) -> str:
    tests = ranks(results)
    told = []
    for network in results.setting.networks:
        means = {score: over_layers(results, network, partial(rank, score=score)).mean() for score in SCORES}
        told.append(
            f"{network.activation}: " + ", ".join(f"{SCORE_NAMES[each]} {mean:.2f}" for each, mean in means.items())
        )
    return (
        f"- {finding(tests.values(), 1)}: Norms and the output gradient rank units worse than MRS (3.7). Mean rank "
        f"correlation with MRP at the end: {'; '.join(told)}."
    )


def _norms(results: Results) -> str:
    norm, gradient = effects(results, "in_l1", False), effects(results, "gradient")
    pairs = [pair for network in results.setting.networks for pair in _pairs(results, network)]
    lower = [pair for pair in pairs if pair.change("mrp")[-1] < 0]
    largest = sum(int(pair.attacked["in_l1"][-1].argmax()) == pair.unit for pair in lower)
    silent = [pair for pair in pairs if pair.change("gradient")[-1] < math.log(KILLED)]
    alive = sum(bool(pair.change("mrp")[-1] > math.log(KILLED)) for pair in silent)
    grown = sum(test.sign > 0 for test in norm.values())
    fallen = sum(test.sign < 0 for test in gradient.values())
    return (
        f"- {finding(norm.values(), 1)}: The norm of the attacked unit's weights jumps (3.4); right after, shown in "
        f"{grown} of {len(norm)}. Its output gradient is shown to be smaller at the end in {fallen} of {len(norm)}."
        f"\n- A unit with a low MRP may have a large norm (3.7): of the {len(lower)} attacked units that end with a "
        f"lower MRP, {largest} have the largest incoming norm of their layer."
        f"\n- A frozen unit need not be dead (3.4): of the {len(silent)} attacked units whose output gradient ends "
        f"below {KILLED:g} of what it is without attack, {alive} keep more than that of their MRP."
    )


def _hypothesis(results: Results) -> str:
    tests = others(results)
    told = ", ".join(f"{activation} {test.words()}" for activation, test in tests.items())
    return (
        f"- {finding(tests.values(), -1)}: Where the attacked unit gains MRP, the others of its layer lose some (3.7, "
        f"not tried there). Rank correlation of the two changes over a seed's attacks: {told}."
    )


def _alone(results: Results) -> str:
    told = []
    for network in results.setting.networks:
        records = [results.alone(network, seed, layer) for seed in results.seeds for layer in results.layers]
        idle = [sum(int(which(record, -1).sum()) for record in records) for which in (dead, frozen)]
        units = sum(record["mrp"].shape[1] for record in records)
        told.append(f"{network.activation} {idle[0]} and {idle[1]} of {units}")
    tests = "; ".join(
        f"{name}, {activation} − {first}: {test.words()}"
        for (name, activation, first), test in activations(results).items()
    )
    return (
        f"- ReLU against tanh, without attack: units dead and frozen at the end, over all seeds and layers: "
        f"{', '.join(told)}. In a layer, the deviation of MRP as a fraction of its mean (unevenness), and idle units: "
        f"{tests}."
    )


def _pairs(results: Results, network: Network) -> list[Pair]:
    """All attacked units of a network."""
    return [pair for attack in network.attacks for pair in results.pairs(network, attack)]


def _factors(tests: Mapping[Key, Difference], name: Callable[[Key], str]) -> str:
    """Those that are shown to differ from one, and the range of the others."""
    shown = [f"× {test.factor()} ({name(key)})" for key, test in tests.items() if test.sign]
    rest = [math.exp(test.mean) for test in tests.values() if not test.sign]
    if rest:
        shown.append(f"{len(rest)} {'others' if shown else 'factors'} from {min(rest):.2f} to {max(rest):.2f}")
    return "; ".join(shown)
