"""Double precision, real or complex: what surgery calculates in."""

from __future__ import annotations

import torch
from torch import Tensor


def double(tensor: Tensor) -> Tensor:
    """The tensor in double precision; complex numbers stay complex.

    >>> double(torch.ones(1)).dtype, double(torch.ones(1, dtype=torch.complex64)).dtype
    (torch.float64, torch.complex128)
    """
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def has_double(device: torch.device) -> bool:
    """Whether a device has float64; Apple's GPUs have not."""
    if device.type in ("cpu", "cuda", "meta"):
        return True
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except TypeError:
        return False
    except Exception:  # there is no such device here, which others say better
        return True
    return True


def numeric(tensor: Tensor) -> bool:
    """Whether these are numbers to calculate with, real or complex, and no counts or marks."""
    return tensor.is_floating_point() or tensor.is_complex()


def energy(tensor: Tensor) -> Tensor:
    """The square of each entry's absolute value."""
    return tensor.abs().square() if tensor.is_complex() else tensor.square()
