"""The page on timing, in Markdown."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from statistics import median

import torch

from network_surgery.study.experiments.timing.complexity import FORMULAS
from network_surgery.study.experiments.timing.figure import draw, spoken
from network_surgery.study.experiments.timing.measure import BATCH, IMAGES, SIGNAL_IMAGES, Found, Timing
from network_surgery.study.training.trainer import steps_per_epoch


def report(found: Found, picture: str) -> str:
    """The result in markdown: the bar, the tables by net, and the formulas."""
    sections = []
    for kind, title in (("dense", "Dense nets, n – n – n"), ("conv", "Convolutions, c – c – c")):
        mine = [t for t in found.timings if t.net == kind]
        if mine:
            sections.append(f"## {title}\n\n{_seconds_table(mine)}\n\n{_index_table(mine)}")
    vgg = [t for t in found.timings if t.net == "vgg16"]
    rates, eigen = found.rates, found.rates["products"] / found.rates["eigen"]
    slower = ", ".join(
        f"{words} {rates['products'] / rates[kind]:.0f}"
        for kind, words in (("values", "eigenvalues"), ("qr", "QR"), ("pivoting", "pivoted QR"))
    )
    growth = "\n".join(f"| {name} | {order} | {exact} |" for name, (order, exact) in FORMULAS.items())
    off = [t.predicted / t.seconds for t in found.timings if t.operation]
    sizes = ",".join(dict.fromkeys(t.layer for t in found.timings if t.net == "dense"))
    below = [f"`{t.name}` on {t.net} {t.layer} ({_round(t.index)})" for t in found.timings if t.index < 100]
    near = sum(1 / 3 <= ratio <= 3 for ratio in off) / max(len(off), 1)
    return f"""# How long does an operation interrupt training?

Each operation was done to the layer between two equal ones, with an Adam optimizer that had stepped: proposed, applied
(weights, gradients and both moments follow), then undone off the clock. What looks at signals gets {SIGNAL_IMAGES}
inputs or twice as many as units (8,192 at most); collecting them is in its seconds. An epoch is {IMAGES:,} images in
batches of {BATCH}, that is {steps_per_epoch(IMAGES, BATCH)} measured training steps. The *interruptibility index* is
an epoch's seconds over an operation's: above 100 the operation takes less than 1 % of an epoch.

![Seconds of every operation by size, measured and predicted, against a training step and an epoch]({picture})

{draw(found).caption}

Of {len(found.timings)} pairs of an operation and a layer, {len(below)} have an index below 100\
{": " + ", ".join(below) if below else ""}.

{_vgg_section(vgg) if vgg else ""}

{(chr(10) * 2).join(sections)}

## What is calculated

`n` units made from `i` inputs and read by `o` outputs, `p` positions of a kernel (1: dense), `s` samples of signals,
rank `r = max(1, floor(δ min(n, o)))`, `k` units kept. Every operation also rebuilds both weights, their gradients and
Adam's two moments: 16 (1 + new/old) n (i + o) p bytes, which is all that `random_remove` and `zero_expand` do.

| operation | order | floating-point operations |
|---|---|---|
{growth}

Predicted seconds are the fixed seconds of the operation (on 8 units: {_range(found.overheads.values())}), plus a
forward pass of the signals, plus work over rates measured on matrices of 1024 rows: {rates["products"] / 1e9:.0f}
GFLOP/s for products in double precision ({rates["single"] / 1e9:.0f} in single), {rates["bytes"] / 1e9:.1f} GB/s of
copying rows. A counted operation of the leading eigenvectors ((4/3) n³ in all) takes {eigen:.0f} times as long as one
of a product; {slower} times. {near:.0%} of {len(off)} predictions lie within a factor of 3 of what was measured
(median of predicted / measured: {median(off):.2f}).

The thesis (3.1.4) puts EigenRemove at O(r² m) and WeakExpand at O(n log n). The first leaves out the Gram matrix or
the singular value decomposition that finds the subspace, the second that the weights of every copy are written.

`python -m network_surgery.study.experiments.timing --sizes {sizes} --repeats {found.repeats} --limit {found.limit:g}`,
{found.device}, {found.threads} thread(s) of a shared machine; medians [lowest – highest]; an operation that took over
{found.limit:g} s was not measured on larger nets. torch {torch.__version__}, Python {platform.python_version()}.
"""


def _vgg_section(timings: list[Timing]) -> str:
    worst = min(timings, key=lambda t: t.index)
    over = sum(t.index < 100 for t in timings)
    verdict = "Every operation takes less than 1 %" if not over else f"**{over} of {len(timings)} take 1 % or more**"
    return f"""## VGG16

The thesis's network on 3 × 32 × 32 images: a step takes {spoken(worst.step)}, an epoch {spoken(worst.epoch)}. {verdict}
of that epoch; the worst is `{worst.name}` on {worst.layer}: {spoken(worst.seconds)}, {_share(worst)} (index
{_round(worst.index)}). The thesis's published code took 16 to 27 s in the median for an EigenRemove and 969 s at most,
beside epochs of about 40 s on a GTX 1060: an index of about 2, and 0.04 at worst.

{_table(timings, lambda t: f"{_spread(t)}, {_share(t)}", "")}"""


def _seconds_table(timings: list[Timing]) -> str:
    steps = {t.layer: t for t in timings}
    extra = [
        ("*forward pass*", {layer: spoken(t.forward) for layer, t in steps.items()}),
        ("*training step*", {layer: spoken(t.step) for layer, t in steps.items()}),
        ("*epoch*", {layer: spoken(t.epoch) for layer, t in steps.items()}),
    ]
    return "Seconds, signals included:\n\n" + _table(timings, _spread, "", extra)


def _index_table(timings: list[Timing]) -> str:
    return "Interruptibility index, and (predicted / measured seconds):\n\n" + _table(timings, _index, "")


def _index(timing: Timing) -> str:
    return f"{_round(timing.index)} ({timing.predicted / timing.seconds:.1f})" if timing.operation else ""


def _table(
    timings: list[Timing],
    cell: Callable[[Timing], str],
    empty: str,
    extra: list[tuple[str, dict[str, str]]] | None = None,
) -> str:
    """A row an operation, a column a layer."""
    layers = list(dict.fromkeys(t.layer for t in timings))
    rows: dict[str, dict[str, str]] = {name: cells for name, cells in extra or []}
    for t in timings:
        rows.setdefault(f"`{t.name}`", {})[t.layer] = cell(t)
        if t.signals and cell is not _index:
            rows.setdefault(f"… of it signals of `{t.name}`", {})[t.layer] = spoken(median(t.signals))
    lines = [f"| {name} | {' | '.join(cells.get(layer, empty) for layer in layers)} |" for name, cells in rows.items()]
    return "\n".join([f"| | {' | '.join(layers)} |", "|---" * (len(layers) + 1) + "|", *lines])


def _spread(timing: Timing) -> str:
    if not timing.operation:
        return f"not measured: predicted {spoken(timing.predicted)}"
    both = [a + b for a, b in zip(timing.operation, timing.signals or [0.0] * len(timing.operation), strict=True)]
    return f"{spoken(timing.seconds)} [{spoken(min(both))} – {spoken(max(both))}]"


def _share(timing: Timing) -> str:
    return f"{100 / timing.index:.2g} % of an epoch"


def _range(values: Iterable[float]) -> str:
    values = list(values)
    return f"{spoken(min(values))} to {spoken(max(values))}"


def _round(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"
