"""What is measured of widened layers: a narrow network is widened in several ways and trained on.

All arms of a seed go on from the same weights and optimizer state, on the same batches. ``TWIN`` has the learning
rates that pairs of equal copies amount to (``set_rates``), ``CODE`` the faults of InterruptNet's code: biases and norm
scales in another order than the weights, and an optimizer that has forgotten its state. ``RESTART`` and ``LATER`` are
the wide network from fresh weights, for all epochs or for the number that follows the operation.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from network_surgery.ops import Anatomy, Operation, WeakExpand, ZeroExpand, operate
from network_surgery.ops.anatomy import evaluating
from network_surgery.ops.network.optimizer_state import forget
from network_surgery.study.bench import experiment, training
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.experiments.thesis.operations import PublishedWeakExpand
from network_surgery.study.models import Shape
from network_surgery.study.task import images as sources
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.training.trainer import Trainer

VALIDATION = 0.2
Network = Callable[[int, Shape, int], nn.Sequential]
Optimizing = Callable[[Any], Optimizer]
#: Units that continue the same old unit.
Pairs = Sequence[tuple[int, int]]


def dense(units: int, shape: Shape, classes: int, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Pixels – units – classes with ReLU."""
    layers = OrderedDict[str, nn.Module](flatten=nn.Flatten(), hidden=nn.Linear(math.prod(shape), units))
    layers |= {"norm": nn.BatchNorm1d(units)} if norm else {}
    layers |= {"active": nn.ReLU()} | ({"dropout": nn.Dropout(dropout)} if dropout else {})
    return nn.Sequential(layers | {"out": nn.Linear(units, classes)})


def conv(units: int, shape: Shape, classes: int) -> nn.Sequential:
    """Two 3 × 3 convolutions of 8 and ``units`` channels with BatchNorm and ReLU, pooling, a dense layer."""
    return nn.Sequential(OrderedDict(
        stem=nn.Conv2d(shape[0], 8, 3, padding=1, bias=False), stem_norm=nn.BatchNorm2d(8), stem_active=nn.ReLU(),
        stem_pool=nn.MaxPool2d(2), hidden=nn.Conv2d(8, units, 3, padding=1, bias=False), norm=nn.BatchNorm2d(units),
        active=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(2), flatten=nn.Flatten(), out=nn.Linear(units * 4, classes),
    ))  # fmt: skip


SGD_002, ADAM = partial(SGD, lr=0.02, momentum=0.9), partial(Adam, lr=1e-3)
#: A network, the units of its hidden layer before and after widening, its optimizer.
SETTINGS: dict[str, tuple[Network, int, int, Optimizing]] = {
    "dense 6 → 12, SGD": (dense, 6, 12, SGD_002),
    "dense 6 → 12, Adam": (dense, 6, 12, ADAM),
    "dense 6 → 9, SGD": (dense, 6, 9, SGD_002),
    "conv 4 → 8, SGD": (conv, 4, 8, SGD_002),
}
WHOLE, TWIN, CODE = "unwidened", "narrow, other rates", "equal, published code"
RESTART, LATER = "restart", "restart, later epochs only"
#: The operation of an arm, by the growth and the seed.
OPERATIONS: dict[str, Callable[[float, int], Operation]] = {
    "equal": lambda grow, seed: WeakExpand(grow, "equal"),
    "uneven": lambda grow, seed: WeakExpand(grow, "uneven", seed=seed),
    "signed": lambda grow, seed: WeakExpand(grow, "signed"),
    CODE: lambda grow, seed: PublishedWeakExpand(grow),
    "zero": lambda grow, seed: ZeroExpand(grow),
}
#: Dropout after the hidden layer, BatchNorm in it, or weight decay (L2, in the gradient).
NOISY = "dropout 0.3"
REGULARIZERS: dict[str, tuple[Network, Optimizing]] = {
    "none": (dense, SGD_002),
    NOISY: (partial(dense, dropout=0.3), SGD_002),
    "BatchNorm": (partial(dense, norm=True), SGD_002),
    "weight decay 0.01": (dense, partial(SGD_002, weight_decay=0.01)),
}
#: Arms of the network with a regularizer, its hidden units, and how often its loss is taken in training mode.
TRIED, UNITS, PASSES = (WHOLE, "equal", "uneven", "signed", "zero"), 16, 3


