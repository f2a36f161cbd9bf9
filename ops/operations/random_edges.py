"""RandomEdges: a random part of a weight's entries stays, all others are zero for good: the rival of hashing.

Source: random edge removal in Chen et al. 2015, *Compressing neural networks with the hashing trick*, section 6 (after
Cireşan et al. 2011). Which entries stay follows from a seed, so that only their values are stored, and a network takes
the bytes that a hashed one of the same ``compression`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.network.hashed import Edges
from network_surgery.ops.operation import Operation, choice, fraction, whole
from network_surgery.ops.operations.hash_weights import VALUES, expressing, plain_weights
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals


@dataclass(frozen=True)
class RandomEdges(Operation):
    """Keeps random entries of the weights that make one layer, or of all weights of the network (layer ``*``).

    ``compression``: the fraction of each weight's entries that stays, above 0 and at most 1. ``values``: they keep
    theirs (``means``, of one entry each), or begin anew (``fresh``), with deviations that are larger by the root of
    1/compression, so that units begin with inputs of the same size. ``seed`` fixes which entries stay. All else as in
    ``HashWeights``; optimizer state is exact.
    """

    compression: float = 0.125
    values: str = "means"
    seed: int = 0
    whole_network: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "compression", self.compression)
        choice(self, "values", self.values, VALUES)
        whole(self, "seed", self.seed)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        def edges(name: str, weight: Tensor, seed: int) -> Edges:
            return Edges(weight.shape, max(1, round(self.compression * weight.numel())), seed)

        return expressing(self, layer, plain_weights(self, layer), self.seed, edges, self.values == "fresh")
