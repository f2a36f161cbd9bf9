"""Starting over: the architecture that surgery of the same seed ended with, or the original, from the first step."""

from __future__ import annotations

import math
import statistics

from network_surgery.study.arms.arm import Ended
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.spent import before_surgery


def restart(ended: Ended) -> Cell:
    """For the same epochs: so also *the final architecture from the start*."""
    return ended.cell("restart", architecture=ended.outcome["architecture"])


def restart_flops(ended: Ended) -> Cell:
    """For as many epochs as cost the FLOPs of surgery's training, rounded up in favour of restarting."""
    epochs = ended.epochs_of(ended.outcome["training_flops"])
    return ended.cell("restart_flops", architecture=ended.outcome["architecture"], epochs=epochs)


def restart_seconds(ended: Ended) -> Cell:
    """For as many epochs as fit into surgery's seconds, operations included, rounded up: what people pay."""
    last = ended.operations[-1].epoch
    after = [each["train_seconds"] for each in ended.outcome["epochs"] if each["epoch"] > last]
    epochs = max(1, math.ceil(ended.outcome["seconds"] / statistics.median(after)))
    return ended.cell("restart_seconds", architecture=ended.outcome["architecture"], epochs=epochs)


def restart_fair(ended: Ended) -> Cell:
    """For K₁·F₁ / F₂ + K₂ epochs: the FLOPs of training the original for all of its K₁ epochs, at F₁ an epoch, and the
    network that surgery ended with for the K₂ of fine-tuning, at F₂, rounded up.

    It is the budget of ``prune_end``, whose K₁ and K₂ they are. Source: Wang et al. 2023, *Why is the state of neural
    network pruning so confusing?* (the fairness of comparing with training from scratch).
    """
    ended.refuse_growth("its budget is that of prune_end")
    whole, large, small = ended.settings.epochs, ended.operations[0].flops_before, ended.outcome["flops"]
    epochs = math.ceil(whole * large / small - 1e-9) + ended.epochs_left
    return ended.cell("restart_fair", architecture=ended.outcome["architecture"], epochs=epochs)


def original_flops(ended: Ended) -> Cell:
    """The original for as many epochs as cost the FLOPs of surgery's training, rounded up: what a network that grows is
    held against, and a large one that nobody cuts.
    """
    larger = ended.operations[0].flops_before / ended.outcome["flops"]
    return ended.cell("original_flops", epochs=ended.epochs_of(ended.outcome["training_flops"] / larger))


def restart_late(ended: Ended) -> Cell:
    """For the epochs that were left at surgery's first operation; what training had cost until then is sunk."""
    return ended.cell(
        "restart_late", architecture=ended.outcome["architecture"], epochs=ended.epochs_left,
        sunk=before_surgery(ended.outcome),
    )  # fmt: skip


def restart_late_flops(ended: Ended) -> Cell:
    """For as many epochs as cost the FLOPs of surgery from its first operation on, rounded up; the same is sunk."""
    before = before_surgery(ended.outcome)
    epochs = ended.epochs_of(ended.outcome["training_flops"] - before["training_flops"])
    architecture = ended.outcome["architecture"]
    return ended.cell("restart_late_flops", architecture=architecture, epochs=epochs, sunk=before)
