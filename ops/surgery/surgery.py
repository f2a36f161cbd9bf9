"""Surgery: applies a plan to a network in place, with its optimizers and averages, and can undo it.

Modules and parameters keep their identity, so hooks, compiled wrappers, tied weights and optimizers stay valid;
``requires_grad`` is untouched; the state of the optimizers follows the units (``optimizer_state``), and so do running
averages of the weights.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from network_surgery.ops.anatomy import Anatomy, Place, rebuild
from network_surgery.ops.anatomy.calls import FAN_IN, FAN_OUT
from network_surgery.ops.anatomy.rebuild import Edit, Move, Undo, undoing
from network_surgery.ops.errors import SurgeryError, Unsuitable
from network_surgery.ops.maths.double import double
from network_surgery.ops.network.attention import FreeAttention
from network_surgery.ops.network.blocks import Blocks
from network_surgery.ops.network.checks import check_current
from network_surgery.ops.network.dropout import set_ratio
from network_surgery.ops.network.expressed import Compressed, express
from network_surgery.ops.network.layout import any_last, channels_last, laid_out
from network_surgery.ops.network.masks import put
from network_surgery.ops.network.modules import Change, exchange_parameters, put_module
from network_surgery.ops.network.optimizer_groups import replace
from network_surgery.ops.network.optimizer_state import begin_anew, check, exchange, follow, list_optimizers, shift
from network_surgery.ops.network.wrappers import inner, invalidate_guards
from network_surgery.ops.plan import Plan

Optimizers = Optimizer | Iterable[Optimizer]
Averages = nn.Module | Iterable[nn.Module]


def apply(plan: Plan, optimizers: Optimizers = (), averages: Averages = (), *, trial: bool = False) -> Undo:
    """Applies a plan in place. Where it replaces modules the anatomy is taken anew (but for a ``trial``, soon undone).

    Returns the steps that undo it, to be run in reverse (see ``trial_surgery``).

    Raises:
        SurgeryError: the plan is not one of this network as it is now, or an optimizer or average cannot follow;
            nothing has changed.
    """
    _check(plan)
    bodies = [_Body(plan.layer.anatomy, optimizers=list_optimizers(optimizers))]
    bodies += [_Body(plan.layer.anatomy, each) for each in several(averages)]
    for body in bodies:
        body.check(plan)
    undo: Undo = [torch.clear_autocast_cache]
    try:
        with torch.inference_mode(False), torch.no_grad():
            if plan.modules:
                _replace(plan, bodies, undo)
            else:
                _apply(plan, bodies, undo)
        if plan.modules and not trial:
            undo.extend(plan.layer.anatomy.retake())
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
    holders = [body.modules[name] for body in bodies for name in anatomy.holders(layer)]
    undo.append(partial(invalidate_guards, holders))
    fitted = [name for name, each in plan.expressed.items() if not each.linear and name not in plan.fresh]
    fresh = dict(plan.fresh) | {name: plan.expressed[name].reduced(anatomy.live(name)) for name in fitted}
    for body in bodies:
        for name, mask in plan.masks.items():
            undo.extend(_mask(body, name, mask))
        for name, expression in plan.expressed.items():
            undo.extend(_express(body, name, expression, fresh.get(name)))
        for name in (*plan.replaced, *plan.mixing):  # every entry is written
            if name not in plan.masks:
                undo.extend(_unmask(body, name))
    changes = {name: value.to(anatomy.tensor(name)) - anatomy.tensor(name) for name, value in plan.replaced.items()}
    for body in bodies:
        for name, change in changes.items():
            undo.append(body.set(name, body.tensor(name) + change if body.averaged else plan.replaced[name]))
        for place in layer.readers:
            if place.tensor in plan.constants:
                weight = double(body.live(place.tensor))
                amount = layer.sent(place, weight, plan.constants[place.tensor].to(weight))
                undo.append(body.add(anatomy.sinks[place.tensor].tensor, amount))
    undo.extend(rebuild.resize([edit]))
    for body in bodies:
        for name, steps in moves.items():
            for step in steps:
                if (known := body.expression(name)) is not None:
                    undo.extend(known.gathered(step.axis, step.origin.old.to(body.stored(name).device)))
                    if step.axis or not known.rows:  # what is stored of it stays
                        continue
                _rebuild(body, name, step, plan, old_columns, undo)
        undo.extend(rebuild.write_down(anatomy, body.modules, [layer]))
        for name, ratio in plan.ratios.items():
            undo.append(set_ratio(body.modules[name], ratio))
    invalidate_guards(holders)


def _replace(plan: Plan, bodies: list[_Body], undo: Undo) -> None:
    """Puts modules in the place of others, in the network and its averages, and their parameters into optimizers.

    Blocks of a container are arranged.
    """
    for body in bodies:
        for path, blocks in plan.modules.items():
            if isinstance(blocks, Blocks):
                undo.extend(blocks.arrange(body.model, path, body.optimizers))
        changes = {path: each for path, each in plan.modules.items() if isinstance(each, Change)}
        made = {path: change.made(path, body.modules) for path, change in changes.items()}
        for path, new in made.items():
            undo.append(put_module(body.model, path, new))
        for gone, come, names in exchange_parameters(made, body.modules):
            undo.extend(replace(body.optimizers, gone, come, names))


@contextlib.contextmanager
def trial_surgery(*plans: Plan, optimizers: Optimizers = (), averages: Averages = ()) -> Iterator[None]:
    """Applies plans for the time of a ``with`` block and undoes them, exactly."""
    with undoing() as undo:
        for plan in plans:
            undo.extend(apply(plan, optimizers, averages, trial=True))
        yield


class _Body:
    """A network with these units: the one that is trained, or (without ``optimizers``) an average of its weights."""

    def __init__(
        self, anatomy: Anatomy, average: nn.Module | None = None, optimizers: tuple[Optimizer, ...] = ()
    ) -> None:
        self.anatomy = anatomy
        self.averaged = average is not None
        self.model = anatomy.model if average is None else inner(average)
        self.modules = anatomy.modules if average is None else dict(self.model.named_modules())
        self.optimizers = optimizers

    def tensor(self, name: str) -> Tensor:
        return self.anatomy.tensor(name, self.modules)

    def stored(self, name: str) -> Tensor:
        return self.anatomy.stored(name, self.modules)

    def expression(self, name: str) -> Compressed | None:
        return self.anatomy.expression(name, self.modules)

    @cached_property
    def last(self) -> bool:
        """Whether channels come last where a tensor does not tell: as in another weight of the network."""
        return any_last(self.modules.values())

    def live(self, name: str) -> Tensor:
        return self.anatomy.live(name, self.modules)

    def mask(self, name: str) -> Tensor | None:
        return self.anatomy.mask(name, self.modules)

    def check(self, plan: Plan) -> None:
        """Raises SurgeryError where this network cannot follow."""
        layer = plan.layer
        here = {place.tensor: layer.tensor(place) for place in layer.places}
        here |= {name: self.anatomy.tensor(name) for name in (*plan.masks, *plan.expressed)}
        for path, change in plan.modules.items():
            if isinstance(change, Blocks):
                change.check(self.model, path, self.averaged)
                continue
            here |= {f"{path}.{n}": tensor for n, tensor in self.anatomy.modules[path].named_parameters(recurse=False)}
        for name, tensor in here.items():
            try:
                shape = tuple(self.tensor(name).shape)
            except (AttributeError, KeyError):
                shape = None
            if self.averaged and shape and self.stored(name) is self.anatomy.stored(name):
                raise SurgeryError(f"an average must be a copy of the network, but {name} is the network's own")
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
            if type(self.expression(name)) is not type(self.anatomy.expression(name)):
                raise SurgeryError(
                    f"{name} is stored in one way in the network and in another in an average of it; give every "
                    "average to every operation"
                )
        for name in self.anatomy.holders(layer):
            free = isinstance(self.modules.get(name), FreeAttention)
            if isinstance(self.anatomy.modules[name], FreeAttention) and not free:
                raise SurgeryError(
                    f"{name or 'the attention'} has been freed in the network, but not in an average of it: free the "
                    "average as well, ops.free_attention(average)"
                )
        ours = {id(each) for each in self.model.parameters()}
        theirs = {
            id(each) for optimizer in self.optimizers for group in optimizer.param_groups for each in group["params"]
        }
        if ours and theirs and not ours & theirs:  # of several some may train other networks
            names = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers)
            raise SurgeryError(
                f"{names} trains no parameter of this network: give its own optimizer, not that of a copy"
            )
        if not plan.modules:
            known = {name: self.expression(name) for name in here}
            followed = [name for name, each in known.items() if each is None or each.rows]
            check(self.optimizers, {name: self.stored(name) for name in followed})
        vectors = [name for name, each in plan.expressed.items() if len(each.stored_shape) < 2]
        for name, optimizer in itertools.product(vectors, self.optimizers):
            held = (each for group in optimizer.param_groups for each in group["params"])
            if "Muon" in type(optimizer).__name__ and any(each is self.stored(name) for each in held):
                raise Unsuitable(
                    f"{plan.operation}: what is stored of {name} is a vector, and {type(optimizer).__name__} trains "
                    "matrices only: train this weight with another optimizer"
                )

    def set(self, name: str, data: Tensor) -> Callable[[], object]:
        tensor = self.tensor(name)
        steps = [*shift(self.optimizers, tensor, data), exchange(tensor, data.to(tensor), tensor.grad)]
        return lambda: [step() for step in reversed(steps)]

    def add(self, name: str, amount: Tensor) -> Callable[[], object]:
        tensor = self.tensor(name)
        return self.set(name, double(tensor.data) + amount)


def _rebuild(body: _Body, name: str, step: Move, plan: Plan, old_columns: dict[Place, Tensor], undo: Undo) -> None:
    """One axis of one tensor, with its gradient and its optimizers' state."""
    tensor, (place,) = body.stored(name), step.places
    values = body.live(name) if body.expression(name) is None else tensor.detach()

    def weights(old: Tensor) -> Tensor:
        data = rebuild.rebuild(old, [step])
        if place in old_columns:
            columns = old.movedim(place.axis, 0)[old_columns[place].to(old.device)]
            mixed = torch.einsum("uk...,un->nk...", double(columns), plan.mixing[name].to(double(columns)))
            data.movedim(place.axis, 0)[place.positions.to(data.device)] = mixed.to(data)
        if place.role != FAN_OUT and name in plan.newborn:
            newborn = step.origin.newborn.to(data.device)
            data = data.index_copy(place.axis, newborn, plan.newborn[name].to(data))
        added = plan.fan_out if place.role == FAN_OUT else plan.fan_in if place.role == FAN_IN else {}
        if name in added:
            by_unit = plan.layer.by_unit(place, data)
            data = plan.layer.written(place, data, by_unit + added[name].to(by_unit))
        return data.contiguous()

    def remap(old: Tensor, degree: int | None) -> Tensor:
        return laid_out(weights(old) if degree is None else step.state(old, degree), old, body.last)

    data = laid_out(weights(values), tensor, body.last)
    gradient = remap(tensor.grad, 1) if tensor.grad is not None else None
    undo.extend(follow(body.optimizers, tensor, remap))
    undo.append(exchange(tensor, data, gradient))
    mask = body.mask(name)
    if mask is not None:
        undo.append(exchange(mask, laid_out(step.masked(mask), mask, body.last)))


