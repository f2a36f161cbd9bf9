"""A state_dict that carries the architecture, for loops whose checkpoints are a state_dict and nothing else.

After surgery a network's tensors have other shapes than those of the network that its factory makes, so a plain
``load_state_dict`` refuses them. With ``carry_architecture`` the state_dict has one entry more, and a freshly made
network takes the sizes from it before it takes the weights.
"""

from __future__ import annotations

import io
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from network_surgery.ops.errors import SurgeryError, first_line
from network_surgery.ops.network.architecture import CARRIED, adopt, describe, passing
from network_surgery.ops.network.files import fill
from network_surgery.ops.network.wrappers import inner

Model = TypeVar("Model", bound=nn.Module)


def carry_architecture(model: Model) -> Model:
    """Lets the network's ``state_dict`` carry its architecture, and its ``load_state_dict`` take it; returns it.

    To be called on every network that writes or reads such a state_dict, at any time; a second call changes nothing.
    Copies made by ``copy.deepcopy`` (``AveragedModel``) carry it as well. The entry is called ``surgery_architecture``
    and is a tensor of bytes, so any format of weights can hold it; nothing in it is executed.

    >>> from network_surgery.ops import Anatomy, MinWeight, operate
    >>> def build():
    ...     return carry_architecture(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    >>> network, fresh = build(), build()
    >>> plan = operate(Anatomy(network, torch.zeros(2, 4))["0"], MinWeight(0.5))
    >>> fresh.load_state_dict(network.state_dict()), fresh[0]
    (<All keys matched successfully>, Linear(in_features=4, out_features=4, bias=True))
    """
    network = inner(model)
    if _put not in network._state_dict_hooks.values():
        network.register_state_dict_post_hook(_put)
        network.register_load_state_dict_pre_hook(_take)
    return model


def drop_architecture(model: Model) -> Model:
    """Takes back ``carry_architecture``; returns the network."""
    network: Any = inner(model)
    for key in [key for key, hook in network._state_dict_hooks.items() if hook is _put]:
        del network._state_dict_hooks[key]
    for key, hook in [*network._load_state_dict_pre_hooks.items()]:
        if getattr(hook, "hook", hook) is _take:
            del network._load_state_dict_pre_hooks[key]
    return model


def _put(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """Adds the architecture to a state_dict of this module."""
    del module._state_dict_hooks[_key(module)]  # what describes it asks for its state_dict
    try:
        content = {"architecture": describe(module), "buffers": passing(module)}
    finally:
        module.register_state_dict_post_hook(_put)
    file = io.BytesIO()
    torch.save(content, file)
    state_dict[f"{prefix}{CARRIED}"] = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _take(module: nn.Module, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """Gives this module the architecture that a state_dict carries, before it takes the weights."""
    carried = state_dict.pop(f"{prefix}{CARRIED}", None)
    if not isinstance(carried, Tensor):
        return
    try:
        file = io.BytesIO(bytes(carried.cpu().tolist()))
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise SurgeryError(f"the state_dict's {CARRIED} cannot be read: {first_line(error)}") from error
    take(module, content["architecture"], content["buffers"])


def take(model: nn.Module, architecture: Any, buffers: dict[str, Tensor]) -> None:
    """Gives a network the sizes of another one, and the ``buffers`` that no state_dict holds; weights come later.

    Raises:
        SurgeryError: the architecture is of another network.
    """
    adopt(model, architecture)
    fill(model, {**model.state_dict(), **buffers}, architecture)


def _key(module: nn.Module) -> int:
    return next(key for key, hook in module._state_dict_hooks.items() if hook is _put)
