"""How the steps of a training run are computed: in which precision, memory format, and compiled or not.

Training steps and evaluation alone are computed so. Weights, optimizers, operations, signals and repairs stay in
float32, and losses and metrics are taken of float32 outputs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.task.task import call

Precision = Literal["float32", "tf32", "bf16", "fp16"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """``precision``: of products and convolutions (torch.autocast where it is ``bf16`` or ``fp16``; ``float32`` leaves
    torch's switches as they are, which allow TF32 in convolutions). ``channels_last``: images and convolutions lie in
    memory with their channels last. ``compile``: training steps run through torch.compile. ``graph``: those that can
    be are replayed as a CUDA graph (``study.training.graph``). ``deterministic``: see ``repeatable``. Until a trainer
    has measured it (``study.training.pace``), ``"auto"`` leaves the memory format alone.
    """

    precision: Precision = "float32"
    channels_last: bool | Literal["auto"] = False
    compile: bool = False
    graph: bool = False
    deterministic: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Compute:
        """What the settings ask for."""
        return cls(
            settings.precision, settings.channels_last, settings.compile, settings.cuda_graph, settings.deterministic
        )

    def check(self, device: torch.device) -> None:
        """Raises StudyError where the device cannot compute so."""
        if device.type == "cpu" and self.precision in ("tf32", "fp16"):
            raise StudyError(f"precision is {self.precision!r}, which needs a GPU; on a CPU give 'float32' or 'bf16'")
        if device.type != "cuda" and self.precision == "tf32":
            raise StudyError(f"precision is 'tf32', which CUDA alone has, not {device.type}; give 'float32' or 'bf16'")
        if self.precision in HALF and not torch.amp.is_autocast_available(device.type):
            raise StudyError(f"precision is {self.precision!r}, but torch has no autocast on {device.type}")
        if device.type == "cuda" and self.precision == "bf16" and not torch.cuda.is_bf16_supported(False):
            name = torch.cuda.get_device_name(device)
            raise StudyError(f"precision is 'bf16', which {name} has not; give 'fp16'")

    def place(self, model: nn.Module, device: torch.device) -> None:
        """Moves a network to a device and gives it its memory format."""
        model.to(device)
        if self.channels_last is True:
            model.to(memory_format=torch.channels_last)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """What scales losses of fp16; with every other precision it passes all on as it is."""
        return torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")

    @contextlib.contextmanager
    def _tf32(self) -> Iterator[None]:
        switches: tuple[Any, Any] = torch.backends.cuda.matmul, torch.backends.cudnn
        before = [switch.allow_tf32 for switch in switches]
        for switch in switches:
            switch.allow_tf32 = True
        try:
            yield
        finally:
            for switch, allowed in zip(switches, before, strict=True):
                switch.allow_tf32 = allowed

    @contextlib.contextmanager
    def repeatable(self, device: torch.device) -> Iterator[None]:
        """If ``deterministic``, only kernels that give the same bits each time run in this block; an operator that has
        none is an error. Nothing changes on a CPU, which repeats by itself (with the same number of threads).
        """
        if not self.deterministic or device.type == "cpu":
            yield
            return
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0])
            torch.backends.cudnn.benchmark = before[1]

    def switched(self) -> AbstractContextManager[None]:
        """Products in this block, backward ones too, are in TF32 if that is the precision; torch's switches return."""
        return self._tf32() if self.precision == "tf32" else nullcontext()

    def answer(self, model: nn.Module, inputs: Any, device: torch.device) -> Any:
        """What the network returns for the inputs (see ``call``); half precision in it becomes float32."""
        if self.channels_last is True:
            inputs = _pytree.tree_map_only(Tensor, _channels_last, inputs)
        if self.precision not in HALF:
            with self.switched():
                return call(model, inputs)
        with torch.autocast(device.type, HALF[self.precision]):
            outputs = call(model, inputs)
        return _pytree.tree_map_only(Tensor, _single, outputs)


#: As torch computes by itself.
PLAIN = Compute()


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF.values() else tensor
