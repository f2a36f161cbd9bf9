"""How a tensor lies in memory, channels last or in the order of its axes; what is rebuilt stays as it lay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

#: The format by the number of axes.
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(tensor: Tensor) -> bool | None:
    """Whether the channels come last in memory; None where both orders are the same (one channel, a 1 × 1 kernel).

    >>> weight = torch.zeros(8, 4, 3, 3)
    >>> channels_last(weight), channels_last(weight.to(memory_format=torch.channels_last)), channels_last(weight[:, :1])
    (False, True, False)
    >>> channels_last(torch.zeros(8, 4, 1, 1)) is None
    True
    """
    if tensor.dim() not in LAST or tensor.layout is not torch.strided:
        return False
    last = tensor.is_contiguous(memory_format=LAST[tensor.dim()])
    if not (last and tensor.is_contiguous()):
        return last
    as_last = _strides(tensor, last=True)
    return True if list(tensor.stride()) == as_last != _strides(tensor, last=False) else None


def any_last(modules: Iterable[nn.Module]) -> bool:
    """Whether channels come last in a weight of these modules."""
    held = (tensor for module in modules for tensor in module._parameters.values())
    return any(tensor is not None and channels_last(tensor) for tensor in held)


def laid_out(new: Tensor, old: Tensor, last: bool | None = None) -> Tensor:
    """A tensor in the memory order of another with as many axes; ``last``: where that one's is both orders at once."""
    if new is old or new.dim() != old.dim() or new.dim() not in LAST or {new.layout, old.layout} != {torch.strided}:
        return new
    channels = channels_last(old)
    if channels is None:
        channels = last
    if channels is None or (not channels and not old.is_contiguous()):
        return new
    if not channels:
        return new.contiguous()
    strides = _strides(new, last=True)  # set where both orders are the same, too, to tell which it was
    if list(new.stride()) == strides:
        return new
    return torch.empty_strided(new.shape, strides, dtype=new.dtype, device=new.device).copy_(new)


def _strides(tensor: Tensor, last: bool) -> list[int]:
    """The strides that a tensor has in one of the two orders."""
    backwards = range(tensor.dim() - 1, 1, -1)
    strides, step = [0] * tensor.dim(), 1
    for axis in (1, *backwards, 0) if last else (*backwards, 1, 0):
        strides[axis], step = step, step * max(tensor.shape[axis], 1)
    return strides
