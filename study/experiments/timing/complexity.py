"""What an operation has to calculate, in closed form: the one place that these formulas are in.

``n`` units, each made from ``i`` inputs and read by ``o`` outputs, with ``p`` positions of a kernel for every pair (1
for a dense layer), on ``s`` samples of signals; ``r = max(1, floor(δ min(n, o)))`` is the rank kept, ``k`` the units
kept. Work is counted by kind, since a floating-point operation of an eigendecomposition takes longer than one of a
matrix product; ``bytes`` are read or written.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from network_surgery.ops import (
    PCNS,
    Compact,
    EigenRemove,
    MeanReplace,
    MinWeight,
    Operation,
    PruneWeights,
    RandomRemove,
    RemoveDead,
    Revive,
    WeakExpand,
    ZeroExpand,
)  # fmt: skip
from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.maths.hosvd import EXACT_UP_TO, FEW, ROUNDS, SPARE

#: Kinds of floating-point operations: matrix products in double and in single precision, leading eigenvectors,
#: eigenvalues, QR decompositions, and those with column pivoting.
FLOPS = ("products", "single", "eigen", "values", "qr", "pivoting")
Work = Mapping[str, float]

#: Orders of growth and the leading terms of ``work``, for the report.
FORMULAS: dict[str, tuple[str, str]] = {
    "random_remove": ("O(n (i + o) p), memory only", "0"),
    "zero_expand": ("O(n (i + o) p), memory only", "0"),
    "min_weight": ("O(n o p + n log n)", "2 n o p"),
    "weak_expand": ("O(n o p + n log n)", "2 n o p"),
    "mean_replace": ("O(s n + n o p + n log n)", "4 s n + 4 n o p"),
    "remove_dead": ("O(s n + n o p + n log n), and a forward and a backward pass", "8 s n + 2 n o p"),
    "revive": ("as remove_dead", "8 s n + 2 n o p"),
    "prune_weights": ("O(n i p log(n i p)), memory only", "0"),
    "compact": ("O(n (i + o) p), memory only", "0"),
    "eigen_remove, p = 1": ("O(a² b), a = min(n, o), b = max(n, o)", "a² b + (4/3) a³ + 4 n o r"),
    "eigen_remove, p > 1": (
        "O(n² o p + n o² p + n³ + o³)",
        "for each of (n, o p) and (o, n p), a the smaller, b the larger: a² b + (4/3) a³; then 2 n o p r + 2 o p r² "
        "+ 2 n p r²",
    ),
    "eigen_remove, rank 1": ("O(n o p + n log n)", "2 n o p: it is min_weight"),
    "pcns": (
        "O(s n² + n³ + n k o p)",
        "2 s n² − (2/3) n³ + n³ + (4/3) n³ (eigenvalues) + 2 × (4/3) n³ (QR, one of them pivoted) + k³/3 + "
        "2 k² (n − k) + 2 k n² + 2 n k o p",
    ),
}


@dataclass(frozen=True)
class Sizes:
    """What the work depends on: see the module. ``kept`` is the units afterwards, where the data decide it."""

    units: int
    inputs: int
    outputs: int
    positions: int = 1
    samples: int = 0
    kept: int | None = None

    @classmethod
    def of(cls, layer: HiddenLayer, samples: int = 0) -> Sizes:
        """Of a layer with one maker and one reader."""
        (maker,), (reader,) = layer.makers, layer.readers
        incoming, outgoing = layer.incoming(maker).shape, layer.outgoing(reader).shape
        inputs = incoming[1] * incoming[2] / outgoing[2]  # the two may differ in positions, as before a flatten
        return cls(layer.units, math.ceil(inputs), outgoing[1], outgoing[2], samples)

    @property
    def incoming(self) -> int:
        return self.units * self.inputs * self.positions

    @property
    def outgoing(self) -> int:
        return self.units * self.outputs * self.positions


def work(operation: Operation, sizes: Sizes) -> Work:
    """The work of proposing and applying an operation, by kind (``FLOPS`` and ``bytes``)."""
    if isinstance(operation, EigenRemove) and operation.rank == 1:
        operation = MinWeight(keep=operation.keep)
    proposed, after = PROPOSED[type(operation)](operation, sizes)
    return together(proposed, {"bytes": moved(sizes, after)})


def together(*parts: Work) -> Work:
    """Several pieces of work, one after the other."""
    found: dict[str, float] = defaultdict(float)
    for part in parts:
        for kind, amount in part.items():
            found[kind] += amount
    return dict(found)


def flops(amounts: Work) -> float:
    """Floating-point operations of every kind together."""
    return sum(amounts.get(kind, 0.0) for kind in FLOPS)


def seconds(amounts: Work, rates: Work) -> float:
    """How long it takes at these rates (per second), one thing after the other."""
    return sum(amount / rates[kind] for kind, amount in amounts.items())


def step(sizes: Sizes, batch: int, pixels: int = 1) -> Work:
    """A training step of the two weights around the layer with Adam: forward, and twice as much backward."""
    entries = sizes.incoming + sizes.outgoing
    return {"single": 6.0 * batch * pixels * entries, "bytes": 4.0 * 10 * entries}


def forward(sizes: Sizes, batch: int, pixels: int = 1) -> Work:
    entries = sizes.incoming + sizes.outgoing
    return {"single": 2.0 * batch * pixels * entries, "bytes": 4.0 * entries}


def moved(sizes: Sizes, after: float) -> float:
    """Bytes of rebuilding both weights in single precision, each with its gradient and Adam's two moments."""
    return 4 * 4.0 * (1 + after / sizes.units) * (sizes.incoming + sizes.outgoing)


