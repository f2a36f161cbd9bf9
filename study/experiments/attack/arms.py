"""One network trained without attack, and again with each attack: same weights, same batches, until the attack begins.

An attacked training goes on from a copy of the other one, taken at the last whole epoch before the attack. In every
layer one unit, drawn by the seed, is attacked, each in a training of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from network_surgery.ops import Anatomy
from network_surgery.study import models
from network_surgery.study.data import Dataset
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.experiments.attack.attacker import Attack, Attacker
from network_surgery.study.experiments.attack.watch import MEASURES, seen
from network_surgery.study.training.trainer import Callback, Trainer, evaluate, steps_per_epoch

CPU = torch.device("cpu")
#: The attacks by what they show: how hard, when.
HARD = tuple(Attack(multiplier, 1500) for multiplier in (10, 100, 1000))
WHEN = (Attack(100, 50), Attack(100, 2000))
ATTACKS = (*HARD, *WHEN)
#: The name of the training without attack.
NONE = "none"


@dataclass(frozen=True)
class Network:
    """A network by its activation, how long it is trained, and the attacks that it is put to."""

    activation: str
    model: str
    epochs: int = 10
    attacks: tuple[Attack, ...] = ATTACKS


@dataclass(frozen=True)
class Setting:
    """Training by plain SGD, looked at ``looks`` times, evenly spread, and around an attack.

    The attacks' iterations are those of epochs of ``per_epoch`` steps; in shorter ones they come sooner by as much.
    """

    networks: tuple[Network, ...] = (
        Network("ReLU", "evci_cnn"),
        Network("ReLU + BatchNorm", "evci_cnn_norm"),
        Network("tanh", "evci_cnn_tanh"),
        Network("tanh, 20 epochs", "evci_cnn_tanh", 20, HARD[2:]),
    )
    batch_size: int = 32
    learning_rate: float = 0.01
    looks: int = 10
    per_epoch: int = 250

    def scaled(self, attack: Attack, per_epoch: int) -> Attack:
        """The attack in epochs of so many steps."""
        return attack.scaled(min(1.0, per_epoch / self.per_epoch))

    def moments(self, total: int, attacks: Iterable[Attack]) -> list[int]:
        """The numbers of steps after which a run with these attacks is looked at."""
        grid = {round(total * look / self.looks) for look in range(self.looks + 1)}
        around = {moment for attack in attacks for moment in (attack.start, min(attack.end, total))}
        return sorted(grid | around)


#: What is seen at some moments: ``iteration [moments]``; ``loss``, ``accuracy`` on validation images, the same; each of
#: ``watch.MEASURES``, ``[moments, units]``; where a unit is attacked, ``unit``. NaN where a training had diverged, and
#: for ``mrp_before`` but at the end.
Record = dict[str, NDArray[np.float64]]
#: (activation, seed, layer, name of the attack)
Key = tuple[str, int, str, str]
Found = dict[Key, Record]


class Watcher(Callback):
    """Looks at some layers at some moments."""

    def __init__(self, anatomy: Anatomy, layers: Iterable[str], moments: Iterable[int]) -> None:
        self._anatomy, self._layers, self._moments = anatomy, tuple(layers), frozenset(moments)
        self.seen: dict[int, dict[str, Any]] = {}

    def before_step(self, trainer: Trainer) -> None:
        if trainer.iteration in self._moments:
            self.look(trainer)

    def look(self, trainer: Trainer, last: bool = False) -> None:
        with trainer.off_the_clock():
            inputs, targets = trainer.validation.take(slice(None))
            assert isinstance(trainer.model, nn.Sequential)
            loss, accuracy = evaluate(trainer.model, trainer.validation)
            found: dict[str, Any] = {"loss": loss, "accuracy": accuracy}
            for layer in self._layers:
                found[layer] = seen(trainer.model, self._anatomy[layer], inputs, targets, last)
        self.seen[trainer.iteration] = found

    def record(self, layer: str, moments: Iterable[int]) -> Record:
        """Of one layer, with NaN for moments that were not reached."""
        moments = list(moments)
        reached = [moment for moment in moments if moment in self.seen]
        units = len(self.seen[reached[0]][layer]["mrp"])
        shapes: dict[str, tuple[int, ...]] = {"loss": (), "accuracy": (), **dict.fromkeys(MEASURES, (units,))}
        record = {"iteration": np.array(moments, float)}
        record |= {name: np.full((len(moments), *shape), math.nan) for name, shape in shapes.items()}
        for row, moment in enumerate(moments):
            if moment in self.seen:
                for name, value in (self.seen[moment] | self.seen[moment][layer]).items():
                    if name in shapes:
                        record[name][row] = value
        return record


class Snapshots(Callback):
    """Copies of the network as it was before some epochs."""

    def __init__(self, epochs: Iterable[int]) -> None:
        self._epochs = frozenset(epochs)
        self.taken: dict[int, nn.Sequential] = {}

    def before_step(self, trainer: Trainer) -> None:
        if trainer.epoch in self._epochs and trainer.epoch not in self.taken:
            self.taken[trainer.epoch] = copy.deepcopy(trainer.model)  # type: ignore[assignment]


@dataclass(frozen=True)
class Runs:
    """All trainings of one network with one seed."""

    data: Dataset
    network: Network
    seed: int
    setting: Setting

    @cached_property
    def total(self) -> int:
        """Steps of a whole training."""
        return steps_per_epoch(len(self.data.train), self.setting.batch_size) * self.network.epochs

    def fresh(self) -> nn.Sequential:
        """The network before training."""
        torch.manual_seed(self.seed)
        model = models.build(self.network.model, self.data.shape, len(self.data.classes))
        assert isinstance(model, nn.Sequential)
        return model.to(memory_format=torch.channels_last)  # pooling is faster so, a step by a quarter

    def trainer(self, model: nn.Sequential, epoch: int = 0) -> tuple[Trainer, Anatomy]:
        """A training of ``model`` from an epoch on."""
        optimizer = torch.optim.SGD(model.parameters(), self.setting.learning_rate)
        trainer = Trainer(
            model, optimizer, self.data, epochs=self.network.epochs, batch_size=self.setting.batch_size, seed=self.seed,
            device=CPU,
        )  # fmt: skip
        trainer.epoch, trainer.iteration = epoch, epoch * trainer.per_epoch
        return trainer, Anatomy(model, trainer.train.take(slice(0, 2))[0])

    def measure(self) -> Found:
        """The training without attack, and one with each attack on a unit of each layer."""
        trainer, anatomy = self.trainer(self.fresh())
        per_epoch = trainer.per_epoch
        attacks = {attack.name: self.setting.scaled(attack, per_epoch) for attack in self.network.attacks}
        for name, attack in attacks.items():
            if attack.start >= self.total:
                raise StudyError(f"the attack {name} begins after the last of {self.total} steps ({self.network})")
        moments = self.setting.moments(self.total, attacks.values())
        watcher = Watcher(anatomy, anatomy, moments)
        snapshots = Snapshots(attack.start // per_epoch for attack in attacks.values())
        train(trainer, watcher, snapshots)
        about = self.network.activation, self.seed
        found: Found = {(*about, layer, NONE): watcher.record(layer, moments) for layer in anatomy}
        for name, attack in attacks.items():
            start = snapshots.taken[attack.start // per_epoch]
            for layer in anatomy:
                found[*about, layer, name] = self.attacked(start, attack, layer, self.unit(layer, anatomy[layer].units))
        return found

    def unit(self, layer: str, units: int) -> int:
        """The unit that is attacked, the same by every attack."""
        generator = np.random.default_rng([self.seed, *layer.encode()])
        return int(generator.integers(units))

    def attacked(self, start: nn.Sequential, attack: Attack, layer: str, unit: int) -> Record:
        """A training with one unit attacked, from a copy of the network as it was before the attack's epoch."""
        epoch = attack.start // steps_per_epoch(len(self.data.train), self.setting.batch_size)
        trainer, anatomy = self.trainer(copy.deepcopy(start), epoch)
        moments = [moment for moment in self.setting.moments(self.total, [attack]) if moment >= attack.start]
        watcher = Watcher(anatomy, [layer], moments)
        train(trainer, watcher, Attacker(attack, anatomy[layer], unit))
        return watcher.record(layer, moments) | {"unit": np.array(float(unit))}


def train(trainer: Trainer, watcher: Watcher, *others: Callback) -> None:
    """To the last epoch, with a look at the end, or until the loss is no longer finite."""
    trainer.callbacks = [watcher, *others]
    try:
        trainer.fit()
    except Diverged:
        return
    watcher.look(trainer, last=True)
