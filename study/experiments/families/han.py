"""Pruning after Han et al. 2015: which weights stay, in which way, and what it costs.

A network is trained by SGD with momentum, with L2 or with L1. Then all weights go that are smaller than ``quality``
times the standard deviation of their layer's weights. There is one quality for all layers, searched so that a given
fraction of the weights is left. Retraining has a tenth of the learning rate. The ways: ``not retrained``;
``iterative``, some epochs after each smaller fraction; ``one shot``, all at once, and then as many epochs as the
iterative way had by then.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from network_surgery import ops
from network_surgery.ops.anatomy import WHOLE, count
from network_surgery.ops.network.masks import masks_of, pack, parameters_of
from network_surgery.study import models
from network_surgery.study.bench import training
from network_surgery.study.bench.rows import Row
from network_surgery.study.recipe.curves import Curve
from network_surgery.study.recipe.optimization import Optimization
from network_surgery.study.recipe.sparsity import Sparsity
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.training import measures
from network_surgery.study.training.trainer import Trainer

L2, L1 = "L2", "L1"
UNTRAINED, ONE_SHOT, ITERATIVE = "not retrained", "one shot", "iterative"
#: The network of all curves and of the picture; of the other one there is the source's way alone.
CURVES = "lenet_300_100"
#: Thousands of parameters before and after, as the source counts them.
TARGETS = {"lenet_300_100": (267, 22), "lenet_5": (431, 36)}
#: Fractions of the weights that are left, one after the other, the source's last, with as many digits as rows keep.
LEFT = {
    "lenet_300_100": (1 / 2, 1 / 4, round(22 / 267, 8)),
    "lenet_5": (1 / 4, round(36 / 431, 8)),
}
#: The source's five curves: penalty and way.
WAYS = ((L2, UNTRAINED), (L1, UNTRAINED), (L1, ONE_SHOT), (L2, ONE_SHOT), (L2, ITERATIVE))
#: SGD's largest learning rate in its cycle, and the part of it after pruning.
RATE, MOMENTUM, LATER = 0.03, 0.9, 0.1
BATCH = 128
#: Caffe's decay for these networks, and an L1 that pulls a weight of 0.04 as hard.
STRENGTH = {L2: 5e-4, L1: 2e-5}
CPU = torch.device("cpu")


def target(network: str) -> float:
    """The fraction of the weights that the source leaves."""
    before, after = TARGETS[network]
    return round(after / before, 8)


def prune_rows(data: ImageTask, network: str, seed: int, epochs: int, retraining: int) -> list[Row]:
    """Rows of one network with one seed; ``retraining``: epochs after each fraction.

    Of ``kind`` ``trained``: before pruning, ``alone`` is the test accuracy after as many further epochs as the
    iterative way takes to the source's number. Of ``kind`` ``pruned``: ``left`` is the fraction of the weights,
    ``weights`` the number of parameters that are left. Of ``kind`` ``table``: see ``compact_size``; ``mask``: see
    ``first_mask``.
    """
    rows: list[Row] = []
    lefts, ways = LEFT[network], WAYS if network == CURVES else WAYS[-1:]
    for penalty in dict.fromkeys(penalty for penalty, _ in ways):
        trained = prepare(data, network, seed, epochs, penalty)
        trained.fit()
        about = {"network": network, "seed": seed, "penalty": penalty}
        alone = retrain(trained, data, retraining * (1 + lefts.index(target(network))))
        rows.append(about | {
            "kind": "trained", "test": training.read_end(trained, data)["test"],
            "alone": training.read_end(alone, data)["test"], "weights": parameters_of(trained.model),
            "bytes": measures.file_size(trained.model), "flops": count(trained.model, _example_images(data)[:2])[1],
        })  # fmt: skip
        for way in (way for known, way in ways if known == penalty):
            for left, trainer in zip(lefts, follow(trained, data, way, lefts, retraining), strict=True):
                end = training.read_end(trainer, data)
                here = about | {"way": way, "left": left}
                rows.append(here | {"kind": "pruned", "test": end["test"], "weights": end["parameters"]})
                if way == ITERATIVE and left == target(network):
                    rows.append(here | {"kind": "table"} | compact_size(trainer.model, data))
                    if network == CURVES:
                        rows.append(here | {"kind": "mask"} | first_mask(trainer.model, whole=not seed))
    return rows


def prepare(data: ImageTask, network: str, seed: int, epochs: int, penalty: str) -> Trainer:
    """A fresh network and its training with a penalty on its weights."""
    torch.manual_seed(seed)
    model = models.build(network, data.shape, len(data.classes))
    decay = STRENGTH[L2] if penalty == L2 else 0.0
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=decay)
    sparsity = Sparsity(l1=STRENGTH[L1] if penalty == L1 else 0.0)
    return Trainer(
        model, optimizer, data, epochs=epochs, batch_size=BATCH, seed=seed, device=CPU,
        optimization=Optimization(Curve("one_cycle", cycle_momentum=False), sparsity=sparsity),
    )  # fmt: skip


def follow(trained: Trainer, data: ImageTask, way: str, lefts: Sequence[float], retraining: int) -> Iterator[Trainer]:
    """What one way makes of a trained network at each fraction."""
    last = trained
    for step, left in enumerate(lefts, 1):
        trainer = training.fork(last if way == ITERATIVE else trained, data, trained.epoch)
        prune(trainer, data, left)
        if way != UNTRAINED:
            trainer = retrain(trainer, data, retraining * (1 if way == ITERATIVE else step))
        last = trainer
        yield trainer


def prune(trainer: Trainer, data: ImageTask, left: float) -> None:
    """Masks what is smaller than a quality times the deviation, so that this fraction of the weights is left.

    As nearly as thirty halvings of the interval of qualities find it.
    """
    everything = ops.Anatomy(trainer.model, _example_images(data)[:2])[WHOLE]
    low, high = 0.0, 8.0
    for _ in range(30):
        middle = (low + high) / 2
        gone = ops.PruneWeights(quality=middle).propose(everything).evidence["sparsity"]
        low, high = (middle, high) if 1 - gone > left else (low, middle)
    ops.operate(everything, ops.PruneWeights(quality=high), trainer.optimizer)


def retrain(trainer: Trainer, data: ImageTask, epochs: int) -> Trainer:
    """A copy after further epochs at a constant part of the learning rate."""
    model, optimizer = copy.deepcopy((trainer.model, trainer.optimizer))
    for group in optimizer.param_groups:
        group["lr"] = LATER * RATE
    later = Trainer(
        model, optimizer, data, epochs=trainer.epoch + epochs, batch_size=BATCH, seed=trainer.seed,
        device=CPU, optimization=Optimization(sparsity=trainer.optimization.sparsity),
    )  # fmt: skip
    later.epoch, later.iteration, later.history = trainer.epoch, trainer.iteration, list(trainer.history)
    later.fit()
    return later


def compact_size(model: nn.Module, data: ImageTask) -> Row:
    """How large a pruned network is, and what is left of it without units that nothing reads or feeds.

    ``layers``: the fraction of each weight that is left, by name; ``bytes`` of the file with masks; ``compact_bytes``
    and ``compact_flops`` after ``compact``, whose masked weights are stored and multiplied like others.
    """
    layers = {name.removesuffix(".weight"): float(mask.float().mean()) for name, mask in masks_of(model).items()}
    small, shown = copy.deepcopy(model), _example_images(data)
    ops.compact(ops.Anatomy(small, shown[:2]), (), ops.Signals(small, shown))
    return {
        "layers": layers, "bytes": measures.file_size(model), "compact_bytes": measures.file_size(small),
        "compact_flops": count(small, shown[:2])[1],
    }  # fmt: skip


def first_mask(model: nn.Module, whole: bool) -> Row:
    """``by_pixel``: how many units read each pixel; with ``whole`` also the ``mask [units, pixels]``, as text."""
    mask = masks_of(model)["fc1.weight"]
    found: Row = {"by_pixel": mask.sum(dim=0, dtype=torch.int64).tolist(), "units": len(mask)}
    return found | ({"mask": pack(mask)} if whole else {})


def _example_images(data: ImageTask) -> torch.Tensor:
    images: torch.Tensor = Batches(data.train.thinned(500), CPU).take(slice(None))[0]
    return images
