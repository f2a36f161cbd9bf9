"""What a plan will do to the loss, said before it is applied: from the slope and the curvature of the loss.

Any plan that keeps or combines old units can be written into the weights that read them, at their old size
(``verification.emulated``). Between the weights as they are and those the loss is followed along a line: with an output
``z`` that moves at the speed ``z'`` where the line begins, the loss ``L(z)`` changes at the speed ``∇L · z'`` and
bends, with the network linear in its weights (Gauss and Newton), by ``z'ᵀ ∇²L z'``. Slope plus half the curvature is
the prediction. Of cross entropy these are ``E[(p − y) · z']`` and ``E[z'ᵀ (diag p − p pᵀ) z']``.

It is for looking at an operation: how much of the loss is lost in the first order, how much to curvature, and how far
the network is from linear in between. Two forward passes make it. One forward pass under ``trial_surgery`` gives the
loss itself on the same batch, so choose by that where a number is all that is wanted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from network_surgery.ops.anatomy.rebuild import in_double, to_double, undoing
from network_surgery.ops.anatomy.running import call, plainly
from network_surgery.ops.errors import SurgeryError, explained
from network_surgery.ops.network.checks import check_real, usable
from network_surgery.ops.network.expressed import expanded
from network_surgery.ops.network.masks import lift
from network_surgery.ops.network.optimizer_state import exchange
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.losses import Loss, check_seen, suit
from network_surgery.ops.surgery.verification import emulated

#: How far along the line the output is looked at, on both sides of its beginning.
STEP = 1e-3


@dataclass(frozen=True)
class Prediction:
    """The loss's ``slope`` and ``curvature`` along the line from no operation (0) to all of it (1)."""

    slope: float
    curvature: float

    @property
    def change(self) -> float:
        """The predicted change of the loss."""
        return self.slope + self.curvature / 2


def predicted_loss_change(plan: Plan, inputs: Any, targets: Any = None, loss: Loss | None = None) -> Prediction:
    """What the plan will do to the loss of a batch, in evaluation mode and double precision.

    ``inputs`` is what the model takes. ``targets`` are class numbers ``[batch, *positions]`` of logits ``[batch,
    classes, *positions]``, whose mean cross entropy is the loss; or whatever ``loss`` takes, a function of (output,
    targets) that can be differentiated twice (``ops.signals.losses``). Nothing is changed.

    Raises:
        SurgeryError: the plan makes units of its own (PCNS's eigenvectors, copies with noise, a stretch with something
            between), which no old weights can stand for; the network does not run on the inputs, or the loss cannot be
            had of them.
    """
    if not isinstance(plan, Plan):
        raise SurgeryError(f"a plan is what an operation proposes, not a {type(plan).__name__}")
    other = any(change.effective is None for change in plan.modules.values())
    if (-1 in plan.sources and plan.mixing) or plan.fan_in or other:
        raise SurgeryError(f"{plan.operation} on {plan.layer.name} makes units anew: there is no line to follow")
    model = plan.layer.anatomy.model
    check_real(model, inputs)
    inputs, targets = usable((inputs, targets))
    with torch.inference_mode(False), expanded(model), in_double(plan.layer.anatomy), plainly(model):
        inputs = _pytree.tree_map(to_double, inputs)
        with explained("the loss cannot be predicted, as the network does not run on this batch in double precision"):
            line = _line(plan)
            ahead, behind = (_output(plan, line, inputs, step) for step in (STEP, -STEP))
    with torch.inference_mode(False), torch.enable_grad():
        return _prediction(ahead, behind, targets, loss)


def _prediction(ahead: Any, behind: Any, targets: Any, loss: Loss | None) -> Prediction:
    """From the network's outputs on both sides of the beginning of the line."""
    check_seen(ahead)
    form = _pytree.tree_structure(ahead)
    pairs = list(zip(_pytree.tree_leaves(ahead), _pytree.tree_leaves(behind), strict=True))
    moving = [isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) for x, _ in pairs]
    middles = [((x + y) / 2).detach() if moves else x for (x, y), moves in zip(pairs, moving, strict=True)]
    speeds = [(x - y) / (2 * STEP) for (x, y), moves in zip(pairs, moving, strict=True) if moves]
    at = [x.requires_grad_() for x, moves in zip(middles, moving, strict=True) if moves]
    output = _pytree.tree_unflatten(middles, form)
    value = suit(loss, output, targets)(output, targets).mean()
    with explained("the loss cannot be predicted, as it cannot be differentiated twice by the network's output"):
        slope = _along(value, at, speeds)
        found = Prediction(slope.item(), _along(slope, at, speeds).item())
    if not math.isfinite(found.change):
        raise SurgeryError("the loss cannot be predicted, as it or the network's output is not finite on this batch")
    return found


def _along(value: Tensor, at: list[Tensor], speeds: list[Tensor]) -> Tensor:
    """The derivative of a value along a direction; 0 where it depends on none of these tensors."""
    if not value.requires_grad:
        return torch.zeros_like(value)
    slopes = torch.autograd.grad(value, at, create_graph=True, materialize_grads=True)
    terms = [(slope.conj() * speed).real.sum() for slope, speed in zip(slopes, speeds, strict=True)]
    return torch.stack(terms).sum()


def _line(plan: Plan) -> dict[str, Tensor]:
    """By tensor: how the plan, written at the old size, changes it."""
    anatomy, readers = plan.layer.anatomy, [place.tensor for place in plan.layer.readers]
    names = {
        *plan.masks,
        *plan.expressed,
        *plan.replaced,
        *readers,
        *(anatomy.sinks[name].tensor for name in plan.constants),
        *(f"{path}.{n}" for path, c in plan.modules.items() if c.effective for n in c.effective(anatomy.modules)),
    }
    before = {name: anatomy.tensor(name).detach().clone() for name in names}
    with emulated(plan):
        return {name: anatomy.tensor(name).detach() - values for name, values in before.items()}


def _output(plan: Plan, line: dict[str, Tensor], inputs: Any, step: float) -> Any:
    with _moved(plan, line, step):
        return call(plan.layer.anatomy.model, inputs)


@contextlib.contextmanager
def _moved(plan: Plan, line: dict[str, Tensor], step: float) -> Iterator[None]:
    """The network so far along the line, for the time of a ``with`` block."""
    with undoing() as undo:
        undo.extend(lift(plan.layer.anatomy.modules, line))
        for name, change in line.items():
            tensor = plan.layer.anatomy.tensor(name)
            undo.append(exchange(tensor, tensor.data + step * change, tensor.grad))
        yield
