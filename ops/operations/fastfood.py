"""Fastfood: a weight becomes a product of Walsh–Hadamard transforms and three learned diagonals.

Sources: Yang et al. 2015, *Deep fried convnets* (Adaptive Fastfood, dense layers, trained from the start); Le, Sarlós
and Smola 2013, *Fastfood: approximating kernel expansions in loglinear time*. Here it can strike at any epoch, and
convolutions as well. The maths is in ``ops.maths.hadamard`` and ``ops.network.fastfood``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.errors import Unsuitable
from network_surgery.ops.network.fastfood import Fastfood as Expression
from network_surgery.ops.operation import Operation, choice, whole
from network_surgery.ops.operations.hash_weights import expressing, plain_weights
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals

#: What is stored first: diagonals fitted to the weights that there are, or fresh random ones.
VALUES = ("fitted", "fresh")


@dataclass(frozen=True)
class Fastfood(Operation):
    """Makes the weights of one layer, or all weights of the network (layer ``*``), products S H G Π H B.

    About as many numbers are stored as a weight has rows and twice its columns, whatever its size: there is no setting
    for how many. ``values``: the diagonals are ``fitted`` to the weights (alternating least squares), or ``fresh``
    random ones such that the weights have their deviation: few trained weights are nearly such a product, so it is
    meant for training from epoch 0. ``seed``: of the permutations Π, of the fit and of fresh numbers.

    Bytes go down, FLOPs do not: the weights are computed in each forward pass (``notes``). The plan's ``error`` is that
    of the weights, as in ``HashWeights``. Optimizer state begins anew, and an average of the network begins with its
    numbers. Biases, norms and weights under a mask stay. ``propose`` raises SurgeryError where there are no plain
    weights of real numbers.
    """

    values: str = "fitted"
    seed: int = 0
    whole_network: ClassVar[bool] = True

    def __post_init__(self) -> None:
        choice(self, "values", self.values, VALUES)
        whole(self, "seed", self.seed)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        def product(name: str, weight: Tensor, seed: int) -> Expression:
            if weight.is_complex():
                raise Unsuitable(f"{self!r} on {layer.name}: {name} is not of real numbers")
            return Expression(weight.shape, seed)

        return expressing(self, layer, plain_weights(self, layer), self.seed, product, self.values == "fresh")
