"""HashWeights: a weight's entries read fewer stored numbers, the hash of its position saying which.

Source: Chen et al. 2015, *Compressing neural networks with the hashing trick* (HashedNets). There networks are hashed
from the start, dense ones; here it can strike at any epoch (at 0 it is the same), and convolutions as well. The maths
is in ``ops.network.hashed``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from network_surgery.ops.anatomy import WHOLE, HiddenLayer
from network_surgery.ops.errors import SurgeryError, Unsuitable
from network_surgery.ops.maths.double import energy
from network_surgery.ops.network.expressed import Compressed
from network_surgery.ops.network.hashed import Hashed
from network_surgery.ops.operation import Operation, choice, fraction, whole
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals

#: Modules that look rows of their weight up.
TABLES = (nn.Embedding, nn.EmbeddingBag)
#: What is stored first: means of the weights that there are, or fresh random numbers.
VALUES = ("means", "fresh")


@dataclass(frozen=True)
class HashWeights(Operation):
    """Hashes the weights that make one layer, or all weights of the network (layer ``*``), the output's included.

    ``compression``: stored numbers for each entry of a weight, above 0 and at most 1 (1/8 by default). ``sign``: each
    entry has a sign of its own, from another hash. ``values``: what is stored is the ``means`` of the entries that read
    the same number (the least squares), or ``fresh`` normal numbers of the weight's deviation: the means of random
    weights nearly vanish, so a network that trains with it from epoch 0 begins with ``fresh``. ``seed``: of the hashes
    and of the fresh numbers; each weight has a hash of its own.

    Biases and norms stay, and so do weights under a mask or hashed before. Bytes go down, FLOPs do not. The plan's
    ``error`` is the relative error of the weights, which is that of what they make of inputs that are uncorrelated and
    of one size. An optimizer's first moments become exactly those of the stored numbers, second ones as if the
    gradients of entries that share a number were uncorrelated; with ``fresh`` numbers it begins anew.
    """

    compression: float = 0.125
    sign: bool = True
    values: str = "means"
    seed: int = 0
    whole_network: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "compression", self.compression)
        choice(self, "sign", self.sign, (True, False))
        choice(self, "values", self.values, VALUES)
        whole(self, "seed", self.seed)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        def make_hashed(name: str, weight: Tensor, seed: int) -> Hashed:
            return Hashed(weight.shape, max(1, round(self.compression * weight.numel())), seed, self.sign)

        return expressing(self, layer, plain_weights(self, layer), self.seed, make_hashed, self.values == "fresh")


def plain_weights(operation: Operation, layer: HiddenLayer) -> list[str]:
    """The weights of a layer, or of the network, that can be expressed otherwise.

    Raises:
        SurgeryError: there are none.
    """
    anatomy = layer.anatomy
    names = anatomy.weights if layer.name == WHOLE else [place.tensor for place in layer.makers]
    names = [n for n in dict.fromkeys(names) if n in anatomy.weights and anatomy.mask(n) is None]
    if not names:
        raise Unsuitable(
            f"{operation!r} on {layer.name}: there are no plain weights; masked ones, hashed ones and so on stay"
        )
    return names


def expressing(
    operation: Operation,
    layer: HiddenLayer,
    names: Iterable[str],
    seed: int,
    express: Callable[[str, Tensor, int], Compressed],
    fresh: bool = False,
) -> Plan:
    """The plan in which these weights become ``express(name, weight, seed of its own)``.

    ``fresh``: what is stored is random, such that the weights have the deviation that they have now.

    Raises:
        SurgeryError: a weight cannot be computed, as a module looks its rows up, or is not finite.
    """
    anatomy, expressed, numbers = layer.anatomy, dict[str, Compressed](), dict[str, Tensor]()
    missed = size = 0.0
    for name in names:
        tables = [m for m in anatomy.modules.values() if isinstance(m, TABLES) and m.weight is anatomy.tensor(name)]
        if any(each.sparse or each.max_norm is not None for each in tables):
            raise Unsuitable(
                f"{operation!r} on {layer.name}: {name} is a table of embeddings with sparse=True or max_norm, which "
                "works on a parameter only"
            )
        weight, own = anatomy.live(name), zlib.crc32(f"{seed} {name}".encode())
        if not weight.isfinite().all():
            raise SurgeryError(f"{operation!r} on {layer.name}: {name} holds values that are not finite")
        each = express(name, weight, own).to(weight.device)
        if fresh:
            kind = torch.complex64 if weight.is_complex() else torch.float32
            drawn = torch.randn(each.stored_shape, generator=torch.Generator().manual_seed(own), dtype=kind).to(weight)
            numbers[name] = each.begin(drawn * weight.std(correction=0))
        elif not each.linear:
            numbers[name] = each.reduced(weight)
        made = each.weight(numbers[name] if name in numbers else each.reduced(weight))
        missed, size = missed + float(energy(made - weight).sum()), size + float(energy(weight).sum())
        expressed[name] = each
    flops = sum(each.flops() for each in expressed.values())
    notes = (f"each forward pass computes the weights, {flops:,} FLOPs, whatever the batch",) if flops else ()
    return Plan(
        layer, repr(operation), tuple(range(layer.units)), expressed=expressed, fresh=numbers, notes=notes,
        error=math.sqrt(missed / size) if size else 0.0,
    )  # fmt: skip
