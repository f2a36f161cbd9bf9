"""The page: what was done, what holds, the tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.evidence.significance import half_interval
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import Asked
from network_surgery.study.experiments.rows import Row, grid, spread, told
from network_surgery.study.experiments.units import claims, figures
from network_surgery.study.experiments.units.claims import LAYERS, change, ends
from network_surgery.study.experiments.units.looks import LEFT, SCORES
from network_surgery.study.experiments.units.schedule import PLAN, RESTART, UNPRUNED, parameters_left


def report(rows: Sequence[Row], asked: Asked, drawings: Mapping[str, Drawing], files: Mapping[str, str]) -> str:
    """Everything in markdown; ``files``: where the drawings lie beside it."""
    pictures = {key: f"![{drawing.title}]({files[key]})\n\n{drawing.caption}" for key, drawing in drawings.items()}
    at, seeds = figures.moments(rows), len({row["seed"] for row in rows if row["kind"] == "loss"})
    last = {each: grid(rows, "test", kind="end", activation=each)[:, 0] for each in figures.ACTIVATIONS}
    return f"""# Which units go, and what stays of them?

Evci 2018 (chapters 3 and 4) removes whole units while a network trains: those of the lowest *mean replacement saliency*
(MRS), the first order of what the loss changes by when a unit's output is fixed to its mean (the *penalty*, MRP); that
mean stays behind in the next layer's bias. This page asks again what was found there, with other seeds and with tests.

{evci.trained_on(asked, seeds)}
The thesis has 60,000 images, so that its ten epochs are 18,750 iterations; looks are taken over as many
iterations here, after {", ".join(f"{moment:,}" for moment in at)}. Test accuracy then is
{" and ".join(f"{100 * last[each].mean():.2f} ± {100 * last[each].std(ddof=1):.2f} % ({each})" for each in last)}
(thesis: 98.8 and 98.31 %).

{NOTES.get(asked.name, "")}
## Looks: units removed and put back