def _express(body: _Body, name: str, expression: Compressed, fresh: Tensor | None) -> Undo:
    """Lets a parameter be what is stored of it; its gradient and its optimizers' state follow, or begin anew."""
    tensor, own = body.stored(name), copy.deepcopy(expression).to(body.stored(name).device)
    own.last = channels_last(tensor) is True
    values = own.reduced(body.live(name)) if fresh is None else fresh.to(tensor)

    def remap(old: Tensor, degree: int | None) -> Tensor:
        if fresh is None:
            return own.reduced(old, degree)
        return values.to(old) if degree is None else old.new_zeros(values.shape)

    gradient = None if tensor.grad is None else remap(tensor.grad, 1)
    undo: Undo = [*begin_anew(body.optimizers, tensor, "Adafactor")]  # which keeps other things for vectors
    undo += [*follow(body.optimizers, tensor, remap), exchange(tensor, values, gradient)]
    try:
        return undo + express(body.modules, name, own)
    except SurgeryError:
        for step in reversed(undo):
            step()
        raise


def _mask(body: _Body, name: str, mask: Tensor) -> Undo:
    """Masks a parameter: its values, its gradient and its optimizers' state are zero there from now on."""
    tensor = body.tensor(name)
    mask = mask.to(tensor.device)
    undo: Undo = put(body.modules, name, mask)  # first, as it may be refused
    undo.extend(follow(body.optimizers, tensor, lambda old, degree: old * mask))
    undo.append(exchange(tensor, tensor.data * mask, None if tensor.grad is None else tensor.grad * mask))
    return undo


