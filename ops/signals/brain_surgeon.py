"""The optimal brain surgeon on a network's weights, in blocks of its curvature (Hassibi and Stork 1993).

A whole Hessian has a number for each pair of weights, so only that of blocks is looked at: of the weights that make one
unit (a row of a dense layer, the kernels of an output channel), divided into parts of equal size if these are too many.
Between blocks weights do not make up for each other. In a single linear layer under the squared error the rows are the
blocks of the Hessian, and nothing is left out. The curvature is that of ``ops.signals.curvature``, the maths is in
``ops.maths.brain_surgeon``. By blocks: Singh and Alistarh 2020, *WoodFisher*, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.maths.brain_surgeon import compensate, removal_scores
from network_surgery.ops.maths.double import double
from network_surgery.ops.network.expressed import expanded, tensors_of
from network_surgery.ops.signals.curvature import curvature_rows
from network_surgery.ops.signals.losses import Loss

#: Weights in a block at most, and the fraction of the mean curvature that is added to each weight's.
BLOCK, DAMPING = 64, 0.01
#: Numbers of inverses that are worked on at once.
MOST = 1 << 20


class BrainSurgeon:
    """What the removal of weights costs when those that stay make up for it. ``scores``: by parameter, in its shape.

    ``block``: weights in a block, at most; memory holds this number of numbers for each weight. ``damping``: the
    fraction of a parameter's mean curvature that is added to the curvature by each of its weights, so that there is an
    inverse also where fewer rows were seen than there are weights. Weights that a mask hides score 0 and stay zero.

    Raises:
        SurgeryError: the curvature cannot be had, or is so flat that this damping leaves no inverse.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], inputs: Any, targets: Any, loss: Loss | None = None, *,
        block: int = BLOCK, damping: float = DAMPING, seed: int = 0,
    ) -> None:  # fmt: skip
        with expanded(model):
            known = dict(tensors_of(model))
        self._weights = {name: known[name].detach() for name in names}
        self._block, self._damping = block, damping
        self._hessians: dict[str, Tensor] = {}
        for rows in curvature_rows(model, names, inputs, targets, loss, seed):
            for name, each in rows.items():
                parts = self._parted(each, 1).transpose(0, 1)
                product = parts.mT @ parts
                self._hessians[name] = self._hessians[name] + product if name in self._hessians else product
        self.scores = {name: self._scores(name) for name in names}

    def compensate(self, gone: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """The parameters after these of their entries are gone (true), and the change of the loss that is predicted."""
        found, change = dict[str, Tensor](), 0.0
        for name, entries in gone.items():
            weight, parts = self._weights[name], []
            apart = self._parted(entries.to(weight.device))
            for blocks, weights, inverse in self._inverses(name):
                values, cost = compensate(weights, inverse, apart[blocks])
                parts.append(values)
                change += float(cost.sum())
            found[name] = self._whole(name, torch.cat(parts))
        return found, change

    def _scores(self, name: str) -> Tensor:
        if not self._hessians[name].any():
            return torch.zeros_like(self._weights[name])
        parts = [removal_scores(weights, inverse) for _, weights, inverse in self._inverses(name)]
        return self._whole(name, torch.cat(parts))

    def _inverses(self, name: str) -> Any:
        """Some blocks after the others: which, their weights ``[blocks, size]``, inverses ``[blocks, size, size]``."""
        weights, hessians = self._parted(self._weights[name]), self._hessians[name]
        diagonal = double(hessians.diagonal(dim1=1, dim2=2))
        added = self._damping * float(diagonal.sum() / diagonal.count_nonzero().clamp(min=1)) or 1.0
        size = weights.shape[1]
        for blocks in torch.arange(len(weights), device=weights.device).split(max(1, MOST // size**2)):
            damped = double(hessians[blocks]) + added * torch.eye(size, dtype=torch.float64, device=weights.device)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if failed.any():
                raise SurgeryError(
                    f"the curvature of {name} has no inverse with a damping of {self._damping:g}: give more"
                )
            yield blocks, double(weights[blocks]), torch.cholesky_inverse(factor)

    def _parted(self, values: Tensor, leading: int = 0) -> Tensor:
        """``[…, *shape of the parameter]`` as ``[…, blocks, size]``, zeros where the last part of a unit is shorter."""
        shape = values.shape[leading:]
        units = shape[0] if len(shape) > 1 else 1
        each = max(1, math.prod(shape) // max(1, units))
        parts = math.ceil(each / self._block)
        size = math.ceil(each / parts)
        rows = pad(values.reshape(*values.shape[:leading], units, each), (0, parts * size - each))
        return rows.reshape(*values.shape[:leading], units * parts, size)

    def _whole(self, name: str, blocks: Tensor) -> Tensor:
        """The inverse of ``_parted``, in the parameter's shape and type."""
        weight = self._weights[name]
        units = weight.shape[0] if weight.dim() > 1 else 1
        return blocks.reshape(units, -1)[:, : weight.numel() // max(1, units)].reshape(weight.shape).to(weight)
