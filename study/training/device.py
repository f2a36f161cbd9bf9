"""Devices: which one trains, how it is called, and a clock that waits for it."""

from __future__ import annotations

import time

import torch

from network_surgery.ops.maths.double import has_double
from network_surgery.study.errors import StudyError


def clock(device: torch.device) -> float:
    """Seconds, after the device has done what it was asked to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def pick_device(name: str, granted: bool = False) -> torch.device:
    """The device of this type (``cpu``, ``cuda``, ``mps``, ``xpu``, …); ``auto``: a GPU if there is one that has
    float64, in which operations calculate. ``granted``: Ray has set a GPU aside for this run.

    Raises:
        StudyError: torch knows no such type, or sees no such device here, or it has no float64.
    """
    check_device(name)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = "cpu" if found is None else found.type
    if granted and found is None and name == "auto":
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise StudyError(
            f"Ray has a GPU here, but torch {torch.__version__} ({built}) cannot use it: nvidia-smi says which CUDA "
            "its driver can run; install a torch for that, or set device: cpu"
        )
    if found is not None and name in ("auto", here) and not has_double(found):
        if name == "auto":
            return torch.device("cpu")
        raise StudyError(f"device is {name!r}, which has no float64, and operations calculate in it; use 'cpu'")
    if name not in ("auto", "cpu", here):
        seen = "no GPU" if found is None else f"only {here}"
        raise StudyError(f"device is {name!r}, but torch sees {seen} here; use 'auto' or 'cpu'")
    return torch.device(here if name == "auto" else name)


def check_device(name: str) -> None:
    """Raises StudyError where this is neither ``auto`` nor a device type of torch, wherever there is such a device."""
    try:
        torch.device("cpu" if name == "auto" else name)
    except RuntimeError:
        raise StudyError(
            f"device is {name!r}, which is no device type of torch; use 'auto', 'cpu', 'cuda', 'mps' or 'xpu'"
        ) from None


def device_name(device: torch.device) -> str:
    """What the maker calls a device, where torch knows that; else its type."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return device.type if name is None else str(name(device))
