"""Chapter 4 of the thesis beside a study's own results: its tables, and what holds of what it claims.

Source: Graham 2019, *Applied HOSVD for weight compression and expansion*, tables 4.1 to 4.4; its figures are in
``thesis_figures``. Everything is read from ``results.json`` of a study over ``search_spaces.thesis``. Differences
between two methods are paired: the same seed, ratio, data and first epochs. Pairs of one seed at several ratios count
as so many, though they share an initialization.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from network_surgery.search_spaces import thesis as grid
from network_surgery.study.evidence.drawing import percent
from network_surgery.study.evidence.significance import family, paired
from network_surgery.study.training.records import operations_of

Results = Mapping[str, Any]

#: The grid's ratios, and how they are written.
RATIOS = dict(zip(grid.RATIOS, ("1/4", "1/3", "1/2", "2/3", "3/4"), strict=True))
NAMES = {
    "eigen_remove": "EigenRemove", "min_weight": "Minimum Weight Selection",
    "weak_expand": "WeakExpand", "zero_expand": "Zero Weight Expansion",
}  # fmt: skip
#: The thesis's method and the one that it is compared with.
PAIRS = {"removal": ("eigen_remove", "min_weight"), "expansion": ("weak_expand", "zero_expand")}
MEASURES = {"accuracy": "final test accuracy", "factor": "median loss factor"}
#: What the thesis prints, by method and ratio, in the order of ``RATIOS``.
PRINTED = {
    ("accuracy", "eigen_remove"): (0.7486, 0.7661, 0.7865, 0.7974, 0.8023),
    ("accuracy", "min_weight"): (0.7544, 0.7584, 0.7709, 0.7850, 0.7869),
    ("factor", "eigen_remove"): (1.173, 1.263, 1.133, 1.158, 1.146),
    ("factor", "min_weight"): (1.214, 1.038, 0.902, 0.829, 0.799),
    ("accuracy", "weak_expand"): (0.7913, 0.7839, 0.7844, 0.7982, 0.7971),
    ("accuracy", "zero_expand"): (0.7744, 0.7845, 0.7815, 0.7861, 0.7871),
    ("factor", "weak_expand"): (0.847, 0.822, 0.781, 0.723, 0.792),
    ("factor", "zero_expand"): (0.803, 0.862, 0.714, 0.773, 0.789),
}
TABLES = {"4.1": ("removal", "accuracy"), "4.2": ("removal", "factor"), "4.3": ("expansion", "accuracy"),
          "4.4": ("expansion", "factor")}  # fmt: skip
#: The p-values that the thesis prints for its pairs of methods, all ratios together.
PRINTED_P = {"4.1": 2.229e-6, "4.2": 2e-5, "4.3": 0.0025, "4.4": 0.0869}
#: What it prints of the spread over ratios: the variance of the five median loss factors.
PRINTED_VARIANCE = {"eigen_remove": 0.003, "min_weight": 0.029}
#: The last layer of the order: its published code operates on it and records nothing of it, and its text lists ten.
UNRECORDED = grid.ORDER[-1]
#: Loss factors this close count as the same.
SAME = 0.05


@dataclass(frozen=True)
class Training:
    """What the thesis reads from one training; ``factor`` and ``seconds`` are medians over its operations.

    ``gap``: accuracy on the training images less ``accuracy``; None where an older study did not take it.
    ``recorded``: the loss factors that the thesis has recorded, of every operation but that on ``UNRECORDED``.
    """

    accuracy: float
    factor: float
    seconds: float
    epoch_seconds: float
    recorded: tuple[float, ...] = ()
    gap: float | None = None


#: (method, ratio) → seed → training.
Trainings = dict[tuple[str, float], dict[int, Training]]


def concerns(results: Results) -> bool:
    """Whether these results are of the thesis's study."""
    return str(results["settings"]["space"]).startswith("thesis")


def gathered(results: Results) -> Trainings:
    """The finished surgery trainings of a study over the thesis's grid."""
    found: Trainings = {}
    for cell in results["comparison"]["cells"]:
        if cell["arm"] != "surgery" or "failure" in cell:
            continue
        ratio = min(RATIOS, key=lambda known: abs(known - cell["params"]["ratio"]))
        operations = operations_of(cell)
        factors = [(each.layer, each.loss_factor) for each in operations if each.loss_factor is not None]
        found.setdefault((cell["params"]["op"], ratio), {})[cell["seed"]] = Training(
            cell["test_accuracy"],
            statistics.median(factor for _, factor in factors),
            statistics.median(each.seconds for each in operations),
            statistics.median(each.epoch_seconds for each in operations if each.epoch_seconds is not None),
            tuple(factor for layer, factor in factors if layer != UNRECORDED),
            cell.get("train_test_gap"),
        )
    return found


