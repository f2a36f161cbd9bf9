"""Three figures: accuracy after shrinking, the loss predicted against the loss that came, the error by sample size."""

from __future__ import annotations

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy import stats

from network_surgery.study.evidence.drawing import (
    BLACK,
    COLOURS,
    GREY,
    MARKERS,
    STYLE,
    Drawing,
    Look,
    accuracy_scale,
    log_scale,
    new_axes,
)
from network_surgery.study.experiments.pcns.parallel import Results
from network_surgery.study.experiments.pcns.prediction import METHODS
from network_surgery.study.experiments.pcns.samples import KEEP, expected
from network_surgery.study.experiments.pcns.shrinking import (
    EIGEN,
    OTHERS,
    PIVOTED,
    THRESHOLDS,
    UNINTERRUPTED,
    epochs_of,
)

LOOKS: dict[str, Look] = {
    UNINTERRUPTED: {"color": BLACK, "linestyle": ":", "marker": ""},
    **{
        arm: {"color": COLOURS[at], "marker": MARKERS[at], "linestyle": "-" if "least" not in arm else "--"}
        for at, arm in enumerate((PIVOTED, EIGEN, *list(OTHERS)[:5]))
    },
    list(OTHERS)[5]: {"color": GREY, "marker": "X", "linestyle": "--"},
}
#: Less than this change of the loss is drawn at the edge.
LEAST = 1e-4


def draw(results: Results) -> dict[str, Drawing]:
    """The figures by their names."""
    with style.context(["default", STYLE]):
        return {
            "pcns": _accuracy(results),
            "pcns_prediction": _prediction(results),
            "pcns_samples": _samples(results),
        }


def _accuracy(results: Results) -> Drawing:
    settings = list(dict.fromkeys(key[0] for key in results.found))
    figure, single = new_axes(10.5, 2.9 * len(settings) + 0.6)
    single.remove()
    panels = figure.subplots(len(settings), len(THRESHOLDS), sharex=True, sharey="row", squeeze=False)
    words = []
    for row, setting in enumerate(settings):
        shown = []
        for column, threshold in enumerate(THRESHOLDS):
            axes = panels[row, column]
            for arm, look in LOOKS.items():
                record = results.found.get((setting, 0.0 if arm == UNINTERRUPTED else threshold, arm))
                if record is None:
                    continue
                at = epochs_of(record)
                means = [float(np.nanmean(record[f"after {epoch}"])) for epoch in at]
                shown += means
                axes.plot(at, means, label=arm, markersize=4, linewidth=1.3, **look)
                words.append(f"{setting}, {threshold:g}, {arm}: {means[0]:.1%} right after, {means[-1]:.1%} at the end")
            kept = results.found[setting, threshold, PIVOTED]
            names = [name[6:] for name in kept if name.startswith("units ")][::-1]
            sizes = " – ".join(f"{np.mean(kept[f'units {name}']):.0f}" for name in names)
            axes.set_title(f"{threshold:g}: {sizes} units", fontsize=9)
        accuracy_scale(panels[row, 0], shown)
        panels[row, 0].set_ylabel(f"{setting}\ntest accuracy")
    for axes in panels[-1]:
        axes.set_xlabel("epochs after")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = {
        label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=5)
    caption = (
        f"Means over {results.seeds} seeds. Columns: the variance that PCNS may drop, and the units that it leaves in "
        "each layer; the other removals leave as many. Every layer is shrunk, from the last to the first, without "
        "training in between; epoch 0 is right after."
    )
    return Drawing(figure, "Accuracy right after shrinking, and as training goes on", caption, "; ".join(words) + ".")


