"""Seconds of every operation by size, measured and predicted, against a training step and an epoch."""

from __future__ import annotations

from matplotlib import style

from network_surgery.study.evidence.drawing import BLACK, COLOURS, GREY, MARKERS, STYLE, Drawing, log_scale, new_axes
from network_surgery.study.experiments.timing.measure import OPERATIONS, PIXELS, Found

MORE = ("#882255", "#44AA99", "#332288", "#999933", "#AA4499")
LOOKS = {
    name: {"color": colour, "marker": marker}
    for name, colour, marker in zip(
        OPERATIONS, (*COLOURS, BLACK, GREY, *MORE), (*MARKERS, "*", "h", "p", "d", "H"), strict=True
    )
}


def draw(found: Found) -> Drawing:
    """Seconds by size: points measured (hollow where only predicted), lines predicted, the step and the epoch."""
    with style.context(["default", STYLE]):
        figure, single = new_axes(9.6, 5.6)
        single.remove()
        values = [v for t in found.timings if t.net != "vgg16" for v in (t.step, t.epoch, t.seconds)]
        titles = {"dense": "dense, n – n – n", "conv": f"3 × 3, c – c – c on {PIXELS} × {PIXELS} pixels"}
        titles = {kind: title for kind, title in titles.items() if any(t.net == kind for t in found.timings)}
        panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        for axes, (kind, title) in zip(panels, titles.items(), strict=True):
            for name, look in LOOKS.items():
                mine = [t for t in found.timings if (t.net, t.name) == (kind, name)]
                at = [int(t.layer) for t in mine]
                axes.plot(at, [t.predicted for t in mine], color=look["color"], linewidth=1, alpha=0.8)
                measured = [t for t in mine if t.operation]
                spread = [t.seconds for t in measured]
                axes.plot([int(t.layer) for t in measured], spread, linestyle="", markersize=6, label=name, **look)
                rest = [t for t in mine if not t.operation]
                hollow = {**look, "markerfacecolor": "none", "linestyle": "", "markersize": 6}
                axes.plot([int(t.layer) for t in rest], [t.predicted for t in rest], **hollow)
            once = [t for t in found.timings if (t.net, t.name) == (kind, "random_remove")]
            at = [int(t.layer) for t in once]
            lines = (
                ("one training step", "-", [t.step for t in once]),
                ("1 % of an epoch", "--", [t.epoch / 100 for t in once]),
                ("an epoch", ":", [t.epoch for t in once]),
            )
            for label, dashes, heights in lines:
                axes.plot(at, heights, color="#444444", linestyle=dashes, linewidth=2.4, alpha=0.55, label=label)
            axes.set_title(title)
            axes.set_xlabel("units of each layer" if kind == "dense" else "channels of each layer")
            log_scale(axes.xaxis, at, lambda value: f"{value:g}")
            axes.set_xticks(at, [str(value) for value in at])
            log_scale(axes.yaxis, values, spoken)
        panels[0].set_ylabel("time")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
    caption = (
        "Points: measured (medians; hollow: too long to measure, predicted). Thin lines of the same colour: predicted "
        "from the formulas and the rates of this machine. What lies below the dashed line takes less than 1 % of an "
        "epoch."
    )
    worst = min((t for t in found.timings), key=lambda t: t.index)
    alt = f"The operation that takes the largest part of an epoch is {worst.name} on {worst.net} {worst.layer}."
    return Drawing(figure, "Seconds of an operation, against training", caption, alt)


def spoken(value: float) -> str:
    """Seconds in a unit that fits, with two digits: 32 µs, 1.4 ms, 780 s."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= 0.995 * size or unit == "µs":
            return f"{float(f'{value / size:.2g}'):,g} {unit}"
    return ""
