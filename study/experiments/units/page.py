"""What the thesis says of unit scores and bias propagation (Evci 2018, chapter 4), asked of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from network_surgery.study.bench import arms
from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part
from network_surgery.study.bench.rows import Measured, Row, Rows, Values
from network_surgery.study.bench.tables import cross, spread
from network_surgery.study.experiments import evci_page
from network_surgery.study.experiments.evci import UNPRUNED
from network_surgery.study.experiments.evci_page import ACTIVATIONS, cost, on_images
from network_surgery.study.experiments.units import figures
from network_surgery.study.experiments.units.measure import GONE, HALF, LAYERS, LEFT, RESTART, SCORES, parameters_left

#: The columns of most tables.
PLACES: dict[str, Row] = {
    f"{each}, {layer}": {"activation": each, "layers": [layer]} for each in ACTIVATIONS for layer in LAYERS
}


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows = with_long_unpruned(measured.rows)
    known = rows.distinct("arm", kind="arm")
    others = [arm for arm in ("random", RESTART) if arm in known]
    return {
        "trained_on": evci_page.trained_on(measured),
        "changes": figures.changes(rows),
        "score_claims": score_claims(rows),
        "random_ratios": ratios(rows, {"score": "random"}, {"score": "mrp"}),
        "scores": cross("score", SCORES, PLACES, lambda score, at: spread(find_loss(rows, score=score, **at))),
        "replacements": figures.replacements(rows),
        "replacement_claims": replacement_claims(rows),
        "none_ratios": ratios(rows, {"score": "mrs", "replacement": "none"}, {"score": "mrs"}),
        "instead": cross(
            "instead", LEFT, PLACES, lambda left, at: spread(find_loss(rows, replacement=left, score="mrs", **at))
        ),
        "ranks": figures.ranks(rows),
        "rank_claims": rank_claims(rows),
        "agreement": cross("score", SCORES[1:], PLACES, lambda score, at: agreement(rows, score, *at.values())),
        "together": together_left(measured),
        "schedule": arms.draw(rows, UNPRUNED, figures.ARM_LOOKS),
        "arm_claims": arms.claims(rows, UNPRUNED, [arm for arm in SCORES if arm in known], "mrs", others),
        "arms": arms.to_table(rows, UNPRUNED),
        "maps": evci_page.map_picture(rows, "mrs"),
    }


def with_long_unpruned(rows: Rows) -> Rows:
    """The network that is looked at is the unpruned arm of the schedule that is as long."""
    ends = rows.where(kind="end", activation="ReLU")
    known = rows.distinct("training", kind="arm", arm=UNPRUNED)
    whole = [row | {"kind": "arm", "arm": UNPRUNED} for row in ends if row["training"] not in known]
    return Rows([*rows, *whole])


def find_loss(rows: Rows, layers: Sequence[str], replacement: str = "mean", **which: Any) -> Values:
    """The change of the loss ``[seeds]``, in the mean of layers and looks; half of the units go."""
    return cost(rows, layers, replacement=replacement, fraction=HALF, **which)


def more(rows: Rows, layers: Sequence[str], one: Row, other: Row, *activations: str) -> dict[str, Values]:
    """How much more one removal costs than the other, on both sets of images: the conditions of a claim."""
    return on_images(
        lambda **which: find_loss(rows, layers, **one, **which) - find_loss(rows, layers, **other, **which),
        *activations,
    )


def score_claims(rows: Rows) -> list[Claim]:
    """Of the scores, with mean replacement."""

    def look(layer: str, score: str, fraction: float = HALF, field: str = "change") -> Values:
        which = {"activation": "ReLU", "layer": layer, "score": score, "replacement": "mean", "fraction": fraction}
        return rows.grid(field, kind="change", **which)

    def tanh_and_relu(**which: str) -> dict[str, Values]:
        return more(rows, ["fc1"], {"activation": "tanh"} | which, {"activation": "ReLU"} | which)

    mrp, random, late = look("conv1", "mrp"), look("conv1", "random"), {"activation": "ReLU", "late": True}
    near = {
        score: (np.abs(look("conv1", score) - mrp) - 0.1 * (random - mrp)).mean(axis=1) for score in ("mrs", "l2_in")
    }
    return [
        Claim("random units cost more than those of the lowest MRP (mean of the three layers)", "4.1",
              more(rows, LAYERS, {"score": "random"}, {"score": "mrp"}, *ACTIVATIONS)),
        Claim("conv1 (few units), ReLU: a score is nearer to MRP than a tenth of what random units cost more", "4.1",
              near, -1),
        *(Claim(f"fc1, ReLU, second half of the looks: {worse} costs more than {better}", "4.1",
                more(rows, ["fc1"], late | {"score": worse}, late | {"score": better}))
          for worse, better in (("mrs", "mrp"), ("l2_in", "mrp"), ("l2_in", "mrs"))),
        Claim("fc1, ReLU: at some look a tenth of the units goes and the loss falls (least change, MRP)", "4.1",
              on_images(lambda field: look("fc1", "mrp", 0.1, field).min(axis=1)), -1),
        Claim("fc1, the mean before the activation, MRS: tanh costs more than ReLU", "4.1",
              tanh_and_relu(score="mrs", replacement="mean_before")),
        Claim("fc1: random units cost less with tanh than with ReLU", "4.1", tanh_and_relu(score="random"), -1),
        Claim("fc1, tanh: random units cost more than those of the lowest MRS", "unlike 4.1: no clear difference",
              more(rows, ["fc1"], {"activation": "tanh", "score": "random"}, {"activation": "tanh", "score": "mrs"})),
    ]  # fmt: skip


def replacement_claims(rows: Rows) -> list[Claim]:
    """What takes a unit's place, compared with the mean after the activation; MRS chooses half of each layer."""
    words = {
        "none": "without bias propagation a removal costs more than with the mean",
        "mean_before": "the mean before the activation costs more than the mean after it",
        "median": "the median costs more than the mean",
        "extreme": "the nearer extreme costs more than the mean",
    }
    mean: Row = {"score": "mrs"}
    return [
        Claim(text, "", more(rows, LAYERS, mean | {"replacement": left}, mean, *ACTIVATIONS))
        for left, text in words.items()
    ]


