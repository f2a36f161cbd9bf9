"""What is measured of PCNS: trained networks are shrunk in several ways, looked at, and trained on.

Every network is trained once with each seed, by Adam at 1e-3; all that is measured of it goes on from copies of its
weights and optimizer, with the same batches. The test images are read right after an operation and after every epoch
of every arm alike; nothing is chosen by them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from network_surgery.ops import (
    PCNS,
    Anatomy,
    EigenRemove,
    HiddenLayer,
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
from network_surgery.ops.maths.condensed import Condensed, relative_error
from network_surgery.ops.network.masks import parameters_of
from network_surgery.ops.surgery.prediction import predicted_loss_change
from network_surgery.study.bench import experiment
from network_surgery.study.bench.experiment import image_facts
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.bench.training import fork
from network_surgery.study.errors import Diverged
from network_surgery.study.models import Shape
from network_surgery.study.task import images as sources
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import CLASSIFICATION
from network_surgery.study.training.evaluation import evaluate
from network_surgery.study.training.trainer import Shown, Trainer

CPU = torch.device("cpu")
#: Images of a batch, of one batch of the signals, and of those that a prediction of the loss looks at.
BATCH, SHOWN, LOOKED_AT = 64, 512, 1024
PIVOTED, EIGEN, UNINTERRUPTED = "PCNS, pivoted", "PCNS, eigen", "uninterrupted"
ORDERS = ("at once", "first to last")
#: Samples for each unit, and the part of the units that stays.
RATIOS, KEEP = (1.25, 2.0, 5.0, 10.0), 0.25
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


def dense(
    activation: Callable[[], nn.Module], shape: Shape, classes: int, units: tuple[int, int] = (256, 128)
) -> nn.Module:
    """Pixels – 256 – 128 – classes."""
    first, second = units
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            layer1=nn.Linear(math.prod(shape), first), active1=activation(),
            layer2=nn.Linear(first, second), active2=activation(), out=nn.Linear(second, classes),
        )
    )  # fmt: skip


def convolutional(shape: Shape, classes: int, units: tuple[int, int, int] = (16, 32, 64)) -> nn.Module:
    """3 × 3 convolutions of 16 and 32 channels with BatchNorm and ReLU, pooling, a dense layer of 64 units."""
    first, second, third = units
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], first, 3, padding=1), norm1=nn.BatchNorm2d(first), active1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, 3, padding=1), norm2=nn.BatchNorm2d(second), active2=nn.ReLU(),
            pool2=nn.AdaptiveAvgPool2d(4), flatten=nn.Flatten(),
            layer3=nn.Linear(second * 16, third), active3=nn.ReLU(), out=nn.Linear(third, classes),
        )
    )  # fmt: skip


NETWORKS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "dense, LeakyReLU": partial(dense, partial(nn.LeakyReLU, 0.01)),
    "dense, tanh": partial(dense, nn.Tanh),
    "CNN, ReLU": convolutional,
}


@dataclass(frozen=True)
class Options(experiment.Options):
    """``train_images``: validation images included. ``before``: epochs of each of ``kinds`` of network before it is
    shrunk, ``after``: epochs after it. ``thresholds``: the part of the variance that PCNS drops. ``keeps``: the
    fractions of units that stay in predictions.
    """

    train_images: int | None = 4000
    test_images: int = 5000
    kinds: tuple[str, ...] = tuple(NETWORKS)
    before: tuple[int, ...] = (8, 8, 4)
    after: int = 5
    thresholds: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    keeps: tuple[float, ...] = (0.9, 0.75, 0.5, 0.25, 0.1)


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts, and the tasks: each network with each seed."""
    data = sources.load(options.data, 0.1, options.train_images)
    data = data.changed(test=data.test.thinned(options.test_images))
    return image_facts(data), [
        (f"{network}-{seed}", partial(measure_network, network, epochs, seed, data, options))
        for seed in range(options.seeds)
        for network, epochs in zip(options.kinds, options.before, strict=True)
    ]


def measure_network(network: str, epochs: int, seed: int, data: ImageTask, options: Options) -> list[Row]:
    """All rows of one network."""
    trained = train(network, epochs, seed, data)
    parts = (part(trained, data, options) for part in (arms, orders, samples, predictions))
    return [{"network": network, "seed": seed} | row for rows in parts for row in rows]


