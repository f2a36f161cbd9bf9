"""TriFactorize: all weights are factorized at once, and those that the factors explain least go under masks.

Source: the draft *Convolutional network pruning with matrix factorization* (its authors are not named): the weights of
convolutions and of dense layers are collected apart, pruned by a simultaneous tri-factorization, and training goes on.
It gives no equation and no rule of what is pruned. Ours: the objective, the factors (``ops.maths.tri_factors``, where
the reasons are), how a weight's explanation is measured, and the choice of what goes.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from network_surgery.ops.anatomy import WHOLE, HiddenLayer, Place
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.maths.double import double, energy
from network_surgery.ops.maths.tri_factors import Side, tri_factors
from network_surgery.ops.operation import Operation, choice, fraction, whole
from network_surgery.ops.operations.prune_weights import SCOPES, evidence_of, highest
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals

#: Which weights go: those that the factors explain least, or most.
EXPLAINED = ("least", "most")
#: What a weight w misses in the model ŵ is measured in: |w − ŵ|, or that over |w|.
MEASURES = ("relative", "absolute")
#: Whether convolutions and dense layers share factors where they meet, and are ranked together.
CONVOLUTIONS = ("apart", "together")
#: A model that misses less than this share of the weights' squared norm explains all of them, but for rounding.
ALL = 1e-12


@dataclass(frozen=True)
class TriFactorize(Operation):
    """Masks weights by how well G S Gᵀ explains them: of the network (layer ``*``), or those that make or read a layer.

    The factor G of a hidden layer is the same in all weights on both its sides. ``rank``: its columns for each unit,
    above 0 and below 1. ``fraction``: how many of these weights are zero afterwards, as in ``PruneWeights``, also
    ``scope``. ``explained``: those go first that the model explains ``least``, or ``most``. ``measure``: of a weight w
    and the model's ŵ, the error |w − ŵ| (``absolute``), or that over |w| (``relative``); so weights far below what the
    model has in their place go first by ``least`` and ``relative``. ``convolutions``: they and dense weights
    (``together``) share factors where they meet and are ranked together; or each kind (``apart``, as in the source) has
    factors of its own and loses the fraction. ``rounds``: of alternating least squares, at most.

    A layer that is made and read by one weight (a recurrent one) has its factor on the side that makes it. Weights
    that neither make nor read units of a layer stay, and so do biases, norms and what is stored otherwise (hashed). The
    plan's ``error`` is the relative size of the weights that go. Evidence: ``pruned``, ``sparsity`` and ``left_over``,
    the share of the weights' squared norm that the model misses.

    Raises:
        SurgeryError: (``propose``) there are no such weights, they are not finite, or the model explains all of them.
    """

    fraction: float = 0.5
    rank: float = 0.25
    explained: str = "least"
    measure: str = "relative"
    convolutions: str = "apart"
    scope: str = "global"
    rounds: int = field(default=20, repr=False)
    whole_network: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "fraction", self.fraction)
        fraction(self, "rank", self.rank)
        choice(self, "explained", self.explained, EXPLAINED)
        choice(self, "measure", self.measure, MEASURES)
        choice(self, "convolutions", self.convolutions, CONVOLUTIONS)
        choice(self, "scope", self.scope, SCOPES)
        whole(self, "rounds", self.rounds)
        if self.rank == 1:
            raise SurgeryError("TriFactorize: rank is 1, but it must be lower: at full rank every weight is explained")

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        anatomy = layer.anatomy
        sides = self._sides(layer)
        named = {side.weight for side in sides}
        live = {name: anatomy.live(name) for name in anatomy.weights if name in named}
        # Many small steps, each of which decides the next one: on a GPU it would wait for every one of them.
        weights = {name: double(weight.cpu()) for name, weight in live.items()}
        if not weights:
            raise SurgeryError(f"{self!r} on {layer.name}: there are no weights that could be factorized")
        for name, weight in weights.items():
            if not weight.isfinite().all():
                raise SurgeryError(f"{self!r} on {layer.name}: {name} holds values that are not finite")
        model = tri_factors(weights, sides, self.rank, self.rounds)
        if model.objectives[-1] <= ALL * model.total:
            raise SurgeryError(
                f"{self!r} on {layer.name}: factors of this rank explain every weight, so they do not tell which ones "
                "to prune; take a lower rank"
            )
        scores = {name: self._scores(weight, model.weight(name, weight)) for name, weight in weights.items()}
        lives = {
            name: torch.ones_like(score, dtype=torch.bool)
            if (mask := anatomy.mask(name)) is None
            else mask.bool().cpu()
            for name, score in scores.items()
        }
        masks: dict[str, Tensor] = {}
        for names in self._ranked_together(weights):
            masks |= highest({name: scores[name] for name in names}, lives, self.fraction)
        gone = sum(float(energy(weights[name][~mask]).sum()) for name, mask in masks.items())
        changed = {
            name: mask.to(live[name].device) for name, mask in masks.items() if not torch.equal(mask, lives[name])
        }
        evidence = evidence_of(lives, masks) | {"left_over": model.objectives[-1] / model.total}
        return Plan(
            layer, repr(self), tuple(range(layer.units)), masks=changed, evidence=evidence,
            error=math.sqrt(gone / model.total),
        )  # fmt: skip

    def _sides(self, layer: HiddenLayer) -> list[Side]:
        """The axes of weights on which there are units of hidden layers."""
        anatomy, found = layer.anatomy, dict[tuple[str, Hashable], Side]()
        for each in anatomy.values() if layer.name == WHOLE else [layer]:
            for place in (*each.makers, *each.readers):
                if place.tensor in anatomy.weights:
                    kind = self._kind(anatomy.live(place.tensor))
                    side = _side(each, place, (each.name, kind))
                    found.setdefault((place.tensor, side.layer), side)
        return list(found.values())

    def _kind(self, weight: Tensor) -> str:
        """What a weight shares factors with and is ranked among."""
        apart = self.convolutions == "apart" and weight.dim() > 2
        return "convolutions" if apart else "all others"

    def _ranked_together(self, weights: dict[str, Tensor]) -> list[list[str]]:
        if self.scope == "layer":
            return [[name] for name in weights]
        kinds: dict[str, list[str]] = {}
        for name, weight in weights.items():
            kinds.setdefault(self._kind(weight), []).append(name)
        return list(kinds.values())

    def _scores(self, weight: Tensor, model: Tensor) -> Tensor:
        """The lowest go first."""
        error = (weight - model).abs()
        if self.measure == "relative":  # grows with |w − ŵ| / |w|, and stays finite
            error = error / (error + weight.abs()).clamp(min=torch.finfo(error.dtype).tiny)
        return error if self.explained == "most" else -error


def _side(layer: HiddenLayer, place: Place, key: Hashable) -> Side:
    def unfold(weight: Tensor) -> Tensor:
        return layer.by_unit(place, weight).flatten(1)

    return Side(key, place.tensor, unfold, partial(layer.written, place))