@dataclass(frozen=True)
class Options(experiment.Options):
    """Epochs before and after widening: of the ``dense`` and the ``conv`` networks, and with ``regularizers``."""

    seeds: int = 20
    dense: tuple[int, int] = (15, 20)
    conv: tuple[int, int] = (4, 7)
    regularizers: tuple[int, int] = (10, 3)


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts, and the tasks: every setting and every regularizer with each seed."""
    data = sources.load(options.data, VALIDATION, options.train_images)
    each = {name: partial(arms, data, name, *getattr(options, name.partition(" ")[0])) for name in SETTINGS}
    each |= {name: partial(measure_regularized, data, name, *options.regularizers) for name in REGULARIZERS}
    return experiment.image_facts(data), [
        (f"{name}, {seed}", partial(task, seed)) for seed in range(options.seeds) for name, task in each.items()
    ]


def arms(data: ImageTask, name: str, before: int, after: int, seed: int) -> list[Row]:
    """Every arm of a setting with one seed, as rows of ``kind`` ``arm``.

    The fields of ``look`` are lists: right after the operation and after each later epoch.
    """
    network, units, wide, optimizer = SETTINGS[name]
    trained = training.train(data, partial(network, units), optimizer, before, seed)
    test, grow = Batches(data.test, trained.device), wide / units - 1
    records = {WHOLE: follow(training.fork(trained, data, before), test, after)}
    if grow == 1:
        twin = training.fork(trained, data, before)
        set_rates(twin.model, twin.optimizer)
        records[TWIN] = follow(twin, test, after)
    for arm, operation in OPERATIONS.items():
        trainer = training.fork(trained, data, before)
        layer = hidden_layer(trainer)
        equal = WeakExpand(grow, "equal").propose(layer)  # the published code's plan does not name its copies
        plan = operate(layer, operation(grow, seed), trainer.optimizer)
        if arm == CODE:
            forget(trainer.optimizer)
        records[arm] = follow(trainer, test, after, copies((equal if arm == CODE else plan).sources))
    whole = follow(training.train(data, partial(network, wide), optimizer, 0, seed), test, before + after)
    records |= {RESTART: whole[before:], LATER: whole[: after + 1]}
    about = {"kind": "arm", "setting": name, "seed": seed}
    return [
        about | {"arm": arm} | {field: [record[field] for record in each] for field in each[0]}
        for arm, each in records.items()
    ]


def follow(trainer: Trainer, test: Batches, epochs: int, pairs: Pairs = ()) -> list[Row]:
    """Looks at a network now and after each of these epochs."""
    train, tested = trainer.train.take(slice(None)), test.take(slice(None))
    records = [look(trainer.model, train, tested, pairs)]
    for _ in range(epochs):
        trainer.epochs = trainer.epoch + 1
        trainer.fit()
        records.append(look(trainer.model, train, tested, pairs))
    return records


def hidden_layer(trainer: Trainer) -> Any:
    """The hidden layer, to be operated on."""
    return Anatomy(trainer.model, trainer.train.take(slice(0, 2))[0])["hidden"]


def set_rates(model: nn.Module, optimizer: Optimizer) -> None:
    """Gives a narrow network the learning rates that its double with equal copies amounts to.

    Both copies move their fan-out by the whole gradient, so their sum moves twice as far. Each fan-in gets half of the
    gradient (it comes back through half of the fan-out), which SGD halves the step for and Adam does not.
    """
    (group,) = optimizer.param_groups
    factors = dict.fromkeys(("hidden", "norm"), 1.0 if isinstance(optimizer, Adam) else 0.5) | {"out.weight": 2.0}
    optimizer.param_groups[:] = [
        {**group, "params": [parameter], "lr": group["lr"] * factors.get(name, factors.get(name.split(".")[0], 1.0))}
        for name, parameter in model.named_parameters()
    ]


def copies(sources: Sequence[int]) -> Pairs:
    """Pairs of new units that continue the same old one: the first of them and each of the others.

    >>> copies((0, 1, 0, -1, -1))
    [(0, 2)]
    """
    pairs = [(sources.index(source), unit) for unit, source in enumerate(sources) if source >= 0]
    return [pair for pair in pairs if pair[0] != pair[1]]


def look(model: Any, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], pairs: Pairs) -> Row:
    """In evaluation mode: ``accuracy`` on the test images; on the training images ``loss`` and the number of ``dead``
    hidden units, which are always 0; ``rank``, the effective rank of the fan-in; ``distance``, see ``copy_distance``.
    """
    with evaluating(model), torch.no_grad():
        at = [name for name, _ in model.named_children()].index("active") + 1
        active, rows = model[:at](train[0]), fan_in(model)
        return {
            "accuracy": float((model(test[0]).argmax(dim=1) == test[1]).double().mean()),
            "loss": float(nn.functional.cross_entropy(model[at:](active), train[1])),
            "rank": effective_rank(torch.linalg.svdvals(rows)), "distance": copy_distance(rows, pairs),
            "dead": int((active.movedim(1, -1).flatten(0, -2).amax(dim=0) <= 0).sum()),
        }  # fmt: skip


def fan_in(model: nn.Module) -> Tensor:
    """The hidden layer's weight with its bias, if it has one: ``[units, fan-in (+ 1)]``, double."""
    each = model.get_submodule("hidden").parameters()
    return torch.cat([values.detach().double().view(len(values), -1) for values in each], dim=1)


