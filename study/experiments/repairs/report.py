"""The tests, the tables and the verdicts, in markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from network_surgery.study.data import Dataset
from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.evidence.significance import Difference, family
from network_surgery.study.experiments.repairs.arms import (
    ARMS,
    BUILT_IN,
    NOTHING,
    REMOVALS,
    SETTING,
    Arm,
    Found,
    Values,
)
from network_surgery.study.experiments.repairs.at_once import DEEP, WHOLE, Right

BOTH = "least squares + batchnorm"
#: The mean over the removals that every chain can follow, seed by seed.
MEAN = "the three removals"
MEANT = tuple(removal for removal in REMOVALS if removal not in BUILT_IN)
#: Chains that are compared in that mean.
COMPARED = (
    ("bias", "none"),
    ("least squares", "none"),
    ("batchnorm", "none"),
    ("bias + batchnorm", "none"),
    (BOTH, "none"),
    ("least squares", "bias"),
    (BOTH, "batchnorm"),
    (BOTH, "bias + batchnorm"),
)
#: Choices of units that are compared, and after which repairs.
CHOICES = tuple((removal, "random", chain) for removal in ("min weight", "EigenRemove") for chain in ("none", BOTH))
#: (moment, arm, what it is compared with)
Tests = dict[tuple[str, Arm, Arm], Difference]


@dataclass(frozen=True)
class Asked:
    """The images: what they are called, where they come from, and the parts that were used."""

    name: str
    source: str
    few: Dataset
    many: Dataset


def moments(values: Values) -> dict[str, NDArray[np.float64]]:
    """Accuracy ``[seeds]`` at each moment that is looked at: on validation, and at the end on the test images."""
    accuracy = values["accuracy"]
    last = accuracy.shape[1] - 1
    found = {"right after": accuracy[:, 0]}
    found |= {_epochs(at): accuracy[:, at] for at in sorted({1, 2, last}) if at <= last}
    return found | {"test": values["test"]}


def tests(found: Found) -> tuple[Tests, Tests]:
    """What repairs are worth (against the same removal without them), and arms against no operation: two families."""
    at = {arm: moments(values) for arm, values in found.items()}
    names = list(at[NOTHING])
    worth = {
        (moment, arm, (arm[0], "none")): at[arm][moment] - at[arm[0], "none"][moment]
        for arm in ARMS
        if arm[1] != "none"
        for moment in names
        if moment != names[-2]  # the same network as at "test"
    }
    for chain, other in COMPARED:
        for moment in names:
            each = [at[removal, chain][moment] - at[removal, other][moment] for removal in MEANT]
            worth[moment, (MEAN, chain), (MEAN, other)] = np.mean(each, axis=0)
    for removal, other, chain in CHOICES:
        for moment in (names[0], "test"):
            worth[moment, (removal, chain), (other, chain)] = at[removal, chain][moment] - at[other, chain][moment]
    against = {
        (moment, arm, NOTHING): at[arm][moment] - at[NOTHING][moment] for arm in ARMS for moment in names[1:]
    }  # fmt: skip
    return family(worth), family(against)


def tests_at_once(right: Right) -> dict[tuple[float, Arm, Arm], Difference]:
    """Of the deep network: every chain against none, least squares against none of them, choices against random."""
    pairs: list[tuple[Arm, Arm]] = []
    for removal in ("min weight", "random"):
        pairs += [((removal, chain), (removal, "none")) for chain in ("batchnorm", BOTH)]
        pairs.append(((removal, BOTH), (removal, "batchnorm")))
    pairs.append((("PCNS", "batchnorm"), ("PCNS", "none")))
    pairs += [(("min weight", chain), ("random", chain)) for chain in ("none", "batchnorm", BOTH)]
    pairs += [(("PCNS", "batchnorm"), (removal, BOTH)) for removal in ("min weight", "random")]
    keeps = dict.fromkeys(keep for keep, *_ in right if keep != WHOLE[0])
    return family(
        {(keep, arm, other): right[keep, *arm] - right[keep, *other] for keep in keeps for arm, other in pairs}
    )


def report(found: Found, right: Right, asked: Asked, drawing: Drawing, picture: str) -> str:
    """The whole of it: what was done, what holds, the tables."""
    worth, against = tests(found)
    deep = tests_at_once(right)
    n, epochs = found[NOTHING]["accuracy"].shape
    settings, few, many = SETTING.settings, asked.few, asked.many
    before = 100 * found[NOTHING]["accuracy"][:, 0].mean()
    return f"""# What is a repair worth?

