"""Rules of the operators that take or put entries by their positions: units pass along the axes that are not picked.

Graph networks, routed experts and packed sequences are made of these: nodes, tokens and time steps are picked, and the
units on the other axes go on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from network_surgery.ops.anatomy.axes import Fixed, canonical, freeze, size, split, unite
from network_surgery.ops.anatomy.calls import Axes, Call

if TYPE_CHECKING:
    from network_surgery.ops.anatomy.facts import Facts

PICKED = "its units are picked by position"


def index(facts: Facts, call: Call) -> Axes | None:
    """``x[:, at, …]`` and ``index_select``."""
    x = call.args[0]
    if call.name == "index_select":
        indices: Sequence[Tensor | None] = [None] * (call.args[1] % x.dim()) + [call.args[2]]
    else:
        indices = call.args[1]
    before, dims, after = _pick(facts, facts.twin(x).axes, indices)
    return (*before, *(Fixed(n) for n in call.out.shape[len(before) : len(before) + dims]), *after)


def index_put(facts: Facts, call: Call) -> Axes | None:
    """``x[:, at, …] = values``."""
    x, indices, values = call.args[:3]
    axes = facts.twin(x).axes
    before, dims, after = _pick(facts, axes, indices)
    for tensor in (x, values):
        facts.attach(facts.twin(tensor))
    targets = (*before, *(Fixed(-1) for _ in range(dims)), *after)
    for target, axis in zip(reversed(targets), reversed(facts.twin(values).axes), strict=False):
        if target == Fixed(-1):
            freeze(axis, PICKED)
        elif size(axis) > 1:
            unite(target, axis)
    return tuple(map(canonical, axes))


def _pick(facts: Facts, axes: Axes, indices: Sequence[Tensor | None]) -> tuple[Axes, int, Axes]:
    """What fancy indexing leaves: the axes before the picked positions, their number of dimensions, the axes after."""
    at, dims, places = 0, 0, list[int]()
    for each in indices:
        if each is None:
            at += 1
            continue
        for axis in facts.constant(each).axes:
            freeze(axis, PICKED)
        masks = each.dtype in (torch.bool, torch.uint8)
        length, dims = (each.dim(), max(dims, 1)) if masks else (1, max(dims, each.dim()))
        places += range(at, at + length)
        at += length
    for place in places:
        freeze(axes[place], PICKED)
    together = places == list(range(places[0], places[-1] + 1))
    first = places[0] if together else 0
    kept = [(place, axis) for place, axis in enumerate(axes) if place not in places]
    return (
        tuple(axis for place, axis in kept if place < first),
        dims,
        tuple(axis for place, axis in kept if place >= first),
    )


def index_onto(facts: Facts, call: Call) -> Axes | None:
    """``x.index_add(dim, at, source)`` and its like."""
    x, dim, _, source = call.args[:4]
    dim %= x.dim()
    axes = facts.twin(x).axes
    for axis in (axes[dim], *facts.constant(call.args[2]).axes):
        freeze(axis, PICKED)
    facts.attach(facts.twin(x))
    if isinstance(source, Tensor) and source.dim() == x.dim():
        facts.attach(facts.twin(source))
        others = facts.twin(source).axes
        freeze(others[dim], PICKED)
        for other in range(x.dim()):
            if other != dim:
                unite(axes[other], others[other])
    return tuple(map(canonical, axes))


def scatter(facts: Facts, call: Call) -> Axes | None:
    """``x.scatter(dim, at, source)`` and its like, and ``x.gather(dim, at)``: each unit has positions of its own."""
    x, dim, at = call.args[:3]
    dim %= max(x.dim(), 1)
    source = call.get(3, "src")
    twins = [facts.twin(x), facts.constant(at), *([facts.twin(source)] if isinstance(source, Tensor) else [])]
    if any(len(twin.axes) != x.dim() for twin in twins):
        return None
    gathers = call.name == "gather"
    for twin in twins:
        facts.attach(twin)
        if not (gathers and twin is twins[1]):
            freeze(twin.axes[dim], PICKED)
    for other in range(x.dim()):
        if other != dim:
            for twin in twins[1:]:
                unite(twins[0].axes[other], twin.axes[other])
    axes = list(map(canonical, twins[0].axes))
    if gathers:
        axes[dim] = canonical(twins[1].axes[dim])
    return tuple(axes)


def masked_scatter(facts: Facts, call: Call) -> Axes | None:
    """``x.masked_scatter(mask, rows)`` with whole rows: the mask is the same for all units."""
    x, mask, rows = call.args[:3]
    axes, others = facts.twin(x).axes, facts.twin(rows).axes
    if not mask.dim() or (mask.size(-1) > 1 and mask.stride(-1)) or rows.shape[-1:] != x.shape[-1:]:
        return None
    for axis in (*axes[:-1], *others[:-1], *facts.constant(mask).axes[:-1]):
        freeze(axis, PICKED)
    for tensor in (x, mask, rows):
        facts.attach(facts.twin(tensor))
        if tensor.size(-1) > 1:
            unite(axes[-1], facts.twin(tensor).axes[-1])
    return tuple(map(canonical, axes))


def segments(facts: Facts, call: Call) -> Axes | None:
    """``torch.segment_reduce`` along one axis."""
    axes = list(facts.twin(call.args[0]).axes)
    dim = call.get(5, "axis", 0)
    freeze(axes[dim], "segment_reduce runs over its units")
    axes[dim] = Fixed(call.out.size(dim))
    return tuple(axes)


def order(facts: Facts, call: Call) -> Axes | None:
    """Sorting and picking by rank, along one axis: that of the units cannot be it."""
    x = call.args[0]
    axes = list(facts.twin(x).axes)
    position = 2 if call.name in ("topk", "kthvalue") else 1
    given = [a for a in call.args[position:] if isinstance(a, int) and not isinstance(a, bool)]
    if call.name in ("median", "nanmedian") and not given and "dim" not in call.kwargs:
        return None
    dim = call.kwargs.get("dim", given[0] if given else -1) % max(x.dim(), 1)
    freeze(axes[dim], f"{call.name} picks its units by their values")
    if call.out.dim() < x.dim():
        del axes[dim]
    else:
        axes[dim] = Fixed(call.out.size(dim))
    return tuple(axes)


def pack(facts: Facts, call: Call) -> list[Axes] | None:
    """``pack_padded_sequence``: ``[batch, time, …]``, in either order, to ``[all steps, …]``, and their numbers."""
    axes = facts.twin(call.args[0]).axes
    for axis in axes[:2]:
        freeze(axis, PICKED)
    facts.sized |= any(twin.live for twin in call.twins)  # the lengths say how many steps there are
    return [(Fixed(call.out.size(0)), *axes[2:]), *((Fixed(t.size(0)),) for t in call.outputs[1:])]


def fold(facts: Facts, call: Call) -> Axes | None:
    """``col2im``: ``[batch, channels · kernel, windows]`` to ``[batch, channels, height, width]``."""
    axes = facts.twin(call.args[0]).axes
    if len(axes) != 3:
        return None
    window = math.prod(call.args[2])
    freeze(axes[2], "fold runs over its units")
    outer, inner = split(axes[1], (size(axes[1]) // window, window))
    freeze(inner, "fold spreads it over space")
    return axes[0], canonical(outer), *(Fixed(n) for n in call.out.shape[2:])


def diagonal(facts: Facts, call: Call) -> Axes | None:
    """The diagonal of two axes, neither of which may hold units."""
    x: Any = call.args[0]
    axes = list(facts.twin(x).axes)
    one, other = call.get(2, "dim1", 0) % x.dim(), call.get(3, "dim2", 1) % x.dim()
    for dim in sorted((one, other), reverse=True):
        freeze(axes[dim], PICKED)
        del axes[dim]
    return (*axes, Fixed(call.out.size(-1)))
