"""Masks on weights: entries of a parameter that are zero for good, whatever the optimizer does.

A mask is a parametrization of torch's (``torch.nn.utils.parametrize``): the module computes its weight as the parameter
times the mask. The parameter itself stays the object that it was, so optimizers, hooks and ties hold on to it, and its
gradient is zero where the mask is. What is hidden is zero in the parameter, too.

For surgery a masked parameter goes on under its own name (``conv1.weight``, as ``tensors_of`` has it), though torch now
keeps it as ``conv1.parametrizations.weight.original``; its mask follows its units like a part of it.
"""

from __future__ import annotations

import base64
import copy
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod

from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.network.layout import laid_out
from network_surgery.ops.network.optimizer_state import exchange

Undo = list[Callable[[], object]]
Modules = Mapping[str, nn.Module]
Model = TypeVar("Model", bound=nn.Module)


class Mask(nn.Module):
    """Multiplies a weight by ``mask``, a buffer of its shape with ones where it lives and zeros where it does not.

    The buffer is of whole numbers (``uint8``): small, and running averages of a network can calculate with it.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.uint8))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, under its first name; masked ones under their own, masks left out."""
    plain: dict[str, str] = {}
    modules = list(model.named_modules())
    for path, module in modules:
        if _masks(module):
            plain |= {f"{path}.original": plain_name(f"{path}.original"), f"{path}.0.mask": ""}
    for kind in ("_parameters", "_buffers"):  # as named_parameters and named_buffers do, which walk the modules anew
        seen: set[int] = set()
        for path, module in modules:
            for attribute, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    name = f"{path}.{attribute}" if path else attribute
                    if plain.get(name, name):
                        yield plain.get(name, name), tensor


def torch_names(model: nn.Module) -> dict[str, str]:
    """Each tensor's name as ``tensors_of`` has it → the one that torch calls it by (``functional_call``)."""
    theirs = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    return {name: theirs[id(tensor)] for name, tensor in tensors_of(model)}


