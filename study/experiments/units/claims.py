"""What the thesis says of unit scores and bias propagation (Evci 2018, chapter 4), asked of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from network_surgery.study.experiments.rows import Claim, Row, grid
from network_surgery.study.experiments.units.schedule import RESTART, UNPRUNED

LAYERS = ("conv1", "conv2", "fc1")
HALF = 0.5
Values = NDArray[np.float64]
#: What rows must be.
Which = dict[str, Any]


def change(rows: Sequence[Row], field: str = "change", replacement: str = "mean", **which: Any) -> Values:
    """The change of the loss ``[seeds, moments]``; half of the units go unless told otherwise."""
    return grid(rows, field, kind="change", replacement=replacement, **{"fraction": HALF} | which)


def about_scores(rows: Sequence[Row]) -> list[Claim]:
    """Of the scores with mean replacement: one number for each seed, the mean over all looks (or late ones)."""
    relu: Which = {"activation": "ReLU"}
    tanh: Which = {"activation": "tanh"}

    def claim(text: str, one: Which, other: Which, wanted: int = 1, late: bool = False) -> Claim:
        def difference(field: str) -> Values:
            gap = change(rows, field, **one) - change(rows, field, **other)
            return (gap[:, gap.shape[1] // 2 :] if late else gap).mean(axis=1)

        return Claim(text, difference("change"), wanted, difference("elsewhere"))

    claims = []
    for name, which in (("ReLU", relu), ("tanh", tanh)):
        gap = {
            field: _over_layers(rows, field, which | {"score": "random"}, which | {"score": "mrp"})
            for field in ("change", "elsewhere")
        }
        text = f"{name}: random units cost more than those of the lowest MRP (mean of the three layers)"
        claims.append(Claim(text, gap["change"], 1, gap["elsewhere"]))
    few: Which = relu | {"layer": "conv1"}
    for score in ("mrs", "l2_in"):
        near = np.abs(change(rows, **few, score=score) - change(rows, **few, score="mrp"))
        tenth = 0.1 * (change(rows, **few, score="random") - change(rows, **few, score="mrp"))
        text = f"ReLU, conv1 (few units): {score} is nearer to MRP than a tenth of what random units cost more"
        claims.append(Claim(text, (near - tenth).mean(axis=1), -1))
    third = relu | {"layer": "fc1"}
    for worse, better in (("mrs", "mrp"), ("l2_in", "mrp"), ("l2_in", "mrs")):
        text = f"ReLU, fc1, second half of the looks: {worse} costs more than {better}"
        claims.append(claim(text, third | {"score": worse}, third | {"score": better}, late=True))
    least = {
        field: change(rows, field, fraction=0.1, score="mrp", **third).min(axis=1) for field in ("change", "elsewhere")
    }
    text = "ReLU, fc1: there are moments at which a tenth of the units goes and the loss falls (least change, MRP)"
    claims.append(Claim(text, least["change"], -1, least["elsewhere"]))
    before = {"layer": "fc1", "score": "mrs", "replacement": "mean_before"}
    text = "fc1, mean before the activation (as in the thesis), MRS: tanh costs more than ReLU"
    claims.append(claim(text, tanh | before, relu | before))
    drawn = {"layer": "fc1", "score": "random"}
    claims.append(claim("fc1: random units cost less with tanh than with ReLU", relu | drawn, tanh | drawn))
    text = "tanh, fc1: random units cost more than those of the lowest MRS (the thesis saw no clear difference)"
    claims.append(claim(text, tanh | drawn, tanh | {"layer": "fc1", "score": "mrs"}))
    return claims


def about_replacements(rows: Sequence[Row]) -> list[Claim]:
    """What is left behind, compared with the mean after the activation: MRS chooses, half of the units, all layers."""
    words = {
        "none": "without bias propagation a removal costs more than with the mean",
        "mean_before": "the mean before the activation costs more than the mean after it",
        "median": "the median costs more than the mean",
        "extreme": "the nearer extreme costs more than the mean",
    }
    claims = []
    for activation in ("ReLU", "tanh"):
        which: Which = {"activation": activation, "score": "mrs"}
        for replacement, said in words.items():
            gap = {
                field: _over_layers(rows, field, which | {"replacement": replacement}, which)
                for field in ("change", "elsewhere")
            }
            claims.append(Claim(f"{activation}: {said}", gap["change"], 1, gap["elsewhere"]))
    return claims


def about_ranks(rows: Sequence[Row]) -> list[Claim]:
    """Which score orders units most like the mean replacement penalty: Spearman's correlation, mean of all layers."""
    claims = []
    for activation in ("ReLU", "tanh"):
        rho = {score: _rho(rows, activation, score) for score in ("mrs", "l2_in", "variance", "taylor")}
        for other in list(rho)[1:]:
            text = f"{activation}: MRS ranks units more like MRP than {other} does"
            claims.append(Claim(text, rho["mrs"] - rho[other]))
    return claims


def _rho(rows: Sequence[Row], activation: str, score: str) -> Values:
    each = [grid(rows, "rho", kind="rank", activation=activation, layer=layer, score=score) for layer in LAYERS]
    return np.mean(each, axis=(0, 2))


def _over_layers(rows: Sequence[Row], field: str, one: Which, other: Which) -> Values:
    """How much more one removal costs than the other, mean over looks and layers: ``[seeds]``."""
    gaps = [change(rows, field, layer=layer, **one) - change(rows, field, layer=layer, **other) for layer in LAYERS]
    return np.mean(gaps, axis=(0, 2))


def about_schedule(rows: Sequence[Row]) -> list[Claim]:
    """Test accuracy in points at the end of the schedule, arm against arm."""
    claims = []
    for training in dict.fromkeys(row["training"] for row in rows if row["kind"] == "arm"):
        test = ends(rows, training)
        mine = f"{training}: "
        for arm in test:
            if arm in (UNPRUNED, RESTART):
                continue
            text = f"{mine}{arm} ends below the unpruned network"
            claims.append(Claim(text, 100 * (test[arm] - test[UNPRUNED]), -1))
        for other in [arm for arm in ("random", RESTART) if {arm, "mrs"} <= set(test)]:
            claims.append(Claim(f"{mine}mrs ends above {other}", 100 * (test["mrs"] - test[other])))
    return claims


def ends(rows: Sequence[Row], training: str) -> dict[str, Values]:
    """Arm → test accuracy ``[seeds]``, the unpruned network first."""
    arms = dict.fromkeys(row["arm"] for row in rows if row["kind"] == "arm" and row["training"] == training)
    arms = {arm: None for arm in (UNPRUNED, *arms) if arm in arms}
    return {arm: grid(rows, "test", kind="arm", training=training, arm=arm)[:, 0] for arm in arms}