def train(network: str, epochs: int, seed: int, data: ImageTask) -> Trainer:
    """The trainer of a network that has been trained."""
    torch.manual_seed(seed)
    model = NETWORKS[network](data.shape, len(data.classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trainer = Trainer(model, optimizer, data, epochs=epochs, batch_size=BATCH, seed=seed, device=CPU)
    trainer.fit()
    return trainer


def accuracy(trainer: Trainer, data: ImageTask) -> float:
    """On the test images, 0 … 1."""
    return evaluate(trainer.model, CLASSIFICATION, Batches(data.test, CPU))[1]


def anatomy(trainer: Trainer) -> Anatomy:
    """The network's layers as they are now."""
    return Anatomy(trainer.model, trainer.train.take(slice(0, 2))[0])


def cut(trainer: Trainer, target: HiddenLayer, operation: Operation, repair: tuple[str, ...] = ()) -> Plan:
    """One operation on one layer, with its own look at the training images.

    Raises:
        SurgeryError: it is refused.
    """
    signals = None
    if operation.needs_signals or repair:
        signals = Signals.over(trainer.model, Shown(trainer.train, SHOWN), [target])
    return operate(target, operation, trainer.optimizer, signals, repair=repair)


def arms(trained: Trainer, data: ImageTask, options: Options) -> Iterator[Row]:
    """Every layer shrunk, from the last to the first: by PCNS, and by other removals to the sizes of its pivoted basis.

    Rows of ``kind`` ``layer`` (after each layer) and ``arm`` (``accuracies`` right after and after each epoch). The
    threshold of the arm that is left alone is 0; the eigen basis has no rows where it is refused.
    """
    sizes = {name: layer.units for name, layer in anatomy(trained).items()}
    run = partial(follow, trained, data, options.after)
    yield from run(0.0, UNINTERRUPTED, {})
    for threshold in options.thresholds:
        pivoted = list(run(threshold, PIVOTED, dict.fromkeys(sizes, PCNS(threshold))))
        yield from pivoted
        with contextlib.suppress(SurgeryError, Diverged):
            yield from list(run(threshold, EIGEN, dict.fromkeys(sizes, PCNS(threshold, "eigen"))))
        keep = {row["layer"]: row["units"] / sizes[row["layer"]] for row in pivoted if row["kind"] == "layer"}
        for arm, removal in OTHERS.items():
            operations = {name: REMOVALS[removal](keep[name], trained.seed) for name in sizes}
            yield from run(threshold, arm, operations, () if arm == removal else ("least_squares",))


def follow(
    trained: Trainer, data: ImageTask, epochs: int, threshold: float, arm: str, operations: Mapping[str, Operation],
    repair: tuple[str, ...] = (),
) -> Iterator[Row]:  # fmt: skip
    """One arm: its operations from the last layer to the first, then training."""
    trainer, about = fork(trained, data, trained.epochs), {"threshold": threshold, "arm": arm}
    layers = anatomy(trainer)
    for name, operation in reversed(list(operations.items())):
        plan = cut(trainer, layers[name], operation, repair)
        yield about | {
            "kind": "layer", "layer": name, "units": plan.units_after, "error": plan.error,
            "held_out": plan.evidence.get("held_out_error"), "accuracy": accuracy(trainer, data),
        }  # fmt: skip
    accuracies = [accuracy(trainer, data)]
    for _ in range(epochs):
        trainer.epochs += 1
        trainer.fit()
        accuracies.append(accuracy(trainer, data))
    yield about | {"kind": "arm", "accuracies": accuracies, "parameters": parameters_of(trainer.model)}


def orders(trained: Trainer, data: ImageTask, options: Options) -> Iterator[Row]:
    """Other orders of the layers (the draft's section 5.2.5), pivoted basis, nothing trained: ``kind`` ``order``.

    At once all layers are fitted to the outputs of one forward pass; from the first to the last each is fitted to what
    the layers before it make now. The arms go from the last to the first, so that nothing before a layer has changed.
    """
    for threshold, order in itertools.product(options.thresholds, ORDERS):
        trainer = fork(trained, data, trained.epochs)
        layers = anatomy(trainer)
        if order == "at once":
            signals = Signals.over(trainer.model, Shown(trainer.train, SHOWN), layers.values())
            for plan in [PCNS(threshold).propose(layer, signals) for layer in layers.values()]:
                apply(plan, trainer.optimizer)
        else:
            for layer in layers.values():
                cut(trainer, layer, PCNS(threshold))
        yield {"kind": "order", "threshold": threshold, "order": order, "accuracy": accuracy(trainer, data)}


def samples(trained: Trainer, data: ImageTask, options: Options) -> Iterator[Row]:
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
            errors = (relative_error(fitted.missed(each), each.spread) for each in (seen, unseen))
            yield {"kind": "sample", "layer": name, "ratio": ratio} | dict(zip(("seen", "unseen"), errors, strict=True))


def predictions(trained: Trainer, data: ImageTask, options: Options) -> Iterator[Row]:
    """The change of the loss on test images, predicted from ``LOOKED_AT`` training images before an operation on one
    layer, and measured after it; undone afterwards. Rows of ``kind`` ``prediction``."""
    inputs, targets = Batches(data.train.thinned(LOOKED_AT), CPU).take(slice(None))
    signals, test = Signals(trained.model, inputs, targets), Batches(data.test, CPU)
    before = evaluate(trained.model, CLASSIFICATION, test)[0]
    for layer, method, keep in itertools.product(anatomy(trained).values(), REMOVALS, options.keeps):
        plan = REMOVALS[method](keep, trained.seed).propose(layer, signals)
        row = {"kind": "prediction", "layer": layer.name, "method": method, "keep": keep}
        row["predicted"] = predicted_loss_change(plan, inputs, targets).change
        with trial_surgery(plan):
            row["actual"] = evaluate(trained.model, CLASSIFICATION, test)[0] - before
        yield row
