"""The page: what was done, what holds, the tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from network_surgery.study import models
from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.evidence.significance import half_interval
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import Asked
from network_surgery.study.experiments.rows import Row, grid, spread, told
from network_surgery.study.experiments.weights import claims, figures
from network_surgery.study.experiments.weights.claims import (
    ACTIVATIONS,
    DENSE,
    FIRST,
    MOST,
    change,
    compact,
    ends,
    growth,
    ranks,
)
from network_surgery.study.experiments.weights.looks import MEASURED, SCORES, TAYLOR
from network_surgery.study.experiments.weights.schedule import F_NZ, PLAN, UNPRUNED


def report(rows: Sequence[Row], asked: Asked, drawings: Mapping[str, Drawing], files: Mapping[str, str]) -> str:
    """Everything in markdown; ``files``: where the drawings lie beside it."""
    pictures = {key: f"![{drawing.title}]({files[key]})\n\n{drawing.caption}" for key, drawing in drawings.items()}
    at, seeds = figures.moments(rows), figures.seeds_of(rows)
    last = {each: grid(rows, "test", kind="end", activation=each)[:, 0] for each in ACTIVATIONS}
    epochs = ", ".join(str(tenth) for tenth, _ in PLAN)
    fractions = ", ".join(f"{fraction:g}" for _, fraction in PLAN)
    moved = float(grid(rows, "moved", kind="compact", f_nz=0.0).max())
    return f"""# Which weights go?

Evci 2018 (chapter 2) prunes single weights of a small network while it trains, by their size and by what the loss would
change without them: measured one by one (`loss_change`), in first order (`taylor1`), with curvature (`taylor2`,
`hessian`; `ops/signals/weight_scores.py`), and by the absolute values of these. This page asks again what was found
there, with other seeds and with tests.

{evci.trained_on(asked, seeds)}
The thesis has 60,000 images, so that its five epochs are 9,375 iterations; looks are taken after
{", ".join(f"{moment:,}" for moment in at)} iterations here. Test accuracy then is
{" and ".join(f"{100 * last[each].mean():.2f} ± {100 * last[each].std(ddof=1):.2f} % ({each})" for each in last)}.

{NOTES.get(asked.name, "")}
## Looks: weights set to zero and put back

At each look every score ranks the weights of a layer on the validation images, as in the thesis; the fraction with the
lowest scores is set to zero, the loss is taken, and the weights are put back. `{FIRST}` has
{_weights(asked, FIRST):,} weights. In `{DENSE}` the change of the loss is not measured for each of its
{_weights(asked, DENSE):,} weights.

{pictures["weights"]}

{told(claims.of_looks(rows))}