def _prediction(results: Results) -> Drawing:
    points = [point for part in results.points for point in part]
    settings = list(dict.fromkeys(point.setting for point in points))
    figure, single = new_axes(3.4 * len(settings) + 0.4, 4.4)
    single.remove()
    panels = figure.subplots(1, len(settings), sharex=True, sharey=True, squeeze=False)[0]
    for axes, setting in zip(panels, settings, strict=True):
        for at, method in enumerate(METHODS):
            mine = [p for p in points if p.setting == setting and p.method == method]
            x, y = (
                [max(value, LEAST) for value in values]
                for values in zip(*((p.predicted, p.actual) for p in mine), strict=True)
            )
            axes.plot(x, y, linestyle="", marker=MARKERS[at], color=COLOURS[at], markersize=4, alpha=0.6, label=method)
        _bisector(axes, points)
        axes.set(title=setting, xlabel="predicted change of the loss")
    panels[0].set_ylabel("measured change on test images")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    caption = (
        "Each point is one operation on one layer, undone afterwards. Predicted: slope and curvature on 1,024 training "
        "images before the operation. Dotted: as predicted. Changes below 1e-4, and losses that fall, lie on the edge."
    )
    return Drawing(figure, "The change of the loss, predicted and measured", caption, correlation(results))


def _bisector(axes: Axes, points: list) -> None:  # type: ignore[type-arg]
    values = [max(value, LEAST) for point in points for value in (point.predicted, point.actual)]
    log_scale(axes.xaxis, values, lambda v: f"{v:g}")
    log_scale(axes.yaxis, values, lambda v: f"{v:g}")
    axes.plot([min(values), max(values)], [min(values), max(values)], linestyle=":", color=BLACK, linewidth=1)


def correlation(results: Results) -> str:
    """Rank correlations between what was predicted and what came, in words."""
    points = [point for part in results.points for point in part]
    told = []
    for setting in dict.fromkeys(point.setting for point in points):
        mine = [point for point in points if point.setting == setting]
        actual = [point.actual for point in mine]
        ranks = {
            name: float(stats.spearmanr([getattr(point, name) for point in mine], actual).statistic)
            for name in ("predicted", "slope", "tried")
        }
        told.append(f"{setting}: {', '.join(f'{name} {value:.3f}' for name, value in ranks.items())}")
    return "Spearman's rank correlation with the measured change: " + "; ".join(told) + "."


def _samples(results: Results) -> Drawing:
    layers = list(results.sampled[0])
    figure, single = new_axes(9.5, 4.4)
    single.remove()
    left, right = figure.subplots(1, 2)
    words = []
    for at, layer in enumerate(layers):
        ratios = list(results.sampled[0][layer])
        values = np.array([[part[layer][ratio] for ratio in ratios] for part in results.sampled])
        look: Look = {"color": COLOURS[at % len(COLOURS)], "marker": MARKERS[at % len(MARKERS)], "markersize": 4}
        label = f"{layer[0]}: {layer[1]}"
        inflation = (values[:, :, 2] / values[:, :, 1]).mean(axis=0)
        left.plot(ratios, inflation, label=label, **look)
        right.plot(ratios, (values[:, :, 0] / values[:, -1:, 0]).mean(axis=0), label=label, **look)
        words.append(
            f"{label}: error on new images × {inflation[0]:.2f} at {ratios[0]:g}, "
            f"× {inflation[-1]:.2f} at {ratios[-1]:g}"
        )
    ratios = sorted({ratio for layer in layers for ratio in results.sampled[0][layer]})
    theory = [expected(1000 * ratio, 1000 * KEEP) for ratio in ratios]  # in the limit of many units
    left.plot(ratios, theory, linestyle=":", color=BLACK, label="normal distribution")
    for axes in (left, right):
        log_scale(axes.xaxis, ratios, lambda v: f"{v:g}")
        axes.set_xlabel("samples for each unit")
    left.set_ylabel("error on new images / on the sample")
    right.set_ylabel("components needed / with the largest sample")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    caption = (
        f"Means over {results.seeds} seeds. Left: a quarter of the units is chosen and the others fitted to them on so "
        "many samples; the relative error on new images over that on the sample, and what is expected of normally "
        "distributed outputs. Right: components for 99 % of the variance of so many samples."
    )
    return Drawing(figure, "How many samples PCNS needs", caption, "; ".join(words) + ".")
