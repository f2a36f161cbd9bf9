"""The tests, the tables and the verdicts, in markdown."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.evidence.significance import Difference, family
from network_surgery.study.experiments.pcns.figures import correlation
from network_surgery.study.experiments.pcns.orders import ORDERS
from network_surgery.study.experiments.pcns.orders import THRESHOLDS as ORDERED_AT
from network_surgery.study.experiments.pcns.parallel import Results
from network_surgery.study.experiments.pcns.prediction import IMAGES, METHODS
from network_surgery.study.experiments.pcns.samples import DROPPED, KEEP, Emitted, expected
from network_surgery.study.experiments.pcns.shrinking import (
    EIGEN,
    OTHERS,
    PIVOTED,
    THRESHOLDS,
    UNINTERRUPTED,
    Found,
    epochs_of,
)
from network_surgery.study.experiments.pcns.trained import BATCH, SETTINGS, SHOWN

#: (setting, threshold, arm, epochs after): accuracy of PCNS with the pivoted basis minus that of the arm.
Tests = dict[tuple[str, float, str, int], Difference]


def tests(found: Found) -> Tests:
    """PCNS against every other arm, right after and at the end: one family for Holm."""
    differences: dict[tuple[str, float, str, int], NDArray[np.float64]] = {}
    for setting, threshold, arm in found:
        if arm in (PIVOTED, UNINTERRUPTED):
            continue
        for epoch in (0, last(found)):
            ours, theirs = (found[setting, threshold, each][f"after {epoch}"] for each in (PIVOTED, arm))
            differences[setting, threshold, arm, epoch] = ours - theirs
    for setting in settings_of(found):
        for threshold in THRESHOLDS:
            end = f"after {last(found)}"
            differences[setting, threshold, UNINTERRUPTED, last(found)] = (
                found[setting, threshold, PIVOTED][end] - found[setting, 0.0, UNINTERRUPTED][end]
            )
    return family({key: values for key, values in differences.items() if not np.isnan(values).any()})


def last(found: Found) -> int:
    """The last epoch after the operation that was looked at."""
    return max(max(epochs_of(record)) for record in found.values())


def settings_of(found: Found) -> list[str]:
    return list(dict.fromkeys(key[0] for key in found))


def layers_of(found: Found, setting: str) -> list[str]:
    """The layers in the order in which they are shrunk."""
    return [name[6:] for name in found[setting, THRESHOLDS[0], PIVOTED] if name.startswith("units ")]


def report(results: Results, drawings: Mapping[str, Drawing]) -> str:
    """The whole of it: what was done, what holds, the tables."""
    found, decided = results.found, tests(results.found)
    names = settings_of(found)
    before = {setting.name: setting.before for setting in SETTINGS}
    chosen = "; ".join(f"{name}: {before.get(name, '?')}" for name in names)
    figures = {name: f"![{drawing.title}]({name}.png)\n\n{drawing.caption}" for name, drawing in drawings.items()}
    tables = "\n\n".join(f"### {name}\n\n{_walk(found, name)}\n\n{_arms(found, decided, name)}" for name in names)
    return f"""# PCNS, tried

P. Rolet's draft (*PCNS: Principal Component Network Shrinking*, 2022) ends where its experiments should begin. This is
its section 4, and the questions of its sections 3 and 5 that numbers can answer. Data: {results.about},
{results.trained_on:,} training and {results.tested_on:,} test images. Networks: pixels – 256 – 128 – 10 with
LeakyReLU (slope 0.01) or tanh; and a CNN of 16 and 32 channels with BatchNorm and ReLU and a dense layer of 64. Adam
1e-3, batches of {BATCH}; signals: {SHOWN} training images at a time until there are ten rows for each unit. Epochs
before the operation: {chosen}. {results.seeds} seeds set initial weights, batches and random choices; every arm of a
seed starts from the same weights and optimizer state, which follows the units. The test images are read after every
epoch of every arm alike; nothing is chosen by them.

{figures["pcns"]}

## What holds

{chr(10).join(verdicts(results, decided))}

## Shrinking, layer by layer

