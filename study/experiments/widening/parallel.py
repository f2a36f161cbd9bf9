"""The trainings of several seeds at once, in processes of one thread each: more threads cost more than they save."""

from __future__ import annotations

import numpy as np

from network_surgery.study.experiments.processes import processes
from network_surgery.study.experiments.widening import arms, regularized
from network_surgery.study.experiments.widening.arms import Found
from network_surgery.study.experiments.widening.regularized import Moments


def measure(seeds: int, workers: int) -> tuple[Found, Moments]:
    """Everything, by so many processes; the numbers do not depend on how many."""
    with processes(min(workers, seeds)) as pool:
        parts = list(pool.map(_of_seed, range(seeds)))
    found, moments = (
        {
            key: {name: np.concatenate([part[at][key][name] for part in parts]) for name in values}
            for key, values in parts[0][at].items()
        }
        for at in (0, 1)
    )
    return found, moments


def _of_seed(seed: int) -> tuple[Found, Moments]:
    return arms.measure([seed]), regularized.measure([seed])
