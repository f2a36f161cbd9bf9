"""The tests, the tables and the verdicts, in markdown."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.evidence.significance import Difference, family
from network_surgery.study.experiments.widening import regularized
from network_surgery.study.experiments.widening.arms import CODE, LATER, SETTINGS, TWIN, Found
from network_surgery.study.experiments.widening.regularized import FACTORS, Moments
from network_surgery.study.experiments.widening.training import BATCH

#: Copies nearer than this, relative to their length, have not parted, and factors nearer to 1 are 1: rounding.
ROUNDING = 1e-4
#: The mean over the settings, seed by seed.
MEAN = "mean of the settings"


#: (setting, measure, arm, what it is compared with) at the last epoch; of losses the logarithms.
Tests = dict[tuple[str, str, str, str], Difference]


def tests(found: Found) -> Tests:
    """All that is tested of the arms: one family for Holm."""
    settings, arms = ([*dict.fromkeys(key[at] for key in found)] for at in (0, 1))
    wanted: list[tuple[str, str, str]] = []
    for arm in arms:
        if arm != "unwidened":
            wanted.append(("accuracy", arm, "unwidened"))
        if arm not in ("unwidened", "equal"):
            wanted += [("accuracy", arm, "equal"), ("loss", arm, "equal")]
        if arm in ("uneven", "signed"):
            wanted += [("accuracy", arm, "restart"), ("rank", arm, "equal"), ("output_rank", arm, "equal")]
    differences: dict[tuple[str, str, str, str], NDArray[np.float64]] = {}
    for measure, arm, other in wanted:
        here = {
            setting: _at_last(found[setting, arm], measure) - _at_last(found[setting, other], measure)
            for setting in settings
            if (setting, arm) in found
        }
        differences |= {(setting, measure, arm, other): values for setting, values in here.items()}
        if (measure, arm, other) in [statement[1:] for statement in STATEMENTS] and len(here) > 1:
            differences[MEAN, measure, arm, other] = np.mean(list(here.values()), axis=0)
    return family(differences)


def _at_last(values: Mapping[str, NDArray[np.float64]], measure: str) -> NDArray[np.float64]:
    last = values[measure][:, -1]
    return np.log(last) if measure == "loss" else last


def tests_at_once(found: Moments) -> dict[tuple[str, str, str], Difference]:
    """Logarithms of the factors ``at_once`` and ``later``, by regularizer, operation and measure: another family."""
    return family(
        {
            (regularizer, operation, measure): np.log(values[measure])
            for (regularizer, operation), values in found.items()
            for measure in ("at_once", "later")
            if operation != "unwidened"
        }
    )


def report(found: Found, moments: Moments, drawing: Drawing, picture: str) -> str:
    """The whole of it: what was done, what holds, the tables."""
    decided, at_once = tests(found), tests_at_once(moments)
    settings = [setting for setting in SETTINGS if (setting.name, "unwidened") in found]
    n = len(found[settings[0].name, "unwidened"]["loss"])
    done = "; ".join(
        f"{setting.name}: {setting.before} and {found[setting.name, 'equal']['loss'].shape[1] - 1}"
        for setting in settings
    )
    tables = "\n\n".join(f"### {setting.name}\n\n{_table(found, decided, setting.name)}" for setting in settings)
    return f"""# What does a widened layer learn?

Graham 2019 (4.2.2): "WeakExpand adds more *trainable* parameters, and thus the overall accuracy is slightly higher."
A narrow network is trained on scikit-learn's digits (batches of {BATCH}); its hidden layer is widened, once for each
arm from the same weights and optimizer state, which follows the units; training goes on, on the same batches. Dense: 64
– units – 10, ReLU. Convolutional: 3 × 3 convolutions of 8 channels and of the widened layer's, BatchNorm, ReLU,
pooling, a dense layer. SGD 0.02 with momentum 0.9, or Adam 1e-3. The {n} seeds set the initial weights, the order of
the batches, and the shares of `uneven`. The test images are read after every epoch of every arm equally; nothing is
chosen by them. Epochs before and after widening:
{done}.

