"""A fresh network cut to a size before its first step: uniformly, at random, or by connection sensitivity.

How many units each layer keeps is ``ops.allocation``'s: never more than the size, and by less than a unit of each layer
less than it. A uniformly thinner network is drawn anew at its sizes, as a restart is (``study.training.restart``); of
the others the units that stay keep the weights they were drawn with (pruning at initialization).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from network_surgery.ops import Anatomy, MeanReplace, Operation, Plan, RandomRemove, Signals, apply, describe
from network_surgery.ops.allocation import allocate
from network_surgery.study.task.check import fresh
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import Task
from network_surgery.study.training.restart import renew


def cut(
    model: nn.Module, task: Task, allocation: Mapping[str, Any], seed: int, samples: int, device: torch.device
) -> None:
    """Cuts a fresh network, on its device, in place. ``samples``: training samples that sensitivity is taken of.

    ``allocation``: ``by`` (``uniform``, ``random`` or ``snip``) and the size, ``parameters`` or ``flops``.

    Raises:
        SurgeryError: the network cannot have that size.
    """
    by, budget = allocation["by"], {name: value for name, value in allocation.items() if name != "by"}
    with torch.random.fork_rng():
        if by == "uniform":
            with_sizes = fresh(task).to(device)
            _apply(_plans(with_sizes, task, by, budget, seed, samples, device))
            return renew(model, describe(with_sizes), seed)
        _apply(_plans(model, task, by, budget, seed, samples, device))


def _apply(plans: list[Plan]) -> None:
    for plan in plans:
        apply(plan)


def _plans(
    model: nn.Module, task: Task, by: str, budget: Mapping[str, float], seed: int, samples: int, device: torch.device
) -> list[Plan]:
    """What goes of each layer, all of it decided on the network as it is drawn."""
    inputs, targets = Batches(task.train.thinned(samples), device).take(slice(None))
    anatomy = Anatomy(model, Batches(task.train.thinned(2), device).take(slice(None))[0])
    signals = Signals(model, inputs, targets, task.loss) if by == "snip" else None
    keeps = allocate(anatomy, RandomRemove(), budget, by, signals, seed=seed)
    return [
        _operation(by, keep, seed + number).propose(anatomy[name], signals)
        for number, (name, keep) in enumerate(keeps.items())
        if keep < 1
    ]


def _operation(by: str, keep: float, seed: int) -> Operation:
    if by == "snip":
        return MeanReplace(keep, score="snip", bias_propagation=False)
    return RandomRemove(keep, seed=seed)
