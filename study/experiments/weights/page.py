"""What the thesis says of weight scores (Evci 2018, chapter 2), asked of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from network_surgery.study.bench import arms
from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part
from network_surgery.study.bench.rows import Measured, Rows, Values
from network_surgery.study.bench.tables import cross, deviation, spread, table
from network_surgery.study.experiments import evci, evci_page
from network_surgery.study.experiments.evci import UNPRUNED
from network_surgery.study.experiments.evci_page import ACTIVATIONS, cost, growth, on_images
from network_surgery.study.experiments.weights import figures
from network_surgery.study.experiments.weights.measure import COMPACTED, DENSE, F_NZ, FIRST, MEASURED, SCORES, TAYLOR

#: The fraction of a layer's weights that most of the page is about.
MOST = 0.8
Names = Sequence[str]
PLACES = {f"{activation}, {layer}": (activation, layer) for layer in (FIRST, DENSE) for activation in ACTIVATIONS}


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows = measured.rows
    operated = [arm for arm in rows.distinct("arm", kind="arm") if arm != UNPRUNED]
    model = evci.build(measured.facts)
    return {
        "trained_on": evci_page.trained_on(measured),
        "first_weights": f"{model.get_parameter(f'{FIRST}.weight').numel():,}",
        "dense_weights": f"{model.get_parameter(f'{DENSE}.weight').numel():,}",
        "changes": figures.changes(rows),
        "look_claims": look_claims(rows),
        "costs": cross("score", SCORES, PLACES, lambda score, place: _cost(rows, score, *place)),
        "scores": figures.scores(rows),
        "negative": _negative(rows),
        "rank_claims": rank_claims(rows),
        "schedule": arms.draw(rows, UNPRUNED, figures.LOOKS),
        "arm_claims": [*arms.claims(rows, UNPRUNED, operated, COMPACTED, operated[1:]), *compact_claims(rows)],
        "arms": arms.to_table(rows, UNPRUNED),
        "moved": f"{rows.grid('moved', kind='compact', f_nz=0.0).max():.1g}",
        "compaction": figures.compaction(rows),
        "compacted": _compaction(rows),
        "maps": evci_page.map_picture(rows, COMPACTED),
    }


def look_claims(rows: Rows) -> list[Claim]:
    """Of the scores: one number for each seed, of all looks at its run (or of the early and late ones)."""

    def gap(layer: str, ones: Names, others: Names, of: Callable[[Values], Values] = np.asarray) -> dict[str, Values]:
        def mean(scores: Names, field: str, **which: Any) -> Values:
            which |= {"kind": "change", "layer": layer, "fraction": MOST}
            return np.mean([of(rows.grid(field, score=score, **which)) for score in scores], axis=(0, 2))

        return on_images(lambda **which: mean(ones, **which) - mean(others, **which), *ACTIVATIONS)

    def jumps(values: Values) -> Values:
        return np.abs(np.diff(values))

    claims = []
    for layer, signed in ((FIRST, (*TAYLOR, MEASURED)), (DENSE, TAYLOR)):
        where, n = f"{layer}, {MOST:g} pruned:", len(signed)
        size, sizes = ["magnitude"], [f"{score}_abs" for score in signed]
        claims += [
            Claim(f"{where} absolute values cost less than signed scores (mean of {n} each)", "2.1",
                  gap(layer, sizes, signed), -1),
            Claim(f"{where} magnitude costs less than the absolute values (mean of {n})", "2.1",
                  gap(layer, size, sizes), -1),
            Claim(f"{where} the cost of magnitude jumps less from look to look than theirs", "2.1",
                  gap(layer, size, sizes, jumps), -1),
        ]  # fmt: skip
    pruned = partial(cost, rows, [FIRST], score=MEASURED)
    where = f"{FIRST}, pruned by the measured change:"
    return [
        *claims,
        Claim(f"{where} with 0.01 gone the loss falls (mean of all looks)", "2.1",
              on_images(partial(pruned, fraction=0.01), *ACTIVATIONS), -1),
        Claim(f"{where} with 0.05 gone it rises (second half of the looks)", "2.1",
              on_images(partial(pruned, fraction=0.05, late=True), *ACTIVATIONS)),
        Claim(f"{where} with 0.05 gone, the change together less the sum of one by one grows (second half less first)",
              "2.1", {each: growth(figures.dependency(rows, each)) for each in ACTIVATIONS}),
    ]  # fmt: skip


def rank_claims(rows: Rows) -> list[Claim]:
    """How the approximations agree with the measured change of the first layer: Spearman's correlation."""
    rho = {each: {score: _ranks(rows, each, score) for score in TAYLOR} for each in ACTIVATIONS}
    late = {each: growth(ranks["taylor1"]) for each, ranks in rho.items()}
    return [
        *(Claim(f"taylor1 ranks more like the measured change than {other}", "",
                {each: (ranks["taylor1"] - ranks[other]).mean(axis=1) for each, ranks in rho.items()})
          for other in TAYLOR[1:]),
        Claim("taylor1 agrees less with it later (second half of the looks less the first)", "", late, -1),
    ]  # fmt: skip


