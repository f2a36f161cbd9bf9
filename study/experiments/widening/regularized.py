"""What widening does to the loss of a regularized network: dropout, BatchNorm, weight decay.

Graham 2019 (figure 4.8) on WeakExpand and Zero Weight Expansion: "these methods do not address regularization, and thus
adding trainable parameters with a regularized architecture like VGG16 can cause unwanted increases in loss".

A dense network is trained and widened to the double in its hidden layer, as in ``arms``. Measured are, as factors:

``at_once``
    Training loss in training mode over the batches of the coming epoch, before any step, after / before widening.
``thesis``
    The thesis's loss factor: loss of the first batch after / of the last batch before. They are other batches.
``squares``, ``objective``
    Σw² over all parameters, which weight decay penalizes, and loss + decay/2 Σw²: after / before.
``later``
    Training loss over the coming epoch, each batch before the step on it, / that of the unwidened network.

And ``distance``: how far the copies of a unit have parted after ``AFTER`` epochs (``training.apart``).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from network_surgery.ops import Anatomy, Operation, WeakExpand, ZeroExpand, operate
from network_surgery.study.experiments.widening.training import Pictures, apart, batches, copies, fan_in, fit, pictures

UNITS, BEFORE, AFTER, PASSES = 16, 10, 3, 3


@dataclass(frozen=True)
class Regularizer:
    """Dropout behind the hidden layer, BatchNorm in it, or weight decay (L2, in the gradient)."""

    dropout: float = 0.0
    norm: bool = False
    decay: float = 0.0

    def network(self, units: int) -> nn.Sequential:
        """64 – units – 10 with ReLU, for digits."""
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten(), hidden=nn.Linear(64, units))
        if self.norm:
            layers["norm"] = nn.BatchNorm1d(units)
        layers["active"] = nn.ReLU()
        if self.dropout:
            layers["dropout"] = nn.Dropout(self.dropout)
        return nn.Sequential(layers | {"out": nn.Linear(units, 10)})


REGULARIZERS = {
    "none": Regularizer(),
    "dropout 0.3": Regularizer(dropout=0.3),
    "BatchNorm": Regularizer(norm=True),
    "weight decay 0.01": Regularizer(decay=0.01),
}
OPERATIONS: dict[str, Operation | None] = {
    "unwidened": None,
    "equal": WeakExpand(1.0, "equal"),
    "uneven": WeakExpand(1.0, "uneven"),
    "signed": WeakExpand(1.0, "signed"),
    "zero": ZeroExpand(1.0),
}
FACTORS = ("at_once", "thesis", "squares", "objective", "later")
#: (regularizer, operation) → measure → one value a seed.
Moments = dict[tuple[str, str], dict[str, NDArray[np.float64]]]


def measure(seeds: Sequence[int]) -> Moments:
    """Every operation under every regularizer; entry ``i`` belongs to the same seed in all of them."""
    train, _ = pictures()
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for name, regularizer in REGULARIZERS.items():
        for seed in seeds:
            for operation, moment in moments(regularizer, seed, train):
                found.setdefault((name, operation), []).append(moment)
    return {
        key: {name: np.array([row[name] for row in rows]) for name in (*FACTORS, "distance")}
        for key, rows in found.items()
    }


def moments(regularizer: Regularizer, seed: int, train: Pictures) -> Iterator[tuple[str, dict[str, float]]]:
    """What is measured after each operation, from one trained network."""
    torch.manual_seed(seed)
    narrow = regularizer.network(UNITS)
    its = SGD(narrow.parameters(), lr=0.02, momentum=0.9, weight_decay=regularizer.decay)
    last = [fit(narrow, its, train, seed, epoch)[-1] for epoch in range(BEFORE)][-1]
    before, squares = held(narrow, train, seed), squared(narrow)
    unwidened = float("nan")
    for name, operation in OPERATIONS.items():
        model, optimizer = copy.deepcopy((narrow, its))
        pairs = copies(())
        if operation is not None:
            pairs = copies(operate(Anatomy(model, train[0][:2])["hidden"], operation, optimizer).sources)
        after, grown = held(model, train, seed), squared(model)
        torch.manual_seed(seed)
        losses = [fit(model, optimizer, train, seed, BEFORE + epoch) for epoch in range(AFTER)]
        coming = float(np.mean(losses[0]))
        unwidened = coming if operation is None else unwidened
        decay = regularizer.decay / 2
        yield (
            name,
            {
                "at_once": after / before,
                "thesis": losses[0][0] / last,
                "squares": grown / squares,
                "objective": (after + decay * grown) / (before + decay * squares),
                "later": coming / unwidened,
                "distance": apart(fan_in(model), pairs),
            },
        )


def held(model: nn.Module, train: Pictures, seed: int) -> float:
    """Training loss in training mode over the batches of the coming epoch without a step, ``PASSES`` times."""
    model = copy.deepcopy(model).train()  # BatchNorm's running statistics move
    inputs, labels = train
    torch.manual_seed(seed)
    with torch.no_grad():
        losses = [
            float(F.cross_entropy(model(inputs[index]), labels[index]))
            for _ in range(PASSES)
            for index in batches(len(labels), seed, BEFORE)
        ]
    return float(np.mean(losses))


def squared(model: nn.Module) -> float:
    """Σw² over all parameters."""
    return sum(float(parameter.detach().square().sum()) for parameter in model.parameters())
