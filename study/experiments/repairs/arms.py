"""One trained network, cut in every layer at once, in several ways: every arm goes on from the same weights.

A network is trained for ``before`` epochs. Then its hidden layers are cut, first to last, once for each arm from the
very same weights and optimizer state (which follows the units), and training goes on, on the same batches. An arm is a
removal and the chain of repairs that follows it in each layer, before the next layer is looked at; ``NOTHING`` is the
network that is left alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from network_surgery.ops import (
    PCNS,
    Anatomy,
    EigenRemove,
    MeanReplace,
    MinWeight,
    Moment,
    Operation,
    RandomRemove,
    Schedule,
    Step,
)
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.data import Dataset
from network_surgery.study.training.records import spikes
from network_surgery.study.training.run import make_optimizer
from network_surgery.study.training.theatre import Theatre
from network_surgery.study.training.trainer import Batches, Trainer, evaluate

#: A removal, given the fraction of units that stays and the seed.
REMOVALS: dict[str, Callable[[float, int], Operation]] = {
    "min weight": lambda keep, seed: MinWeight(keep),
    "random": lambda keep, seed: RandomRemove(keep, seed),
    "EigenRemove": lambda keep, seed: EigenRemove(keep, weights="original"),
    "mean replacement": lambda keep, seed: MeanReplace(keep, "variance"),
    "PCNS": lambda keep, seed: PCNS(keep=keep),
}
CHAINS: dict[str, tuple[str, ...]] = {
    "none": (),
    "bias": ("bias",),
    "least squares": ("least_squares",),
    "batchnorm": ("batchnorm",),
    "bias + batchnorm": ("bias", "batchnorm"),
    "least squares + batchnorm": ("least_squares", "batchnorm"),
}
#: What a removal does by itself: these repairs would change nothing, or are refused.
BUILT_IN = {"mean replacement": {"bias"}, "PCNS": {"bias", "least_squares"}}
#: The arm without an operation.
NOTHING = ("no operation", "")
#: (removal, chain)
Arm = tuple[str, str]
ARMS: tuple[Arm, ...] = tuple(
    (removal, chain)
    for removal in REMOVALS
    for chain, repairs in CHAINS.items()
    if not BUILT_IN.get(removal, set()) & set(repairs)
)


@dataclass(frozen=True)
class Setting:
    """A network and its training: ``settings.epochs`` in all, ``before`` of them before the cut to ``keep``."""

    settings: Settings
    before: int
    keep: float


SETTING = Setting(Settings(model="small_cnn", epochs=11, batch_size=32, signal_images=512, device="cpu"), 6, 0.5)
#: measure → ``[seeds, …]``. ``accuracy`` on validation, ``[seeds, epochs after + 1]``, from right after the cut on;
#: ``spike``: held-out loss after / before; ``share``: seconds of the cut over those of the last epoch before it;
#: ``recovered``: epochs until the held-out loss is back, infinite where it is not; ``test``: accuracy at the end.
Values = dict[str, NDArray[np.float64]]
Found = dict[Arm, Values]
CPU = torch.device("cpu")


def measure(data: Dataset, seed: int, setting: Setting = SETTING) -> Found:
    """Every arm for one seed."""
    return {
        arm: {name: np.array([value]) for name, value in record.items()} for arm, record in arms(data, seed, setting)
    }


def arms(data: Dataset, seed: int, setting: Setting) -> Iterator[tuple[Arm, dict[str, Any]]]:
    """What is seen of each arm."""
    trained = prefix(data, seed, setting)
    layers = list(Anatomy(trained.model, trained.train.take(slice(0, 2))[0]))
    yield NOTHING, follow(trained, data, Schedule(), setting)
    for removal, chain in ARMS:
        operation = REMOVALS[removal](setting.keep, seed)
        steps = (Step(Moment(setting.before), layer, operation, CHAINS[chain]) for layer in layers)
        yield (removal, chain), follow(trained, data, Schedule(tuple(steps)), setting)


def prefix(data: Dataset, seed: int, setting: Setting) -> Trainer:
    """The network as it is before the cut, with its optimizer."""
    torch.manual_seed(seed)
    model = models.build(setting.settings.model, data.shape, len(data.classes))
    trainer = Trainer(
        model, make_optimizer(setting.settings, model), data, epochs=setting.before,
        batch_size=setting.settings.batch_size, seed=seed, device=CPU,
    )  # fmt: skip
    trainer.fit()
    return trainer


def follow(trained: Trainer, data: Dataset, schedule: Schedule, setting: Setting) -> dict[str, Any]:
    """Goes on from copies of a trained network and its optimizer with a schedule that begins now."""
    settings = setting.settings
    model, optimizer = copy.deepcopy((trained.model, trained.optimizer))
    theatre = Theatre(schedule, data.validation, settings.signal_images)
    trainer = Trainer(
        model, optimizer, data, epochs=settings.epochs, batch_size=settings.batch_size, seed=trained.seed, device=CPU,
        callbacks=[theatre],
    )  # fmt: skip
    trainer.epoch, trainer.iteration, trainer.history = trained.epoch, trained.iteration, list(trained.history)
    torch.manual_seed(trained.seed)
    trainer.fit()
    before = trained.history[-1]
    accuracy, spike, share, recovered = before["validation_accuracy"], 1.0, 0.0, 0.0
    if theatre.records:
        (event,) = spikes(theatre.records)
        last = theatre.records[-1]
        accuracy, spike = last.accuracy_after, event.factor
        share = event.seconds / before["train_seconds"]
        epochs = last.epochs_to_recover
        recovered = math.inf if epochs is None else float(epochs)
    later = [record["validation_accuracy"] for record in trainer.history[setting.before :]]
    test = evaluate(model, Batches(data.test, CPU))[1]
    return {"accuracy": [accuracy, *later], "spike": spike, "share": share, "recovered": recovered, "test": test}


def thinned(data: Dataset, train: int, validation: int, test: int) -> Dataset:
    """So many images of each set at most, evenly spread over it."""
    return replace(
        data, train=data.train.thinned(train), validation=data.validation.thinned(validation),
        test=data.test.thinned(test),
    )  # fmt: skip
