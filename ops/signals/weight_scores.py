"""Saliency of single weights: what each of them is worth, by its size or by the loss without it.

Source: Evci 2018, *Detecting dead weights and units*, chapter 2 (table 2.1). Setting a weight ``w`` to zero moves it by
``−w``. Of the mean cross entropy ``L`` with gradient ``g`` and second derivatives ``H`` of the chosen weights:

======================  ===============================================================================================
``magnitude``           ``|w|``
``taylor1``             ``−w g``: its change to first order
``hessian``             ``w (H w)``: a weight's part in the curvature when *all* chosen weights go at once, other rows
                        of ``H`` included; one Hessian-vector product for all of them (Pearlmutter 1994)
``taylor2``             ``taylor1 + λ hessian``, λ is ``strength``. The thesis has λ = 1; Taylor's own factor is ½
``loss_change``         measured: ``L`` with this weight alone set to zero, less ``L``
``obd``                 ``½ w² H_ii``, ``H`` as Gauss and Newton have it (``ops.signals.curvature``): LeCun et al. 1990
``obs``                 the same when the weights that stay make up for it: ``w² / (2 [H⁻¹]_ii)``, weights going one
                        after the other in each block of ``H``: Hassibi and Stork 1993 (``ops.signals.brain_surgeon``)
``random``              uniform in 0 … 1: the control
``…_abs``               the absolute value of the four from ``taylor1`` to ``loss_change``
======================  ===============================================================================================

The lowest are pruned first. So by the signed ones those go first whose removal (it is said) *lowers* the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree

from network_surgery.ops.anatomy.running import flat_tensors, plainly
from network_surgery.ops.arguments import is_seed, name_list
from network_surgery.ops.errors import SurgeryError, explained
from network_surgery.ops.network.altered import Altered, Together
from network_surgery.ops.network.checks import check_real, usable
from network_surgery.ops.network.expressed import expanded, tensors_of
from network_surgery.ops.network.wrappers import inner
from network_surgery.ops.signals.brain_surgeon import BrainSurgeon
from network_surgery.ops.signals.curvature import curvature_rows, diagonal
from network_surgery.ops.signals.gradients import NO_GRADIENT, without_checkpoints
from network_surgery.ops.signals.losses import Loss as LossFunction
from network_surgery.ops.signals.losses import suit

#: Scores that look at no data.
BLIND = ("magnitude", "random")
SIGNED = ("taylor1", "taylor2", "hessian", "loss_change")
#: Scores from a curvature that is never negative.
CURVED = ("obd", "obs")
SCORES = (*BLIND, *SIGNED, *(f"{name}_abs" for name in SIGNED), *CURVED)
#: Numbers that the largest tensor may have when many weights are tried at once, and how few are not worth it.
MOST, FEWEST = 1 << 22, 8

#: So that random scores are not the very numbers that a network was initialized with, by the same seed.
SALT = 0x9E3779B9

Weights = dict[str, Tensor]
Loss = Callable[[Mapping[str, Tensor]], Tensor]


def weight_scores(
    model: nn.Module,
    names: Sequence[str],
    score: str,
    inputs: Any = None,
    targets: Any = None,
    *,
    loss: LossFunction | None = None,
    strength: float = 1.0,
    seed: int = 0,
) -> Weights:
    """A score for each entry of some parameters: name → tensor of its shape, in the network's precision.

    ``inputs`` is what the model takes and ``targets`` are class numbers ``[batch]``; ``magnitude`` and ``random`` need
    neither. The loss is the mean cross entropy in evaluation mode, or another function of (output, targets) that is
    given as ``loss`` (``ops.signals.losses``); nothing of the network changes. ``seed`` is of ``random`` and of the
    draws of ``ops.signals.curvature``. Changes of the loss below the rounding of the logits are noise: to see those,
    give a network and inputs of double precision. Weights that a mask hides score 0, but at ``random``.

    Raises:
        SurgeryError: no such score or parameter; it looks at the loss and there are no inputs or no targets, the
            network does not run on them, or the loss cannot be had of them; a score is not finite.
    """
    if score not in SCORES:
        raise SurgeryError(f"there is no weight score {score!r}; there are {', '.join(SCORES)}")
    if not is_seed(seed):
        raise SurgeryError(f"seed is {seed!r:.60}, but it must be a whole number from 0 on below 2^63")
    model = inner(model)
    with expanded(model):
        known = dict(tensors_of(model))
    names = name_list(names)
    if odd := [name for name in names if not isinstance(known.get(name), nn.Parameter)]:
        raise SurgeryError(f"the network has no parameter {odd[0]!r} to score")
    weights = {name: known[name].detach() for name in names}
    by_terms = score.removesuffix("_abs") in ("taylor1", "taylor2", "hessian", *CURVED)
    if by_terms and (odd := [name for name, weight in weights.items() if weight.is_complex()]):
        raise SurgeryError(f"the weight score {score} is one of real weights, but {odd[0]} is complex: take magnitude")
    if score == "magnitude":
        return {name: weight.abs() for name, weight in weights.items()}
    if score == "random":
        generator = torch.Generator().manual_seed(seed ^ SALT)
        return {name: torch.rand(w.shape, generator=generator).to(w.device) for name, w in weights.items()}
    if inputs is None or (targets is None and loss is None):
        raise SurgeryError(f"the score {score} looks at the loss: give it inputs and targets, Signals(…, targets)")
    if score in CURVED:
        return _by_curvature(model, weights, score, inputs, targets, loss, seed)
    check_real(model, inputs)
    inputs, targets = usable((inputs, targets))
    with (
        plainly(model), without_checkpoints(),
        sdpa_kernel(SDPBackend.MATH),  # which has second derivatives, and can be batched
        explained(f"the score {score} cannot be had of this network and batch"),
    ):  # fmt: skip
        function = _loss(model, inputs, targets, loss)
        if score.startswith("loss_change"):
            found = {
                name: loss_changes(function, name, weights[name], at_once(model, name, weights[name], function))
                for name in names
            }
        else:
            found = _expansion(function, weights, score, strength)
    _check_finite(found, score)
    return {name: values.abs() for name, values in found.items()} if score.endswith("_abs") else found


def _by_curvature(
    model: nn.Module, weights: Weights, score: str, inputs: Any, targets: Any, loss: LossFunction | None, seed: int
) -> Weights:
    if score == "obs":
        found = BrainSurgeon(model, list(weights), inputs, targets, loss, seed=seed).scores
    else:
        bends = diagonal(curvature_rows(model, list(weights), inputs, targets, loss, seed))
        found = {name: weight.square() * bends[name] / 2 for name, weight in weights.items()}
    _check_finite(found, score)
    return found


def _check_finite(scores: Weights, score: str) -> None:
    for name, values in scores.items():
        if not torch.isfinite(values).all():
            raise SurgeryError(f"the scores {score} of {name} are not finite: look at the network's weights and inputs")


def _loss(model: nn.Module, inputs: Any, targets: Any, loss: LossFunction | None = None) -> Loss:
    """The loss of the batch as a function of some parameters, by their names, in place of the model's."""
    network, known = Altered(model), list[LossFunction]()

    def loss_with(weights: Mapping[str, Tensor]) -> Tensor:
        output = _pytree.tree_map(_double, network(weights, inputs))
        if not known:  # the first pass is of one network alone, so its numbers can be looked at
            known.append(suit(loss, output, targets))
        return known[0](output, targets).double().mean()

    return loss_with


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _expansion(loss: Loss, weights: Weights, score: str, strength: float) -> Weights:
    """The terms of the expansion around the weights as they are."""
    score = score.removesuffix("_abs")
    at = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    second = score != "taylor1"
    with torch.enable_grad():
        value = loss(at)
        if not value.requires_grad:
            raise SurgeryError(NO_GRADIENT)
        slopes = torch.autograd.grad(value, list(at.values()), create_graph=second, materialize_grads=True)
        turned: Sequence[Tensor] = ()
        if second:
            along = torch.stack([(s * w).sum() for s, w in zip(slopes, weights.values(), strict=True)]).sum()
            turned = torch.autograd.grad(along, list(at.values()), materialize_grads=True)
    first = {name: -weight * slope.detach() for (name, weight), slope in zip(weights.items(), slopes, strict=True)}
    if not second:
        return first
    curved = {name: weight * each.detach() for (name, weight), each in zip(weights.items(), turned, strict=True)}
    return curved if score == "hessian" else {name: first[name] + strength * curved[name] for name in weights}


