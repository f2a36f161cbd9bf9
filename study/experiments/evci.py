"""What the experiments on Evci 2018 (*Detecting dead weights and units*) share: his training, looks at it, its arms.

His network on MNIST is ``evci_cnn`` (20,522 parameters), trained by plain SGD, learning rate 0.01, batches of 32; on
his 60,000 images ten epochs are 18,750 iterations. Here a length is given in iterations, for a folder may hold fewer
images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from network_surgery.ops import Moment, Schedule
from network_surgery.ops.anatomy import evaluating
from network_surgery.study import models
from network_surgery.study.bench import experiment
from network_surgery.study.bench.rows import Row, Task
from network_surgery.study.bench.training import At, fork, moments, read_end
from network_surgery.study.errors import StudyError
from network_surgery.study.task import images as sources
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.records import spikes
from network_surgery.study.training.theatre import Theatre
from network_surgery.study.training.trainer import Callback, Trainer, steps_per_epoch

#: The network by its activation.
NETWORKS = {"ReLU": "evci_cnn", "tanh": "evci_cnn_tanh"}
RATE, BATCH = 0.01, 32
#: Images that scores and changes of the loss are taken on, and the part of the training images they are split off from.
SAMPLE, VALIDATION = 1_000, 0.06
#: Images that are sent through a network at once: what comes between stays in the processor's cache.
TOGETHER = 250
CPU = torch.device("cpu")
#: The arm that nobody operates on, and the epochs of the schedules.
UNPRUNED, TENTHS = "unpruned", 10
#: After which tenths of training networks are operated on.
MOMENTS = (2, 3, 4, 5)
Arm = tuple[Trainer, list[Row]]
#: Inputs and classes.
Images = tuple[Tensor, Tensor]
#: A schedule, and which of each layer's units are left (all where a layer is missing), known when it was run.
Steps = tuple[Schedule, Mapping[str, Sequence[int]]]
#: The schedule of an arm for a trained network, with operations at these moments.
Planning = Callable[[Trainer, str, Sequence[Moment]], Steps]
AnyOptions = TypeVar("AnyOptions", bound="Options")


@dataclass(frozen=True)
class Options(experiment.Options):
    """``iterations``: of the networks that are looked at (ten of the thesis's epochs); ``looks``: their number."""

    iterations: int = 18_750
    looks: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < self.looks**2:
            raise StudyError(f"iterations is {self.iterations}; {self.looks} looks need {self.looks**2} at least")


def images(options: experiment.Options) -> ImageTask:
    """The images (see ``study.data.load``), at most ``SAMPLE`` of them for validation."""
    data = sources.load(options.data, VALIDATION, options.train_images)
    return data.changed(validation=data.validation.thinned(SAMPLE))


def build(facts: Mapping[str, Any], activation: str = "ReLU") -> nn.Module:
    """A fresh network for images of the shape and the number of classes that a page's facts hold."""
    return models.build(NETWORKS[activation], tuple(facts["shape"]), facts["classes"])


def prepare(data: ImageTask, activation: str, seed: int, epochs: int, callbacks: Sequence[Callback] = ()) -> Trainer:
    """A fresh network and its trainer."""
    torch.manual_seed(seed)
    return trainer_of(build(experiment.image_facts(data), activation), data, seed, epochs, callbacks)


def trainer_of(
    model: nn.Module, data: ImageTask, seed: int, epochs: int, callbacks: Sequence[Callback] = ()
) -> Trainer:
    """The thesis's training of a network: plain SGD, neither momentum nor decay."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    return Trainer(
        model, optimizer, data, epochs=epochs, batch_size=BATCH, seed=seed, device=CPU, callbacks=callbacks
    )  # fmt: skip


def arms(data: ImageTask, seed: int, epochs: int, names: Iterable[str], plan: Planning, maps: bool) -> Iterator[Arm]:
    """Each arm as it ended, with its rows: ``kind`` ``arm`` and, with ``maps``, of the first seed ``map``.

    All go on from one network, which is shared until the first operation. ``peaks``: epoch, held-out loss before and
    after, of each moment of operations.
    """
    trained = prepare(data, "ReLU", seed, epochs * MOMENTS[0] // TENTHS)
    trained.fit()
    moments = [Moment(round(epochs * trained.per_epoch * tenth / TENTHS), "it") for tenth in MOMENTS]
    for arm in names:
        steps, stayed = plan(trained, arm, moments) if arm != UNPRUNED else (Schedule(), {})
        theatre = Theatre(steps, data.validation, SAMPLE)
        trainer = fork(trained, data, epochs, [theatre])
        trainer.fit()
        peaks = [[spike.epoch, spike.loss_before, spike.loss_after] for spike in spikes(theatre.records)]
        about = {"training": f"{epochs} epochs", "seed": seed, "arm": arm}
        rows = [{"kind": "arm", "peaks": peaks} | about | read_end(trainer, data)]
        if maps and seed == 0:
            rows.append({"kind": "map", "maps": magnitudes(trainer.model, trained.model, stayed)} | about)
        yield trainer, rows


def epochs_of(iterations: int, data: ImageTask) -> int:
    """The whole epochs that hold this number of iterations."""
    return math.ceil(iterations / steps_per_epoch(len(data.train), BATCH))


def look_tasks(
    data: ImageTask, options: AnyOptions, look: Callable[[Trainer, AnyOptions], Iterable[Row]]
) -> list[Task]:
    """The runs that are looked at: each network with each seed."""
    return [
        (f"looks-{activation}-{seed}", partial(look_at_run, data, activation, seed, options, look))
        for seed in range(options.seeds)
        for activation in NETWORKS
    ]


def look_at_run(
    data: ImageTask,
    activation: str,
    seed: int,
    options: AnyOptions,
    look: Callable[[Trainer, AnyOptions], Iterable[Row]],
) -> list[Row]:
    """The rows of one run that is looked at; the last one, of ``kind`` ``end``, is how it ended."""
    rows: list[Row] = []
    about = {"activation": activation, "seed": seed}

    def at(trainer: Trainer) -> None:
        rows.extend(about | {"iteration": trainer.iteration} | row for row in look(trainer, options))

    epochs = epochs_of(options.iterations, data)
    trainer = prepare(data, activation, seed, epochs, [At(moments(options.iterations, options.looks), at)])
    trainer.fit()
    return [*rows, about | {"kind": "end", "training": f"{epochs} epochs"} | read_end(trainer, data)]


def samples(trainer: Trainer) -> tuple[Images, Images]:
    """``SAMPLE`` training images, evenly spread over the set, and the validation images: inputs and classes."""
    index = torch.linspace(0, len(trainer.train) - 1, min(SAMPLE, len(trainer.train)), dtype=torch.float64)
    return trainer.train.take(index.round().long()), trainer.validation.take(slice(None))


def tail_losses(model: nn.Module, name: str, sets: Sequence[Images]) -> Callable[[], list[float]]:
    """A function that returns the mean cross entropy of each set of images, in evaluation mode.

    What lies before the module ``name`` is computed once; whatever is done to it and to what follows it counts.
    """
    assert isinstance(model, nn.Sequential)
    at = [child for child, _ in model.named_children()].index(name)
    tail, sizes = model[at:], [len(targets) for _, targets in sets]
    inputs, targets = (torch.cat(parts) for parts in zip(*sets, strict=True))
    middle = outputs(model[:at], inputs)

    def losses() -> list[float]:
        each = nn.functional.cross_entropy(outputs(tail, middle), targets, reduction="none").double()
        return [float(part.mean()) for part in each.split(sizes)]

    return losses


@torch.no_grad()
def outputs(modules: nn.Module, inputs: Tensor) -> Tensor:
    """In evaluation mode, a part of the inputs at a time."""
    with evaluating(modules):
        return torch.cat([modules(part) for part in inputs.split(TOGETHER)])


def magnitudes(model: nn.Module, whole: nn.Module, stayed: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The sizes of a network's weights by layer, as nested lists of the shape that they have in the ``whole`` network.

    Both are rows of modules; ``stayed``: layer → which units of the whole network are left (all where it is missing).
    A weight that is gone, with its unit or by itself, is NaN.
    """
    sizes: dict[str, Any] = {}
    units, before = 0, slice(None)  # of the layer before: how many in the whole network, and which are left
    for name, module in whole.named_children():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            full = np.full(tuple(module.weight.shape), np.nan)
            weight: Any = model.get_submodule(name).weight
            outgoing, inputs = full.shape[:2]
            stay: Any = stayed.get(name, range(outgoing))
            read = np.arange(inputs).reshape(units or inputs, -1)[before].flatten()  # several inputs from one unit
            full[np.ix_(stay, read)] = weight.detach().abs().double().numpy()
            sizes[name] = np.where(full == 0, np.nan, full).round(5).tolist()
            units, before = outgoing, stay
    return sizes
