"""Everything that is measured, for several seeds at once, in processes of one thread each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from network_surgery.study.data import Dataset
from network_surgery.study.experiments.evci import NETWORKS
from network_surgery.study.experiments.rows import Rows, measured
from network_surgery.study.experiments.weights.looks import Looking, looked
from network_surgery.study.experiments.weights.schedule import Training, arms

LOOKING, TRAINING = Looking(), Training()


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    looking: Looking = LOOKING
    training: Training = TRAINING


SIZE = Size()


def measure(data: Dataset, seeds: int, workers: int, kept: Path | None = None, size: Size = SIZE) -> Rows:
    """All rows. ``kept``: see ``rows.measured``."""
    schedules = [(f"schedule-{seed}", partial(arms, data, seed, size.training)) for seed in range(seeds)]
    looks = [
        (f"looks-{activation}-{seed}", partial(looked, data, activation, seed, size.looking))
        for seed in range(seeds)
        for activation in NETWORKS
    ]
    return measured([*schedules, *looks], workers, kept)
