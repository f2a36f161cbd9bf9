"""Verification: does the network after surgery compute what the plan says it computes?

A plan says what it does: some units' fan-out goes, is shared among copies or is mixed into that of others. The same can
be written into the network *without* changing any size: the weights that read the units take the values that make each
old unit count as the plan says. Surgery is right when the network after it computes what this one computes. Where a
norm or a mean over the units stands between, it cannot be exactly so, and the difference is the plan's measured error.
Where old outputs are made of those of newborn units (PCNS's eigenvectors), no old unit can stand in for them, and the
difference is that from the network before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from ops.anatomy import Anatomy
from ops.anatomy.rebuild import undoing
from ops.anatomy.running import call, deviation, flat_tensors, plainly
from ops.checks import check_real, usable
from ops.errors import SurgeryError, said
from ops.masks import lift, tensors_of
from ops.optimizer_state import exchange
from ops.plan import Plan
from ops.surgery import trial_surgery

#: The largest relative difference that rounding explains in double precision.
TOLERANCE = 1e-8


def measure(plan: Plan, batch: Any = None) -> float:
    """The relative difference between the network after surgery and what the plan says it computes.

    ``batch`` is what the model takes (None: the anatomy's example input). Both are computed in double precision, in
    evaluation mode; the network is left as it was. The result is kept as ``plan.measured``: rounding where the layer is
    exact, and where it is not, how much the norms over its units change the output.

    Raises:
        SurgeryError: the layer is said to be exact, but the difference is larger than rounding.
    """
    if not isinstance(plan, Plan):
        raise SurgeryError(f"a plan is what an operation proposes, not a {type(plan).__name__}")
    anatomy = plan.layer.anatomy
    example = anatomy.example_input if batch is None else usable(batch)
    check_real(anatomy.model, example)
    new_basis = -1 in plan.sources and bool(plan.mixing)
    with in_double(anatomy), plainly(anatomy.model):
        example = _pytree.tree_map(doubled, example)
        try:
            wanted = flat_tensors(call(anatomy.model, example))
        except Exception as error:  # whatever the foreign forward pass raises
            raise SurgeryError(f"the network does not run on this batch in double precision: {said(error)}") from error
        if not any(torch.isfinite(tensor).any() for tensor in wanted):
            raise SurgeryError("nothing can be verified on this batch: the network's output holds no finite number")
        if not new_basis:
            with emulated(plan):
                wanted = flat_tensors(call(anatomy.model, example))
        with trial_surgery(plan):
            found = flat_tensors(call(anatomy.model, example))
    difference = deviation(wanted, found)
    object.__setattr__(plan, "measured", difference)
    if plan.layer.exact and not new_basis and not difference <= TOLERANCE:
        raise SurgeryError(
            f"{plan.operation} on {plan.layer.name} should be exact, but the output would differ by {difference:.2g} "
            "of its size from what the plan says: nothing has been changed; please report this network"
        )
    return difference


@contextlib.contextmanager
def emulated(plan: Plan) -> Iterator[None]:
    """The network in which each old unit counts as the plan says, at its old size, for the time of a ``with`` block."""
    layer, anatomy = plan.layer, plan.layer.anatomy
    with undoing() as undo:
        for name, mask in plan.masks.items():
            tensor = anatomy.tensor(name)
            undo.append(exchange(tensor, anatomy.live(name) * mask.to(tensor.device), tensor.grad))
        undo.extend(lift(anatomy.modules, {*plan.replaced, *(place.tensor for place in layer.readers)}))
        for name, value in plan.replaced.items():
            tensor = anatomy.tensor(name)
            undo.append(exchange(tensor, value.to(tensor), tensor.grad))
        for place in layer.readers:
            tensor, outgoing = layer.tensor(place), layer.outgoing(place)
            if place.tensor in plan.constants:
                name, sign = anatomy.sinks[place.tensor]
                bias, constant = anatomy.tensor(name), plan.constants[place.tensor].to(outgoing)
                sent = torch.einsum("uok,u->o", outgoing, constant).view(bias.shape)
                undo.append(exchange(bias, bias.data + sign * sent.to(bias), bias.grad))
            counted = torch.einsum("uok,uv->vok", outgoing, _weights(plan, place.tensor).to(outgoing))
            undo.append(exchange(tensor, layer.written(place, tensor, counted), tensor.grad))
        yield


def _weights(plan: Plan, reader: str) -> Tensor:
    """How old unit ``v``'s fan-out is made of the old fan-outs ``u``: shape ``[units, units]``."""
    continued = torch.zeros(plan.units_after, plan.units_before, dtype=torch.float64)
    for new, old in enumerate(plan.sources):
        if old >= 0:
            continued[new, old] = 1.0
    if reader in plan.mixing:
        return plan.mixing[reader].cpu().to(torch.float64) @ continued
    shares = torch.ones(plan.units_after) if plan.shares is None else plan.shares.cpu()
    return torch.diag(shares.to(torch.float64) @ continued)


@contextlib.contextmanager
def in_double(anatomy: Anatomy) -> Iterator[None]:
    """All floating-point parameters and buffers in double precision for a while."""
    with undoing() as undo:
        for _, tensor in tensors_of(anatomy.model):
            if tensor.is_floating_point() and tensor.dtype != torch.float64:
                undo.append(exchange(tensor, tensor.data.to(torch.float64), None))
        yield


def doubled(value: Any) -> Any:
    return value.to(torch.float64) if isinstance(value, Tensor) and value.is_floating_point() else value
