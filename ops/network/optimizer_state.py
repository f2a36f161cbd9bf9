"""The one place that changes the state of optimizers: that of a parameter follows its units.

A parameter keeps its identity when it is operated on (its ``data`` is exchanged), so every optimizer, parameter group,
scheduler, hook and tied module goes on holding the right object. What remains is the *state*: momentum and moment
estimates, of the parameter's shape. It should become what it would be, had the network had its new units all along:

* A unit that stays keeps its state; copies get copies of it.
* A unit whose fan-out is multiplied by a share ``s`` has the gradient of its fan-in (and of its norm) multiplied by
  ``s``, since that gradient comes back through the fan-out. ``optimizer_keys`` says for every class and key how it
  answers to that. The gradient of the fan-out itself is (signal from above) × (the unit's output), and neither
  has changed: its state is gathered, not scaled. Exact for the loss's gradient; weight decay that is added to the
  gradient (L2, not decoupled) has its own part in the state, ``decay × weight``, which scales the other way round.
* Where old outputs are recombined from the units that stay (a pivoted basis: fan-out ``W' = W M``), the new units are
  old ones, emitting what they did, and the signal from above is what it was, so the gradient of a kept unit's fan-out
  is *the same*, column by column, whatever ``M`` is: gathered. Exact where the recombination is. The gradient of a
  kept unit's fan-in gets more than its own part, since it stands in for others too: ``Mᵀ`` times the old gradients
  where the slopes of their activations agree. Its own part is gathered all the same. On digits (``small_cnn``, PCNS on
  every layer, 8 seeds) first moments mixed by ``Mᵀ`` mostly point better (cosine to the gradients after surgery
  0.85–0.97, gathered 0.72–0.92). Of the loss of the next 50 steps that saved SGD 4 to 8 % early in training and
  nothing later, Adam 2 % at most either way, and with a bound on the second moments, ``(|M|ᵀ √v)²``, it cost Adam 11
  to 24 %. A second moment that is too small lets an update grow to 6.6 learning rates, not beyond (next).
* A unit that continues nothing (newborn, or an eigenvector) starts from the state of a fresh parameter, but under the
  step count of its layer, for there is one for the whole tensor. So Adam does not correct its bias: with the default
  betas its first update is ``(1 − β₁)/√(1 − β₂)`` = 3.2 learning rates where a fresh optimizer makes one, and at most
  6.6 (constant gradient, 12th step) before it falls back to one. Second moments of recombined outputs are no function
  of the old ones (they need the cross terms), which is why they start anew.
* L-BFGS keeps curvature pairs over all parameters in one flat vector. They belong to another space: they are dropped,
  and it goes on with a steepest-descent step, as on its first call.
* Adafactor keeps the row and column means of its estimate. The estimate is rebuilt, follows, and is factored again:
  exact for the estimate, which scaled rows and columns leave of rank one.

Parameters without state (frozen, or not stepped yet) get none. Step counts and other scalars stay. A graph through the
state (``differentiable=True``) ends here. Followed are entries of ``optimizer.state``, lists beside ``params`` in a
parameter group, and attributes of the parameter itself (``p.main_grad``), each by class and key. What is not known, or
is of a shape that cannot follow, is refused by ``check`` before anything has changed. Wrappers are followed into
(``list_optimizers``). Which parameters an optimizer trains is changed by ``optimizer_groups``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils import _pytree

from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.network.layout import laid_out
from network_surgery.ops.network.optimizer_keys import Degree, degree_of

#: The setting of the parameter group that a fresh parameter's state starts from, where that is not zero.
FRESH = {("Adagrad", "sum"): "initial_accumulator_value", ("Rprop", "step_size"): "lr"}
#: Keys of the row and column means of a squared estimate, which follow together.
FACTORED = (("row_var", "col_var"), ("exp_avg_sq_row", "exp_avg_sq_col"))
#: What holds no numbers that belong to units.
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
#: Precisions that a tensor may pass through, of which one is neither what it was nor what it becomes.
PASSAGES = (torch.float32, torch.float64, torch.float16)
REMEDY = "train with an optimizer of torch.optim, or make a new one after surgery and pass none to it"

#: ``remap(tensor, degree)``: the tensor as it follows the units, its entries being of this degree in the gradient
#: (0: gathered without scaling); None: mapped as the weights are.
Remap = Callable[[Tensor, int | None], Tensor]
Undo = Callable[[], None]


def list_optimizers(optimizers: Optimizer | Iterable[Optimizer]) -> tuple[Optimizer, ...]:
    """One optimizer or several, each once, each preceded by the optimizers that it wraps (Lookahead, SAM, …).

    Raises:
        SurgeryError: something else.
    """
    found: list[Optimizer] = []
    seen: set[int] = set()

    def add(optimizer: Any) -> None:
        if not isinstance(optimizer, Optimizer):
            raise SurgeryError(f"optimizers must be torch.optim.Optimizer objects, not {type(optimizer).__name__}")
        if id(optimizer) not in seen:
            seen.add(id(optimizer))
            for leaf in _pytree.tree_leaves(vars(optimizer)):
                if isinstance(leaf, Optimizer):
                    add(leaf)
            found.append(optimizer)

    if not isinstance(optimizers, (Optimizer, Iterable)):
        raise SurgeryError(f"optimizers must be torch.optim.Optimizer objects, not {type(optimizers).__name__}")
    for optimizer in (optimizers,) if isinstance(optimizers, Optimizer) else optimizers:
        add(optimizer)
    return tuple(found)


def check(optimizers: tuple[Optimizer, ...], tensors: Mapping[str, Tensor]) -> None:
    """Says whether every optimizer's state can follow the units of these tensors (name → tensor).

    Raises:
        SurgeryError: an optimizer keeps something for one of them that is not known by its class and key, of a shape
            that is not the tensor's, or outside its state; or the tensor itself carries such a thing.
    """
    for name, tensor in tensors.items():
        for kept in _find_state(optimizers, tensor):
            if problem := _problem(kept, tensor):
                raise SurgeryError(f"{kept.subject(name, tensor)}{problem}")
    for optimizer in optimizers:
        if not isinstance(optimizer, LBFGS):
            _check_elsewhere(optimizer, optimizers, tensors)


def follow(optimizers: tuple[Optimizer, ...], parameter: Tensor, remap: Remap) -> list[Undo]:
    """Maps every optimizer's state of a parameter, *before* its data is exchanged.

    Nothing that was there is written to, now or by later steps: new tensors take the place of the old ones, scalars
    included. So what undoes this brings back the state as it was, whatever training has done meanwhile, and none where
    there was none. Parameters that were not operated on are no part of it.
    """
    undo: list[Undo] = []
    done: set[int] = set()
    for optimizer in optimizers:
        if id(optimizer.state) in done:
            continue
        done.add(id(optimizer.state))
        if isinstance(optimizer, LBFGS):
            undo.extend(_restart(optimizer, parameter))
            continue
        before = optimizer.state.get(parameter)
        undo.append(restoring(optimizer, parameter, before))
        if before is not None:
            optimizer.state[parameter] = dict(before)
    known = [
        kept for kept in _find_state(optimizers, parameter) if kept.optimizer or kept.degree not in (None, "fixed")
    ]
    for kept, moved in [(kept, _move(kept, parameter, remap)) for kept in known]:
        undo.append(partial(kept.holder.__setitem__, kept.at, kept.value))
        kept.holder[kept.at] = moved
    return undo


def shift(optimizers: tuple[Optimizer, ...], parameter: Tensor, data: Tensor) -> list[Undo]:
    """Gives copies of a parameter's weights the change that it is about to make itself, to ``data`` of its shape."""
    if all(kept.degree != "weights" for kept in _find_state(optimizers, parameter)):
        return []
    change = data.to(parameter) - parameter.detach()
    return follow(optimizers, parameter, lambda old, degree: old + change.to(old) if degree is None else old.clone())


