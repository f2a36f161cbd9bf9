"""The report, in markdown: the claims, what they are owed to, and the tables."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from network_surgery.study.data import Dataset
from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.experiments.claims.arms import (
    CNN,
    DENSE,
    EARLY,
    FINAL,
    LATE,
    ORIGINAL,
    PRUNED,
    RANDOM,
    RATE,
    REFITTED,
    REPEATS,
    RESTART,
    SURGERY,
    THRESHOLDS,
    TICKS,
    Found,
    Outcome,
    Setting,
)  # fmt: skip
from network_surgery.study.experiments.claims.verdicts import (
    LAST,
    MARGIN,
    arms_of,
    arrival,
    chosen,
    described,
    geometric,
    lines,
    settings_of,
    targets,
    tests,
    values,
)  # fmt: skip

ORDER = (SURGERY, RESTART, PRUNED, LATE, REFITTED, RANDOM)


def report(
    found: Found, races: Sequence[tuple[Setting, Dataset]], source: str, about: str, drawing: Drawing, picture: str
) -> str:
    """The whole of it; the first race's data came from ``source``, and ``about`` says in words what they are."""
    settings = settings_of(found)
    n = len(found[settings[0], None, ORIGINAL])
    tables = "\n\n".join(f"### {setting}\n\n{_table(found, setting)}" for setting in settings)
    done = "\n".join(
        f"- **{setting.name}** on {about if at == 0 else 'scikit-learn’s digits'}: {len(data.train):,} training, "
        f"{len(data.validation):,} validation, {len(data.test):,} test images; batches of {setting.batch}; seconds for "
        f"{setting.epochs} epochs of the original."
        for at, (setting, data) in enumerate(races)
    )
    return f"""# The claims of PCNS, at equal seconds

Rolet 2022 (draft) expects of *Principal Component Network Shrinking*: (a) "to minimize network size while maintaining
good performance", (b) "to significantly reduce training time", (c) "to be faster and simpler to operate than other
shrinking methods", which "require a full training to be done beforehand". Its sections 4 and 5, where this was to be
shown, were not written. Here every arm has the same seconds of training, and pays for its operations out of them.

{done}

{DENSE.name}: pixels – 256 – 128 – 10 with ReLU; {CNN.name}: two convolutions and a dense layer, with BatchNorm
(`study.models`). Adam {RATE:g} throughout, its state follows the units. The seeds set the initial weights, the order of
the batches (the same for all arms at the same step) and random choices.

| arm | |
|---|---|
| `{ORIGINAL}` | the large network, uninterrupted |
| `{SURGERY}` | every hidden layer shrunk by PCNS (pivoted basis), last first, after {_share(EARLY)} of the seconds |
| `{RESTART}` | the architecture that PCNS ended with, from fresh weights, for all the seconds |
| `{PRUNED}` | the large network for {_share(FINAL)} of the seconds, Minimum Weight Selection to PCNS's sizes, tuning |
| `{LATE}` | the same with PCNS instead of minimum weight |
| `{REFITTED}` | units drawn at random go at PCNS's moment; least squares into the next layer, as PCNS does |
| `{RANDOM}` | the same without least squares |

**Seconds** are CPU seconds of a process of one thread (`time.process_time`), not of the clock on the wall: other
processes share the cores. What a step of each architecture costs is measured within each run, the architectures in
turn, as a median; operations are measured as they happen with anatomy, signals, plans and optimizer state (median of
{REPEATS}). Looking at validation images is not charged. The smaller network's steps are cheaper, so it takes more.

![Validation accuracy against seconds, and test accuracy against size]({picture})

{drawing.caption}

## What holds

At one threshold for each network: the largest at which PCNS ends, on validation images (the last {LAST} of {TICKS}
looks), at most {100 * MARGIN:g} points below the original, or else the best: {_choices(found)}. Differences in points
of test accuracy, read once at the end, or factors of seconds; paired by seed, n = {n}, 95 % intervals (Student's t); *
marks p < 0.05 after Holm over all {len(tests(found))} tests of this list. The first line of a claim tests the claim,
the others what it is owed to. The first is tested to lie above −{100 * MARGIN:g}, the others above zero (factors above
one).

{chr(10).join(lines(found))}

{_operation(found)}

{NOTES}

## All thresholds

Accuracy in %, mean ± standard deviation over {n} seeds; differences in points of test accuracy, paired by seed, with
95 % intervals (they are description: no star). *Right after*: validation accuracy before → after the operation. *At the
target*: seconds until the arm is first seen where the original ends (its last {LAST} looks), geometric mean; how many
seeds never are, which count with all their seconds. Units, parameters and steps are means.

{tables}

`python -m network_surgery.study.experiments.claims --data {source} --seeds {n}`, on CPU; torch {torch.__version__},
Python {platform.python_version()}.
"""


