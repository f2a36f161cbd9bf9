"""Records of operations and spikes that never happened, as plain data; and runs that were interrupted and went on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.study.config import Settings
from network_surgery.study.task import Task
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import ConditionCheck, OperationRecord, Spike
from network_surgery.study.training.run import run


def operated(**changes: Any) -> dict[str, Any]:
    """An operation that takes 4 of 8 units at the end of the first epoch and doubles the loss."""
    record: dict[str, Any] = {
        "when": "1ep", "epoch": 1.0, "iteration": 10, "layer": "fc1", "operation": "MinWeight(keep=0.5)",
        "units_before": 8, "units_after": 4, "parameters_before": 200, "parameters_after": 100, "flops_before": 20,
        "flops_after": 10, "predicted_error": None, "loss_before": 0.5, "loss_after": 1.0, "seconds": 0.1,
        "epoch_seconds": 1.0,
    }  # fmt: skip
    return OperationRecord(**record | changes).to_data()


def looked_at(**changes: Any) -> dict[str, Any]:
    """A look at a condition that was not met."""
    record: dict[str, Any] = {"step": 0, "iteration": 10, "epoch": 1.0, "layer": "fc1", "units": 8, "gain": 0.25}
    return ConditionCheck(**record | {"operated": False, "seconds": 0.1} | changes).to_data()


def spiked(factor: float, epoch: float = 1.0) -> dict[str, Any]:
    """The spike of a moment at which the loss became ``factor`` times what it was."""
    return Spike(epoch, 1.0, factor, 0.1).to_data()


def without_times(value: Any) -> Any:
    """What must repeat exactly: everything but seconds."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "seconds" not in k and k != "interruptibility"}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def resumed(cell: Cell, task: Task, settings: Settings, last: int, saved: Path) -> dict[str, Any]:
    """The outcome of a run that was interrupted when its epoch ``last`` had ended, and went on from its checkpoint."""

    def die(epoch: dict[str, Any]) -> None:
        if epoch["epoch"] == last:
            raise KeyboardInterrupt

    device = torch.device("cpu")
    with pytest.raises(KeyboardInterrupt):
        run(cell, task, settings, device, tell=die, saved=saved)
    return run(cell, task, settings, device, saved=saved)
