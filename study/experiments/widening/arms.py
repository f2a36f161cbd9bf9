"""One narrow network, widened in several ways: every arm goes on from the same weights, on the same batches.

A network is trained for ``before`` epochs. Then its hidden layer is widened, once for each arm from the very same
weights and optimizer state (which follows the units), and training goes on for ``after`` epochs. Besides the splits of
WeakExpand and ZeroExpand:

``narrow, other rates``
    The narrow network with the learning rates that pairs of equal copies amount to (``rates``).
``equal, published code``
    WeakExpand with the faults of InterruptNet's code: biases and norm scales in another order than the weights, and an
    optimizer that has forgotten its state.
``restart``, ``restart, later epochs only``
    The wide network from fresh weights, for all epochs or for as many as follow the operation.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from network_surgery.ops import Anatomy, Operation, WeakExpand, ZeroExpand, operate
from network_surgery.ops.network.optimizer_state import forget
from network_surgery.study.experiments.thesis.operations import PublishedWeakExpand
from network_surgery.study.experiments.widening.training import OPTIMIZERS, Pictures, copies, fit, look, pictures


def dense(units: int) -> nn.Sequential:
    """64 – units – 10 with ReLU, for digits."""
    return nn.Sequential(
        OrderedDict(flatten=nn.Flatten(), hidden=nn.Linear(64, units), active=nn.ReLU(), out=nn.Linear(units, 10))
    )


def convolutional(units: int) -> nn.Sequential:
    """Two 3 × 3 convolutions of 8 and ``units`` channels with BatchNorm and ReLU, pooling, a dense layer."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(1, 8, 3, padding=1, bias=False),
            stem_norm=nn.BatchNorm2d(8),
            stem_active=nn.ReLU(),
            stem_pool=nn.MaxPool2d(2),
            hidden=nn.Conv2d(8, units, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(units),
            active=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            out=nn.Linear(units * 4, 10),
        )
    )


@dataclass(frozen=True)
class Setting:
    """A network of ``units`` in its hidden layer, what it is trained with, and by which fraction it grows."""

    name: str
    network: Callable[[int], nn.Sequential]
    units: int
    optimizer: str
    grow: float
    before: int
    after: int

    @property
    def wide(self) -> int:
        return self.units + round(self.grow * self.units)


SETTINGS = (
    Setting("dense 6 → 12, SGD", dense, 6, "SGD", 1.0, 15, 20),
    Setting("dense 6 → 12, Adam", dense, 6, "Adam", 1.0, 15, 20),
    Setting("dense 6 → 9, SGD", dense, 6, "SGD", 0.5, 15, 20),
    Setting("conv 4 → 8, SGD", convolutional, 4, "SGD", 1.0, 4, 7),
)
TWIN, LATER, CODE = "narrow, other rates", "restart, later epochs only", "equal, published code"
#: The operation of an arm, given the growth and the seed.
OPERATIONS: dict[str, Callable[[float, int], Operation]] = {
    "equal": lambda grow, seed: WeakExpand(grow, "equal"),
    "uneven": lambda grow, seed: WeakExpand(grow, "uneven", seed=seed),
    "signed": lambda grow, seed: WeakExpand(grow, "signed"),
    CODE: lambda grow, seed: PublishedWeakExpand(grow),
    "zero": lambda grow, seed: ZeroExpand(grow),
}
#: Test accuracy (0 … 1), training loss, effective rank of fan-in and of outputs, copies' distance, dead units.
MEASURES = ("accuracy", "loss", "rank", "output_rank", "distance", "dead")
#: (setting, arm) → measure → values ``[seeds, epochs + 1]``, from right after the operation on.
Found = dict[tuple[str, str], dict[str, NDArray[np.float64]]]


def measure(seeds: Sequence[int], settings: Sequence[Setting] = SETTINGS) -> Found:
    """Every arm of every setting; row ``i`` belongs to the same seed in all of them."""
    train, test = pictures()
    found: dict[tuple[str, str], list[list[dict[str, float]]]] = {}
    for setting in settings:
        for seed in seeds:
            for arm, records in arms(setting, seed, train, test):
                found.setdefault((setting.name, arm), []).append(records)
    return {
        key: {name: np.array([[record[name] for record in row] for row in rows]) for name in MEASURES}
        for key, rows in found.items()
    }


def arms(setting: Setting, seed: int, train: Pictures, test: Pictures) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """What is seen of each arm: a record right after the operation and one after each later epoch."""
    make, last = OPTIMIZERS[setting.optimizer], setting.before + setting.after
    later = range(setting.before, last)

    def follow(model: nn.Sequential, optimizer: Optimizer, epochs: range, pairs: Tensor) -> list[dict[str, float]]:
        records = [look(model, train, test, pairs)]
        for epoch in epochs:
            fit(model, optimizer, train, seed, epoch)
            records.append(look(model, train, test, pairs))
        return records

    torch.manual_seed(seed)
    narrow = setting.network(setting.units)
    its = make(narrow)
    for epoch in range(setting.before):
        fit(narrow, its, train, seed, epoch)
    none = torch.empty(0, 2, dtype=torch.int64)
    yield "unwidened", follow(*copy.deepcopy((narrow, its)), later, none)
    if setting.grow == 1:
        model, optimizer = copy.deepcopy((narrow, its))
        rates(model, optimizer)
        yield TWIN, follow(model, optimizer, later, none)
    for arm, operation in OPERATIONS.items():
        model, optimizer = copy.deepcopy((narrow, its))
        layer = Anatomy(model, train[0][:2])["hidden"]
        equal = WeakExpand(setting.grow, "equal").propose(layer)  # the published code's copies are nobody's, to a plan
        plan = operate(layer, operation(setting.grow, seed), optimizer)
        if arm == CODE:
            forget(optimizer)
        yield arm, follow(model, optimizer, later, copies((equal if arm == CODE else plan).sources))
    torch.manual_seed(seed)
    wide = setting.network(setting.wide)
    records = follow(wide, make(wide), range(last), none)
    yield "restart", records[setting.before :]
    yield LATER, records[: setting.after + 1]


def rates(model: nn.Sequential, optimizer: Optimizer) -> None:
    """Gives a narrow network the learning rates that its double with equal copies amounts to.

    Both copies move their fan-out by the whole gradient, so their sum moves twice as far. Each fan-in gets half of the
    gradient (it comes back through half of the fan-out), which SGD halves the step for and Adam does not.
    """
    (group,) = optimizer.param_groups
    fan_in = 1.0 if isinstance(optimizer, Adam) else 0.5
    factors = {"hidden.weight": fan_in, "hidden.bias": fan_in, "norm.weight": fan_in, "norm.bias": fan_in}
    factors["out.weight"] = 2.0
    optimizer.param_groups[:] = [
        {**group, "params": [parameter], "lr": group["lr"] * factors.get(name, 1.0)}
        for name, parameter in model.named_parameters()
    ]