def exchange(tensor: Tensor, data: Tensor, gradient: Tensor | None = None) -> Undo:
    """Gives a parameter or buffer new data of any shape, in place; returns what undoes it. Channels last stay last.

    A graph that is still alive (a loss kept from the last step) would hold on to the old shape through the
    parameter's gradient accumulator; a passage through another dtype makes torch renew it.
    """
    old, old_gradient = tensor.data, tensor.grad
    # Made before anything changes, so that what undoes it asks for no memory.
    passage = old.new_empty(0, dtype=next(each for each in PASSAGES if each not in (old.dtype, data.dtype)))

    def set_to(data: Tensor, gradient: Tensor | None) -> None:
        tensor.grad = None
        tensor.data = passage
        tensor.data = data
        tensor.grad = gradient

    if gradient is not None and old_gradient is not None:
        gradient = laid_out(gradient, old_gradient)
    set_to(laid_out(data, old), gradient)
    return lambda: set_to(old, old_gradient)


def begin_anew(optimizers: tuple[Optimizer, ...], parameter: Tensor, kind: str) -> list[Undo]:
    """Drops what optimizers of a kind (part of the class's name) keep for a parameter; returns what undoes it."""
    undo: list[Undo] = []
    for optimizer in optimizers:
        if any(kind in each.__name__ for each in type(optimizer).__mro__) and parameter in optimizer.state:
            undo.append(restoring(optimizer, parameter, optimizer.state.pop(parameter)))
    return undo


