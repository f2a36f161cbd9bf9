"""The races of several seeds at once, in processes of one thread each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from network_surgery.study.data import Dataset
from network_surgery.study.experiments.claims.arms import Found, Setting, race
from network_surgery.study.experiments.processes import processes


def measure(races: Sequence[tuple[Setting, Dataset]], seeds: int, workers: int) -> Found:
    """Every arm of every setting; entry ``i`` of each list belongs to the same seed."""
    tasks = [(at, seed) for seed in range(seeds) for at in range(len(races))]
    with processes(min(workers, len(tasks))) as pool:
        parts = list(pool.map(partial(_of_seed, races), tasks))
    found: Found = {}
    for part in parts:
        for key, outcomes in part.items():
            found.setdefault(key, []).extend(outcomes)
    return found


def _of_seed(races: Sequence[tuple[Setting, Dataset]], task: tuple[int, int]) -> Found:
    setting, data = races[task[0]]
    return {(setting.name, threshold, arm): [outcome] for threshold, arm, outcome in race(setting, data, task[1])}
