"""What the isolation study leaves behind: isolation.md and its figures, isolation.json, a table on the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.evidence.significance import Difference
from network_surgery.study.experiments.isolation import Found, figures
from network_surgery.study.experiments.isolation.curves import RANKS, Curves
from network_surgery.study.experiments.isolation.random_weights import WHERE
from network_surgery.study.experiments.isolation.statements import GROWTH, OURS, SAME_UNITS, THESIS, Verdict

#: The sizes that tables show, as fractions of the layer; the JSON has all.
SHOWN = (0.9, 0.75, 0.5, 0.25, 0.1)


def write(found: Found, out: Path) -> list[Path]:
    """Writes isolation.md, isolation.json and the figures; gives their paths."""
    shrunk = [curves for curves in found.curves if curves.change == "shrink"]
    grown = [curves for curves in found.curves if curves.change == "grow"]
    drawings = {
        "isolation_shrink.png": figures.shrinking(shrunk[0]),
        "isolation_grow.png": figures.growing(grown[0]),
        "isolation_trained.png": figures.trained(shrunk[1:]),
    }
    for name, drawing in drawings.items():
        drawing.save_small(out / name)
    (out / "isolation.json").write_text(json.dumps(to_data(found)), encoding="utf-8")
    (out / "isolation.md").write_text(text(found, drawings), encoding="utf-8")
    return [out / "isolation.md", out / "isolation.json", *(out / name for name in drawings)]


def to_data(found: Found) -> dict[str, object]:
    """Everything as plain data."""
    asked = found.asked
    return {
        "width": asked.width, "step": asked.step, "iterations": asked.iterations, "trainings": asked.trainings,
        "settings": asked.settings.to_data(), "machine": found.machine, "accuracies": found.accuracies,
        "ranks": list(RANKS), "spectra": found.spectra, "curves": [curves.to_data() for curves in found.curves],
        "statements": [verdict.to_data() for verdict in found.verdicts],
    }  # fmt: skip


def text(found: Found, drawings: dict[str, Drawing]) -> str:
    """The report in markdown."""
    asked, settings, machine = found.asked, found.asked.settings, found.machine
    random = [curves for curves in found.curves if curves.where == WHERE]
    layers = [curves for curves in found.curves if curves.where != WHERE]
    pictures = {name: f"![{drawing.title}]({name})\n\n{drawing.caption}" for name, drawing in drawings.items()}
    accuracy = np.array(found.accuracies)
    missing = [
        f"- {curves.where}, {method}: {why}" for curves in found.curves for method, why in curves.missing.items()
    ]
    return f"""# What does an operation do to the output in the instant after it?

The isolation study of Graham 2019 (4.1.1, 4.2.1), repeated, and extended to trained layers. One hidden layer alone is
shrunk and grown by every method. What is measured is the squared Frobenius distance of the network's output before
and after, also over the squared norm of the output before (*relative*), so that layers of other sizes compare: 0 is no
change, 1 as far off as an output of zeros.