def forget(optimizer: Optimizer) -> None:
    """Drops the state of every parameter; the settings stay, as in a new optimizer of the same kind."""
    optimizer.state.clear()


@dataclass(frozen=True)
class _Kept:
    """Something that is kept for a parameter: ``holder[at]``, called ``key``, by an optimizer or (None) by itself."""

    holder: Any
    at: Any
    key: str
    degree: Degree | None
    optimizer: Optimizer | None
    place: str

    @property
    def value(self) -> Any:
        return self.holder[self.at]

    def subject(self, name: str, tensor: Tensor) -> str:
        whose = f"for {name} of shape {tuple(tensor.shape)}"
        if self.optimizer is None:
            return f"{name} of shape {tuple(tensor.shape)} carries {self.key} as an attribute"
        shapes = [tuple(leaf.shape) for leaf in _tensors(self.value) if leaf.dim()]
        of = f" of shape {shapes[0]}" if shapes else ""
        return f"{type(self.optimizer).__name__} keeps {self.key}{of} {self.place}{whose}"


def _find_state(optimizers: tuple[Optimizer, ...], parameter: Tensor) -> Iterator[_Kept]:
    """All that is kept for a parameter, wherever it lies, each once; wrappers may put things into wrapped state."""
    holders = [o for o in optimizers if parameter in o.state or any(True for _ in _groups(o, parameter))]
    for key in [key for key, value in vars(parameter).items() if not isinstance(value, torch.nn.Module)]:
        kinds = [*map(type, holders), type(parameter), torch.nn.Parameter]
        yield _Kept(vars(parameter), key, key, _first(kinds, key), None, "")
    done: set[int] = set()
    for optimizer in optimizers:  # wrapped ones first
        if isinstance(optimizer, LBFGS):
            continue
        others = [each for each in optimizers if each is not optimizer]
        kinds = [type(optimizer), *(type(each) for each in others if optimizer in list_optimizers(each))]
        state = optimizer.state.get(parameter)
        if state is not None and id(state) not in done:
            done.add(id(state))
            for key in list(state):
                yield _Kept(state, key, str(key), _first(kinds, str(key)), optimizer, "")
        for group, index in _groups(optimizer, parameter):
            for key, values in group.items():
                beside = key != "params" and isinstance(values, list) and len(values) == len(group["params"])
                if beside and id(values) not in done and (degree := _first(kinds, key)) is not None:
                    done.add(id(values))
                    yield _Kept(values, index, key, degree, optimizer, "in its parameter group ")


def _first(kinds: Iterable[type], key: str) -> Degree | None:
    return next((degree for kind in kinds if (degree := degree_of(kind, key)) is not None), None)


