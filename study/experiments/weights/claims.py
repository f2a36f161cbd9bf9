"""What the thesis says of weight scores (Evci 2018, chapter 2), asked of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from network_surgery.study.experiments.rows import Claim, Row, grid
from network_surgery.study.experiments.weights.looks import MEASURED, TAYLOR
from network_surgery.study.experiments.weights.schedule import F_NZ, UNPRUNED

ACTIVATIONS = ("ReLU", "tanh")
#: The layer whose weights are measured one by one, and one that is not.
FIRST, DENSE = "conv1", "fc1"
MOST = 0.8
Values = NDArray[np.float64]
#: What rows must be.
Which = dict[str, Any]


def change(rows: Sequence[Row], field: str = "change", **which: Any) -> Values:
    """The change of the loss ``[seeds, moments]``."""
    return grid(rows, field, kind="change", **which)


def of_looks(rows: Sequence[Row]) -> list[Claim]:
    """Of the scores: one number for each seed, of all looks at its training (or of the early and late ones)."""
    claims: list[Claim] = []

    def claim(text: str, number: Callable[[str], Values], wanted: int) -> None:
        claims.append(Claim(text, number("change"), wanted, number("elsewhere")))

    for activation in ACTIVATIONS:
        for layer, scores in ((FIRST, (*TAYLOR, MEASURED)), (DENSE, TAYLOR)):
            about = {"activation": activation, "layer": layer}
            where = f"{activation}, {layer}, {MOST:g} pruned:"
            sizes = [f"{score}_abs" for score in scores]
            text = f"{where} absolute values cost less than signed scores (mean of {len(scores)} each)"
            claim(text, partial(_gap, rows, about, sizes, scores), -1)
            text = f"{where} magnitude costs less than the absolute values (mean of {len(scores)})"
            claim(text, partial(_gap, rows, about, ["magnitude"], sizes), -1)
            text = f"{where} the cost of magnitude jumps less from look to look than theirs"
            claim(text, partial(_jumps, rows, about, ["magnitude"], sizes), -1)
        where, about = f"{activation}, {FIRST}, pruned by the measured change:", {"activation": activation}
        claim(f"{where} with 0.01 gone the loss falls (mean of all looks)", partial(_mean, rows, about, 0.01, 0), -1)
        claim(f"{where} with 0.05 gone it rises (second half of the looks)", partial(_mean, rows, about, 0.05, 1), 1)
        text = f"{where} with 0.05 gone, the change together less the sum of one by one grows (second half less first)"
        claims.append(Claim(text, growth(dependency(rows, activation))))
    return claims


def of_approximations(rows: Sequence[Row]) -> list[Claim]:
    """How the approximations agree with the measured change of the first layer: Spearman's correlation."""
    claims = []
    for activation in ACTIVATIONS:
        rho = {score: ranks(rows, activation, score) for score in TAYLOR}
        for other in TAYLOR[1:]:
            text = f"{activation}: taylor1 ranks more like the measured change than {other}"
            claims.append(Claim(text, (rho["taylor1"] - rho[other]).mean(axis=1)))
        text = f"{activation}: taylor1 agrees less with it later (second half of the looks less the first)"
        claims.append(Claim(text, growth(rho["taylor1"]), -1))
    return claims


def of_schedule(rows: Sequence[Row]) -> list[Claim]:
    """Test accuracy in points."""
    test = ends(rows)
    claims = [
        Claim(f"{arm} ends below the unpruned network", 100 * (test[arm] - test[UNPRUNED]), -1)
        for arm in test
        if arm != UNPRUNED
    ]
    if "random" in test:
        claims.append(Claim("magnitude ends above random", 100 * (test["magnitude"] - test["random"])))
    half = half_size(rows)
    if half is not None:
        lost = 100 * (compact(rows, "test", half) - compact(rows, "test", 0.0))
        claims.append(Claim(f"compaction to half the size or less (f_nz = {half:g}) costs accuracy", lost, -1))
    return claims


def ranks(rows: Sequence[Row], activation: str, score: str, field: str = "rho") -> Values:
    return grid(rows, field, kind="rank", activation=activation, layer=FIRST, score=score)


def dependency(rows: Sequence[Row], activation: str, fraction: float = 0.05, score: str = MEASURED) -> Values:
    """Change of the loss with these weights gone together, less the sum of one by one: ``[seeds, moments]``."""
    about: Which = {"activation": activation, "layer": FIRST, "score": score, "fraction": fraction}
    return change(rows, **about) - change(rows, "alone", **about)


def growth(values: Values) -> Values:
    """The mean of the second half of the moments less that of the first, by seed."""
    half = values.shape[1] // 2
    return values[:, half:].mean(axis=1) - values[:, :half].mean(axis=1)


def ends(rows: Sequence[Row]) -> dict[str, Values]:
    """Arm → test accuracy ``[seeds]``."""
    arms = dict.fromkeys(row["arm"] for row in rows if row["kind"] == "arm")
    return {arm: grid(rows, "test", kind="arm", arm=arm)[:, 0] for arm in arms}


def compact(rows: Sequence[Row], field: str, f_nz: float) -> Values:
    """What compaction leaves, ``[seeds]``."""
    return grid(rows, field, kind="compact", f_nz=f_nz)[:, 0]


def half_size(rows: Sequence[Row]) -> float | None:
    """The least ``f_nz`` at which half of the whole network's parameters are left or fewer, zeros included."""
    whole = grid(rows, "parameters", kind="arm", arm=UNPRUNED).mean()
    return next((f_nz for f_nz in F_NZ if compact(rows, "dense", f_nz).mean() <= whole / 2), None)


def _gap(rows: Sequence[Row], about: Which, ones: Sequence[str], others: Sequence[str], field: str) -> Values:
    """How much more the ones cost than the others, in the mean of each and of the looks."""
    means = [
        np.mean([change(rows, field, score=score, fraction=MOST, **about) for score in scores], axis=(0, 2))
        for scores in (ones, others)
    ]
    return means[0] - means[1]


def _jumps(rows: Sequence[Row], about: Which, ones: Sequence[str], others: Sequence[str], field: str) -> Values:
    """How much more the cost of the ones changes from look to look than that of the others, in the mean."""
    means = []
    for scores in (ones, others):
        each = [change(rows, field, score=score, fraction=MOST, **about) for score in scores]
        means.append(np.mean(np.abs(np.diff(each, axis=2)), axis=(0, 2)))
    return means[0] - means[1]


def _mean(rows: Sequence[Row], about: Which, fraction: float, half: int, field: str) -> Values:
    """Of all looks (``half`` 0) or of those of the second half (1), for the score that is measured."""
    values = change(rows, field, layer=FIRST, score=MEASURED, fraction=fraction, **about)
    return values[:, half * values.shape[1] // 2 :].mean(axis=1)