def compact_claims(rows: Rows) -> list[Claim]:
    """The least ``f_nz`` at which half of the whole network's parameters are left or fewer, zeros included."""
    whole = rows.grid("parameters", kind="arm", arm=UNPRUNED).mean()
    half = [f_nz for f_nz in F_NZ if rows.grid("dense", kind="compact", f_nz=f_nz).mean() <= whole / 2]
    return [
        Claim(f"compaction to half the size or less (f_nz = {f_nz:g}) costs accuracy", "unlike 2.2",
              (_compact(rows, "test", f_nz) - _compact(rows, "test", 0.0)), -1, unit="points")
        for f_nz in half[:1]
    ]  # fmt: skip


def _ranks(rows: Rows, activation: str, score: str, field: str = "rho") -> Values:
    return rows.grid(field, kind="rank", activation=activation, layer=FIRST, score=score)


def _compact(rows: Rows, field: str, f_nz: float) -> Values:
    return rows.grid(field, kind="compact", f_nz=f_nz)[:, 0]


def _cost(rows: Rows, score: str, activation: str, layer: str) -> str | None:
    which: dict[str, Any] = {"kind": "change", "activation": activation, "layer": layer, "score": score}
    if not rows.where(**which):
        return None
    values = rows.grid("change", fraction=MOST, **which)
    return f"{spread(values.mean(axis=1))} ({values.mean(axis=0).max():.2f})"


def _negative(rows: Rows) -> str:
    lines = []
    for activation in ACTIVATIONS:
        for score in (MEASURED, *TAYLOR, "magnitude"):
            cells: list[str | None] = [None] * 4
            if score != "magnitude":
                share = rows.grid("share", kind="negative", activation=activation, layer=FIRST, score=score)
                cells[:2] = [spread(values, 1, 100) for values in (share.mean(axis=1), growth(share))]
            if score != MEASURED:
                cells[2:] = [spread(_ranks(rows, activation, score, at).mean(axis=1), 2) for at in ("rho", "rho_abs")]
            lines.append([activation, score, *cells])
    columns = ["activation", "score", "below zero %", "second half − first", "rank correlation", "of absolute values"]
    return table(columns, lines, words=2)


def _compaction(rows: Rows) -> str:
    whole = rows.grid("parameters", kind="arm", arm=UNPRUNED)[:, 0]
    lines = []
    for f_nz in F_NZ:
        dense, live, test = (_compact(rows, field, f_nz) for field in ("dense", "live", "test"))
        gap = spread(test - _compact(rows, "test", 0.0), 2, 100, "+") if f_nz else None
        lines.append([f"{f_nz:g}", deviation(dense, 0), f"{(dense / whole).mean():.0%}", f"{live.mean():,.0f}",
                      deviation(test, 2, 100), gap, len(test)])  # fmt: skip
    columns = ["f_nz", "parameters, zeros included", "of the whole", "not zero", "test accuracy %", "− f_nz 0, points",
               "n"]  # fmt: skip
    return table(columns, lines, words=0)
