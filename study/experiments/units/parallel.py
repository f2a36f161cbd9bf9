"""Everything that is measured, for several seeds at once, in processes of one thread each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from network_surgery.study.data import Dataset
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import NETWORKS
from network_surgery.study.experiments.rows import Rows, measured
from network_surgery.study.experiments.units.looks import Looking, looked
from network_surgery.study.experiments.units.schedule import TENTHS, UNPRUNED, Training, arms, readings

#: Which scores choose in the short training, and in the one of as many iterations as the thesis's.
MANY = ("mrs", "mrp", "l2_in", "random")
FEW = ("mrs",)
LOOKING = Looking()


@dataclass(frozen=True)
class Size:
    """How much is measured: the looks at training, the scores of the short and of the long schedule."""

    looking: Looking = LOOKING
    short: tuple[str, ...] = MANY
    long: tuple[str, ...] = FEW


SIZE = Size()


def measure(data: Dataset, seeds: int, workers: int, kept: Path | None = None, size: Size = SIZE) -> Rows:
    """All rows (``kept``: see ``rows.measured``); the network that is looked at is the long training's unpruned arm."""
    epochs = evci.epochs_of(size.looking.iterations, data)
    short = Training(f"{TENTHS} epochs", TENTHS, size.short, maps=True)
    long = Training(f"{epochs} epochs", epochs, size.long, unpruned=False)
    looks = [
        (f"looks-{activation}-{seed}", partial(looked, data, activation, seed, size.looking))
        for seed in range(seeds)
        for activation in NETWORKS
    ]
    schedules = [
        (f"schedule-{name}-{seed}", partial(arms, data, seed, training))
        for name, training in (("short", short), ("long", long))
        for seed in range(seeds)
    ]
    rows = measured([*looks, *schedules], workers, kept)
    whole = [
        row | {"kind": "arm", "training": long.name, "arm": UNPRUNED}
        for row in rows
        if row["kind"] == "end" and row["activation"] == "ReLU"
    ]
    return Rows([*rows, *whole, *readings(data)])