def as_printed(found: Trainings, method: str, ratio: float, measure: str) -> float | None:
    """The number that the thesis prints, from these trainings; None where there are none.

    ``accuracy``: the median of the trainings' final test accuracies (it is called an average there). ``factor``: the
    median of the recorded loss factors of all trainings pooled (ten operations × five trainings there), which is not
    the mean of the trainings' medians.
    """
    members = found.get((method, ratio), {}).values()
    if measure == "accuracy":
        values = [training.accuracy for training in members]
    else:
        values = [factor for training in members for factor in training.recorded]
    return statistics.median(values) if values else None


def without_operation(results: Results) -> list[float]:
    """The median loss factor of each original training, at the moments of the others' operations, with none there."""
    cells = [cell for cell in results["comparison"]["cells"] if "failure" not in cell]
    moments = {each.epoch for cell in cells if cell["arm"] == "surgery" for each in operations_of(cell)}
    whole = sorted(int(moment) for moment in moments if moment == int(moment) and moment >= 1)
    found = []
    for cell in cells:
        epochs = cell["epochs"] if cell["arm"] == "original" else []
        factors = [
            epochs[at]["first_loss"] / epochs[at - 1]["last_loss"]
            for at in whole
            if at < len(epochs) and "first_loss" in epochs[at] and epochs[at - 1]["last_loss"] > 0
        ]
        found += [statistics.median(factors)] if factors else []
    return found


def pairs(found: Trainings, methods: tuple[str, str], measure: str) -> dict[tuple[float, int], tuple[float, float]]:
    """Both methods' values at each ratio and seed that both have."""
    one, other = methods
    return {
        (ratio, seed): (getattr(training, measure), getattr(found[other, ratio][seed], measure))
        for ratio in RATIOS
        for seed, training in sorted(found.get((one, ratio), {}).items())
        if seed in found.get((other, ratio), {})
    }


def as_in_the_thesis(one: Sequence[float], other: Sequence[float]) -> tuple[str, float | None]:
    """Its procedure: normality (Shapiro and Wilk, at 0.05), then Student's t or Mann and Whitney's U, unpaired."""
    if min(len(one), len(other)) < 3:
        return "too few trainings for a test", None
    if max(np.ptp(one), np.ptp(other)) == 0:
        return "nothing varies", None
    normal = all(np.ptp(values) > 0 and stats.shapiro(values).pvalue > 0.05 for values in (one, other))
    test = stats.ttest_ind(one, other) if normal else stats.mannwhitneyu(one, other)
    return "Student's t" if normal else "Mann-Whitney U", float(test.pvalue)


def page(results: Results, pictures: Sequence[str]) -> str:
    """Tables, tests and claims in markdown; ``pictures`` are the figures' files beside it."""
    found, settings, machine = gathered(results), results["settings"], results["machine"]
    devices = sorted({cell.get("device", "cpu") for cell in results["comparison"]["cells"]})
    seeds = sorted({seed for members in found.values() for seed in members})
    lines = [
        "# The thesis's application study, repeated",
        "",
        f"{settings['model']} on {settings['data']}"
        + (f" ({settings['train_images']:,} training images)" if settings.get("train_images") else "")
        + f", {settings['epochs']} epochs, {settings['optimizer']} at {settings['learning_rate']:g}, batches of "
        f"{settings['batch_size']}, optimizer state {settings['optimizer_state']}, space {settings['space']}; "
        f"{sum(map(len, found.values()))} trainings with {len(seeds)} seeds; {', '.join(devices)}, "
        f"torch {machine['torch']}, Python {machine['python']}. In brackets: what the thesis prints (VGG16, 50 epochs, "
        "5 repeats).",
        "",
    ]
    for number, (pair, measure) in TABLES.items():
        lines += [f"## Table {number}: {MEASURES[measure]} by ratio", "", *_table(found, PAIRS[pair], measure), ""]
        lines += [*_as_printed(found, PAIRS[pair], measure), ""]
        idle = without_operation(results)
        if measure == "factor" and idle:
            lines += [
                f"The same factor at the same moments of the original network, on which nobody operates: "
                f"{_spread(idle, percent=False)} (n = {len(idle)}). What differs from this is the operation's.",
                "",
            ]
    original = [
        c["test_accuracy"] for c in results["comparison"]["cells"] if c["arm"] == "original" and "failure" not in c
    ]
    gaps = _gaps(found)
    if gaps:
        lines += ["## Accuracy on the training images less that on the test images, points", "", *gaps, ""]
    if original:
        lines += [f"The original network without any operation: {_spread(original, percent=True)}.", ""]
    lines += ["## Tests", "", *_tests(found), "", "## What holds", ""]
    lines += [f"- **{verdict}**: {claim} {evidence}" for claim, verdict, evidence in claims(found)]
    lines += ["", "## Figures", "", *(f"![{picture}]({picture})" for picture in pictures)]
    return "\n".join(lines) + "\n"


