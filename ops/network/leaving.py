"""Leaving: a network that needs nothing of this package any more.

Most of what surgery does to a network is in its tensors and in the sizes that torch's modules keep, so the network is
one of plain modules. Three things are not: masks (and hashes) on weights, freed attention, and a state_dict that
carries the architecture.
``without_surgery`` makes a copy without them. ``torch.export``, ONNX and ``torch.jit.trace`` take the network as it is.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

from torch import nn
from torch.nn.modules.conv import _ConvNd

from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.network.architecture import sizes
from network_surgery.ops.network.attention import FreeAttention
from network_surgery.ops.network.carried import drop_architecture
from network_surgery.ops.network.masks import without_masks
from network_surgery.ops.network.wrappers import inner

Model = TypeVar("Model", bound=nn.Module)


def constructor_arguments(model: nn.Module, before: nn.Module | None = None) -> dict[str, dict[str, Any]]:
    """Module → the arguments of its class that make it in its present size, for torch's own classes.

    ``before``: the network as the factory makes it; what is as it was there is left out. What a factory of one's own
    has to make of the numbers is not known here.

    >>> import torch
    >>> from torch import nn
    >>> from network_surgery.ops import Anatomy, MinWeight, operate
    >>> def build(hidden=8):
    ...     return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))
    >>> network = build()
    >>> plan = operate(Anatomy(network, torch.zeros(2, 4))["0"], MinWeight(0.5))
    >>> constructor_arguments(network, build())
    {'0': {'out_features': 4}, '2': {'in_features': 4}}
    >>> build(hidden=4).load_state_dict(network.state_dict())
    <All keys matched successfully>
    """
    found = {name: _arguments(module) for name, module in inner(model).named_modules()}
    if before is not None:
        old = {name: _arguments(module) for name, module in inner(before).named_modules()}
        found = {
            name: {key: value for key, value in numbers.items() if old.get(name, {}).get(key) != value}
            for name, numbers in found.items()
        }
    return {name: numbers for name, numbers in found.items() if numbers}


def without_surgery(model: Model) -> Model:
    """A copy of a network that computes the same with classes of torch and of one's own alone.

    Its masked weights are plain ones, zero where the mask was, which further training would change; so are hashed ones,
    with an entry for each position. Freed attention
    is ``nn.MultiheadAttention`` again. The copy can be pickled, scripted and loaded where this package is not
    installed, and its ``state_dict`` fits a factory that is given the sizes (``constructor_arguments``).

    Raises:
        SurgeryError: an attention has other heads than torch's class can have. ``torch.export`` and ONNX take it.
    """
    copied = drop_architecture(without_masks(inner(model)))
    for name, module in copied.named_modules():
        if isinstance(module, FreeAttention):
            _bind(name, module)
    return cast(Model, copied)


def _bind(name: str, module: FreeAttention) -> None:
    """Makes a freed attention one of torch's again."""
    wide, keys = module.embed_dim, module.widths
    scaling = (wide / module.num_heads) ** -0.5
    if keys != (wide, wide) or wide % module.num_heads or abs(module.scaling - scaling) > 1e-9 * scaling:
        raise SurgeryError(
            f"{name or 'the attention'} has {module.num_heads} heads with {keys[0]} keys and {keys[1]} values on "
            f"inputs of width {wide}; nn.MultiheadAttention only has keys and values as wide as its input: "
            "leave by torch.export or ONNX, or keep the heads"
        )
    packed = module.in_proj_weight is not None
    module.head_dim = wide // module.num_heads
    module.__class__ = _original_class(type(module))  # type: ignore[assignment]
    del module.scaling
    module._qkv_same_embed_dim = packed


def _original_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that a freed one was made of."""
    return nn.MultiheadAttention if kind is FreeAttention else cast(type[nn.Module], kind.__bases__[1])


def _arguments(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, FreeAttention):
        return {}
    found = dict(sizes(module))
    if isinstance(module, _ConvNd):
        found["groups"] = module.groups
    if isinstance(module, nn.GroupNorm):
        found["num_groups"] = module.num_groups
    return found