| arm | |
|---|---|
| `unwidened` | the narrow network goes on |
| `{TWIN}` | so it does, at the learning rates that pairs of equal copies amount to: {RATES} |
| `equal`, `uneven`, `signed` | WeakExpand; the copies of a unit share its fan-out alike, at random, or 1.5 and −0.5 |
| `{CODE}` | equal shares, and biases and norm scales misplaced and a new optimizer, as in InterruptNet's `vgg16.py` |
| `zero` | ZeroExpand |
| `restart` | the wide network from fresh weights for all the epochs |
| `{LATER}` | the same for as many epochs as follow the operation |

![Accuracy and effective rank after widening, by arm]({picture})

{drawing.caption}

## What holds

{chr(10).join(verdicts(found, decided))}
{chr(10).join(verdicts_regularized(moments, at_once))}

{NOTES}

## The arms

Last epoch unless said otherwise; accuracy in %, mean ± standard deviation over {n} seeds; differences in points, paired
by seed, with 95 % intervals (Student's t); * marks p < 0.05 after Holm over all {len(decided)} tests of this section.
Rank: the effective rank (Roy and Vetterli 2007), exp of the entropy of the singular values over their sum, of the
widened layer's fan-in with its bias, and of its outputs on the training images. Distance: between the fan-in of copies,
over its length. Dead: units that are 0 for every training image, which get no gradient. Loss: on all training images,
in evaluation mode, and the ratio (geometric mean) to that of `equal`.

{tables}

## With regularization

Graham 2019 (figure 4.8): "these methods do not address regularization, and thus adding trainable parameters with a
regularized architecture like VGG16 can cause unwanted increases in loss." Dense 64 – {regularized.UNITS} – 10 with SGD
as above, {regularized.BEFORE} epochs, the hidden layer doubled. Factors, geometric means over {n} seeds: *at once*:
training loss in training mode, on the batches of the coming epoch and before any step, after / before; *thesis's*: loss
of the first batch after / of the last batch before; *Σw²* of all parameters, and *loss + penalty* (decay/2 Σw²): after
/ before; *next epoch*: training loss / the unwidened network's. Distance of the copies after {regularized.AFTER}
epochs. * as above, over the {len(at_once)} tests of this section.

{_table_regularized(moments, at_once)}

`python -m network_surgery.study.experiments.widening --seeds {n}`, on CPU; torch {torch.__version__}, Python
{platform.python_version()}.
"""


RATES = "fan-out × 2; fan-in × ½ under SGD, × 1 under Adam"
#: What came out when the results were looked into; part of the report.
NOTES = """Equal shares train differently from the narrow network, and not because they add anything: both copies move
their fan-out by the whole gradient, as the narrow network does at twice the fan-out's learning rate (in double
precision but for rounding and Adam's ε; a test shows it). Signed shares part fastest and disturb most: the function is
kept, but the next steps on it are larger (under SGD the pair's fan-in moves the function by 1.5² + 0.5² = 2.5 times
what the one unit's would, that of equal shares by half), and the loss of the next epoch is above the unwidened
network's.

**Against starting over, widening lost here.** In the dense settings no share brings the narrow network to where the
wide one gets from fresh weights in as many epochs, nor to where that gets in the later epochs alone; in the
convolutional one the intervals are about as wide as what is at stake. The effective rank of the widened layer stays
below that of a layer that was wide from the start. What uneven shares are worth is small beside the spread of these
seeds: most of their intervals lie above zero, and none does so after Holm. (Tests of the loss and of the mean over the
settings were added after a first look at the accuracies.)

What the published code does was read in InterruptNet's `vgg16.py`. It puts the weights back into their old order and
leaves biases and norm scales sorted, so that copies meet other biases than their originals where a layer grows by less
than the double, as all of the thesis's do, and part by that. Where it is doubled they do not part there either.
`PublishedWeakExpand` repeats it, here with an optimizer that has forgotten its state, as theirs has.

On regularization the remark of the thesis is too wide. With BatchNorm and with weight decay widening leaves the
training loss as it is. Dropout draws a mask for each copy: with equal shares that averages noise out, so the loss
falls, and it parts the copies, the one case in which equal shares do add trainable weights; signed shares multiply the
noise, and the loss rises. Zero units have no part in it. What weight decay penalizes does rise, though the shares of a
fan-out have smaller squares: fan-ins are there twice (with BatchNorm, zero units bring their norm scale of 1).
InterruptNet's network has neither dropout nor weight decay, and BatchNorm behind its dense layers only.

The thesis's loss factor lies below 1 without any operation (`unwidened`), for it compares two batches of a network that
is still learning: factors such as those of its table 4.4, 0.71 to 0.86, need no operation to explain them."""


#: What is claimed of each setting: a measure of one arm is higher than that of another.
STATEMENTS = (
    ("Copies with uneven shares part: the fan-in has a higher effective rank.", "rank", "uneven", "equal"),
    ("Copies with signed shares part: the fan-in has a higher effective rank.", "rank", "signed", "equal"),
    ("With uneven shares the training loss ends lower than with equal ones.", "loss", "uneven", "equal"),
    ("With signed shares the training loss ends lower than with equal ones.", "loss", "signed", "equal"),
    ("Uneven shares are worth more accuracy than equal ones (points).", "accuracy", "uneven", "equal"),
    ("Signed shares are worth more accuracy than equal ones (points).", "accuracy", "signed", "equal"),
    ("WeakExpand with equal shares is better than not widening (points).", "accuracy", "equal", "unwidened"),
    ("WeakExpand with uneven shares is better than not widening (points).", "accuracy", "uneven", "unwidened"),
    ("WeakExpand with signed shares is better than not widening (points).", "accuracy", "signed", "unwidened"),
    ("ZeroExpand is better than not widening (points).", "accuracy", "zero", "unwidened"),
    ("Uneven shares are better than starting over with the wide network (points).", "accuracy", "uneven", "restart"),
    ("Signed shares are better than starting over with the wide network (points).", "accuracy", "signed", "restart"),
)


def verdicts(found: Found, decided: Tests) -> list[str]:
    """Each statement about the arms with its finding and the figures that decide it."""
    settings = list(dict.fromkeys(setting for setting, _ in found))
    parted = max(float(found[setting, "equal"]["distance"].max()) for setting in settings)
    twins = [setting for setting in settings if (setting, TWIN) in found]
    gaps = {
        setting: np.abs(found[setting, "equal"]["loss"] / found[setting, TWIN]["loss"] - 1)[:, -1] for setting in twins
    }
    gap = ", ".join(f"{np.median(values):.1g} ({setting})" for setting, values in gaps.items())
    finding = "does not hold" if parted < ROUNDING else "holds"
    lines = [
        f"- **{finding}**: WeakExpand (equal shares, the thesis's form) adds trainable weights. The largest distance "
        f"between two copies in any setting, seed and epoch is {parted:.1g}. The doubled network is the narrow one at "
        f"other learning rates; by what rounding makes of it, their training losses end {gap} apart, relative, in the "
        "median over seeds."
    ]
    lines += [_line(*statement, decided, settings) for statement in STATEMENTS]
    told = "; ".join(f"{found[setting, CODE]['distance'][:, -1].mean():.2g} ({setting})" for setting in settings)
    parts = [bool(found[setting, CODE]["distance"][:, -1].mean() > ROUNDING) for setting in settings]
    words = "holds" if all(parts) else f"holds in {sum(parts)} of {len(parts)}" if any(parts) else "does not hold"
    jump = "; ".join(
        f"× {np.exp(np.log(found[setting, CODE]['loss'][:, 0] / found[setting, 'equal']['loss'][:, 0]).mean()):.2f}"
        for setting in settings
    )
    lines.append(
        f"- **{words}**: The faults of the published code part equal copies (`{CODE}`). Distance at the end: "
        f"{told}. They change the function: training loss right after {jump}."
    )
    return lines


def _line(claim: str, measure: str, arm: str, other: str, decided: Tests, settings: Sequence[str]) -> str:
    """A statement that a difference goes one way (a loss down, all else up), decided in every setting."""
    results = {setting: decided[setting, measure, arm, other] for setting in settings}
    if mean := decided.get((MEAN, measure, arm, other)):
        results[MEAN] = mean
    better = -1 if measure == "loss" else 1
    signs = [better * results[setting].sign for setting in settings]
    if -1 in signs or all(abs(test.mean) < 1e-9 for test in results.values()):
        finding = "does not hold"
    elif any(signs):
        finding = "holds" if all(signs) else f"holds in {sum(signs)} of {len(signs)} settings"
    else:
        finding = "holds in the mean only" if mean and mean.sign == better else "undecided"
    scale = 100 if measure == "accuracy" else 1
    told = "; ".join(
        f"{'× ' + test.factor(ROUNDING) if measure == 'loss' else test.words(scale)} ({setting})"
        for setting, test in results.items()
    )
    return f"- **{finding}**: {claim} {told}."


def verdicts_regularized(found: Moments, at_once: Mapping[tuple[str, str, str], Difference]) -> list[str]:
    """The thesis's remark on regularization, taken apart."""

    def raised(test: Difference) -> bool:
        return test.sign > 0 and test.mean > ROUNDING

    lines = []
    for regularizer in dict.fromkeys(name for name, _ in found):
        if regularizer == "none":
            continue
        ops = [operation for name, operation in found if name == regularizer and operation != "unwidened"]
        higher = [operation for operation in ops if raised(at_once[regularizer, operation, "at_once"])]
        told = ", ".join(
            f"{operation} × {at_once[regularizer, operation, 'at_once'].factor(ROUNDING)}" for operation in ops
        )
        finding = {len(ops): "holds", 0: "does not hold"}.get(len(higher), f"holds for {', '.join(higher)} only")
        lines.append(f"- **{finding}**: With {regularizer} widening raises the training loss at once. {told}.")
    kept = {name: float(np.nanmax(found[name, "equal"]["distance"])) for name in regularized.REGULARIZERS}
    told = ", ".join(f"{name}: {distance:.2g}" for name, distance in kept.items())
    apart = [name for name, distance in kept.items() if distance > ROUNDING]
    finding = "does not hold" if apart else "holds"
    lines.append(
        f"- **{finding}**: Equal copies never part, whatever the regularization. Largest distance after "
        f"{regularized.AFTER} epochs: {told}."
    )
    return lines


def _table(found: Found, decided: Tests, setting: str) -> str:
    lines = [
        "| arm | accuracy right after | accuracy | − unwidened | − equal | loss | / equal | rank right after | rank | "
        "rank of outputs | distance | dead | n |",
        "|---|" + "--:|" * 12,
    ]
    for (name, arm), values in found.items():
        if name != setting:
            continue
        first, last = ({key: row[:, at] for key, row in values.items()} for at in (0, -1))
        against = [
            decided[setting, "accuracy", arm, other].words(100) if (setting, "accuracy", arm, other) in decided else ""
            for other in ("unwidened", "equal")
        ]
        distance = last["distance"].mean()
        cells = [
            f"{100 * first['accuracy'].mean():.2f}",
            f"{100 * last['accuracy'].mean():.2f} ± {100 * last['accuracy'].std(ddof=1):.2f}",
            *against,
            f"{last['loss'].mean():.4f}",
            decided[setting, "loss", arm, "equal"].factor(ROUNDING)
            if (setting, "loss", arm, "equal") in decided
            else "",
            f"{first['rank'].mean():.2f}",
            f"{last['rank'].mean():.2f}",
            f"{last['output_rank'].mean():.2f}",
            "" if np.isnan(distance) else f"{distance:.2g}",
            f"{last['dead'].mean():.1f}",
            str(len(last["loss"])),
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _table_regularized(found: Moments, at_once: Mapping[tuple[str, str, str], Difference]) -> str:
    lines = [
        "| regularization | operation | at once | thesis's | Σw² | loss + penalty | next epoch | distance | n |",
        "|---|---|" + "--:|" * 7,
    ]
    for (regularizer, operation), values in found.items():
        cells = []
        for measure in FACTORS:
            test = at_once.get((regularizer, operation, measure))
            cells.append(test.factor(ROUNDING) if test else f"{np.exp(np.log(values[measure]).mean()):.3f}")
        distance = values["distance"].mean()
        cells.append("" if np.isnan(distance) else f"{distance:.2g}")
        lines.append(f"| {regularizer} | {operation} | {' | '.join(cells)} | {len(values['later'])} |")
    return "\n".join(lines)
