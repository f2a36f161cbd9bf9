"""What is measured: one network trained without attack, and again with each attack on one unit of each layer.

An attacked run goes on from a copy of the run without attack, made at the last whole epoch before the attack: until
the attack the two are one, and after it they see the same batches. The unit of a layer is drawn by the seed and is the
same for every attack.

Rows of ``kind`` ``unit``, at each look since an attack began: signals of the attacked unit, ``loss`` and ``accuracy``
of its network, and the same of the run without attack, with ``_alone`` at the end of the name. ``before`` marks the
look when the attack begins, ``after`` the one right after it, ``end`` the last one, which has ``mrp_before``, too.
Numbers are NaN where a run diverged.
Rows of ``kind`` ``layer``: signals of all units of a layer, as lists, without attack (``NONE``) at each of ``PARTS``,
and after an attack at the end.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from network_surgery.ops import Anatomy
from network_surgery.study import models
from network_surgery.study.bench import experiment
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.bench.training import At, fork
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.attack.attacker import Attack, Attacker
from network_surgery.study.experiments.attack.signals import unit_signals
from network_surgery.study.task import images as sources
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.trainer import Trainer, steps_per_epoch

LAYERS = ("conv1", "conv2", "fc1")
#: The attacks that show how hard; with the second one those that show when.
HARD = tuple(Attack(multiplier, 1500) for multiplier in (10, 100, 1000))
EARLY, LATE = Attack(100, 50), Attack(100, 2000)
#: Attacks begin and repeat as in epochs of this number of iterations; in shorter ones sooner in proportion.
PER_EPOCH = 250
#: The part of the images that everything is measured on.
VALIDATION = 1 / 9
#: In place of an attack, in the run without.
NONE = "none"
#: Moments at which all units of the run without attack are kept, as parts of its length.
PARTS = {"10 %": 0.1, "50 %": 0.5, "end": 1.0}
#: Fields of the rows of kind ``unit`` (and ``mrp_before``), of the rows ``layer`` without attack, and with attack.
FIELDS = ("mrp", "gradient", "flat", "in_l1", "loss", "accuracy")
ALONE = ("mrp", "mrs", "gradient", "largest", "flat", "in_l1", "in_l2", "out_l1", "out_l2")
ATTACKED = ("mrp", "mrs", "in_l1")


@dataclass(frozen=True)
class Network:
    """A network, how long it is trained, and the attacks on it."""

    model: str
    epochs: int = 10
    attacks: tuple[Attack, ...] = (*HARD, EARLY, LATE)


NETWORKS = {
    "ReLU": Network("evci_cnn"),
    "ReLU + BatchNorm": Network("evci_cnn_norm"),
    "tanh": Network("evci_cnn_tanh"),
    "tanh, 20 epochs": Network("evci_cnn_tanh", 20, HARD[2:]),
}


@dataclass(frozen=True)
class Options(experiment.Options):
    """``looks``: their number, evenly spread over a run; those around an attack are added."""

    train_images: int | None = 9_000
    looks: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.looks < 1:
            raise StudyError(f"looks is {self.looks}; a run is looked at once at least")


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts, and the tasks: all runs of a network with one seed."""
    data = sources.load(options.data, VALIDATION, options.train_images)
    tasks: list[Task] = [
        (f"{name}-{seed}", partial(runs, data, name, network, seed, options.looks))
        for seed in range(options.seeds)
        for name, network in NETWORKS.items()
    ]
    return experiment.image_facts(data) | {"per_epoch": steps_per_epoch(len(data.train), evci.BATCH)}, tasks


