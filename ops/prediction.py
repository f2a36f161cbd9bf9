"""What a plan will do to the loss, said before it is applied: from the slope and the curvature of the loss.

Any plan that keeps or combines old units can be written into the weights that read them, at their old size
(``verification.emulated``). Between the weights as they are and those the loss is followed along a line: with logits
``z`` that move at the speed ``z'`` where the line begins, cross entropy changes at the speed ``E[(p − y) · z']`` and
bends, with the network linear in its weights (Gauss and Newton), by ``E[z'ᵀ (diag p − p pᵀ) z']``. Slope plus half the
curvature is the prediction.

It is for looking at an operation: how much of the loss is lost in the first order, how much to curvature, and how far
the network is from linear in between. Two forward passes make it. One forward pass under ``trial_surgery`` gives the
loss itself on the same batch, so choose by that where a number is all that is wanted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from ops.anatomy.rebuild import doubled, in_double, undoing
from ops.anatomy.running import call, plainly
from ops.errors import SurgeryError
from ops.masks import lift
from ops.optimizer_state import exchange
from ops.plan import Plan
from ops.verification import emulated

#: How far along the line the logits are looked at, on both sides of its beginning.
STEP = 1e-3


@dataclass(frozen=True)
class Prediction:
    """The mean cross entropy's ``slope`` and ``curvature`` along the line from no operation (0) to all of it (1)."""

    slope: float
    curvature: float

    @property
    def change(self) -> float:
        """The predicted change of the loss."""
        return self.slope + self.curvature / 2


def predicted_loss_change(plan: Plan, inputs: Any, targets: Tensor) -> Prediction:
    """What the plan will do to the mean cross entropy of a batch, in evaluation mode and double precision.

    ``inputs`` is what the model takes, ``targets`` are class numbers ``[batch]``; the model's output are logits
    ``[batch, classes]``. Nothing is changed.

    Raises:
        SurgeryError: the plan makes units of its own (PCNS's eigenvectors), which no old weights can stand for.
    """
    if -1 in plan.sources and plan.mixing:
        raise SurgeryError(f"{plan.operation} on {plan.layer.name} makes units anew: there is no line to follow")
    model = plan.layer.anatomy.model
    with in_double(plan.layer.anatomy), plainly(model):
        inputs = _pytree.tree_map(doubled, inputs)
        line = _line(plan)
        ahead, behind = (_logits(plan, line, inputs, step) for step in (STEP, -STEP))
    speed = (ahead - behind) / (2 * STEP)
    odds = ((ahead + behind) / 2).softmax(dim=1)
    told = torch.nn.functional.one_hot(targets, odds.shape[1])
    slope = ((odds - told) * speed).sum(dim=1).mean()
    curvature = ((odds * speed.square()).sum(dim=1) - (odds * speed).sum(dim=1).square()).mean()
    return Prediction(float(slope), float(curvature))


def _line(plan: Plan) -> dict[str, Tensor]:
    """By tensor: how the plan, written at the old size, changes it."""
    anatomy, readers = plan.layer.anatomy, [place.tensor for place in plan.layer.readers]
    names = {*plan.masks, *plan.replaced, *readers, *(anatomy.sinks[name][0] for name in plan.constants)}
    before = {name: anatomy.tensor(name).detach().clone() for name in names}
    with emulated(plan):
        return {name: anatomy.tensor(name).detach() - values for name, values in before.items()}


def _logits(plan: Plan, line: dict[str, Tensor], inputs: Any, step: float) -> Tensor:
    with _moved(plan, line, step):
        found: Tensor = call(plan.layer.anatomy.model, inputs)
        return found


@contextlib.contextmanager
def _moved(plan: Plan, line: dict[str, Tensor], step: float) -> Iterator[None]:
    """The network so far along the line, for the time of a ``with`` block."""
    with undoing() as undo:
        undo.extend(lift(plan.layer.anatomy.modules, line))
        for name, change in line.items():
            tensor = plan.layer.anatomy.tensor(name)
            undo.append(exchange(tensor, tensor.data + step * change, tensor.grad))
        yield
