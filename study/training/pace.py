"""How long a training step takes, computed in one way or another: a quick look at what a choice costs here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from network_surgery.study.recipe.augmentation import apart
from network_surgery.study.recipe.compute import Compute
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import Task
from network_surgery.study.training.device import clock
from network_surgery.study.training.evaluation import of_batch

#: Steps of each way after one that warms up: at least, and at most. The ways take turns, and the fastest step counts.
REPEATS = (3, 10)
#: Seconds after which no more than the least are made.
ENOUGH = 2.0
#: Channels last is chosen where a step takes at most this fraction of the time.
GAIN = 0.95


def with_layout(
    compute: Compute, model: nn.Module, task: Task, batch_size: int, device: torch.device
) -> tuple[Compute, dict[str, Any]]:
    """What ``channels_last: auto`` becomes for a network on a device: the way to compute, and the seconds of a step.

    Channels are last if that is at least 5 % faster: ``step_seconds`` has ``channels_last`` and ``contiguous``, or
    nothing where no weight has two axes of an image. The network stays as it is but for its memory format.
    """
    if compute.channels_last != "auto":
        return compute, {}
    ways = [replace(compute, channels_last=last) for last in (False, True)]
    if not any(parameter.dim() == 4 for parameter in model.parameters()):
        return ways[0], {"channels_last": False, "step_seconds": {}}
    plain, last = step_seconds(ways, model, task, batch_size, device)
    chosen = ways[last <= GAIN * plain]
    model.to(memory_format=torch.channels_last if chosen.channels_last else torch.contiguous_format)
    return chosen, {
        "channels_last": chosen.channels_last, "step_seconds": {"contiguous": plain, "channels_last": last},
    }  # fmt: skip


def slowdown(compute: Compute, model: nn.Module, task: Task, batch_size: int, device: torch.device) -> float:
    """The seconds of a step by repeatable kernels, as a multiple of what they are by torch's choice."""
    ways = [replace(compute, deterministic=on) for on in (False, True)]
    plain, repeatable = step_seconds(ways, model, task, batch_size, device)
    return repeatable / plain


def step_seconds(
    ways: Sequence[Compute], model: nn.Module, task: Task, batch_size: int, device: torch.device
) -> list[float]:
    """The least seconds of a forward and backward pass, computed in each of these ways; on a CPU those of its cores,
    since other programs may use them meanwhile.

    Weights, statistics and random numbers are as before; the memory format is that of the last way.
    """
    batch = Batches(task.train.thinned(min(batch_size, len(task.train))), device).take(slice(None))
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    mode, seconds = model.training, [float("inf") for _ in ways]
    model.train()
    with apart(0, device):
        begun = time.monotonic()
        for turn in range(REPEATS[1] + 1):
            if turn > REPEATS[0] and time.monotonic() - begun > ENOUGH:
                break
            for place, compute in enumerate(ways):
                if compute.channels_last in (True, False):
                    last = torch.channels_last if compute.channels_last else torch.contiguous_format
                    model.to(memory_format=last)
                with compute.repeatable(device):
                    taken = _time(partial(_step, compute, model, task, batch, device), device)
                seconds[place] = min(seconds[place], taken) if turn else seconds[place]
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    model.zero_grad(set_to_none=True)
    model.train(mode)
    return seconds


def _time(function: Callable[[], object], device: torch.device) -> float:
    read = time.process_time if device.type == "cpu" else lambda: clock(device)
    start = read()
    function()
    return read() - start


def _step(compute: Compute, model: nn.Module, task: Task, batch: Any, device: torch.device) -> None:
    model.zero_grad(set_to_none=True)
    with of_batch(task, "a training batch", 0):
        loss = task.training_loss(compute.answer(model, batch[0], device), batch[1]).mean()
    with compute.switched():
        loss.backward()
