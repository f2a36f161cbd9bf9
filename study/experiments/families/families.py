"""The families of smaller networks, as data, and which setting of each has a file of a given size.

A family is a function of a setting and a seed that returns an operation for each layer of LeNet-300-100 (``*``: for the
whole network). It strikes before training, or after half of the epochs.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from network_surgery import ops
from network_surgery.ops.anatomy import WHOLE

#: The network, the hidden layers of it, and the arm that nobody makes smaller.
NETWORK, LAYERS, ORIGINAL = "lenet_300_100", ("fc1", "fc2"), "original"
#: Fractions that settings are chosen of, a fiftieth apart, and the smallest of them.
LEAST = 1 / 512
FRACTIONS = tuple(LEAST * 1.02**step for step in range(math.floor(-math.log(LEAST) / math.log(1.02)) + 1))
#: Entries that are coded together and values of a codebook, from the fewest bits for an entry to the most.
CODES = (
    *((8, 2**bits) for bits in range(3, 8)), *((4, 2**bits) for bits in range(4, 8)),
    *((2, 2**bits) for bits in range(4, 8)), *((1, 2**bits) for bits in range(4, 9)),
)  # fmt: skip
Operations = Mapping[str, ops.Operation]
Setting = Any


def whole(operation: Callable[[Setting, int], ops.Operation]) -> Callable[[Setting, int], Operations]:
    """An operation on the whole network at once."""
    return lambda setting, seed: {WHOLE: operation(setting, seed)}


def each_hidden(operation: Callable[[Setting, int], ops.Operation]) -> Callable[[Setting, int], Operations]:
    """The same operation on each hidden layer."""
    return lambda setting, seed: dict.fromkeys(LAYERS, operation(setting, seed))


def predict_hidden(dictionary: str) -> Callable[[Setting, int], Operations]:
    """Both hidden layers predicted by one kind of dictionary; the classifier is not, as in Denil et al."""
    return whole(lambda rank, seed: ops.PredictWeights(rank, dictionary, values="fresh", seed=seed))


def _pixels(rank: float, seed: int) -> Operations:
    return {
        "fc1": ops.PredictWeights(rank, "rbf", values="fresh", seed=seed),
        "fc2": ops.PredictWeights(rank, "orthogonal", values="fresh", seed=seed),
    }


@dataclass(frozen=True)
class Family:
    """``operations(setting, seed)``, one for each layer; ``settings``: from the smallest file to the largest.

    ``halfway``: after half of the epochs, on trained weights; else before training. ``restart``: all weights are drawn
    anew afterwards, so that it is a fresh network of the smaller architecture. ``distilled``: trained to answer like
    the original, too. ``by_bytes``: the setting is the largest whose file fits; else it is the fraction itself, and the
    file takes what it takes. ``like``: the family whose files are as large at every setting, which is quicker to try.
    """

    operations: Callable[[Setting, int], Operations]
    settings: Sequence[Setting] = FRACTIONS
    halfway: bool = False
    restart: bool = False
    distilled: bool = False
    by_bytes: bool = True
    like: str = ""

    def operate(
        self, model: nn.Module, shown: Tensor, setting: Setting, seed: int, optimizers: Sequence[Optimizer] = ()
    ) -> None:
        """Makes a network smaller, first layer to last. ``shown [n, …]``: inputs that dictionaries are measured on."""
        for name, operation in self.operations(setting, seed).items():
            layer = ops.Anatomy(model, shown[:2])[name]
            signals = ops.Signals(model, shown) if operation.needs_signals else None
            ops.operate(layer, operation, optimizers, signals)
        if self.restart:
            for module in model.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()


HASHED, DISTILLED, EDGES, SMALL = "hashed", "hashed, distilled", "random edges", "small dense"
GAUSSIAN, FASTFOOD = "gaussian (low rank)", "fastfood"
HALF_HASHED, STRETCHED, SHARED = "hashed halfway", "stretch (SVD)", "share_weights (k-means)"
MIN_WEIGHT, EIGEN, PRUNED = "min_weight", "eigen_remove", "prune_weights"
#: Those with a dictionary, but for the one that HashedNets were compared with.
DICTIONARIES = ("identity", "orthogonal", "rbf", "covariance", "autoencoder")

FAMILIES: dict[str, Family] = {
    HASHED: Family(whole(lambda share, seed: ops.HashWeights(share, values="fresh", seed=seed))),
    DISTILLED: Family(
        whole(lambda share, seed: ops.HashWeights(share, values="fresh", seed=seed)), distilled=True, like=HASHED
    ),
    EDGES: Family(whole(lambda share, seed: ops.RandomEdges(share, values="fresh", seed=seed)), like=HASHED),
    SMALL: Family(each_hidden(lambda keep, seed: ops.RandomRemove(keep, seed)), restart=True),
    FASTFOOD: Family(whole(lambda _, seed: ops.Fastfood("fresh", seed)), settings=(1,)),
    GAUSSIAN: Family(predict_hidden("gaussian")),
    "identity": Family(predict_hidden("identity"), like=GAUSSIAN),
    "orthogonal": Family(predict_hidden("orthogonal"), like=GAUSSIAN),
    "rbf": Family(_pixels),
    "covariance": Family(predict_hidden("covariance")),
    "autoencoder": Family(predict_hidden("autoencoder"), like="covariance"),
    HALF_HASHED: Family(whole(lambda share, seed: ops.HashWeights(share, seed=seed)), halfway=True, like=HASHED),
    STRETCHED: Family(each_hidden(lambda rank, _: ops.Stretch(rank)), halfway=True),
    SHARED: Family(
        whole(lambda code, seed: ops.ShareWeights(code[1], code[0], seed=seed)), settings=CODES, halfway=True
    ),
    MIN_WEIGHT: Family(each_hidden(lambda keep, _: ops.MinWeight(keep)), halfway=True, like=SMALL),
    EIGEN: Family(each_hidden(lambda keep, _: ops.EigenRemove(keep)), halfway=True, like=SMALL),
    PRUNED: Family(whole(lambda share, _: ops.PruneWeights(1 - share)), halfway=True, by_bytes=False),
}  # fmt: skip
#: Those that are measured unless others are asked for: with fastfood, whose weights take a hundred times as long to
#: compute as they take to multiply, a run of hundreds of steps takes minutes.
TRIED = tuple(name for name in FAMILIES if name != FASTFOOD)


def all_settings(
    families: Sequence[str], build: Callable[[], nn.Module], shown: Tensor, factors: Sequence[int]
) -> dict[str, dict[int, Setting]]:
    """``settings_for`` each of these families."""

    @functools.cache
    def settings(name: str) -> dict[int, Setting]:
        return settings_for(FAMILIES[name], build, shown, factors)

    return {name: settings(FAMILIES[name].like or name) for name in families}


def settings_for(
    family: Family, build: Callable[[], nn.Module], shown: Tensor, factors: Sequence[int]
) -> dict[int, Setting]:
    """Factor → the largest setting whose file has at most ``1 / factor`` of the original's bytes.

    A factor that no setting reaches is missing, and so is one whose setting a larger factor has already.
    """
    if not family.by_bytes:
        return {factor: 1 / factor for factor in factors}

    @functools.cache
    def size(at: int) -> int:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build()
            family.operate(model, shown, family.settings[at], 0)
        return ops.saved_bytes(model)

    original, chosen = ops.saved_bytes(build()), dict[int, Setting]()
    for factor in sorted(factors, reverse=True):
        fitting = bisect.bisect_right(range(len(family.settings)), original / factor, key=size)
        if fitting and family.settings[fitting - 1] not in chosen.values():
            chosen[factor] = family.settings[fitting - 1]
    return dict(sorted(chosen.items()))
