"""What a finished network is measured by: the test images, read once, and how fast and large it is."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

from network_surgery.ops.anatomy import evaluating
from network_surgery.study.training.trainer import Batches, answers, clock

#: The batches whose latency is taken.
BATCHES = (1, 256)
#: Forward passes after one that warms up.
REPEATS = 5
#: With fewer than twice this number of classes, being among the first few says little.
TOP = 5


def on_test(model: nn.Module, images: Batches, most: int = 1024, mode: str = "evaluation") -> dict[str, float]:
    """``test_loss`` (mean cross entropy) and ``test_accuracy`` (0 … 1); with ten classes or more ``test_top5``.

    ``mode``: see ``study.training.trainer.answers``.
    """
    scores, targets = (torch.cat(parts) for parts in zip(*answers(model, images, most, mode), strict=True))
    loss = nn.functional.cross_entropy(scores.double(), targets)
    hits = scores.topk(min(TOP, scores.shape[1]), dim=1).indices == targets.unsqueeze(1)
    found = {"test_loss": float(loss), "test_accuracy": int(hits[:, 0].sum()) / len(hits)}
    return found | ({"test_top5": int(hits.sum()) / len(hits)} if scores.shape[1] >= 2 * TOP else {})


def speed(model: nn.Module, images: Batches, device: torch.device) -> dict[str, Any]:
    """``latency_seconds``: batch → median seconds of a forward pass (the images are repeated as often as that takes).

    ``peak_memory``: the most bytes that the GPU held for this process; None on a CPU.
    """
    found = {}
    with evaluating(model), torch.no_grad():
        for batch in BATCHES:
            inputs = images.take(torch.arange(batch) % len(images))[0]
            seconds = []
            for _ in range(REPEATS + 1):
                start = clock(device)
                model(inputs)
                seconds.append(clock(device) - start)
            found[str(batch)] = statistics.median(seconds[1:])
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"latency_seconds": found, "peak_memory": memory}