def _table(found: Trainings, methods: Sequence[str], measure: str) -> list[str]:
    lines = [f"| | {' | '.join(RATIOS.values())} |", "|---|" + "---|" * len(RATIOS)]
    for method in methods:
        cells = []
        for ratio, printed in zip(RATIOS, PRINTED[measure, method], strict=True):
            ours = [getattr(training, measure) for training in found.get((method, ratio), {}).values()]
            theirs = f"{100 * printed:.2f}" if measure == "accuracy" else f"{printed:.3f}"
            cells.append(f"{_spread(ours, measure == 'accuracy') if ours else 'not run'} ({theirs})")
        lines.append(f"| {NAMES[method]} | {' | '.join(cells)} |")
    return lines


def _as_printed(found: Trainings, methods: Sequence[str], measure: str) -> list[str]:
    """The thesis's own statistics, with what it prints."""
    if measure == "accuracy":
        words = "The thesis's own statistic, the median over its trainings:"
    else:
        words = (
            "The thesis's own statistic, the median of all recorded operations of all trainings pooled "
            f"({UNRECORDED} is operated on and not recorded):"
        )
    lines = [words, "", f"| | {' | '.join(RATIOS.values())} |", "|---|" + "---|" * len(RATIOS)]
    spreads = []
    for method in methods:
        ours = [as_printed(found, method, ratio, measure) for ratio in RATIOS]
        cells = [
            ("not run" if value is None else f"{100 * value:.2f}" if measure == "accuracy" else f"{value:.3f}")
            + (f" ({100 * printed:.2f})" if measure == "accuracy" else f" ({printed:.3f})")
            for value, printed in zip(ours, PRINTED[measure, method], strict=True)
        ]
        lines.append(f"| {NAMES[method]} | {' | '.join(cells)} |")
        known = [value for value in ours if value is not None]
        if measure == "factor" and method in PRINTED_VARIANCE and len(known) == len(RATIOS):
            spreads.append(f"{NAMES[method]} {statistics.variance(known):.4f} ({PRINTED_VARIANCE[method]})")
    if spreads:
        lines += ["", f"Variance of these medians over the ratios: {', '.join(spreads)}."]
    return lines