def _nothing(operation: RandomRemove | ZeroExpand, sizes: Sizes) -> tuple[Work, float]:
    kept = operation.keep if isinstance(operation, RandomRemove) else 1 + operation.grow
    return {}, kept * sizes.units


def _norms(operation: MinWeight | WeakExpand, sizes: Sizes) -> tuple[Work, float]:
    kept = operation.keep if isinstance(operation, MinWeight) else 1 + operation.grow
    return together({"products": 2.0 * sizes.outgoing}, _in_double(sizes)), kept * sizes.units


def _mean_replace(operation: MeanReplace, sizes: Sizes) -> tuple[Work, float]:
    """Means and what they miss, over the signals; norms of the outgoing weights, and what they send on of the means."""
    seen = sizes.samples * sizes.units
    found = {"products": 4.0 * seen + 4.0 * sizes.outgoing, "bytes": 8.0 * 6 * seen}
    return together(found, _in_double(sizes)), operation.keep * sizes.units


def _idle(operation: RemoveDead | Revive, sizes: Sizes) -> tuple[Work, float]:
    """Saliencies and means over the signals, and what is sent on of the means."""
    seen = sizes.samples * sizes.units
    found = {"products": 8.0 * seen + 2.0 * sizes.outgoing, "bytes": 8.0 * 6 * seen}
    kept = sizes.kept if sizes.kept is not None and isinstance(operation, RemoveDead) else sizes.units
    return together(found, _in_double(sizes)), kept


def _sorted(operation: PruneWeights, sizes: Sizes) -> tuple[Work, float]:
    return {"bytes": 16.0 * sizes.incoming * math.log2(max(sizes.incoming, 2))}, sizes.units


def _counted(operation: Compact, sizes: Sizes) -> tuple[Work, float]:
    return {"bytes": 48.0 * (sizes.incoming + sizes.outgoing)}, sizes.units


def _eigen_remove(operation: EigenRemove, sizes: Sizes) -> tuple[Work, float]:
    rank = 1.0 if operation.rank is None else operation.rank  # what a threshold leaves is known afterwards: at most all
    found = together(_hosvd(rank, sizes), _in_double(sizes))
    if operation.weights == "reduced":
        turned = replace(sizes, outputs=sizes.inputs)
        found = together(found, _hosvd(rank, turned), _in_double(turned))
    return found, operation.keep * sizes.units


def _hosvd(rank: float, sizes: Sizes) -> Work:
    units, outputs, positions = sizes.units, sizes.outputs, sizes.positions
    size = max(1, math.floor(rank * min(units, outputs)))
    modes = [(units, outputs * positions), (outputs, units * positions)]
    if positions == 1:
        modes = [min(modes)]
    found: dict[str, float] = defaultdict(float)
    for rows, columns in modes:
        if size >= rows:
            continue
        low, high = min(rows, columns), max(rows, columns)
        found["products"] += low**2 * high
        if low > EXACT_UP_TO and size <= FEW * low:
            width = size + SPARE
            found["products"] += 2 * (ROUNDS + 1) * low**2 * width
            found["qr"] += 4 * ROUNDS * low * width**2
        else:
            found["eigen"] += 4 / 3 * low**3
        if rows > columns:
            found["products"] += 2 * rows * columns * size
            found["qr"] += 4 * rows * size**2
    if positions == 1:
        found["products"] += 4 * units * outputs * size
    else:
        found["products"] += 2 * positions * size * (units * outputs + outputs * size + units * size)
    return found


def _pcns(operation: PCNS, sizes: Sizes) -> tuple[Work, float]:
    units, samples = sizes.units, sizes.samples
    kept = sizes.kept if sizes.kept is not None else units
    rows = min(units, samples)
    triangle = 2 * units * rows**2 - 2 / 3 * rows**3
    found: dict[str, float] = defaultdict(float)
    found |= {"values": 4 / 3 * rows**3, "pivoting": triangle, "qr": triangle, "bytes": 8.0 * 6 * samples * units}
    if samples > units:
        found["qr"] += 2 * samples * units**2 - 2 / 3 * units**3
    found["products"] += rows**2 * units + kept**3 / 3 + 2 * kept**2 * (units - kept) + 2 * rows * kept * units
    found["products"] += 2 * units * kept * sizes.outputs * sizes.positions
    return found, kept


def _in_double(sizes: Sizes) -> Work:
    """The outgoing weights by unit in double precision: read, converted, gathered, and their norms taken."""
    return {"bytes": 48.0 * sizes.outgoing}


#: Operations that look at gradients: a forward pass and a backward pass to the inputs more, three passes in all.
SLOPED = (RemoveDead, Revive)

PROPOSED: dict[type[Operation], Callable[..., tuple[Work, float]]] = {
    Compact: _counted,
    EigenRemove: _eigen_remove,
    MeanReplace: _mean_replace,
    MinWeight: _norms,
    PCNS: _pcns,
    PruneWeights: _sorted,
    RandomRemove: _nothing,
    RemoveDead: _idle,
    Revive: _idle,
    WeakExpand: _norms,
    ZeroExpand: _nothing,
}
