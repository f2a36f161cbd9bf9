"""Regularizers that make zeros: single weights (L1), or all weights that make a unit (group lasso).

What is minimized is ``loss + l1 Σ |w| + group_lasso Σ_u √n_u ‖w_u‖``, over weights ``w`` of two or more axes, and over
their rows ``w_u`` of ``n_u`` numbers, each of which makes one unit. An optimizer's step on the loss alone is followed
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
from torch.optim import Optimizer


@dataclass(frozen=True)
class Sparsity:
    """``l1`` and ``group_lasso``: the strengths, as they stand in front of the sums; 0 is none."""

    l1: float = 0.0
    group_lasso: float = 0.0

    def __bool__(self) -> bool:
        return self.l1 > 0 or self.group_lasso > 0

    @torch.no_grad()
    def shrink(self, optimizer: Optimizer) -> None:
        """The proximal step on all weights of an optimizer that it trains, after its own step."""
        if not self:
            return
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.dim() < 2 or weight.grad is None:
                    continue
                if self.l1:
                    weight.mul_(_left(weight.abs(), group["lr"] * self.l1))
                if self.group_lasso:
                    amount = group["lr"] * self.group_lasso * weight[0].numel() ** 0.5
                    sizes = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))
                    weight.mul_(_left(sizes, amount))


def zeros(model: nn.Module) -> float:
    """The fraction (0 … 1) of the weights, as a network keeps them, that are zero; those under a mask count."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    nonzero = sum(int(weight.count_nonzero()) for weight in weights)
    return 1 - nonzero / max(1, sum(weight.numel() for weight in weights))


def _left(size: Tensor, amount: float | Tensor) -> Tensor:
    """By what something of this size is multiplied, to be smaller by an amount, but not below 0."""
    return (1 - amount / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(min=0)