def _gaps(found: Trainings) -> list[str]:
    """A table of the gaps between training and test accuracy, by method and ratio; empty where none were taken."""
    taken = {key: [t.gap for t in members.values() if t.gap is not None] for key, members in found.items()}
    if not any(taken.values()):
        return []
    lines = [f"| | {' | '.join(RATIOS.values())} |", "|---|" + "---|" * len(RATIOS)]
    for method, name in NAMES.items():
        columns = [taken.get((method, ratio), []) for ratio in RATIOS]
        cells = [_spread(values, percent=True) if values else "not taken" for values in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _tests(found: Trainings) -> list[str]:
    compared = {number: pairs(found, PAIRS[pair], measure) for number, (pair, measure) in TABLES.items()}
    decided = family({number: [a - b for a, b in both.values()] or [0.0] for number, both in compared.items()})
    lines = [
        "As the thesis tests (all ratios together, unpaired), and paired by seed and ratio with Holm's adjustment over",
        "the four; d: mean difference / its standard deviation.",
        "",
        "| table | as the thesis | p (thesis's) | paired difference | 95 % interval | d | n | p after Holm |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, (pair, measure) in TABLES.items():
        one, other = PAIRS[pair]
        both = compared[number]
        name, p = as_in_the_thesis([a for a, _ in both.values()], [b for _, b in both.values()])
        test = decided[number]
        scale, unit = (100, " points") if measure == "accuracy" else (1, "")
        span = " … ".join(f"{scale * bound:+.3f}" for bound in test.interval or ())
        effect = "" if test.effect is None else f"{test.effect:+.2f}"
        lines.append(
            f"| {number}: {NAMES[one]} − {NAMES[other]}, {MEASURES[measure]} | {name} | "
            f"{'' if p is None else f'{p:.2g}'} ({PRINTED_P[number]:.2g}) | {scale * test.mean:+.3f}{unit} | {span} | "
            f"{effect} | {len(both)} | {'' if test.p is None else f'{test.p:.2g}'} |"
        )
    return lines


def claims(found: Trainings) -> list[tuple[str, str, str]]:
    """What chapter 4 says, whether it holds here (``holds``, ``does not hold``, ``undecided``), and by what."""
    verdicts = []
    removal, expansion = PAIRS["removal"], PAIRS["expansion"]
    by_ratio = {
        RATIOS[ratio]: [a - b for (at, _), (a, b) in pairs(found, removal, "accuracy").items() if at == ratio]
        for ratio in RATIOS
        if any(at == ratio for at, _ in pairs(found, removal, "accuracy"))
    }
    if by_ratio:
        differences = family(by_ratio)
        signs = [difference.sign for difference in differences.values()]
        verdict = "does not hold" if -1 in signs else "holds" if set(signs) == {1} else "undecided"
        told = ", ".join(f"{difference.words(100)} at {name}" for name, difference in differences.items())
        claim = "EigenRemove ends at least as accurate as Minimum Weight Selection at every ratio."
        told = f"Mean differences in points [95 % interval], a star where shown after Holm: {told}."
        verdicts.append((claim, verdict, told))

    def compared(claim: str, differences: Sequence[float], scale: float, unit: str) -> None:
        if not differences:
            return
        mean, interval, _ = paired(differences)
        verdict = {1: "holds", -1: "does not hold", 0: "undecided"}[_sign(interval)]
        verdicts.append((claim, verdict, f"{_difference(mean, interval, scale, unit)}, n = {len(differences)}."))

    gaps = [(a, b) for a, b in pairs(found, removal, "gap").values() if a is not None and b is not None]
    compared("EigenRemove generalizes better (gap between training and test accuracy, Minimum Weight Selection − "
             "EigenRemove).", [b - a for a, b in gaps], 100, " points")  # fmt: skip
    factors = pairs(found, removal, "factor")
    compared("EigenRemove's loss factor is the larger one.", [a - b for a, b in factors.values()], 1, "")
    steadier = []
    for seed in sorted({seed for _, seed in factors}):
        both = [values for (_, at), values in factors.items() if at == seed]
        if len(both) == len(RATIOS):
            ours, theirs = (statistics.stdev(column) for column in zip(*both, strict=True))
            steadier.append(theirs - ours)
    compared("EigenRemove's loss factor is the steadier one over the ratios (deviation over ratios, Minimum Weight "
             "Selection − EigenRemove).", steadier, 1, "")  # fmt: skip
    factors = pairs(found, expansion, "factor")
    if factors:
        mean, interval, _ = paired([a - b for a, b in factors.values()])
        close = interval is not None and interval[0] > -SAME and interval[1] < SAME
        verdict = "holds" if close else "does not hold" if _sign(interval) and abs(mean) > SAME else "undecided"
        verdicts.append((f"WeakExpand and Zero Weight Expansion have the same loss factor (within {SAME}).", verdict,
                         f"{_difference(mean, interval, 1, '')}, n = {len(factors)}."))  # fmt: skip
    accuracies = pairs(found, expansion, "accuracy")
    compared("WeakExpand ends more accurate than Zero Weight Expansion, since it adds trainable weights.",
             [a - b for a, b in accuracies.values()], 100, " points")  # fmt: skip
    least, most = found.get(("weak_expand", 1 / 4), {}), found.get(("weak_expand", 3 / 4), {})
    losses = [least[seed].accuracy - most[seed].accuracy for seed in sorted(set(least) & set(most))]
    claim = "Large growth makes dead layers, so WeakExpand ends less accurate at 3/4 than at 1/4 (1/4 − 3/4)."
    compared(claim, losses, 100, " points")
    shares = {
        method: [
            t.seconds / t.epoch_seconds for (m, _), members in found.items() if m == method for t in members.values()
        ]
        for method in ("eigen_remove", "weak_expand")
    }
    if all(shares.values()):
        slow, quick = shares["eigen_remove"], shares["weak_expand"]
        verdicts.append(("EigenRemove can take longer than an epoch.", "holds" if max(slow) > 1 else "does not hold",
                         f"A training's median operation takes {percent(max(slow))} of an epoch at most."))  # fmt: skip
        verdicts.append(("WeakExpand takes much less than an epoch.", "holds" if max(quick) < 0.1 else "does not hold",
                         f"At most {percent(max(quick))} of an epoch."))  # fmt: skip
    return verdicts


def _sign(interval: Sequence[float] | None) -> int:
    """On which side of zero an interval lies; 0 where it does not say."""
    return 0 if interval is None else (interval[0] > 0) - (interval[1] < 0)


def _difference(mean: float, interval: Sequence[float] | None, scale: float, unit: str) -> str:
    span = "" if interval is None else f" (95 % interval {scale * interval[0]:+.3f} … {scale * interval[1]:+.3f})"
    return f"Mean difference {scale * mean:+.3f}{unit}{span}"


def _spread(values: Sequence[float], percent: bool) -> str:
    scale, digits = (100, 2) if percent else (1, 3)
    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"
