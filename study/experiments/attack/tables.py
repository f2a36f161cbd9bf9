"""The tables, in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from network_surgery.study.experiments.attack.arms import Network
from network_surgery.study.experiments.attack.findings import (
    DOSES,
    SCORES,
    TIMES,
    against,
    compared,
    counts,
    dead,
    effects,
    frozen,
    lowest,
    majority,
    over_layers,
    rank,
    uneven,
)
from network_surgery.study.experiments.attack.results import Results

SCORE_NAMES = {
    "mrs": "MRS", "gradient": "output gradient", "in_l1": "L1 in", "in_l2": "L2 in", "out_l1": "L1 out",
    "out_l2": "L2 out",
}  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 2) -> str:
    """A markdown table; the first ``words`` columns are text, the others numbers."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * words + "--:|" * (len(head) - words)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def penalties(results: Results) -> str:
    """What became of the attacked units' MRP, by network and attack."""
    right, end, before = effects(results, "mrp", False), effects(results, "mrp"), effects(results, "mrp_before")
    signs, rows = majority(results), []
    for network in results.setting.networks:
        for attack in network.attacks:
            key, count = (network.activation, attack.name), counts(list(results.pairs(network, attack)))
            lower = f"{count.lower} / {count.units}{'*' if signs[key].sign else ''}"
            factors = [tests[key].factor() for tests in (right, end, before)]
            rows.append([*key, *factors, lower, f"{count.killed} / {count.units}"])
    head = ("network", "attack", "right after", "at the end", "the same, mean before activation", "lower", "killed")
    return table(head, rows)


def consequences(results: Results) -> str:
    """What else became of the attacked units, and of the network, by network and attack."""
    norm, gradient = effects(results, "in_l1", False), effects(results, "gradient")
    flat, loss, accuracy = (effects(results, name) for name in ("flat", "loss", "accuracy"))
    rows = [
        [
            *key,
            norm[key].factor(),
            gradient[key].factor(),
            flat[key].words(),
            loss[key].words(1000),
            accuracy[key].words(100),
        ]
        for key in norm
    ]
    head = ("network", "attack", "L1 of weights, right after", "output gradient", "flat outputs", "loss", "accuracy")
    return table(head, rows)


def by_layer(results: Results) -> str:
    """Geometric mean of the factor on MRP at the end, and how many are killed, by the attacked unit's layer."""
    rows = []
    for network in results.setting.networks:
        for attack in network.attacks:
            cells = []
            for layer in results.layers:
                pairs = [pair for pair in results.pairs(network, attack) if pair.layer == layer]
                factors = [float(pair.change("mrp")[-1]) for pair in pairs]
                count = counts(pairs)
                cells.append(f"{np.exp(np.nanmean(factors)):.2f} ({count.lower}, {count.killed})")
            rows.append([network.activation, attack.name, *cells])
    return table(["network", "attack", *results.layers], rows)


def differences(results: Results) -> str:
    """How hard, when, and which activation: factors between factors on MRP at the end."""
    rows = [
        [activation, one, other, test.factor()]
        for tests in (compared(results, DOSES), compared(results, TIMES))
        for (activation, one, other), test in tests.items()
    ]
    rows += [
        [f"{activation} / {first}", name, name, test.factor()]
        for (activation, first, name), test in against(results).items()
    ]
    return table(["network", "attack", "compared with", "factor"], rows, words=3)


def moments(results: Results, network: Network) -> dict[str, int]:
    """Rows of the records without attack: a tenth, half and the whole of the training."""
    iterations = results.alone(network, results.seeds[0], results.layers[0])["iteration"]
    return {
        name: int(np.abs(iterations - part * iterations[-1]).argmin())
        for name, part in (("10 %", 0.1), ("50 %", 0.5), ("end", 1.0))
    }


def ranking(results: Results) -> str:
    """Spearman's correlation with MRP, and how often the lowest unit is the lowest, without and after attack."""
    rows = []
    for network in results.setting.networks:
        at = moments(results, network)
        for number, layer in enumerate(results.layers):
            cells = []
            for row in at.values():
                rho = over_layers(results, network, partial(rank, score="mrs"), row)[:, number]
                first = over_layers(results, network, partial(lowest, score="mrs"), row)[:, number]
                cells.append(f"{rho.mean():.3f} ± {rho.std(ddof=1):.3f} ({first.sum():.0f} / {len(first)})")
            for score in SCORES[1:]:
                rho = over_layers(results, network, partial(rank, score=score))[:, number]
                cells.append(f"{rho.mean():.2f}")
            rows.append([network.activation, layer, *cells])
    head = ["network", "layer", *(f"MRS, {name}" for name in moments(results, results.setting.networks[0]))]
    return table([*head, *(f"{SCORE_NAMES[score]}, end" for score in SCORES[1:])], rows)


def attacked_ranking(results: Results) -> list[tuple[str, float, int, int]]:
    """(activation, mean rank correlation of MRS with MRP, lowest found, of how many) in attacked layers at the end."""
    found = []
    for network in results.setting.networks:
        records = [pair.attacked for attack in network.attacks for pair in results.pairs(network, attack)]
        records = [record for record in records if np.isfinite(record["mrp"][-1]).all()]
        rho = [rank(record, -1, "mrs") for record in records]
        hits = sum(lowest(record, -1, "mrs") for record in records)
        found.append((network.activation, float(np.mean(rho)), hits, len(records)))
    return found


def alone(results: Results) -> str:
    """Networks without attack at the end: how MRP is distributed, and units that are dead or frozen."""
    rows = []
    for network in results.setting.networks:
        for number, layer in enumerate(results.layers):
            records = [results.alone(network, seed, layer) for seed in results.seeds]
            last = np.array([record["mrp"][-1] for record in records])
            idle = np.array([[dead(record, -1), frozen(record, -1)] for record in records]).sum(axis=(0, 2))
            both = sum((dead(record, -1) & frozen(record, -1)).sum() for record in records)
            rows.append(
                [
                    network.activation, layer, f"{last.mean():.4f}", f"{np.median(last):.4f}",
                    f"{last.min():.1e} – {last.max():.2f}",
                    f"{over_layers(results, network, uneven)[:, number].mean():.2f}",
                    *(f"{count} / {last.size}" for count in idle), str(both),
                    f"{np.mean([record['flat'][-1].mean() for record in records]):.0%}",
                ]
            )  # fmt: skip
    head = (
        "network", "layer", "MRP, mean", "median", "range", "deviation / mean", "dead", "frozen", "both",
        "flat outputs",
    )  # fmt: skip
    return table(head, rows)


def accuracies(results: Results) -> str:
    """Of the networks without attack at the end, in %."""
    told = []
    for network in results.setting.networks:
        records = [results.alone(network, seed, results.layers[0]) for seed in results.seeds]
        last = 100 * np.array([record["accuracy"][-1] for record in records])
        told.append(f"{network.activation} {last.mean():.1f} ± {last.std(ddof=1):.1f} %")
    return ", ".join(told)
