"""Surgery: applies a plan to a network in place, with its optimizers and averages, and can undo it.

Modules and parameters keep their identity, so hooks, compiled wrappers, tied weights and optimizers stay valid;
``requires_grad`` is untouched; the state of the optimizers follows the units (``optimizer_state``), and so do running
averages of the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ops.anatomy import WHOLE, Anatomy, HiddenLayer, Place, rebuild
from ops.anatomy.calls import FAN_OUT
from ops.anatomy.rebuild import Edit, Move, Undo, undoing
from ops.attention import FreeAttention
from ops.double import double
from ops.errors import SurgeryError
from ops.layout import channels_last, laid_out
from ops.masks import put
from ops.operation import Operation
from ops.optimizer_state import check, exchange, follow, listed, shift
from ops.plan import Plan
from ops.repair import reestimate, repaired
from ops.signals import Signals
from ops.wrappers import inner

Optimizers = Optimizer | Iterable[Optimizer]
Averages = nn.Module | Iterable[nn.Module]


def operate(
    layer: HiddenLayer,
    operation: Operation,
    optimizers: Optimizers = (),
    signals: Signals | None = None,
    *,
    repair: Sequence[str] = (),
    averages: Averages = (),
    verify: Any = False,
) -> Plan:
    """Proposes and applies: the one call of a training loop.

    ``optimizers``: one or several that train this network. ``repair``: what is put right when units go, a chain of
    ``bias``, ``least_squares`` and ``batchnorm`` (see ``ops.repair``), from the signals. ``averages``: networks of the
    same shape that follow it, such as ``torch.optim.swa_utils.AveragedModel``. ``verify``: True, or a batch (what the
    model takes): the plan is measured in double precision first and refused where the network would not compute what
    the plan says. Returns the plan that was applied.

    Raises:
        SurgeryError: the operation cannot be done on this layer, or does not do what it says; nothing has changed.
    """
    from ops.verification import measure

    if not isinstance(layer, HiddenLayer) or not isinstance(operation, Operation):
        raise SurgeryError(
            "operate takes a layer of an anatomy and an operation, such as MinWeight(keep=0.5); it was given a "
            f"{type(layer).__name__} and {operation!r}"
        )
    if signals is not None and not isinstance(signals, Signals):
        raise SurgeryError(f"signals must be Signals(model, inputs), not {type(signals).__name__}")
    if layer.name == WHOLE and not operation.whole_network:
        raise SurgeryError(f"{operation!r} works on one layer at a time, not on the whole network ('{WHOLE}')")
    plan = repaired(operation.propose(layer, signals), signals, repair)
    if verify is not False:
        measure(plan, None if verify is True else verify)
    undo = apply(plan, optimizers, averages)
    if "batchnorm" in repair and signals is not None:
        try:
            reestimate(layer.anatomy.model, signals, layer, plan.masks)
        except SurgeryError:
            for step in reversed(undo):
                step()
            raise
    return plan


def apply(plan: Plan, optimizers: Optimizers = (), averages: Averages = ()) -> Undo:
    """Applies a plan in place. Returns the steps that undo it, to be run in reverse (see ``trial_surgery``).

    Raises:
        SurgeryError: the plan is not one of this network as it is now, or an optimizer or average cannot follow;
            nothing has changed.
    """
    _check(plan)
    bodies = [_Body(plan.layer.anatomy, optimizers=listed(optimizers))]
    bodies += [_Body(plan.layer.anatomy, each) for each in _several(averages)]
    for body in bodies:
        body.check(plan)
    undo: Undo = [torch.clear_autocast_cache]
    try:
        with torch.inference_mode(False), torch.no_grad():
            _apply(plan, bodies, undo)
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    torch.clear_autocast_cache()
    return undo


def _apply(plan: Plan, bodies: list[_Body], undo: Undo) -> None:
    layer, anatomy = plan.layer, plan.layer.anatomy
    edit = Edit(layer, torch.tensor(plan.sources, dtype=torch.int64), plan.shares)
    moves = rebuild.moves([edit])
    old_columns = {place: place.positions for place in layer.readers if place.tensor in plan.mixing}
    for body in bodies:
        for name, mask in plan.masks.items():
            undo.extend(_mask(body, name, mask))
        for name in (*plan.replaced, *plan.mixing):  # every entry is written
            undo.extend(_unmask(body, name))
    changes = {name: value.to(anatomy.tensor(name)) - anatomy.tensor(name) for name, value in plan.replaced.items()}
    for body in bodies:
        for name, change in changes.items():
            undo.append(body.set(name, body.tensor(name) + change if body.averaged else plan.replaced[name]))
        for place in layer.readers:
            if place.tensor in plan.constants:
                name, sign = anatomy.sinks[place.tensor]
                undo.append(body.add(name, sign * _sent(body, layer, place, plan.constants[place.tensor])))
    undo.extend(rebuild.resize([edit]))
    for body in bodies:
        for name, steps in moves.items():
            for step in steps:
                _rebuild(body, name, step, plan, old_columns, undo)
        undo.extend(rebuild.write_down(anatomy, body.modules, [layer]))


@contextlib.contextmanager
def trial_surgery(*plans: Plan, optimizers: Optimizers = (), averages: Averages = ()) -> Iterator[None]:
    """Applies plans for the time of a ``with`` block and undoes them, exactly."""
    with undoing() as undo:
        for plan in plans:
            undo.extend(apply(plan, optimizers, averages))
        yield


class _Body:
    """A network with these units: the one that is trained, or (without ``optimizers``) an average of its weights."""

    def __init__(
        self, anatomy: Anatomy, average: nn.Module | None = None, optimizers: tuple[Optimizer, ...] = ()
    ) -> None:
        self.anatomy = anatomy
        self.averaged = average is not None
        self.modules = anatomy.modules if average is None else dict(inner(average).named_modules())
        self.optimizers = optimizers

    def tensor(self, name: str) -> Tensor:
        return self.anatomy.tensor(name, self.modules)

    @cached_property
    def last(self) -> bool:
        """Whether channels come last where a tensor does not tell: as in another weight of the network."""
        held = (tensor for module in self.modules.values() for tensor in module._parameters.values())
        return any(tensor is not None and channels_last(tensor) for tensor in held)

    def live(self, name: str) -> Tensor:
        return self.anatomy.live(name, self.modules)

    def mask(self, name: str) -> Tensor | None:
        return self.anatomy.mask(name, self.modules)

    def check(self, plan: Plan) -> None:
        """Raises SurgeryError where this network cannot follow."""
        layer = plan.layer
        here = {place.tensor: layer.tensor(place) for place in layer.places}
        here |= {name: self.anatomy.tensor(name) for name in plan.masks}
        for name, tensor in here.items():
            try:
                shape = tuple(self.tensor(name).shape)
            except (AttributeError, KeyError):
                shape = None
            if shape != tuple(tensor.shape):
                raise SurgeryError(
                    f"an average of the network must have its shapes, but {name} is {tuple(tensor.shape)} in the "
                    f"network and {shape or 'missing'} in the average; give every average to every operation"
                )
            if (self.mask(name) is None) is not (self.anatomy.mask(name) is None):
                raise SurgeryError(
                    f"{name} is masked in the network or in an average of it, but not in both; give every average to "
                    "every operation"
                )
        for name in self.anatomy.holders(layer):
            free = isinstance(self.modules.get(name), FreeAttention)
            if isinstance(self.anatomy.modules[name], FreeAttention) and not free:
                raise SurgeryError(
                    f"{name or 'the attention'} has been freed in the network, but not in an average of it: free the "
                    "average as well, ops.free_attention(average)"
                )
        check(self.optimizers, {name: self.tensor(name) for name in here})

    def set(self, name: str, data: Tensor) -> Callable[[], object]:
        tensor = self.tensor(name)
        steps = [*shift(self.optimizers, tensor, data), exchange(tensor, data.to(tensor), tensor.grad)]
        return lambda: [step() for step in reversed(steps)]

    def add(self, name: str, amount: Tensor) -> Callable[[], object]:
        tensor = self.tensor(name)
        return self.set(name, double(tensor.data) + amount.view(tensor.shape))


def _rebuild(body: _Body, name: str, step: Move, plan: Plan, old_columns: dict[Place, Tensor], undo: Undo) -> None:
    """One axis of one tensor, with its gradient and its optimizers' state."""
    tensor, (place,) = body.tensor(name), step.places

    def weights(old: Tensor) -> Tensor:
        data = rebuild.rebuilt(old, [step])
        if place in old_columns:
            columns = old.movedim(place.axis, 0)[old_columns[place].to(old.device)]
            mixed = torch.einsum("uk...,un->nk...", double(columns), plan.mixing[name].to(double(columns)))
            data.movedim(place.axis, 0)[place.positions.to(data.device)] = mixed.to(data)
        if place.role != FAN_OUT and name in plan.newborn:
            newborn = step.origin.newborn.to(data.device)
            data = data.index_copy(place.axis, newborn, plan.newborn[name].to(data))
        return data.contiguous()

    def remap(old: Tensor, degree: int | None) -> Tensor:
        return laid_out(weights(old) if degree is None else step.state(old, degree), old, body.last)

    data = laid_out(weights(body.live(name)), tensor, body.last)
    gradient = remap(tensor.grad, 1) if tensor.grad is not None else None
    undo.extend(follow(body.optimizers, tensor, remap))
    undo.append(exchange(tensor, data, gradient))
    mask = body.mask(name)
    if mask is not None:
        undo.append(exchange(mask, laid_out(step.masked(mask), mask, body.last)))