def at_once(model: nn.Module, name: str, weight: Tensor, loss: Loss) -> int:
    """How many entries of a parameter to try at once, by the largest output after the module that holds it.

    On a CPU, 256 random images of the size of MNIST, Evci's network, against one after the other (3 alternating runs
    each): 3 at once in the first convolution 0.4–0.8 times as fast, 16 in the second 4 times, 256 and more in the dense
    layers 27–90 times.
    """
    sizes: list[int] = []
    owner = model.get_submodule(name.rpartition(".")[0])
    hooks = [
        module.register_forward_hook(lambda m, args, out: sizes.append(_largest(out))) for module in model.modules()
    ]
    hooks.append(owner.register_forward_pre_hook(lambda module, args: sizes.clear()))
    try:
        loss({})
    finally:
        for hook in hooks:
            hook.remove()
    most = MOST // max(*sizes, weight.numel(), 1)
    return most if most >= FEWEST else 1


def _largest(out: Any) -> int:
    return max((tensor.numel() for tensor in flat_tensors(out)), default=1)


def loss_changes(loss: Loss, name: str, weight: Tensor, most: int = 1) -> Tensor:
    """By how much the loss changes with each entry of a parameter set to zero alone, ``[the parameter's shape]``.

    ``most``: how many are tried in one pass (``vmap``; what the network calculates before it meets the parameter is
    then calculated once for all of them); 1, and where the network cannot be vectorized, one after the other.
    """
    plain = loss({name: weight})
    found = torch.zeros(weight.numel(), dtype=torch.float64, device=weight.device)
    entries = weight.flatten().nonzero().squeeze(1)  # what is zero changes nothing

    def without(entry: Tensor) -> Tensor:
        kept = torch.arange(weight.numel(), device=weight.device) != entry
        return loss({name: weight * kept.view(weight.shape)})

    losses = Together(without, able=most > 1)
    for chunk in entries.split(most) if len(entries) else ():
        found[chunk] = losses(chunk) - plain
    return found.view(weight.shape).to(weight.real.dtype)
