"""Training on digits by the epoch, and what is looked at: accuracy, loss, effective ranks, copies, dead units.

The effective rank is that of O. Roy and M. Vetterli, "The effective rank: a measure of effective dimensionality", 2007:
the exponential of the entropy of the singular values over their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from network_surgery.ops.anatomy import evaluating
from network_surgery.study import data
from network_surgery.study.training.trainer import Batches

BATCH = 32
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "SGD": lambda model: SGD(model.parameters(), lr=0.02, momentum=0.9),
    "Adam": lambda model: Adam(model.parameters(), lr=1e-3),
}
#: Inputs and labels.
Pictures = tuple[Tensor, Tensor]


def pictures() -> tuple[Pictures, Pictures]:
    """The training and the test images of scikit-learn's digits."""
    dataset = data.load("digits", validation=0.2)
    train, test = (Batches(images, torch.device("cpu")).take(slice(None)) for images in (dataset.train, dataset.test))
    return train, test


def fit(model: nn.Module, optimizer: Optimizer, train: Pictures, seed: int, epoch: int) -> list[float]:
    """One epoch; the loss of each batch before the step on it. The order depends on the seed and the epoch alone."""
    model.train()
    inputs, labels = train
    losses = []
    for index in batches(len(labels), seed, epoch):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs[index]), labels[index])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def batches(images: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The batches of an epoch, as indices."""
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return torch.randperm(images, generator=generator).split(BATCH)


def copies(sources: Sequence[int]) -> Tensor:
    """Pairs of new units ``[pairs, 2]`` that continue the same old one: the first of them and each of the others."""
    first: dict[int, int] = {}
    found = [(first.setdefault(source, unit), unit) for unit, source in enumerate(sources) if source >= 0]
    return torch.tensor([pair for pair in found if pair[0] != pair[1]], dtype=torch.int64).view(-1, 2)


def look(model: nn.Sequential, train: Pictures, test: Pictures, pairs: Tensor) -> dict[str, float]:
    """One record, in evaluation mode: accuracy on the test images, all else on the training images or the weights."""
    with evaluating(model), torch.no_grad():
        scores, active = train[0], torch.empty(0)
        for name, module in model.named_children():
            scores = module(scores)
            if name == "active":
                active = scores.movedim(1, -1).flatten(0, -2)
        accuracy = (model(test[0]).argmax(dim=1) == test[1]).double().mean()
        rows = fan_in(model)
        gram = active.double().T @ active.double()
        return {
            "accuracy": float(accuracy),
            "loss": float(F.cross_entropy(scores, train[1])),
            "rank": effective_rank(torch.linalg.svdvals(rows)),
            "output_rank": effective_rank(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()),
            "distance": apart(rows, pairs),
            "dead": float((active.amax(dim=0) <= 0).sum()),
        }


def fan_in(model: nn.Sequential) -> Tensor:
    """The hidden layer's weight with its bias, if it has one: ``[units, fan-in (+ 1)]``, double."""
    hidden = model.get_submodule("hidden")
    columns = [hidden.get_parameter("weight").flatten(1)]
    if getattr(hidden, "bias", None) is not None:
        columns.append(hidden.get_parameter("bias")[:, None])
    return torch.cat(columns, dim=1).detach().double()


def effective_rank(singular: Tensor) -> float:
    """The exponential of the entropy of singular values over their sum (Roy and Vetterli 2007).

    >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
    2.0
    """
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def apart(rows: Tensor, pairs: Tensor) -> float:
    """The distance between copies' fan-in over their mean length, in the mean over pairs; NaN without pairs."""
    one, other = rows[pairs[:, 0]], rows[pairs[:, 1]]
    length = (one.norm(dim=1) + other.norm(dim=1)) / 2
    return float(((one - other).norm(dim=1) / length.clamp(min=1e-12)).mean())
