"""What is measured: every family at every size with each seed, and what pruning leaves (``han``).

All runs of a seed begin with the same weights and see the same batches; Adam's one-cycle learning rate is stretched
over the same number of epochs. Each trains at every one of a few rates, and the rate of the lowest loss on the
validation images counts. A family that strikes halfway goes on from the original after half of the epochs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from network_surgery import ops
from network_surgery.ops.anatomy import count
from network_surgery.ops.network.expressed import weights_flops
from network_surgery.study import models
from network_surgery.study.bench import experiment, training
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.families import han
from network_surgery.study.experiments.families.families import (
    FAMILIES,
    NETWORK,
    ORIGINAL,
    TRIED,
    Setting,
    all_settings,
)
from network_surgery.study.recipe.curves import Curve
from network_surgery.study.recipe.distillation import Teacher
from network_surgery.study.recipe.optimization import Optimization
from network_surgery.study.task import images as sources
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.training import measures
from network_surgery.study.training.trainer import Trainer

VALIDATION, CPU = 0.06, torch.device("cpu")
#: Images that dictionaries are measured on.
SHOWN = 1_000


@dataclass(frozen=True)
class Options(experiment.Options):
    """``epochs`` of every run, in batches of ``batch_size``; ``rates``: those of Adam that are tried, the largest of
    the cycle; ``factors``: how many times smaller files are. Both with commas between them.

    ``families``: those of ``FAMILIES`` that are tried. ``networks``: of ``han.TARGETS``, those that are pruned, with
    commas between them; ``pruning_epochs``: of training before it, in the order of these; ``retraining``: epochs after
    each fraction.
    """

    data: str = "mnist"
    epochs: int = 10
    batch_size: int = 256
    rates: str = "0.003,0.01,0.03"
    factors: str = "2,4,8,16,32,64"
    families: tuple[str, ...] = TRIED
    networks: str = ",".join(han.TARGETS)
    pruning_epochs: tuple[int, int] = (4, 2)
    retraining: int = 1

    @property
    def sizes(self) -> list[int]:
        """The factors as numbers.

        Raises:
            StudyError: one of them is no whole number above 1.
        """
        each = self.factors.split(",")
        if not all(factor.strip().isdecimal() and int(factor) > 1 for factor in each):
            raise StudyError(f"factors is {self.factors!r}; give whole numbers above 1, such as 8,64")
        return [int(factor) for factor in each]

    @property
    def learning_rates(self) -> list[float]:
        """The rates as numbers.

        Raises:
            StudyError: one of them is no number above 0.
        """
        try:
            found = [float(rate) for rate in self.rates.split(",")]
        except ValueError:
            found = [0.0]
        if not all(0 < rate < math.inf for rate in found):
            raise StudyError(f"rates is {self.rates!r}; give numbers above 0, such as 0.001,0.01")
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.sizes, self.learning_rates
        if self.epochs < 2 or self.epochs % 2:
            raise StudyError(
                f"epochs is {self.epochs}; half of them come before some operations, so give an even number"
            )
        if unknown := set(self.networks.split(",")) - set(han.TARGETS):
            raise StudyError(f"no network {', '.join(sorted(unknown))}; give one or both of {', '.join(han.TARGETS)}")


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts with the original's size, and the tasks: families, and pruning of each network, by seed.

    Raises:
        StudyError: the images cannot be read, or are too small for a network.
    """
    data = sources.load(options.data, VALIDATION, options.train_images)
    for network in options.networks.split(","):
        models.build(network, data.shape, len(data.classes))
    build, shown = partial(models.build, NETWORK, data.shape, len(data.classes)), shown_of(data)
    settings = all_settings(options.families, build, shown, options.sizes)
    every: dict[str, dict[int, Setting]] = {ORIGINAL: {}, **settings}
    facts = experiment.image_facts(data) | {"bytes": ops.saved_bytes(build())}
    return facts, [
        *((f"{family}-{seed}", partial(arms, data, family, seed, by_factor, options))
          for seed in range(options.seeds) for family, by_factor in every.items()),
        *((f"{network}-{seed}", partial(han.prune_rows, data, network, seed, epochs, options.retraining))
          for network, epochs in zip(han.TARGETS, options.pruning_epochs, strict=True)
          if network in options.networks.split(",") for seed in range(options.seeds)),
    ]  # fmt: skip