def met(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters as the network meets them: what comes of the mask where there is one, under the parameter's name.

    Inside of ``parametrize.cached()`` these are the very tensors that a forward pass works with.
    """
    names = {id(parameter): name for name, parameter in tensors_of(model)}
    for path, module in model.named_modules():
        if _masks(module):
            holding = model.get_submodule(holder(path, module))
            yield names[id(module.original)], getattr(holding, path.rpartition(".")[2])
    yield from model.named_parameters()


def plain_name(name: str) -> str:
    """The name that a masked parameter had before.

    >>> plain_name("conv1.parametrizations.weight.original"), plain_name("parametrizations.weight.original")
    ('conv1.weight', 'weight')
    """
    path, _, attribute = f".{name.removesuffix('.original')}".rpartition(".parametrizations.")
    return f"{path}.{attribute}".removeprefix(".")


def holder(path: str, module: nn.Module) -> str:
    """The name of the module whose parameters a module holds: that of the masked one, where it does so for a mask."""
    return plain_name(path).rpartition(".")[0] if _masks(module) else path


def raw(module: nn.Module, attribute: str) -> Tensor:
    """A parameter or buffer of a module, the parameter itself where it is masked."""
    masked = _list(module, attribute)
    found: Tensor = getattr(module, attribute) if masked is None else masked.original
    return found


def mask_of(module: nn.Module, attribute: str) -> Tensor | None:
    """The mask on a parameter, None where there is none."""
    masked = _list(module, attribute)
    return None if masked is None else cast(Mask, masked[0]).mask


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameter → its mask, for every one that is masked."""
    modules = dict(model.named_modules())
    if not any(map(_masks, modules.values())):
        return {}
    found = {name: mask_of(*_at(modules, name)) for name, _ in tensors_of(model)}
    return {name: mask for name, mask in found.items() if mask is not None}


def hidden(masks: Iterable[Tensor]) -> int:
    """How many entries these masks hide."""
    return sum(mask.numel() - int(mask.count_nonzero()) for mask in masks)


def parameters_of(model: nn.Module) -> int:
    """How many parameters a network has; those that a mask hides do not count."""
    return sum(parameter.numel() for parameter in model.parameters()) - hidden(masks_of(model).values())


def put(modules: Modules, name: str, mask: Tensor) -> Undo:
    """Masks a parameter in every module that holds it, or gives it this mask in place of its own.

    ``modules``: the network's, by name. Its values are left as they are. Returns what undoes it.
    """
    module, attribute = _at(modules, name)
    known = mask_of(module, attribute)
    if known is not None:
        return [exchange(known, mask.to(known))]
    if isinstance(module, torch.jit.ScriptModule):
        raise SurgeryError(f"{name} cannot be masked: it is in a scripted part; operate first, script afterwards")
    weight = module._parameters.get(attribute)
    if weight is None:
        raise SurgeryError(f"{name} cannot be masked: it is no parameter, or it is parametrized by something else")
    undo: Undo = []
    new = Mask(laid_out(mask.to(weight.device), weight))
    for each in modules.values():
        for at in [at for at, parameter in each._parameters.items() if parameter is weight]:
            undo.append(partial(_take_off, each, at, list(each._parameters)))
            parametrize.register_parametrization(each, at, new, unsafe=True)
            _prepare(each)
    return undo


def without_masks(model: Model) -> Model:
    """A copy of a network whose masked weights are plain parameters, zero where the mask is.

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
    for name, mask in masks_of(copied).items():
        raw(*_at(modules, name)).data.mul_(mask)
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
    >>> hidden(masks_of(take_over_masks(net)).values())
    16
    """
    modules = dict(model.named_modules())
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


def take_off(modules: Modules, name: str) -> None:
    """Removes the mask of a parameter from every module that holds it."""
    weight = raw(*_at(modules, name))
    for module in modules.values():
        lists = getattr(module, "parametrizations", {})
        for at in [at for at, each in lists.items() if _masks(each) and each.original is weight]:
            parametrize.remove_parametrizations(module, at, leave_parametrized=False)


def lift(modules: Modules, names: Iterable[str]) -> Undo:
    """Lets masks hide nothing, at whatever size the parameter takes meanwhile; returns what undoes it."""
    found = (mask_of(*_at(modules, name)) for name in names)
    return [exchange(mask, mask.new_ones(())) for mask in found if mask is not None]


def packed(mask: Tensor) -> str:
    """A mask as text (its bits, compressed); ``unpacked`` is the inverse."""
    bits = torch.nn.functional.pad(mask.detach().cpu().flatten().bool(), (0, -mask.numel() % 8)).view(-1, 8)
    numbers = (bits * 2 ** torch.arange(8)).sum(dim=1).to(torch.uint8)
    return base64.b64encode(zlib.compress(bytes(numbers.tolist()), 9)).decode()


def unpacked(text: str, shape: torch.Size) -> Tensor:
    """The mask ``[shape]`` of a text that ``packed`` made. Raises SurgeryError for any other text."""
    try:
        numbers = torch.tensor(list(zlib.decompress(base64.b64decode(text, validate=True))), dtype=torch.int64)
        bits = (numbers.unsqueeze(1) >> torch.arange(8) & 1).flatten()
        if len(bits) != shape.numel() + -shape.numel() % 8:
            raise ValueError
    except (ValueError, zlib.error) as error:
        raise SurgeryError(f"a mask of the architecture is not one of the shape {tuple(shape)}") from error
    return bits[: shape.numel()].view(shape).to(torch.uint8)


def _prepare(module: nn.Module) -> None:
    """Lets a masked module, whose class torch has just made for it, be copied, and say why it cannot be scripted."""
    kind: Any = type(module)
    if "__prepare_scriptable__" in vars(kind):
        return
    kind.__prepare_scriptable__, kind.__deepcopy__ = _refuse_script, _copying(kind.__deepcopy__)
    if isinstance(module, nn.RNNBase):  # it keeps the weights of its last pass, which cannot be copied
        kind._flat_weights = property(_flat_weights, _keep_nothing)


def _copying(plainly: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """How a masked module is deep-copied: to a class of its own, since taking off masks changes the class."""

    def copied(module: Any, memo: Any) -> Any:
        replica, kind = plainly(module, memo), type(module)
        if type(replica) is kind:
            own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
            replica.__class__ = type(kind.__name__, kind.__bases__, own)
        return replica

    return copied


def _refuse_script(module: nn.Module) -> nn.Module:
    raise SurgeryError(
        "TorchScript knows no masked weights (parametrizations): script a copy without masks, "
        "torch.jit.script(ops.without_masks(model))"
    )


def _flat_weights(module: nn.RNNBase) -> list[Tensor | None]:
    """What a recurrent module computes with, masked. What it holds under this name are its parameters."""
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _keep_nothing(module: nn.RNNBase, weights: list[Tensor | None]) -> None:
    pass


def _at(modules: Modules, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return modules[path], attribute


def _list(module: nn.Module, attribute: str) -> ParametrizationList | None:
    if isinstance(module, torch.jit.ScriptModule):
        return None
    lists = module._modules.get("parametrizations")
    found = lists._modules.get(attribute) if isinstance(lists, nn.ModuleDict) else None
    return found if isinstance(found, ParametrizationList) and _masks(found) else None


def _masks(module: nn.Module) -> bool:
    """Whether this is what torch keeps a masked parameter in."""
    return isinstance(module, ParametrizationList) and len(module) == 1 and isinstance(module[0], Mask)


def _take_off(module: nn.Module, attribute: str, order: list[str]) -> None:
    """Makes the parameter the module's own again, at its old place among the others."""
    parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    kept = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({name: kept[name] for name in order if name in kept} | kept)
