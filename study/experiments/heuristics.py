"""When is a high δ the better choice for EigenRemove? The two heuristics of the thesis, which contradict each other.

Graham 2019, 4.2.1: a high δ (> 0.5) where alterations are infrequent and contained, a low one (< 0.5) where they are
frequent and drastic; and a high one late in training, while early a higher error is acceptable. Its summary (4.2.3 and
chapter 5): a high δ where changes are frequent and minimal, a low one where they are infrequent and drastic.

The two agree on the size of a cut and differ in its frequency. So size (the fraction that stays), frequency (one cut or
four) and moment (early, late) are varied with δ (the fraction of rank that stays), for both forms of EigenRemove: every
training is of one seed, and every hidden layer is cut. Two things are measured: the test accuracy at the end, and how
the loss on held-out images moves with a cut (the mean logarithm of after over before, in the mean over cuts). The
second favours a low δ where cuts are frequent: a network that the first cut has spoilt has less to lose at the next
one. So what the two say together counts, and of several cuts the accuracy more.

    python -m network_surgery.study.experiments.heuristics --seeds 5 --out study/docs
"""

from __future__ import annotations

import itertools
import math
import platform
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from network_surgery.ops import EigenRemove, Moment, Schedule, Step
from network_surgery.study import data
from network_surgery.study.config import Settings
from network_surgery.study.experiments.rows import Claim, Row, measured, spread, told
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import spikes_of
from network_surgery.study.training.run import check, run

DELTAS = {1 / 8: "1/8", 1 / 4: "1/4", 3 / 4: "3/4", 1.0: "1"}
LOW, HIGH = (1 / 8, 1 / 4), (3 / 4, 1.0)
#: Cuts, one after every epoch, and the fraction of units that stays at each.
FREQUENCIES = {"infrequent": 1, "frequent": 4}
SIZES = {"contained": 0.9, "drastic": 0.5}
WEIGHTS = ("original", "reduced")
#: The epoch after which the first cut comes.
MOMENTS = {"early": 1, "late": 8}
SETTINGS = Settings(model="mlp", epochs=14, batch_size=64, probe=0, device="cpu")
#: What is measured, with the sign that makes more of it better, and its unit.
MEASURES = {"accuracy": (1, "test accuracy at the end, points"), "spike": (-1, "log of held-out loss, after / before")}


def measure(seed: int, settings: Settings = SETTINGS) -> list[Row]:
    """A row for every combination, of one seed: its choices, ``accuracy`` (percent), ``spike``, ``parameters``."""
    dataset = data.load(settings.data, settings.validation)
    layers = list(check(settings, dataset))
    rows: list[Row] = []
    for frequency, size, moment, weights, delta in itertools.product(FREQUENCIES, SIZES, MOMENTS, WEIGHTS, DELTAS):
        if delta == 1 and weights == "reduced":  # nothing is reduced: the same as with original weights
            known = next(row for row in rows if _is(row, frequency, size, moment, "original", 1.0))
            rows.append(known | {"weights": "reduced"})
            continue
        operation = EigenRemove(SIZES[size], delta, weights)
        moments = [Moment(MOMENTS[moment] + turn) for turn in range(FREQUENCIES[frequency])]
        steps = tuple(Step(at, layer, operation) for at in moments for layer in layers)
        outcome = run(
            Cell("surgery", seed, Schedule(steps).to_data(), test=True), dataset, settings, torch.device("cpu")
        )
        rows.append({
            "seed": seed, "frequency": frequency, "size": size, "moment": moment, "weights": weights, "delta": delta,
            "accuracy": 100 * outcome["test_accuracy"], "parameters": outcome["parameters"],
            "spike": statistics.fmean(math.log(spike.factor) for spike in spikes_of(outcome)),
        })  # fmt: skip
    return rows


def _is(row: Row, *wanted: object) -> bool:
    return tuple(row[name] for name in ("frequency", "size", "moment", "weights", "delta")) == wanted


def advantage(rows: Sequence[Row], measure: str, **which: str) -> NDArray[np.float64]:
    """How much better a high δ is than a low one, by seed ``[seeds]``, in the mean over all that is not ``which``."""
    sign, _ = MEASURES[measure]
    found: dict[int, dict[bool, list[float]]] = {}
    for row in rows:
        if all(row[name] == wanted for name, wanted in which.items()):
            found.setdefault(row["seed"], {True: [], False: []})[row["delta"] in HIGH].append(row[measure])
    return np.array([
        sign * (statistics.fmean(found[seed][True]) - statistics.fmean(found[seed][False])) for seed in sorted(found)
    ])  # fmt: skip


def claims(rows: Sequence[Row], measure: str, weights: str) -> list[Claim]:
    """What the two heuristics say, as differences that are above zero (or below: ``wanted`` −1) if they hold."""
    of = partial(advantage, rows, measure, weights=weights)
    late = of(moment="late") - of(moment="early")
    often = of(frequency="frequent") - of(frequency="infrequent")
    return [
        Claim(
            "4.2.1: high δ is better for infrequent, contained changes", of(frequency="infrequent", size="contained")
        ),
        Claim("4.2.1: low δ is better for frequent, drastic changes", of(frequency="frequent", size="drastic"), -1),
        Claim("4.2.3: high δ is better for frequent, minimal changes", of(frequency="frequent", size="contained")),
        Claim("4.2.3: low δ is better for infrequent, drastic changes", of(frequency="infrequent", size="drastic"), -1),
        Claim("4.2.1: what speaks for a high δ speaks less for it where changes are frequent", often, -1),
        Claim("4.2.3: it speaks more for it there", often),
        Claim("both: it speaks more for it where changes are contained", of(size="contained") - of(size="drastic")),
        Claim("4.2.1: it speaks more for it late in training", late),
    ]


