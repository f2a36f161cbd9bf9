"""How fast a finished network is, and how large its file."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from network_surgery.ops import save
from network_surgery.ops.anatomy import evaluating
from network_surgery.study.recipe.compute import PLAIN, Compute
from network_surgery.study.scratch import scratch
from network_surgery.study.task.samples import Batches
from network_surgery.study.training.device import clock

#: The batches whose latency is taken.
BATCHES = (1, 256)
#: Forward passes after one that warms up.
REPEATS = 5


def speed(model: nn.Module, batches: Batches, device: torch.device, compute: Compute = PLAIN) -> dict[str, Any]:
    """``latency_seconds``: batch → median seconds of a forward pass (the samples are repeated as often as that takes),
    computed as in training, uncompiled.
    """
    found = {}
    with evaluating(model), torch.no_grad():
        for batch in BATCHES:
            inputs = batches.take(torch.arange(batch) % len(batches))[0]
            seconds = []
            for _ in range(REPEATS + 1):
                start = clock(device)
                compute.answer(model, inputs, device)
                seconds.append(clock(device) - start)
            found[str(batch)] = statistics.median(seconds[1:])
    return {"latency_seconds": found}


def file_size(model: nn.Module) -> int:
    """The bytes of the file that ``ops.save`` writes of a network."""
    with scratch() as place:
        save(model, path := place / "network.pt")
        return path.stat().st_size
