"""ShareWeights: the entries of a weight share the values of a codebook, by k-means; the codebook is trained on.

Sources: Gong et al. 2014, *Compressing deep convolutional networks using vector quantization*; Han, Mao and Dally 2016,
*Deep compression*, section 3. The maths is in ``ops.maths.clusters`` and ``ops.network.codebook``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.maths.clusters import cluster
from network_surgery.ops.network.codebook import Codebook
from network_surgery.ops.operation import Operation, choice, whole
from network_surgery.ops.operations.hash_weights import expressing, plain_weights
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals

#: One codebook for all blocks of a weight, or one for each block of a row.
CODEBOOKS = ("one", "each")


@dataclass(frozen=True)
class ShareWeights(Operation):
    """Clusters the weights that make one layer, or all weights of the network (layer ``*``), the output's included.

    ``clusters``: the values of a codebook, from 2 to 65,536 (fewer where a weight has fewer blocks). ``block``: the
    entries of a row that are coded together: 1 is scalar quantization; the kernel's size codes kernels as wholes.
    ``codebooks``: ``one`` for a weight, or one for ``each`` block of its rows, which is product quantization: it is
    closer to the weight, and takes clusters × block numbers for each block. ``seed``: of k-means, which begins with
    k-means++.

    Bytes go down, FLOPs do not. Stored are the codebook, in the weight's precision, and log₂ ``clusters`` bits for each
    block; which entries share a value never changes again. The plan's ``error`` is that of the weights, as in
    ``HashWeights``, which also says how an optimizer's state follows; biases, norms and weights under a mask stay.
    """

    clusters: int = 16
    block: int = 1
    codebooks: str = "one"
    seed: int = 0
    whole_network: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("clusters", "block", "seed"):
            whole(self, name, getattr(self, name))
        choice(self, "codebooks", self.codebooks, CODEBOOKS)
        if not 2 <= self.clusters <= 1 << 16:
            raise SurgeryError(f"ShareWeights: clusters is {self.clusters}, but there are from 2 to 65,536")
        if not self.block:
            raise SurgeryError("ShareWeights: block is 0, but at least one entry is coded")

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        return expressing(self, layer, plain_weights(self, layer), self.seed, self._shared)

    def _shared(self, name: str, weight: Tensor, seed: int) -> Codebook:
        rows = weight.flatten(1)
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % self.block)).view(len(rows), -1, self.block)
        parts = rows.unbind(1) if self.codebooks == "each" else [rows.flatten(0, 1)]
        codes = torch.stack([cluster(part, self.clusters, seed) for part in parts], dim=1).view(len(rows), -1)
        return Codebook(weight.shape, int(codes.max()) + 1, self.block, self.codebooks == "each", seed, codes)
