"""Surgery: applies a plan to a network in place, with its optimizers, and can undo it.

Modules and parameters keep their identity, so hooks, compiled wrappers, tied weights and optimizers stay valid;
``requires_grad`` is untouched; the state of the optimizers follows the units (``optimizer_state``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from ops.anatomy import HiddenLayer, Place
from ops.anatomy.labels import FAN_OUT
from ops.errors import SurgeryError
from ops.module_sizes import fit
from ops.operation import Operation
from ops.optimizer_state import check, exchange, follow, listed
from ops.plan import Plan
from ops.signals import Signals

Optimizers = Optimizer | Iterable[Optimizer]
Undo = list[Callable[[], object]]


def operate(
    layer: HiddenLayer, operation: Operation, optimizers: Optimizers = (), signals: Signals | None = None
) -> Plan:
    """Proposes and applies: the one call of a training loop.

    ``optimizers``: one or several that train this network. Returns the plan that was applied.

    Raises:
        SurgeryError: the operation cannot be done on this layer; nothing has changed.
    """
    plan = operation.propose(layer, signals)
    apply(plan, optimizers)
    return plan


@torch.no_grad()
def apply(plan: Plan, optimizers: Optimizers = ()) -> Undo:
    """Applies a plan in place. Returns the steps that undo it, to be run in reverse (see ``trial_surgery``).

    Raises:
        SurgeryError: the network has changed since the plan was made.
    """
    layer, anatomy = plan.layer, plan.layer.anatomy
    known = listed(optimizers)
    _check(plan)
    check(known, {place.tensor: layer.tensor(place) for place in layer.places})
    undo: Undo = [_remember(layer)]
    for name, value in plan.replaced.items():
        tensor = anatomy.tensor(name)
        undo.append(exchange(tensor, value.to(tensor), tensor.grad))
    for place in layer.readers:
        if place.tensor in plan.constants:
            undo.append(_fold(layer, place, plan.constants[place.tensor]))
    for place in layer.places:
        tensor = anatomy.tensor(place.tensor)
        index, unit = place.index(layer.units, plan.sources)
        share = _share(plan, unit).to(tensor).view([-1 if a == place.axis else 1 for a in range(tensor.dim())])
        reader = place.role == FAN_OUT
        remap = partial(_remap, axis=place.axis, index=index, share=None if reader else share)
        if reader and place.tensor in plan.mixing:
            data = _mix(tensor.data, place, layer.units, plan.mixing[place.tensor])
        else:
            data = _gather(tensor.data, place.axis, index, place.fill)
            if reader and plan.shares is not None:
                data *= share
        if not reader and place.tensor in plan.newborn:
            newborn = (index < 0).nonzero().squeeze(1).to(data.device)
            data = data.index_copy(place.axis, newborn, plan.newborn[place.tensor].to(data))
        undo.extend(follow(known, tensor, remap))
        gradient = remap(tensor.grad, 1) if tensor.grad is not None else None
        undo.append(exchange(tensor, data.contiguous(), gradient))
    undo.extend(fit(anatomy.holders(layer)))
    anatomy.resized(layer, plan.units_after)
    return undo


@contextlib.contextmanager
def trial_surgery(*plans: Plan, optimizers: Optimizers = ()) -> Iterator[None]:
    """Applies plans for the time of a ``with`` block and undoes them, exactly."""
    undo: Undo = []
    try:
        for plan in plans:
            undo.extend(apply(plan, optimizers))
        yield
    finally:
        for step in reversed(undo):
            step()


@contextlib.contextmanager
def edited(edits: Sequence[tuple[HiddenLayer, tuple[int, ...], Sequence[float]]]) -> Iterator[None]:
    """Several layers at once with these sources and shares, for the time of a ``with`` block."""
    undo: Undo = []
    try:
        for layer, sources, shares in edits:
            undo.extend(apply(Plan(layer, "edit", sources, shares=torch.tensor(shares, dtype=torch.float64))))
        yield
    finally:
        for step in reversed(undo):
            step()


@contextlib.contextmanager
def silenced(layers: Sequence[tuple[HiddenLayer, Sequence[int]]]) -> Iterator[None]:
    """These units' fan-out is zero for the time of a ``with`` block: what their removal must be equal to."""
    undo: Undo = []
    try:
        for layer, units in layers:
            for place in layer.readers:
                tensor = layer.anatomy.tensor(place.tensor)
                columns = place.positions(layer.units)[list(units)].flatten().to(tensor.device)
                weights = tensor.data.index_select(place.axis, columns)
                undo.append(partial(tensor.data.index_copy_, place.axis, columns, weights))
                tensor.data.index_fill_(place.axis, columns, 0.0)
        yield
    finally:
        for step in reversed(undo):
            step()


