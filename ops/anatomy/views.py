"""Rules of the operators that only move, cut and join tensors: their axes go with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from network_surgery.ops.anatomy import indexing
from network_surgery.ops.anatomy.axes import (
    ONE,
    Axis,
    Factor,
    Fixed,
    canonical,
    freeze,
    is_fixed,
    product,
    section,
    sections,
    size,
    split,
    total,
    unite,
)  # fmt: skip
from network_surgery.ops.anatomy.calls import Axes, Call, Twin, broadcast

if TYPE_CHECKING:
    from network_surgery.ops.anatomy.facts import Facts


def reshape(facts: Facts, call: Call) -> Axes | None:
    axes = facts.twin(call.args[0]).axes
    found: list[Axis] = []
    for before, after in _regroup([size(a) for a in axes], list(call.out.shape)):
        whole = product(*axes[before])
        found += [whole] if len(after) == 1 else split(whole, after)
    facts.write_down(found)
    return tuple(canonical(axis) for axis in found)


def _regroup(old: list[int], new: list[int]) -> list[tuple[slice, list[int]]]:
    """The smallest runs of dimensions that hold the same positions before and after a reshape."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        first, last = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right and i < len(old):
                left, i = left * old[i], i + 1
            elif j < len(new):
                right, j = right * new[j], j + 1
            else:
                break
        groups.append((slice(first, i), new[last:j]))
    return groups


def permute(facts: Facts, call: Call) -> Axes | None:
    axes = facts.twin(call.args[0]).axes
    return tuple(axes[dim] for dim in _order(call))


def _order(call: Call) -> list[int]:
    """Which old dimension each new one is."""
    x, name = call.args[0], call.name
    dims = list(range(x.dim()))
    if name == "permute":
        return [dim % x.dim() for dim in call.args[1]]
    if name == "t":
        return dims[::-1]
    one, other = call.args[1] % max(x.dim(), 1), call.args[2] % max(x.dim(), 1)
    dims[one], dims[other] = dims[other], dims[one]
    return dims


def same(facts: Facts, call: Call) -> Axes | None:
    return facts.twin(call.args[0]).axes


def uncut(facts: Facts, call: Call) -> Axes | None:
    """``alias``, which is what becomes of a slice that leaves nothing out: ``x[:, :n]`` where there are ``n``."""
    axes = facts.twin(call.args[0]).axes
    facts.write_down(axes)
    return axes


def restride(facts: Facts, call: Call) -> Axes | None:
    """``as_strided`` only where it changes nothing but the strides of dimensions of size one."""
    x, out = call.args[0], call.out
    moved = x.shape != out.shape or any(
        n > 1 and a != b for n, a, b in zip(x.shape, call.get(2, "stride"), call.args[0].stride(), strict=False)
    )
    return None if moved or call.get(3, "storage_offset") else facts.twin(x).axes


def as_complex(facts: Facts, call: Call) -> Axes | None:
    axes = facts.twin(call.args[0]).axes
    if call.name == "view_as_real":
        return (*axes, Fixed(2))
    freeze(axes[-1], "its real and imaginary parts are told apart")
    return axes[:-1]


def like(facts: Facts, call: Call) -> Axes | None:
    axes = facts.twin(call.args[0]).axes
    if tuple(map(size, axes)) == tuple(call.out.shape):
        return axes
    return blank(facts, call.out)  # new_zeros and its like


def blank(facts: Facts, tensor: Tensor) -> Axes:
    """The axes of a new tensor: each is as long as what it will meet."""
    axes = tuple(Factor(n) if n > 1 else ONE for n in tensor.shape)
    facts.write_down(axes)
    return axes


def expand(facts: Facts, call: Call) -> Axes | None:
    x = call.args[0]
    axes = (ONE,) * (call.out.dim() - x.dim()) + facts.twin(x).axes
    found = tuple(
        axis if size(axis) == n else Factor(n)  # as long as it is asked to be
        for axis, n in zip(axes, call.out.shape, strict=True)
    )
    facts.write_down(found)
    return found


def repeat(facts: Facts, call: Call) -> Axes | None:
    x = call.args[0]
    facts.attach(facts.twin(x))
    axes = (ONE,) * (call.out.dim() - x.dim()) + facts.twin(x).axes
    return tuple(product(Fixed(n), axis) for n, axis in zip(call.args[1], axes, strict=True))


