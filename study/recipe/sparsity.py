"""Regularizers that make zeros: single weights (L1), or all weights that make a unit (group lasso).

What is minimized is ``loss + l1 Σ |w| + group_lasso Σ_u √n_u ‖w_u‖``, over weights ``w`` of two or more axes, and over
the ``n_u`` numbers ``w_u`` of one that make one unit: a row; of a transposed convolution an output channel; of an
embedding a column. Where an operation has compressed a weight, it is what is stored of it that is shrunk: nothing, if
that is a vector. An optimizer's step on the loss alone is followed
by the proximal step of the regularizers at its learning rate, so weights become *exactly* zero, whatever the optimizer
is (with Adam it is decoupled, as AdamW's decay). What is zero can become a weight again. ``prune_weights`` makes zeros
stay, and ``compact`` removes the units that are left without input or output.

Sources: L1, and its shrinking step: Collins and Kohli 2014, *Memory bounded deep convolutional networks*, section 4;
groups: Yuan and Lin 2006, *Model selection and estimation in regression with grouped variables*; of units in networks:
Wen et al. 2016, *Learning structured sparsity in deep neural networks*. Proximal steps: Parikh and Boyd 2014, 6.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer


@dataclass(frozen=True)
class Sparsity:
    """``l1`` and ``group_lasso``: the strengths, as they stand in front of the sums; 0 is none."""

    l1: float = 0.0
    group_lasso: float = 0.0

    def __bool__(self) -> bool:
        return self.l1 > 0 or self.group_lasso > 0

    @torch.no_grad()
    def shrink(self, optimizer: Optimizer, model: nn.Module) -> None:
        """The proximal step on all weights of a network that its optimizer trains, after the optimizer's own step."""
        if not self:
            return
        owners = {id(module._parameters.get("weight")): module for module in model.modules()}
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.dim() < 2 or weight.grad is None:
                    continue
                if self.l1:
                    weight.mul_(_left(weight.abs(), group["lr"] * self.l1))
                if self.group_lasso:
                    parts, axes = _units(weight, owners.get(id(weight)))
                    sizes = torch.linalg.vector_norm(parts, dim=axes, keepdim=True)
                    amount = group["lr"] * self.group_lasso * (parts.numel() / sizes.numel()) ** 0.5
                    parts.mul_(_left(sizes, amount))


def _units(weight: Tensor, owner: nn.Module | None) -> tuple[Tensor, list[int]]:
    """A view of a weight, and the axes along which the numbers that make one unit lie."""
    if isinstance(owner, _ConvTransposeNd):  # [groups · inputs, outputs of a group, *kernel]
        parts = weight.unflatten(0, (owner.groups, -1))
        return parts, [axis for axis in range(parts.dim()) if axis not in (0, 2)]
    unit = 1 if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) else 0
    return weight, [axis for axis in range(weight.dim()) if axis != unit]


def zeros(model: nn.Module) -> float:
    """The fraction (0 … 1) of the weights, as a network keeps them, that are zero; those under a mask count."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    nonzero = sum(int(weight.count_nonzero()) for weight in weights)
    return 1 - nonzero / max(1, sum(weight.numel() for weight in weights))


def _left(size: Tensor, amount: float | Tensor) -> Tensor:
    """By what something of this size is multiplied, to be smaller by an amount, but not below 0."""
    return (1 - amount / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(min=0)