def rank_claims(rows: Rows) -> list[Claim]:
    """Which score orders units most like the mean replacement penalty: Spearman's correlation, mean of all layers."""

    def ahead(activation: str, other: str) -> Values:
        which = {"kind": "rank", "activation": activation}
        ours, theirs = (
            np.mean([rows.grid("rho", layer=layer, score=score, **which) for layer in LAYERS], axis=(0, 2))
            for score in ("mrs", other)
        )
        return np.asarray(ours - theirs)

    return [
        Claim(
            f"MRS ranks units more like MRP than {other} does", "", {each: ahead(each, other) for each in ACTIVATIONS}
        )
        for other in ("l2_in", "variance", "taylor")
    ]


def ratios(rows: Rows, one: Row, other: Row) -> str:
    """How many times as much one removal costs as another, of the means over looks and seeds, in words."""
    each = {
        name: find_loss(rows, **place, **one).mean() / find_loss(rows, **place, **other).mean()
        for name, place in PLACES.items()
    }
    return ", ".join(f"{ratio:.2g} times as much ({name})" for name, ratio in each.items())


def agreement(rows: Rows, score: str, activation: str, layers: Sequence[str]) -> str:
    """A score's rank correlation with MRP, and the part of the units that both remove."""
    which = {"kind": "rank", "activation": activation, "layer": layers[0], "score": score}
    rho, shared = (rows.grid(field, **which) for field in ("rho", "shared"))
    return f"{rho.mean():.2f} ({rho.mean(axis=0).min():.2f}, {shared.mean():.0%})"


def together_left(measured: Measured) -> str:
    """What a ranking of all layers together would leave, in words: least and most over seeds."""
    last = measured.rows.where(kind="scores", activation="ReLU")
    last = [row for row in last if row["iteration"] == max(each["iteration"] for each in last)]
    lefts = []
    for seed in sorted({row["seed"] for row in last}):
        scores = {row["layer"]: np.array(row["mrs"]) for row in last if row["seed"] == seed}
        every = np.sort(np.concatenate(list(scores.values())))
        limit = every[int(GONE[-1] * len(every) + 1e-9)]
        units = {layer: max(2, int((scores[layer] >= limit).sum())) for layer in LAYERS}
        lefts.append([*units.values(), parameters_left(measured.facts, units)])
    names = (*(f"in {layer}" for layer in LAYERS), "parameters")
    return ", ".join(f"{min(each):,} to {max(each):,} {name}" for name, *each in zip(names, *lefts, strict=True))