def _check(plan: Plan) -> None:
    layer = plan.layer
    if plan.units_before != layer.units:
        raise SurgeryError(
            f"{plan.operation} on {layer.name}: the plan was made for {plan.units_before} units, the layer has "
            f"{layer.units}; propose again"
        )
    if not plan.sources:
        raise SurgeryError(f"{plan.operation} on {layer.name}: no unit would be left")
    if max(plan.sources) >= layer.units or min(plan.sources) < -1:
        raise SurgeryError(f"{plan.operation} on {layer.name}: sources name units outside 0 … {layer.units - 1}")
    for name, value in plan.replaced.items():
        if value.shape != layer.anatomy.tensor(name).shape:
            raise SurgeryError(
                f"{plan.operation} on {layer.name}: {name} was {tuple(value.shape)} when the plan was made and is "
                f"{tuple(layer.anatomy.tensor(name).shape)} now; propose again"
            )
    for place in layer.places:
        layer.tensor(place)


def _remember(layer: HiddenLayer) -> Callable[[], None]:
    layers = {each: (each.units, list(each.places)) for each in layer.anatomy.neighbours(layer)}

    def restore() -> None:
        for each, (units, places) in layers.items():
            each.units, each.places = units, list(places)

    return restore


def _share(plan: Plan, unit: Tensor) -> Tensor:
    """The share of each position: its unit's, 1 where the position belongs to others."""
    if plan.shares is None:
        return torch.ones(len(unit), dtype=torch.float64)
    return torch.where(unit < 0, 1.0, plan.shares.to(torch.float64).cpu()[unit.clamp(min=0)])


def _remap(old: Tensor, degree: int, *, axis: int, index: Tensor, share: Tensor | None) -> Tensor:
    """What is of this degree in the gradient follows the units, scaled by their share (None: not scaled)."""
    new = _gather(old, axis, index, 0.0)
    return new if share is None else new * share.to(old) ** degree


def _gather(old: Tensor, axis: int, index: Tensor, fill: float) -> Tensor:
    index = index.to(old.device)
    newborn = (index < 0).nonzero().squeeze(1)
    new = old.index_select(axis, index.clamp(min=0))
    return new.index_fill_(axis, newborn, fill) if len(newborn) else new


def _mix(weight: Tensor, place: Place, units: int, mixing: Tensor) -> Tensor:
    """The reader's columns times ``mixing [old, new]``, run by run; other layers' columns stay."""
    columns = weight.movedim(place.axis, 0)
    rest, pieces, at = columns.shape[1:], [], 0
    for run in place.runs:
        pieces.append(columns[at : run.start])
        at = run.start + run.length(units)
        block = columns[run.start : at].reshape(run.outer, units, run.inner, -1).to(torch.float64)
        mixed = torch.einsum("ouir,un->onir", block, mixing.to(block))
        pieces.append(mixed.reshape(-1, *rest).to(weight.dtype))
    pieces.append(columns[at:])
    return torch.cat(pieces).movedim(0, place.axis)


def _fold(layer: HiddenLayer, place: Place, constant: Tensor) -> Callable[[], None]:
    """Adds what a constant output of each unit sends on to the bias behind this reader."""
    bias_name, sign = layer.anatomy.sinks[place.tensor]
    bias = layer.anatomy.tensor(bias_name)
    sent = torch.einsum("uok,u->o", layer.outgoing(place), constant.to(bias.device, torch.float64))
    return exchange(bias, (bias.data.to(torch.float64) + sign * sent).to(bias.dtype), bias.grad)