#: What is true of the method whatever the data.
NOTES = """**How to read it.** That the smaller network is as good says little for PCNS as long as the restart of its
architecture is as good, and that it beats pruning says little as long as random units, refitted, do so too: hence those
arms. Pruning was given PCNS's sizes for nothing; by itself it does not know them, and each further size tried would
cost another tuning. PCNS does not know them without a threshold either, and which threshold was right is told by
validation images here too: the thresholds are tried like sizes, but the size of each is known from one look, before
anything is changed. Where an arm's deviation is large, single seeds have hardly learnt, and Student's t decides little.
One learning rate serves all arms; it was not tuned for any of them. The networks and images are small, so an operation
is a larger part of an epoch than it would be elsewhere."""


def _choices(found: Found) -> str:
    told = []
    for setting in settings_of(found):
        threshold = chosen(found, setting)
        left = values(found[setting, threshold, SURGERY], "parameters").mean() / _whole(found, setting)
        told.append(f"{threshold:g} for {setting} ({left:.0%} of the parameters left)")
    return ", ".join(told)


def _operation(found: Found) -> str:
    """What PCNS costs beside minimum weight, in words."""
    told = []
    for setting in settings_of(found):
        arms = arms_of(found, setting, chosen(found, setting))
        cut, pruned, epoch = (
            values(arms[arm], name).mean()
            for arm, name in ((SURGERY, "operation"), (PRUNED, "operation"), (SURGERY, "epoch"))
        )
        budget = values(arms[SURGERY], "budget").mean()
        told.append(
            f"{1000 * cut:.0f} ms ({cut / epoch:.0%} of an epoch, {cut / budget:.1%} of all seconds) against "
            f"{1000 * pruned:.0f} ms for minimum weight ({setting})"
        )
    return f"**What it costs.** The operation itself, looking included, is not the faster one: {'; '.join(told)}."


def _table(found: Found, setting: str) -> str:
    original = found[setting, None, ORIGINAL]
    wanted = targets(original)
    rows = [
        "| threshold | arm | units | parameters | ms a step | steps | operation, ms | right after | test accuracy | "
        "− original | at the target, s | n |",
        "|--:|---|" + "--:|" * 10,
        _row("", ORIGINAL, original, original, wanted),
    ]
    for threshold in THRESHOLDS:
        arms = arms_of(found, setting, threshold)
        rows += [_row(f"{threshold:g}", arm, arms[arm], original, wanted) for arm in ORDER]
    return "\n".join(rows)


def _row(
    threshold: str, arm: str, outcomes: Sequence[Outcome], original: Sequence[Outcome], wanted: NDArray[np.float64]
) -> str:
    test = values(outcomes, "test")
    before, after, operation = (values(outcomes, name).mean() for name in ("before", "after", "operation"))
    cut = arm not in (ORIGINAL, RESTART)
    seconds = arrival(outcomes, wanted)
    never = sum(max(outcome.curve) < target for outcome, target in zip(outcomes, wanted, strict=True))
    units = " – ".join(
        f"{sum(outcome.sizes[layer] for outcome in outcomes) / len(outcomes):.0f}" for layer in outcomes[0].sizes
    )
    cells = [
        threshold,
        arm,
        units,
        f"{values(outcomes, 'parameters').mean():,.0f}",
        f"{1000 * values(outcomes, 'price').mean():.2f}",
        f"{values(outcomes, 'steps').mean():.0f}",
        f"{1000 * operation:.0f}" if cut else "",
        f"{100 * before:.1f} → {100 * after:.1f}" if cut else "",
        f"{100 * test.mean():.2f} ± {100 * test.std(ddof=1):.2f}",
        "" if arm == ORIGINAL else described(test, values(original, "test")),
        f"{geometric(seconds):.2f}" + (f" ({never} never)" if never else ""),
        str(len(outcomes)),
    ]
    return f"| {' | '.join(cells)} |"


def _whole(found: Found, setting: str) -> int:
    return found[setting, None, ORIGINAL][0].parameters


def _share(value: float) -> str:
    return {1 / 3: "a third", 3 / 4: "three quarters"}.get(value, f"{value:.0%}")
