"""The one place that changes which parameters optimizers train: their groups, and the state of those that come and go.

Parameters that stay are in their group with their state. ``optimizer_state`` is about their entries.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils import _pytree

from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.network.optimizer_state import Undo, restoring

#: Names of parameters that come, by id, for optimizers that know names.
Names = Mapping[int, str]
NONE: Names = {}


def replace(optimizers: tuple[Optimizer, ...], old: list[Tensor], new: list[Tensor], names: Names = NONE) -> list[Undo]:
    """Lets optimizers train other parameters in place of some; returns what undoes it.

    The new ones come into the group and to the place of the old ones: weights where a weight was, vectors where a
    vector was, if there was one. What is among both keeps its state; that of the others begins anew. So a freshly made
    optimizer whose network is then changed in the same way has the same order.
    """
    undo: list[Undo] = []
    done: set[int] = set()
    gone = {id(each) for each in old}
    for optimizer in optimizers:
        groups = [g for g in optimizer.param_groups if any(id(each) in gone for each in g["params"])]
        if not groups or id(groups[0]["params"]) in done:
            continue
        for group in groups:
            _check_beside(optimizer, group)
        weights = next((g for g in groups if any(p.dim() > 1 for p in g["params"] if id(p) in gone)), groups[0])
        vectors = next((g for g in groups if any(p.dim() < 2 for p in g["params"] if id(p) in gone)), weights)
        for group in groups:
            done.add(id(group["params"]))
            come = [each for each in new if (weights if each.dim() > 1 else vectors) is group]
            undo.extend(_put(group, gone, come, names))
        undo.extend(_drop(optimizer, old, new))
    return undo


def rearrange(
    optimizers: tuple[Optimizer, ...],
    old: list[Tensor],
    new: list[Tensor],
    origins: Mapping[int, Tensor],
    carried: Container[int] = (),
    names: Names = NONE,
) -> list[Undo]:
    """Lets optimizers train the parameters ``new`` where they trained ``old``, in this order; returns what undoes it.

    What is among both stays in its group with its state. ``origins``: of each that comes, by id, the old one that it is
    a copy of: it comes into the same group. Of those whose id is in ``carried`` the state is copied, too; that of
    others begins anew.
    """
    undo: list[Undo] = []
    done: set[int] = set()
    gone = {id(each) for each in old}
    groups = [(optimizer, g) for optimizer in optimizers for g in optimizer.param_groups]
    groups = [(optimizer, g) for optimizer, g in groups if any(id(each) in gone for each in g["params"])]
    for optimizer, group in groups:
        _check_beside(optimizer, group)
    for _, group in groups:
        if id(group["params"]) not in done:
            done.add(id(group["params"]))
            held = {id(each) for each in group["params"]} & gone
            come = [each for each in new if id(origins.get(id(each), each)) in held]
            undo.extend(_put(group, gone, come, names))
    for optimizer in optimizers:
        if id(optimizer.state) in done:
            continue
        done.add(id(optimizer.state))
        for parameter in () if isinstance(optimizer, LBFGS) else new:
            origin = origins.get(id(parameter))
            if origin is not None and id(parameter) in carried and origin in optimizer.state:
                undo.append(restoring(optimizer, parameter, None))
                optimizer.state[parameter] = copy.deepcopy(optimizer.state[origin])
        undo.extend(_drop(optimizer, old, new))
    return undo


def _put(group: dict[str, Any], gone: Container[int], come: list[Tensor], names: Names) -> list[Undo]:
    """Lets a group have these parameters at the place of the first of those that are gone, by id."""
    params, undo = group["params"], list[Undo]()
    first = next(place for place, each in enumerate(params) if id(each) in gone)
    placed = [*params[:first], *come, *(each for each in params[first:] if id(each) not in gone)]

    def sets(values: list[Any], others: list[Any]) -> None:
        values[:] = others

    if "param_names" in group:  # of an optimizer that was given named_parameters
        called = {id(each): name for each, name in zip(params, group["param_names"], strict=True)} | dict(names)
        undo.append(partial(sets, group["param_names"], list(group["param_names"])))
        sets(group["param_names"], [called.get(id(each), "") for each in placed])
    undo.append(partial(sets, params, list(params)))
    sets(params, placed)
    return undo


def _drop(optimizer: Optimizer, old: list[Tensor], new: list[Tensor]) -> list[Undo]:
    """Forgets what an optimizer keeps for parameters that are not among the new ones; L-BFGS forgets all."""
    stay = {id(each) for each in new}
    everything = isinstance(optimizer, LBFGS)
    dropped = [*optimizer.state] if everything else [p for p in old if id(p) not in stay and p in optimizer.state]
    undo: list[Undo] = [restoring(optimizer, parameter, optimizer.state.pop(parameter)) for parameter in dropped]
    if everything:
        optimizer._numel_cache = None  # type: ignore[attr-defined]
        undo.append(partial(setattr, optimizer, "_numel_cache", None))
    return undo


def _check_beside(optimizer: Optimizer, group: Mapping[str, Any]) -> None:
    """Raises SurgeryError where a group keeps tensors in lists beside its parameters."""
    values = [x for key, x in group.items() if key != "params" and isinstance(x, list)]
    if any(isinstance(leaf, Tensor) for leaf in _pytree.tree_leaves(values)):
        raise SurgeryError(
            f"{type(optimizer).__name__} keeps tensors beside its parameters, which cannot follow where "
            "modules are replaced: make a new one after surgery and pass none to it"
        )
