"""Rules of the operators that look along dimensions: sums and maxima, softmax, pooling and resizing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from network_surgery.ops.anatomy.axes import (
    ONE,
    Fixed,
    blur,
    freeze,
    product,
)  # fmt: skip
from network_surgery.ops.anatomy.calls import Axes, Call

if TYPE_CHECKING:
    from network_surgery.ops.anatomy.facts import Facts


def reduction(facts: Facts, call: Call) -> Axes | None:
    x = call.args[0]
    axes = facts.twin(x).axes
    position = 2 if call.name in ("linalg_vector_norm", "norm") else 1
    dims = call.get(position, "dim")
    listed = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (list, tuple)) else []
    gone = {dim % max(x.dim(), 1) for dim in listed} or set(range(x.dim()))
    for dim in gone:
        if call.name in ("argmax", "argmin"):
            freeze(axes[dim], f"{call.name} numbers its units")
    call.blurs = product(*(axes[dim] for dim in gone)), f"{call.name} over its units"
    if call.out.dim() == x.dim():
        return tuple(ONE if dim in gone else axis for dim, axis in enumerate(axes))
    return tuple(axis for dim, axis in enumerate(axes) if dim not in gone)


def validation(facts: Facts, call: Call) -> Axes | None:
    """Whether all values are valid (distributions ask so): as true of fewer units, or of the same ones twice."""
    return ()


def softmax(facts: Facts, call: Call) -> Axes | None:
    axes = facts.twin(call.args[0]).axes
    if axes:
        blur(axes[call.args[1]], "softmax over its units")
    return axes


def cumulative(facts: Facts, call: Call) -> Axes | None:
    axes = facts.twin(call.args[0]).axes
    freeze(axes[call.get(1, "dim")], f"{call.name} depends on the order of its units")
    return axes


def window(facts: Facts, call: Call) -> Axes | None:
    """Pooling and resizing in space: no units may stand where the window moves."""
    x, out = call.args[0], call.out
    axes = facts.twin(x).axes
    if x.dim() != out.dim():
        return None
    moving = next((int(letter) for letter in call.name if letter.isdigit()), x.dim() - 2)  # max_pool2d: two dimensions
    spatial = [dim for dim in range(x.dim()) if x.size(dim) != out.size(dim) or dim >= x.dim() - moving]
    for dim in spatial:
        freeze(axes[dim], f"{call.name} runs over its units")
    _freeze_positions(call)
    return tuple(Fixed(out.size(dim)) if dim in spatial else axis for dim, axis in enumerate(axes))


def _freeze_positions(call: Call) -> None:
    """The arguments that say where an operator looks in its first input."""
    for twin in call.twins[1:]:
        for axis in twin.axes:
            freeze(axis, f"{call.name} takes positions from it")


def roi_align(facts: Facts, call: Call) -> Axes | None:
    axes = facts.twin(call.args[0]).axes
    _freeze_positions(call)
    return Fixed(call.out.size(0)), axes[1], Fixed(call.out.size(2)), Fixed(call.out.size(3))
