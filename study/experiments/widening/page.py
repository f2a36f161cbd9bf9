"""What a widened layer learns, and what widening does to a regularized network's loss, asked of what was measured."""

from __future__ import annotations

from typing import Literal

import numpy as np

from network_surgery.study.bench.claims import Claim
from network_surgery.study.bench.page import Part
from network_surgery.study.bench.panels import Panels, looks, symmetric_scale
from network_surgery.study.bench.rows import Measured, Rows, Values
from network_surgery.study.bench.tables import deviation, spread, table
from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.experiments.widening.measure import (
    CODE,
    NOISY,
    OPERATIONS,
    RESTART,
    SETTINGS,
    TRIED,
    TWIN,
    WHOLE,
)

#: Copies nearer than this, relative to their length, have not parted, and factors nearer to 1 are 1: rounding.
ROUNDING = 1e-4
SHARES = ("uneven", "signed")
FACTORS = {"at_once": "at once", "thesis": "thesis's", "later": "next epoch"}
UNITS: dict[str, Literal["", "points", "factor"]] = {"rank": "", "loss": "factor", "accuracy": "points"}
LOOKS = looks((*OPERATIONS, RESTART, WHOLE), dotted=(WHOLE, CODE, "zero"), grey=(WHOLE,))


def parts(measured: Measured) -> dict[str, Part]:
    """What ``page.md`` names."""
    rows, options, facts = measured.rows, measured.about["options"], measured.facts
    epochs = (f"{name}: {' and '.join(map(str, options[name.partition(' ')[0]]))}" for name in SETTINGS)
    tables = [f"### {name}\n\n{to_table(rows, name)}" for name in rows.distinct("setting", kind="arm")]
    return {
        "images": f"{facts['train']:,} images of {options['label']}", "test_images": f"{facts['test']:,}",
        "seeds": str(len(rows.distinct("seed"))), "epochs": "; ".join(epochs), "arms": draw(rows),
        "arm_claims": arm_claims(rows), "tables": "\n\n".join(tables),
        "before": str(options["regularizers"][0]), "after": str(options["regularizers"][1]),
        "regularized_claims": regularized_claims(rows), "regularized": regularized_table(rows),
    }  # fmt: skip


def at(rows: Rows, field: str, epoch: int = -1, **which: str) -> Values:
    """A field of an arm, ``[seeds]``, at an epoch after widening or the last one; of a loss the logarithm."""
    values = rows.grid(field, kind="arm", **which)[:, 0, epoch]
    return np.log(values) if field == "loss" else values


def gaps(rows: Rows, field: str, arm: str, other: str, epoch: int = -1) -> dict[str, Values]:
    """How much higher an arm is than another, by setting."""
    return {
        name: at(rows, field, epoch, setting=name, arm=arm) - at(rows, field, epoch, setting=name, arm=other)
        for name in rows.distinct("setting", kind="arm", arm=arm)
    }


def arm_claims(rows: Rows) -> list[Claim]:
    """Whether copies part, and what widening is worth, in each setting."""
    names = rows.distinct("setting", kind="arm")
    equal = {each: rows.grid("distance", setting=each, arm="equal").max(axis=(1, 2)) for each in names}
    faults = {each: at(rows, "distance", setting=each, arm=CODE) for each in names}

    def ends(words: str, field: str, arm: str, other: str, wanted: Literal[-1, 1] = 1) -> Claim:
        return Claim(f"{arm} {words}", "", gaps(rows, field, arm, other), wanted, unit=UNITS[field])

    return [
        Claim("equal copies never part (largest distance of all epochs)", "unlike 4.2.2", equal, 0, ROUNDING, True),
        Claim("the narrow network at other rates trains as equal shares do (training loss at the end, within 5 %)", "",
              gaps(rows, "loss", TWIN, "equal"), 0, 0.05, True, "factor"),
        Claim("zero units change nothing (training loss at the end)", "", gaps(rows, "loss", "zero", WHOLE), 0,
              ROUNDING, True, "factor"),
        Claim("equal shares end at more accuracy than not widening", "4.2.2", gaps(rows, "accuracy", "equal", WHOLE),
              unit="points"),
        *(ends("copies part: a higher effective rank of the fan-in than equal ones", "rank", arm, "equal")
          for arm in SHARES),
        *(ends("shares end at a lower training loss than equal ones", "loss", arm, "equal", -1) for arm in SHARES),
        *(ends("shares end at more accuracy than equal ones", "accuracy", arm, "equal") for arm in SHARES),
        *(ends("shares end at more accuracy than not widening", "accuracy", arm, WHOLE) for arm in SHARES),
        *(ends("shares end at more accuracy than starting over with the wide network", "accuracy", arm, RESTART)
          for arm in SHARES),
        Claim("the faults of the published code part equal copies (distance at the end)", "", faults, 1, -ROUNDING),
        Claim("the faults of the published code raise the training loss at once", "",
              gaps(rows, "loss", CODE, "equal", 0), unit="factor"),
    ]  # fmt: skip


