"""The page of the thesis's application study: its tables beside a study's own numbers, and what holds of its claims."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

import numpy as np
from scipy import stats

from network_surgery.study.bench.claims import Claim, to_summary, to_table
from network_surgery.study.bench.page import Part
from network_surgery.study.bench.rows import Measured, Values
from network_surgery.study.bench.tables import table
from network_surgery.study.evidence.drawing import Drawing, percent
from network_surgery.study.evidence.significance import family
from network_surgery.study.experiments.thesis import chapter, figures
from network_surgery.study.experiments.thesis.chapter import NAMES, PAIRS, PRINTED, RATIOS, Results, Trainings
from network_surgery.study.experiments.thesis.measure import results_of

MEASURES = {"accuracy": "final test accuracy", "factor": "median loss factor"}
TABLES = {"4.1": ("removal", "accuracy"), "4.2": ("removal", "factor"), "4.3": ("expansion", "accuracy"),
          "4.4": ("expansion", "factor")}  # fmt: skip
#: The p-values that the thesis prints for its pairs of methods, all ratios together.
PRINTED_P = {"4.1": 2.229e-6, "4.2": 2e-5, "4.3": 0.0025, "4.4": 0.0869}
#: What it prints of the spread over ratios: the variance of the five median loss factors.
PRINTED_VARIANCE = {"eigen_remove": 0.003, "min_weight": 0.029}
#: Loss factors this close count as the same; an operation this short takes much less than an epoch.
SAME, SHORT = 0.05, 0.1
#: A change of the loss, as a fraction of it, that is rounding.
EXACT = 1e-3
REPEATED = "\n\n{} training runs repeat another ratio's of the same seed to the last digit and are paired once."
OWN = {
    "accuracy": "The thesis's own statistic, the median over its training runs:",
    "factor": "The thesis's own statistic, the median of all recorded operations of all training runs pooled "
    f"({chapter.UNRECORDED} is operated on and not recorded):",
}


def thesis(results: Results) -> tuple[str, dict[str, Drawing]]:
    """The page in markdown, and its figures, of the content of ``results.json``."""
    drawings = figures.draw(results)
    return write(results, drawings), drawings


def write(results: Results, drawings: Mapping[str, Drawing]) -> str:
    """``page.md``, filled with tables, tests and claims made of the results; pictures lie in ``figures``."""
    words: dict[str, str] = {}
    for name, part in parts(results, drawings).items():
        if isinstance(part, str):
            words[name] = part
        elif isinstance(part, Drawing):
            words[name] = f"![{part.title}](figures/{name}.png)"
        else:
            words |= {name: to_table(part), "holds": to_summary(part)}
    return Template((Path(__file__).parent / "page.md").read_text(encoding="utf-8")).substitute(words)


def of_rows(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names, of the experiment's rows."""
    results = results_of(measured)
    return parts(results, figures.draw(results))


def parts(results: Results, drawings: Mapping[str, Drawing]) -> dict[str, Part]:
    """What ``page.md`` names, of the content of ``results.json``; empty for a figure that there is not."""
    found, cells = Trainings(results), results["comparison"]["cells"]
    original = [cell["test_metric"] for cell in cells if cell["arm"] == "original" and "failure" not in cell]
    return {
        "trained": describe_runs(results, found),
        "tables": "\n\n".join(part for number in TABLES for part in beside_the_thesis(results, found, number)),
        "original": f"The original network without any operation: {spread(original, 'accuracy')}." if original else "",
        "gaps": gaps(found),
        "tests": tests(found) + (REPEATED.format(found.repeated) if found.repeated else ""),
        "claims": claims(found),
        **{f"thesis_{name}": drawings.get(f"thesis_{name}", "") for name in PAIRS},
    }


