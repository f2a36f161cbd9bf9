"""Modules write their sizes down beside their weights; after surgery those numbers follow the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ops.anatomy.trace import tensors_of
from ops.errors import SurgeryError
from ops.optimizer_state import exchange


def sizes(module: nn.Module) -> Mapping[str, object]:
    """The size attributes that this module's tensors imply, by attribute name."""
    if isinstance(module, nn.Linear):
        return {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
    if isinstance(module, _ConvNd):
        rows, columns = module.weight.shape[:2]
        if module.transposed:
            return {"in_channels": rows, "out_channels": columns * module.groups}
        return {"in_channels": columns * module.groups, "out_channels": rows}
    if isinstance(module, _NormBase):
        known = module.weight if module.weight is not None else module.running_mean
        return {} if known is None else {"num_features": len(known)}
    if isinstance(module, nn.LayerNorm) and module.weight is not None:
        return {"normalized_shape": tuple(module.weight.shape)}
    if isinstance(module, nn.GroupNorm) and module.weight is not None:
        return {"num_channels": len(module.weight)}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}
    if isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        rows, columns = module.weight_ih_l0.shape
        found = {"input_size": columns, "hidden_size": rows // gates}
        return found | ({"proj_size": module.weight_hr_l0.shape[0]} if module.proj_size else {})
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": len(module.weight)}
    return {}


def fit(modules: Iterable[nn.Module]) -> list[Callable[[], None]]:
    """Sets these modules' size attributes from their tensors; returns what undoes it."""
    undo: list[Callable[[], None]] = []
    for module in modules:
        for name, value in sizes(module).items():
            old = getattr(module, name)
            if old != value:
                setattr(module, name, value)
                undo.append(partial(setattr, module, name, old))
    return undo


def shapes(model: nn.Module) -> dict[str, list[int]]:
    """A network's architecture as plain data: the shape of every parameter and buffer."""
    return {name: list(tensor.shape) for name, tensor in tensors_of(model)}


def resize(model: nn.Module, wanted: Mapping[str, Sequence[int]]) -> None:
    """Gives a freshly made network the shapes that surgery gave another one; changed tensors become zeros.

    Raises:
        SurgeryError: a tensor is missing on one side or has another number of axes.
    """
    tensors = dict(tensors_of(model))
    if set(tensors) != set(wanted):
        odd = sorted(set(tensors) ^ set(wanted))
        raise SurgeryError(f"the architecture is of another network: {', '.join(odd[:3])} is on one side only")
    for name, shape in wanted.items():
        tensor = tensors[name]
        if tensor.dim() != len(shape):
            raise SurgeryError(f"{name} has the shape {tuple(tensor.shape)}, the architecture says {tuple(shape)}")
        if list(tensor.shape) != list(shape):
            exchange(tensor, torch.zeros(tuple(shape), dtype=tensor.dtype, device=tensor.device))
    fit(model.modules())
