"""What is measured of PCNS: trained networks are shrunk in several ways, looked at, and trained on.

Every network is trained once with each seed, by Adam at 1e-3; all that is measured of it goes on from copies of its
weights and optimizer, with the same batches. The test images are read right after an operation and after every epoch
of every arm alike; nothing is chosen by them.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from network_surgery.ops import (
    PCNS,
    Anatomy,
    EigenRemove,
    MeanReplace,
    MinWeight,
    Operation,
    Plan,
    RandomRemove,
    Signals,
    SurgeryError,
    apply,
    operate,
    trial_surgery,
)
from network_surgery.ops.maths.condensed import Condensed, components_needed, relative_error
from network_surgery.ops.network.masks import parameters_of
from network_surgery.ops.surgery.prediction import predicted_loss_change
from network_surgery.study import data as sources
from network_surgery.study.bench import experiment
from network_surgery.study.bench.experiment import image_facts
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.bench.training import fork
from network_surgery.study.data import Dataset
from network_surgery.study.models import Shape
from network_surgery.study.training.trainer import Batches, Shown, Trainer, evaluate

CPU = torch.device("cpu")
#: Images of a batch, of one batch of the signals, and of those that a prediction of the loss looks at.
BATCH, SHOWN, LOOKED_AT = 64, 512, 1024
PIVOTED, EIGEN, UNINTERRUPTED = "PCNS, pivoted", "PCNS, eigen", "uninterrupted"
ORDERS = ("last to first", "at once", "first to last")
#: Samples for each unit; the part of the units that stays; the dropped variance at which components are counted.
RATIOS, KEEP, DROPPED = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0), 0.25, 1e-2
#: Removals by the fraction of units that stays and the seed.
REMOVALS: dict[str, Callable[[float, int], Operation]] = {
    PIVOTED: lambda keep, seed: PCNS(keep=keep),
    "min weight": lambda keep, seed: MinWeight(keep),
    "EigenRemove 1/8": lambda keep, seed: EigenRemove(keep, 0.125, weights="original"),
    "mean replacement": lambda keep, seed: MeanReplace(keep),
    "random": lambda keep, seed: RandomRemove(keep, seed=seed),
}
#: The arms that PCNS is compared with at its sizes, by their removal: alone, or repaired by least squares.
OTHERS = {name: name for name in REMOVALS if name != PIVOTED} | {
    f"{name} + least squares": name for name in ("min weight", "random")
}


def dense(activation: Callable[[], nn.Module], shape: Shape, classes: int) -> nn.Module:
    """Pixels – 256 – 128 – classes."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            layer1=nn.Linear(math.prod(shape), 256), active1=activation(),
            layer2=nn.Linear(256, 128), active2=activation(), out=nn.Linear(128, classes),
        )
    )  # fmt: skip


def convolutional(shape: Shape, classes: int) -> nn.Module:
    """3 × 3 convolutions of 16 and 32 channels with BatchNorm and ReLU, pooling, a dense layer of 64 units."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], 16, 3, padding=1), norm1=nn.BatchNorm2d(16), active1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(16, 32, 3, padding=1), norm2=nn.BatchNorm2d(32), active2=nn.ReLU(),
            pool2=nn.AdaptiveAvgPool2d(4), flatten=nn.Flatten(),
            layer3=nn.Linear(32 * 16, 64), active3=nn.ReLU(), out=nn.Linear(64, classes),
        )
    )  # fmt: skip


NETWORKS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "dense, LeakyReLU": partial(dense, partial(nn.LeakyReLU, 0.01)),
    "dense, tanh": partial(dense, nn.Tanh),
    "CNN, ReLU": convolutional,
}


@dataclass(frozen=True)
class Options(experiment.Options):
    """``train_images``: validation images included. ``before``: epochs of each of ``networks`` before it is shrunk,
    ``after``: epochs after it. ``thresholds``, ``orders``: the variance that PCNS drops, in arms and in orders.
    ``shown``: numbers of images for PCNS at once. ``keeps``: the fractions of units that stay in predictions.
    """

    train_images: int | None = 4000
    test_images: int = 5000
    networks: tuple[str, ...] = tuple(NETWORKS)
    before: tuple[int, ...] = (8, 8, 4)
    after: int = 5
    thresholds: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    orders: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    shown: tuple[int, ...] = (512, 1024, 2048, 3600)
    keeps: tuple[float, ...] = (0.9, 0.75, 0.5, 0.25, 0.1)


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts, and the tasks: each network with each seed."""
    data = images(options)
    return image_facts(data), [
        (f"{network}-{seed}", partial(measure_network, network, epochs, seed, data, options))
        for seed in range(options.seeds)
        for network, epochs in zip(options.networks, options.before, strict=True)
    ]


