"""The loss of a batch: the mean cross entropy, or a function ``loss(output, targets)`` of the user's.

Such a function returns one of two things, and everything that needs a loss takes either:

one loss for each sample
    A tensor whose first dimension is the batch (``reduction="none"``). The loss of a sample is the mean of its entries,
    the loss of the batch is the mean over its samples.
one number
    The loss of the batch, taken for a mean over its samples. How much a single sample has to do with it is asked of the
    function itself: by its gradient, or by exchanging the output of that sample alone, both times the batch's size. For
    a plain mean that is the sample's loss; where classes have weights or some targets are ignored, it is the sample's
    part of the weighted mean. The samples of a network's output must then come first in each of its tensors.

``output`` is whatever the network returns and ``targets`` whatever fits it, so both may be dicts or tuples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree

from network_surgery.ops.anatomy.running import flat_tensors
from network_surgery.ops.errors import SurgeryError, first_line, pass_on_memory

Loss = Callable[[Any, Any], Tensor]

#: Class number of targets that do not count, as in ``torch.nn.functional.cross_entropy``.
IGNORED = -100
REMEDY = "give the loss that it is trained by, as in Signals(model, inputs, targets, loss=torch.nn.functional.mse_loss)"


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The cross entropy of each sample, ``[batch]``, whose mean is that of ``torch.nn.functional.cross_entropy``.

    ``outputs``: logits ``[batch, classes, *positions]``; ``targets``: class numbers ``[batch, *positions]`` of any type
    of whole numbers, or the probabilities of classes, of the shape of ``outputs``. Positions of class −100 do not
    count; of those that do, each counts alike.
    """
    if targets.is_floating_point():
        losses = F.cross_entropy(outputs, targets.to(outputs.dtype), reduction="none")
        return losses.flatten(1).mean(dim=1) if losses.dim() > 1 else losses
    targets = targets.long()
    losses = F.cross_entropy(outputs, targets, reduction="none", ignore_index=IGNORED)
    counted = (targets != IGNORED).sum().clamp(min=1)
    return losses.reshape(len(losses), -1).sum(dim=1) * (len(losses) / counted.to(losses.dtype))


def sample_losses(outputs: Any, targets: Any, loss: Loss | None = None) -> Tensor:
    """The loss of each sample, ``[batch]``: the cross entropy, or a loss that returns one for each sample.

    Raises:
        SurgeryError: the outputs and the targets do not belong together, or the loss returns one number.
    """
    losses = suit(loss, outputs, targets)(outputs, targets)
    if not losses.dim():
        raise SurgeryError("the loss returns one number: to know that of each sample, let it return one for each")
    return _each(losses)


def mean_loss(outputs: Any, targets: Any, loss: Loss | None = None) -> Tensor:
    """The loss of a batch, one number. Raises as ``sample_losses`` does."""
    return suit(loss, outputs, targets)(outputs, targets).mean()


def suit(loss: Loss | None, outputs: Any, targets: Any) -> Loss:
    """The loss (None: the cross entropy) as a function of such outputs and targets, tried on these.

    In double precision, where only the network has become double, targets follow; a loss that holds numbers of single
    precision (weights of classes) is given outputs of single precision.

    Raises:
        SurgeryError: it is no function, cannot be had of these outputs and targets, or returns something else.
    """
    if loss is None:
        check_classes(outputs, targets)
        return cross_entropy
    if not callable(loss):
        raise SurgeryError(f"loss must be a function of (output, targets), not {_name(loss)}")

    def in_double(outputs: Any, targets: Any) -> Tensor:
        return loss(outputs, _pytree.tree_map(_double, targets))

    def in_single(outputs: Any, targets: Any) -> Tensor:
        return loss(_pytree.tree_map(lambda x: x.float() if _is_double(x) else x, outputs), targets)

    double = any(map(_is_double, _pytree.tree_leaves(outputs)))
    problem: Exception | None = None
    for form in (in_double, in_single) if double else (loss,):
        try:
            with torch.no_grad():
                value = form(outputs, targets)
        except Exception as error:  # whatever the foreign loss raises
            pass_on_memory(error)
            problem = problem or error
            continue
        samples = batch_of(targets, outputs)
        if not isinstance(value, Tensor) or not value.is_floating_point() or (value.dim() and len(value) != samples):
            raise SurgeryError(
                f"the loss returns {_name(value)}: it must return one number, the mean over the batch, or one for "
                f"each of its {samples} samples, as a floating-point tensor"
            )
        if not value.numel() or not torch.isfinite(value).all():
            raise SurgeryError(
                "the loss of this batch is not finite: look for NaN or infinite numbers in the network, its inputs or "
                "the targets, and for a batch without samples or with ignored targets only"
            )
        return form
    raise SurgeryError(
        f"the loss cannot be had of the network's output ({_name(outputs)}) and targets ({_name(targets)}): "
        f"{first_line(problem or RuntimeError())}"
    ) from problem


def total(losses: Tensor, samples: int) -> Tensor:
    """What the samples' losses sum to, of what a suited loss returns."""
    return _each(losses).sum() if losses.dim() else losses * samples


