"""What is measured: training after surgery, from the same weights and optimizer, with three optimizer states.

``carry``: the state follows the units (``ops.network.optimizer_state``). ``reset``: a new optimizer with the same
settings, as the thesis's published code makes one (Graham 2019, InterruptNet). ``stale``: the state is made to fit by
position; along each axis the first entries stay where they are, whichever units are there now, and zeros are appended
where the layer has grown. Step counts stay.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from network_surgery.ops import PCNS, Anatomy, MinWeight, Operation, Signals, WeakExpand, operate
from network_surgery.study import models
from network_surgery.study.bench.experiment import Options, image_facts
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.task import images as sources
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches

NETWORK, VALIDATION = "small_cnn", 0.2
BEFORE, AFTER, BATCH, SIGNAL_IMAGES = 150, 100, 32, 512
ARMS = ("carry", "reset", "stale")
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "Adam, 1e-3": lambda model: Adam(model.parameters(), lr=1e-3),
    "SGD 0.02, momentum 0.9": lambda model: SGD(model.parameters(), lr=0.02, momentum=0.9),
}
OPERATIONS: dict[str, Operation] = {
    "MinWeight, keep ½": MinWeight(keep=0.5),
    "PCNS, variance 0.05": PCNS(variance_threshold=0.05),
    "WeakExpand, grow ½": WeakExpand(grow=0.5),
}


def measure(options: Options) -> tuple[dict[str, Any], list[Task]]:
    """The images' facts, and a task for each seed."""
    data = sources.load(options.data, VALIDATION, options.train_images)
    tasks: list[Task] = [(str(seed), partial(arms, data, seed, options.seeds + seed)) for seed in range(options.seeds)]
    return image_facts(data), tasks


def arms(data: ImageTask, seed: int, order: int) -> list[Row]:
    """A row for each optimizer, operation and arm: ``losses`` of each batch after surgery, before the step on it.

    ``order``: the seed of these batches. The first loss is the same in all arms, since nothing has been stepped yet.
    """
    images, rows = Batches(data.train, torch.device("cpu")), []
    for optimizer, make in OPTIMIZERS.items():
        torch.manual_seed(seed)
        model = models.build(NETWORK, data.shape, len(data.classes))
        trained = model, make(model)
        train(*trained, images, BEFORE, seed)
        for (name, operation), arm in itertools.product(OPERATIONS.items(), ARMS):
            operated = through_surgery(arm, *trained, make, operation, images)
            about = {"seed": seed, "optimizer": optimizer, "operation": name, "arm": arm}
            rows.append(about | {"losses": train(*operated, images, AFTER, order)})
    return rows


def through_surgery(
    arm: str, model: nn.Module, optimizer: Optimizer, make: Callable[[nn.Module], Optimizer], operation: Operation,
    images: Batches,
) -> tuple[nn.Module, Optimizer]:  # fmt: skip
    """A copy of the model, operated on in every hidden layer, and the optimizer that goes on with it."""
    model, optimizer = copy.deepcopy((model, optimizer))
    inputs, _ = images.take(slice(SIGNAL_IMAGES))
    for layer in Anatomy(model, inputs[:2]).values():
        signals = Signals(model, inputs) if operation.needs_signals else None
        operate(layer, operation, optimizer if arm == "carry" else (), signals)
    if arm == "stale":
        fit_by_position(optimizer)
    return model, make(model) if arm == "reset" else optimizer


def fit_by_position(optimizer: Optimizer) -> None:
    """Cuts every state tensor to its parameter's size, or appends zeros, along each axis."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                common = tuple(slice(min(sizes)) for sizes in zip(value.shape, parameter.shape, strict=True))
                state[key] = torch.zeros_like(parameter)
                state[key][common] = value[common]


def train(model: nn.Module, optimizer: Optimizer, images: Batches, steps: int, seed: int) -> list[float]:
    """The loss of each of ``steps`` random batches, the same for equal seeds, before the step on it."""
    generator, losses = torch.Generator().manual_seed(seed), []
    model.train()
    for _ in range(steps):
        inputs, labels = images.take(torch.randperm(len(images), generator=generator)[:BATCH])
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
