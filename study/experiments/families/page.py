"""What the page of the families is made of."""

from __future__ import annotations

import math
import statistics

import numpy as np

from network_surgery.study.bench.page import Part, images
from network_surgery.study.bench.rows import Measured, Rows
from network_surgery.study.bench.tables import cross, deviation, table
from network_surgery.study.experiments.families import claims, figures, han
from network_surgery.study.experiments.families.claims import (
    NAMES,
    factors_of,
    original,
    pruned_values,
    tests,
    trained_values,
)
from network_surgery.study.experiments.families.families import FAMILIES, ORIGINAL, PRUNED


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows, options = measured.rows, measured.about["options"]
    untried = [name for name in FAMILIES if name not in rows.distinct("family", kind="arm")]
    return {
        "images": images(measured),
        "epochs": str(options["epochs"]), "batch_size": str(options["batch_size"]),
        "rates": options["rates"].replace(",", ", "),
        "steps": f"{options['epochs'] * math.ceil(measured.facts['train'] / options['batch_size']):,}",
        "factors": ", ".join(f"1/{factor}" for factor in options["factors"].split(",")),
        "whole": deviation(original(rows), 2, 100), "whole_bytes": f"{measured.facts['bytes']:,}",
        "untried": f"Not tried here: {', '.join(untried)}." if untried else "",
        "computed_dearest": _dearest(rows), "masks": _masks(rows),
        "families": figures.families(rows), "accuracy": _accuracy(rows), "costs": _costs(rows),
        "hashed_claims": claims.hashed_claims(rows), "dictionary_claims": claims.dictionary_claims(rows),
        "reversal_claims": claims.reversal_claims(rows), "halfway_claims": claims.halfway_claims(rows),
        "pruning": _pruning(measured), "han_claims": claims.han_claims(rows), "han": _han(rows),
        "curves": figures.curves(rows), "curve_claims": claims.curve_claims(rows), "sparsity": figures.sparsity(rows),
    }  # fmt: skip


def _members(rows: Rows) -> list[str]:
    return [family for family in rows.distinct("family", kind="arm") if family != ORIGINAL]


def _accuracy(rows: Rows) -> str:
    """Test accuracy by family and size."""
    factors = sorted({row["factor"] for row in rows.where(kind="arm")} - {1})

    def cell(family: str, factor: int) -> str | None:
        return deviation(tests(rows, family, factor), 2, 100) if factor in factors_of(rows, family) else None

    return cross("family", _members(rows), {f"1/{factor}": factor for factor in factors}, cell)


def _costs(rows: Rows) -> str:
    """What every network takes."""
    lines = []
    for family in (ORIGINAL, *_members(rows)):
        for factor in factors_of(rows, family):
            each = rows.where(kind="arm", family=family, factor=factor)
            setting = each[0].get("setting")
            words = " × ".join(map(str, setting)) if isinstance(setting, list) else f"{setting:.3g}" if setting else ""
            middle = {
                field: float(np.median([row[field] for row in each]))
                for field in ("bytes", "parameters", "flops", "computing", "milliseconds", "milliseconds_256")
            }
            rate = statistics.mode(f"{row['rate']:g}" for row in each)
            lines.append([
                family, f"1/{factor}", words, rate,
                *(f"{middle[name]:,.0f}" for name in ("bytes", "parameters", "flops")),
                f"{middle['computing']:,.0f}" if middle["computing"] else None,
                f"{middle['milliseconds']:.2f}", f"{middle['milliseconds_256']:.2f}",
            ])  # fmt: skip
    columns = ["family", "size", "setting", "rate", "bytes of the file", "numbers trained", "FLOPs of one image",
               "FLOPs for the weights, once a pass", "ms, one image", "ms, 256 images"]  # fmt: skip
    return table(columns, lines, words=2)


def _dearest(rows: Rows) -> str:
    """How much of an image's FLOPs computing weights takes at most."""
    most = max(rows.where(kind="arm"), key=lambda row: row["computing"])
    if not most["computing"]:
        return "no FLOPs"
    times = most["computing"] / most["flops"]
    return f"up to {times:,.1f} times the FLOPs of an image ({most['family']} at 1/{most['factor']})"


def _masks(rows: Rows) -> str:
    """How large the files of pruned networks are."""
    whole = rows.grid("bytes", kind="arm", family=ORIGINAL).mean()
    found = [row["bytes"] / whole for row in rows.where(kind="arm", family=PRUNED)]
    return f"{min(found):.2f} to {max(found):.2f} times the original's" if found else "not measured"


def _pruning(measured: Measured) -> str:
    """How the pruned networks were trained."""
    epochs = dict(zip(han.TARGETS, measured.about["options"]["pruning_epochs"], strict=True))
    each = [
        f"{NAMES[network]} {epochs[network]} epochs, then {', '.join(f'{left:.2g}' for left in han.LEFT[network])} of "
        "the weights left"
        for network in claims.pruned_networks(measured.rows)
    ]
    absent = [name for network, name in NAMES.items() if network not in claims.pruned_networks(measured.rows)]
    left_out = f". Not pruned here: {', '.join(absent)}" if absent else ""
    return (
        f"SGD {han.RATE:g} with momentum {han.MOMENTUM:g}, one cycle, batches of {han.BATCH}; L2 "
        f"{han.STRENGTH[han.L2]:g} or L1 {han.STRENGTH[han.L1]:g}; retraining at a constant {han.LATER * han.RATE:g}, "
        f"{measured.about['options']['retraining']} epochs after each fraction. "
        f"{'; '.join(each)}{left_out}"
    )


def _han(rows: Rows) -> str:
    """The source's table, with files as they are."""
    lines = []
    for network in claims.pruned_networks(rows):
        left, end = han.target(network), rows.where(kind="table", network=network)
        layers = [np.mean([row["layers"][layer] for row in end]) for layer in end[0]["layers"]]
        sizes = [f"{np.median([row[field] for row in end]):,.0f}" for field in ("bytes", "compact_bytes")]
        flops = np.mean([row["compact_flops"] for row in end]) / trained_values(rows, "flops", network).mean()
        lines.append([
            NAMES[network], f"{trained_values(rows, 'weights', network).mean():,.0f}",
            f"{pruned_values(rows, 'weights', han.L2, han.ITERATIVE, left, network).mean():,.0f}",
            ", ".join(f"{100 * each:.0f}" for each in layers),
            *(deviation(100 - 100 * trained_values(rows, field, network), 2) for field in ("test", "alone")),
            deviation(100 - 100 * pruned_values(rows, "test", han.L2, han.ITERATIVE, left, network), 2),
            f"{trained_values(rows, 'bytes', network).mean():,.0f}", *sizes, f"{flops:.0%}", len(end),
        ])  # fmt: skip
    columns = ["network", "parameters", "left", "left by layer, %", "error before, %", "trained on, whole, %",
               "error pruned, %", "file before", "file with masks", "compacted", "FLOPs compacted", "n"]  # fmt: skip
    return table(columns, lines)