def effective_rank(singular: Tensor) -> float:
    """The exponential of the entropy of singular values over their sum (Roy and Vetterli 2007, "The effective rank").

    >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
    2.0
    """
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def copy_distance(rows: Tensor, pairs: Pairs) -> float | None:
    """The distance between copies' fan-in over their mean length, in the mean over pairs; None without pairs."""
    if not pairs:
        return None
    one, other = (rows[list(units)] for units in zip(*pairs, strict=True))
    length = (one.norm(dim=1) + other.norm(dim=1)) / 2
    return float(((one - other).norm(dim=1) / length.clamp(min=1e-12)).mean())


def measure_regularized(data: ImageTask, name: str, before: int, after: int, seed: int) -> list[Row]:
    """What doubling the layer of a regularized network does to its loss: rows of ``kind`` ``regularized``, as factors.

    ``at_once``: training loss in training mode over the batches of the coming epoch, before any step, after / before
    widening. ``thesis``: the thesis's loss factor, loss of the first batch after / of the last batch before, which are
    other images. ``later``: training loss over the coming epoch / that of the unwidened network. ``distance``: see
    ``copy_distance``, at the end.
    """
    network, optimizer = REGULARIZERS[name]
    trained = training.train(data, partial(network, UNITS), optimizer, before, seed)
    rows, loss, unwidened = [], loss_without_steps(trained, data), math.nan
    for arm in TRIED:
        trainer, pairs = training.fork(trained, data, before + after), copies(())
        if arm != WHOLE:
            pairs = copies(operate(hidden_layer(trainer), OPERATIONS[arm](1.0, 0), trainer.optimizer).sources)
        now = loss_without_steps(trainer, data)
        torch.manual_seed(seed)
        trainer.fit()
        coming = trainer.history[before]
        unwidened = coming["train_loss"] if arm == WHOLE else unwidened
        rows.append({
            "kind": "regularized", "regularizer": name, "arm": arm, "seed": seed, "at_once": now / loss,
            "thesis": coming["first_loss"] / trained.history[-1]["last_loss"],
            "later": coming["train_loss"] / unwidened, "distance": copy_distance(fan_in(trainer.model), pairs),
        })  # fmt: skip
    return rows


def loss_without_steps(trained: Trainer, data: ImageTask) -> float:
    """Training loss in training mode over the batches of the coming epoch without a step, ``PASSES`` times."""
    still = training.fork(trained, data, trained.epoch + 1)
    still.optimizer = SGD(still.model.parameters(), lr=0.0)
    torch.manual_seed(trained.seed)
    for _ in range(PASSES):
        still.epoch = trained.epoch
        still.fit()
    return sum(record["train_loss"] for record in still.history[-PASSES:]) / PASSES
