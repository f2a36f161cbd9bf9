"""Pruning of weights: those with the lowest scores become zero and stay so, under a mask; no tensor shrinks.

Source: Evci 2018, *Detecting dead weights and units*, section 2.2 (a growing fraction of all weights, by magnitude);
the ``quality`` of a threshold: Han et al. 2015, *Learning both weights and connections*, where it multiplies the
standard deviation of a layer's weights. ``compact`` then removes the units that pruning left without input or output.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from network_surgery.ops.anatomy import WHOLE, HiddenLayer
from network_surgery.ops.errors import NoSignal, SurgeryError, Unsuitable
from network_surgery.ops.network.dropout import scale_ratios
from network_surgery.ops.operation import Operation, choice, fraction, whole
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.brain_surgeon import BLOCK, DAMPING, BrainSurgeon
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.signals.weight_scores import BLIND, SCORES, Weights, weight_scores

SCOPES = ("global", "layer")
SURVIVORS = ("kept", "fresh")
FRACTION = 0.5


@dataclass(frozen=True, repr=False)
class PruneWeights(Operation):
    """Masks the weights with the lowest scores: of the whole network (layer ``*``), or those that make one layer.

    ``fraction``: how many of the weights are zero afterwards, above 0 and at most 1; those pruned before count, and
    they stay pruned. Instead of it, ``threshold``: all weights with a lower score go; or ``quality``: all that are
    smaller than this number of standard deviations of their own tensor's weights (of those that are left). ``score``:
    see ``weight_scores``, also for ``strength`` and ``seed``. ``scope``: all weights are ranked together (``global``),
    or the fraction is taken from every tensor (``layer``).

    ``obs`` also gives the weights that stay new values, which make up for those that go. ``block``: of how many
    weights of a unit each inverse Hessian is, at most (it takes as many numbers for each weight); ``damping``: how much
    of the mean curvature of a tensor is added to that of each weight, so that there is an inverse.

    ``survivors``: the weights that stay keep their values (``kept``), or begin anew (``fresh``, by the ``seed``):
    normal numbers of the deviation 1/√(inputs that a unit has left), under the optimizer state that was there.
    ``dropout``: the ratio of each ``nn.Dropout`` is multiplied by √(connections left / before) of the last weight
    before it, as less is left to overfit with (Han et al., section 3.2). Files, checkpoints and restarts have it.

    Weights are the factors of products, such as those of dense layers and convolutions, the output's included; biases
    and norms are none. The plan's evidence: ``pruned`` weights (new ones), ``sparsity`` (the fraction of zeros
    afterwards), ``threshold`` (the highest score that went) and, of ``obd`` and ``obs``, ``loss_change`` (what the
    curvature predicts). Operations that write anew what reads a layer
    (``pcns``, the repair ``least_squares``, …) lift the masks there.
    """

    fraction: float = FRACTION
    threshold: float | None = None
    quality: float | None = None
    score: str = "magnitude"
    scope: str = "global"
    strength: float = 1.0
    seed: int = 0
    block: int = field(default=BLOCK, repr=False)
    damping: float = field(default=DAMPING, repr=False)
    survivors: str = field(default="kept", repr=False)
    dropout: bool = field(default=False, repr=False)
    whole_network: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "fraction", self.fraction)
        choice(self, "score", self.score, SCORES)
        choice(self, "scope", self.scope, SCOPES)
        choice(self, "survivors", self.survivors, SURVIVORS)
        choice(self, "dropout", self.dropout, (True, False))
        whole(self, "seed", self.seed)
        whole(self, "block", self.block)
        fraction(self, "damping", self.damping)
        if not self.block:
            raise SurgeryError("PruneWeights: block is 0, but a block has at least one weight")
        for name in ("threshold", "quality"):
            if not isinstance(getattr(self, name), (int, float, type(None))):
                raise SurgeryError(f"PruneWeights: {name} is {getattr(self, name)!r}, but it must be a number")
        if self.quality is not None and (self.quality <= 0 or self.score != "magnitude" or self.threshold is not None):
            raise SurgeryError("PruneWeights: a quality is above 0, of the score magnitude and without a threshold")
        for name in ("threshold", "quality"):
            if self.fraction != FRACTION and (other := getattr(self, name)) is not None:
                raise SurgeryError(f"PruneWeights: fraction is {self.fraction} and {name} is {other}; give one of them")

    @property
    def needs_signals(self) -> bool:  # type: ignore[override]
        return self.score not in BLIND

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        anatomy = layer.anatomy
        names = anatomy.weights if layer.name == WHOLE else [place.tensor for place in layer.makers]
        names = [name for name in dict.fromkeys(names) if name in anatomy.weights]
        if not names:
            raise Unsuitable(f"{self!r} on {layer.name}: there are no weights that could be pruned")
        seen: dict[str, Any] = {}
        if self.needs_signals:
            if signals is None or (signals.targets is None and signals.loss_function is None):
                raise SurgeryError(
                    f"{self!r} on {layer.name} looks at the loss: give it Signals(model, inputs, targets)"
                )
            signals.check_network(layer)
            seen = {"inputs": signals.inputs, "targets": signals.targets, "loss": signals.loss_function}
        surgeon: BrainSurgeon | None = None
        if self.score == "obs":
            surgeon = BrainSurgeon(anatomy.model, names, **seen, block=self.block, damping=self.damping, seed=self.seed)
            scores = surgeon.scores
        else:
            scores = weight_scores(anatomy.model, names, self.score, **seen, strength=self.strength, seed=self.seed)
        if any(not torch.isfinite(each).all() for each in scores.values()):
            raise SurgeryError(f"{self!r} on {layer.name}: scores are not finite, as weights or outputs are not")
        if self.needs_signals and not any(each.any() for each in scores.values()):
            raise NoSignal(
                f"{self!r} on {layer.name}: every score is 0, so the loss does not tell which weights to prune"
            )
        before = {name: anatomy.mask(name) for name in names}
        lives = {
            name: torch.ones_like(scores[name], dtype=torch.bool) if mask is None else mask.bool()
            for name, mask in before.items()
        }
        masks = self._masks(scores, lives, {name: anatomy.live(name)[lives[name]] for name in names})
        if self.needs_signals:
            _check_signal(self, layer, scores, {name: lives[name] & (anatomy.live(name) != 0) for name in names}, masks)
        changed = {name: mask for name, mask in masks.items() if not torch.equal(mask, lives[name])}
        evidence, replaced = evidence_of(lives, masks), Weights()
        if evidence["pruned"]:
            gone = ((scores[name], lives[name] & ~mask) for name, mask in changed.items())
            evidence["threshold"] = max(float(score[each].max()) for score, each in gone)
        if surgeon is not None:
            replaced, evidence["loss_change"] = surgeon.compensate({name: ~mask for name, mask in changed.items()})
        elif self.score == "obd":
            evidence["loss_change"] = sum(float(scores[name][~mask].double().sum()) for name, mask in changed.items())
        if self.survivors == "fresh":
            replaced = {name: self._fresh(name, mask, anatomy.live(name)) for name, mask in changed.items()}
            evidence.pop("loss_change", None)  # that of survivors which are no more
        left = {name: (int(mask.sum()), int(lives[name].sum())) for name, mask in masks.items()}
        ratios = scale_ratios(anatomy.model, anatomy.example_input, left) if self.dropout else {}
        return Plan(
            layer, repr(self), tuple(range(layer.units)), masks=changed, replaced=replaced, ratios=ratios,
            evidence=evidence,
        )  # fmt: skip

    def _fresh(self, name: str, mask: Tensor, like: Tensor) -> Tensor:
        """Values of a parameter as training could have begun with, under its mask."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        kind = torch.complex64 if like.is_complex() else torch.float32
        drawn = torch.randn(like.shape, generator=generator, dtype=kind).to(like)
        inputs = int(mask.sum()) / max(1, like.shape[0])
        return drawn * mask / max(inputs, 1.0) ** 0.5

    def _masks(self, scores: Weights, lives: Mapping[str, Tensor], left: Weights) -> dict[str, Tensor]:
        """Which weights live afterwards, by tensor; ``left``: those that do now, ``[how many]``."""
        if self.quality is not None:
            least = {name: self.quality * float(weights.std(correction=0)) for name, weights in left.items()}
            return {name: lives[name] & (score >= least[name]) for name, score in scores.items()}
        if self.threshold is not None:
            return {name: lives[name] & (score >= self.threshold) for name, score in scores.items()}
        if self.scope == "layer":
            return {name: highest({name: score}, lives, self.fraction)[name] for name, score in scores.items()}
        return highest(scores, lives, self.fraction)


