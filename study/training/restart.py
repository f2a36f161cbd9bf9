"""A fresh network of other sizes: the architecture that surgery ended with, initialized as its factory would have.

A factory makes one size only, so what a network of another size would start with is drawn from what it made: every
entry of a changed tensor is one of the fresh tensor's entries at random, and weights are rescaled where the factory's
initialization depends on the fan. Whether it does (by fan-in, as torch's own default and LeCun's and Kaiming's forms;
by fan-out, as torchvision's ResNets; not at all, as a fixed deviation) shows in the fresh network itself: of the three
the one by which its weights' deviations vary least from layer to layer. What surgery left at its size stays as made.
Of a masked weight the same entries live, and only they count for its fan.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from network_surgery.ops import adopt
from network_surgery.ops.network.architecture import Description, arrange
from network_surgery.ops.network.blocks import copies_of
from network_surgery.ops.network.expressed import find_compressed, tensors_of
from network_surgery.ops.network.masks import masks_of
from network_surgery.ops.network.modules import find_placed

#: What a normalization has in buffers before it has seen anything; a frozen one has all of it there.
FROZEN = {"running_mean": 0.0, "running_var": 1.0, "weight": 1.0, "bias": 0.0}


def redraw(
    model: nn.Module, names: Collection[str], seed: int, numbers: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """Draws the tensors of these names anew: those of a factory that brings trained weights along.

    By their modules' own ``reset_parameters``, if there is one; else weights by a normal distribution with the
    deviation of LeCun's form, 1 / √fan-in; of what has one axis, biases are 0 and the rest 1. Nothing is taken from the
    trained values. Statistics of a normalization are those of a fresh one; other buffers stay, since they may be
    constants of the network, such as positions. ``numbers``: what tensors of one number were before they were trained,
    which takes the place of all that; no other value is drawn for them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path, module in model.named_modules():
            own = [(f"{path}.{name}".lstrip("."), tensor) for name, tensor in module.named_parameters(recurse=False)]
            own += [(f"{path}.{name}".lstrip("."), tensor) for name, tensor in module.named_buffers(recurse=False)]
            number = bool(own and names) and all(tensor.numel() == 1 for _, tensor in own)  # such as a PReLU's slope
            if not number and not any(name in names for name, _ in own):
                continue
            before = {name: tensor.detach().clone() for name, tensor in own}
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
            for name, tensor in own:
                if name not in names or not torch.equal(tensor, before[name]):
                    continue
                if not isinstance(tensor, nn.Parameter):
                    if (value := FROZEN.get(name.rpartition(".")[2])) is not None and "running_mean" in module._buffers:
                        tensor.fill_(value)
                elif tensor.dim() > 1:
                    drawn = torch.randn(tensor.shape, generator=generator)
                    tensor.data.copy_(drawn * fan(tensor, 0) ** -0.5)
                else:
                    tensor.data.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, tensor in tensors_of(model):
        if name in numbers and tensor.numel() == 1:
            tensor.data.copy_(numbers[name].view(tensor.shape))


def renew(model: nn.Module, wanted: Description, seed: int) -> None:
    """Gives a freshly made network other sizes, with fresh values at those sizes. ``seed`` fixes the draw.

    Modules that surgery put in the place of others get those of torch's classes. A block that is a copy of another one
    draws every entry of its parameters from the fresh block's.

    Raises:
        SurgeryError: the architecture is of another network.
    """
    generator = torch.Generator().manual_seed(seed)
    arrange(model, wanted, (), [])
    _redraw_copies(model, generator)
    fresh = {name: tensor.detach().clone() for name, tensor in tensors_of(model)}
    adopt(model, wanted)
    masks, expressed = masks_of(model), find_compressed(model)
    power = fan_power([tensor for tensor in fresh.values() if tensor.dim() > 1])
    _reset_placed(model, seed)
    for name, tensor in tensors_of(model):
        if name not in fresh:
            fresh[name] = tensor.detach().clone()
            if (expression := expressed.get(name)) is not None:  # which no module can reset
                bound = expression.weight(tensor.detach())[0].numel() ** -0.5
                fresh[name].uniform_(-bound, bound, generator=generator)
        old = values = fresh[name]
        if tensor.shape == old.shape and name not in masks:
            continue
        if tensor.shape != old.shape:
            drawn = torch.randint(old.numel(), (tensor.numel(),), generator=generator)
            values = old.flatten()[drawn.to(old.device)].view(tensor.shape)
        lives = masks.get(name, torch.ones((), device=tensor.device))
        if tensor.dim() > 1 and power is not None and name not in expressed:
            share = float(lives.count_nonzero()) / lives.numel()
            values = values * (fan(old, power) / max(fan(tensor, power) * share, 1.0)) ** 0.5
        if (expression := expressed.get(name)) is not None:  # units begin with inputs of the same size
            values = expression.begin(values)
        tensor.data.copy_(values * lives)


def _redraw_copies(model: nn.Module, generator: torch.Generator) -> None:
    """Values of their own in the blocks that surgery has copied: those that they have, in another order."""
    copies = [model.get_submodule(path) for path in copies_of(model)]
    inside = {module for block in copies for module in block.modules()}
    shared = {id(each) for m in model.modules() if m not in inside for each in m.parameters(recurse=False)}
    for block in copies:
        for parameter in block.parameters():
            if id(parameter) not in shared:
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.data.copy_(parameter.data.flatten()[order].view(parameter.shape))


def _reset_placed(model: nn.Module, seed: int) -> None:
    """Fresh values in the modules that surgery has put in the place of others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path in find_placed(model):
            for module in model.get_submodule(path).modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()


def fan(weight: Tensor, axis: int) -> int:
    """Fan-in (axis 0: what one output reads) or fan-out (axis 1: what reads one input) of ``[out, in, *kernel]``."""
    return weight.numel() // weight.shape[axis]


def fan_power(weights: Sequence[Tensor]) -> int | None:
    """Which fan the deviations of fresh weights follow: 0 fan-in, 1 fan-out, None neither (a fixed deviation)."""
    weights = [
        weight.detach().double() for weight in weights if weight.numel() > 1 and float(weight.detach().std()) > 0
    ]
    if not weights:
        return None

    def variation(axis: int | None) -> float:
        scaled = [float(w.std()) * (1.0 if axis is None else fan(w, axis) ** 0.5) for w in weights]
        return statistics.pstdev(scaled) / statistics.fmean(scaled)

    return min((0, 1, None), key=variation)
