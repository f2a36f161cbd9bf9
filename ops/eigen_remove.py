"""EigenRemove: rank-reduce the weights around a layer by HOSVD, then keep the units that still weigh most.

Source: Graham 2019, *Applied HOSVD for weight compression and expansion*, Algorithm 2 and Listing 6.1. The two channel
modes are reduced to ``floor(rank * min(out, in))``, kernel positions stay whole; for a dense layer that is a truncated
SVD. One truncated HOSVD pass (an eigendecomposition of each mode's Gram matrix), not an iterated Tucker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from ops.anatomy import HiddenLayer
from ops.min_weight import strongest
from ops.operation import Operation, choice, fraction, kept
from ops.plan import Plan
from ops.signals import Signals


def truncated_hosvd(tensor: Tensor, rank: float) -> Tensor:
    """The tensor with its first two modes projected on their leading singular vectors, in its own shape.

    ``tensor``: ``[units, channels, positions]``, float64. ``rank`` is the fraction of ``min(units, channels)`` that
    stays in each of the two modes, rounded down but at least 1; at 1 the tensor is returned whole.
    """
    from tensorly import backend_context
    from tensorly.base import unfold
    from tensorly.tenalg import multi_mode_dot

    if rank == 1:
        return tensor
    size = max(1, math.floor(rank * min(tensor.shape[:2])))
    projections = []
    with backend_context("pytorch", local_threadsafe=True):
        for mode in (0, 1):
            if size >= tensor.shape[mode]:
                projections.append(torch.eye(tensor.shape[mode], dtype=tensor.dtype, device=tensor.device))
                continue
            unfolded = unfold(tensor, mode)
            leading = torch.linalg.eigh(unfolded @ unfolded.T).eigenvectors[:, -size:]
            projections.append(leading @ leading.T)
        return multi_mode_dot(tensor, projections, modes=[0, 1])


@dataclass(frozen=True)
class EigenRemove(Operation):
    """Keeps the units with the largest norm of *rank-reduced* outgoing weights.

    ``keep``: the fraction of units that stays, above 0 and at most 1. ``rank``: the fraction of rank that stays (the
    thesis's δ). ``weights``: what the kept units carry on with, their ``original`` weights (Algorithm 2) or the
    ``reduced`` ones (Listing 6.1).
    """

    keep: float = 0.5
    rank: float = 0.125
    weights: str = "original"

    def __post_init__(self) -> None:
        fraction(self, "keep", self.keep)
        fraction(self, "rank", self.rank)
        choice(self, "weights", self.weights, ("original", "reduced"))
        import_module("tensorly")  # needed here alone; its second of importing is not the operation's

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        outgoing = {place: truncated_hosvd(layer.outgoing(place), self.rank) for place in layer.readers}
        scores = torch.cat([reduced.flatten(1) for reduced in outgoing.values()], dim=1).norm(dim=1)
        sources = strongest(scores, kept(layer, self.keep))
        replaced: dict[str, Tensor] = {}
        if self.weights == "reduced" and self.rank < 1:
            reduced = {place: truncated_hosvd(layer.incoming(place), self.rank) for place in layer.makers} | outgoing
            for place, by_unit in reduced.items():
                weight = replaced.get(place.tensor, layer.anatomy.tensor(place.tensor))
                replaced[place.tensor] = layer.written(place, weight, by_unit)
        return Plan(layer, repr(self), sources, replaced=replaced)
