"""Rules of element-wise work, norms and gates: what meets is one unit, and parameters on the way are its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from network_surgery.ops.anatomy import products
from network_surgery.ops.anatomy.axes import (
    blur,
    canonical,
    freeze,
    size,
    split,
    unite,
)  # fmt: skip
from network_surgery.ops.anatomy.calls import Axes, Call, broadcast, constant

if TYPE_CHECKING:
    from network_surgery.ops.anatomy.facts import Facts


def pointwise(facts: Facts, call: Call) -> Axes | None:
    fill = float(call.name in ("mul", "div"))
    axes = broadcast(call.twins, call.out.dim())
    for twin in call.twins:
        facts.attach(twin, fill)
    if call.name in ("add", "sub") and call.kwargs.get("alpha", 1) == 1:
        _add_bias(facts, call)
    return axes


def _add_bias(facts: Facts, call: Call) -> None:
    """A vector that is added to what a weight has just made, or taken from it, is its bias."""
    one, other = call.twins[0], call.twins[-1]
    facts.sink(call, one.making, one.axes, other, 1.0 if call.name == "add" else -1.0)
    if call.name == "add" and other is not one:
        facts.sink(call, other.making, other.axes, one)


def batch_norm(facts: Facts, call: Call) -> Axes | None:
    x, weight, bias, mean, variance = (*call.args[:3], *(call.args[3:5] if len(call.args) > 4 else (None, None)))
    mean, variance = (t if isinstance(t, Tensor) else None for t in (mean, variance))
    twin = facts.twin(x)
    for axis in (*twin.axes[:1], *twin.axes[2:]):
        blur(axis, "BatchNorm averages over its units in training mode")
    for tensor, fill in ((weight, 1.0), (bias, 0.0), (mean, 0.0), (variance, 1.0)):
        if tensor is not None:
            unite(twin.axes[1], facts.twin(tensor).axes[0])
            facts.attach(facts.twin(tensor), fill)
    if mean is not None:
        facts.sink(call, twin.making, (twin.axes[1],), facts.twin(mean), sign=-1.0)
    return twin.axes


def layer_norm(facts: Facts, call: Call) -> Axes | None:
    x, shape, weight = call.args[:3]
    bias = call.args[3] if isinstance(call.args[3], Tensor) else None  # RMSNorm has none
    axes = facts.twin(x).axes
    for axis in axes[len(axes) - len(shape) :]:
        blur(axis, "LayerNorm over its units")
    facts.write_down(axes[len(axes) - len(shape) :])
    for tensor, fill in ((weight, 1.0), (bias, 0.0)):
        if tensor is not None:
            broadcast([facts.twin(x), facts.twin(tensor)], x.dim())
            facts.attach(facts.twin(tensor), fill)
    return axes


def group_norm(facts: Facts, call: Call) -> Axes | None:
    x, weight, bias, _, channels, _, groups = call.args[:7]
    axes = facts.twin(x).axes
    inner = axes[1]
    if groups > 1:
        outer, inner = split(axes[1], (groups, channels // groups), cut=False)
        products.name_units(outer, "groups")
        facts.write_number("num_groups", outer)
    if size(inner) > 1:
        blur(inner, "GroupNorm over its units")
    for tensor, fill in ((weight, 1.0), (bias, 0.0)):
        if tensor is not None:
            unite(axes[1], facts.twin(tensor).axes[0])
            facts.attach(facts.twin(tensor), fill)
    return tuple(map(canonical, axes))


def glu(facts: Facts, call: Call) -> Axes | None:
    axes = list(facts.twin(call.args[0]).axes)
    dim = call.get(1, "dim", -1)
    outer, axes[dim] = split(axes[dim], (2, size(axes[dim]) // 2))
    freeze(outer, "a gated unit tells its halves apart")
    return tuple(axes)


def lstm_cell(facts: Facts, call: Call) -> Axes | list[Axes] | None:
    """The fused cells of a GPU: gates ``[batch, 4 or 3 × hidden]`` to states ``[batch, hidden]``."""
    hidden = call.out.size(1)
    state = facts.twin(call.args[2])
    for gates in call.args[:2]:
        outer, inner = split(facts.twin(gates).axes[1], (gates.size(1) // hidden, hidden))
        freeze(outer, "a recurrent cell tells its gates apart")
        unite(inner, state.axes[1])
    for bias in call.args[3:5]:
        if isinstance(bias, Tensor):
            unite(facts.twin(call.args[0]).axes[1], facts.twin(bias).axes[0])
            facts.attach(facts.twin(bias))
    axes = tuple(map(canonical, state.axes))
    return [axes if tensor.size(1) == hidden else constant(tensor) for tensor in call.outputs]
