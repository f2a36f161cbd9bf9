"""Where and when: the part of a schedule that every search space shares."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from optuna.trial import BaseTrial

from network_surgery.ops.anatomy import WHOLE
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.operation import Operation
from network_surgery.ops.schedule import Condition, Moment, Schedule, Step

#: How long training lasts where a study does not say.
EPOCHS = 10


def sample(trial: BaseTrial, name: str, low: float, high: float, log: bool = False) -> float:
    """A number between two others, to three significant digits: more are noise, and a schedule's words show them all.

    ``log``: uniform in its logarithm. The bounds are meant to have no more digits themselves.
    """
    return brief(trial.suggest_float(name, low, high, log=log))


def brief(number: float) -> float:
    """A number with three significant digits."""
    return float(f"{number:.3g}")


class Sized(Protocol):
    """What a search space must know of a layer: how many units it has."""

    @property
    def units(self) -> int: ...


Layers = Mapping[str, Sized]

#: All weights of the network, the output's included, which no layer's name stands for.
NETWORK = "network"

#: Which layers an operation works on, by the trial's ``layers`` parameter.
CHOICES = ("all", "first_half", "last_half", "widest")


def choices(layers: Layers) -> tuple[str, ...]:
    """What ``layers`` may be: ``CHOICES``; in a network with attention also each kind of layer that it repeats, by the
    name with ``*`` for the number of the block, such as ``blocks.*.mlp.gate``.
    """
    if not any(":" in name for name in layers):
        return CHOICES
    kinds = Counter(map(kind, layers))
    return (*CHOICES, *(each for each, times in kinds.items() if times > 1))


def kind(name: str) -> str:
    """The kind of a layer that a network repeats: its name with ``*`` for the number of the block."""
    return re.sub(r"\d+(?=\.)", "*", name)


def choose_layers(layers: Layers, choice: str) -> Sequence[str]:
    """The names of the layers that a choice means, in the network's order."""
    names = list(layers)
    half = (len(names) + 1) // 2
    if choice == "first_half":
        return names[:half]
    if choice == "last_half":
        return names[len(names) - half :]
    if choice == "widest":
        return [max(names, key=lambda name: layers[name].units)]
    if choice != "all":
        return [name for name in names if kind(name) == choice]
    return names


def fit_operation(operation: Operation, layer: Sized) -> Operation:
    """The operation as it is; a removal that would take no unit of a layer of few (heads) takes one, but for the last
    two.
    """
    keep = getattr(operation, "keep", None)
    if keep is None or layer.units < 3 or round(keep * layer.units) < layer.units:
        return operation
    return replace(operation, keep=brief((layer.units - 1) / layer.units))  # type: ignore[type-var]


#: In which order an operation visits its layers: at one moment, or each at a moment of its own.
ORDERS = ("together", "forward", "backward")


def place(
    trial: BaseTrial,
    layers: Layers,
    operation: Operation,
    epochs: int,
    ordered: bool = False,
    repair: tuple[str, ...] = (),
) -> Schedule:
    """An operation on some layers, once or several times: ``layers``, ``first_epoch``, ``times``, ``every``.

    ``repair``: the chain of repairs that follows it wherever it is done.

    The first operation comes after 1 epoch at the earliest and leaves at least a third of training to recover in;
    repetitions that would fall beyond the end are left out. ``ordered``: the trial chooses an ``order`` as well;
    ``forward`` or ``backward`` take one layer at a time, ``every`` few epochs, each of them once; the last moment
    is for all those that are left when training ends.

    Raises:
        SurgeryError: there are fewer than 2 epochs, so that no epoch has an operation before it and training after it.
    """
    where, first = _beginning(trial, layers, epochs)
    order = trial.suggest_categorical("order", ORDERS) if ordered else ORDERS[0]
    if order != "together":
        every = trial.suggest_int("every", 1, 3)
        names = where if order == "forward" else where[::-1]
        last = first + (epochs - 1 - first) // every * every
        moment = [min(first + turn * every, last) for turn in range(len(names))]
        turns = zip(moment, names, strict=True)
        return Schedule(
            tuple(Step(Moment(at), name, fit_operation(operation, layers[name]), repair) for at, name in turns)
        )
    times = trial.suggest_int("times", 1, 3)
    every = trial.suggest_int("every", 1, 3) if times > 1 else 1
    moments = [first + turn * every for turn in range(times)]
    steps = [
        Step(Moment(epoch), name, fit_operation(operation, layers[name]), repair)
        for epoch in moments if epoch < epochs
        for name in where
    ]  # fmt: skip
    return Schedule(tuple(steps))


def once(trial: BaseTrial, layers: Layers, operation: Operation, epochs: int) -> Schedule:
    """An operation on the weights of some layers, or on all of the network's at once, a single time: ``layers`` (also
    ``network``), ``first_epoch``.

    Raises:
        SurgeryError: there are fewer than 2 epochs, as in ``place``.
    """
    where = trial.suggest_categorical("layers", (NETWORK, *choices(layers)))
    moment = Moment(beginning(trial, epochs))
    names = [WHOLE] if where == NETWORK else choose_layers(layers, where)
    return Schedule(tuple(Step(moment, name, operation) for name in names))


def watch(
    trial: BaseTrial, layers: Layers, operation: Operation, epochs: int, threshold: float, measure: str = "redundancy"
) -> Schedule:
    """An operation on some layers, each whenever a condition holds: ``layers``, ``first_epoch``, ``gain``, ``every``,
    ``times`` (see ``ops.Condition``: a layer is looked at once in ``every`` epochs, and operated on ``times`` at most).

    Raises:
        SurgeryError: there are fewer than 2 epochs, as in ``place``.
    """
    where, first = _beginning(trial, layers, epochs)
    gain = sample(trial, "gain", 0.05, 0.7)
    every, times = trial.suggest_int("every", 1, 3), trial.suggest_int("times", 1, 3)
    condition = Condition(threshold, gain, Moment(first), Moment(every), times, measure)
    return Schedule(tuple(Step(condition, name, operation) for name in where))


def turns(trial: BaseTrial, epochs: int, most: int) -> list[int]:
    """The epochs of one turn or several: ``first_epoch``, ``times`` (up to ``most``), ``every``.

    Those that would fall beyond the end are left out. Raises SurgeryError as ``place`` does.
    """
    first, times = beginning(trial, epochs), trial.suggest_int("times", 1, most)
    every = trial.suggest_int("every", 1, 3) if times > 1 else 1
    return [epoch for epoch in range(first, first + times * every, every) if epoch < epochs]


def _beginning(trial: BaseTrial, layers: Layers, epochs: int) -> tuple[Sequence[str], int]:
    """Where (``layers``) and from which epoch on (``first_epoch``)."""
    where = choose_layers(layers, trial.suggest_categorical("layers", choices(layers)))
    return where, beginning(trial, epochs)


def beginning(trial: BaseTrial, epochs: int) -> int:
    """From which epoch on: ``first_epoch``. Raises SurgeryError as ``place`` does."""
    if epochs < 2:
        raise SurgeryError(f"operations come between epochs, so a search space needs at least 2 epochs, not {epochs}")
    return trial.suggest_int("first_epoch", 1, max(1, 2 * epochs // 3))