When units go, something can be put right (`ops/surgery/repair.py`): `bias` leaves the mean of what each of them sent on
in the next layer's bias (Evci 2018, chapter 3), `least squares` refits the next layer to what it received before (the
second half of PCNS, Rolet 2022), `batchnorm` estimates BatchNorm's running statistics anew. Here every removal is
followed by every chain of them that makes a difference.

**Trained on.** `{settings.model}` (two convolutions with BatchNorm, a dense layer) on {len(few.train):,} images of
{asked.name}, {len(few.validation):,} others for validation: Adam {settings.learning_rate:g}, batches of
{settings.batch_size}, {SETTING.before} epochs, after which it has {before:.1f} % on validation. Then every hidden layer
is cut to {SETTING.keep:g} of its units, first to last, each repaired before the next is looked at (signals: batches of
{settings.signal_images} training images, which `batchnorm` sees too), once for each arm from the very same weights
and optimizer state, which follows the units; {epochs - 1} epochs follow on the same batches. `no operation` is the
network that is left alone. Accuracy is on the validation images, and once, at the end, on {len(few.test):,} test
images. Nothing was chosen by either.

Left out because they would repeat another arm: mean replacement is a removal with `bias` built in, so that `none` and
`batchnorm` of it are `bias` and `bias + batchnorm`; its units are chosen by `variance`, for by their weights (its
default) it is min weight with `bias`, to the bit. PCNS (pivoted basis) has least squares built in.

**Right after only.** `{DEEP.settings.model}` on {len(many.train):,} of the same images, {len(many.validation):,} for
validation, {DEEP.settings.epochs} epochs, batches of {DEEP.settings.batch_size}; every layer cut, operations and
repairs see {DEEP.images} training images; no training after that.

![Accuracy after the cut compared with no operation, by removal and repair]({picture})

{drawing.caption}

## What holds

Differences in points of accuracy. **Bold**: p < 0.05 after Holm; (alone): the interval does not reach zero, but Holm's
correction for the number of tests does not leave it standing.

{chr(10).join([*verdicts(found, worth), *verdicts_against(found, against), *verdicts_at_once(right, deep)])}

{NOTES.format(n=n)}

## Right after

