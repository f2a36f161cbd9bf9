"""What an operation has to calculate, in closed form: the one place that these formulas are in (``page.md`` says them).

Work is counted by kind, since a floating-point operation of an eigendecomposition takes longer than one of a matrix
product; ``bytes`` are read or written.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from network_surgery import ops
from network_surgery.ops.maths.hosvd import EXACT_UP_TO, FEW, ROUNDS, SPARE

#: Amounts by kind: ``bytes``, and floating-point operations of matrix ``products`` in double precision, of leading
#: eigenvectors (``eigen``), eigen``values``, ``qr`` decompositions, and those with ``pivoting``.
Work = Mapping[str, float]


@dataclass(frozen=True)
class Sizes:
    """What the work depends on: ``units``, each made from ``inputs`` and read by ``outputs``, with ``positions`` of a
    kernel for every pair (1 for a dense layer), on ``samples`` of signals; ``after``: the units afterwards.
    """

    units: int
    inputs: int
    outputs: int
    positions: int
    samples: int
    after: int

    @classmethod
    def of(cls, layer: ops.HiddenLayer, samples: int, after: int) -> Sizes:
        """Of a layer with one maker and one reader."""
        (maker,), (reader,) = layer.makers, layer.readers
        incoming, outgoing = layer.incoming(maker).shape, layer.outgoing(reader).shape
        inputs = incoming[1] * incoming[2] / outgoing[2]  # the two may differ in positions, as before a flatten
        return cls(layer.units, math.ceil(inputs), outgoing[1], outgoing[2], samples, after)


def work(operation: ops.Operation, sizes: Sizes) -> Work:
    """The work of proposing and applying an operation, by kind."""
    incoming, outgoing = (sizes.units * other * sizes.positions for other in (sizes.inputs, sizes.outputs))
    seen = sizes.samples * sizes.units
    # Both weights are rebuilt in single precision, each with its gradient and Adam's two moments.
    found: Any = Counter()
    found.update(bytes=16.0 * (1 + sizes.after / sizes.units) * (incoming + outgoing))
    match operation:
        case ops.PruneWeights():
            found.update(bytes=16.0 * incoming * math.log2(max(incoming, 2)))
        case ops.Compact():
            found.update(bytes=48.0 * (incoming + outgoing))
        case ops.EigenRemove(rank=float(rank)) if rank < 1:
            found.update(_hosvd(rank, sizes), bytes=48.0 * outgoing)
        case ops.EigenRemove() | ops.MinWeight() | ops.WeakExpand():  # in double precision; norms of outgoing weights
            found.update(products=2.0 * outgoing, bytes=48.0 * outgoing)
        case ops.MeanReplace():  # means and what they miss; norms, and what is sent on of the means
            found.update(products=4.0 * (seen + outgoing), bytes=48.0 * (seen + outgoing))
        case ops.RemoveDead() | ops.Revive():  # saliencies and means, and what is sent on of the means
            found.update(products=8.0 * seen + 2.0 * outgoing, bytes=48.0 * (seen + outgoing))
        case ops.PCNS():
            found.update(_pcns(sizes))
        case ops.RandomRemove() | ops.ZeroExpand():
            pass
        case _:
            raise TypeError(f"there is no formula for {type(operation).__name__}")
    return found


def seconds(amounts: Work, rates: Work) -> float:
    """How long it takes at these rates (per second), one thing after the other."""
    return sum(amount / rates[kind] for kind, amount in amounts.items())


def _hosvd(rank: float, sizes: Sizes) -> Work:
    """Projecting the outgoing weights on the leading subspaces of units and of outputs."""
    units, outputs, positions = sizes.units, sizes.outputs, sizes.positions
    size = max(1, math.floor(rank * min(units, outputs)))
    modes = [(units, outputs * positions), (outputs, units * positions)]
    found: Any = Counter()
    for rows, columns in [min(modes)] if positions == 1 else modes:
        if size >= rows:
            continue
        low, high = min(rows, columns), max(rows, columns)
        found.update(products=low**2 * high)
        if low > EXACT_UP_TO and size <= FEW * low:
            width = size + SPARE
            found.update(products=2 * (ROUNDS + 1) * low**2 * width, qr=4 * ROUNDS * low * width**2)
        else:
            found.update(eigen=4 / 3 * low**3)
        if rows > columns:
            found.update(products=2 * rows * columns * size, qr=4 * rows * size**2)
    if positions == 1:
        found.update(products=4 * units * outputs * size)
    else:
        found.update(products=2 * positions * size * (units * outputs + outputs * size + units * size))
    return found


def _pcns(sizes: Sizes) -> Work:
    """The spectrum of the samples, a pivoted choice of units, and the least squares that fold the others in."""
    units, samples, after = sizes.units, sizes.samples, sizes.after
    rows = min(units, samples)
    triangle = 2 * units * rows**2 - 2 / 3 * rows**3
    found: Any = Counter()
    found.update(values=4 / 3 * rows**3, pivoting=triangle, qr=triangle, bytes=48.0 * samples * units)
    if samples > units:
        found.update(qr=2 * samples * units**2 - 2 / 3 * units**3)
    found.update(products=rows**2 * units + after**3 / 3 + 2 * after**2 * (units - after) + 2 * rows * after * units)
    found.update(products=2 * units * after * sizes.outputs * sizes.positions)
    return found