def images(options: Options) -> Dataset:
    """The images, a tenth of the training images for validation."""
    data = sources.load(options.data, 0.1, options.train_images)
    return replace(data, test=data.test.thinned(options.test_images))


def measure_network(network: str, epochs: int, seed: int, data: Dataset, options: Options) -> list[Row]:
    """All rows of one network."""
    trained = prepare(network, epochs, seed, data)
    trained.fit()
    parts = (part(trained, data, options) for part in (arms, orders, samples, shown, predictions))
    return [{"network": network, "seed": seed} | row for rows in parts for row in rows]


def prepare(network: str, epochs: int, seed: int, data: Dataset) -> Trainer:
    """A fresh network and its trainer."""
    torch.manual_seed(seed)
    model = NETWORKS[network](data.shape, len(data.classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Trainer(model, optimizer, data, epochs=epochs, batch_size=BATCH, seed=seed, device=CPU)


def test(trainer: Trainer, data: Dataset) -> tuple[float, float]:
    """Mean cross entropy and accuracy (0 … 1) on the test images."""
    return evaluate(trainer.model, Batches(data.test, CPU))


def anatomy(trainer: Trainer) -> Anatomy:
    """The network's layers as they are now."""
    return Anatomy(trainer.model, trainer.train.take(slice(0, 2))[0])


def cut(
    trainer: Trainer, layer: str, operation: Operation, repair: tuple[str, ...] = (), shown: Tensor | None = None
) -> Plan:
    """One operation on one layer, with its own look at the images ``shown``, else at as many as it needs.

    Raises:
        SurgeryError: it is refused.
    """
    target, signals = anatomy(trainer)[layer], None
    if operation.needs_signals or repair:
        images = Shown(trainer.train, SHOWN) if shown is None else [shown]
        signals = Signals.over(trainer.model, images, [target])
    return operate(target, operation, trainer.optimizer, signals, repair=repair)


def arms(trained: Trainer, data: Dataset, options: Options) -> Iterator[Row]:
    """Every layer shrunk, from the last to the first: by PCNS, and by other removals to the sizes of its pivoted basis.

    Rows of ``kind`` ``layer`` (after each layer) and ``arm`` (``accuracies`` right after and after each epoch). The
    threshold of the arm that is left alone is 0; the eigen basis has no rows where it is refused.
    """
    units = {name: layer.units for name, layer in anatomy(trained).items()}
    names = list(units)[::-1]
    run = partial(follow, trained, data, options.after)
    yield from run(0.0, UNINTERRUPTED, {})
    for threshold in options.thresholds:
        pivoted = list(run(threshold, PIVOTED, dict.fromkeys(names, PCNS(threshold))))
        yield from pivoted
        with contextlib.suppress(SurgeryError):
            yield from list(run(threshold, EIGEN, dict.fromkeys(names, PCNS(threshold, "eigen"))))
        keep = {row["layer"]: row["units"] / units[row["layer"]] for row in pivoted if row["kind"] == "layer"}
        for arm, removal in OTHERS.items():
            operations = {name: REMOVALS[removal](keep[name], trained.seed) for name in names}
            yield from run(threshold, arm, operations, () if arm == removal else ("least_squares",))


def follow(
    trained: Trainer, data: Dataset, epochs: int, threshold: float, arm: str, operations: Mapping[str, Operation],
    repair: tuple[str, ...] = (),
) -> Iterator[Row]:  # fmt: skip
    """One arm: its operations layer by layer, then training."""
    trainer, about = fork(trained, data, trained.epochs), {"threshold": threshold, "arm": arm}
    for name, operation in operations.items():
        plan = cut(trainer, name, operation, repair)
        yield about | {
            "kind": "layer", "layer": name, "units": plan.units_after, "error": plan.error,
            "held_out": plan.evidence.get("held_out_error"), "accuracy": test(trainer, data)[1],
        }  # fmt: skip
    accuracies = [test(trainer, data)[1]]
    for _ in range(epochs):
        trainer.epochs += 1
        trainer.fit()
        accuracies.append(test(trainer, data)[1])
    yield about | {"kind": "arm", "accuracies": accuracies, "parameters": parameters_of(trainer.model)}


def orders(trained: Trainer, data: Dataset, options: Options) -> Iterator[Row]:
    """Every order of the layers (the draft's section 5.2.5), nothing trained afterwards: rows of ``kind`` ``order``.

    From the last layer to the first each is fitted to old outputs, for what lies before it has not changed yet; at once
    all are fitted to those of one forward pass; from the first to the last each to what the layers before it make now.
    """
    for basis in ("pivoted", "eigen"):
        for threshold in options.orders:
            for order in ORDERS:
                about = {"kind": "order", "basis": basis, "threshold": threshold, "order": order}
                trainer = fork(trained, data, trained.epochs)
                try:
                    shrink(trainer, PCNS(threshold, basis), order)
                    units = sum(layer.units for layer in anatomy(trainer).values())
                    yield about | {"accuracy": test(trainer, data)[1], "units": units}
                except SurgeryError:
                    yield about | {"refused": True}


def shrink(trainer: Trainer, operation: Operation, order: str, shown: Tensor | None = None) -> None:
    """One operation on every layer in this order.

    Raises:
        SurgeryError: the operation or the order is refused.
    """
    layers = anatomy(trainer)
    if order == "at once":
        signals = Signals.over(trainer.model, Shown(trainer.train, SHOWN), layers.values())
        for plan in [operation.propose(layer, signals) for layer in layers.values()]:
            apply(plan, trainer.optimizer)
    else:
        for name in list(layers)[:: 1 if order == "first to last" else -1]:
            cut(trainer, name, operation, shown=shown)


def samples(trained: Trainer, data: Dataset, options: Options) -> Iterator[Row]:
    """How many samples PCNS needs (the draft's section 3.2: 5 to 10 for each unit): rows of ``kind`` ``sample``.

    A part of a layer's units is chosen and the others fitted to them on some samples; ``seen`` is the relative error
    on these, ``unseen`` that on the test images.
    """
    for name, layer in anatomy(trained).items():
        old, new = (
            Signals(trained.model, batches.take(slice(None))[0]).received(layer, layer.readers[0])
            for batches in (trained.train, Batches(data.test, CPU))
        )
        old = old[torch.randperm(len(old), generator=torch.Generator().manual_seed(trained.seed))]
        unseen = Condensed.of(new)
        for ratio in RATIOS:
            if (count := round(ratio * layer.units)) > len(old):
                break
            seen = Condensed.of(old[:count])
            fitted = seen.combination(seen.spanning_units(round(KEEP * layer.units)))
            errors = [relative_error(fitted.missed(each), each.spread) for each in (seen, unseen)]
            components = components_needed(seen.spectrum(), DROPPED)
            yield {
                "kind": "sample", "layer": name, "ratio": ratio, "components": components, "seen": errors[0],
                "unseen": errors[1],
            }  # fmt: skip


def expected(samples: float, kept: float) -> float:
    """The error on new data over that on the sample for outputs with a normal distribution, units chosen beforehand.

    With the error ``s²`` that no fit can avoid the expected squares are ``s² (n − k − 1) / n`` on the sample and
    ``s² (n + 1) (n − 2) / (n (n − k − 2))`` on new data (Stein 1960, *Multiple regression*; Browne 1975, *A comparison
    of single sample and cross-validation methods for estimating the mean squared error of prediction in multiple linear
    regression*).

    >>> round(expected(1000, 100), 3), round(expected(10, 5), 2)
    (1.112, 2.71)
    """
    return ((samples + 1) * (samples - 2) / ((samples - kept - 2) * (samples - kept - 1))) ** 0.5


def shown(trained: Trainer, data: Dataset, options: Options) -> Iterator[Row]:
    """Every layer shrunk at ``DROPPED``, last to first, by the number of images shown at once: ``kind`` ``shown``.

    The draft's own form (eigen) solves as many weights for each unit as the layer has inputs. No rows where it is
    refused.
    """
    for images in sorted({min(count, len(trained.train)) for count in options.shown}):
        for basis in ("eigen", "pivoted"):
            trainer = fork(trained, data, trained.epochs)
            try:
                shrink(trainer, PCNS(DROPPED, basis), ORDERS[0], trained.train.take(slice(0, images))[0])
            except SurgeryError:
                return
            yield {"kind": "shown", "basis": basis, "images": images, "accuracy": test(trainer, data)[1]}


def predictions(trained: Trainer, data: Dataset, options: Options) -> Iterator[Row]:
    """The change of the loss, predicted before an operation on one layer and measured after it, undone afterwards.

    Rows of ``kind`` ``prediction``: ``predicted`` (``slope``: its first order) from ``LOOKED_AT`` training images,
    ``tried`` measured on these very images, ``actual`` on the test images.
    """
    sets = [Batches(images, CPU) for images in (data.train.thinned(LOOKED_AT), data.test)]
    inputs, targets = sets[0].take(slice(None))
    signals = Signals(trained.model, inputs, targets)
    before = [evaluate(trained.model, each)[0] for each in sets]
    for name, layer in anatomy(trained).items():
        for method, removal in REMOVALS.items():
            for keep in options.keeps:
                plan = removal(keep, trained.seed).propose(layer, signals)
                predicted = predicted_loss_change(plan, inputs, targets)
                with trial_surgery(plan):
                    tried, actual = (
                        evaluate(trained.model, each)[0] - loss for each, loss in zip(sets, before, strict=True)
                    )
                yield {
                    "kind": "prediction", "layer": name, "method": method, "keep": keep, "slope": predicted.slope,
                    "predicted": predicted.change, "tried": tried, "actual": actual,
                }  # fmt: skip