def changes(loss: Loss, before: Any, after: Any, targets: Any) -> Tensor:
    """How the loss of each sample changes with the network's output, ``[batch]``. ``loss``: a suited one."""
    old = loss(before, targets)
    if old.dim():
        return _each(loss(after, targets)) - _each(old)
    samples = batch_of(targets, before)
    check_batch_first(before, samples)

    def alone(sample: int) -> Tensor:
        """The loss where the output of one sample only is the new one."""

        def mix(one: Any, other: Any) -> Any:
            if not isinstance(one, Tensor) or not one.dim():
                return one
            return torch.cat([one[:sample], other[sample : sample + 1], one[sample + 1 :]])

        return loss(_pytree.tree_map(mix, before, after), targets)

    return (torch.stack([alone(sample) for sample in range(samples)]) - old) * samples


def batch_of(targets: Any, others: Any) -> int:
    """How many samples there are: as long as the targets are, or else whatever the others' first tensor is."""
    for tree in (targets, others):
        for leaf in _pytree.tree_leaves(tree):
            if isinstance(leaf, Tensor) and leaf.dim():
                return len(leaf)
    return 1


def is_batch_first(outputs: Any, samples: int) -> bool:
    """Whether there is an entry for each sample in every tensor of an output, but in single numbers."""
    found = [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.dim()]
    return bool(found) and all(len(leaf) == samples for leaf in found)


def check_batch_first(outputs: Any, samples: int) -> None:
    """Raises SurgeryError unless the samples come first in an output."""
    check_seen(outputs)
    if not is_batch_first(outputs, samples):
        raise SurgeryError(
            f"the loss is one number, and the network's output ({_name(outputs)}) does not have its {samples} samples "
            "first: let the loss return one number for each sample"
        )


def check_seen(outputs: Any) -> None:
    """Raises SurgeryError where an output holds tensors in objects, in which nothing can be exchanged."""
    if len(flat_tensors(outputs)) != sum(isinstance(leaf, Tensor) for leaf in _pytree.tree_leaves(outputs)):
        raise SurgeryError(
            f"the network returns tensors inside of an object ({_name(outputs)}): let it return them plainly, or in "
            "tuples, lists and dicts"
        )


def check_classes(outputs: Any, targets: Any) -> None:
    """Raises SurgeryError unless these are logits, and classes that they can be meant for."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.dim() < 2:
        wanted = "[batch, classes, …]"
        if isinstance(targets, Tensor) and targets.dim():
            wanted = f"[{', '.join(map(str, (len(targets), 'classes', *targets.shape[1:])))}]"
        raise SurgeryError(
            f"the cross entropy of each sample needs logits of shape {wanted}, but the network returns "
            f"{_name(outputs)}; {REMEDY}"
        )
    if not isinstance(targets, Tensor):
        raise SurgeryError(f"targets are a tensor of class numbers, not {_name(targets)}")
    logits, where = _name(outputs), _name(targets)
    if targets.device != outputs.device:
        raise SurgeryError(f"the targets are on {targets.device}, the network's output is on {outputs.device}")
    if not outputs.numel():
        raise SurgeryError(f"the batch is empty: the network returns {logits}")
    classes, shape = outputs.shape[1], (len(outputs), *outputs.shape[2:])
    if targets.is_floating_point() and targets.shape == outputs.shape and classes > 1:
        sums = targets.detach().double().sum(dim=1)
        if bool((targets >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
            return
        raise SurgeryError(f"the targets ({where}) are neither class numbers nor probabilities that sum to 1; {REMEDY}")
    if targets.is_floating_point() or targets.is_complex():
        raise SurgeryError(f"the targets are {where}, but classes are whole numbers of shape {list(shape)}; {REMEDY}")
    if classes < 2:
        raise SurgeryError(
            f"the network returns a single logit ({logits}), whose cross entropy is always 0: give the loss that it is "
            "trained by, such as loss=torch.nn.functional.binary_cross_entropy_with_logits"
        )
    if tuple(targets.shape) != shape and targets.shape == outputs.shape[:-1]:
        raise SurgeryError(
            f"the network's output ({logits}) has its classes last, but cross entropy wants them second: give "
            "loss=lambda output, targets: torch.nn.functional.cross_entropy(output.movedim(-1, 1), targets)"
        )
    if tuple(targets.shape) != shape:
        raise SurgeryError(
            f"the targets are {where}, but the network's output, logits {logits}, needs classes of shape "
            f"{list(shape)}; {REMEDY}"
        )
    known = targets[targets.long() != IGNORED]
    if not known.numel():
        raise SurgeryError(f"every target is {IGNORED}, so none counts")
    odd = int(known.min()) if known.min() < 0 else int(known.max())
    if not 0 <= odd < classes:
        raise SurgeryError(
            f"the targets hold the class {odd}, but the network has {classes} logits, so there are classes 0 … "
            f"{classes - 1}; to leave that one out, give "
            f"loss=functools.partial(torch.nn.functional.cross_entropy, ignore_index={odd})"
        )


def _each(losses: Tensor) -> Tensor:
    return losses.flatten(1).mean(dim=1) if losses.dim() > 1 else losses


def _is_double(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _name(value: Any) -> str:
    """A value in an error: a tensor's type and shape, the kind of anything else and the tensors in it."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    tensors = [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    inside = f" of {', '.join(map(_name, tensors[:3]))}" if tensors else ""
    return f"{type(value).__name__}{inside}"
