"""The same curves on trained layers: each hidden layer alone is shrunk and grown, and the logits are compared.

Random weights have a flat spectrum and say little about rank; what a network has learnt need not be flat. The distance
is that of the logits on validation images, in evaluation mode; operations that look at activations see training images.
Every operation is really done, and undone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from network_surgery.ops import (
    Anatomy,
    HiddenLayer,
    Operation,
    RandomRemove,
    Signals,
    SurgeryError,
    ZeroExpand,
    trial_surgery,
)
from network_surgery.ops.anatomy import evaluating
from network_surgery.ops.errors import said
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.data import Dataset
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.isolation.curves import GROWTHS, RANKS, REMOVALS, REPLACED, Curves, Gatherer
from network_surgery.study.experiments.isolation.random_weights import squared
from network_surgery.study.training.run import make_optimizer
from network_surgery.study.training.trainer import Batches, Trainer

KEEPS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
GROWS = (0.25, 0.5, 1.0)
#: Images that go through the network together.
MOST = 1024


def measure(
    settings: Settings, dataset: Dataset, trainings: int, device: torch.device, tell: Callable[[str], None]
) -> tuple[list[Curves], dict[str, list[list[float]]], list[float]]:
    """Curves of every hidden layer, shrinking then growing; by layer the spectrum of its fan-out at ``RANKS`` in each
    training; and the validation accuracy of each training.

    Raises:
        StudyError: the network has no hidden layer.
    """
    gatherers: dict[tuple[str, str], Gatherer] = {}
    spectra: dict[str, list[list[float]]] = {}
    accuracies = []
    for i in range(trainings):
        tell(f"{settings.model}: training {i + 1} of {trainings}")
        seed = settings.seed + i
        network = Trained(settings, dataset, seed, device)
        accuracies.append(network.accuracy)
        for name, layer in network.anatomy.items():
            tell(f"{settings.model}: training {i + 1} of {trainings}, {name}")
            spectra.setdefault(name, []).append(spectrum(layer))
            for change, fractions in (("shrink", KEEPS), ("grow", GROWS)):
                counts = network.sizes(layer, change, fractions)
                key = name, change
                if key not in gatherers:
                    gatherers[key] = Gatherer(Curves(name, change, layer.units, [*counts]))
                network.gather(gatherers[key], layer, change, list(counts.values()), seed)
    return [gatherer.done() for gatherer in gatherers.values()], spectra, accuracies


class Trained:
    """A network after its training, and what it says to the validation images."""

    def __init__(self, settings: Settings, dataset: Dataset, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.model = models.build(settings.model, dataset.shape, len(dataset.classes)).to(device)
        Trainer(
            self.model, make_optimizer(settings, self.model), dataset, epochs=settings.epochs,
            batch_size=settings.batch_size, seed=seed, device=device,
        ).fit()  # fmt: skip
        self.validation = Batches(dataset.validation, device)
        self.images = Batches(dataset.train.thinned(settings.signal_images), device).take(slice(None))[0]
        self.anatomy = Anatomy(self.model, self.images[:2])
        if not self.anatomy:
            raise StudyError(f"{settings.model} has no hidden layer that can be operated on; see 'surgery layers'")
        self.signals = Signals(self.model, self.images)
        self.before = self.logits()
        self.norm = squared(self.before)
        self.accuracy = self._accuracy(self.before)

    def sizes(self, layer: HiddenLayer, change: str, fractions: tuple[float, ...]) -> dict[int, float]:
        """The sizes that differ from each other and from the present one, ascending, each with its fraction."""
        made = {"shrink": RandomRemove, "grow": ZeroExpand}[change]
        found = {len(made(fraction).propose(layer).sources): fraction for fraction in fractions}
        return {size: fraction for size, fraction in sorted(found.items()) if size != layer.units}

    def gather(self, gatherer: Gatherer, layer: HiddenLayer, change: str, fractions: list[float], seed: int) -> None:
        """Tries every method at every fraction on one layer."""
        methods = REMOVALS if change == "shrink" else GROWTHS
        for method, make in methods.items():
            try:
                points = [self.tried(layer, make(fraction, seed)) for fraction in fractions]
            except SurgeryError as error:
                gatherer.lacks(method, said(error))
            else:
                gatherer.add(method, points)
        fresh = RandomRemove if change == "shrink" else ZeroExpand
        gatherer.add(REPLACED, [self.tried(layer, fresh(fraction), seed) for fraction in fractions])

    def tried(self, layer: HiddenLayer, operation: Operation, fresh: int | None = None) -> tuple[float, float, float]:
        """Squared distance, squared norm before, and accuracy after an operation, which is then undone.

        ``fresh``: with this seed, the weights on both sides of the layer are then drawn anew.
        """
        with trial_surgery(operation.propose(layer, self.signals if operation.needs_signals else None)):
            if fresh is not None:
                redraw(layer, fresh)
            after = self.logits()
        return squared(after - self.before), self.norm, self._accuracy(after)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """``[images, classes]``, in evaluation mode."""
        with evaluating(self.model):
            starts = range(0, len(self.validation), MOST)
            return torch.cat([self.model(self.validation.take(slice(at, at + MOST))[0]) for at in starts])

    def _accuracy(self, logits: Tensor) -> float:
        return float((logits.argmax(dim=1) == self.validation.labels).double().mean())


def redraw(layer: HiddenLayer, seed: int) -> None:
    """Gives the weights that make and read a layer PyTorch's default values for their present shape."""
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    with torch.no_grad():
        for name in dict.fromkeys(place.tensor for place in (*layer.makers, *layer.readers)):
            weight = layer.anatomy.tensor(name)
            bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
            weight.copy_((2 * torch.rand(weight.shape, generator=generator) - 1) * bound)


def spectrum(layer: HiddenLayer) -> list[float]:
    """The share of the fan-out's squared norm that its leading singular vectors hold, at each of ``RANKS``.

    Units against everything that reads them; over several readers together.
    """
    squares = torch.linalg.svdvals(layer.outgoing_rows()).square()
    counts = [max(1, math.floor(rank * len(squares))) for rank in RANKS]
    return [float(squares[:count].sum() / squares.sum()) for count in counts]
