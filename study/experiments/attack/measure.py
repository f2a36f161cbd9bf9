"""What is measured: one network trained without attack, and again with each attack on one unit of each layer.

An attacked run goes on from a copy of the run without attack, made at the last whole epoch before the attack: until
the attack the two are one, and after it they see the same batches. The unit of a layer is drawn by the seed and is the
same for every attack.

Rows of ``kind`` ``unit``, at each look from the beginning of an attack on: the attacked unit's signals, the network's
``loss`` and ``accuracy`` (validation images), and the same of the run without attack with ``_alone`` behind the name;
``after`` marks the look right after the attack, ``end`` the last one, which has ``mrp_before``, too. A run that diverged has NaN.
Rows of ``kind`` ``layer``: signals of all units of a layer, as lists; ``attack`` is ``NONE`` at each of ``PARTS``, or
an attack at the end, if it was reached.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from network_surgery.ops import Anatomy
from network_surgery.study import data as sources
from network_surgery.study import models
from network_surgery.study.bench import experiment
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.bench.training import At, fork
from network_surgery.study.data import Dataset
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.attack.attacker import Attack, Attacker
from network_surgery.study.experiments.attack.signals import unit_signals
from network_surgery.study.training.trainer import Trainer, evaluate, steps_per_epoch

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
#: ``loss`` and ``accuracy``, and a layer's signals by its name, at an iteration.
Looks = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Network:
    """A network, how long it is trained, and the attacks on it."""

    model: str
    epochs: int = 10
    attacks: tuple[Attack, ...] = (*HARD, EARLY, LATE)


RELU, NORM, TANH, LONG = "ReLU", "ReLU + BatchNorm", "tanh", "tanh, 20 epochs"
NETWORKS = {
    RELU: Network("evci_cnn"),
    NORM: Network("evci_cnn_norm"),
    TANH: Network("evci_cnn_tanh"),
    LONG: Network("evci_cnn_tanh", 20, HARD[2:]),
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
    tasks = [
        (f"{name}-{seed}", partial(runs, data, name, network, seed, options.looks))
        for seed in range(options.seeds)
        for name, network in NETWORKS.items()
    ]
    return experiment.image_facts(data) | {"per_epoch": steps_per_epoch(len(data.train), evci.BATCH)}, tasks


def runs(data: Dataset, name: str, network: Network, seed: int, looks: int) -> list[Row]:
    """The rows of the run without attack, and of one with each attack on a unit of each layer."""
    torch.manual_seed(seed)
    model = models.build(network.model, data.shape, len(data.classes))
    model = model.to(memory_format=torch.channels_last)  # for which pooling is faster
    trainer = evci.trainer_of(model, data, seed, network.epochs)
    total = trainer.per_epoch * network.epochs
    attacks = {attack.name: attack.scaled(min(1.0, trainer.per_epoch / PER_EPOCH)) for attack in network.attacks}
    spread = {round(total * look / looks) for look in range(looks + 1)}
    moments = {
        key: sorted({at for at in spread if at >= attack.start} | {attack.start, min(attack.end, total)})
        for key, attack in attacks.items()
    }
    every = sorted(spread.union(*moments.values()))
    alone: Looks = {}
    forks: dict[int, Trainer] = {}
    epochs = {key: attack.start // trainer.per_epoch for key, attack in attacks.items()}
    copies = At(
        (epoch * trainer.per_epoch for epoch in epochs.values()),
        lambda at: forks.update({at.epoch: fork(at, data, at.epochs)}),
    )
    anatomy = anatomy_of(trainer)
    trainer.callbacks = [watch(alone, anatomy, anatomy, every), copies]
    trainer.fit()
    about = {"network": name, "seed": seed}
    rows: list[Row] = []
    for layer in anatomy:
        for part, share in PARTS.items():
            signals = alone[min(every, key=lambda at: abs(at - share * total))][layer]  # noqa: B023
            rows.append(about | {"kind": "layer", "layer": layer, "attack": NONE, "part": part} | lists(signals, ALONE))
    for key, attack in attacks.items():
        for layer in anatomy:
            attacked, unit = fork(forks[epochs[key]], data, network.epochs), drawn(seed, layer, anatomy[layer].units)
            seen = run_attacked(attacked, attack, layer, unit, moments[key])
            here = about | {"layer": layer, "attack": key, "unit": unit}
            for at in moments[key]:
                ours, theirs = (unit_row(each.get(at), layer, unit, at == total) for each in (seen, alone))
                row = {"kind": "unit", "iteration": at, "after": at == min(attack.end, total), "end": at == total}
                rows.append(here | row | ours | {f"{field}_alone": value for field, value in theirs.items()})
            if total in seen:
                rows.append(here | {"kind": "layer", "part": "end"} | lists(seen[total][layer], ATTACKED))
    return rows


def run_attacked(trainer: Trainer, attack: Attack, layer: str, unit: int, moments: Iterable[int]) -> Looks:
    """Trains to the end with one unit attacked, or until the loss is no longer finite."""
    looks: Looks = {}
    anatomy = anatomy_of(trainer)
    trainer.callbacks = [watch(looks, anatomy, [layer], moments), Attacker(attack, anatomy[layer], unit)]
    with contextlib.suppress(Diverged):
        trainer.fit()
    return looks


def anatomy_of(trainer: Trainer) -> Anatomy:
    """The layers of the network that is trained."""
    return Anatomy(trainer.model, trainer.train.take(slice(0, 2))[0])


def drawn(seed: int, layer: str, units: int) -> int:
    """The unit that is attacked."""
    return int(np.random.default_rng([seed, *layer.encode()]).integers(units))


def watch(looks: Looks, anatomy: Anatomy, layers: Iterable[str], moments: Iterable[int]) -> At:
    """Looks at these layers at these moments, on the validation images; training goes on as if nobody had looked."""

    def look(trainer: Trainer) -> None:
        assert isinstance(trainer.model, nn.Sequential)
        images, last = trainer.validation.take(slice(None)), trainer.epoch == trainer.epochs
        loss, accuracy = evaluate(trainer.model, trainer.validation)
        signals = {layer: unit_signals(trainer.model, anatomy[layer], *images, before=last) for layer in layers}
        looks[trainer.iteration] = {"loss": loss, "accuracy": accuracy, **signals}

    return At(moments, look)


def unit_row(look: Mapping[str, Any] | None, layer: str, unit: int, last: bool) -> dict[str, float]:
    """The fields of one unit at one look; NaN where the run did not get there."""
    fields = (*FIELDS, "mrp_before") if last else FIELDS
    if look is None:
        return dict.fromkeys(fields, math.nan)
    return {field: look[field] if field in look else float(look[layer][field][unit]) for field in fields}


def lists(signals: Mapping[str, torch.Tensor], names: Iterable[str]) -> dict[str, list[float]]:
    """Signals of all units as plain data."""
    return {name: signals[name].tolist() for name in names}
