"""The energy of a training run, where NVML reports it: what the GPU took while epochs and their operations ran.

NVML counts the joules of a whole device, idle power and other processes' work included, so they are a training run's
own only where it has the device for itself. Where trials share a GPU (``gpus_per_trial`` below 1) they would be an
upper bound that says little, and none are taken; nor on a CPU, without the package ``nvidia-ml-py``, on a part of a GPU
(MIG) or on one older than Volta, which has no such counter. Written from NVML's documentation and tested with a
stand-in for it; not seen on hardware yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from network_surgery.study.training.trainer import Callback, Trainer

#: Joules that a device has taken since some moment in the past.
Counter = Callable[[], float]


class Energy(Callback):
    """Adds ``joules`` to every epoch's record: from before its first step, and what others do before it, to the end of
    its last; evaluation is not in it. Without a counter it does nothing. It must be the first of the callbacks.
    """

    def __init__(self, counter: Counter | None) -> None:
        self._counter = counter
        self._start: float | None = 0.0  # None: of an epoch that began where nobody counted
        self._joules: float | None = 0.0

    def before_step(self, trainer: Trainer) -> None:
        if self._counter is not None and trainer.iteration == trainer.epoch * trainer.per_epoch:
            self._start = self._counter()

    def after_step(self, trainer: Trainer, loss: Tensor) -> None:
        if self._counter is not None and trainer.iteration == (trainer.epoch + 1) * trainer.per_epoch:
            self._joules = None if self._start is None else self._counter() - self._start

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        if self._counter is not None:
            record["joules"] = self._joules

    def state(self) -> dict[str, Any]:
        """The joules of an epoch in progress; between epochs they mean nothing."""
        if self._counter is None or self._start is None:
            return {}
        return {"joules": self._counter() - self._start}

    def restore(self, state: dict[str, Any]) -> None:
        self._start = None
        if self._counter is not None and "joules" in state:
            self._start = self._counter() - state["joules"]


def counter_of(device: torch.device) -> Counter | None:
    """The counter of this device, found by its UUID: its number is another one where CUDA_VISIBLE_DEVICES hides some.

    None where there is none.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None

    def joules() -> float:
        torch.cuda.synchronize(device)
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000  # of millijoules

    return joules