**Random weights.** Dense {asked.width} – {asked.width} – {asked.width}, tanh, PyTorch's uniform default weights, no
bias (the output layer's is zero, so that an operation that moves constants can), {asked.width} inputs uniform in 0 … 1;
the hidden layer changes in steps of {asked.step} units; {asked.iterations} networks, each with its own inputs, the same
for all methods. Operations that look at activations see {min(4 * asked.width, 8192)} other inputs.

**Trained layers.** `{settings.model}` on `{settings.data}`, {settings.epochs} epochs, {asked.trainings} trainings
(validation accuracy {_spread(100 * accuracy, ".2f")} %); each hidden layer alone; logits on the validation images, in
evaluation mode; operations that look at activations see {settings.signal_images} training images.

**Methods.** EigenRemove at ranks {", ".join(RANKS.values())} (the lowest is 1/5 in the thesis's text and 1/8 in its
code and figure; both are tested), keeping the chosen units' original weights (Algorithm 2)
or the rank-reduced ones (Listing 6.1); MinWeight; random removal; mean replacement, which leaves the mean output of
what goes in the next bias, with units chosen by the norm of their outgoing weights (`l2`) or by the change expected
(`variance`); PCNS with a pivoted basis at the same number of units; random replacement: both matrices drawn anew (the
thesis's floor). Growing: WeakExpand with three ways to share, ZeroExpand, random replacement.

## What is said, and what was found

{_overview(found.verdicts)}

{HOW}

### What the thesis says

{_statements(found.verdicts, [SAME_UNITS, *THESIS, GROWTH])}

### What it does not ask

{_statements(found.verdicts, [*OURS])}

## Random weights

{pictures["isolation_shrink.png"]}

Relative squared distance, mean ± standard deviation over {asked.iterations} networks:

{_table(random[0], random[0].relative, ".4f")}

Squared distance (the thesis's measure), mean (variance):

{_table(random[0], random[0].distance, "variance")}

{pictures["isolation_grow.png"]}

{_table(random[1], random[1].relative, ".2g")}

## Trained layers

{pictures["isolation_trained.png"]}

{"".join(_of_layer(curves) for curves in layers)}## How flat the spectra are

The share of the squared norm of the outgoing weights that their leading singular vectors hold, by rank; in the mean.

| layer | {" | ".join(RANKS.values())} | n |
|---|{"--:|" * (len(RANKS) + 1)}
{chr(10).join(_spectrum(name, np.array(rows)) for name, rows in found.spectra.items())}
{chr(10).join(["", "## Not measured", "", *missing, ""]) if missing else ""}
`surgery isolate --width {asked.width} --step {asked.step} --iterations {asked.iterations} --trainings {asked.trainings}
--data {settings.data} --model {settings.model} --epochs {settings.epochs} --seed {settings.seed}`:
{machine["seconds"]:.0f} seconds on {machine["device"]} ({machine["processor"]}, {machine["cores"]} cores); torch
{machine["torch"]}, Python {machine["python"]}. Every point and every test: isolation.json, which the
command writes beside this file.
"""


HOW = """Each statement is put as differences that are above zero if it holds, paired by network: *holds* if all of them
are above zero at 0.05 (paired t-test, two-sided, adjusted by Holm over all tests on that layer), *does not hold* if one
is below, *undecided* otherwise. Shown is the difference that speaks most against the statement: mean of the relative
squared distance with its 95 % interval (not adjusted), and d, the mean over the deviation of the differences. Without a
size, the distance is the mean over all sizes. A rank is a fraction of a weight's smaller side and is taken in both of
its modes, as in the thesis's listing, so a convolution that reads one channel is reduced to rank 1 at every δ < 1."""


def table(found: Found) -> Table:
    """What the terminal shows: every method at half of every layer."""
    shrunk = [curves for curves in found.curves if curves.change == "shrink"]
    shown = Table(
        title="Relative squared distance of the output at about half of the units (mean)",
        title_justify="left",
    )
    shown.add_column("method", no_wrap=True)
    for curves in shrunk:
        shown.add_column(f"{curves.where}\n{curves.sizes[curves.nearest(0.5)]} of {curves.units}", justify="right")
    for method in dict.fromkeys(method for curves in shrunk for method in curves.relative):
        cells = (
            f"{curves.relative[method][:, curves.nearest(0.5)].mean():.4f}" if method in curves.relative else "–"
            for curves in shrunk
        )
        shown.add_row(method, *cells)
    return shown


def _overview(verdicts: Sequence[Verdict]) -> str:
    """A row a statement, a column a layer; two findings where both forms of EigenRemove were asked."""
    layers = list(dict.fromkeys(verdict.where for verdict in verdicts))
    rows = []
    for name in (SAME_UNITS, *THESIS, GROWTH, *OURS):
        cells = (
            " / ".join(verdict.finding for verdict in verdicts if (verdict.statement, verdict.where) == (name, layer))
            for layer in layers
        )
        rows.append(f"| {name} | {' | '.join(cells)} |")
    head = f"| statement (original / reduced weights kept) | {' | '.join(layers)} |"
    return "\n".join([head, "|---|" + "---|" * len(layers), *rows])


def _statements(verdicts: Sequence[Verdict], names: Iterable[str]) -> str:
    """A list of statements, each with a table row a layer and form."""
    lines = []
    for name in names:
        found = [verdict for verdict in verdicts if verdict.statement == name]
        if not found:
            continue
        lines += [
            f"**{name}.**",
            "",
            "| layer | weights kept | finding | weakest evidence | n |",
            "|---|---|---|---|--:|",
        ]
        for verdict in found:
            words, n = (verdict.exact[1], "") if verdict.exact else (_evidence(*verdict.weakest), verdict.weakest[1].n)
            lines.append(f"| {verdict.where} | {verdict.weights} | {verdict.finding} | {words} | {n} |")
        lines.append("")
    return "\n".join(lines).strip()


def _evidence(what: str, test: Difference) -> str:
    if test.interval is None or test.p is None:
        return f"{what}: {test.mean:+.4f} in every network"
    low, high = test.interval
    p = f"p = {test.p:.2g}" if test.p >= 1e-4 else "p < 0.0001"
    return f"{what}: {test.mean:+.4f} [{low:+.4f}, {high:+.4f}], d = {test.effect:+.2f}, {p}"


def _of_layer(curves: Curves) -> str:
    """A layer's tables: distance, and accuracy right after."""
    title = f"### {curves.where}, {'shrunk from' if curves.change == 'shrink' else 'grown from'} {curves.units} units"
    if curves.change == "grow":
        return f"{title}\n\n{_table(curves, curves.relative, '.2g')}\n\n"
    accuracy = {method: 100 * values for method, values in curves.accuracy.items()}
    parts = (_table(curves, curves.relative, ".4f"), "Accuracy right after, %:", _table(curves, accuracy, ".1f"))
    return f"{title}\n\nRelative squared distance:\n\n" + "\n\n".join(parts) + "\n\n"


def _table(curves: Curves, values: dict[str, NDArray[np.float64]], form: str) -> str:
    """A row a method, a column a size; ``form`` is a number's format, or ``variance`` for mean (variance)."""
    if curves.change == "shrink":
        columns = sorted(dict.fromkeys(curves.nearest(fraction) for fraction in SHOWN), reverse=True)
    else:
        columns = sorted({0, len(curves.sizes) // 2, len(curves.sizes) - 1})
    head = f"| units left | {' | '.join(str(curves.sizes[at]) for at in columns)} | n |"
    head = head if curves.change == "shrink" else head.replace("units left", "units after")
    rows = [
        f"| {method} | {' | '.join(_spread(found[:, at], form) for at in columns)} | {len(found)} |"
        for method, found in values.items()
    ]
    return "\n".join([head, "|---|" + "--:|" * (len(columns) + 1), *rows])


def _spectrum(name: str, rows: NDArray[np.float64]) -> str:
    return f"| {name} | {' | '.join(f'{share:.3f}' for share in rows.mean(axis=0))} | {len(rows)} |"


def _spread(values: NDArray[np.float64], form: str) -> str:
    if form == "variance":
        return f"{values.mean():.4g} ({values.var(ddof=1):.2g})"
    return f"{values.mean():{form}} ± {values.std(ddof=1):{form}}"
