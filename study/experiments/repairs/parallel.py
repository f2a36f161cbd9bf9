"""The trainings of several seeds at once, in processes of one thread each: more threads cost more than they save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from network_surgery.study.data import Dataset
from network_surgery.study.experiments.processes import processes
from network_surgery.study.experiments.repairs import arms, at_once
from network_surgery.study.experiments.repairs.arms import Found, Values
from network_surgery.study.experiments.repairs.at_once import Right


def measure(few: Dataset, many: Dataset, seeds: int, workers: int) -> tuple[Found, Right]:
    """Everything, by so many processes: ``arms`` on few images, ``at_once`` on many.

    Row ``i`` belongs to seed ``i`` everywhere; but for seconds the numbers do not depend on the number of processes.
    """
    with processes(workers) as pool:
        trained = [pool.submit(arms.measure, few, seed) for seed in range(seeds)]
        cut = [pool.submit(at_once.measure, many, seed) for seed in range(seeds)]
        found = joined([each.result() for each in trained])
        right = joined([{key: {"accuracy": row} for key, row in each.result().items()} for each in cut])
    return found, {key: values["accuracy"] for key, values in right.items()}


def joined(parts: list[Any]) -> dict[Any, Values]:
    """Seeds one after the other."""
    first: Mapping[Any, Values] = parts[0]
    return {
        key: {name: np.concatenate([part[key][name] for part in parts]) for name in values}
        for key, values in first.items()
    }
