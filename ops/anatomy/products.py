"""Rules of the operators that read units and make new ones: convolutions, products of matrices, embeddings, attention.

In a product with a parameter, what is summed over reads units and the parameter's other axis makes them. In a product
of two activations (attention) nothing is made: the units that are summed over meet, the others go on.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from torch import Tensor

from network_surgery.ops.anatomy.axes import (
    Axis,
    Fixed,
    blur,
    canonical,
    factors,
    freeze,
    is_fixed,
    product,
    size,
    split,
    unite,
)
from network_surgery.ops.anatomy.calls import COMPUTED, FAN_IN, FAN_OUT, VECTOR, Axes, Call, Twin

if TYPE_CHECKING:
    from network_surgery.ops.anatomy.facts import Facts

#: Products, by operator: the first of their two factors among the arguments; the other one is next to it.
FACTORS = {
    "linear": 0, "matmul": 0, "mm": 0, "bmm": 0, "mv": 0, "dot": 0, "addmm": 1, "baddbmm": 1, "addmv": 1,
}  # fmt: skip


def convolution(facts: Facts, call: Call) -> Axes | str | None:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = call.args[:9]
    given, kernel = facts.twin(x), facts.twin(weight)
    if kernel.source is None or x.dim() != weight.dim():
        return facts.computed()
    for axis in given.axes[2:]:
        freeze(axis, "a convolution runs over them")
    rows, columns = (1, 0) if transposed else (0, 1)
    made, read = kernel.axes[rows], kernel.axes[columns]
    if groups == 1:
        facts.use(kernel, columns, FAN_OUT, across=rows)
        facts.use(kernel, rows, FAN_IN, across=columns)
    else:  # the axis of the weight that is as long as all groups together is groups × units in a group
        group, inner = split(kernel.axes[0], (groups, weight.size(0) // groups), cut=False)
        name_units(group, "groups")
        facts.write_number("groups", group)
        facts.use(kernel, 0, VECTOR, part=group)
        facts.use(kernel, 0, FAN_OUT if transposed else FAN_IN, part=inner, across=1)
        facts.use(kernel, 1, FAN_IN if transposed else FAN_OUT, across=0)
        made, read = (
            product(group, kernel.axes[1] if transposed else inner),
            product(group, inner if transposed else read),
        )
    unite(given.axes[1], read)
    facts.passed(kernel, x, 1)
    facts.make(
        call, kernel, (rows,), whole=not transposed or (groups == 1 and weight[0, 0].numel() == max(stride) == 1)
    )
    if not transposed:
        facts.pad(
            kernel.source,
            padding_share(*map(tuple, (x.shape[2:], call.out.shape[2:], weight.shape[2:], stride, padding, dilation))),
        )
    where = x if transposed else call.out
    facts.count(kernel.source, where.numel() / where.size(1))
    call.maker, call.chain = kernel.source, () if groups == 1 or size(made) > groups else ("depthwise",)
    made = canonical(made)
    if bias is not None:
        unite(made, facts.twin(bias).axes[0])
        facts.attach(facts.twin(bias))
        facts.sink(call, call.making, (made,), facts.twin(bias))
    return (given.axes[0], made, *(Fixed(n) for n in call.out.shape[2:]))


@functools.lru_cache(1024)
def padding_share(*sizes: tuple[int, ...]) -> float:
    """The share of padded zeros in what a convolution multiplies its kernel with.

    ``sizes``: of the input, the output, the kernel, the stride, the padding and the dilation, a number for each
    dimension of space.

    >>> round(padding_share((4, 4), (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)), 4)  # of 12 columns and 12 rows 10 are seen
    0.3056
    """
    seen = 1.0
    longest = max(map(len, sizes))  # one number stands for all dimensions
    each = (numbers * (longest // len(numbers)) for numbers in sizes)
    for given, made, kernel, stride, padding, dilation in zip(*each, strict=True):
        taps = [[at * stride + tap * dilation - padding for at in range(made)] for tap in range(kernel)]
        seen *= sum(0 <= at < given for tap in taps for at in tap) / (made * kernel)
    return 1.0 - seen


def linear(facts: Facts, call: Call) -> Axes | str | None:
    return _multiply(facts, call, call.args[0], call.args[1], 1, call.get(2, "bias"))


def matmul(facts: Facts, call: Call) -> Axes | str | None:
    one, other = call.args[:2]
    return _multiply(facts, call, one, other, max(other.dim() - 2, 0))


def addmm(facts: Facts, call: Call) -> Axes | str | None:
    added, one, other = call.args[:3]
    return _multiply(facts, call, one, other, max(other.dim() - 2, 0), added)


def _multiply(
    facts: Facts, call: Call, left: Tensor, right: Tensor, read: int, added: Tensor | None = None
) -> Axes | str | None:
    """``[…, n, k]`` times ``right`` with its dimension ``read`` summed over; the leading dimensions of both are one."""
    one, other = facts.constant(left), facts.constant(right)
    if one.source is not None and other.source is not None:
        if _is_state(facts, other, read):
            facts.attach(other)
            other = Twin(other.axes)
        else:  # what is learned in place of an input: a first state, queries
            facts.attach(one)
            one = Twin(one.axes)
    weight = one if one.source is not None else other if other.source is not None else None
    if weight is None and not all(twin.live for twin in (one, other)):
        fixed = all(twin.live or all(map(is_fixed, twin.axes)) for twin in (one, other))
        if not fixed or facts.computed() != COMPUTED:
            return facts.computed()
    last = len(one.axes) - 1
    kept = [dim for dim in range(len(other.axes)) if dim != read]
    made = kept[-1] if kept else None
    both = kept[:-1]  # of a product in batches
    unite(one.axes[last], other.axes[read])
    for dim in both:
        if size(one.axes[dim]) == size(other.axes[dim]):
            unite(one.axes[dim], other.axes[dim])
    terms = call.out.numel() * size(one.axes[last])
    if weight is None:
        for dim in both:
            name_units(one.axes[dim], "heads")
        blur(one.axes[last], "a product of two activations sums over its units")
        facts.products.append((*one.axes, *(() if made is None else (other.axes[made],))))
    else:
        summed, free = (last, last - 1) if weight is one else (read, made)
        _read_and_make(facts, weight, summed, free, both)
        if weight is one:
            facts.passed(weight, right, read)
        else:
            facts.passed(weight, left, last)
        assert weight.source is not None
        facts.count(weight.source, terms / max(facts.shape(weight.source).numel(), 1))
        call.maker, call.chain = weight.source, ()
        facts.make(call, weight, [dim for dim in range(len(weight.axes)) if dim != summed])
    batch = other if weight is other else one
    lead = [batch.axes[dim] if dim in both and size(batch.axes[dim]) > 1 else one.axes[dim] for dim in range(last)]
    axes = tuple(map(canonical, (*lead, *(() if made is None else (other.axes[made],)))))
    if added is not None:
        bias = facts.twin(added)
        for axis, mine in zip(reversed(axes), reversed(bias.axes), strict=False):
            if size(mine) > 1:
                unite(axis, mine)
        facts.attach(bias)
        if not call.kwargs:
            facts.sink(call, call.making, axes, bias)
    if call.kwargs:  # alpha and beta: it is not the bare product
        call.chain = (call.name,)
        if call.making is not None:
            call.making.meet(None)
    return tuple(map(canonical, axes))


def _is_state(facts: Facts, twin: Twin, read: int) -> bool:
    """Whether a parameter is one row for all samples, with its units on dimension ``read``: no weight."""
    assert twin.source is not None
    shape, others = facts.shape(twin.source), [origin for dim, origin in enumerate(twin.origins) if dim != read]
    return all(origin is None or shape[origin] == 1 for origin in others)


def _read_and_make(facts: Facts, weight: Twin, summed: int, free: int | None, both: list[int]) -> None:
    across = None if free is None or free < 0 else weight.origins[free]
    if size(weight.axes[summed]) > 1:
        facts.use(weight, summed, FAN_OUT, across=across)
    if free is not None and free >= 0 and size(weight.axes[free]) > 1:
        facts.use(weight, free, FAN_IN, across=weight.origins[summed])
    for dim in both:
        if weight.origins[dim] is not None and size(weight.axes[dim]) > 1:
            facts.use(weight, dim, VECTOR)


def grouped_product(facts: Facts, call: Call) -> Axes | str | None:
    """Rows in groups, each times a matrix of its own: the kernel is particular about sizes."""
    return (
        "grouped products take only sizes of whole 16 bytes; let the experts be multiplied one by one "
        "(in transformers: experts_implementation='eager')"
    )


def embedding_bag(facts: Facts, call: Call) -> Axes | str | None:
    """Sums, means or maxima of rows of the table."""
    weight = facts.twin(call.args[0])
    if weight.source is None or not all(map(is_fixed, (axis for twin in call.twins[1:] for axis in twin.axes))):
        return None
    facts.use(weight, 1, FAN_IN, across=0)
    call.maker, call.chain = weight.source, ()
    return Fixed(call.out.size(0)), weight.axes[1]


def embedding(facts: Facts, call: Call) -> Axes | str | None:
    weight, indices = facts.twin(call.args[0]), facts.constant(call.args[1])
    if weight.source is None or not all(map(is_fixed, indices.axes)):
        return None
    facts.use(weight, 1, FAN_IN, across=0)
    call.maker, call.chain = weight.source, ()
    return (*indices.axes, weight.axes[1])


def attention(facts: Facts, call: Call) -> list[Axes] | None:
    """``softmax(q kᵀ · scale) v`` in one operator; q, k and v are ``[batch, heads, tokens, width]``."""
    q, k, v = (facts.twin(tensor).axes for tensor in call.args[:3])
    for dim in range(len(q) - 2):
        name_units(q[dim], "heads")
        unite(k[dim], v[dim])
        unite(q[dim], product(k[dim], Fixed(size(q[dim]) // size(k[dim]))))  # several query heads may share keys
    unite(k[-2], v[-2])
    unite(q[-1], k[-1])
    blur(q[-1], "attention sums over its units")
    blur(k[-2], "attention sums over its units")
    for mask in call.inputs[3:]:
        facts.attach(facts.twin(mask))
        for mine, axis in zip(reversed(facts.twin(mask).axes), (k[-2], *reversed(q[:-1])), strict=False):
            if size(mine) > 1:
                unite(mine, axis)
    facts.products += [(*q, k[-2]), (*q[:-1], k[-2], v[-1])]
    return [tuple(map(canonical, (*q[:-1], v[-1])))]


def name_units(axis: Axis, kind: str) -> None:
    """Gives the units on an axis a name of their kind."""
    for factor in factors(axis):
        factor.kind = factor.kind or kind