Means over {n} seeds, accuracies in %, differences in points, paired by seed, with 95 % intervals (Student's t); * marks
p < 0.05 after Holm over all {len(worth)} differences to another arm (this section, the last column of the next, and the
list above). Spike: held-out loss after / before, geometric mean. Cost: seconds of the cut of all layers, signals and
repairs included, over those of the last epoch before it, median. Back: epochs until the held-out loss is what it was
before the cut, median; the network's own loss need not fall all the time.

{_table_right_after(found, worth)}

## After further training

In brackets the difference to no operation; * as above, over the {len(against)} differences to no operation.

{_table_later(found, worth, against)}

## A deep network, right after

`{DEEP.settings.model}`, {100 * right[WHOLE].mean():.1f} ± {100 * right[WHOLE].std(ddof=1):.1f} % on validation before
the cut; accuracy in % right after it, mean ± standard deviation over {len(right[WHOLE])} seeds. PCNS has its least
squares in every column.

{_table_at_once(right)}

| keep | | − | points |
|---|---|---|--:|
{chr(10).join(_lines_at_once(deep))}

* as above, over these {len(deep)} differences.

`python -m network_surgery.study.experiments.repairs --data {asked.source} --seeds {n}`, on CPU ({platform.machine()},
{os.cpu_count()} cores, one thread a training); torch {torch.__version__}, Python {platform.python_version()}.
"""


#: What came out when the results were looked into; part of the report.
NOTES = """**Least squares are what counts, for every removal.** Right after the cut they leave the halved network
within 4 points of the whole one, with `batchnorm` within 2, whichever units went; without them it loses 12 (min
weight) to 24 (random). In the mean of the three removals, `least squares + batchnorm` beat no repair by 17 points
right after; after further training by 1 to 3, with intervals above zero, which is not enough after Holm with {n}
seeds. Least squares alone come to the same there. Which units stay matters right after, without repair; with least
squares, and after training on, random units are not shown to be worse than chosen ones, and PCNS, which chooses them
for the least squares, is about where min weight is with the same repair.

**`batchnorm` alone is gone as soon as training goes on**, and has to be: training looks at the statistics of its
batches and overwrites the running ones, so the weights are the same to the bit with and without it (a test shows it);
what differs after one epoch is a rest of the old statistics. (Mean replacement looks at outputs of layers that come
later, so there it does change what is cut.) It counts where the network is used, looked at or cut again before it is
trained: in the deep network nothing is left without it but guessing, 10 %, and PCNS, whose least squares come without
it, stays 15 points below what it has with it.

**`bias` was worth nothing that shows here**, at any moment. Behind a convolution with BatchNorm the norm takes the
constant out again in training. With `batchnorm` it is below `batchnorm` alone right after the cut, in the mean of
each of the three removals (which was not tested); why was not looked into.

**Against leaving the network alone** no arm is shown to be better, and none worse after Holm. Without least squares
the 14 arms end 1.1 to 1.9 points below it on the test images, with them (PCNS included) the 10 arms between 0.3 below
and 0.2 above. That the halved network's epochs are shorter is not counted here.

**The price.** Weights alone cost less than half a percent of an epoch. Signals are a fixed price, a batch of images
for each layer and sums in double precision: half an epoch and more, but of 1,200 images; of 50,000 it would be a
fortieth of that. `batchnorm` was shown all 1,200 training images when these figures were taken; since then it is
shown what the signals were taken from, 512 images here as in the deep network, where they were enough. Seconds were
taken on a machine with other work to do: trust their order.

**The deep network** shows what an earlier look at it had shown (10,000 images, 57.1 % before; 3/4 and 1/2
kept): min weight 12.9 and 10.4 %, with `batchnorm` 45.6 and 23.8 %, random with `batchnorm` 38.3 and 21.6 %, PCNS
with `batchnorm` 51.9 and 33.9 %. The order is the same here. What that look left open: behind min weight, or random
units, `least squares + batchnorm` are not shown to be worse than PCNS. At 3/4 nearly nothing is lost; at 1/2 a
quarter is.

Limits: a small network on few images, {n} seeds, halving only, Adam, five epochs after. {n} seeds and as many tests
as these show large differences only."""


def verdicts(found: Found, worth: Tests) -> list[str]:
    """What each chain is worth against another, in the mean over the removals that all chains can follow."""
    lines = []
    for chain, other in COMPARED:
        results = {at: worth[at, (MEAN, chain), (MEAN, other)] for at in moments(found[NOTHING])}
        lines.append(f"- `{chain}` against `{other}` ({MEAN}): {_told(results)}.")
    for removal, other, chain in CHOICES:
        results = {at: worth[at, (removal, chain), (other, chain)] for at in ("right after", "test")}
        after = "without repair" if chain == "none" else f"with `{chain}`"
        lines.append(f"- {removal} against {other}, {after}: {_told(results)}.")
    return lines


def verdicts_against(found: Found, against: Tests) -> list[str]:
    """How the arms end, compared with the network that is left alone."""
    lines = []
    for moment in list(moments(found[NOTHING]))[1:]:
        results = {arm: against[moment, arm, NOTHING] for arm in ARMS}
        worst, best = (pick(results, key=lambda arm: results[arm].mean) for pick in (min, max))
        ways = [_way(test) for test in results.values()]
        told = ", ".join(f"{ways.count(way)} {way}" for way in sorted(set(ways)))
        where = f"On {'the test images' if moment == 'test' else f'validation {moment}'}"
        lines.append(
            f"- {where}, against no operation, of {len(results)} arms: {told}. From {results[worst].words(100)} "
            f"({_name(worst)}) to {results[best].words(100)} ({_name(best)})."
        )
    return lines


def verdicts_at_once(right: Right, deep: dict[tuple[float, Arm, Arm], Difference]) -> list[str]:
    """How much of what the deep network loses is brought back by its best chain."""
    lines = []
    for keep in dict.fromkeys(key[0] for key in deep):
        here = {key[1:]: 100 * values.mean() for key, values in right.items() if key[0] == keep}
        best = max(here, key=lambda arm: here[arm])
        plain = here["min weight", "none"]
        lines.append(
            f"- The deep network, {keep:g} kept: {100 * right[WHOLE].mean():.1f} % before, {plain:.1f} % after min "
            f"weight without repair, {here['min weight', 'batchnorm']:.1f} % with `batchnorm`, "
            f"{here['min weight', BOTH]:.1f} % with `{BOTH}`; best: {here[best]:.1f} % ({_name(best)})."
        )
    return lines


def _told(results: dict[str, Difference]) -> str:
    """Which way each difference goes, with its figures."""
    return "; ".join(
        f"{_way(test)} {'on the test images' if moment == 'test' else moment} ({test.words(100)})"
        for moment, test in results.items()
    )


def _way(test: Difference) -> str:
    if test.interval is None:
        return "the same" if abs(test.mean) < 1e-9 else "undecided"
    way = "higher" if test.mean > 0 else "lower"
    if test.sign:
        return f"**{way}**"
    return f"{way} (alone)" if test.interval[0] > 0 or test.interval[1] < 0 else "undecided"


def _name(arm: Arm) -> str:
    return arm[0] if arm[1] in ("", "none") else f"{arm[0]}, {arm[1]}"


def _epochs(at: int) -> str:
    return f"after {at} epoch{'s' if at > 1 else ''}"


def _table_right_after(found: Found, worth: Tests) -> str:
    lines = ["| removal | repair | accuracy | − none | spike | cost | back | n |", "|---|---|" + "--:|" * 6]
    for (removal, chain), values in found.items():
        test = worth.get(("right after", (removal, chain), (removal, "none")))
        last = values["accuracy"].shape[1] - 1
        back = np.median(values["recovered"])
        cells = [
            f"{100 * values['accuracy'][:, 0].mean():.1f}",
            test.words(100) if test else "",
            f"× {np.exp(np.log(values['spike']).mean()):.2f}",
            f"{100 * np.median(values['share']):.3g} %" if chain else "",
            (f"{back:g}" if back <= last else f"> {last}") if chain else "",
            str(len(values["test"])),
        ]
        lines.append(f"| {removal} | {chain} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _table_later(found: Found, worth: Tests, against: Tests) -> str:
    names = list(moments(found[NOTHING]))[1:]
    lines = [f"| removal | repair | {' | '.join(names)} | test − none | n |", "|---|---|" + "--:|" * (len(names) + 2)]
    for arm, values in found.items():
        at = moments(values)
        cells = []
        for moment in names:
            mean = f"{100 * at[moment].mean():.1f}"
            if moment == "test":
                mean += f" ± {100 * at[moment].std(ddof=1):.1f}"
            test = against.get((moment, arm, NOTHING))
            cells.append(f"{mean} ({test.words(100)})" if test else mean)
        test = worth.get(("test", arm, (arm[0], "none")))
        cells += [test.words(100) if test else "", str(len(values["test"]))]
        lines.append(f"| {arm[0]} | {arm[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _table_at_once(right: Right) -> str:
    lines = [f"| keep | removal | none | batchnorm | {BOTH} | n |", "|---|---|" + "--:|" * 4]
    for keep, removal in dict.fromkeys(key[:2] for key in right if key != WHOLE):
        chains = {"none": "none", "batchnorm": "batchnorm", BOTH: BOTH}
        if removal == "PCNS":
            chains = {"none": "none", BOTH: "batchnorm"}
        cells = [
            _spread(right[keep, removal, chains[shown]]) if shown in chains else ""
            for shown in ("none", "batchnorm", BOTH)
        ]
        lines.append(f"| {keep:g} | {removal} | {' | '.join(cells)} | {len(right[WHOLE])} |")
    return "\n".join(lines)


def _lines_at_once(deep: dict[tuple[float, Arm, Arm], Difference]) -> Iterable[str]:
    for (keep, arm, other), test in deep.items():
        yield f"| {keep:g} | {', '.join(arm)} | {', '.join(other)} | {test.words(100)} |"


def _spread(values: NDArray[np.float64]) -> str:
    return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}"
