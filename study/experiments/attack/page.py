"""What the thesis says of attacked units (Evci 2018, chapter 3), asked of what was measured.

There an attack succeeds when the unit's penalty falls; that decides here, too. ``KILLED`` is a threshold of our own,
whose claim is apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part
from network_surgery.study.bench.rows import Measured, Row, Rows, Values
from network_surgery.study.bench.tables import cross, deviation, table
from network_surgery.study.evidence.significance import half_interval
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.attack import figures, numbers
from network_surgery.study.experiments.attack.attacker import Attack
from network_surgery.study.experiments.attack.measure import EARLY, HARD, LAYERS, NETWORKS, NONE, PARTS, PER_EPOCH
from network_surgery.study.experiments.attack.numbers import AFTER, FLOOR, KILLED, SCORES, Attacked, mean, rank

RELU, NORM, TANH, LONG = NETWORKS
#: The loss counts as unchanged within this many nats.
SAME_LOSS = 0.05
#: A rank correlation above this is called a good one.
RANKED = 0.9
Cell = Callable[[str, list[str]], str]


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    units = Attacked(measured.rows)
    return {
        "trained_on": trained_on(measured, units),
        "attacked_at": attacked_at(measured),
        "fall_claims": fall_claims(units),
        "fallen": cross("network", NETWORKS, {each: [each] for each in LAYERS} | {"all layers": LAYERS},
                        lambda name, layers: count(units, name, [], layers)),
        "attacked": figures.draw_attack(units),
        "ends": figures.ends(units),
        "penalties": penalties(units),
        "kill_claims": [claim("fewer of the attacked units are killed than with ReLU", "our threshold",
                              more_than_relu(units, KILLED), -1, unit="points")],
        "course_claims": course_claims(units),
        "consequences": consequences(units),
        "rank_claims": rank_claims(units),
        "ranking": ranking(units),
        "alone": alone(measured.rows),
        **counts(units),
    }  # fmt: skip


def claim(text: str, source: str, differences: Mapping[str, Values], *how: Any, **more: Any) -> Claim:
    """A claim on the seeds whose runs did not diverge."""
    return Claim(text, source, {name: each[np.isfinite(each)] for name, each in differences.items()}, *how, **more)


def fall_claims(units: Attacked) -> list[Claim]:
    """Whether MRP falls, the thesis's measure: mean over a network's attacks, by the attacked unit's layer."""

    def change(name: str, *layers: str) -> dict[str, Values]:
        return {f"{name}, {layer}": units.effect(name, layers=[layer]) for layer in layers}

    return [
        claim("an attack lowers MRP with BatchNorm", "3.4", change(NORM, *LAYERS), -1, unit="factor"),
        claim("an attack lowers MRP with ReLU in conv2", "3.6: two of four units die", change(RELU, "conv2"), -1,
              unit="factor"),
        claim("an attack raises MRP with ReLU in conv1", "3.6: most units gain", change(RELU, "conv1"), unit="factor"),
        claim("an attack lowers MRP with ReLU in fc1", "not in the thesis", change(RELU, "fc1"), -1, unit="factor"),
        claim("×1000 lowers MRP with tanh", "3.5: by half or more, after longer training", change(LONG, *LAYERS), -1,
              unit="factor"),
        claim("more of the attacked units end with a lower MRP than with ReLU", "3.7, of bounded outputs",
              more_than_relu(units, 1.0), unit="points"),
    ]  # fmt: skip


def more_than_relu(units: Attacked, below: float) -> dict[str, Values]:
    """By how much the share of the units that end below this fraction exceeds that with ReLU by the same attacks."""
    return {
        name: units.fallen(name, below=below) - units.fallen(RELU, units.attacks(name), below) for name in (NORM, LONG)
    }


def course_claims(units: Attacked) -> list[Claim]:
    """How hard and when, and whether it shows. Means over the layers, and over the attacks where none is named."""

    def more(name: str, one: Attack, other: Attack) -> Values:
        return units.effect(name, [one.name]) - units.effect(name, [other.name])

    pairs = itertools.combinations(HARD, 2)
    doses = {f"×{hard.multiplier:g} / ×{soft.multiplier:g}": more(NORM, hard, soft) for soft, hard in pairs}
    early = {name: more(name, EARLY, HARD[1]) for name in (TANH, RELU, NORM)}
    loss = {f"{name}, {each}": units.effect(name, [each], "loss") for name in NETWORKS for each in units.attacks(name)}
    return [
        claim("with BatchNorm MRP falls further with the multiplier", "3.4.2", doses, -1, unit="factor"),
        claim("×100 from iteration 50 leaves more MRP than from 1,500", "3.5.1, of tanh", early, unit="factor"),
        claim("the L1 norm of the attacked unit's weights is larger right after", "3.4",
              {name: units.effect(name, [], "in_l1", AFTER) for name in NETWORKS}, unit="factor"),
        claim("the attacked unit's output gradient is smaller at the end", "3.4",
              {name: units.effect(name, [], "gradient") for name in NETWORKS}, -1, unit="factor"),
        claim("where the attacked unit gains MRP, the others of its layer lose some (rank correlation)",
              "3.7, not tried there", {name: units.others(name) for name in (RELU, NORM, TANH)}, -1),
        claim(f"the loss does not show an attack (at most {SAME_LOSS:g} nats)", "3.4, 3.6", loss, 0, margin=SAME_LOSS),
    ]  # fmt: skip


