"""The one place that changes optimizers: the state of a parameter follows its units.

A parameter keeps its identity when it is operated on (its ``data`` is exchanged), so every optimizer, parameter group,
hook and tied module goes on holding the right object. What remains is the *state*: momentum and moment estimates. Each
state tensor of the parameter's own shape is gathered with the units. Where a unit's fan-out is multiplied by a share
``s``, the gradient of its fan-in is multiplied by ``s`` too, so moments that are linear in the gradient are scaled by
``s`` and squared ones by ``s²``; the gradient of the fan-out itself is unchanged. Where new outputs are a recombination
of old ones through real units (a pivoted basis), the gradient of a kept unit's fan-out is what it was, so its state is
gathered; units that continue nothing start at zero. Step counts stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from ops.errors import SurgeryError

#: State tensors that are quadratic in the gradient; all others are linear in it.
SQUARED = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta"})

Remap = Callable[[Tensor, int], Tensor]
Undo = Callable[[], None]


def listed(optimizers: Optimizer | Iterable[Optimizer]) -> tuple[Optimizer, ...]:
    """One optimizer or several, as a tuple. Raises SurgeryError for anything else."""
    if isinstance(optimizers, Optimizer):
        return (optimizers,)
    found = tuple(optimizers)
    for optimizer in found:
        if not isinstance(optimizer, Optimizer):
            raise SurgeryError(f"optimizers must be torch.optim.Optimizer objects, not {type(optimizer).__name__}")
    return found


def check(optimizers: tuple[Optimizer, ...], tensors: Mapping[str, Tensor]) -> None:
    """Raises SurgeryError where an optimizer keeps state (a factored one, say) that cannot follow the units."""
    for optimizer in optimizers:
        for name, tensor in tensors.items():
            for key, value in optimizer.state.get(tensor, {}).items():
                if isinstance(value, Tensor) and value.dim() > 0 and value.shape != tensor.shape:
                    raise SurgeryError(
                        f"{type(optimizer).__name__} keeps {key} of shape {tuple(value.shape)} for {name} of shape "
                        f"{tuple(tensor.shape)}; that cannot follow the units: train with SGD or Adam"
                    )


def follow(optimizers: tuple[Optimizer, ...], parameter: Tensor, remap: Remap) -> list[Undo]:
    """Maps every optimizer's state of a parameter, *before* its data is exchanged.

    ``remap(tensor, degree)`` rebuilds a tensor of the parameter's shape whose entries are of this degree in the
    gradient. Returns what undoes it.
    """
    undo: list[Undo] = []
    for optimizer in optimizers:
        state = optimizer.state.get(parameter, {})
        for key, value in list(state.items()):
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0:
                moved = remap(value, 2 if key in SQUARED else 1)
                state[key] = moved.abs() if key == "exp_inf" else moved  # Adamax's largest absolute gradient
                undo.append(partial(state.__setitem__, key, value))
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