def _groups(optimizer: Optimizer, parameter: Tensor) -> Iterator[tuple[dict[str, Any], int]]:
    """The groups that a parameter is in, and where."""
    for group in optimizer.param_groups:
        yield from ((group, at) for at, each in enumerate(group["params"]) if each is parameter)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in something that is kept, one level into objects of other libraries too."""
    tensors: list[Tensor] = []
    for leaf in _pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif not isinstance(leaf, (*PLAIN, Optimizer)):
            inside = _pytree.tree_leaves(getattr(leaf, "__dict__", {}))
            tensors.extend(each for each in inside if isinstance(each, Tensor))
    return tensors


def _scalar(leaf: Tensor, parameter: Tensor) -> bool:
    return leaf.dim() == 0 or (leaf.numel() <= 1 and leaf.shape != parameter.shape)


def _problem(kept: _Kept, parameter: Tensor) -> str | None:
    """Why something that is kept cannot follow the units of a parameter; None where it can."""
    value, degree = kept.value, kept.degree
    if degree == "fixed" or all(_scalar(leaf, parameter) for leaf in _tensors(value)):
        return None
    remedy = "or delete the attribute" if kept.optimizer is None else REMEDY
    if degree is None:
        kind = "torch.nn.Parameter" if kept.optimizer is None else type(kept.optimizer).__name__
        return (
            ", and it is not known how that follows the units: declare it, ops.register_state"
            f"({kind}, {kept.key!r}, degree), {remedy}"
        )
    leaves = _pytree.tree_leaves(value)
    if kept.optimizer is not None and _pair(kept, parameter):
        leaves = []
    if any(not isinstance(leaf, (*PLAIN, Tensor)) for leaf in leaves):
        return f" in a {type(value).__name__}; that cannot follow the units: {remedy}"
    for leaf in leaves:
        if isinstance(leaf, Tensor) and not _scalar(leaf, parameter):
            if _as_parameter(leaf, parameter) is None:
                return f"; that cannot follow the units, for its shape is another: {remedy}"
            if leaf.layout is torch.strided and leaf.untyped_storage().nbytes() > leaf.numel() * leaf.element_size():
                return f" as a part of a larger tensor; that cannot follow the units: {remedy}"
            if degree != 0 and not (leaf.is_floating_point() or leaf.is_complex()):
                return f" in codes ({leaf.dtype}); that cannot follow the units: {remedy}"
    return None


def _check_elsewhere(optimizer: Optimizer, optimizers: tuple[Optimizer, ...], tensors: Mapping[str, Tensor]) -> None:
    """Raises SurgeryError where an optimizer keeps tensors outside its state that belong to one of these."""
    held = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    ours = {name: tensor for name, tensor in tensors.items() if id(tensor) in held}
    sizes = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups]
    rows = {sum(sizes), *sizes}
    followed = {id(kept.holder) for tensor in ours.values() for kept in _find_state(optimizers, tensor)}
    states = [o.state for o in optimizers]
    places = [(f"attribute {key},", value) for key, value in vars(optimizer).items() if key != "param_groups"]
    places = [(where, value) for where, value in places if not any(value is state for state in states)]
    for group in optimizer.param_groups:
        named = [(f"parameter group, as {key},", value) for key, value in group.items() if key != "params"]
        places += [(where, value) for where, value in named if id(value) not in followed]
    places += [(f"state, as {key!r},", value) for key, value in optimizer.state.items() if not isinstance(key, Tensor)]
    for where, value in places:
        own = [each for each in _pytree.tree_leaves(value) if not isinstance(each, torch.nn.Module)]  # not the network
        for leaf in _tensors(own):
            if leaf.numel() > 1 and id(leaf) not in held:
                for name, tensor in ours.items():
                    if leaf.shape == tensor.shape or (leaf.dim() == 1 and leaf.numel() in rows):
                        raise SurgeryError(
                            f"{type(optimizer).__name__} keeps a tensor of shape {tuple(leaf.shape)} in its {where} "
                            f"which cannot follow the units of {name} of shape {tuple(tensor.shape)}: {REMEDY}"
                        )


def _move(kept: _Kept, parameter: Tensor, remap: Remap) -> Any:
    """What is kept for a parameter after surgery, in tensors of its own."""
    if kept.degree == 2 and (pair := _pair(kept, parameter)):
        rows, columns = (kept.holder[key] for key in pair)
        apart = rows.dim() < parameter.dim()
        if apart:
            rows, columns = rows.unsqueeze(-1), columns.unsqueeze(-2)
        mean = rows.mean(dim=-2, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        axis = -1 if kept.key == pair[0] else -2
        return laid_out(remap(rows / mean * columns, 2).mean(dim=axis, keepdim=not apart), kept.value)

    def leaf_moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if kept.degree is None or kept.degree == "fixed" or _scalar(leaf, parameter):
            return leaf.clone()
        whole = _as_parameter(leaf, parameter)
        if whole is None:
            return leaf.clone()
        moved = [_follow(each, kept, parameter, remap) for each in whole]
        if leaf.shape == parameter.shape:
            return moved[0]
        return torch.stack(moved) if leaf.dim() > parameter.dim() else moved[0].flatten()

    return _pytree.tree_map(leaf_moved, kept.value)


def _as_parameter(leaf: Tensor, parameter: Tensor) -> list[Tensor] | None:
    """A tensor as tensors of the parameter's shape: itself, a stack of such, or its entries in one row."""
    if leaf.shape == parameter.shape:
        return [leaf]
    if leaf.shape[1:] == parameter.shape:
        return list(leaf)
    return [leaf.view(parameter.shape)] if leaf.shape == (parameter.numel(),) else None