At each look every score ranks the units of a layer on training images (1,000 at most), a fraction of the units
(rounded down, as in the thesis) is removed, the loss is taken, and everything is put back. `l1_in` and `l2_in` are
norms of a unit's own
weights (the thesis's), `l1` and `l2` of those that read it; `random` is the mean of three draws. The thesis speaks of
256 units in `fc1`; the network whose parameters it counts has 64.

{pictures["units"]}

{told(claims.about_scores(rows))}

A difference is between means over all looks of a training, paired by seed, with its 95 % interval (Student's t, n =
{seeds}); **bold**: p < 0.05 after Holm over the table; (alone): the interval
does not reach zero, but Holm's correction does not leave it standing. The right half is the same on validation images.

Change of the loss, half of the units gone, mean over all looks and seeds (± half of the 95 % interval over seeds):

{_table_scores(rows)}

## What is left behind

`mean` is that of what the next layer receives, `mean_before` the thesis's: the mean before the activation, sent through
it. `median` and `extreme` (a saturated unit's value) are choices that the thesis names and did not try; `none` removes
without bias propagation. MRS chooses, each with its own replacement (`none`: with the mean).

{pictures["units_replacement"]}

{told(claims.about_replacements(rows))}

{_table_replacements(rows)}

## MRS and the others against MRP

The thesis says that MRS approximates MRP very well, and leaves the numbers out. Here they are:

{pictures["units_ranks"]}

{_table_ranks(rows)}

{told(claims.about_ranks(rows))}

## The schedule

{_schedule(rows, asked)}

{pictures["units_schedule"]}

{_table_schedule(rows)}

{told(claims.about_schedule(rows))}

In points of test accuracy, paired by seed.

{pictures["units_maps"]}

`{asked.command}`, on CPU ({platform.machine()}, {os.cpu_count()} cores, one thread a training); torch
{torch.__version__}, Python {platform.python_version()}.
"""


def _table_scores(rows: Sequence[Row]) -> str:
    columns = [(activation, layer) for activation in figures.ACTIVATIONS for layer in LAYERS]
    lines = [f"| score | {' | '.join(f'{a}, {b}' for a, b in columns)} |", "|---|" + "--:|" * len(columns)]
    for score in SCORES:
        cells = [
            spread(change(rows, activation=activation, layer=layer, score=score).mean(axis=1))
            for activation, layer in columns
        ]
        lines.append(f"| {score} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _table_replacements(rows: Sequence[Row]) -> str:
    columns = [(activation, layer) for activation in figures.ACTIVATIONS for layer in LAYERS]
    lines = [f"| left behind | {' | '.join(f'{a}, {b}' for a, b in columns)} |", "|---|" + "--:|" * len(columns)]
    for replacement in LEFT:
        which = {"replacement": replacement, "score": "mrs"}
        cells = [spread(change(rows, activation=a, layer=b, **which).mean(axis=1)) for a, b in columns]
        lines.append(f"| {replacement} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _table_ranks(rows: Sequence[Row]) -> str:
    columns = [(activation, layer) for activation in figures.ACTIVATIONS for layer in LAYERS]
    lines = [
        "Spearman's correlation with MRP, mean over looks and seeds; in brackets the lowest look's mean over seeds, "
        "and how many of the units that MRP removes at one half the score removes, too.\n",
        f"| score | {' | '.join(f'{a}, {b}' for a, b in columns)} |",
        "|---|" + "--:|" * len(columns),
    ]
    for score in SCORES[1:]:
        cells = []
        for activation, layer in columns:
            which = {"kind": "rank", "activation": activation, "layer": layer, "score": score}
            rho, shared = (grid(rows, field, **which) for field in ("rho", "shared"))
            cells.append(f"{rho.mean():.2f} ({rho.mean(axis=0).min():.2f}, {shared.mean():.0%})")
        lines.append(f"| {score} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _schedule(rows: Sequence[Row], asked: Asked) -> str:
    found = [row for row in rows if row["kind"] == "reading"]
    whole = found[0]["parameters"]
    lines = ["| a fraction … | conv1 | conv2 | fc1 | parameters |", "|---|--:|--:|--:|--:|"]
    for row in found[1:]:
        units = " | ".join(str(row["units"][layer]) for layer in LAYERS)
        lines.append(f"| {row['reading']} | {units} | {row['parameters']:,} |")
    fractions = ", ".join(f"{fraction:g}" for _, fraction in PLAN)
    epochs = ", ".join(str(tenth) for tenth, _ in PLAN)
    together = together_left(rows, asked)
    return f"""After epochs {epochs} of 10 a fraction {fractions} of the units is gone, those of the lowest score on
training images (1,000 at most) at that moment, with bias propagation. The thesis does not say of what these are
fractions, but how many of its 20,522 parameters are left on MNIST: 4,019. Here the network has {whole:,}; the readings
leave

{chr(10).join(lines)}

The first reading is the thesis's: on 28 × 28 images it leaves 4, 7 and 26 units, which are 4,019 parameters exactly.
Ranking the units of all layers together by their MRS (at the last look of the trainings above) would leave
{together}.
Every arm of a seed goes on from one network, shared until the first units go; `restart` is the final shape from fresh
weights, trained as long. Moments are scaled with the length of training."""


def together_left(rows: Sequence[Row], asked: Asked) -> str:
    """What a ranking of all layers together would leave, in words: least and most over seeds."""
    scores = [row for row in rows if row["kind"] == "scores" and row["activation"] == "ReLU"]
    last = max(row["iteration"] for row in scores)
    found = []
    for seed in sorted({row["seed"] for row in scores}):
        mine = {row["layer"]: row["mrs"] for row in scores if row["seed"] == seed and row["iteration"] == last}
        every = np.concatenate(list(mine.values()))
        limit = np.sort(every)[int(PLAN[-1][1] * len(every) + 1e-9)]
        units = {layer: max(2, sum(value >= limit for value in mine[layer])) for layer in LAYERS}
        found.append(units | {"parameters": parameters_left(asked.data, units)})
    return ", ".join(
        f"{min(each[name] for each in found):,} to {max(each[name] for each in found):,} "
        + (name if name == "parameters" else f"in {name}")
        for name in found[0]
    )


def _table_schedule(rows: Sequence[Row]) -> str:
    lines = [
        "| training | arm | test accuracy % | − unpruned, points | training loss, last epoch | parameters | loss after "
        "/ before, worst moment | n |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for training in dict.fromkeys(row["training"] for row in rows if row["kind"] == "arm"):
        test = ends(rows, training)
        for arm, values in test.items():
            mine = [row for row in rows if row["kind"] == "arm" and row["training"] == training and row["arm"] == arm]
            sizes = sorted({row["parameters"] for row in mine})
            losses = np.array([row["train_losses"][-1] for row in mine])
            worst = [max(peak[2] / peak[1] for peak in row["peaks"]) for row in mine if row.get("peaks")]
            gap = 100 * (values - test[UNPRUNED])
            cells = [
                training, arm, f"{100 * values.mean():.2f} ± {100 * values.std(ddof=1):.2f}",
                "" if arm == UNPRUNED else f"{gap.mean():+.2f} ± {float(half_interval(gap)):.2f}",
                f"{losses.mean():.3f}", " – ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1]))),
                f"× {np.median(worst):.2f}" if worst else "", str(len(values)),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    lines.append(
        "\n± behind an accuracy is the deviation over seeds, behind a difference half of its 95 % interval. Loss: of "
        f"the validation images, median over seeds; `{RESTART}` has no such moment."
    )
    return "\n".join(lines)


#: What came out when the results were looked into, by the name of the images; part of the report.
NOTES = {
    "MNIST": """
## What came out

**The thesis's size is met, its accuracy nearly.** Of every layer as it was, rounded down, the fractions leave 4, 7 and
26 units: the 4,019 parameters that the thesis counts. After as many iterations as there, the pruned network ends 0.63
points below its unpruned self (97.66 and 98.28 %; interval 0.11 to 1.14 points), after ten epochs of these fewer images
0.48 points (97.08 and 97.55 %; 0.05 to 0.90); neither stands after Holm. The thesis shows one seed without a loss
(98.42 % both), on 3.7 times as many images. The same shape from fresh weights ends 0.49 points below the pruned network
after ten epochs (which does not stand after Holm), and about where it ends after 37.

**Any score will do that is not chance.** With ReLU random units cost 8 to 12 times as much at once; in the schedule
they end 1.2 points lower, but anywhere (deviation 1.1 points), so that this is not shown. The thesis's order of scores
in `fc1` (MRP, then MRS, then norms) was not shown: their differences are small beside what random units cost.

**MRS stands in for MRP**: a rank correlation of 0.95 and more in every layer. Norms hardly agree with MRP in the first
iterations, and reach 0.8 to 0.9 later, with ReLU.

**Bias propagation halves what a removal costs, with ReLU**: without it 0.11, 0.25 and 0.10 (`conv1`, `conv2`, `fc1`)
instead of 0.06, 0.09 and 0.04. The mean before the activation, which the thesis takes, gives a quarter to two thirds of
that away.

**With tanh** half of `fc1` costs four times as much as with ReLU when it is replaced as in the thesis (which saw up to
seven times), random units two thirds (there: a third); and unlike there, MRS is shown to beat random units, if by less
(0.22 and 0.32). Bias propagation is worth nothing that shows, and the value of a saturated unit, which the thesis
suggests, is by far the worst to leave behind.

Limits: one small network, five seeds, eight looks at each training.
"""
}