def text(rows: Sequence[Row], seconds: float, settings: Settings = SETTINGS) -> str:
    """The report in markdown, all of it computed from the rows."""
    seeds = sorted({row["seed"] for row in rows})
    judged = {
        (measure, weights): told(claims(rows, measure, weights))
        for measure, weights in itertools.product(MEASURES, WEIGHTS)
    }
    lines = [
        "# When is a high δ the better choice?",
        "",
        *(line.strip() for line in (__doc__ or "").split("\n\n    python")[0].splitlines()[2:]),
        "",
        f"`{settings.model}` on `{settings.data}`, {settings.epochs} epochs, Adam at {settings.learning_rate:g}, "
        f"batches of {settings.batch_size}, {len(seeds)} seeds, {len(rows)} rows. Contained: {SIZES['contained']:g} of "
        f"the units stay at each cut, drastic: {SIZES['drastic']:g}; infrequent: one cut, frequent: "
        f"{FREQUENCIES['frequent']}, an epoch apart; early: from epoch {MOMENTS['early']} on, late: from epoch "
        f"{MOMENTS['late']} on. High δ: {_named(HIGH)}; low: {_named(LOW)}. Frequent cuts of one size remove "
        "more in all than a single one: that is what the heuristics speak of, and the last column shows it.",
        "",
        "## What the heuristics say, and what comes of it",
        "",
        _summary(judged),
        "",
        "A difference is that between high and low δ (above zero: high is better), in the mean over whatever the claim",
        "leaves open, paired by seed, with its 95 % interval; verdicts after Holm's correction over the eight,",
        "*(alone)* without it. Where two claims are each other's contrary both are listed.",
    ]
    for (measure, weights), table in judged.items():
        lines += ["", f"### {MEASURES[measure][1]}; {weights} weights kept", "", table]
    for measure, (_, words) in MEASURES.items():
        lines += ["", f"## {words[0].upper()}{words[1:]}", "", *_table(rows, measure)]
    lines += [
        "",
        f"`python -m network_surgery.study.experiments.heuristics --seeds {len(seeds)}`: {seconds:.0f} seconds on a "
        f"CPU ({platform.machine()}), torch {torch.__version__}, Python {platform.python_version()}.",
        "",
    ]
    return "\n".join(lines)


def _named(deltas: Sequence[float]) -> str:
    return " and ".join(DELTAS[delta] for delta in deltas)


def _summary(judged: dict[tuple[str, str], str]) -> str:
    """How often each claim holds over measures and forms, in words."""
    verdicts: dict[str, list[str]] = {}
    for table in judged.values():
        for line in table.splitlines()[2:]:
            claim, _, verdict = (cell.strip() for cell in line.strip("|").split("|"))
            verdicts.setdefault(claim, []).append(verdict.strip("*"))
    lines = [
        f"Over {len(judged)} families of tests ({len(MEASURES)} measures × {len(WEIGHTS)} forms of EigenRemove):",
        "",
    ]
    for claim, found in verdicts.items():
        counts = {word: sum(each == word for each in found) for word in ("holds", "does not hold")}
        rest = len(found) - sum(counts.values())
        lines.append(
            f"- {claim}: holds in {counts['holds']}, does not hold in {counts['does not hold']}, undecided in {rest}."
        )
    return "\n".join(lines)


def _table(rows: Sequence[Row], measure: str) -> list[str]:
    """Mean ± half of the 95 % interval, a row a combination, a column a δ."""
    lines = [
        f"| frequency | size | moment | weights | {' | '.join(f'δ {name}' for name in DELTAS.values())} | parameters |"
    ]
    lines.append("|---|---|---|---|" + "--:|" * (len(DELTAS) + 1))
    for which in itertools.product(FREQUENCIES, SIZES, MOMENTS, WEIGHTS):
        columns = [[row for row in rows if _is(row, *which, delta)] for delta in DELTAS]
        digits = 2 if measure == "accuracy" else 3
        cells = [spread(np.array([row[measure] for row in column]), digits) for column in columns]
        lines.append(f"| {' | '.join((*which, *cells))} | {columns[0][0]['parameters']:,} |")
    return lines


def main(
    seeds: Annotated[int, typer.Option(help="Seeds, each a network and an order of the data.")] = 5,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    out: Annotated[Path, typer.Option(help="The folder that heuristics.md goes to.")] = Path("study/docs"),
    kept: Annotated[Path | None, typer.Option(help="A folder for the rows, to carry on from.")] = None,
) -> None:
    start = time.perf_counter()
    rows = measured([(f"seed-{seed}", partial(measure, seed)) for seed in range(seeds)], workers, kept)
    (out / "heuristics.md").write_text(text(rows, time.perf_counter() - start), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
