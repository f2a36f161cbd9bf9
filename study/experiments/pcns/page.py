"""What the draft on PCNS assumes and expects (Rolet 2022, sections 3 to 5), asked of what was measured."""

from __future__ import annotations

import numpy as np

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part
from network_surgery.study.bench.rows import Measured, Row, Rows, Values
from network_surgery.study.bench.tables import deviation, table
from network_surgery.study.counts import format_count
from network_surgery.study.experiments.pcns import figures
from network_surgery.study.experiments.pcns.figures import accuracies
from network_surgery.study.experiments.pcns.measure import ORDERS, PIVOTED, RATIOS, UNINTERRUPTED

#: By how much an error may be larger on new images, and a prediction of the loss be off.
FIFTH, QUARTER = 0.2, 0.25
#: Between these a change of the loss is small; below it is lost in noise.
SMALL = (1e-3, 0.1)


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows = measured.rows
    return {
        "trained_on": trained_on(measured),
        "shrunk": figures.shrunk(rows),
        "layers": layers(rows),
        "arm_claims": arm_claims(rows),
        "arms": arms(rows),
        "batch_claims": batch_claims(rows),
        "order_claims": order_claims(rows),
        "sample_claims": sample_claims(rows),
        "prediction_claims": prediction_claims(rows),
    }


def trained_on(measured: Measured) -> str:
    """The images and the epochs, in words."""
    facts, options = measured.facts, measured.about["options"]
    epochs = "; ".join(f"{name}: {each}" for name, each in zip(options["kinds"], options["before"], strict=True))
    return (
        f"**Trained on** {facts['train']:,} images of {options['label']}, tested on {facts['test']:,} others. Epochs "
        f"before the operation: {epochs}; after it: {options['after']}. {options['seeds']} seeds set initial weights, "
        "batches and random choices."
    )


def name(place: Row) -> str:
    """The condition of a claim: network and threshold, or network and layer."""
    return ", ".join(map(str, place.values()))


def ratios(rows: Rows, one: str, other: str, *names: str, **which: object) -> dict[str, Values]:
    """One field over another less one, the median of each seed's rows that have both: ``[seeds]`` by condition."""
    found = {}
    for place in rows.groups(*names, **which):
        seeds: dict[int, list[float]] = {}
        for row in rows.where(**which, **place):
            if row[one] is not None and row[other]:
                seeds.setdefault(row["seed"], []).append(row[one] / row[other] - 1)
        found[name(place)] = np.array([np.median(seeds[seed]) for seed in sorted(seeds)])
    return found


def layers(rows: Rows) -> str:
    """What PCNS (pivoted) keeps of each layer, and the accuracy after each, the last one first."""
    lines = []
    for place in rows.groups("network", "threshold", kind="layer", arm=PIVOTED):
        which = {"kind": "layer", "arm": PIVOTED} | place
        units, after = (
            [rows.grid(field, layer=layer, **which).mean() for layer in rows.distinct("layer", **which)]
            for field in ("units", "accuracy")
        )
        steps = " → ".join(f"{100 * each:.2f}" for each in after)
        lines.append([*place.values(), " – ".join(f"{each:.0f}" for each in units[::-1]), steps])
    return table(["network", "dropped variance", "units", "accuracy after each layer, %"], lines, words=4)


def arm_claims(rows: Rows) -> list[Claim]:
    """PCNS with the pivoted basis against every other arm, right after and at the end: accuracy on test images."""
    seeds = len(rows.distinct("seed"))

    def ahead(arm: str, at: int) -> dict[str, Values]:
        gaps = {}
        for place in rows.groups("network", "threshold", kind="arm", arm=PIVOTED):
            other = place | {"arm": arm} | ({"threshold": 0.0} if arm == UNINTERRUPTED else {})
            if len(rows.where(kind="arm", **other)) == seeds:  # not refused
                gaps[name(place)] = (accuracies(rows, arm=PIVOTED, **place) - accuracies(rows, **other))[:, at]
        return gaps

    others = [arm for arm in rows.distinct("arm", kind="arm") if arm not in (PIVOTED, UNINTERRUPTED)]
    better = [
        Claim(f"PCNS (pivoted) is better than {arm}, {when}", "", ahead(arm, at), unit="points")
        for at, when in ((0, "right after"), (-1, "at the end"))
        for arm in others
    ]
    alone = "the shrunk network ends better than the one that was left alone"
    return [*better, Claim(alone, "", ahead(UNINTERRUPTED, -1), unit="points")]


def arms(rows: Rows) -> str:
    """The accuracy of every arm right after the operation and after some epochs."""
    last = len(rows.where(kind="arm")[0]["accuracies"]) - 1
    epochs = sorted({min(epoch, last) for epoch in (0, 1, 2, last)})
    lines = []
    for place in rows.groups("network", "threshold", "arm", kind="arm"):
        each = accuracies(rows, **place)
        size = rows.grid("parameters", kind="arm", **place).mean()
        lines.append([*place.values(), f"{size:,.0f}", *(deviation(each[:, epoch], 2, 100) for epoch in epochs)])
    titles = [format_count(epoch, "epoch") if epoch else "right after" for epoch in epochs]
    return table(["network", "dropped variance", "arm", "parameters", *titles], lines, words=3)


def batch_claims(rows: Rows) -> list[Claim]:
    """Whether the fit is as good on samples that it has not seen: median of the thresholds at which both are known."""
    text = "the error on samples that the fit has not seen is at most a quarter larger than on the batch"
    each = ratios(rows, "held_out", "error", "network", "layer", kind="layer", arm=PIVOTED)
    return [Claim(text, "2a", each, -1, QUARTER)]


def order_claims(rows: Rows) -> list[Claim]:
    """Whether another order of the layers makes a difference of a point right after, where it makes one at all."""

    def gap(order: str, place: Row) -> Values:
        other = rows.grid("accuracy", kind="order", order=order, **place)[:, 0]
        return np.asarray(other - accuracies(rows, arm=PIVOTED, **place)[:, 0])

    places = rows.groups("network", "threshold", kind="order")
    return [
        Claim(f"{order} is within a point of last to first", "asked in 5.2.5",
              {name(place): gap(order, place) for place in places if gap(order, place).any()}, 0, 0.01, unit="points")
        for order in ORDERS
    ]  # fmt: skip


def sample_claims(rows: Rows) -> list[Claim]:
    """Whether the samples that the draft asks for (5 to 10) are enough, and fewer are."""
    text = "with {:g} samples for each unit the error on new images is at most a fifth larger than on the sample"
    return [
        Claim(text.format(ratio), "3.2", ratios(rows, "unseen", "seen", "network", "layer", kind="sample", ratio=ratio),
              -1, FIFTH)
        for ratio in RATIOS
    ]  # fmt: skip


def prediction_claims(rows: Rows) -> list[Claim]:
    """Whether the change of the loss is as predicted."""

    def off(low: float, high: float) -> dict[str, Values]:
        known = [row for row in rows.where(kind="prediction") if low < row["actual"] <= high]
        return ratios(Rows(known), "predicted", "actual", "network")

    small = f"where the loss rises by {SMALL[0]:g} to {SMALL[1]:g}, the prediction is at most a quarter off"
    large = f"where it rises by more than {SMALL[1]:g}, the prediction falls short by more than a quarter"
    return [Claim(small, "", off(*SMALL), 0, QUARTER), Claim(large, "", off(SMALL[1], np.inf), -1, -QUARTER)]
