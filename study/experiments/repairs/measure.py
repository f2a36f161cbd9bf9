"""What is measured of repairs: one trained network, cut in every layer at once, in several ways.

An arm is a removal and the chain of repairs that follows it in each layer, first layer to last, before the next one is
looked at. All arms of a seed go on from the same weights and optimizer state, on the same batches; ``NOTHING`` is the
network that is left alone. A deep network is cut, too, and not trained on.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from network_surgery import ops
from network_surgery.study import models
from network_surgery.study.bench import experiment, training
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.task import images as sources
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import CLASSIFICATION
from network_surgery.study.training.evaluation import evaluate
from network_surgery.study.training.records import spikes
from network_surgery.study.training.theatre import Theatre
from network_surgery.study.training.trainer import Shown, Trainer

#: A removal, by the fraction of units that stays and the seed.
REMOVALS: dict[str, Callable[[float, int], ops.Operation]] = {
    "min weight": lambda keep, seed: ops.MinWeight(keep),
    "random": lambda keep, seed: ops.RandomRemove(keep, seed),
    "EigenRemove": lambda keep, seed: ops.EigenRemove(keep, weights="original"),
    "mean replacement": lambda keep, seed: ops.MeanReplace(keep, "variance"),
    "PCNS": lambda keep, seed: ops.PCNS(keep=keep),
}
NONE, BOTH = "no repair", "least squares + batchnorm"
CHAINS: dict[str, tuple[str, ...]] = {
    NONE: (),
    "bias": ("bias",),
    "least squares": ("least_squares",),
    "batchnorm": ("batchnorm",),
    "bias + batchnorm": ("bias", "batchnorm"),
    BOTH: ("least_squares", "batchnorm"),
}
#: What a removal does by itself: these repairs would change nothing, or are refused.
BUILT_IN = {"mean replacement": {"bias"}, "PCNS": {"bias", "least_squares"}}
#: (removal, chain)
Arm = tuple[str, str]
ARMS: tuple[Arm, ...] = tuple(
    (removal, chain)
    for removal in REMOVALS
    for chain, repairs in CHAINS.items()
    if BUILT_IN.get(removal, set()).isdisjoint(repairs)
)
#: The arm without an operation.
NOTHING: Arm = ("no operation", "")
#: What is tried on the deep network.
DEEP = tuple(arm for arm in ARMS if arm[0] in ("min weight", "random", "PCNS") and arm[1] in (NONE, "batchnorm", BOTH))
VALIDATION, ADAM = 0.2, partial(torch.optim.Adam, lr=1e-3)


@dataclass(frozen=True)
class Options(experiment.Options):
    """Networks are trained for ``before`` epochs and cut. ``model``, on at most ``few`` images for training, validation
    and test, is cut to ``keep`` and trained ``after`` epochs more; ``deep_model``, on all images, is cut to each of
    ``keeps``. ``shown``: training images that operations and repairs look at.
    """

    data: str = "cifar10"
    train_images: int | None = 4_000
    few: tuple[int, int, int] = (1_200, 400, 2_000)
    model: str = "small_cnn"
    before: int = 6
    after: int = 5
    keep: float = 0.5
    deep_model: str = "vgg16_quarter"
    keeps: tuple[float, ...] = (0.75, 0.5)
    shown: int = 512

    def public(self) -> dict[str, Any]:
        """As of all experiments; of networks in a file without the file's folder."""
        return super().public() | {
            name: experiment.without_folder(getattr(self, name)) for name in ("model", "deep_model")
        }


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts, and the tasks: the arms, and the deep network, with each seed.

    Raises:
        StudyError: the images cannot be read, or are too small for a network.
    """
    data = sources.load(options.data, VALIDATION, options.train_images)
    for model in (options.model, options.deep_model):
        models.build(model, data.shape, len(data.classes))
    sets = zip((data.train, data.validation, data.test), options.few, strict=True)
    train, validation, test = (images.thinned(most) for images, most in sets)
    few = ImageTask(train, validation, test, data.classes)
    measured = {"arms": (arms, few), "deep": (deep, data)}
    return {name: experiment.image_facts(images) for name, (_, images) in measured.items()}, [
        (f"{name}-{seed}", partial(each, images, seed, options))
        for name, (each, images) in measured.items()
        for seed in range(options.seeds)
    ]


def arms(data: ImageTask, seed: int, options: Options) -> list[Row]:
    """Every arm with one seed: rows of ``kind`` ``arm``, see ``follow``."""
    trained = training.train(data, partial(models.build, options.model), ADAM, options.before, seed)
    layers = list(ops.Anatomy(trained.model, trained.train.take(slice(0, 2))[0]))
    rows = []
    for removal, chain in (NOTHING, *ARMS):
        steps = [
            ops.Step(ops.Moment(options.before), layer, REMOVALS[removal](options.keep, seed), CHAINS[chain])
            for layer in layers if removal in REMOVALS
        ]  # fmt: skip
        about = {"kind": "arm", "removal": removal, "chain": chain, "seed": seed}
        rows.append(about | follow(trained, data, ops.Schedule(tuple(steps)), options))
    return rows


def follow(trained: Trainer, data: ImageTask, schedule: ops.Schedule, options: Options) -> Row:
    """How a trained network goes on with a schedule that begins now.

    ``accuracy``: on the validation images, right after the cut and after each later epoch; ``spike``: held-out loss
    after / before; ``seconds``: of the cut over those of the last epoch before it; ``recovered``: epochs until the
    held-out loss is back, None where it is not; ``test``: accuracy at the end.
    """
    theatre = Theatre(schedule, data.validation, options.shown)
    trainer = training.fork(trained, data, trained.epoch + options.after, [theatre])
    torch.manual_seed(trained.seed)
    trainer.fit()
    end = training.read_end(trainer, data)
    accuracy, spike, seconds = end["validation"][trained.epoch - 1 :], 1.0, 0.0
    recovered: int | None = 0
    if theatre.records:
        (moment,), last = spikes(theatre.records), theatre.records[-1]
        accuracy[0], spike, recovered = last.metric_after, moment.factor, last.epochs_to_recover
        seconds = moment.seconds / trained.history[-1]["train_seconds"]
    return {"accuracy": accuracy, "spike": spike, "seconds": seconds, "recovered": recovered, "test": end["test"]}


def deep(data: ImageTask, seed: int, options: Options) -> list[Row]:
    """Rows of ``kind`` ``deep``: accuracy on the validation images right after the cut; ``whole``: before it.

    Nothing but the weights is at stake here, so there is no optimizer.
    """
    trained = training.train(data, partial(models.build, options.deep_model), ADAM, options.before, seed)
    shown = Shown(Batches(data.train.thinned(options.shown), trained.device), options.shown // 2)
    rows: list[Row] = [{"kind": "whole", "seed": seed, "accuracy": trained.history[-1]["validation_metric"]}]
    for keep, (removal, chain) in itertools.product(options.keeps, DEEP):
        model = copy.deepcopy(trained.model)
        cut(model, REMOVALS[removal](keep, seed), CHAINS[chain], shown)
        about = {"kind": "deep", "seed": seed, "keep": keep, "removal": removal, "chain": chain}
        rows.append(about | {"accuracy": evaluate(model, CLASSIFICATION, trained.validation)[1]})
    return rows


def cut(model: nn.Module, operation: ops.Operation, chain: Sequence[str], shown: Iterable[Tensor]) -> None:
    """The operation with its repairs on every layer, first to last, with signals anew for each."""
    for layer in ops.Anatomy(model, next(iter(shown))[:2]).values():
        signals = ops.Signals.over(model, shown, [layer]) if operation.needs_signals or chain else None
        ops.operate(layer, operation, (), signals, repair=chain)
