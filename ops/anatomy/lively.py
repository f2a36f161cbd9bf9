"""A network that shows all of itself: random vectors, inputs that vary, no mask, for the time of a look at it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from network_surgery.ops.anatomy.rebuild import undoing
from network_surgery.ops.maths.double import numeric
from network_surgery.ops.network.masks import lift, masks_of
from network_surgery.ops.network.optimizer_state import exchange

#: How far vectors go from their own values to random ones in a network that is chaotic otherwise.
CALM = 0.05


@contextlib.contextmanager
def lively(
    modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], example: Any, calm: bool = False
) -> Iterator[Any]:
    """Random vectors (norms, biases, layer scales), no weight of zeros and no mask, for a while; yields the input to
    show. ``modules`` and ``tensors`` are the network's, by name; ``calm``: vectors are only moved a little."""
    random = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        dtype = torch.complex64 if like.is_complex() else torch.float32
        return torch.randn(like.shape, generator=random, dtype=dtype).to(like)

    with undoing() as undo:
        masks = masks_of(modules[""])
        vectors: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not isinstance(tensor, nn.Parameter) or not numeric(tensor) or not tensor.numel():
                continue
            if name in masks:
                shown = noise(tensor) / math.sqrt(tensor.numel() / tensor.shape[0])
                undo.append(exchange(tensor, torch.where(masks[name].bool(), tensor.data, shown), tensor.grad))
            if tensor.numel() == max(tensor.shape, default=1):
                vectors[name] = torch.randn(tensor.numel(), generator=random, dtype=torch.float32)
            elif tensor[(0,) * tensor.dim()].item() == 0 and not tensor.any():
                data = noise(tensor) / math.sqrt(tensor.numel() / tensor.shape[0])
                undo.append(exchange(tensor, data, tensor.grad))
        numbers = torch.cat([torch.empty(0, dtype=torch.float32), *vectors.values()])  # one operation, not one for each
        lengths = [len(vector) for vector in vectors.values()]
        shifts, scales = ((0.5 * numbers).split(lengths), (0.7 + 0.6 * numbers.sigmoid()).split(lengths))
        for name, shift, scale in zip(vectors, shifts, scales, strict=True):
            data = (shift if name.endswith("bias") else scale).view(tensors[name].shape).to(tensors[name], copy=True)
            if calm:
                data = torch.lerp(tensors[name].detach().clone(), data, CALM)
            undo.append(exchange(tensors[name], data, tensors[name].grad))
        undo.extend(lift(modules, masks))
        yield _pytree.tree_map(lambda x: vary(x, noise) if isinstance(x, Tensor) else x, example)


def vary(x: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
    """Noise in place of a constant input; zeros and ones in place of whole zeros (token numbers, say)."""
    if x.layout != torch.strided or x.is_meta or x.numel() < 2:
        return x
    for part in (x.flatten()[:16], x):
        if not bool((part == part.flatten()[0]).all()):
            return x
    if numeric(x):
        return noise(x)
    whole = not x.is_complex() and x.dtype != torch.bool and int(x.flatten()[0]) == 0
    return (noise(x.float()) > 0).to(x.dtype) if whole else x
