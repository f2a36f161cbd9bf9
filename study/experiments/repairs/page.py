"""What repairs are worth, asked of what was measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part
from network_surgery.study.bench.panels import Panels, looks, symmetric_scale
from network_surgery.study.bench.rows import Measured, Rows, Values
from network_surgery.study.bench.tables import deviation, spread, table
from network_surgery.study.counts import format_count
from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.experiments.repairs.measure import (
    ARMS,
    BOTH,
    BUILT_IN,
    CHAINS,
    DEEP,
    NONE,
    NOTHING,
    REMOVALS,
    Arm,
)

RIGHT, TEST = "right after", "at the end, test images"
#: The removals that every chain can follow; claims on chains are about their mean, seed by seed.
MEANT = tuple(removal for removal in REMOVALS if removal not in BUILT_IN)
COMPARED = (
    *((chain, NONE) for chain in CHAINS if chain != NONE),
    ("least squares", "bias"), (BOTH, "batchnorm"), (BOTH, "bias + batchnorm"),
)  # fmt: skip
LOOKS = looks(CHAINS, dotted=(NONE, "bias", "batchnorm"), grey=(NONE,))


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows, options, few, many = measured.rows, measured.about["options"], measured.facts["arms"], measured.facts["deep"]
    named = ("label", "model", "before", "keep", "after", "shown", "deep_model")
    return {
        **{name: str(options[name]) for name in named},
        "images": f"{few['train']:,} images, {few['validation']:,} others for validation, {few['test']:,} for the test",
        "deep_images": f"{many['train']:,} images, {many['validation']:,} others for validation",
        "whole": deviation(moments(rows, *NOTHING)[RIGHT], 1, 100),
        "deep_whole": deviation(rows.grid("accuracy", kind="whole")[:, 0], 1, 100),
        "accuracy": draw(rows), "chain_claims": chain_claims(rows), "end_claims": end_claims(rows),
        "arms": to_table(rows), "deep_claims": deep_claims(rows), "deep": deep_table(rows),
    }  # fmt: skip


def moments(rows: Rows, removal: str, chain: str) -> dict[str, Values]:
    """Accuracy ``[seeds]``: on the validation images right after the cut and after some epochs, and at the end."""
    which = {"kind": "arm", "removal": removal, "chain": chain}
    accuracy, test = (rows.grid(name, **which)[:, 0] for name in ("accuracy", "test"))
    last = accuracy.shape[1] - 1
    some = {f"after {format_count(at, 'epoch')}": accuracy[:, at] for at in sorted({1, 2, last}) if at <= last}
    return {RIGHT: accuracy[:, 0]} | some | {TEST: test}


def chain_claims(rows: Rows) -> list[Claim]:
    """What chains of repairs are worth compared with others, and chosen units compared with random ones."""
    at = {arm: moments(rows, *arm) for arm in ARMS}

    def mean(chain: str, moment: str) -> Values:
        return np.mean([at[removal, chain][moment] for removal in MEANT], axis=0)  # type: ignore[no-any-return]

    return [
        *(Claim(f"{chain} is better than {other} (mean of {len(MEANT)} removals)", "",
                {moment: mean(chain, moment) - mean(other, moment) for moment in at[ARMS[0]]}, unit="points")
          for chain, other in COMPARED),
        *(Claim(f"{removal} is better than random units, both with {chain}", "",
                {moment: at[removal, chain][moment] - at["random", chain][moment] for moment in (RIGHT, TEST)},
                unit="points")
          for removal in ("min weight", "EigenRemove") for chain in (NONE, BOTH)),
    ]  # fmt: skip


def end_claims(rows: Rows) -> list[Claim]:
    """How the arms end on the test images, compared with the network that is left alone."""
    gaps = {arm: moments(rows, *arm)[TEST] - moments(rows, *NOTHING)[TEST] for arm in ARMS}
    return [
        Claim(f"with {chain} the cut network ends below the one left alone", "",
              {removal: gap for (removal, one), gap in gaps.items() if one == chain}, -1, unit="points")
        for chain in CHAINS
    ]  # fmt: skip


def deep(rows: Rows) -> dict[str, dict[Arm, Values]]:
    """Accuracy ``[seeds]`` of the deep network right after the cut, by what was kept and by arm."""
    which = {arm: {"kind": "deep", "removal": arm[0], "chain": arm[1]} for arm in DEEP}
    return {
        f"{keep:g} kept": {arm: rows.grid("accuracy", keep=keep, **which[arm])[:, 0] for arm in DEEP}
        for keep in rows.distinct("keep", kind="deep")
    }


def deep_claims(rows: Rows) -> list[Claim]:
    """What repairs are worth, and chosen units, right after the deep network was cut."""

    def better(text: str, *pairs: tuple[Arm, Arm]) -> Claim:
        gaps = {f"{one[0]}, {words}": at[one] - at[other] for words, at in deep(rows).items() for one, other in pairs}
        return Claim(f"deep network: {text}", "", gaps, unit="points")

    return [
        *(better(f"{chain} is better than {other}", *((arm, (arm[0], other)) for arm in DEEP if arm[1] == chain))
          for chain, other in (("batchnorm", NONE), (BOTH, NONE), (BOTH, "batchnorm"))),
        *(better(f"min weight is better than random, both with {chain}", (("min weight", chain), ("random", chain)))
          for chain in (NONE, "batchnorm", BOTH)),
        *(better(f"PCNS with batchnorm is better than {removal} with {BOTH}", (("PCNS", "batchnorm"), (removal, BOTH)))
          for removal in ("min weight", "random")),
    ]  # fmt: skip


def deep_table(rows: Rows) -> str:
    """Accuracy of the deep network right after the cut."""
    removals, chains = (dict.fromkeys(arm[at] for arm in DEEP) for at in (0, 1))
    lines = [
        [removal, words, *(deviation(at[removal, one], 1, 100) if (removal, one) in at else None for one in chains)]
        for words, at in deep(rows).items() for removal in removals
    ]  # fmt: skip
    return table(["removal", "units", *chains], lines, words=2)


def to_table(rows: Rows) -> str:
    """Every arm: right after the cut, and after further training."""
    whole, lines = moments(rows, *NOTHING), []
    for arm in (NOTHING, *ARMS):
        at, plain = moments(rows, *arm), moments(rows, arm[0], NONE) if arm in ARMS else None
        each = rows.where(kind="arm", removal=arm[0], chain=arm[1])
        back = np.median([np.inf if row["recovered"] is None else row["recovered"] for row in each])
        cells: dict[str, Any] = {
            "right after %": f"{100 * at[RIGHT].mean():.1f}",
            f"− {NONE}, points": spread(at[RIGHT] - plain[RIGHT], 2, 100, "+") if plain and arm[1] != NONE else None,
            "loss after / before": f"× {np.exp(np.mean([np.log(row['spike']) for row in each])):.2f}",
            "seconds / epoch's": f"{np.median([row['seconds'] for row in each]):.1%}" if plain else None,
            "back after epochs": (f"{back:g}" if np.isfinite(back) else "later") if plain else None,
            **{moment: f"{100 * values.mean():.1f}" for moment, values in [*at.items()][1:-1]},
            "test %": deviation(at[TEST], 1, 100),
            f"− {NOTHING[0]}, points": spread(at[TEST] - whole[TEST], 2, 100, "+") if plain else None,
            "n": len(each),
        }
        lines.append([*arm, *cells.values()])
    return table(["removal", "repair", *cells], lines, words=2)


def draw(rows: Rows) -> Drawing:
    """Accuracy after the cut compared with the network that is left alone, by removal and chain of repairs."""
    panels = Panels([""], list(REMOVALS), (13.0, 4.6), f"accuracy − {NOTHING[0]}, points", sharex=True, sharey=True)
    base = rows.grid("accuracy", kind="arm", removal=NOTHING[0])[:, 0]
    for removal, chain in ARMS:
        gains = 100 * (rows.grid("accuracy", kind="arm", removal=removal, chain=chain)[:, 0] - base)
        panels.curve("", removal, range(gains.shape[1]), gains, chain, LOOKS[chain], band=chain == NONE)
    symmetric_scale(panels.axes[0, 0], 1)
    return panels.drawing("What repairs are worth", "epochs after the cut")
