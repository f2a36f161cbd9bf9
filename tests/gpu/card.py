"""The device that is looked at, the time that is left, and what every step needs of them."""

from __future__ import annotations

import contextlib
import gc
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

Row = dict[str, Any]


class Late(BaseException):
    """The time of a step is over; no ``except Exception`` on the way may take it for something else."""


@dataclass
class Card:
    """``small``: sizes at which a CPU tries the program in minutes. ``data``: images, for steps that need real ones."""

    device: torch.device
    out: Path
    commit: str = ""
    small: bool = False
    data: str = ""
    steps: dict[str, Any] = field(default_factory=dict)
    epoch_seconds: float | None = None  # of VGG16, by the trainer
    _ends: list[float] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, function: Callable[[], Any]) -> float:
        """Seconds until the device has done what the function asks for."""
        self.sync()
        start = time.perf_counter()
        function()
        self.sync()
        return time.perf_counter() - start

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Raises Late after these seconds, or when the time of an outer block is over."""
        self._ends.append(min([time.monotonic() + seconds, *self._ends]))
        self._alarm()
        try:
            yield
        finally:
            self._ends.pop()
            self._alarm()

    @property
    def late(self) -> bool:
        """Whether the time of the innermost block is over."""
        return bool(self._ends) and time.monotonic() >= self._ends[-1]

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self._ends[-1] - time.monotonic() if self._ends else float("inf")

    def _alarm(self) -> None:
        def late(number: int, frame: Any) -> None:
            raise Late

        signal.signal(signal.SIGALRM, late)
        left = max(0.01, self._ends[-1] - time.monotonic()) if self._ends else 0
        signal.setitimer(signal.ITIMER_REAL, left)

    def reset(self) -> None:
        """Precision as torch has it at the start, and no memory held."""
        precision(matmul=False, convolutions=True)
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def precision(matmul: bool, convolutions: bool) -> None:
    """Whether products and convolutions of float32 may be calculated in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = convolutions


def moved(tree: Any, device: torch.device) -> Any:
    return _pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), tree)


def failure(error: BaseException) -> str:
    """An error in a line, with the line of the project that it comes from."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    frames = [f for f in traceback.extract_tb(cause.__traceback__) if "/ops/" in f.filename or "/study/" in f.filename]
    where = f" @ {'/'.join(frames[-1].filename.split('/')[-3:])}:{frames[-1].lineno}" if frames else ""
    root = "" if cause is error else f" because {type(cause).__name__}: {str(cause)[:160]}"
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}{root}{where}"
