"""The one place that changes optimizers: the state of a parameter follows its units.

A parameter keeps its identity when it is operated on (its ``data`` is exchanged), so every optimizer, parameter group,
scheduler, hook and tied module goes on holding the right object. What remains is the *state*: momentum and moment
estimates, of the parameter's shape. It should become what it would be, had the network had its new units all along:

* A unit that stays keeps its state; copies get copies of it.
* A unit whose fan-out is multiplied by a share ``s`` has the gradient of its fan-in (and of its norm) multiplied by
  ``s``, since that gradient comes back through the fan-out. ``STATE`` says for every key of every optimizer of torch
  how it answers to that. The gradient of the fan-out itself is (signal from above) × (the unit's output), and neither
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
state (``differentiable=True``) ends here. Optimizers of other libraries are read by the well-known names of ``OTHERS``;
any other tensor of the parameter's shape counts as linear in the gradient, and a tensor of any other shape is refused
by ``check`` before anything has changed. Wrappers are followed into (``listed``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils import _pytree

from ops.errors import SurgeryError


class Follows(Enum):
    """What happens to state when the gradient is multiplied by ``s`` from now on and, in hindsight, always was."""

    LINEAR = "× s"
    SQUARED = "× s²"
    MAGNITUDE = "× |s|"
    SIGN = "× sign of s"
    NOT = "unchanged"
    AS_WEIGHT = "it is an average or a copy of weights and becomes what they become"


_ADAM = {"exp_avg": Follows.LINEAR, "exp_avg_sq": Follows.SQUARED, "max_exp_avg_sq": Follows.SQUARED}

#: Every state tensor of torch's optimizers, by the definition of its update; ``g`` is the gradient.
STATE: dict[str, dict[str, Follows]] = {
    "Adadelta": {
        "square_avg": Follows.SQUARED,
        "acc_delta": Follows.NOT,  # averages (g √acc_delta / √square_avg)², up to eps
    },
    "Adafactor": {"variance": Follows.SQUARED, "row_var": Follows.SQUARED, "col_var": Follows.SQUARED},
    "Adagrad": {"sum": Follows.SQUARED},
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Adamax": {"exp_avg": Follows.LINEAR, "exp_inf": Follows.MAGNITUDE},  # the largest |g|, decayed, up to eps
    "ASGD": {"ax": Follows.AS_WEIGHT},
    "Muon": {"momentum_buffer": Follows.LINEAR},
    "NAdam": _ADAM,
    "RAdam": _ADAM,
    "RMSprop": {
        "square_avg": Follows.SQUARED,
        "grad_avg": Follows.LINEAR,
        "momentum_buffer": Follows.SIGN,  # sums g / √square_avg, up to eps
    },
    "Rprop": {"prev": Follows.LINEAR, "step_size": Follows.NOT},  # step sizes look at signs of g × prev only
    "SGD": {"momentum_buffer": Follows.LINEAR},
    "SparseAdam": _ADAM,
}

#: The setting of the parameter group that a fresh parameter's state starts from, where that is not zero.
FRESH = {("Adagrad", "sum"): "initial_accumulator_value", ("Rprop", "step_size"): "lr"}

#: Names that other libraries use; what is neither here nor in ``STATE`` is taken to be linear in the gradient.
OTHERS: dict[str, Follows] = {
    **_ADAM,
    **STATE["Adamax"],
    "square_avg": Follows.SQUARED,
    "exp_avg_var": Follows.SQUARED,  # AdaBelief
    "max_exp_avg_var": Follows.SQUARED,
    "hessian": Follows.SQUARED,  # Sophia: the diagonal of Gauss–Newton
    "slow_buffer": Follows.AS_WEIGHT,  # Lookahead, by its libraries
    "slow_params": Follows.AS_WEIGHT,
    "lookahead_slow_buff": Follows.AS_WEIGHT,
    "old_p": Follows.AS_WEIGHT,  # SAM
    "z": Follows.AS_WEIGHT,  # schedule-free
    "master_param": Follows.AS_WEIGHT,  # weights in full precision
}

#: ``remap(tensor, degree)``: the tensor as it follows the units, its entries being of this degree in the gradient
#: (0: gathered without scaling); None: mapped as the weights are.
Remap = Callable[[Tensor, int | None], Tensor]
Undo = Callable[[], None]


def listed(optimizers: Optimizer | Iterable[Optimizer]) -> tuple[Optimizer, ...]:
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
        SurgeryError: an optimizer keeps something for one of them of another shape, in a list, or outside its state.
    """
    known = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    for optimizer in optimizers:
        if isinstance(optimizer, LBFGS):
            continue
        for name, tensor in tensors.items():
            state = optimizer.state.get(tensor, {})
            for key, value in state.items():
                if key in ("row_var", "col_var") and _factored(state, tensor):
                    continue
                for leaf in _pytree.tree_leaves(value):
                    stays = not isinstance(leaf, Tensor) or leaf.numel() <= 1
                    if not (stays or (leaf is value and leaf.shape == tensor.shape)):
                        _refuse(optimizer, f"keeps {key} of shape {tuple(leaf.shape)}", name, tensor)
        states = [o.state for o in optimizers]
        for attribute, value in vars(optimizer).items():
            if any(value is state for state in states):
                continue
            for leaf in _pytree.tree_leaves(value):
                if isinstance(leaf, Tensor) and leaf.numel() > 1 and id(leaf) not in known:
                    for name, tensor in tensors.items():
                        if leaf.shape == tensor.shape and id(tensor) in known:
                            _refuse(optimizer, f"keeps such a tensor in its attribute {attribute}", name, tensor)


