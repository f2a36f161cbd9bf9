"""The page of the thesis's application study: its tables beside a study's own numbers, and what holds of its claims."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from network_surgery.study.bench.claims import Claim, to_table
from network_surgery.study.bench.tables import table
from network_surgery.study.evidence.drawing import Drawing, percent
from network_surgery.study.evidence.significance import family
from network_surgery.study.experiments.thesis import figures
from network_surgery.study.experiments.thesis.trainings import (
    MEASURES,
    NAMES,
    PAIRS,
    PRINTED,
    PRINTED_P,
    PRINTED_VARIANCE,
    RATIOS,
    TABLES,
    UNRECORDED,
    Results,
    Trainings,
    as_in_the_thesis,
    as_printed,
    differences,
    gathered,
    pairs,
    values,
    without_operation,
)

#: Loss factors this close count as the same; an operation this short takes much less than an epoch.
SAME, SHORT = 0.05, 0.1


def thesis(results: Results) -> tuple[str, dict[str, Drawing]]:
    """The page in markdown, and its figures, of the content of ``results.json``."""
    drawings = figures.draw(results)
    return write(results, drawings), drawings


def write(results: Results, drawings: Mapping[str, Drawing]) -> str:
    """``page.md``, filled with tables, tests and claims made of the results."""
    found, cells = gathered(results), results["comparison"]["cells"]
    original = [cell["test_accuracy"] for cell in cells if cell["arm"] == "original" and "failure" not in cell]
    parts = {
        "trained": trained(results, found),
        "tables": "\n\n".join(part for number in TABLES for part in parts_of_table(results, found, number)),
        "original": original and f"The original network without any operation: {spread(original, 'accuracy')}.",
        "gaps": gaps(found),
        "tests": tests(found),
        "claims": to_table(claims(found)),
        "figures": "\n".join(f"![{drawing.title}](figures/{name}.png)" for name, drawing in drawings.items()),
    }
    template = Template((Path(__file__).parent / "page.md").read_text(encoding="utf-8"))
    return template.substitute({name: text or "" for name, text in parts.items()})


def trained(results: Results, found: Trainings) -> str:
    """What was trained, on what, how, how often and where."""
    settings, machine = results["settings"], results["machine"]
    devices = sorted({cell.get("device", "cpu") for cell in results["comparison"]["cells"]})
    seeds = {seed for members in found.values() for seed in members}
    return (
        f"{settings['model']} on {settings['data']}"
        + (f" ({settings['train_images']:,} training images)" if settings.get("train_images") else "")
        + f", {settings['epochs']} epochs, {settings['optimizer']} at {settings['learning_rate']:g}, batches of "
        f"{settings['batch_size']}, optimizer state {settings['optimizer_state']}, space {settings['space']}; "
        f"{sum(map(len, found.values()))} trainings with {len(seeds)} seeds; {', '.join(devices)}, "
        f"torch {machine['torch']}, Python {machine['python']}."
    )


def parts_of_table(results: Results, found: Trainings, number: str) -> list[str]:
    """One of the thesis's tables: means of this study, then the thesis's own statistic, both with what it prints."""
    pair, measure = TABLES[number]
    methods, idle = PAIRS[pair], without_operation(results)
    how = {
        "accuracy": "the median over its trainings",
        "factor": "the median of all recorded operations of all trainings pooled "
        f"({UNRECORDED} is operated on and not recorded)",
    }

    def beside(number: Callable[[str, float], str | None]) -> str:
        printed = {method: dict(zip(RATIOS, PRINTED[measure, method], strict=True)) for method in methods}
        return by_ratio(methods, lambda m, r: f"{number(m, r) or 'not run'} ({to_text(printed[m][r], measure)})")

    parts = [
        f"## Table {number}: {MEASURES[measure]} by ratio",
        beside(lambda method, ratio: spread(values(found, method, measure, ratio), measure)),
        f"The thesis's own statistic, {how[measure]}:",
        beside(lambda method, ratio: to_text(as_printed(found, method, ratio, measure), measure)),
    ]
    if measure == "factor":
        parts += variances(found, methods)
    if measure == "factor" and idle:
        parts.append(
            "The same factor at the same moments of the original network, on which nobody operates: "
            f"{spread(idle, measure)} (n = {len(idle)}). What differs from this is the operation's."
        )
    return parts


def variances(found: Trainings, methods: Sequence[str]) -> list[str]:
    """The variance over the ratios of the thesis's loss factors, of the methods that it prints it for."""
    words = []
    for method in methods:
        known = [factor for ratio in RATIOS if (factor := as_printed(found, method, ratio, "factor")) is not None]
        if method in PRINTED_VARIANCE and len(known) == len(RATIOS):
            words.append(f"{NAMES[method]} {statistics.variance(known):.4f} ({PRINTED_VARIANCE[method]})")
    return [f"Variance of these medians over the ratios: {', '.join(words)}."] if words else []