The other removals leave as many units in each layer as PCNS with the pivoted basis. Accuracies in %, mean ± standard
deviation over {results.seeds} seeds; differences in points, paired by seed, with 95 % intervals (Student's t); * marks
p < 0.05 after Holm over all {len(decided)} tests of this page. Seconds are CPU seconds of one thread.

{tables}

## In which order

Accuracy right after in % (and units kept in all), mean over seeds; no training. *Last to first* fits each layer to the
outputs of the unchanged network, *at once* does so from one forward pass for all layers, *first to last* fits each to
what the shrunk layers before it make.

{_orders(results)}

## How many samples

{figures["pcns_samples"]}

{_samples(results)}

The draft's own form solves as many weights for each unit as the layer has inputs, so it is these that count. Accuracy
right after in %, by the number of images shown at once, at a dropped variance of {DROPPED:g}:

{emissions(results.emitted)}

## The loss, predicted

{figures["pcns_prediction"]}

{correlation(results)} *Tried* is the change on the {IMAGES:,} images that the prediction looked at.

{_predictions(results)}

`python -m network_surgery.study.experiments.pcns --data {results.source} --seeds {results.seeds}`, on CPU; torch
{torch.__version__}, Python {platform.python_version()}.
"""


def verdicts(results: Results, decided: Tests) -> list[str]:
    """Each assumption and claim with its finding and the figures that decide it."""
    found = results.found
    return [
        _redundancy(found),
        _generalizes(found),
        *_against_others(found, decided),
        *_literal(found),
        _order(results),
        _sample_rule(results),
        _predicted(results),
    ]


def _redundancy(found: Found) -> str:
    told = []
    for setting in settings_of(found):
        for layer in reversed(layers_of(found, setting)):
            counts = [f"{found[setting, t, PIVOTED][f'units {layer}'].mean():.0f}" for t in THRESHOLDS]
            told.append(f"{setting}, {layer}: {' / '.join(counts)}")
    return (
        "- **Redundancy (assumption 1)** is known before anything is changed. Units that PCNS keeps at a dropped "
        f"variance of {' / '.join(f'{t:g}' for t in THRESHOLDS)}: {'; '.join(told)}."
    )


def _generalizes(found: Found) -> str:
    ratios = []
    for setting in settings_of(found):
        for threshold in THRESHOLDS:
            record = found[setting, threshold, PIVOTED]
            for layer in layers_of(found, setting):
                ratios += list(record[f"held-out error {layer}"] / record[f"error {layer}"])
    values = np.array([ratio for ratio in ratios if np.isfinite(ratio)])
    finding = "holds" if np.median(values) < 1.25 else "does not hold"
    return (
        f"- **{finding}**: What is good on the batch is good in general (2a). Error on samples that the fit has not "
        f"seen over that on the batch: median {np.median(values):.2f}, from {values.min():.2f} to {values.max():.2f} "
        f"over {len(values)} fits with the pivoted basis."
    )


def _against_others(found: Found, decided: Tests) -> list[str]:
    lines = []
    for epoch, when in ((0, "right after"), (last(found), f"{last(found)} epochs later")):
        for arm in OTHERS:
            tested = {key: test for key, test in decided.items() if key[2] == arm and key[3] == epoch}
            signs = [test.sign for test in tested.values()]
            mean = 100 * float(np.mean([test.mean for test in tested.values()]))
            lines.append(
                f"- {_finding(signs)}: PCNS (pivoted) is better than {arm} to the same sizes, {when}: {mean:+.2f} "
                f"points in the mean of {len(signs)} settings and thresholds; shown better in {signs.count(1)}, worse "
                f"in {signs.count(-1)}."
            )
    signs = [test.sign for key, test in decided.items() if key[2] == UNINTERRUPTED]
    told = "; ".join(
        f"{setting}, {threshold:g}: {test.words(100)}"
        for (setting, threshold, arm, _), test in decided.items()
        if arm == UNINTERRUPTED
    )
    finding = (
        "**does not hold**" if 1 not in signs and -1 in signs else "**undecided**" if 1 not in signs else "**holds**"
    )
    lines.append(f"- {finding}: The shrunk network ends better than the one that was left alone. Points: {told}.")
    return lines


def _finding(signs: Sequence[int]) -> str:
    if not signs:
        return "**not tried**"
    if all(sign > 0 for sign in signs):
        return "**holds**"
    if 1 in signs and -1 not in signs:
        return f"**holds in {signs.count(1)} of {len(signs)}**"
    return (
        "**does not hold**" if -1 in signs and 1 not in signs else "**undecided**" if 1 not in signs else "**depends**"
    )


def _literal(found: Found) -> list[str]:
    lines = []
    for setting in settings_of(found):
        told = []
        for threshold in THRESHOLDS:
            ours, theirs = (found.get((setting, threshold, arm)) for arm in (PIVOTED, EIGEN))
            if ours is None or theirs is None:
                continue
            told.append(
                f"{100 * theirs['after 0'].mean():.1f} % at {threshold:g} (pivoted: {100 * ours['after 0'].mean():.1f})"
            )
        if told:
            lines.append(
                f"- The draft's own form (eigen), {setting}, right after, from {SHOWN} images: {', '.join(told)}."
            )
        else:
            lines.append(f"- The draft's own form (eigen), {setting}: refused, for it cannot be had here.")
    return lines


def _order(results: Results) -> str:
    spans, refused = [], 0
    for part in results.ordered:
        for setting, basis, threshold, order in part:
            if order != ORDERS[0]:
                continue
            got = [part[setting, basis, threshold, each] for each in ORDERS]
            refused += basis == "eigen" and got[0] is not None and got[1] is None
            if basis == "pivoted":
                values = [each[0] for each in got if each is not None]
                spans.append(max(values) - min(values))
    return (
        f"- **The order {'matters' if np.median(spans) > 0.01 else 'matters little'}** with the pivoted basis: between "
        f"the best and the worst order of a network lie {100 * float(np.median(spans)):.2f} points of accuracy in the "
        f"median, {100 * max(spans):.2f} at most. "
        f"With the eigen basis one forward pass for all layers was refused {refused} times: the new weights of a "
        "layer are fitted to inputs that the layer before it no longer makes."
    )


def _sample_rule(results: Results) -> str:
    told, at_five = [], 1.0
    for ratio in (1.25, 5.0, 10.0):
        values = [
            each[ratio][2] / each[ratio][1] for part in results.sampled for each in part.values() if ratio in each
        ]
        if values:
            at_five = float(np.mean(values)) if ratio == 5 else at_five
            told.append(f"× {np.mean(values):.2f} at {ratio:g} (expected × {expected(1000 * ratio, 1000 * KEEP):.2f})")
    return (
        f"- **{'holds' if at_five < 1.2 else 'does not hold'}**: 5 to 10 samples for each unit are enough (3.2), more "
        f"help little. Error on new images over that on the sample, mean over layers: {', '.join(told)}."
    )


def _predicted(results: Results) -> str:
    points = [point for part in results.points for point in part]
    small = [p for p in points if 1e-3 < p.actual < 0.1]
    large = [p for p in points if p.actual >= 0.1]
    factors = [
        float(np.median([p.predicted / p.actual for p in group])) if group else float("nan") for group in (small, large)
    ]
    return (
        f"- **{'holds' if 0.8 < factors[0] < 1.25 else 'does not hold'}**: A change of the loss can be predicted while "
        f"it is small. Predicted over measured, median: {factors[0]:.2f} where the loss rises by 0.001 to 0.1 "
        f"({len(small)} operations), {factors[1]:.2f} where it rises by more ({len(large)}), for the network is not "
        "linear that far."
    )


def _walk(found: Found, setting: str) -> str:
    layers = layers_of(found, setting)
    lines = [
        "| dropped variance | units | parameters | before | "
        + " | ".join(f"after {layer}" for layer in layers)
        + " | operation / epoch | epoch after / before |",
        "|--:|---|--:|--:|" + "--:|" * (len(layers) + 2),
    ]
    whole = found[setting, 0.0, UNINTERRUPTED]["parameters"].mean()
    for threshold in THRESHOLDS:
        record = found[setting, threshold, PIVOTED]
        sizes = " – ".join(f"{record[f'units {layer}'].mean():.0f}" for layer in reversed(layers))
        steps = [f"{100 * record[f'after {layer}'].mean():.2f}" for layer in layers]
        lines.append(
            f"| {threshold:g} | {sizes} | {record['parameters'].mean() / whole:.0%} | "
            f"{100 * record['before'].mean():.2f} | "
            f"{' | '.join(steps)} | {(record['operation seconds'] / record['epoch seconds before']).mean():.1%} | "
            f"{(record['epoch seconds'] / record['epoch seconds before']).mean():.2f} |"
        )
    return "\n".join(lines)


def _arms(found: Found, decided: Tests, setting: str) -> str:
    epochs = [epoch for epoch in (0, 1, 2, last(found)) if epoch <= last(found)]
    titles = ["right after" if epoch == 0 else f"{epoch} epoch{'s' * (epoch > 1)}" for epoch in epochs]
    lines = [
        f"| dropped variance | arm | {' | '.join(titles)} | PCNS − arm, right after | PCNS − arm, end |",
        "|--:|---|" + "--:|" * (len(epochs) + 2),
    ]  # fmt: skip
    for (name, threshold, arm), record in found.items():
        if name != setting:
            continue
        rows = [100 * record[f"after {epoch}"] for epoch in epochs]
        cells = [f"{np.nanmean(row):.2f} ± {np.nanstd(row, ddof=1):.2f}" for row in rows]
        against = [decided.get((name, threshold, arm, epoch)) for epoch in (0, last(found))]
        cells += ["" if test is None else test.words(100) for test in against]
        lines.append(f"| {threshold:g} | {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _orders(results: Results) -> str:
    lines = [f"| network | basis | dropped variance | {' | '.join(ORDERS)} |", "|---|---|--:|" + "--:|" * len(ORDERS)]
    for setting in settings_of(results.found):
        for basis in ("pivoted", "eigen"):
            for threshold in ORDERED_AT:
                cells = []
                for order in ORDERS:
                    got = [part.get((setting, basis, threshold, order)) for part in results.ordered]
                    have = [each for each in got if each is not None]
                    cells.append(
                        f"{100 * np.mean([each[0] for each in have]):.2f} ({np.mean([each[1] for each in have]):.0f})"
                        if len(have) == len(got)
                        else "refused"
                    )
                lines.append(f"| {setting} | {basis} | {threshold:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _samples(results: Results) -> str:
    lines = [
        "| network | layer | samples for each unit | components | error on the sample | on new images | ratio | "
        "expected |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for setting, layer in results.sampled[0]:
        for ratio in results.sampled[0][setting, layer]:
            values = np.array([part[setting, layer][ratio] for part in results.sampled]).mean(axis=0)
            lines.append(
                f"| {setting} | {layer} | {ratio:g} | {values[0]:.1f} | {values[1]:.3f} | {values[2]:.3f} | "
                f"{values[2] / values[1]:.2f} | {expected(1000 * ratio, 1000 * KEEP):.2f} |"
            )
    return "\n".join(lines)


def emissions(emitted: Sequence[Emitted]) -> str:
    """A row for each network and basis, a column for each number of images."""
    keys = list(emitted[0])
    counts = sorted({key[2] for key in keys})
    lines = [
        f"| network | basis | {' | '.join(f'{count:,}' for count in counts)} |",
        "|---|---|" + "--:|" * len(counts),
    ]
    for setting, basis in dict.fromkeys(key[:2] for key in keys):
        if (setting, "eigen", counts[0]) not in keys:
            continue
        rows = [100 * np.array([part[setting, basis, count] for part in emitted]) for count in counts]
        cells = [f"{row.mean():.2f} ± {row.std(ddof=1):.2f}" for row in rows]
        lines.append(f"| {setting} | {basis} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _predictions(results: Results) -> str:
    lines = ["| network | method | operations | predicted / measured, median | quartiles |", "|---|---|--:|--:|---|"]
    points = [point for part in results.points for point in part if point.actual > 1e-3]
    for setting in settings_of(results.found):
        for method in METHODS:
            ratios = [p.predicted / p.actual for p in points if (p.setting, p.method) == (setting, method)]
            if ratios:
                low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
                lines.append(f"| {setting} | {method} | {len(ratios)} | {middle:.2f} | {low:.2f} – {high:.2f} |")
    return "\n".join(lines)
