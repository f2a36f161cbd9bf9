"""The tests, the table and the verdicts, in markdown."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from network_surgery.study.data import Dataset
from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.evidence.significance import Difference, family
from network_surgery.study.experiments.redundancy.figure import fractions
from network_surgery.study.experiments.redundancy.measure import (
    ARCHITECTURES,
    BATCH,
    LOOK,
    SHARES,
    THRESHOLD,
    WIDEST,
    Measured,
    Seen,
)

Found = Mapping[str, Sequence[Measured]]
#: Rows for each unit below which the draft's rule (5 to 10) is not met.
FEW = 5


def report(found: Found, data: Dataset, source: str, about: str, epochs: int, drawing: Drawing, picture: str) -> str:
    """The whole of it; the data came from ``source``, and ``about`` says in words what they are."""
    n = max(map(len, found.values()))
    fewer = ", ".join(f"{name}: {len(several)}" for name, several in found.items() if len(several) < n)
    few = f" ({fewer})" if fewer else ""
    rates = sorted({ARCHITECTURES[name][1] for name in found})
    images = len(data.train)
    sides = ", ".join(
        f"{name} {side} × {side}" for name, (side, _) in ARCHITECTURES.items() if name in found and side > 32
    )
    larger = f" (enlarged, because they would not run: {sides})" if sides else ""
    return f"""# How redundant are classical networks?

Rolet 2022, the draft of PCNS, means to "measure redundancy of various classical deep networks on standard problems …
to see if there is one that would most benefit" (section 6). Its measure (3.1): how many principal components a layer's
outputs need for a given share of their variance, against its units. Here: networks of torchvision without pretrained
weights, on {about}; every hidden layer that can be operated on, seen where its readers receive it, in evaluation mode.