def follow(optimizers: tuple[Optimizer, ...], parameter: Tensor, remap: Remap) -> list[Undo]:
    """Maps every optimizer's state of a parameter, *before* its data is exchanged.

    Nothing that was there is written to, now or by later steps: new tensors take the place of the old ones, scalars
    included. So what undoes this brings back the state as it was, whatever training has done meanwhile, and none where
    there was none. Parameters that were not operated on are no part of it.
    """
    undo: list[Undo] = []
    done: set[int] = set()
    for optimizer in optimizers:  # wrapped ones first: they know best what a shared state means
        if id(optimizer.state) in done:
            continue
        done.add(id(optimizer.state))
        if isinstance(optimizer, LBFGS):
            undo.extend(_restart(optimizer, parameter))
            continue
        before = optimizer.state.get(parameter)
        if before is not None:
            optimizer.state[parameter] = _moved(optimizer, parameter, before, remap)
        undo.append(_restoring(optimizer, parameter, before))
    return undo


def exchange(tensor: Tensor, data: Tensor, gradient: Tensor | None = None) -> Undo:
    """Gives a parameter or buffer new data of any shape, in place; returns what undoes it.

    A graph that is still alive (a loss kept from the last step) would hold on to the old shape through the
    parameter's gradient accumulator; a passage through another dtype makes torch renew it.
    """
    old, old_gradient = tensor.data, tensor.grad

    def set_to(data: Tensor, gradient: Tensor | None) -> None:
        tensor.grad = None
        other = torch.float64 if data.dtype != torch.float64 else torch.float32
        tensor.data = torch.empty(0, dtype=other, device=data.device)
        tensor.data = data
        tensor.grad = gradient

    set_to(data, gradient)
    return lambda: set_to(old, old_gradient)


def forget(optimizer: Optimizer) -> None:
    """Drops the state of every parameter; the settings stay, as in a new optimizer of the same kind."""
    optimizer.state.clear()


def _moved(optimizer: Optimizer, parameter: Tensor, before: Mapping[str, Any], remap: Remap) -> dict[str, Any]:
    """The state of a parameter after surgery, in tensors of its own."""
    name = next((c.__name__ for c in type(optimizer).__mro__ if c.__module__.startswith("torch.optim.")), "")
    rules = OTHERS | STATE.get(name, {})
    group = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), {})
    state: dict[str, Any] = {}
    for key, value in before.items():
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape:
            fresh = float(group[FRESH[name, key]]) if (name, key) in FRESH else 0.0
            state[key] = _follow(value, rules.get(key, Follows.LINEAR), remap, fresh)
        else:
            state[key] = _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)
    if _factored(before, parameter):
        rows, columns = before["row_var"], before["col_var"]
        mean = rows.mean(dim=-2, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
        estimate = remap(rows / mean * columns, 2)
        state["row_var"], state["col_var"] = estimate.mean(dim=-1, keepdim=True), estimate.mean(dim=-2, keepdim=True)
    return state


def _follow(value: Tensor, follows: Follows, remap: Remap, fresh: float) -> Tensor:
    """A state tensor after surgery; units that continue nothing get the value ``fresh``."""
    if follows is Follows.AS_WEIGHT:
        return remap(value, None)
    if not value.is_floating_point() or follows in (Follows.NOT, Follows.SIGN):
        degree = 0
    else:
        degree = 2 if follows is Follows.SQUARED else 1
    moved = remap(value, degree).to(value.dtype)
    if follows is Follows.MAGNITUDE:
        moved = moved.abs()
    if follows is Follows.SIGN:
        moved = moved * remap(torch.ones_like(value), 1).sign()
    if fresh:  # s² (fresh + Σ g²) + (1 − s²) fresh = fresh + Σ (s g)²; a newborn unit's s is 0 here
        moved = moved + fresh * (1 - remap(torch.ones_like(value), degree))
    return moved


def _factored(state: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether this is Adafactor's estimate of a matrix: the means over its last and its last but one axis."""
    shape = parameter.shape
    return parameter.dim() > 1 and (
        getattr(state.get("row_var"), "shape", None) == (*shape[:-1], 1)
        and getattr(state.get("col_var"), "shape", None) == (*shape[:-2], 1, shape[-1])
    )


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
    return [_restoring(optimizer, first, before), lambda: setattr(optimizer, "_numel_cache", None)]


def _restoring(optimizer: Optimizer, parameter: Tensor, before: dict[str, Any] | None) -> Undo:
    def restore() -> None:
        if before is None:
            optimizer.state.pop(parameter, None)
        else:
            optimizer.state[parameter] = before

    return restore


def _refuse(optimizer: Optimizer, keeps: str, name: str, tensor: Tensor) -> None:
    raise SurgeryError(
        f"{type(optimizer).__name__} {keeps} for {name} of shape {tuple(tensor.shape)}; that cannot follow the units: "
        "train with an optimizer of torch.optim, or make a new one after surgery and pass none to it"
    )
