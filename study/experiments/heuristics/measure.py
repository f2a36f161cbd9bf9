"""What is measured: every combination of frequency, size and moment of the cuts with δ and the form of EigenRemove."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from network_surgery.ops import EigenRemove, Moment, Schedule, Step
from network_surgery.study.bench.experiment import Options, image_facts
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.config import Settings
from network_surgery.study.task import images as sources
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.examine import check
from network_surgery.study.training.records import spikes_of
from network_surgery.study.training.run import run

#: The fraction of rank that stays, and how the page writes it.
DELTAS = {1 / 8: "1/8", 1 / 4: "1/4", 3 / 4: "3/4", 1.0: "1"}
#: Cuts, one after every epoch, and the fraction of units that stays at each.
FREQUENCIES = {"infrequent": 1, "frequent": 4}
SIZES = {"contained": 0.9, "drastic": 0.5}
WEIGHTS = ("original", "reduced")
#: The epoch after which the first cut comes.
MOMENTS = {"early": 1, "late": 8}
SETTINGS = Settings(model="mlp", epochs=14, batch_size=64, probe=0, device="cpu")


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts, and a task for each seed and each frequency, size and moment of the cuts."""
    data = sources.load(options.data, SETTINGS.validation, options.train_images)
    layers = tuple(check(SETTINGS, data))
    tasks: list[Task] = [
        ("-".join(map(str, (seed, *which))), partial(cuts, data, layers, seed, *which))
        for seed in range(options.seeds)
        for which in itertools.product(FREQUENCIES, SIZES, MOMENTS)
    ]
    return image_facts(data), tasks


def cuts(data: ImageTask, layers: Sequence[str], seed: int, frequency: str, size: str, moment: str) -> list[Row]:
    """A row for each form of EigenRemove and each δ, every hidden layer cut.

    ``test``: accuracy at the end; ``spike``: the mean over cuts of the logarithm of held-out loss, after over before;
    ``parameters`` that are left.
    """

    @functools.cache
    def train(operation: EigenRemove) -> Row:
        moments = [Moment(MOMENTS[moment] + turn) for turn in range(FREQUENCIES[frequency])]
        schedule = Schedule(tuple(Step(at, layer, operation) for at in moments for layer in layers))
        outcome = run(Cell("surgery", seed, schedule.to_data(), test=True), data, SETTINGS, torch.device("cpu"))
        spike = statistics.fmean(math.log(spike.factor) for spike in spikes_of(outcome))
        return {"test": outcome["test_metric"], "spike": spike, "parameters": outcome["parameters"]}

    about = {"seed": seed, "frequency": frequency, "size": size, "moment": moment}
    return [  # at δ = 1 nothing is reduced: both forms are one
        about | {"weights": weights, "delta": delta}
        | train(EigenRemove(SIZES[size], delta, weights if delta < 1 else "original"))
        for weights, delta in itertools.product(WEIGHTS, DELTAS)
    ]  # fmt: skip