def describe_runs(results: Results, found: Trainings) -> str:
    """What was trained, on what, how, how often and where."""
    settings, machine = results["settings"], results["machine"]
    devices = sorted({cell.get("device", "cpu") for cell in results["comparison"]["cells"]})
    seeds = {seed for members in found.values() for seed in members}
    return (
        f"{settings['model']} on {settings['data']}"
        + (f" ({settings['train_images']:,} training images)" if settings.get("train_images") else "")
        + f", {settings['epochs']} epochs, {settings['optimizer']} at {settings['learning_rate']:g}, batches of "
        f"{settings['batch_size']}, optimizer state {settings['optimizer_state']}, space {settings['space']}; "
        f"{sum(map(len, found.values()))} training runs with {len(seeds)} seeds; {', '.join(devices)}, "
        f"torch {machine['torch']}, Python {machine['python']}."
    )


def beside_the_thesis(results: Results, found: Trainings, number: str) -> list[str]:
    """One of the thesis's tables: means of this study, then the thesis's own statistic, both with what it prints."""
    pair, measure = TABLES[number]
    methods = PAIRS[pair]
    printed = {(m, ratio): value for m in methods for ratio, value in zip(RATIOS, PRINTED[measure, m], strict=True)}

    def beside(number: Callable[[str, float], str]) -> str:
        return by_ratio(methods, lambda *at: f"{number(*at) or 'not run'} ({to_text(printed[at], measure)})")

    parts = [
        f"## Table {number}: {MEASURES[measure]} by ratio",
        beside(lambda method, ratio: spread(found.of(method, measure, ratio), measure)),
        OWN[measure],
        beside(lambda method, ratio: to_text(found.as_printed(method, ratio, measure), measure)),
    ]
    return parts + (variances(found, methods) + without_operation(results) if measure == "factor" else [])


def variances(found: Trainings, methods: Iterable[str]) -> list[str]:
    """The variance over the ratios of the thesis's loss factors, of the methods that it prints it for."""
    words = []
    for method in methods:
        factors = [found.as_printed(method, ratio, "factor") for ratio in RATIOS]
        known = [factor for factor in factors if factor is not None]
        if method in PRINTED_VARIANCE and len(known) == len(RATIOS):
            words.append(f"{NAMES[method]} {statistics.variance(known):.4f} ({PRINTED_VARIANCE[method]})")
    return [f"Variance of these medians over the ratios: {', '.join(words)}."] if words else []


def without_operation(results: Results) -> list[str]:
    """The loss factor of doing nothing, if the original network was trained."""
    idle = chapter.without_operation(results)
    words = (
        "The same factor at the same moments of the original network, on which nobody operates: "
        f"{spread(idle, 'factor')} (n = {len(idle)}). What differs from this is the operation's."
    )
    return [words] if idle else []


def gaps(found: Trainings) -> str:
    """The gaps between training and test accuracy; empty where none were taken."""
    if not any(found.of(method, "gap") for method in NAMES):
        return ""
    cells = by_ratio(NAMES, lambda method, ratio: spread(found.of(method, "gap", ratio), "accuracy") or "not taken")
    return f"## Accuracy on the training images less that on the test images, points\n\n{cells}"


def tests(found: Trainings) -> str:
    """The four comparisons of methods, tested as the thesis does and paired."""
    differences = {number: found.by_seed(PAIRS[pair], measure) for number, (pair, measure) in TABLES.items()}
    rows = []
    for number, test in family({number: each if len(each) else [0.0] for number, each in differences.items()}).items():
        pair, measure = TABLES[number]
        both = found.pairs(PAIRS[pair], measure).values()
        name, p = as_in_the_thesis([one for one, _ in both], [other for _, other in both])
        scale, unit = (100, " points") if measure == "accuracy" else (1, "")
        rows.append([
            f"{number}: {' − '.join(NAMES[method] for method in PAIRS[pair])}, {MEASURES[measure]}", name,
            f"{'' if p is None else f'{p:.2g}'} ({PRINTED_P[number]:.2g})", f"{scale * test.mean:+.3f}{unit}",
            " … ".join(f"{scale * bound:+.3f}" for bound in test.interval or ()),
            "" if test.effect is None else f"{test.effect:+.2f}", len(differences[number]),
            "" if test.p is None else f"{test.p:.2g}",
        ])  # fmt: skip
    columns = ["table", "as the thesis", "p (thesis's)", "paired difference", "95 % interval", "d", "n", "p after Holm"]
    return table(columns, rows, words=2)


