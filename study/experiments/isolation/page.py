"""What the thesis says of EigenRemove and WeakExpand in isolation (Graham 2019, 4.2.1), asked of what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from network_surgery.ops.signals.signals import MOST_SAMPLES
from network_surgery.study.bench.claims import Claim, Verdict, judge
from network_surgery.study.bench.page import Part
from network_surgery.study.bench.rows import Measured, Values
from network_surgery.study.bench.tables import cross, deviation, table
from network_surgery.study.experiments.isolation import curves, figures
from network_surgery.study.experiments.isolation.curves import LOWEST, MIN_WEIGHT, RANKS, REPLACED, Layer, eigen
from network_surgery.study.experiments.isolation.random_weights import WHERE

#: Relative squared distances below this are rounding: of single precision, squared and summed.
ROUNDING = 1e-9
#: The sizes that tables show, as fractions of the layer; the rows have all.
SHOWN = (0.9, 0.75, 0.5, 0.25, 0.1)
#: Statements about one layer: text and source, and differences ``[networks]`` by what is compared.
Statements = dict[tuple[str, str], dict[str, Values]]


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows, options, facts = measured.rows, measured.about["options"], measured.facts
    shrunk, grown = (curves.layers(rows, kind) for kind in ("shrink", "grow"))
    random, trained = claims(WHERE, shrunk[:1], grown[:1]), claims("trained layers", shrunk[1:], grown[1:])
    refused = dict.fromkeys(f"{row['where']}, {row['method']}: {row['why']}" for row in rows.where(kind="missing"))
    accuracy = rows.grid("accuracy", kind="trained")[:, 0]
    return {
        **{name: str(options[name]) for name in ("width", "step", "model", "label", "epochs")},
        **{name: f"{facts[name]:,}" for name in ("train", "validation")},
        "networks": str(len(rows.distinct("seed", kind="spectrum", where=WHERE))), "runs": str(len(accuracy)),
        "others": str(min(4 * options["width"], MOST_SAMPLES)), "accuracy": deviation(accuracy, 2, 100),
        "signal_images": str(min(facts["signal_images"], facts["train"])),
        "overview": to_overview([*judge(random), *judge(trained)]),
        "shrinking": figures.shrinking([*shrunk[1:], shrunk[0]]),
        "shrunk": "\n\n".join(map(to_table, shrunk)),
        "grown": cross(
            "method", grown[0].relative, {layer.where: layer.relative for layer in grown},
            lambda name, each: f"{each[name].mean():.2g} ({each[name].max():.2g})" if name in each else None,
        ),
        "spectra": cross(
            "layer", rows.distinct("where", kind="spectrum"), {rank: rank for rank in RANKS.values()},
            lambda where, rank: f"{rows.grid('share', kind='spectrum', where=where, rank=rank).mean():.3f}",
        ),
        "refused": "; ".join(refused) or "none",
        "random_claims": random, "trained_claims": trained,
    }  # fmt: skip


def thesis(layer: Layer, weights: str) -> Statements:
    """The thesis's about ranks, of one form of EigenRemove; in the mean of all sizes unless one is named."""

    def error(rank: float, at: int | None = None) -> Values:
        return layer.error(eigen(rank, weights), at)

    def gap(rank: float, at: int) -> Values:
        return np.abs(error(rank, at) - layer.error(MIN_WEIGHT, at))

    half, quarter, most = (layer.nearest(fraction) for fraction in (0.5, 0.25, 0.125))
    units = [f"{size} units" for size in layer.sizes]
    statements = {
        "every reduction of rank adds error": {
            f"{RANKS[low]} − {RANKS[rank]}": error(low) - error(rank) for rank, low in itertools.pairwise(RANKS)
        },
        "at the smallest cut full rank has less error than the lowest ranks": {
            f"{RANKS[low]} − 1, {units[-1]}": error(low, -1) - error(1.0, -1) for low in LOWEST
        },
        "the curve of a low rank is flatter": {
            f"rise of 1 − of {RANKS[low]}": error(1.0, 0) - error(1.0, -1) - error(low, 0) + error(low, -1)
            for low in LOWEST
        },
        "for drastic cuts a low rank (δ < 0.5) is the better choice": {
            f"1 − {RANKS[low]}, {units[at]}": error(1.0, at) - error(low, at)
            for at in dict.fromkeys((quarter, most)) for low in (0.25, *LOWEST)
        },
        "down to an eighth of the units EigenRemove and MinWeight converge": {
            f"gap of {RANKS[low]}, {units[half]} − {units[most]}": gap(low, half) - gap(low, most)
            for low in LOWEST if half != most
        },
        "EigenRemove below full rank has a higher error than MinWeight": {
            f"{RANKS[low]} − MinWeight": error(low) - layer.error(MIN_WEIGHT) for low in curves.REDUCED
        },
        "EigenRemove does better than replacing both matrices by random ones": {
            f"replacement − {RANKS[rank]}": layer.error(REPLACED) - error(rank) for rank in RANKS
        },
    }  # fmt: skip
    return {(f"{text} ({weights} weights)", "4.2.1"): each for text, each in statements.items()}