def narrow(facts: Facts, call: Call) -> Axes | None:
    """``slice``: a part of one dimension."""
    x = call.args[0]
    dim = call.get(1, "dim", 0) % x.dim()
    start, stop, step = call.get(2, "start", 0) or 0, call.get(3, "end"), call.get(4, "step", 1)
    length = x.size(dim)
    start = min(max(start + length if start < 0 else start, 0), length)
    stop = length if stop is None else min(max(stop + length if stop < 0 else stop, start), length)
    axes = list(facts.twin(x).axes)
    if step != 1 and not is_fixed(axes[dim]):
        if start >= step or length % step or stop <= length - step:
            return None
        outer, inner = split(axes[dim], (length // step, step))
        freeze(inner, "its units are picked by position")
        axes[dim] = outer
    elif step == 1:
        whole = axes[dim]
        axes[dim] = section(whole, start, stop)
        uncut = stop - start == length  # before torch 2.9 it may stand for one of another dimension, too
        facts.write_down(axes if uncut else [axes[dim]])
        for bound in (start, stop):  # a number may say where the slice begins or ends
            if 1 < bound < length:
                facts.write_down([section(whole, 0, bound)], given=True)
    else:
        axes[dim] = Fixed(call.out.size(dim))
    return tuple(axes)


def slice_scatter(facts: Facts, call: Call) -> Axes | None:
    """A tensor with another one in place of a slice, or of one position."""
    x, source = call.args[:2]
    form = select if call.name == "select_scatter" else narrow
    part = form(facts, replace(call, args=(x, *call.args[2:]), outputs=[source]))
    if part is None:
        return None
    for tensor in (x, source):
        facts.attach(facts.twin(tensor))
    for one, other in zip(part, facts.twin(source).axes, strict=True):
        unite(one, other)
    return tuple(map(canonical, facts.twin(x).axes))


def select(facts: Facts, call: Call) -> Axes | None:
    axes = list(facts.twin(call.args[0]).axes)
    freeze(axes.pop(call.args[1] % len(axes)), "one of its units is picked by position")
    return tuple(axes)


def unbind(facts: Facts, call: Call) -> Axes | None:
    axes = list(facts.twin(call.args[0]).axes)
    freeze(axes.pop(call.get(1, "dim", 0) % len(axes)), "its units are told apart by position")
    return tuple(axes)


def split_up(facts: Facts, call: Call) -> list[Axes] | None:
    x = call.args[0]
    dim = call.get(2, "dim", 0) % x.dim()
    axes, lengths = list(facts.twin(x).axes), [tensor.size(dim) for tensor in call.outputs]
    numbered = not isinstance(call.args[1], (list, tuple))
    if numbered and len(set(lengths)) > 1:
        freeze(axes[dim], "it is split by a number that leaves a smaller piece over")
    pieces = sections(axes[dim], lengths, alike=numbered)
    facts.write_down(pieces, given=not numbered)
    return [tuple(map(canonical, (*axes[:dim], piece, *axes[dim + 1 :]))) for piece in pieces]


def squeeze(facts: Facts, call: Call) -> Axes | None:
    axes = facts.twin(call.args[0]).axes
    return tuple(axes[dim] for dim in _remaining(call))


def _remaining(call: Call) -> list[int]:
    """Which dimensions a squeeze leaves."""
    sizes = list(map(size, call.twins[0].axes))  # the tensor itself may have been squeezed in place
    if len(call.args) > 1:
        given = call.args[1] if isinstance(call.args[1], (list, tuple)) else [call.args[1]]
        gone = {dim % max(len(sizes), 1) for dim in given}
    else:
        gone = set(range(len(sizes)))
    return [dim for dim, n in enumerate(sizes) if not (dim in gone and n == 1)]


def unsqueeze(facts: Facts, call: Call) -> Axes | None:
    axes = list(facts.twin(call.args[0]).axes)
    axes.insert(call.args[1] % (len(axes) + 1), ONE)
    return tuple(axes)


def origins(call: Call, twin: Twin, rule: Callable[..., object]) -> tuple[int | None, ...]:
    """Along which axis of the parameter each dimension of a view of it runs."""
    old = list(twin.origins)
    if rule is permute:
        return tuple(old[dim] for dim in _order(call))
    if rule is squeeze:
        return tuple(old[dim] for dim in _remaining(call))
    if rule is select:
        old.pop(call.args[1] % len(old))
    elif rule is unbind:
        old.pop(call.get(1, "dim", 0) % len(old))
    elif rule is unsqueeze:
        old.insert(call.args[1] % (len(old) + 1), None)
    elif rule is expand:
        old = [*(None for _ in range(call.out.dim() - len(old))), *old]
    elif rule is indexing.index:
        picked = [dim for dim, n in enumerate(call.args[1]) if n is not None] if call.name == "index" else []
        if len(picked) > 1 or (picked and call.args[1][picked[0]].dtype == torch.bool):
            return (None,) * call.out.dim()
        dim = picked[0] if picked else call.args[1] % len(old)
        old[dim : dim + 1] = [None] * (call.out.dim() - len(old) + 1)
    elif rule is reshape:
        new: list[int | None] = []
        for before, after in _regroup([size(a) for a in twin.axes], list(call.out.shape)):
            axes = {o for o, a in zip(old[before], twin.axes[before], strict=True) if size(a) > 1}
            new += [axes.copy().pop() if len(axes) == 1 else None] * len(after)
        old = new
    return tuple(old)


def cat(facts: Facts, call: Call) -> Axes | None:
    tensors = [t for t in call.args[0] if t.dim() == call.out.dim()]
    dim = call.get(1, "dim", 0) % call.out.dim()
    for tensor in tensors:
        facts.attach(facts.twin(tensor))
    twins = [facts.twin(tensor) for tensor in tensors]
    for twin in twins[1:]:
        for other in range(call.out.dim()):
            if other != dim:
                unite(twins[0].axes[other], twin.axes[other])
    axes = list(map(canonical, twins[0].axes))
    axes[dim] = total(*(twin.axes[dim] for twin in twins))
    return tuple(axes)


def stack(facts: Facts, call: Call) -> Axes | None:
    tensors, dim = call.args[0], call.get(1, "dim", 0) % call.out.dim()
    axes = list(broadcast(call.twins, tensors[0].dim()))
    for tensor in tensors:
        facts.attach(facts.twin(tensor))
    axes.insert(dim, Fixed(len(tensors)))
    return tuple(axes)


def flip(facts: Facts, call: Call) -> Axes | None:
    axes = facts.twin(call.args[0]).axes
    dims = call.get(2, "dims") if call.name == "roll" else call.args[1]
    for dim in dims or range(len(axes)):
        freeze(axes[dim], f"{call.name} puts its units in another order")
    return axes


def pad(facts: Facts, call: Call) -> Axes | None:
    axes = list(facts.twin(call.args[0]).axes)
    amounts = call.args[1]
    for number in range(len(amounts) // 2):
        before, after = amounts[2 * number : 2 * number + 2]
        dim = len(axes) - 1 - number
        if before < 0 or after < 0 or (call.name != "constant_pad_nd" and (before or after)):
            freeze(axes[dim], f"{call.name} runs over its units")
            axes[dim] = Fixed(call.out.size(dim))
        else:
            axes[dim] = total(Fixed(before), axes[dim], Fixed(after))
    return tuple(axes)


def pixel_shuffle(facts: Facts, call: Call) -> Axes | None:
    """Channels that become positions in space, or the reverse: ``[…, C·r², H, W] ↔ […, C, H·r, W·r]``."""
    axes = list(facts.twin(call.args[0]).axes)
    times = call.args[1] ** 2
    for axis in axes[-2:]:
        freeze(axis, f"{call.name} runs over its units")
    if call.name == "pixel_shuffle":
        axes[-3], inner = split(axes[-3], (size(axes[-3]) // times, times))
        freeze(inner, "pixel_shuffle spreads it over space")
    else:
        axes[-3] = product(axes[-3], Fixed(times))
    return (*axes[:-2], Fixed(call.out.size(-2)), Fixed(call.out.size(-1)))


def channel_shuffle(facts: Facts, call: Call) -> Axes | None:
    axes = list(facts.twin(call.args[0]).axes)
    outer, inner = split(axes[1], (call.args[1], size(axes[1]) // call.args[1]))
    axes[1] = product(inner, outer)
    return tuple(axes)


def im2col(facts: Facts, call: Call) -> Axes | None:
    axes = facts.twin(call.args[0]).axes
    if len(axes) != 4:
        return None
    for axis in axes[2:]:
        freeze(axis, "im2col runs over its units")
    return axes[0], product(axes[1], Fixed(math.prod(call.args[1]))), Fixed(call.out.size(2))


def unfold(facts: Facts, call: Call) -> Axes | None:
    axes = list(facts.twin(call.args[0]).axes)
    dim = call.args[1] % len(axes)
    freeze(axes[dim], "unfold runs over its units")
    axes[dim] = Fixed(call.out.size(dim))
    return (*axes, Fixed(call.args[2]))


#: Rules under which a parameter stays that parameter.
KEEPING = (
    reshape, permute, same, uncut, expand, narrow, select, unbind, split_up, squeeze, unsqueeze, indexing.index
)  # fmt: skip