def _unmask(body: _Body, name: str) -> Undo:
    """A mask that hides nothing any more, at its size."""
    mask = body.mask(name)
    return [] if mask is None else [body.set(name, body.live(name)), exchange(mask, torch.ones_like(mask))]


def _check(plan: Plan) -> None:
    if not isinstance(plan, Plan):
        raise SurgeryError(f"a plan is what an operation proposes, not a {type(plan).__name__}")
    layer = plan.layer
    check_current(layer)
    if plan.units_before != layer.units:
        raise SurgeryError(
            f"{plan.operation} on {layer.name}: the plan was made for {plan.units_before} units, the layer has "
            f"{layer.units}; propose again"
        )
    if not plan.sources and layer.units and not plan.modules:
        raise SurgeryError(f"{plan.operation} on {layer.name}: no unit would be left")
    if not all(isinstance(source, int) for source in plan.sources):
        raise SurgeryError(f"{plan.operation} on {layer.name}: sources must be whole numbers")
    if plan.shares is not None and (not isinstance(plan.shares, Tensor) or plan.shares.shape != (len(plan.sources),)):
        raise SurgeryError(f"{plan.operation} on {layer.name}: shares must be a tensor of {len(plan.sources)} numbers")
    if not all(-1 <= source < layer.units for source in plan.sources):
        raise SurgeryError(f"{plan.operation} on {layer.name}: sources name units outside 0 … {layer.units - 1}")
    known = {place.tensor for place in layer.places}
    for values in (plan.newborn, plan.fan_in, plan.fan_out, plan.mixing, plan.constants):
        if odd := sorted(set(values) - known):
            raise SurgeryError(f"{plan.operation} on {layer.name}: {odd[0]} does not hold its units")
    for name, value in plan.mixing.items():
        _fits(plan, name, value, torch.Size([layer.units, len(plan.sources)]))
    for name, value in plan.constants.items():
        if name not in layer.anatomy.sinks:
            raise SurgeryError(f"{plan.operation} on {layer.name}: no vector after {name} can hold a constant")
        _fits(plan, name, value, torch.Size([layer.units]))
    for name, value in plan.replaced.items():
        if name not in layer.anatomy.expressions:
            raise SurgeryError(f"{plan.operation} on {layer.name}: the network has no tensor {name}")
        _fits(plan, name, value, layer.anatomy.tensor(name).shape)
    for name, mask in plan.masks.items():
        if name not in layer.anatomy.weights:
            raise SurgeryError(f"{plan.operation} on {layer.name}: {name} is no weight of the network")
        _fits(plan, name, mask, layer.anatomy.tensor(name).shape)
    for name, expression in plan.expressed.items():
        if name not in layer.anatomy.weights or layer.anatomy.mask(name) is not None:
            raise SurgeryError(f"{plan.operation} on {layer.name}: {name} is no plain weight of the network")
        fresh = plan.fresh.get(name)
        made = layer.anatomy.live(name) if fresh is None else expression.weight(fresh)
        _fits(plan, name, made, layer.anatomy.tensor(name).shape)
    for places, added in ((layer.makers, plan.fan_in), (layer.readers, plan.fan_out)):
        for place in places:
            if place.tensor in added:
                old = layer.by_unit(place, layer.tensor(place).detach())
                _fits(plan, place.tensor, added[place.tensor], torch.Size([len(plan.sources), *old.shape[1:]]))
    for place in layer.places:
        if place.role != FAN_OUT and place.tensor in plan.newborn:
            value, shape = plan.newborn[place.tensor], list(layer.tensor(place).shape)
            shape[place.axis] = plan.sources.count(-1) * place.positions.shape[1]
            _fits(plan, place.tensor, value, torch.Size(shape))


def _fits(plan: Plan, name: str, value: Any, wanted: torch.Size) -> None:
    """Raises SurgeryError where another operation has come between a plan's values and its application."""
    if not isinstance(value, Tensor):
        raise SurgeryError(f"{plan.operation} on {plan.layer.name}: its values for {name} must be a tensor")
    found = value.shape
    if found != wanted:
        raise SurgeryError(
            f"{plan.operation} on {plan.layer.name}: its values for {name} are {tuple(found)}, but {tuple(wanted)} are "
            "needed; where other layers have changed since, propose again"
        )


def several(averages: Averages) -> list[nn.Module]:
    """One average or several as a list. Raises SurgeryError for something else."""
    alone = isinstance(averages, (nn.Module, Mapping)) or not isinstance(averages, Iterable)
    found: list[Any] = [averages] if alone else [*averages]  # type: ignore[misc]
    for each in found:
        if not isinstance(each, nn.Module):
            raise SurgeryError(
                "averages must be networks of the same shapes (torch.nn.Module), such as "
                f"torch.optim.swa_utils.AveragedModel; a {type(each).__name__} cannot follow, as bare copies of "
                "parameters have no modules: make such an average anew after the operation"
            )
    return found