def highest(scores: Weights, lives: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Masks that hide the given fraction of the entries, the lowest; what does not live goes first, ties in order."""
    device = next(iter(scores.values())).device
    dtype = functools.reduce(torch.promote_types, (score.dtype for score in scores.values()), torch.float32)
    flat = torch.cat([
        score.to(device, dtype).where(lives[name].to(device), -torch.inf).flatten() for name, score in scores.items()
    ])  # fmt: skip
    kept, gone = torch.ones_like(flat, dtype=torch.bool), round(fraction * len(flat))
    if gone:  # selecting takes a seventh of the time of sorting
        edge = flat.kthvalue(gone).values
        kept = flat >= edge
        kept[(flat == edge).nonzero()[: gone - int((~kept).sum())]] = False
    parts = kept.split([score.numel() for score in scores.values()])
    return {
        name: lives[name] & part.view(score.shape).to(score.device)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _check_signal(
    operation: PruneWeights,
    layer: HiddenLayer,
    scores: Weights,
    lives: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
) -> None:
    """Raises NoSignal where a tensor would go as a whole since nothing is known of it; ``lives``: what is not zero."""
    for name, score in scores.items():
        if lives[name].any() and not masks[name].any() and not score.any():
            raise NoSignal(
                f"{operation!r} on {layer.name}: the loss says nothing of {name} (every score is 0), so all of it "
                "would go; train a little first, prune other layers one by one, or by magnitude"
            )


def evidence_of(lives: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """How many of the weights that live (``pruned``) are no more under these masks, and the zeros' share of all."""
    pruned = sum(int((lives[name] & ~mask).sum()) for name, mask in masks.items())
    left, total = sum(int(mask.sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    return {"pruned": pruned, "sparsity": 1 - left / total}