def _follow(value: Tensor, kept: _Kept, parameter: Tensor, remap: Remap) -> Tensor:
    """A state tensor after surgery; units that continue nothing get the value of a fresh parameter."""
    if kept.degree == "weights":
        return remap(value, None)
    degree = kept.degree if isinstance(kept.degree, int) else 0
    moved = remap(value, degree).to(value.dtype)
    ones = torch.ones_like(value.real if value.is_complex() else value)
    if kept.degree == "magnitude":
        moved = moved * remap(ones, 1).abs().to(moved)
    if kept.degree == "sign":
        moved = moved * remap(ones, 1).sign().to(moved)
    if fresh := _fresh(kept, parameter):  # s² (fresh + Σ g²) + (1 − s²) fresh = fresh + Σ (s g)²; newborn: s = 0
        moved = moved + (fresh * (1 - remap(ones, degree))).to(moved)
    return moved


def _fresh(kept: _Kept, parameter: Tensor) -> float:
    """The value that a fresh parameter's state starts from."""
    names = {c.__name__ for c in type(kept.optimizer).__mro__ if c.__module__.startswith("torch.optim.")}
    setting = next((FRESH[name, kept.key] for name in names if (name, kept.key) in FRESH), None)
    if setting is None or kept.optimizer is None:
        return 0.0
    return next((float(group[setting]) for group, _ in _groups(kept.optimizer, parameter)), 0.0)


def _pair(kept: _Kept, parameter: Tensor) -> tuple[str, str] | None:
    """The keys of a factored estimate that this belongs to: means over the last and over the last but one axis."""
    shape = parameter.shape
    for pair in FACTORED:
        if parameter.dim() > 1 and kept.key in pair and isinstance(kept.holder, dict):
            rows, columns = (getattr(kept.holder.get(key), "shape", None) for key in pair)
            if (rows, columns) in (
                ((*shape[:-1], 1), (*shape[:-2], 1, shape[-1])), (shape[:-1], (*shape[:-2], shape[-1]))
            ):  # fmt: skip
                return pair
    return None


def _restart(optimizer: LBFGS, parameter: Tensor) -> list[Undo]:
    """L-BFGS forgets its curvature and how many entries all its parameters have."""
    parameters: list[Tensor] = optimizer.param_groups[0]["params"]
    if all(each is not parameter for each in parameters):
        return []
    first = parameters[0]
    before = optimizer.state.get(first)
    if before is not None:
        optimizer.state[first] = {"func_evals": before.get("func_evals", 0), "n_iter": 0}
    optimizer._numel_cache = None
    return [restoring(optimizer, first, before), lambda: setattr(optimizer, "_numel_cache", None)]


def restoring(optimizer: Optimizer, parameter: Tensor, before: dict[str, Any] | None) -> Undo:
    """Puts back what an optimizer kept for a parameter (None: nothing)."""

    def restore() -> None:
        if before is None:
            optimizer.state.pop(parameter, None)
        else:
            optimizer.state[parameter] = before

    return restore
