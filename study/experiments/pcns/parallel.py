"""The trainings of several seeds at once, in processes of one thread each: more threads cost more than they save."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from network_surgery.study import data
from network_surgery.study.experiments.pcns import orders, prediction, samples, shrinking
from network_surgery.study.experiments.pcns.orders import Ordered
from network_surgery.study.experiments.pcns.prediction import Point
from network_surgery.study.experiments.pcns.samples import Emitted, Sampled
from network_surgery.study.experiments.pcns.shrinking import Found
from network_surgery.study.experiments.pcns.trained import SETTINGS, Setting
from network_surgery.study.experiments.processes import processes

#: Images of a source that are trained on, validation included, and that are tested on.
IMAGES, TEST = 4000, 5000


@dataclass(frozen=True)
class Results:
    """What all seeds gave; the lists have an entry for each seed, in order."""

    source: str
    about: str
    trained_on: int
    tested_on: int
    found: Found
    ordered: list[Ordered]
    sampled: list[Sampled]
    emitted: list[Emitted]
    points: list[list[Point]]

    @property
    def seeds(self) -> int:
        return len(self.ordered)


def load(source: str) -> data.Dataset:
    """At most ``IMAGES`` training and ``TEST`` test images."""
    dataset = data.load(source, validation=0.1, train_images=IMAGES)
    return replace(dataset, test=dataset.test.thinned(TEST))


def measure(
    source: str, seeds: int, workers: int, about: str = "", settings: tuple[Setting, ...] = SETTINGS
) -> Results:
    """Everything, by so many processes; the numbers (but for seconds) do not depend on how many. ``about``: what the
    source is, in words.
    """
    dataset = load(source)
    with processes(min(workers, seeds)) as pool:
        parts = list(pool.map(partial(of_seed, dataset=dataset, settings=settings), range(seeds)))
    return Results(
        source, about or f"`{source}`", len(dataset.train), len(dataset.test),
        shrinking.gathered([part[0] for part in parts]),
        [part[1] for part in parts], [part[2] for part in parts], [part[3] for part in parts],
        [part[4] for part in parts],
    )  # fmt: skip


def of_seed(
    seed: int, dataset: data.Dataset, settings: tuple[Setting, ...]
) -> tuple[dict[tuple[str, float, str], shrinking.Record], Ordered, Sampled, Emitted, list[Point]]:
    """All parts for one seed."""
    return (
        shrinking.measure(seed, dataset, settings), orders.measure(seed, dataset, settings),
        samples.measure(seed, dataset, settings), samples.emitted(seed, dataset, settings),
        prediction.measure(seed, dataset, settings),
    )  # fmt: skip
