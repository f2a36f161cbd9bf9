"""What every figure shares: the style, axes and scales, titles, and how numbers are worded.

Colours are those of M. Okabe and K. Ito, "Color Universal Design" (2008); every colour comes with its own marker or
line style, for print in grey.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from PIL import Image

from network_surgery.study.task.metric import Metric

Look = dict[str, Any]

STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "lines.linewidth": 1.8, "lines.markersize": 7,
    "legend.frameon": False, "legend.fontsize": 9, "figure.dpi": 100,
    "svg.hashsalt": "network-surgery", "text.parse_math": False,
}  # fmt: skip
DPI = 150
#: Values that differ by a larger factor want a logarithmic scale.
WIDE = 10
BLACK, GREY, BLUE, VERMILLION = "#000000", "#767676", "#0072B2", "#D55E00"
COLOURS = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
ARMS: dict[str, Look] = {
    "original": {"color": BLACK, "linestyle": ":", "marker": "o"},
    "surgery": {"color": BLUE, "linestyle": "-", "marker": "s"},
    "operate_first": {"color": "#56B4E9", "linestyle": "--", "marker": "<"},
    "operate_first_flops": {"color": "#004D80", "linestyle": "--", "marker": ">"},
    "restart": {"color": VERMILLION, "linestyle": "--", "marker": "^"},
    "restart_flops": {"color": "#E69F00", "linestyle": "--", "marker": "v"},
    "restart_seconds": {"color": "#CC79A7", "linestyle": "--", "marker": "P"},
    "restart_fair": {"color": "#A6761D", "linestyle": "--", "marker": "p"},
    "original_flops": {"color": "#666666", "linestyle": ":", "marker": (7, 1, 0)},
    "restart_late": {"color": "#8C6D00", "linestyle": "--", "marker": "X"},
    "restart_late_flops": {"color": "#C49A00", "linestyle": "--", "marker": (4, 1, 45)},
    "uniform": {"color": "#882255", "linestyle": "-.", "marker": "h"},
    "prune_end": {"color": "#6A3D9A", "linestyle": ":", "marker": "*"},
    "prune_end_rewind_lr": {"color": "#9E6FCF", "linestyle": ":", "marker": "d"},
    "prune_end_rewind": {"color": "#3F007D", "linestyle": ":", "marker": "8"},
    "random": {"color": "#009E73", "linestyle": "-.", "marker": "D"},
    "distill": {"color": "#E31A8C", "linestyle": "--", "marker": "H"},
    "snip": {"color": "#44AA99", "linestyle": "-.", "marker": (3, 1, 0)},
    "random_init": {"color": "#117733", "linestyle": "-.", "marker": (6, 1, 0)},
    "gradmax": {"color": "#66A61E", "linestyle": "-.", "marker": (4, 1, 0)},
    "net2net": {"color": "#1B7837", "linestyle": "-.", "marker": (8, 1, 0)},
    "stacking": {"color": "#5C3A1E", "linestyle": "-.", "marker": (5, 1, 0)},
}


def look_of(arm: str) -> Look:
    """Colour, line style and marker of an arm; one that nobody has given a look is grey."""
    return ARMS.get(arm, {"color": GREY, "linestyle": "-.", "marker": "o"})


@dataclass(frozen=True)
class Drawing:
    """A figure with its finding (title), how to read it (caption), and what it shows in words and numbers (alt)."""

    figure: Figure
    title: str
    caption: str
    alt: str
    _images: dict[str, bytes] = field(default_factory=dict, repr=False, compare=False)

    def image(self, kind: str) -> bytes:
        """The figure as a file of this kind (``png``, 150 dpi, or ``svg``), drawn once; equal for equal figures."""
        if kind not in self._images:
            buffer = io.BytesIO()
            with style.context(["default", STYLE]):  # savefig would draw it all once more beforehand, for nothing
                self.figure.set_dpi(DPI)
                if kind == "svg":
                    FigureCanvasSVG(self.figure).print_svg(buffer, metadata={"Date": None})
                else:
                    FigureCanvasAgg(self.figure).print_png(buffer)
            self._images[kind] = buffer.getvalue()
            self.figure.set_layout_engine("none")  # its places are found, and finding them takes a third of the time
        return self._images[kind]

    def save_small(self, path: Path) -> None:
        """Writes a PNG of 128 colours, a third of the size: for documents that are kept under version control."""
        image = Image.open(io.BytesIO(self.image("png"))).convert("RGB")
        image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def new_axes(width: float = 7.5, height: float = 4.4) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one set of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def add_title(figure: Figure, title: str, caption: str, alt: str) -> Drawing:
    """A finished figure with its words; the title is broken to the figure's width."""
    letters = int(11 * figure.get_figwidth())
    lines = [textwrap.fill(line, letters) for line in title.splitlines()]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11, fontweight="bold")
    return Drawing(figure, title.replace("\n", "; "), caption, alt)