def rank_claims(units: Attacked) -> list[Claim]:
    """Which score ranks the units of a layer as MRP does, at the end: Spearman's correlation, mean over layers."""
    rho = {
        f"{name}, {words}": mean(units.over_layers(name, rank, attacks))
        for name in NETWORKS for words, attacks in (("alone", [NONE]), ("attacked", units.attacks(name)))
    }  # fmt: skip

    def ahead(name: str, score: str) -> Values:
        return mean(units.over_layers(name, rank) - units.over_layers(name, partial(rank, score=score)))

    return [
        claim(f"MRS ranks units as MRP does: correlation above {RANKED:g}", "3.7", rho, margin=-RANKED),
        *(claim(f"MRS ranks units more like MRP than {words} does", "3.7", {each: ahead(each, at) for each in NETWORKS})
          for at, words in SCORES.items() if at != "mrs"),
    ]  # fmt: skip


def attacked_at(measured: Measured) -> str:
    """When the multiplied iterations were, by the rows; and by the attacks' names, where that is something else."""
    begun, apart = dict[str, int](), 0.0
    named = {each.name: each for network in NETWORKS.values() for each in network.attacks}
    for row in measured.rows.where(kind="unit"):
        if row["before"]:
            begun[row["attack"]] = row["iteration"]
        elif row["after"]:
            attack = named[row["attack"]]
            apart = max(apart, (row["iteration"] - begun[row["attack"]]) / attack.times)
    order = sorted(begun, key=lambda name: named[name].start)
    here = list_values(f"{begun[name]:,}" for name in order)
    there = list_values(f"{named[name].start:,}" for name in order)
    names = f" (named {there}, after epochs of {PER_EPOCH} iterations)" if here != there else ""
    return (
        f"{apart:.0f} from one to the next (for plain SGD this is the learning rate), from iteration {here} on{names}"
    )


def list_values(words: Iterable[str]) -> str:
    """The different ones, such as "1, 2 or 3"."""
    *first, last = dict.fromkeys(words)
    return " or ".join(filter(None, (", ".join(first), last)))


def trained_on(measured: Measured, units: Attacked) -> str:
    """The images, the training and how it ended, in words."""
    facts, ends = measured.facts, {"kind": "unit", "layer": LAYERS[0], "end": True}
    accuracy = {
        name: measured.rows.grid("accuracy_alone", network=name, attack=units.attacks(name)[0], **ends)
        for name in NETWORKS
    }
    return (
        f"on {facts['train']:,} images of {measured.about['options']['label']}: plain SGD {evci.RATE:g}, batches of "
        f"{evci.BATCH}, {NETWORKS[RELU].epochs} epochs of {facts['per_epoch']:,} iterations; "
        f"{len(measured.rows.distinct('seed'))} seeds. Everything is measured on {facts['validation']:,} other images, "
        "in evaluation mode. Accuracy at the end: "
        f"{', '.join(f'{name} {deviation(each, 1, 100)} %' for name, each in accuracy.items())}"
    )


def by_attack(units: Attacked, columns: Mapping[str, Cell]) -> str:
    """A table with a line for each network and attack."""
    lines = [
        [name, attack, *(cell(name, [attack]) for cell in columns.values())]
        for name in NETWORKS for attack in units.attacks(name)
    ]  # fmt: skip
    return table(["network", "attack", *columns], lines, words=2)


def penalties(units: Attacked) -> str:
    """What became of the attacked units' MRP, and by their layer at the end."""

    def of_layer(layer: str, name: str, attacks: list[str]) -> str:
        middle = mean(units.effect(name, attacks, layers=[layer])[None])[0]
        return f"{math.exp(middle):.2f}: {count(units, name, attacks, [layer])}"

    columns: dict[str, Cell] = {
        "right after": lambda *which: factor(units.effect(*which, "mrp", AFTER)),
        "at the end": lambda *which: factor(units.effect(*which)),
        "the same, mean before activation": lambda *which: factor(units.effect(*which, "mrp_before")),
        "lower (killed)": lambda *which: count(units, *which),
    }
    return by_attack(units, columns | {layer: partial(of_layer, layer) for layer in LAYERS})


def consequences(units: Attacked) -> str:
    """What else became of the attacked units, and of the network."""
    return by_attack(units, {
        "L1 of weights, right after": lambda *which: factor(units.effect(*which, "in_l1", AFTER)),
        "output gradient": lambda *which: factor(units.effect(*which, "gradient")),
        "flat outputs": lambda *which: interval(units.effect(*which, "flat")),
        "loss": lambda *which: interval(1000 * units.effect(*which, "loss")),
        "accuracy": lambda *which: interval(100 * units.effect(*which, "accuracy")),
    })  # fmt: skip


