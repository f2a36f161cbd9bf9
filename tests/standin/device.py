"""A torch device that stands in for a GPU where there is none.

Its memory is the host's and its kernels and random numbers are the CPU's, so results equal the CPU's bit for bit. But
an operator that is given tensors of both devices fails as on CUDA, and what costs on a GPU is counted (``counts``). It
can be without float64, as Apple's GPUs are, and can run out of memory. ``device.cpp`` is compiled once and kept in the
temporary folder.

It has no autocast and no fused LSTM cell, and its streams do nothing: a race between them would not be seen.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils import cpp_extension

#: The environment variable of a process that runs the tests on this device, and nothing else.
ALONE = "NETWORK_SURGERY_STANDIN"
SOURCE = Path(__file__).with_name("device.cpp")


def missing() -> str | None:
    """Why there is no such device here; None where it can be had."""
    if torch.cuda.is_available():
        return "a real GPU is here, which torch would no longer see: python -m tests.gpu"
    if shutil.which(os.environ.get("CXX", "c++")) is None or shutil.which("ninja") is None:
        return "the stand-in device needs a C++ compiler and ninja"
    return None


@functools.cache
def device() -> torch.device:
    """The device, built and registered when it is first asked for.

    Raises:
        RuntimeError: it cannot be compiled.
    """
    digest = hashlib.blake2b(SOURCE.read_bytes() + torch.__version__.encode(), digest_size=6).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"network-surgery-standin-{os.getuid()}-{digest}"
    folder.mkdir(exist_ok=True)
    cpp_extension.load(
        f"standin_{digest}", [str(SOURCE)], extra_cflags=["-O1", "-w"], build_directory=str(folder),
        is_python_module=False,
    )  # fmt: skip
    torch.utils.rename_privateuse1_backend("standin")
    torch._register_device_module("standin", _module())
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    return torch.device("standin", 0)


#: Whether torch says that there is such a device, which it does in ``present`` alone.
_present = False


def _module() -> types.ModuleType:
    """What torch asks of ``torch.standin``. Its generator is the host's."""
    module = types.ModuleType("torch.standin")
    functions = {
        "is_available": lambda: _present,
        "device_count": lambda: int(_present),
        "current_device": lambda: 0,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "_lazy_init": lambda: None,
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),
        "manual_seed_all": lambda seed: None,  # torch.manual_seed has seeded the host's
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "synchronize": lambda device=None: None,
        "device": lambda index: contextlib.nullcontext(),
    }
    vars(module).update(functions)
    return module


@contextlib.contextmanager
def present() -> Iterator[torch.device]:
    """torch says in this block that there is such a device, and networks are moved to it with their ties."""
    global _present
    found = device()
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    _present = True
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield found
    finally:
        _present = False
        torch.__future__.set_swap_module_params_on_conversion(swaps)
        torch.ops.standin.fail_at(-1)
        torch.ops.standin.has_double(True)


def counts() -> dict[str, int]:
    """Since ``reset``: ``kernels``, ``syncs`` (the host waits for the device), copies ``to_device`` and ``to_host``,
    ``bytes`` that are held, ``peak_bytes``, ``allocations``.
    """
    return dict(torch.ops.standin.counts())


def reset() -> None:
    """Counts begin anew, the peak at what is held."""
    torch.ops.standin.reset()


@contextlib.contextmanager
def without_double() -> Iterator[None]:
    """The device has no float64 in this block."""
    torch.ops.standin.has_double(False)
    try:
        yield
    finally:
        torch.ops.standin.has_double(True)


@contextlib.contextmanager
def failing(allocation: int) -> Iterator[None]:
    """The memory of the device does not suffice for the allocation of this number, counted from 1."""
    torch.ops.standin.fail_at(allocation)
    try:
        yield
    finally:
        torch.ops.standin.fail_at(-1)
