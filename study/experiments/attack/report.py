"""The page: what was done, the claims of the thesis with what was found, the tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import torch

from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.experiments.attack import tables
from network_surgery.study.experiments.attack.arms import HARD, WHEN
from network_surgery.study.experiments.attack.claims import claims
from network_surgery.study.experiments.attack.findings import KILLED
from network_surgery.study.experiments.attack.results import FLOOR, Results
from network_surgery.study.experiments.attack.watch import FLAT

#: What was read from the run on CIFAR-10.
NOTES = """
**ReLU kills, the bounded networks do not**, which is the other way round from 3.7. Every unit that was killed has ReLU
and lies in conv2 or fc1. In conv1 units with ReLU gain, which is what the thesis tells of most of its units; its two
dead ones of the second layer died as ours do: flat for every image, no gradient, for good. An explanation that fits,
but was not tried: behind ReLU a unit is never given anything negative, so that a large step of its weights moves its
output the same way for all images, and once that is below zero nothing moves it back; pixels, tanh and BatchNorm (here
behind the activation) give it both signs. When it happens matters, too: from iteration 50 on gradients are small, and
next to none of the units is killed.

**BatchNorm dims and does not kill.** From ×100 on nearly all attacked units lose MRP, by a quarter to two fifths, most
of all in conv1, and more by ×1000 than by ×100, as in the thesis. After ×1000 the norm of their weights is tenfold and
their gradient a fiftieth, but more than half of the MRP is left: frozen is not dead.

**With tanh attacked units gain at first**, the more the harder and the earlier, although by ×1000 most of their outputs
become flat: in young networks activations are small, and larger weights make them say more. (The thesis sees this, too,
from iteration 50 on.) With longer training the units that were left alone catch up: the factor falls towards one, and
in conv1, the layer that 3.5 shows, below it. So an attacked unit does not lose what it has, it stops gaining. Whether
ours would come down to the half that the thesis shows after 30 epochs is open.

**Nobody sees it in the loss**, but MRS sees it nearly as MRP does; two of the four layers without attack where it
misses the lowest unit are the first one with BatchNorm, whose units deviate by an eighth only. Norms would prune the
wrong units: of those that lost MRP by an attack, most have the largest incoming weights of their layer.

Limits: one small network, young (see the accuracies), plain SGD, one unit a layer and seed, {n} seeds. Geometric means
over units of which some die depend on what counts as dead; the counts do not. An attack every 100 iterations (3.4.2)
was not tried.
"""


def report(results: Results, drawings: Mapping[str, Drawing]) -> str:
    """The whole of it."""
    setting, n = results.setting, len(results.seeds)
    starts = ", ".join(f"{start:,}" for start in sorted({attack.start for attack in (*HARD, *WHEN)}))
    figures = {name: f"![{drawing.title}]({name}.png)\n\n{drawing.caption}" for name, drawing in drawings.items()}
    return f"""# Can one unit be killed by too high a learning rate, and is it seen?

Evci 2018 (*Detecting dead weights and units*, chapter 3) multiplies the learning rate of one unit's incoming weights
for ten steps of training and watches the unit's *mean replacement penalty* (MRP): how much the loss of an image
changes, up or down, when the unit's output is replaced by its mean. A unit with an MRP of next to nothing is dead. Its
first-order form, *mean replacement saliency* (MRS), costs one backward pass for all units. The thesis shows single
units; here every attack has {n} seeds and is compared with the same network left alone.

**Trained.** The thesis's small CNN (5 × 5 convolutions of 8 and 16 channels, each pooled over 2 × 2, 64 dense units;
images below 16 pixels: padded 3 × 3) with ReLU, with ReLU and BatchNorm behind it, and with tanh, on {results.train:,}
images of {results.name}: SGD {setting.learning_rate:g} without momentum, batches of {setting.batch_size},
{setting.networks[0].epochs} epochs of {results.per_epoch:,} iterations{_longer(results)}. Everything is measured on
{results.validation:,} other images, in evaluation mode. The thesis does not give the size of its batches or of its
training set in that chapter (batches of 32 elsewhere); if it is all of CIFAR-10, its runs have some 15,000 iterations
and those with tanh 45,000. Accuracy at the end: {tables.accuracies(results)}; the thesis has 61 % (ReLU), 67 % (with
BatchNorm) and 64 % (tanh). So these are networks at an earlier stage of their training.