def factors(rows: Rows, field: str) -> dict[str, dict[str, Values]]:
    """The logarithms ``[seeds]`` of a factor, by regularizer and arm."""
    names = rows.distinct("regularizer", kind="regularized")
    return {name: {arm: np.log(rows.grid(field, regularizer=name, arm=arm)[:, 0]) for arm in TRIED} for name in names}


def regularized_claims(rows: Rows) -> list[Claim]:
    """The thesis's remark on regularization, taken apart."""
    once, later = factors(rows, "at_once"), factors(rows, "later")
    noisy = {arm: once[NOISY][arm] for arm in TRIED if arm != WHOLE}
    still = {name: np.max(np.abs([*each.values()]), axis=0) for name, each in once.items() if name != NOISY}
    parted = {name: rows.grid("distance", regularizer=name, arm="equal")[:, 0] for name in once}
    return [
        Claim(f"with {NOISY} widening raises the training loss at once", "figure 4.8", noisy, unit="factor"),
        Claim("without dropout no way of widening changes the training loss at once (largest change)",
              "unlike figure 4.8", still, 0, ROUNDING, True, "factor"),
        *(Claim(f"with {arm} shares the next epoch's training loss is above the unwidened network's", "figure 4.8",
                {name: each[arm] for name, each in later.items()}, unit="factor") for arm in ("equal", *SHARES)),
        Claim("equal copies never part, whatever the regularization", "", parted, 0, ROUNDING, True),
    ]  # fmt: skip


def to_table(rows: Rows, setting: str) -> str:
    """Every arm of a setting, at the last epoch but where a column says otherwise."""
    lines = []
    for arm in rows.distinct("arm", setting=setting):
        which = {"setting": setting, "arm": arm}
        accuracy, loss = at(rows, "accuracy", **which), at(rows, "loss", **which)
        gap = accuracy - at(rows, "accuracy", setting=setting, arm=WHOLE)
        paired = rows.where(**which)[0]["distance"][0] is not None
        cells = {
            "accuracy right after %": f"{100 * at(rows, 'accuracy', 0, **which).mean():.2f}",
            "accuracy %": deviation(accuracy, 2, 100),
            f"− {WHOLE}, points": None if arm == WHOLE else spread(gap, 2, 100, "+"),
            "loss": f"{np.exp(loss).mean():.4f}",
            "loss / equal": f"{np.exp((loss - at(rows, 'loss', setting=setting, arm='equal')).mean()):.3f}",
            "rank right after": f"{at(rows, 'rank', 0, **which).mean():.2f}",
            "rank": f"{at(rows, 'rank', **which).mean():.2f}",
            "distance": f"{at(rows, 'distance', **which).mean():.2g}" if paired else None,
            "dead": f"{at(rows, 'dead', **which).mean():.1f}",
            "n": len(loss),
        }
        lines.append([arm, *cells.values()])
    return table(["arm", *cells], lines)


def regularized_table(rows: Rows) -> str:
    """The factors of every operation under every regularizer."""
    lines = []
    for name in rows.distinct("regularizer", kind="regularized"):
        for arm in TRIED:
            means = [f"{np.exp(factors(rows, field)[name][arm].mean()):.3f}" for field in FACTORS]
            each = [row["distance"] for row in rows.where(regularizer=name, arm=arm)]
            lines.append([name, arm, *means, None if None in each else f"{np.mean(each):.2g}", len(each)])
    return table(["regularization", "operation", *FACTORS.values(), "distance", "n"], lines, words=2)


def draw(rows: Rows) -> Drawing:
    """Accuracy compared with the unwidened network above, effective rank of the fan-in below; a column a setting."""
    lines = (f"test accuracy −\n{WHOLE}, points", "effective rank\nof the fan-in")
    names = rows.distinct("setting", kind="arm")
    panels = Panels(lines, names, (2.6 * len(names) + 0.6, 5.8), sharex="col")
    for name in names:
        base = rows.grid("accuracy", setting=name, arm=WHOLE)[:, 0]
        for arm, look in LOOKS.items():
            accuracy, rank = (rows.grid(field, setting=name, arm=arm)[:, 0] for field in ("accuracy", "rank"))
            for line, values in zip(lines, (100 * (accuracy - base), rank), strict=True):
                panels.curve(line, name, range(values.shape[1]), values, arm, look | {"marker": ""}, band=True)
        symmetric_scale(panels[lines[0], name], 3)
    return panels.drawing("What a widened layer learns", "epoch after widening")
