"""Masks on weights: entries of a parameter that are zero for good, whatever the optimizer does.

A mask is one of the ways in which a weight is expressed (``ops.network.expressed``): the module computes its weight as
the parameter times the mask. The parameter's gradient is zero where the mask is. What is hidden is zero in the
parameter, too. The mask follows the parameter's units like a part of it.
"""

from __future__ import annotations

import base64
import copy
import zlib
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.network.expressed import (
    Expressed,
    Modules,
    Undo,
    at,
    express,
    expression_of,
    expressions_of,
    find_stored,
    take_off,
)
from network_surgery.ops.network.layout import laid_out
from network_surgery.ops.network.optimizer_state import exchange
from network_surgery.ops.network.wrappers import inner

Model = TypeVar("Model", bound=nn.Module)


class Mask(Expressed):
    """Multiplies a weight by ``mask``, a buffer of its shape with ones where it lives and zeros where it does not.

    The buffer is of whole numbers (``uint8``): small, and running averages of a network can calculate with it.
    """

    kind = "masked"
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.uint8))

    def weight(self, stored: Tensor) -> Tensor:
        return stored * self.mask


def mask_of(module: nn.Module, attribute: str) -> Tensor | None:
    """The mask on a parameter, None where there is none."""
    expression = expression_of(module, attribute)
    return expression.mask if isinstance(expression, Mask) else None


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameter → its mask, for every one that is masked."""
    return {name: each.mask for name, each in expressions_of(model).items() if isinstance(each, Mask)}


def count_hidden(masks: Iterable[Tensor]) -> int:
    """How many entries these masks hide."""
    return sum(mask.numel() - int(mask.count_nonzero()) for mask in masks)


def parameters_of(model: nn.Module) -> int:
    """How many parameters a network has; those that a mask hides do not count."""
    return sum(parameter.numel() for parameter in model.parameters()) - count_hidden(masks_of(model).values())


def put(modules: Modules, name: str, mask: Tensor) -> Undo:
    """Masks a parameter in every module that holds it, or gives it this mask in place of its own.

    ``modules``: the network's, by name. Its values are left as they are. Returns what undoes it.
    """
    module, attribute = at(modules, name)
    known = mask_of(module, attribute)
    if known is not None:
        return [exchange(known, mask.to(known))]
    weight = None if isinstance(module, torch.jit.ScriptModule) else module._parameters.get(attribute)
    return express(modules, name, Mask(mask if weight is None else laid_out(mask.to(weight.device), weight)))


def without_masks(model: Model) -> Model:
    """A copy of a network whose masked weights are plain parameters, zero where the mask is, and hashed ones, too.

    It computes the same, and is for what does not know parametrizations: ``torch.jit.script``, pickling, quantization.
    In training its zeros do not stay zero.

    >>> from network_surgery.ops import Anatomy, PruneWeights, operate
    >>> network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    >>> plan = operate(Anatomy(network, torch.zeros(2, 4))["*"], PruneWeights(0.5))
    >>> type(torch.jit.script(without_masks(network))).__name__
    'RecursiveScriptModule'
    """
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"masks are those of a torch.nn.Module, not of {model!r:.60}")
    copied = copy.deepcopy(model)
    modules = dict(copied.named_modules())
    for name, expression in expressions_of(copied).items():
        kept = find_stored(*at(modules, name))
        with torch.no_grad():
            exchange(kept, expression.weight(kept.data))
        take_off(modules, name)
    return copied


def take_over_masks(model: Model) -> Model:
    """Makes the masks of ``torch.nn.utils.prune`` masks of this package, which follow the units; returns the model.

    Parameters stay the objects that they are, so optimizers hold on to them. What is hidden becomes zero in the
    parameter, too.

    >>> from torch.nn.utils import prune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> prune.random_unstructured(net[0], "weight", 0.5)
    Linear(in_features=4, out_features=8, bias=True)
    >>> count_hidden(masks_of(take_over_masks(net)).values())
    16
    """
    modules = dict(inner(model).named_modules())
    for path, module in modules.items():
        hooks = module._forward_pre_hooks
        for key, hook in [(k, h) for k, h in hooks.items() if isinstance(h, BasePruningMethod)]:
            name = hook._tensor_name
            del hooks[key]
            module.__dict__.pop(name, None)
            parameter, mask = module._parameters[f"{name}_orig"], module._buffers[f"{name}_mask"]
            assert parameter is not None and mask is not None
            delattr(module, f"{name}_mask")
            module._parameters = {name if n == f"{name}_orig" else n: p for n, p in module._parameters.items()}
            with torch.no_grad():
                parameter.mul_(mask)
            put(modules, f"{path}.{name}" if path else name, mask)
    return model


def lift(modules: Modules, names: Iterable[str]) -> Undo:
    """Lets masks hide nothing, at whatever size the parameter takes meanwhile; returns what undoes it."""
    found = (mask_of(*at(modules, name)) for name in names)
    return [exchange(mask, mask.new_ones(())) for mask in found if mask is not None]


def pack(mask: Tensor) -> str:
    """A mask as text (its bits, compressed); ``unpack`` is the inverse."""
    bits = torch.nn.functional.pad(mask.detach().cpu().flatten().bool(), (0, -mask.numel() % 8)).view(-1, 8)
    numbers = (bits * 2 ** torch.arange(8)).sum(dim=1).to(torch.uint8)
    return base64.b64encode(zlib.compress(bytes(numbers.tolist()), 9)).decode()


def unpack(text: str, shape: torch.Size) -> Tensor:
    """The mask ``[shape]`` of a text that ``pack`` made. Raises SurgeryError for any other text."""
    try:
        numbers = torch.tensor(list(zlib.decompress(base64.b64decode(text, validate=True))), dtype=torch.int64)
        bits = (numbers.unsqueeze(1) >> torch.arange(8) & 1).flatten()
        if len(bits) != shape.numel() + -shape.numel() % 8:
            raise ValueError
    except (ValueError, zlib.error) as error:
        raise SurgeryError(f"a mask of the architecture is not one of the shape {tuple(shape)}") from error
    return bits[: shape.numel()].view(shape).to(torch.uint8)