**Attacked.** The gradient of all incoming weights of one unit, but not of its bias, is multiplied by 10, 100 or 1,000
at ten iterations with ten from one to the next (for plain SGD this is the learning rate), from iteration
{starts} on{_scaled(results)}.
One unit in each of the layers {", ".join(results.layers)}, drawn by the seed, dead ones not excluded, each in a
training of its own; until the attack it is the training without attack, and after it the batches are the same.

**MRP and MRS** are means over images of the change of the loss without its sign (nats). The thesis writes a sum over
1,000 images, but the 0.2 to 0.3 that it tells (3.5) are of the size of our means. It takes the unit's mean before the
activation, here it is that of what the next layer receives; both are in the first table. A unit whose MRP falls below
{KILLED:g} of what it is without attack is called *killed*; an MRP below {FLOOR:g} counts as {FLOOR:g}. *Flat*: where
the activation's slope is below {FLAT:g}.

{figures["attack"]}

## What holds

Factors are geometric means over the attacked units of a seed's {len(results.layers)} layers; the tests' sample is the
{n} seeds (Student's t, 95 % intervals; * marks p < 0.05 after Holm over its table's tests of that column). Whether most
units gain or lose is a sign test over the units themselves. *Holds* or *does not hold* is said where a test shows it;
*undecided* where none does.

{chr(10).join(claims(results))}
{NOTES.format(n=n) if results.name.startswith("CIFAR-10") else ""}
{figures["attack_units"]}

## The attacks

Factor on MRP. *Lower*, *killed*: attacked units that end so, of all; * marks p < 0.05 of the sign test, after Holm.

{tables.penalties(results)}

By the layer of the attacked unit: factor on MRP at the end (how many of {n} end lower, are killed).

{tables.by_layer(results)}

What else became of the attacked units and, in the last two columns, of their networks; at the end but for the norm:
factors, differences of shares, of the validation loss (thousandths) and of accuracy (points).

{tables.consequences(results)}

Factors on MRP at the end, one attack compared with another, or the same attack in two networks. Each third of the table
is a family of tests.

{tables.differences(results)}

## What ranks units as MRP does

{figures["attack_scores"]}

Spearman's correlation with MRP over a layer's units, mean ± deviation over {n} seeds; in brackets, in how many seeds
the unit with the lowest MRS has the lowest MRP. *In*, *out*: norms of incoming and outgoing weights.

{tables.ranking(results)}

## Networks without attack

At the end of training, {n} seeds. *Dead*: MRS at most 1 % of the layer's mean; *frozen*: the largest gradient at the
unit's output, over images and positions, at most 1 % of the layer's mean (`ops/operations/dead_units.py`).

{tables.alone(results)}

`python -m network_surgery.study.experiments.attack --data {results.source} --seeds {n}`, on CPU ({platform.machine()},
{os.cpu_count()} cores, one thread a training); torch {torch.__version__}, Python {platform.python_version()}.
"""


def _longer(results: Results) -> str:
    """The networks that are trained for longer."""
    usual = results.setting.networks[0].epochs
    more = [network for network in results.setting.networks if network.epochs != usual]
    return "".join(f" (*{network.activation}*: {network.epochs} epochs, one attack)" for network in more)


def _scaled(results: Results) -> str:
    """What became of the iterations in a run with shorter epochs."""
    factor = results.per_epoch / results.setting.per_epoch
    if factor >= 1:
        return ""
    return f" of an epoch of {results.setting.per_epoch:,} iterations; here they come sooner, × {factor:.2g}"