def others(layer: Layer) -> Statements:
    """What the thesis does not ask."""

    def less(better: str, worse: str) -> dict[str, Values]:
        return {f"{worse} − {better}": layer.error(worse) - layer.error(better)}

    original = {RANKS[low]: layer.error(eigen(low, "reduced")) - layer.error(eigen(low)) for low in curves.REDUCED}
    statements = {
        "EigenRemove has less error with original weights (Algorithm 2) than with reduced ones (Listing 6.1)": original,
        "MinWeight has less error than random removal": less(MIN_WEIGHT, curves.RANDOM_REMOVE),
        "leaving the mean in the bias has less error than MinWeight of the same units": less(
            curves.MEAN_L2, MIN_WEIGHT
        ),
        "units chosen by variance have less error than by l2, the mean left": less(
            curves.MEAN_VARIANCE, curves.MEAN_L2
        ),
        "PCNS has less error than mean replacement by variance": less(curves.PIVOTED, curves.MEAN_VARIANCE),
    }
    return {(text, ""): each for text, each in statements.items()}


def claims(about: str, shrunk: Sequence[Layer], grown: Sequence[Layer]) -> list[Claim]:
    """Every statement about these layers, which are ``about``; conditions begin with the layer."""
    same = "at full rank EigenRemove is MinWeight, digit for digit", "4.2.1"
    still = "WeakExpand and ZeroExpand move the output by rounding alone", "4.2.1"
    known: Statements = {}
    for layer in shrunk:
        full, least = (layer.relative.get(name, np.full((1, 1), np.nan)) for name in (eigen(1.0), MIN_WEIGHT))
        apart = {same: {"largest difference": np.abs(full - least).max(axis=1)}}
        for statement, each in (apart | thesis(layer, "original") | thesis(layer, "reduced") | others(layer)).items():
            here = {f"{layer.where}: {what}": each[what] for what in each if not np.isnan(each[what]).any()}
            known[statement] = known.get(statement, {}) | here
    for layer in grown:
        moved = [values.max(axis=1) for name, values in layer.relative.items() if name != REPLACED]
        known[still] = known.get(still, {}) | ({f"{layer.where}: largest": np.max(moved, axis=0)} if moved else {})
    exact = {same: 0.0, still: ROUNDING}
    return [
        Claim(f"{about}: {key[0]}", key[1], each, 0, exact[key], True) if key in exact
        else Claim(f"{about}: {key[0]}", key[1], each)
        for key, each in known.items()
    ]  # fmt: skip


def to_overview(verdicts: Sequence[Verdict]) -> str:
    """The verdict on each statement layer by layer, after the correction over its family."""
    words: dict[str, dict[str, str]] = {}
    for verdict in verdicts:
        known = words.setdefault(verdict.claim.text.partition(": ")[2], {})
        for where, each in itertools.groupby(verdict.results.items(), lambda result: result[0].partition(":")[0]):
            known[where] = Verdict(verdict.claim, dict(each)).word
    places = list(dict.fromkeys(where for each in words.values() for where in each))
    lines = [[text, *(each.get(where) for where in places)] for text, each in words.items()]
    return table(["statement", *places], lines, words=1 + len(places))


def to_table(layer: Layer) -> str:
    """The relative squared distance of every removal, and in brackets the accuracy right after."""

    def cell(name: str, at: int) -> str:
        accuracy = f" ({100 * layer.accuracy[name][:, at].mean():.1f})" if layer.accuracy else ""
        return deviation(layer.relative[name][:, at], 4) + accuracy

    sizes = {str(layer.sizes[at]): at for at in sorted(map(layer.nearest, SHOWN), reverse=True)}
    return cross(f"{layer.where} ({layer.units} units)", layer.relative, sizes, cell)
