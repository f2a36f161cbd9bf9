"""Whether the training loss after surgery is lower where the optimizer's state follows the units."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part, images
from network_surgery.study.bench.panels import Panels
from network_surgery.study.bench.rows import Measured, Rows, Values
from network_surgery.study.bench.tables import deviation, table
from network_surgery.study.evidence.drawing import BLUE, COLOURS, VERMILLION, Drawing, Look
from network_surgery.study.experiments.optimizer_state.measure import ARMS, OPERATIONS, OPTIMIZERS

LOOKS: dict[str, Look] = {
    "carry": {"color": BLUE, "linestyle": "-"},
    "reset": {"color": VERMILLION, "linestyle": "--"},
    "stale": {"color": COLOURS[2], "linestyle": ":"},
}
PLACES = list(itertools.product(OPTIMIZERS, OPERATIONS))
#: Steps over which the loss is compared (the longer span ends with the run), and over which a curve is smoothed.
EARLY, WINDOW = 10, 5


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows = measured.rows
    return {"images": images(measured), "losses": draw(rows), "claims": claims(rows), "table": to_table(rows)}


def spans(rows: Rows) -> dict[str, slice]:
    """The steps after surgery that losses are averaged over: the first ones, and all."""
    return {f"steps 1–{last}": slice(last) for last in (EARLY, len(rows[0]["losses"]))}


def curves(rows: Rows, place: tuple[str, str], arm: str, within: slice = slice(None)) -> Values:
    """The losses ``[seeds, steps]`` of an optimizer with an operation, and of an arm."""
    return rows.grid("losses", optimizer=place[0], operation=place[1], arm=arm)[:, 0, within]


def claims(rows: Rows) -> list[Claim]:
    """The mean loss of another arm less that with ``carry``, for every optimizer and operation."""

    def more(place: tuple[str, str], arm: str, within: slice) -> Values:
        return np.asarray((curves(rows, place, arm, within) - curves(rows, place, "carry", within)).mean(axis=1))

    return [
        Claim(
            f"{span}: the loss is higher with {arm} than with carry", "",
            {"; ".join(place): more(place, arm, within) for place in PLACES},
        )
        for arm in ARMS[1:] for span, within in spans(rows).items()
    ]  # fmt: skip


def to_table(rows: Rows) -> str:
    """The mean loss of every arm over each span."""
    lines = [
        [*place, arm, *(deviation(curves(rows, place, arm, within).mean(axis=1), 4) for within in spans(rows).values())]
        for place in PLACES for arm in ARMS
    ]  # fmt: skip
    return table(["optimizer", "operation", "arm", *(f"loss, {span}" for span in spans(rows))], lines, words=3)


def draw(rows: Rows) -> Drawing:
    """How far the other arms' loss lies above that of ``carry``: a row for each optimizer, a column an operation."""
    label = "loss, compared with carry"
    panels = Panels(list(OPTIMIZERS), list(OPERATIONS), (8.4, 5.0), label, sharex=True, sharey=True)
    for place in PLACES:
        axes, carried = panels[place], smooth(curves(rows, place, "carry"))
        steps, scale = range(1, carried.shape[1] + 1), carried.mean(axis=0)
        axes.axhline(0, label="carry", **LOOKS["carry"])
        for arm in ARMS[1:]:
            above = (smooth(curves(rows, place, arm)) - carried) / scale
            panels.curve(*place, steps, above, arm, LOOKS[arm], band=True)
        axes.set(xscale="log", xlim=(1, steps[-1]))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.0%}" if value else "0"))
    return panels.drawing("Training loss after surgery, by optimizer, operation and arm", "step after surgery")


def smooth(losses: Values) -> Values:
    """A running mean over ``WINDOW`` steps of each row; near the ends over what there is."""
    window = np.ones(WINDOW)
    counts = np.convolve(np.ones(losses.shape[1]), window, "same")
    return np.stack([np.convolve(each, window, "same") / counts for each in losses])