def counts(units: Attacked) -> dict[str, str]:
    """What is counted over all attacked units, in words."""

    def every(number: Callable[[str], Values]) -> Values:
        return np.concatenate([number(name).ravel() for name in NETWORKS])

    def largest(row: Row) -> bool:
        return bool(np.argmax(row["in_l1"]) == row["unit"])

    killed = math.log(KILLED)
    end, after = every(units.changes), every(lambda name: units.changes(name, when=AFTER))
    gradient = every(lambda name: units.changes(name, field="gradient"))
    large = every(lambda name: units.over_layers(name, largest, units.attacks(name))) == 1
    alone = every(lambda name: units.over_layers(name, numbers.lowest))
    attacked = every(lambda name: units.over_layers(name, numbers.lowest, units.attacks(name)))
    reached, idle = np.isfinite(attacked), sum(row["mrp_alone"] <= FLOOR for row in units.rows.where(before=True))
    return {
        "excluded": f"In {idle} attacked runs the unit has an MRP of {FLOOR:g} at most when the attack begins; "
        f"{(~reached).sum()} of {reached.size} attacked runs diverged and are left out.",
        "persistence": f"Of {(after < killed).sum()} units that are killed right after an attack, "
        f"{((after < killed) & (end < killed)).sum()} are so at the end (3.2: what is dead stays dead).",
        "norms": f"A unit with a low MRP may have a large norm (3.7): of {(end < 0).sum()} attacked units that end "
        f"lower, {((end < 0) & large).sum()} have the largest incoming norm (L1) of their layer. A frozen unit need "
        f"not be dead (3.4): of {(gradient < killed).sum()} whose output gradient ends below {KILLED:g} of what it is "
        f"without attack, {((gradient < killed) & (end > killed)).sum()} keep more than that of their MRP.",
        "lowest": f"The unit with the lowest MRS is one with the lowest MRP (3.7: always) in {alone.sum():.0f} of "
        f"{alone.size} layers without attack, and in {np.nansum(attacked):.0f} of {reached.sum()} that were attacked.",
    }


def ranking(units: Attacked) -> str:
    """Spearman's correlation with MRP, and how often the lowest unit is the lowest, without attack."""
    lines = []
    for name in NETWORKS:
        mrs = [[units.over_layers(name, each, part=part) for each in (rank, numbers.lowest)] for part in PARTS]
        others = [units.over_layers(name, partial(rank, score=score)) for score in list(SCORES)[1:]]
        for at, layer in enumerate(LAYERS):
            cells = [f"{deviation(rho[:, at], 3)} ({hits[:, at].sum():.0f} / {len(hits)})" for rho, hits in mrs]
            lines.append([name, layer, *cells, *(f"{rho[:, at].mean():.2f}" for rho in others)])
    columns = [*(f"MRS, {part}" for part in PARTS), *(f"{words}, end" for words in list(SCORES.values())[1:])]
    return table(["network", "layer", *columns], lines, words=2)


def alone(rows: Rows) -> str:
    """Networks without attack at the end: how MRP is distributed, and units that are dead or frozen."""
    lines = []
    for name, layer in itertools.product(NETWORKS, LAYERS):
        each = rows.where(kind="layer", network=name, layer=layer, attack=NONE, part="end")
        last = np.array([row["mrp"] for row in each])
        gone = (sum(numbers.idle(row, signal) for row in each) for signal in ("mrs", "largest"))
        lines.append([
            name, layer, f"{last.mean():.4f}", f"{np.median(last):.4f}", f"{last.min():.1e} – {last.max():.2f}",
            f"{np.mean(last.std(axis=1) / last.mean(axis=1)):.2f}", *(f"{units} / {last.size}" for units in gone),
            f"{np.mean([row['flat'] for row in each]):.0%}",
        ])  # fmt: skip
    columns = ("MRP, mean", "median", "range", "deviation / mean", "dead", "frozen", "flat outputs")
    return table(["network", "layer", *columns], lines, words=2)


def interval(values: Values, word: Callable[[float], str] = "{:+.2f}".format) -> str:
    """The mean over seeds with its 95 % interval (Student's t)."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return ""
    middle, half = float(values.mean()), float(half_interval(values))
    return f"{word(middle)} [{word(middle - half)}, {word(middle + half)}]"


def factor(values: Values) -> str:
    """The same of logarithms, as factors."""
    return interval(values, lambda value: f"{math.exp(value):.3f}")


def count(units: Attacked, name: str, attacks: Sequence[str], layers: Sequence[str] = LAYERS) -> str:
    """How many of the attacked units end with a lower MRP, and how many of these are killed."""
    each = units.changes(name, attacks, layers=layers)
    return f"{(each < 0).sum()} of {np.isfinite(each).sum()} ({(each < math.log(KILLED)).sum()})"
