"""The architecture of an altered network: sizes that follow the weights, and plain data that describes them.

Modules write sizes down beside their weights; after surgery those numbers follow the weights (``fit``). A network's
sizes as plain data (``describe``) let a freshly made one take them (``adopt``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer

from network_surgery.ops.errors import SurgeryError, explained
from network_surgery.ops.network.attention import FreeAttention, can_be_freed
from network_surgery.ops.network.blocks import KIND, Blocks, arrangements
from network_surgery.ops.network.codebook import Codebook
from network_surgery.ops.network.dropout import scaled_ratios, set_ratio
from network_surgery.ops.network.expressed import (
    Compressed,
    Expressed,
    at,
    express,
    find_compressed,
    raw,
    take_off,
    tensors_of,
)
from network_surgery.ops.network.fastfood import Fastfood
from network_surgery.ops.network.fields import check
from network_surgery.ops.network.hashed import Edges, Hashed
from network_surgery.ops.network.masks import masks_of, pack, put, unpack
from network_surgery.ops.network.modules import build, exchange_parameters, find_placed, put_module
from network_surgery.ops.network.optimizer_groups import replace
from network_surgery.ops.network.optimizer_state import exchange, list_optimizers
from network_surgery.ops.network.predicted import Predicted
from network_surgery.ops.network.wrappers import inner

#: The entry of a state_dict that carries an architecture (see ``ops.network.carried``).
CARRIED = "surgery_architecture"
Description = Mapping[str, Mapping[str, Any]]
#: Ways in which a weight is expressed, by the name that an architecture calls them; masks have a part of their own.
EXPRESSIONS: dict[str, type[Compressed]] = {
    "hash": Hashed,
    "edges": Edges,
    "predicted": Predicted,
    "codebook": Codebook,
    "fastfood": Fastfood,
}


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
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None:
        return {"normalized_shape": tuple(module.weight.shape)}
    if isinstance(module, nn.GroupNorm) and module.weight is not None:
        return {"num_channels": len(module.weight)}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}
    if isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        rows, columns = cast(Tensor, module.weight_ih_l0).shape
        found = {"input_size": columns, "hidden_size": rows // gates}
        return found | ({"proj_size": cast(Tensor, module.weight_hr_l0).shape[0]} if module.proj_size else {})
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": len(module.weight)}
    if isinstance(module, FreeAttention):
        return dict(zip(("embed_dim", "kdim", "vdim"), module.inputs, strict=True))
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


def describe(model: nn.Module) -> Description:
    """A network's architecture as plain data: every tensor's shape, and the numbers that its modules keep.

    ``{"shapes": {tensor: [sizes]}, "numbers": {module: {attribute: whole number or list of them}}}``; the numbers are
    those that do not follow from the shapes (the groups of a convolution, an attention's number of heads). Where
    there are buffers, ``"buffers": {buffer: whether a state_dict holds it}`` names them (None: not made as yet), since
    a network may register some in its first forward pass only. Where weights are masked there is ``"masks":
    {parameter: text}``, too: which of them live is part of the architecture. So is how a weight is computed from what
    is stored of it: ``"expressed": {parameter: {"kind": …, …}}``; its shape is that of what is stored.
    Modules that have been put in the place of others, and containers whose blocks are others, are ``"modules":
    {module: {"kind": …, …}}``, and dropout that pruning made weaker is ``"dropout": {module: ratio}``.

    Raises:
        SurgeryError: a parameter or buffer has no size yet.
    """
    model = inner(model)
    if lazy := [name for name, tensor in tensors_of(model) if is_lazy(tensor)]:
        raise SurgeryError(f"{lazy[0]} has no size yet: run the network once before it is described or saved")
    numbers = {name: found for name, module in model.named_modules() if (found := _numbers(module))}
    masks = {name: pack(mask) for name, mask in masks_of(model).items()}
    shapes = {name: list(tensor.shape) for name, tensor in tensors_of(model)}
    passes = set(passing(model))
    buffers: dict[str, bool | None] = dict.fromkeys(_empty(model))
    buffers |= {name: name not in passes for name, tensor in tensors_of(model) if not isinstance(tensor, nn.Parameter)}
    described: dict[str, dict[str, Any]] = {"shapes": shapes, "numbers": numbers}
    expressed = {name: {"kind": _kind(each), **each.to_data()} for name, each in find_compressed(model).items()}
    described |= ({"buffers": buffers} if buffers else {}) | ({"masks": masks} if masks else {})
    others: dict[str, Mapping[str, Any]] = {
        "expressed": expressed,
        "modules": arrangements(model) | find_placed(model),
        "dropout": scaled_ratios(model),
    }
    return described | {part: entries for part, entries in others.items() if entries}


def adopt(model: nn.Module, description: Description, optimizers: Optimizer | Iterable[Optimizer] = ()) -> None:
    """Gives a freshly made network the architecture that surgery gave another one; changed tensors become zeros.

    Masks are put on (or taken off) as they are there, and what they hide becomes zero. Buffers that only the
    description has are left to the forward pass that registers them (or to ``load``, which has their values), and those
    that it does not have are taken away. ``optimizers``: freshly made ones of this network, whose parameters follow
    where modules are put in the place of others (in the order that they have in the other network's optimizers).

    Raises:
        SurgeryError: the description is of another network: a tensor is missing on one side or has another number of
            axes, there is no such module or parameter to mask, or an attention was altered that is not free in this
            one. The network has not been changed.
    """
    if not _is_description(description):
        raise SurgeryError(f"an architecture is what ops.describe returns, not {description!r:.60}")
    model, undo = inner(model), list[Callable[[], object]]()
    try:
        _place_modules(model, description, list_optimizers(optimizers), undo)
        _adopt(model, description)
    except BaseException:
        for step in reversed(undo):
            step()
        raise


def arrange(
    model: nn.Module, description: Description, optimizers: tuple[Optimizer, ...], undo: list[Callable[[], object]]
) -> None:
    """Gives the containers of a freshly made network the blocks of a description, and nothing else of it.

    Raises SurgeryError as ``adopt``, with what undoes the beginning in ``undo``.
    """
    wanted = {path: spec for path, spec in description.get("modules", {}).items() if _of_blocks(spec)}
    for path, known in arrangements(model).items():
        if known != wanted.get(path):
            raise SurgeryError(f"the blocks of {path} have been arranged already: let the factory make the network")
    for path, spec in wanted.items():
        if path not in arrangements(model):
            blocks = Blocks.from_data(spec)
            blocks.check(model, path)
            undo.extend(blocks.arrange(model, path, optimizers))


def _of_blocks(spec: Any) -> bool:
    return isinstance(spec, Mapping) and spec.get("kind") == KIND


def _place_modules(
    model: nn.Module, description: Description, optimizers: tuple[Optimizer, ...], undo: list[Callable[[], object]]
) -> None:
    """Puts modules in the place of others as a description says."""
    arrange(model, description, optimizers, undo)
    wanted = {path: spec for path, spec in description.get("modules", {}).items() if not _of_blocks(spec)}
    here, modules = find_placed(model), dict(model.named_modules())
    if odd := sorted(set(here) - set(wanted)) or sorted(set(wanted) - set(modules)):
        raise SurgeryError(f"the architecture is of another network: {odd[0]} is on one side only")
    made = {path: build(spec, modules[path]) for path, spec in wanted.items() if here.get(path) != spec}
    for path, new in made.items():
        undo.append(put_module(model, path, new))
    for old, params, names in exchange_parameters(made, modules):
        undo.extend(replace(optimizers, old, params, names))


def _adopt(model: nn.Module, description: Description) -> None:
    modules, late = dict(model.named_modules()), description.get("buffers", {})
    tensors = dict(tensors_of(model))
    wanted = {
        name: shape
        for name, shape in description["shapes"].items()
        if name in tensors or name not in late or name.rpartition(".")[0] not in modules
    }
    early = [n for n, tensor in tensors.items() if not isinstance(tensor, nn.Parameter) and n not in wanted]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in early}
    found = {name: torch.Size(wanted[name]) for name in description.get("masks", {}) if name in wanted}
    masks = {name: unpack(description["masks"][name], shape) for name, shape in found.items()}
    expressed = {
        name: _expression(name, data, wanted.get(name)) for name, data in description.get("expressed", {}).items()
    }
    before = {name: raw(*at(modules, name)) for name in find_compressed(model)}
    for verb, names in (("masks", description.get("masks", {})), ("expresses", expressed)):
        if odd := [name for name in names if not isinstance(tensors.get(name), nn.Parameter)]:
            raise SurgeryError(f"the architecture is of another network: it {verb} {odd[0]}")
    ratios = description.get("dropout", {})
    if odd := sorted(set(tensors) ^ set(wanted)) or sorted({*description["numbers"], *ratios} - set(modules)):
        raise SurgeryError(f"the architecture is of another network: {', '.join(odd[:3])} is on one side only")
    if lazy := [name for name, tensor in tensors.items() if is_lazy(tensor)]:
        raise SurgeryError(f"{lazy[0]} has no size yet: let the factory run its network once")
    for name, shape in wanted.items():
        if name in expressed:
            shape = description["expressed"][name]["shape"]
        if before.get(name, tensors[name]).dim() != len(shape) and name not in late:
            raise SurgeryError(
                f"{name} has the shape {tuple(tensors[name].shape)}, the architecture says {tuple(shape)}"
            )
    for name in early:
        path, _, attribute = name.rpartition(".")
        if name in late:  # None, until the first forward pass
            modules[path]._buffers[attribute] = None
        else:
            delattr(modules[path], attribute)
    known = {id(tensor): name for name, tensor in tensors.items()}
    for name, module in modules.items():
        held = [(known[id(p)], p) for p in module.parameters()] if can_be_freed(module) else []
        if any(list(p.shape) != list(wanted[name]) for name, p in held if name not in (*expressed, *before)):
            raise SurgeryError(f"{name} has other heads there: let the factory return ops.free_attention(model)")
    for name in before:
        take_off(modules, name)
    for name, shape in wanted.items():
        tensor = tensors[name]
        if list(tensor.shape) != list(shape):
            exchange(tensor, torch.zeros(tuple(shape), dtype=tensor.dtype, device=tensor.device))
    for name in set(masks_of(model)) - set(masks):
        take_off(modules, name)
    for name, mask in masks.items():
        tensors[name].data.mul_(mask.to(tensors[name].device))
        put(modules, name, mask)
    for name, expression in expressed.items():
        express(modules, name, expression.to(tensors[name].device))
    for name, numbers in description["numbers"].items():
        mine = _numbers(modules[name])
        for attribute, value in numbers.items():
            if attribute in mine and mine[attribute] != value:
                old = getattr(modules[name], attribute)
                setattr(modules[name], attribute, type(old)(value))
    for name, ratio in ratios.items():
        set_ratio(modules[name], ratio)
    fit(model.modules())


def _is_description(value: Any) -> bool:
    """Whether a value has the form of what ``describe`` returns."""
    if not isinstance(value, Mapping):
        return False
    shapes, numbers, masks = (value.get(part, {}) for part in ("shapes", "numbers", "masks"))
    return (
        {"shapes", "numbers"} <= {*value}
        and all(isinstance(part, Mapping) for part in value.values())
        and all(_are_whole(shape) for shape in shapes.values())
        and all(isinstance(entries, Mapping) for entries in numbers.values())
        and all(_are_whole(e) or type(e) is int for entries in numbers.values() for e in entries.values())
        and all(isinstance(mask, str) for mask in masks.values())
    )


def _are_whole(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(type(each) is int for each in values)


def passing(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that a state_dict leaves out (``persistent=False``); of an altered network they are needed, too."""
    kept = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name not in kept}


def _empty(model: nn.Module) -> list[str]:
    """The buffers that are None."""
    modules = model.named_modules()
    return [
        f"{path}.{name}".lstrip(".") for path, m in modules for name, tensor in m._buffers.items() if tensor is None
    ]


def _kind(expression: Compressed) -> str:
    return next(kind for kind, each in EXPRESSIONS.items() if type(expression) is each)


def _expression(name: str, data: Any, shape: Sequence[int] | None) -> Compressed:
    """An expression from plain data; ``shape``: of what is stored. Raises SurgeryError where there is none of it."""
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in EXPRESSIONS:
        raise SurgeryError(f"how the architecture expresses {name} is not known: {data!r:.80}")
    check(name, data, EXPRESSIONS[kind].fields)
    with explained(f"what the architecture says of {name} is not possible"):
        expression = EXPRESSIONS[kind].from_data(data)
        if shape is not None and list(expression.stored_shape) != list(shape):
            raise SurgeryError(
                f"what is stored of {name} has the shape {tuple(shape)}, but its description in the architecture is of "
                f"{expression.stored_shape}"
            )
        with torch.no_grad():
            expression.weight(torch.zeros(expression.stored_shape))
    return expression


def _numbers(module: nn.Module) -> dict[str, int | list[int]]:
    """The whole numbers, and lists of them, that a module keeps as attributes and its tensors do not imply."""
    found: dict[str, int | list[int]] = {}
    if isinstance(module, (ParametrizationList, Expressed)):  # comes and goes with an expression
        return found
    for name, value in vars(module).items():
        if name.startswith("_") or name in sizes(module) or isinstance(value, bool):
            continue
        if type(value) is int:
            found[name] = value
        elif type(value) in (tuple, list, torch.Size) and value and all(type(each) is int for each in value):
            found[name] = list(value)
    return found