def arms(data: ImageTask, name: str, seed: int, settings: Mapping[int, Setting], options: Options) -> list[Row]:
    """A row of ``kind`` ``arm`` for a family at each size, or for the original.

    ``factor``: how many times smaller the file is to be; ``setting``: what has a file of that size; ``rate``: the
    learning rate that was chosen. See also ``size_of``.
    """
    about: Row = {"kind": "arm", "seed": seed, "family": name}

    def best(train: Callable[[float], Trainer]) -> Trainer:
        return min((train(rate) for rate in options.learning_rates), key=lambda run: run.history[-1]["validation_loss"])

    def train_original(rate: float) -> Trainer:
        return train(data, seed, options, rate, options.epochs)

    if name == ORIGINAL:
        return [about | {"factor": 1} | read_end(best(train_original), data)]
    family, shown, rows = FAMILIES[name], shown_of(data), list[Row]()
    firsts = {
        rate: train(data, seed, options, rate, options.epochs // 2) for rate in options.learning_rates if family.halfway
    }
    original = best(train_original).model if family.distilled else None
    for factor, setting in settings.items():

        def train_smaller(rate: float, setting: Setting = setting) -> Trainer:
            if family.halfway:
                trainer = training.fork(firsts[rate], data, options.epochs)
                family.operate(trainer.model, shown, setting, seed, [trainer.optimizer])
            else:
                model = fresh(data, seed)
                family.operate(model, shown, setting, seed)
                teacher = None if original is None else Teacher(copy.deepcopy(original), data)
                trainer = trainer_of(data, seed, options, rate, model, teacher)
            trainer.fit()
            return trainer

        rows.append(about | {"factor": factor, "setting": setting} | read_end(best(train_smaller), data))
    return rows


def train(data: ImageTask, seed: int, options: Options, rate: float, epochs: int) -> Trainer:
    """The original after this number of epochs."""
    trainer = trainer_of(data, seed, options, rate, epochs=epochs)
    trainer.fit()
    return trainer


def fresh(data: ImageTask, seed: int) -> nn.Module:
    """The original before training; the seed is that of all that is random afterwards, too."""
    torch.manual_seed(seed)
    return models.build(NETWORK, data.shape, len(data.classes))


def trainer_of(
    data: ImageTask, seed: int, options: Options, rate: float, model: nn.Module | None = None,
    teacher: Teacher | None = None, epochs: int | None = None,
) -> Trainer:  # fmt: skip
    """Training of a network, by default a fresh original; its learning rate's curve is that of all epochs."""
    model = fresh(data, seed) if model is None else model
    return Trainer(
        model, torch.optim.Adam(model.parameters(), rate), data, epochs=epochs or options.epochs,
        batch_size=options.batch_size, seed=seed, device=CPU, optimization=Optimization(Curve("one_cycle")),
        curve_epochs=options.epochs, teacher=teacher,
    )  # fmt: skip


def read_end(trainer: Trainer, data: ImageTask) -> Row:
    """How a run ended, and the size of its network."""
    end = training.read_end(trainer, data)
    rate = {"rate": trainer.optimizer.defaults["lr"]}
    return {name: end[name] for name in ("test", "test_loss", "parameters")} | rate | size_of(trainer.model, data)


def size_of(model: nn.Module, data: ImageTask) -> Row:
    """``bytes`` of the file that ``ops.save`` writes, ``flops`` of one image, and what each forward pass needs.

    ``computing``: FLOPs that compute the weights once in each pass; ``milliseconds`` and ``milliseconds_256``: of a
    pass of one image and of 256.
    """
    latency = measures.speed(model, Batches(data.test, CPU), CPU)["latency_seconds"]
    return {
        "bytes": measures.file_size(model), "flops": count(model, shown_of(data)[:2])[1],
        "computing": weights_flops(model), "milliseconds": 1000 * latency["1"],
        "milliseconds_256": 1000 * latency["256"],
    }  # fmt: skip


def shown_of(data: ImageTask) -> Tensor:
    """Training images, evenly spread over the set: ``[n, channels, height, width]``."""
    images: Tensor = Batches(data.train.thinned(SHOWN), CPU).take(slice(None))[0]
    return images
