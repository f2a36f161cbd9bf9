"""Weights that a module computes before it uses them: why their layers are pinned, and what helps."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from network_surgery.ops.network.expressed import Expressed


def reason(module: nn.Module) -> str | None:
    """Why a module's own weights cannot be operated on, and the remedy; None where it uses them as they are."""
    for name, each in (getattr(module, "parametrizations", None) or {}).items():
        if isinstance(each, ParametrizationList) and not all(isinstance(step, Expressed) for step in each):
            kinds = ", ".join(type(step).__name__.strip("_") for step in each)
            return (
                f"its {name} is parametrized ({kinds}); torch.nn.utils.parametrize.remove_parametrizations(module, "
                f"{name!r}) makes it a parameter"
            )
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            return "torch.nn.utils.prune masks it; ops.take_over_masks(model) makes these masks that follow the units"
        if isinstance(hook, WeightNorm):
            return f"its {hook.name} has a weight_norm; torch.nn.utils.remove_weight_norm(module) makes it a parameter"
        if isinstance(hook, SpectralNorm):
            return (
                f"its {hook.name} has a spectral_norm; torch.nn.utils.remove_spectral_norm(module) makes it a parameter"
            )
    if hasattr(module, "weight_fake_quant"):
        return "it is trained for quantization: operate on the network first, then prepare it for quantization"
    return None
