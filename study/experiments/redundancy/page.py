"""What the draft of PCNS expects of redundancy (Rolet 2022), asked of what was measured."""

from __future__ import annotations

import numpy as np

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part, images
from network_surgery.study.bench.panels import Panels
from network_surgery.study.bench.rows import Measured, Rows, Values
from network_surgery.study.bench.tables import deviation, table
from network_surgery.study.evidence.drawing import BLUE, GREY, Drawing, Look
from network_surgery.study.experiments.redundancy.measure import SHARES

LOOKS: dict[str, Look] = {"untrained": {"color": GREY, "linestyle": ":"}, "trained": {"color": BLUE, "linestyle": "-"}}
#: The share of the variance that claims are about.
SHARE = 0.99
#: Rows for each unit below which the draft's rule (5 to 10) is not met.
FEW = 5


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows = measured.rows
    return {"images": images(measured), "epochs": str(measured.about["options"]["epochs"]), "claims": claims(rows),
            "components": draw(rows), "networks": to_table(rows)}  # fmt: skip


def numbers(rows: Rows, field: str, network: str, moment: str) -> Values:
    """A field of a network by seed: ``[seeds]``, or ``[seeds, …]`` where each row has a list."""
    return np.asarray(rows.grid(field, network=network, moment=moment)[:, 0])


def fractions(rows: Rows, network: str, moment: str) -> Values:
    """``[seeds, layers, shares]``: the components that a layer needs over its units."""
    return numbers(rows, "needed", network, moment) / numbers(rows, "units", network, moment)[..., None]


def claims(rows: Rows) -> list[Claim]:
    """Whether the median layer needs fewer components after training."""

    def change(network: str) -> Values:
        after, before = (
            np.median(fractions(rows, network, moment)[..., SHARES.index(SHARE)], axis=1)
            for moment in ("trained", "untrained")
        )
        return np.asarray(after - before)

    text = f"training brings redundancy: for {SHARE:g} of its variance the median layer needs fewer components"
    return [Claim(text, "Rolet 2022", {each: change(each) for each in rows.distinct("network")}, -1, unit="points")]


def to_table(rows: Rows) -> str:
    """A line for each network untrained, trained, and right after PCNS: accuracy, size, components of its layers."""
    columns = ["accuracy %", "parameters", "left %", "layers", *(f"{share:g}" for share in SHARES),
               "at most 1/10", "above 8/10", "few rows"]  # fmt: skip
    lines: list[list[object]] = []
    for network in rows.distinct("network"):
        for moment in rows.distinct("moment", network=network):
            first = rows.where(network=network, moment=moment)[0]
            cells = [network, moment, deviation(numbers(rows, "accuracy", network, moment), 1, 100)]
            if moment in LOOKS:
                needed = fractions(rows, network, moment).mean(axis=0)
                left = [row["left"] / row["parameters"] for row in rows.where(network=network, moment=moment)]
                cells += [
                    f"{first['parameters']:,}", f"{100 * np.mean(left):.1f}", len(needed),
                    *(f"{np.median(each):.0f} [{each.min():.0f} – {each.max():.0f}]" for each in 100 * needed.T),
                    (needed[:, SHARES.index(0.9999)] <= 0.1).sum(), (needed[:, SHARES.index(0.9)] > 0.8).sum(),
                    (np.array(first["samples"]) < FEW * np.array(first["units"])).sum(),
                ]  # fmt: skip
            lines.append([*cells, *[""] * (2 + len(columns) - len(cells))])
    return table(["network", "", *columns], lines, words=2)


def draw(rows: Rows) -> Drawing:
    """Components over depth, untrained and trained: a row for each of two shares, a column for each network."""
    networks, shown = rows.distinct("network"), {f"{share:g} of the variance": share for share in SHARES[:2]}
    panels = Panels(
        list(shown), networks, (2.3 * len(networks) + 1, 4.6), "components / units", sharex=True, sharey=True
    )
    for row, share in shown.items():
        for network in networks:
            for moment, look in LOOKS.items():
                values = fractions(rows, network, moment)[..., SHARES.index(share)]
                panels.curve(row, network, np.linspace(0, 1, values.shape[1]).tolist(), values, moment, look)
    return panels.drawing("Principal components that layers need, before and after training", "depth")