def gaps(found: Trainings) -> str:
    """The gaps between training and test accuracy; empty where none were taken."""

    def taken(method: str, *ratios: float) -> list[float]:
        return [gap for gap in values(found, method, "gap", *ratios) if gap is not None]

    if not any(map(taken, NAMES)):
        return ""
    cells = by_ratio(NAMES, lambda method, ratio: spread(taken(method, ratio), "accuracy") or "not taken")
    return f"## Accuracy on the training images less that on the test images, points\n\n{cells}"


def tests(found: Trainings) -> str:
    """The four comparisons of methods, tested as the thesis does and paired."""
    decided = family({number: differences(found, PAIRS[pair], m) or [0.0] for number, (pair, m) in TABLES.items()})
    rows = []
    for number, (pair, measure) in TABLES.items():
        one, other = PAIRS[pair]
        both, test = pairs(found, PAIRS[pair], measure).values(), decided[number]
        name, p = as_in_the_thesis([a for a, _ in both], [b for _, b in both])
        scale, unit = (100, " points") if measure == "accuracy" else (1, "")
        rows.append([
            f"{number}: {NAMES[one]} − {NAMES[other]}, {MEASURES[measure]}", name,
            f"{'' if p is None else f'{p:.2g}'} ({PRINTED_P[number]:.2g})", f"{scale * test.mean:+.3f}{unit}",
            " … ".join(f"{scale * bound:+.3f}" for bound in test.interval or ()),
            "" if test.effect is None else f"{test.effect:+.2f}", len(both), "" if test.p is None else f"{test.p:.2g}",
        ])  # fmt: skip
    columns = ["table", "as the thesis", "p (thesis's)", "paired difference", "95 % interval", "d", "n", "p after Holm"]
    return table(columns, rows, words=2)


def claims(found: Trainings) -> list[Claim]:
    """What chapter 4 says of accuracy, generalization, loss factors and time."""
    removal, expansion = PAIRS["removal"], PAIRS["expansion"]
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for (_, seed), both in pairs(found, removal, "factor").items():
        by_seed.setdefault(seed, []).append(both)
    whole = [zip(*both, strict=True) for both in by_seed.values() if len(both) == len(RATIOS)]
    steadier = [other - one for one, other in (map(statistics.stdev, columns) for columns in whole)]
    least, most = found.get(("weak_expand", 1 / 4), {}), found.get(("weak_expand", 3 / 4), {})
    growth = [least[seed].accuracy - most[seed].accuracy for seed in sorted(set(least) & set(most))]
    slow, quick = (values(found, method, "share") for method in ("eigen_remove", "weak_expand"))
    accurate = {name: differences(found, removal, "accuracy", ratio) for ratio, name in RATIOS.items()}
    return [
        _claim("EigenRemove ends at least as accurate as Minimum Weight Selection at every ratio",
               {name: each for name, each in accurate.items() if each}, unit="points"),
        _claim("EigenRemove generalizes better (training less test accuracy, EigenRemove − Minimum Weight Selection)",
               differences(found, removal, "gap"), wanted=-1, unit="points"),
        _claim("EigenRemove's loss factor is the larger one", differences(found, removal, "factor")),
        _claim("EigenRemove's loss factor is the steadier one over the ratios (deviation over ratios, Minimum Weight "
               "Selection − EigenRemove)", steadier),
        _claim(f"WeakExpand and Zero Weight Expansion have the same loss factor (within {SAME})",
               differences(found, expansion, "factor"), wanted=0, margin=SAME),
        _claim("WeakExpand ends more accurate than Zero Weight Expansion, since it adds trainable weights",
               differences(found, expansion, "accuracy"), unit="points"),
        _claim("Large growth makes dead layers, so WeakExpand ends less accurate at 3/4 than at 1/4 (1/4 − 3/4)",
               growth, unit="points"),
        _claim(f"EigenRemove can take longer than an epoch{_longest(slow)}",
               [max(slow) - 1] if slow else [], exact=True),
        _claim(f"WeakExpand takes much less than an epoch (less than {percent(SHORT)}){_longest(quick)}",
               [SHORT - max(quick)] if quick else [], exact=True),
    ]  # fmt: skip


def _longest(shares: Sequence[float]) -> str:
    return f"; a training's median operation takes {percent(max(shares))} at most" if shares else ""


def _claim(text: str, values: Any, **more: Any) -> Claim:
    each = {name: np.array(part) for name, part in values.items()} if isinstance(values, dict) else np.array(values)
    return Claim(text, "", each, **more)


def by_ratio(methods: Sequence[str] | dict[str, str], cell: Callable[[str, float], str]) -> str:
    """A table of methods by ratios."""
    return table(["", *RATIOS.values()], ([NAMES[each], *(cell(each, ratio) for ratio in RATIOS)] for each in methods))


def spread(values: Sequence[float], measure: str) -> str:
    """Mean ± standard deviation; empty where there is nothing."""
    if len(values) < 2:
        return "".join(to_text(value, measure) for value in values)
    return f"{to_text(statistics.fmean(values), measure)} ± {to_text(statistics.stdev(values), measure)}"


def to_text(value: float | None, measure: str) -> str:
    """An accuracy (0 … 1) in percent, or a loss factor; empty where there is none."""
    return "" if value is None else f"{100 * value:.2f}" if measure == "accuracy" else f"{value:.3f}"
