"""Where a constant can go: the vector that is added to all that a weight makes, and to nothing else.

If a unit is a constant for what reads it, the reader adds a constant to each of its outputs. That constant can move
into a bias (or, with the other sign, into a running mean) without a trace only if

* every product with the reader's weight meets this vector first, and nothing else does: no other operator, no other
  weight, no second addition of the same vector, no shortcut that takes the product as it is;
* the vector has an entry of its own for each output; one that varies over positions too can hold it as well;
* each output sees the whole kernel: not so for a transposed convolution with a kernel or a stride.

Where a convolution pads, outputs at the border see a part of the kernel. There the constant is not exact, and whoever
leaves one counts the error (``Signals.padding``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from network_surgery.ops.anatomy.axes import canonical, size

if TYPE_CHECKING:
    from network_surgery.ops.anatomy.calls import Axes, Twin


@dataclass(frozen=True)
class Sink:
    """The vector ``tensor`` that can hold constants, and the ``sign`` in which they enter it.

    ``entries``: for each axis of the vector the reader's axis of outputs that it runs along, None where it runs along
    positions.
    """

    tensor: str
    sign: float
    entries: tuple[int | None, ...]

    def amount(self, weight: Tensor, axis: int, constants: Tensor) -> Tensor:
        """What the vector gains, in a shape that broadcasts to its own, if all that the weight reads were constant.

        ``constants``: a value for each position on the weight's ``axis``, shape ``[positions]``; or several of these,
        ``[…, positions]``, of which each gives an amount: ``[…, *entries]``.
        """
        sent = torch.tensordot(constants.to(weight), weight, dims=([-1], [axis]))  # […, the weight's other axes]
        lead = constants.dim() - 1
        place = {dim: lead + at for at, dim in enumerate(d for d in range(weight.dim()) if d != axis)}
        kept = [place[dim] for dim in self.entries if dim is not None]
        summed = [at for at in place.values() if at not in kept]
        sent = sent.sum(dim=summed) if summed else sent
        order = sorted(kept)
        sent = sent.permute([*range(lead), *(lead + order.index(at) for at in kept)])
        for at, dim in enumerate(self.entries):
            if dim is None:
                sent = sent.unsqueeze(lead + at)
        return self.sign * sent


@dataclass(eq=False, slots=True)
class Making:
    """One product with a weight, and what becomes of it before anything else is done to it.

    ``outputs``: the weight's axes that its outputs run along. ``lost``: something else than an addition met it.
    """

    weight: str
    outputs: tuple[int, ...]
    sink: Sink | None = None
    lost: bool = False

    def meet(self, sink: Sink | None) -> None:
        """A vector is added to it (None: something else happens)."""
        self.lost |= sink is None or (self.sink is not None and self.sink != sink)
        self.sink = self.sink or sink

    def sink_in(self, vector: Twin, shape: Sequence[int], made: Axes, weight: Axes, sign: float) -> Sink | None:
        """The vector (a parameter of this shape) as the sink of the product, if it has an entry for each output.

        ``made``: the axes of the product, ``weight``: those of the weight.
        """
        assert vector.source is not None
        dims = [dim for dim, axis in enumerate(vector.axes) if size(axis) > 1]
        origins = [vector.origins[dim] for dim in dims]
        lengths = [size(vector.axes[dim]) for dim in dims]
        if origins != [dim for dim, n in enumerate(shape) if n > 1] or lengths != [n for n in shape if n > 1]:
            return None  # a part of it, or its entries in another order
        axes = [canonical(axis) for axis in made]
        lead = len(axes) - len(vector.axes)
        met = {axes[dim + lead]: origin for dim, origin in zip(dims, origins, strict=True) if dim + lead >= 0}
        entries: list[int | None] = [None] * len(shape)
        for dim in self.outputs:
            axis = canonical(weight[dim])
            origin = met.get(axis)
            if origin is None or axes.count(axis) != 1:
                return None
            entries[origin] = dim
        return Sink(vector.source, sign, tuple(entries))


@dataclass(slots=True)
class Sinks:
    """The account of one trace: every product, and every use of a vector or weight."""

    makings: dict[str, list[Making]] = field(default_factory=dict)
    uses: dict[str, set[str | None]] = field(default_factory=dict)

    def make(self, weight: Twin, outputs: Sequence[int], numel: int, whole: bool) -> Making:
        """Notes a product with a parameter of ``numel`` entries, or a view of it.

        ``outputs``: its dimensions that are not summed over; ``whole``: whether each output sees all that is.
        """
        assert weight.source is not None
        origins = [weight.origins[dim] for dim in outputs if size(weight.axes[dim]) > 1]
        known = [origin for origin in origins if origin is not None]
        part = math.prod(map(size, weight.axes)) != numel or len(set(known)) < len(origins)
        making = Making(weight.source, tuple(known), lost=part or not whole)
        self.makings.setdefault(weight.source, []).append(making)
        return making

    def use(self, name: str, weight: str | None) -> None:
        """A parameter or buffer is used: as the vector (or the weight) of a product with ``weight``, or otherwise."""
        self.uses.setdefault(name, set()).add(weight)

    def result(self) -> dict[str, Sink]:
        """Weight → its sink, of every weight that has one."""
        found = {}
        for weight, makings in self.makings.items():
            sinks = {making.sink for making in makings if making.sink is not None or making.lost}
            if len(sinks) != 1 or any(making.lost for making in makings) or self.uses.get(weight, set()) - {weight}:
                continue
            (sink,) = sinks
            if sink is not None and self.uses.get(sink.tensor) == {weight}:
                found[weight] = sink
        return found