**The training is little**: {images:,} images, {epochs} epochs ({epochs * (images // BATCH)} steps of {BATCH}), Adam
({", ".join(f"{rate:g}" for rate in rates)}; the lower one for networks without norms), n = {n}{few}.
The accuracies say how little. These networks were made for larger images: at {data.shape[1]} × {data.shape[2]} pixels
their last layers see a single position{larger}.
So this is redundancy early in training, on small images, and not that of the published networks on ImageNet.

![Components needed over depth, by network, before and after training]({picture})

{drawing.caption}

## What holds

{chr(10).join(verdicts(found))}

## Which would benefit most

{benefit(found)}

{NOTES}

## The networks

Validation accuracy in %, untrained → trained. Components / units at each share of the variance: median over layers
[lowest – highest layer], of means over seeds. *Left at {THRESHOLD:g}*: the network's parameters if PCNS at that
threshold were applied to every layer, untrained → trained. *Right after*: validation accuracy with that done, nothing
retrained (not tried where a layer is wider than {WIDEST} units). *Few rows*: layers seen with fewer than {FEW} rows
a unit (the draft asks for 5 to 10); components cannot outnumber rows.

{_table(found)}

Signals in batches of {LOOK} training images, until every layer has ten rows for each unit or there are no more images.

`python -m network_surgery.study.experiments.redundancy --data {source} --seeds {n} --epochs {epochs}`{_only(found)}, on
CPU; torch {torch.__version__}, Python {platform.python_version()}.
"""


#: Accuracy (0 … 1) above the untrained network's from which on a network counts as having learnt something.
LEARNT = 0.1
#: What is true of the measure whatever the data.
NOTES = """The measure counts directions in which outputs vary, not what of them is used. It centres across units and
not across images, as PCNS does, so what all images have in common counts as variance: layers whose outputs differ
little from image to image need few components, whether there is anything learnt or not. A low count is a reason to
look; what PCNS then costs in accuracy (*right after*, below) is the other half of it. `PCNS.propose` tells both the
count and the error of its least squares before anything is changed."""


def tests(found: Found) -> dict[str, Difference]:
    """Whether training changes the median layer's share of units at 0.99: one family over the networks."""

    def median(each: Measured, moment: str) -> float:
        return float(np.median(getattr(each, moment).fractions[:, SHARES.index(0.99)]))

    return family(
        {name: [median(each, "after") - median(each, "before") for each in several] for name, several in found.items()}
    )


def verdicts(found: Found) -> list[str]:
    """What the draft expects, and what was seen."""
    trained = {name: fractions(several, "after") for name, several in found.items()}
    lines = []
    decided = tests(found)
    down = sum(test.sign < 0 for test in decided.values())
    up = sum(test.sign > 0 for test in decided.values())
    told = "; ".join(f"{name} {test.words(100)}" for name, test in decided.items())
    finding = "holds" if down == len(found) else "does not hold" if not down and up else "undecided"
    if down and down < len(found):
        finding = f"holds in {down} of {len(found)}" + (f", the reverse in {up}" if up else "")
    elif finding == "does not hold":
        finding = f"does not hold; the reverse in {up} of {len(found)}"
    lines.append(
        f'- **{finding}**: "As training goes on, redundancy is likely to appear." Change of the median layer\'s '
        f"components / units at 0.99, in points, paired by seed (95 % interval; * p < 0.05 after Holm over "
        f"{sum(test.p is not None for test in decided.values())} tests): {told}."
    )
    for words, hit in (
        (
            '"A tenth of the layer size for 10⁻⁴ variance" may be common once the network has been partly trained.',
            lambda values: values[:, SHARES.index(0.9999)] <= 0.1,
        ),
        (
            'Layers where "more than 800 of [1000] are needed to reach 90% variance", on which PCNS "probably won\'t '
            'be effective".',
            lambda values: values[:, SHARES.index(0.9)] > 0.8,
        ),
    ):
        counts = {name: (int(hit(values).sum()), len(values)) for name, values in trained.items()}
        total, layers = (sum(each[at] for each in counts.values()) for at in (0, 1))
        told = ", ".join(f"{name} {some} of {several}" for name, (some, several) in counts.items())
        lines.append(f"- **{total} of {layers} trained layers**: {words} {told}.")
    return lines


def benefit(found: Found) -> str:
    """The networks by what PCNS would leave of them, with the reasons for doubt."""
    left = {name: float(np.mean([each.after.left / each.parameters for each in found[name]])) for name in found}
    order = sorted(found, key=left.__getitem__)
    gains = {name: float(np.mean([each.trained - each.untrained for each in found[name]])) for name in order}
    learnt = [name for name in order if gains[name] >= LEARNT]
    dull = [name for name in order if gains[name] < LEARNT]

    def goes(names: Sequence[str]) -> str:
        return ", ".join(f"{name} {1 - left[name]:.1%}" for name in names)

    lines = []
    if learnt:
        lines.append(
            f"**{learnt[0]}**, of those that learnt anything (at least {100 * LEARNT:g} points above the untrained "
            f"network). Parameters that would go, after training: {goes(learnt)}."
        )
    if dull:
        lines.append(
            f"Not counted, for they have hardly learnt, so that nothing follows from what is redundant in them: "
            f"{goes(dull)}."
        )
    losses = [
        f"{name} {100 * np.mean([each.shrunk - each.trained for each in found[name] if each.shrunk is not None]):+.1f}"
        for name in order
        if all(each.shrunk is not None for each in found[name])
    ]
    if losses:
        lines.append(f"Accuracy with that done and nothing retrained, in points against before: {', '.join(losses)}.")
    return " ".join(lines)


def _table(found: Found) -> str:
    head = "".join(f" {share:.4g} untrained | {share:.4g} trained |" for share in SHARES)
    lines = [
        f"| network | parameters | layers | accuracy |{head} left at {THRESHOLD:g} | right after | few rows | n |",
        "|---|" + "--:|" * (7 + 2 * len(SHARES)),
    ]
    for name, several in found.items():
        first = several[0]
        values = [fractions(several, moment) for moment in ("before", "after")]
        cells = [f"{first.parameters:,}", str(len(first.after.layers))]
        cells.append(f"{_mean(several, 'untrained')} → {_mean(several, 'trained')}")
        cells += [_range(each[:, number]) for number in range(len(SHARES)) for each in values]
        left = [
            100 * np.mean([getattr(each, m).left / each.parameters for each in several]) for m in ("before", "after")
        ]
        cells.append(f"{left[0]:.1f} → {left[1]:.1f} %")
        cells.append(_mean(several, "shrunk") if all(each.shrunk is not None for each in several) else "")
        few = first.after.samples < FEW * first.after.units
        cells.append(
            f"{int(few.sum())}" + (f" (≥ {(first.after.samples / first.after.units).min():.1f})" if few.any() else "")
        )
        lines.append(f"| {name} | {' | '.join([*cells, str(len(several))])} |")
    return "\n".join(lines)


def _only(found: Found) -> str:
    return "" if list(found) == list(ARCHITECTURES) else f" with `--networks {','.join(found)}`"


def _moments(several: Sequence[Measured]) -> tuple[list[Seen], list[Seen]]:
    return [each.before for each in several], [each.after for each in several]


def _mean(several: Sequence[Measured], measure: str) -> str:
    values = 100 * np.array([getattr(each, measure) for each in several])
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def _range(values: NDArray[np.float64]) -> str:
    return f"{100 * np.median(values):.0f} % [{100 * values.min():.0f} – {100 * values.max():.0f}]"
