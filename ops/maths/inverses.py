"""Inverses of activations, and least squares through them.

What a layer ``σ(W x + b)`` is to emit is written as a *code* within the image of σ (``encode``); its preimages are
solved for by least squares on what the layer is fed (``one_sided``). Source: Rolet 2022, *PCNS* (draft), sections 2.2
and 5.2.3, which names the shift of bijective activations and the parts of ReLU and works out neither.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from network_surgery.ops.maths.condensed import SINGULAR

#: How much of an open image (tanh, sigmoid) a code may fill: near its ends preimages grow without bound. On digits
#: (64–128–64–10, 3 seeds, 0.3 to 0.99) the readers' errors on held-out samples are smallest at 0.5 and 0.7, and 6 to
#: 50 % larger at 0.99. A closed image (hardtanh) is best filled to its ends: neither less nor clipped was better.
MARGIN = 0.7
#: Rounds of one-sided least squares at most, and the gain (of the squares missed, relative) at which they end.
ROUNDS, GAIN = 30, 1e-3
#: What is known to have no inverse.
FOLDED = frozenset(("gelu", "silu", "mish", "hardswish"))


@dataclass(frozen=True)
class Activation:
    """An activation, its inverse and its image from ``low`` to ``high``; ``closed``: the ends belong to it.

    A value at the end of a closed image has every preimage from there on.
    """

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    low: float = -math.inf
    high: float = math.inf
    closed: bool = False

    @property
    def by_parts(self) -> bool:
        """Values of both signs take two units."""
        return self.low == 0 and self.high == math.inf

    @property
    def shifted(self) -> bool:
        """Values of both signs need a shift: zero is not inside the image."""
        return not self.by_parts and not self.low < 0 < self.high


IDENTITY = Activation(lambda x: x, lambda y: y)
RELU = Activation(lambda x: x.clamp(min=0), lambda y: y, low=0.0, closed=True)
TANH = Activation(torch.tanh, torch.atanh, -1.0, 1.0)
SIGMOID = Activation(torch.sigmoid, torch.logit, 0.0, 1.0)


def activation(name: str) -> Activation | str:
    """The activation of this name in a chain (``HiddenLayer.between``), or the reason why there is none.

    >>> activation("hardtanh(-1, 1)").high, activation("gelu")
    (1.0, 'gelu is not invertible')
    """
    kind, _, rest = name.partition("(")
    numbers = [float(number) for number in re.findall(r"[^,() ]+", rest)]
    if kind in ("relu", "tanh", "sigmoid"):
        return {"relu": RELU, "tanh": TANH, "sigmoid": SIGMOID}[kind]
    if kind == "leaky_relu":
        (slope,) = numbers
        if slope > 0:
            return Activation(lambda x: torch.where(x < 0, x * slope, x), lambda y: torch.where(y < 0, y / slope, y))
        return RELU if slope == 0 else f"{name} is not invertible"
    if kind == "hardtanh" and len(numbers) == 2 and -math.inf < numbers[0] < numbers[1] < math.inf:
        low, high = numbers
        return Activation(lambda x: x.clamp(low, high), lambda y: y, low, high, closed=True)
    if "max_pool" in kind or kind in ("max", "amax", "maximum"):
        return f"recombining units does not commute with a maximum ({name})"
    return f"{name} is not {'invertible' if kind in FOLDED else 'offered'}"


@dataclass(frozen=True)
class Code:
    """What units emit so that targets can be read from them: ``(values − shift) @ decode.T``.

    ``values [samples, units]`` within the image, ``shift [units]``, ``decode [targets, units]``.
    """

    values: Tensor
    shift: Tensor
    decode: Tensor


def encode(targets: Tensor, sigma: Activation, units: int) -> Code:
    """Targets ``[samples, targets]`` as values in the image of ``sigma``.

    Targets keep their size where the image allows, and are made smaller where it does not. By parts, the last target
    must not be negative and takes one unit, the others take two; where ``units`` leaves one too few, the one before
    the last has to do with its larger part.
    """
    count = targets.shape[1]
    if sigma.by_parts:
        first, last = targets[:, :-1], targets[:, -1:].clamp(min=0)
        parts = torch.stack([first, -first], dim=2).clamp(min=0)
        values = torch.cat([parts.flatten(1), last], dim=1)
        decode = torch.block_diag(*[targets.new_tensor([[1.0, -1.0]])] * (count - 1), targets.new_ones(1, 1))
        if units < values.shape[1]:
            spare = 2 * (count - 2) + int(parts[:, -1, 0].norm() >= parts[:, -1, 1].norm())
            left = [unit for unit in range(values.shape[1]) if unit != spare]
            values, decode = values[:, left], decode[:, left]
        return Code(values, targets.new_zeros(values.shape[1]), decode)
    if sigma.low == -math.inf:
        return Code(targets, targets.new_zeros(count), torch.eye(count).to(targets))
    margin = 1.0 if sigma.closed else MARGIN
    top, bottom = targets.amax(dim=0), targets.amin(dim=0)
    if sigma.shifted:
        half, middle = margin * (sigma.high - sigma.low) / 2, (top + bottom) / 2
        size = half / (top - middle).clamp(min=half)
        shift = (sigma.high + sigma.low) / 2 - size * middle
    else:
        ratio = torch.maximum(top / (margin * sigma.high), bottom / (margin * sigma.low))
        size, shift = 1 / ratio.clamp(min=1), targets.new_zeros(count)
    values = (targets * size + shift).clamp(sigma.low, sigma.high)  # rounding aside, they are there already
    return Code(values, shift, torch.diag(1 / size))


def one_sided(design: Tensor, values: Tensor, sigma: Activation) -> tuple[Tensor, float]:
    """Weights ``[inputs, units]`` with which ``sigma(design @ weights)`` comes near ``values [samples, units]``.

    Least squares of the preimages, the smallest solution, and its condition number; directions of ``design`` below
    ``SINGULAR`` of the largest are left out. Where a value is at the end of a closed image, what lies beyond it counts
    as hit: that is a convex problem, gone through by projections in turn (at most ``ROUNDS`` of them), with one
    factorization for all.
    """
    q, r = torch.linalg.qr(design)
    left, sizes, right = torch.linalg.svd(r, full_matrices=False)
    rank = int((sizes > SINGULAR * sizes[:1].clamp(min=1e-300)).sum())
    basis, wanted = q @ left[:, :rank], sigma.inverse(values)
    found = basis.T @ wanted
    low, high = (values <= sigma.low) & sigma.closed, (values >= sigma.high) & sigma.closed
    missed = math.inf
    for _ in range(ROUNDS if bool((low | high).any()) else 0):
        reached = basis @ found
        aim = torch.where(low, reached.clamp(max=sigma.low), wanted)
        aim = torch.where(high, reached.clamp(min=sigma.high), aim)
        before, missed = missed, float((aim - reached).square().sum())
        if missed >= (1 - GAIN) * before:
            break
        found = basis.T @ aim
    condition = float(sizes[0] / sizes[rank - 1]) if rank else 0.0
    return right[:rank].T @ (found / sizes[:rank, None]), condition