def as_in_the_thesis(one: Sequence[float], other: Sequence[float]) -> tuple[str, float | None]:
    """Its procedure: normality (Shapiro and Wilk, at 0.05), then Student's t or Mann and Whitney's U, unpaired."""
    if min(len(one), len(other)) < 3:
        return "too few training runs for a test", None
    if max(np.ptp(one), np.ptp(other)) == 0:
        return "nothing varies", None
    normal = all(np.ptp(values) > 0 and stats.shapiro(values).pvalue > 0.05 for values in (one, other))
    test = stats.ttest_ind(one, other) if normal else stats.mannwhitneyu(one, other)
    return "Student's t" if normal else "Mann-Whitney U", float(test.pvalue)


def claims(found: Trainings) -> list[Claim]:
    """What chapter 4 says of accuracy, generalization, loss factors and time."""
    removal, expansion = PAIRS["removal"], PAIRS["expansion"]
    accurate = {name: found.differences(removal, "accuracy", ratio) for ratio, name in RATIOS.items()}
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for (_, seed), both in found.pairs(removal, "factor").items():
        by_seed.setdefault(seed, []).append(both)
    spreads = [np.std(both, axis=0, ddof=1) for both in by_seed.values() if len(both) == len(RATIOS)]
    least, most = found.get(("weak_expand", 1 / 4), {}), found.get(("weak_expand", 3 / 4), {})
    growth = [least[seed].accuracy - most[seed].accuracy for seed in sorted(set(least) & set(most))]
    slow, quick = (np.array(found.of(method, "longest")) for method in ("eigen_remove", "weak_expand"))
    return [
        Claim("EigenRemove ends at least as accurate as Minimum Weight Selection at every ratio (within half a point)",
              "",
              {name: each for name, each in accurate.items() if len(each)}, margin=0.005, unit="points"),
        Claim("EigenRemove generalizes better (training less test accuracy, EigenRemove − Minimum Weight Selection)",
              "", found.by_seed(removal, "gap"), wanted=-1, unit="points"),
        Claim("EigenRemove's loss factor is the larger one", "", found.by_seed(removal, "factor")),
        Claim("EigenRemove's loss factor is the steadier one over the ratios (deviation over ratios, Minimum Weight "
              "Selection − EigenRemove)", "", np.array([other - one for one, other in spreads])),
        Claim(f"WeakExpand and Zero Weight Expansion have the same loss factor (within {SAME})", "",
              found.by_seed(expansion, "factor"), wanted=0, margin=SAME, same=_exact(found, expansion)),
        Claim("WeakExpand ends more accurate than Zero Weight Expansion, since it adds trainable weights", "",
              found.by_seed(expansion, "accuracy"), unit="points"),
        Claim("Large growth makes dead layers, so WeakExpand ends less accurate at 3/4 than at 1/4 (1/4 − 3/4)", "",
              np.array(growth), unit="points"),
        Claim(f"EigenRemove can take longer than an epoch{_longest(slow)}", "",
              np.sort(slow)[-1:] - 1, exact=True),
        Claim(f"WeakExpand takes much less than an epoch (less than {percent(SHORT)}){_longest(quick)}", "",
              SHORT - np.sort(quick)[-1:], exact=True),
    ]  # fmt: skip


def _exact(found: Trainings, methods: Iterable[str]) -> str:
    """Why the loss factors of these methods cannot differ: none of their operations has changed the loss."""
    changes = [change for method in methods for change in found.of(method, "change")]
    if not changes or max(changes) > EXACT:
        return ""
    return "both leave the network's outputs as they are, so the factor is that of doing nothing"


def _longest(shares: Values) -> str:
    return f"; the longest operation takes {percent(max(shares))} at most" if len(shares) else ""


def by_ratio(methods: Iterable[str], cell: Callable[[str, float], str]) -> str:
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