def runs(data: ImageTask, name: str, network: Network, seed: int, looks: int) -> list[Row]:
    """The rows of the run without attack, and of one with each attack on a unit of each layer."""
    torch.manual_seed(seed)
    model = models.build(network.model, data.shape, len(data.classes))
    model = model.to(memory_format=torch.channels_last)  # for which pooling is faster
    trainer = evci.trainer_of(model, data, seed, network.epochs)
    per_epoch, total = trainer.per_epoch, trainer.per_epoch * network.epochs
    spread = {round(total * look / looks) for look in range(looks + 1)}
    attacks = {attack.name: attack.scaled(min(1.0, per_epoch / PER_EPOCH)) for attack in network.attacks}
    ends = {key: min(attack.end, total) for key, attack in attacks.items()}
    moments = sorted(spread.union(*({attack.start, ends[key]} for key, attack in attacks.items())))
    alone, forks = Watch(trainer, LAYERS, moments), dict[int, Trainer]()
    copies = At(
        (attack.start // per_epoch * per_epoch for attack in attacks.values()),
        lambda now: forks.update({now.epoch: fork(now, data, network.epochs)}),
    )
    trainer.callbacks = [alone, copies]
    trainer.fit()
    rows: list[Row] = []
    for layer, (part, share) in itertools.product(LAYERS, PARTS.items()):
        about = {"network": name, "seed": seed, "layer": layer, "attack": NONE}
        nearest = min(moments, key=lambda at: abs(at - share * total))
        rows.append(about | {"kind": "layer", "part": part} | alone.lists(nearest, layer, ALONE))
    for (key, attack), layer in itertools.product(attacks.items(), LAYERS):
        trainer = fork(forks[attack.start // per_epoch], data, network.epochs)
        times = sorted({at for at in spread if at > attack.start} | {attack.start, ends[key]})
        attacked = Watch(trainer, [layer], times)
        units = attacked.anatomy[layer]
        unit = int(np.random.default_rng([seed, *layer.encode()]).integers(units.units))
        trainer.callbacks = [attacked, Attacker(attack, units, unit)]
        with contextlib.suppress(Diverged):
            trainer.fit()
        about = {"network": name, "seed": seed, "layer": layer, "attack": key, "unit": unit}
        for at in times:
            fields = (*FIELDS, "mrp_before") if at == total else FIELDS
            same = {f"{field}_alone": value for field, value in alone.unit(at, layer, unit, fields).items()}
            marks = {"before": at == attack.start, "after": at == ends[key], "end": at == total}
            rows.append(
                about | {"kind": "unit", "iteration": at} | marks | attacked.unit(at, layer, unit, fields) | same
            )
        if total in attacked.looks:
            rows.append(about | {"kind": "layer", "part": "end"} | attacked.lists(total, layer, ATTACKED))
    return rows


class Watch(At):
    """Looks at some layers at some moments, on the validation images; training goes on as if nobody had looked.

    ``looks``: at an iteration ``loss`` and ``accuracy``, and a layer's signals by its name.
    """

    def __init__(self, trainer: Trainer, layers: Iterable[str], moments: Iterable[int]) -> None:
        super().__init__(moments, self._look)
        self.anatomy = Anatomy(trainer.model, trainer.train.take(slice(0, 2))[0])
        self._layers, self.looks = tuple(layers), dict[int, dict[str, Any]]()

    def _look(self, trainer: Trainer) -> None:
        assert isinstance(trainer.model, nn.Sequential)
        images, last = trainer.validation.take(slice(None)), trainer.epoch == trainer.epochs
        loss, accuracy, *_ = trainer.evaluate(trainer.validation)
        signals = {
            layer: unit_signals(trainer.model, self.anatomy[layer], *images, before=last) for layer in self._layers
        }
        self.looks[trainer.iteration] = {"loss": loss, "accuracy": accuracy, **signals}

    def unit(self, at: int, layer: str, unit: int, fields: Iterable[str]) -> dict[str, float]:
        """The fields of one unit at one look; NaN where the run did not get there."""
        if at not in self.looks:
            return dict.fromkeys(fields, math.nan)
        look = self.looks[at]
        return {field: look[field] if field in look else float(look[layer][field][unit]) for field in fields}

    def lists(self, at: int, layer: str, fields: Iterable[str]) -> dict[str, list[float]]:
        """Signals of all units of a layer at one look."""
        return {field: self.looks[at][layer][field].tolist() for field in fields}