def log_scale(axis: Axis, values: Iterable[float], words: Callable[[float], str]) -> None:
    """A logarithmic axis around positive values; ticks at 1, 2, 5 for few decades, at powers of ten for many, at equal
    distances where that leaves fewer than three.
    """
    values = list(values)
    low, high = min(values) / 1.15, max(values) * 1.15
    decades = math.log10(high / low)
    steps, stride = (1, 2, 5) if decades < 3 else (1,), math.ceil(decades / 9)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers if power % stride == 0 for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) < 3:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    name = "x" if axis is axis.axes.xaxis else "y"
    axis.axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))


def accuracy_scale(axes: Axes, values: Iterable[float]) -> None:
    """A y-axis for accuracies (0 … 1) on which halving the error is about the same distance anywhere; ends at 100%."""
    floor = 0.004  # where the stretching levels off, so that 100% has a place
    values = list(values)
    low, high = max(0.0, min(values)), min(1.0, max(values))
    pad = 0.06 * math.log((1 + floor - low) / (1 + floor - high)) + 0.02
    low = max(0.0, 1 + floor - (1 + floor - low) * math.exp(pad))
    high = min(1.0, 1 + floor - (1 + floor - high) * math.exp(-pad))
    stretch = (lambda a: -np.log(np.maximum(1 + floor - a, 1e-9)), lambda b: 1 + floor - np.exp(-b))
    axes.set_yscale("function", functions=stretch)
    axes.set_ylim(low, high)
    usual = [tick for tick in (0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1) if low <= tick <= high]
    axes.yaxis.set_major_locator(FixedLocator(usual if len(usual) > 3 else MaxNLocator(6).tick_values(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(as_percent)


def metric_scale(axes: Axes, metric: Metric, values: Iterable[float]) -> str:
    """A y-axis for values of a metric, and the sentence that a caption says of it.

    A percentage of which more is better is stretched as accuracies are; of others, those that are positive and differ
    by more than ``WIDE`` have a logarithmic scale, the rest a plain one.
    """
    values = list(values)
    if metric.percent and metric.better == "higher":
        accuracy_scale(axes, values)
        return "The scale is stretched towards 100%."
    low, high = min(values), max(values)
    if low > 0 and high > WIDE * low:
        log_scale(axes.yaxis, values, (lambda value: as_percent(value, 0)) if metric.percent else "{:g}".format)
        return "The scale is logarithmic."
    pad = 0.06 * (high - low) or metric.margin
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    if metric.percent:
        axes.yaxis.set_major_formatter(as_percent)
    return "The scale is linear."


def metric_label(part: str, metric: Metric) -> str:
    """What an axis is called that shows a metric on a part of the data."""
    return f"{part} {metric.name}{' (lower is better)' * (metric.better == 'lower')}"


def as_percent(value: float, position: float) -> str:
    """The label of a tick at a fraction; matplotlib passes the tick's position too."""
    return f"{100 * value:.4g}%"


def format_interval(metric: Metric, mean: float, half: float | None) -> str:
    """A value of a metric with half of its interval, where it has one."""
    if half is None:
        return metric.label(mean)
    return f"{metric.number(mean)} ± {metric.spread(half)}{'%' * metric.percent}"


def halo() -> dict[str, Any]:
    """What keeps a text readable on top of points and lines."""
    return {"path_effects": [withStroke(linewidth=2.5, foreground="white")], "zorder": 5}


def percent(value: float) -> str:
    """A fraction as a percentage with three digits at most."""
    return f"{100 * value:.3g}%" if value < 10 else f"{100 * value:,.0f}%"


def times(value: float) -> str:
    """A factor with two decimals, or three digits where it is large."""
    return f"×{value:.2f}" if value < 100 else f"×{value:.3g}"


def count(value: float) -> str:
    """A count in few characters: 800, 20k, 1.5M."""
    for unit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:g}"