def _mask(body: _Body, name: str, mask: Tensor) -> Undo:
    """Masks a parameter: its values, its gradient and its optimizers' state are zero there from now on."""
    tensor = body.tensor(name)
    mask = mask.to(tensor.device)
    undo: Undo = [*follow(body.optimizers, tensor, lambda old, degree: old * mask)]
    undo.append(exchange(tensor, tensor.data * mask, None if tensor.grad is None else tensor.grad * mask))
    return undo + put(body.modules, name, mask)


def _unmask(body: _Body, name: str) -> Undo:
    """A mask that hides nothing any more, at its size."""
    mask = body.mask(name)
    return [] if mask is None else [body.set(name, body.live(name)), exchange(mask, torch.ones_like(mask))]


def _sent(body: _Body, layer: HiddenLayer, place: Place, constant: Tensor) -> Tensor:
    """What a constant output of each unit sends on to the bias behind this reader."""
    outgoing = layer.by_unit(place, double(body.live(place.tensor)))
    return torch.einsum("uok,u->o", outgoing, constant.to(outgoing))


def _check(plan: Plan) -> None:
    layer = plan.layer
    if plan.units_before != layer.units:
        raise SurgeryError(
            f"{plan.operation} on {layer.name}: the plan was made for {plan.units_before} units, the layer has "
            f"{layer.units}; propose again"
        )
    if not plan.sources:
        raise SurgeryError(f"{plan.operation} on {layer.name}: no unit would be left")
    if not all(isinstance(source, int) for source in plan.sources):
        raise SurgeryError(f"{plan.operation} on {layer.name}: sources must be whole numbers")
    if plan.shares is not None and (not isinstance(plan.shares, Tensor) or plan.shares.shape != (len(plan.sources),)):
        raise SurgeryError(f"{plan.operation} on {layer.name}: shares must be a tensor of {len(plan.sources)} numbers")
    if max(plan.sources) >= layer.units or min(plan.sources) < -1:
        raise SurgeryError(f"{plan.operation} on {layer.name}: sources name units outside 0 … {layer.units - 1}")
    known = {place.tensor for place in layer.places}
    for values in (plan.newborn, plan.mixing, plan.constants):
        if odd := sorted(set(values) - known):
            raise SurgeryError(f"{plan.operation} on {layer.name}: {odd[0]} does not hold its units")
    for name, value in plan.mixing.items():
        _fits(plan, name, value.shape, torch.Size([layer.units, len(plan.sources)]))
    for name, value in plan.constants.items():
        _fits(plan, name, value.shape, torch.Size([layer.units]))
    for name, value in plan.replaced.items():
        if name not in layer.anatomy.expressions:
            raise SurgeryError(f"{plan.operation} on {layer.name}: the network has no tensor {name}")
        _fits(plan, name, value.shape, layer.anatomy.tensor(name).shape)
    for name, mask in plan.masks.items():
        if name not in layer.anatomy.weights:
            raise SurgeryError(f"{plan.operation} on {layer.name}: {name} is no weight of the network")
        _fits(plan, name, mask.shape, layer.anatomy.tensor(name).shape)
    for place in layer.places:
        if place.role != FAN_OUT and place.tensor in plan.newborn:
            value, shape = plan.newborn[place.tensor], list(layer.tensor(place).shape)
            shape[place.axis] = plan.sources.count(-1) * place.positions.shape[1]
            _fits(plan, place.tensor, value.shape, torch.Size(shape))


def _fits(plan: Plan, name: str, found: torch.Size, wanted: torch.Size) -> None:
    """Raises SurgeryError where another operation has come between a plan's values and its application."""
    if found != wanted:
        raise SurgeryError(
            f"{plan.operation} on {plan.layer.name}: its values for {name} are {tuple(found)}, but {tuple(wanted)} are "
            "needed; where other layers have changed since, propose again"
        )


def _several(averages: Averages) -> list[nn.Module]:
    found = [averages] if isinstance(averages, nn.Module) else list(averages)
    for each in found:
        if not isinstance(each, nn.Module):
            raise SurgeryError(f"averages must be networks (torch.nn.Module), not {type(each).__name__}")
    return found