Differences are of the mean over all looks of a training, where nothing else is said, paired by seed, with 95 %
intervals (Student's t, n = {seeds}); **bold**: p < 0.05 after Holm over the table; (alone): the interval
does not reach zero, but Holm's correction does not leave it standing. The right half is of
training images (1,000 at most), which no score has seen.

Change of the loss with {MOST:g} of a layer's weights gone, mean over all looks and seeds (± half of the 95 % interval
over seeds; in brackets the largest of the looks' means):

{_table_scores(rows)}

## What scores say of themselves

{pictures["weights_scores"]}

{_table_negative(rows)}

{told(claims.of_approximations(rows))}

## The schedule, and compaction

After epochs {epochs} of 10 the smallest of all weights are masked, until {fractions} of them are zero; `random` masks
as many at random. All arms of a seed go on from one network, shared until the first pruning.

{pictures["weights_schedule"]}

{_table_schedule(rows)}

{told(claims.of_schedule(rows))}

In points of test accuracy, paired by seed.

Compaction removes units with at most a fraction `f_nz` of nonzero incoming or outgoing weights; the mean of what they
send on goes into the next bias (the thesis had no bias propagation and lost accuracy at 0). At 0 the largest change of
a logit on the test images was {moved:.1g} of the largest logit, over all seeds: rounding.

{_table_compact(rows)}

{pictures["weights_maps"]}

`{asked.command}`, on CPU ({platform.machine()}, {os.cpu_count()} cores, one thread a training); torch
{torch.__version__}, Python {platform.python_version()}.
"""


def _weights(asked: Asked, layer: str) -> int:
    model = models.build(evci.NETWORKS["ReLU"], asked.data.shape, len(asked.data.classes))
    return model.get_parameter(f"{layer}.weight").numel()


def _table_scores(rows: Sequence[Row]) -> str:
    columns = [(activation, layer) for layer in (FIRST, DENSE) for activation in ACTIVATIONS]
    lines = [f"| score | {' | '.join(f'{a}, {b}' for a, b in columns)} |", "|---|" + "--:|" * len(columns)]
    for score in SCORES:
        cells = []
        for activation, layer in columns:
            if layer == DENSE and score.startswith(MEASURED):
                cells.append("")
                continue
            found = change(rows, activation=activation, layer=layer, score=score, fraction=MOST)
            cells.append(f"{spread(found.mean(axis=1))} ({found.mean(axis=0).max():.2f})")
        lines.append(f"| {score} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _table_negative(rows: Sequence[Row]) -> str:
    lines = [
        f"Of `{FIRST}`: how many weights have a score below zero (the thesis: about 35 %, all the time), by how much "
        "that changes from the first half of the looks to the second, and Spearman's correlation with the measured "
        "change, of the scores and of absolute values.\n",
        "| activation | score | below zero % | second half − first | rank correlation | of absolute values |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for activation in ACTIVATIONS:
        for score in (MEASURED, *TAYLOR, "magnitude"):
            cells = ["", ""]
            if score != "magnitude":
                share = 100 * grid(rows, "share", kind="negative", activation=activation, layer=FIRST, score=score)
                cells = [spread(share.mean(axis=1), 1), spread(growth(share), 1)]
            if score == MEASURED:
                cells += ["", ""]
            else:
                cells += [spread(ranks(rows, activation, score, at).mean(axis=1), 2) for at in ("rho", "rho_abs")]
            lines.append(f"| {activation} | {score} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _table_schedule(rows: Sequence[Row]) -> str:
    test = ends(rows)
    lines = [
        "| arm | test accuracy % | − unpruned, points | training loss, last epoch | parameters, zeros left out | loss "
        "after / before, worst moment | n |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for arm, values in test.items():
        mine = [row for row in rows if row["kind"] == "arm" and row["arm"] == arm]
        worst = [max(peak[2] / peak[1] for peak in row["peaks"]) for row in mine if row["peaks"]]
        gap = 100 * (values - test[UNPRUNED])
        cells = [
            arm, f"{100 * values.mean():.2f} ± {100 * values.std(ddof=1):.2f}",
            "" if arm == UNPRUNED else f"{gap.mean():+.2f} ± {float(half_interval(gap)):.2f}",
            f"{np.mean([row['train_losses'][-1] for row in mine]):.3f}", f"{mine[0]['parameters']:,}",
            f"× {np.median(worst):.2f}" if worst else "", str(len(values)),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _table_compact(rows: Sequence[Row]) -> str:
    whole = grid(rows, "parameters", kind="arm", arm=UNPRUNED)[:, 0]
    lines = [
        "| f_nz | parameters, zeros included | of the whole | not zero | test accuracy % | − f_nz 0, points | n |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for f_nz in F_NZ:
        dense, live, test = (compact(rows, field, f_nz) for field in ("dense", "live", "test"))
        gap = 100 * (test - compact(rows, "test", 0.0))
        lines.append(
            f"| {f_nz:g} | {dense.mean():,.0f} ± {dense.std(ddof=1):,.0f} | {(dense / whole).mean():.0%} | "
            f"{live.mean():,.0f} | {100 * test.mean():.2f} ± {100 * test.std(ddof=1):.2f} | "
            f"{f'{gap.mean():+.2f} ± {float(half_interval(gap)):.2f}' if f_nz else ''} | {len(test)} |"
        )
    return "\n".join(lines)


#: What came out when the results were looked into, by the name of the images; part of the report.
NOTES = {
    "MNIST": """
## What came out

**Nearly everything that the thesis says of weight scores is found again with ReLU.** The share of `conv1`'s weights
whose removal alone would lower the loss is 35 % in the mean of all looks, as in the thesis; it is not constant, but
grows from 30 to 45 %. Pruning the two weights that promise most lowers the loss, also on images that did not choose
them, by a little more than half as much; pruning ten raises it later in training, for their changes no longer add up.
Absolute values beat signed scores, in `fc1` by a factor of 30 and more. Magnitude costs least and jumps least.

**First order ranks weights best**, which the thesis saw in pictures and left to later work: Spearman's correlation of
`taylor1` with the measured change is 0.86, of `taylor2` 0.60, of `hessian` 0.38. The curvature that these two add is
that of all weights going at once; it is not what one of them changes. For pruning most of `conv1` at once they are
better for it: their absolute values cost half of what that of `taylor1` does.

**With tanh** it is the same, in smaller numbers: the share stays where it is (33 %), that changes add up less and less
is shown, `taylor1` agrees with the measured change less as training goes on (so it seems with ReLU, too); that
magnitude is best and steadiest is shown in `fc1` only.

**Half the size is not quite free.** After ten epochs nine of ten weights are gone for 0.96 points (random ones: 14.9).
Compaction at `f_nz` = 0 leaves 73 % of the dense parameters and changes nothing, up to 0.03 (57 %) nothing that shows;
41 % of them cost 0.5 points more. The thesis, whose training is 3.7 times as long, halves the network without a loss.

Limits: one small network, five seeds, six looks at each training, images in two samples of 1,000.
"""
}
