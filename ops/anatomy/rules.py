"""What each aten operator does to axes.

A rule is a function ``(trace, call) -> axes of each output``; where it cannot follow, ``None`` or the reason. There
are few kinds: products read units and make new ones (``products``); element-wise work unites its operands; views carry
their axes along; reductions end them; norms pass them and attach their parameters. ``RULES`` is the whole table;
whatever is not in it freezes what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ops.anatomy import products
from ops.anatomy.axes import (
    ONE,
    Axis,
    Factor,
    Fixed,
    blur,
    canonical,
    freeze,
    is_fixed,
    product,
    section,
    size,
    split,
    total,
    unite,
)  # fmt: skip
from ops.anatomy.calls import Axes, Call, Twin, tensors_in

if TYPE_CHECKING:
    from ops.anatomy.trace import Trace

Rule = Callable[["Trace", Call], "Axes | list[Axes] | str | None"]


def apply_rule(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Gives the outputs of one operator call their twins."""
    inputs = tensors_in([*args, *kwargs.values()])
    twins = [trace.twin(tensor) for tensor in inputs]
    call = Call(func, args, kwargs, inputs, tensors_in([out]), twins)
    plain = all(twin.source is None and all(map(is_fixed, twin.axes)) for twin in twins)
    if not call.inputs and call.name in _BLANK:  # as long as what it will meet
        for tensor in call.outputs:
            trace.mark(tensor, Twin(tuple(Factor(n) if n > 1 else ONE for n in tensor.shape)))
    live = any(twin.live for twin in twins)
    if not call.outputs and call.inputs:  # a value leaves the tensors, and anything may depend on it
        trace.refuse(call.inputs, f"{call.name} hands its values to Python")
        trace.steered |= live
    if plain:
        for tensor in call.outputs if live else ():
            trace.mark(tensor, Twin(_constant(tensor), live=True))
    if plain or not call.outputs:
        return
    rule = None
    if func.namespace in ("aten", "torchvision"):
        rule = RULES.get(func.overloadpacket.__name__) or RULES.get(call.name)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = _pointwise
    try:
        found = rule(trace, call) if rule else None
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError):  # an unusual form of the operator
        found = None
    if found is None or isinstance(found, str):
        trace.refuse(call.inputs, found or f"the operator {call.name} is not known to keep its units apart")
        found = [_constant(tensor) for tensor in call.outputs]
    each = found if isinstance(found, list) else [found] * len(call.outputs)
    if rule in _KEEPING and twins[0].source is not None:  # a view or copy of a parameter is that parameter still
        twin = replace(twins[0], origins=_origins(call, twins[0], rule))
    elif call.chain is not None:
        twin = Twin((), live=live, maker=call.maker, chain=call.chain)
    else:
        maker, chain = _history(trace, call)
        twin = Twin((), live=live, maker=maker, chain=chain)
    for tensor, axes in zip(call.outputs, each, strict=False):
        fits = tuple(map(size, axes)) == tuple(tensor.shape)
        if not fits and tensor is call.out:  # the others are statistics of norms, places of maxima and the like
            trace.refuse(call.inputs, f"{call.name} is used in a way that is not known to keep its units apart")
        trace.mark(tensor, replace(twin, axes=axes if fits else _constant(tensor)))


def _constant(tensor: Tensor) -> Axes:
    return tuple(Fixed(n) for n in tensor.shape)


# -- element-wise work: what meets is one unit -----------------------------------------------------------------------


def _pointwise(trace: Trace, call: Call) -> Axes | None:
    fill = float(call.name in ("mul", "div"))
    axes = _broadcast(call.twins, call.out.dim())
    for twin in call.twins:
        trace.attach(twin, fill)
    if call.name == "add" and not call.kwargs.get("alpha"):
        _add_bias(trace, call)
    return axes


def _broadcast(twins: Iterable[Twin], dims: int) -> Axes:
    """Unites the operands dimension by dimension, aligned on the right; returns the axes of the result."""
    found: list[Axis] = [ONE] * dims
    for twin in twins:
        for dim, axis in enumerate(twin.axes, start=dims - len(twin.axes)):
            if size(axis) == 1:
                continue
            if size(found[dim]) == 1:
                found[dim] = axis
            else:
                unite(found[dim], axis)
    return tuple(canonical(axis) for axis in found)


def _add_bias(trace: Trace, call: Call) -> None:
    """A vector added to what a weight has just made is its bias: a constant can go there."""
    twins = [trace.twin(tensor) for tensor in call.inputs]
    for twin, other in ((twins[0], twins[-1]), (twins[-1], twins[0])):
        if twin.chain == () and other.source is not None:
            trace.sink(twin.maker, other)


# -- norms -------------------------------------------------------------------------------------------------------------


def _batch_norm(trace: Trace, call: Call) -> Axes | None:
    x, weight, bias, mean, variance = (*call.args[:3], *(call.args[3:5] if len(call.args) > 4 else (None, None)))
    mean, variance = (t if isinstance(t, Tensor) else None for t in (mean, variance))
    twin = trace.twin(x)
    for tensor, fill in ((weight, 1.0), (bias, 0.0), (mean, 0.0), (variance, 1.0)):
        if tensor is not None:
            unite(twin.axes[1], trace.twin(tensor).axes[0])
            trace.attach(trace.twin(tensor), fill)
    if twin.chain == () and mean is not None:
        trace.sink(twin.maker, trace.twin(mean), sign=-1.0)
    return twin.axes


def _layer_norm(trace: Trace, call: Call) -> Axes | None:
    x, shape, weight = call.args[:3]
    bias = call.args[3] if isinstance(call.args[3], Tensor) else None  # RMSNorm has none
    axes = trace.twin(x).axes
    for axis in axes[len(axes) - len(shape) :]:
        blur(axis, "LayerNorm over its units")
    trace.write_down(axes[len(axes) - len(shape) :])
    for tensor, fill in ((weight, 1.0), (bias, 0.0)):
        if tensor is not None:
            _broadcast([trace.twin(x), trace.twin(tensor)], x.dim())
            trace.attach(trace.twin(tensor), fill)
    return axes


def _group_norm(trace: Trace, call: Call) -> Axes | None:
    x, weight, bias, _, channels, _, groups = call.args[:7]
    axes = trace.twin(x).axes
    inner = axes[1]
    if groups > 1:
        outer, inner = split(axes[1], (groups, channels // groups), cut=False)
        products.named(outer, "groups")
        trace.write_number("num_groups", outer)
    if size(inner) > 1:
        blur(inner, "GroupNorm over its units")
    for tensor, fill in ((weight, 1.0), (bias, 0.0)):
        if tensor is not None:
            unite(axes[1], trace.twin(tensor).axes[0])
            trace.attach(trace.twin(tensor), fill)
    return tuple(map(canonical, axes))


# -- views -------------------------------------------------------------------------------------------------------------


def _reshape(trace: Trace, call: Call) -> Axes | None:
    axes = trace.twin(call.args[0]).axes
    found: list[Axis] = []
    for before, after in _regroup([size(a) for a in axes], list(call.out.shape)):
        whole = product(*axes[before])
        found += [whole] if len(after) == 1 else split(whole, after)
    trace.write_down(found)
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


def _permute(trace: Trace, call: Call) -> Axes | None:
    axes = trace.twin(call.args[0]).axes
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


def _same(trace: Trace, call: Call) -> Axes | None:
    return trace.twin(call.args[0]).axes


def _restride(trace: Trace, call: Call) -> Axes | None:
    """``as_strided`` only where it changes nothing but the strides of dimensions of size one."""
    x, out = call.args[0], call.out
    moved = x.shape != out.shape or any(
        n > 1 and a != b for n, a, b in zip(x.shape, call.get(2, "stride"), call.args[0].stride(), strict=False)
    )
    return None if moved or call.get(3, "storage_offset") else trace.twin(x).axes


def _complex(trace: Trace, call: Call) -> Axes | None:
    axes = trace.twin(call.args[0]).axes
    if call.name == "view_as_real":
        return (*axes, Fixed(2))
    freeze(axes[-1], "its real and imaginary parts are told apart")
    return axes[:-1]


def _like(trace: Trace, call: Call) -> Axes | None:
    axes = trace.twin(call.args[0]).axes
    if tuple(map(size, axes)) == tuple(call.out.shape):
        return axes
    return tuple(Factor(n) if n > 1 else ONE for n in call.out.shape)  # new_zeros and its like


def _expand(trace: Trace, call: Call) -> Axes | None:
    x = call.args[0]
    axes = (ONE,) * (call.out.dim() - x.dim()) + trace.twin(x).axes
    found = tuple(
        axis if size(axis) == n else Factor(n)  # as long as it is asked to be
        for axis, n in zip(axes, call.out.shape, strict=True)
    )
    trace.write_down(found)
    return found


def _repeat(trace: Trace, call: Call) -> Axes | None:
    x = call.args[0]
    trace.attach(trace.twin(x))
    axes = (ONE,) * (call.out.dim() - x.dim()) + trace.twin(x).axes
    return tuple(product(Fixed(n), axis) for n, axis in zip(call.args[1], axes, strict=True))


def _narrow(trace: Trace, call: Call) -> Axes | None:
    """``slice``: a part of one dimension."""
    x = call.args[0]
    dim = call.get(1, "dim", 0) % x.dim()
    start, stop, step = call.get(2, "start", 0) or 0, call.get(3, "end"), call.get(4, "step", 1)
    length = x.size(dim)
    start = min(max(start + length if start < 0 else start, 0), length)
    stop = length if stop is None else min(max(stop + length if stop < 0 else stop, start), length)
    axes = list(trace.twin(x).axes)
    if step != 1 and not is_fixed(axes[dim]):
        if start >= step or length % step or stop <= length - step:
            return None
        outer, inner = split(axes[dim], (length // step, step))
        freeze(inner, "its units are picked by position")
        axes[dim] = outer
    elif step == 1:
        axes[dim] = section(axes[dim], start, stop)
        trace.write_down([axes[dim]])
    else:
        axes[dim] = Fixed(call.out.size(dim))
    return tuple(axes)


def _select(trace: Trace, call: Call) -> Axes | None:
    axes = list(trace.twin(call.args[0]).axes)
    freeze(axes.pop(call.args[1] % len(axes)), "one of its units is picked by position")
    return tuple(axes)


def _unbind(trace: Trace, call: Call) -> Axes | None:
    axes = list(trace.twin(call.args[0]).axes)
    freeze(axes.pop(call.get(1, "dim", 0) % len(axes)), "its units are told apart by position")
    return tuple(axes)


def _split(trace: Trace, call: Call) -> list[Axes] | None:
    x = call.args[0]
    dim = call.get(2, "dim", 0) % x.dim()
    axes, found, at = list(trace.twin(x).axes), [], 0
    lengths = {tensor.size(dim) for tensor in call.outputs}
    if not isinstance(call.args[1], (list, tuple)) and len(lengths) == 1 and len(call.outputs) > 1:  # equal pieces
        outer, piece = split(axes[dim], (len(call.outputs), lengths.pop()))
        freeze(outer, "its parts are told apart by position")
        axes[dim] = piece
        trace.write_down([piece])
        return [tuple(map(canonical, axes))] * len(call.outputs)
    for tensor in call.outputs:
        piece = section(axes[dim], at, at + tensor.size(dim))
        at += tensor.size(dim)
        found.append((*axes[:dim], piece, *axes[dim + 1 :]))
    trace.write_down([each[dim] for each in found])
    return [tuple(map(canonical, each)) for each in found]


def _squeeze(trace: Trace, call: Call) -> Axes | None:
    axes = trace.twin(call.args[0]).axes
    return tuple(axes[dim] for dim in _unsqueezed(call))


def _unsqueezed(call: Call) -> list[int]:
    """Which dimensions a squeeze leaves."""
    sizes = list(map(size, call.twins[0].axes))  # the tensor itself may have been squeezed in place
    if len(call.args) > 1:
        given = call.args[1] if isinstance(call.args[1], (list, tuple)) else [call.args[1]]
        gone = {dim % max(len(sizes), 1) for dim in given}
    else:
        gone = set(range(len(sizes)))
    return [dim for dim, n in enumerate(sizes) if not (dim in gone and n == 1)]


def _unsqueeze(trace: Trace, call: Call) -> Axes | None:
    axes = list(trace.twin(call.args[0]).axes)
    axes.insert(call.args[1] % (len(axes) + 1), ONE)
    return tuple(axes)


def _origins(call: Call, twin: Twin, rule: Rule) -> tuple[int | None, ...]:
    """Along which axis of the parameter each dimension of a view of it runs."""
    old = list(twin.origins)
    if rule is _permute:
        return tuple(old[dim] for dim in _order(call))
    if rule is _squeeze:
        return tuple(old[dim] for dim in _unsqueezed(call))
    if rule is _select:
        old.pop(call.args[1] % len(old))
    elif rule is _unbind:
        old.pop(call.get(1, "dim", 0) % len(old))
    elif rule is _unsqueeze:
        old.insert(call.args[1] % (len(old) + 1), None)
    elif rule is _expand:
        old = [*(None for _ in range(call.out.dim() - len(old))), *old]
    elif rule is _reshape:
        new: list[int | None] = []
        for before, after in _regroup([size(a) for a in twin.axes], list(call.out.shape)):
            axes = {o for o, a in zip(old[before], twin.axes[before], strict=True) if size(a) > 1}
            new += [axes.copy().pop() if len(axes) == 1 else None] * len(after)
        old = new
    return tuple(old)


def _cat(trace: Trace, call: Call) -> Axes | None:
    tensors = [t for t in call.args[0] if t.dim() == call.out.dim()]
    dim = call.get(1, "dim", 0) % call.out.dim()
    for tensor in tensors:
        trace.attach(trace.twin(tensor))
    twins = [trace.twin(tensor) for tensor in tensors]
    for twin in twins[1:]:
        for other in range(call.out.dim()):
            if other != dim:
                unite(twins[0].axes[other], twin.axes[other])
    axes = list(map(canonical, twins[0].axes))
    axes[dim] = total(*(twin.axes[dim] for twin in twins))
    return tuple(axes)


def _stack(trace: Trace, call: Call) -> Axes | None:
    tensors, dim = call.args[0], call.get(1, "dim", 0) % call.out.dim()
    axes = list(_broadcast(call.twins, tensors[0].dim()))
    for tensor in tensors:
        trace.attach(trace.twin(tensor))
    axes.insert(dim, Fixed(len(tensors)))
    return tuple(axes)


def _flip(trace: Trace, call: Call) -> Axes | None:
    axes = trace.twin(call.args[0]).axes
    dims = call.get(2, "dims") if call.name == "roll" else call.args[1]
    for dim in dims or range(len(axes)):
        freeze(axes[dim], f"{call.name} puts its units in another order")
    return axes


def _pad(trace: Trace, call: Call) -> Axes | None:
    axes = list(trace.twin(call.args[0]).axes)
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


def _index(trace: Trace, call: Call) -> Axes | None:
    """Fancy indexing of one dimension by constants."""
    x, indices = call.args[0], call.args[1]
    axes = list(trace.twin(x).axes)
    if call.name == "index_select":
        dim, at = call.args[1] % x.dim(), call.args[2]
    else:
        given = [number for number, each in enumerate(indices) if each is not None]
        if len(given) != 1:
            return None
        dim, at = given[0], indices[given[0]]
    chosen = trace.constant(at).axes
    if not all(map(is_fixed, chosen)) or at.dtype == torch.bool:
        return None
    freeze(axes[dim], "its units are picked by position")
    return (*axes[:dim], *chosen, *axes[dim + 1 :])


def _pixel_shuffle(trace: Trace, call: Call) -> Axes | None:
    """Channels that become positions in space, or the reverse: ``[…, C·r², H, W] ↔ […, C, H·r, W·r]``."""
    axes = list(trace.twin(call.args[0]).axes)
    times = call.args[1] ** 2
    for axis in axes[-2:]:
        freeze(axis, f"{call.name} runs over its units")
    if call.name == "pixel_shuffle":
        axes[-3], inner = split(axes[-3], (size(axes[-3]) // times, times))
        freeze(inner, "pixel_shuffle spreads it over space")
    else:
        axes[-3] = product(axes[-3], Fixed(times))
    return (*axes[:-2], Fixed(call.out.size(-2)), Fixed(call.out.size(-1)))


def _channel_shuffle(trace: Trace, call: Call) -> Axes | None:
    axes = list(trace.twin(call.args[0]).axes)
    outer, inner = split(axes[1], (call.args[1], size(axes[1]) // call.args[1]))
    axes[1] = product(inner, outer)
    return tuple(axes)


def _im2col(trace: Trace, call: Call) -> Axes | None:
    axes = trace.twin(call.args[0]).axes
    if len(axes) != 4:
        return None
    for axis in axes[2:]:
        freeze(axis, "im2col runs over its units")
    return axes[0], product(axes[1], Fixed(math.prod(call.args[1]))), Fixed(call.out.size(2))


def _unfold(trace: Trace, call: Call) -> Axes | None:
    axes = list(trace.twin(call.args[0]).axes)
    dim = call.args[1] % len(axes)
    freeze(axes[dim], "unfold runs over its units")
    axes[dim] = Fixed(call.out.size(dim))
    return (*axes, Fixed(call.args[2]))


# -- reductions, windows -----------------------------------------------------------------------------------------------


def _reduction(trace: Trace, call: Call) -> Axes | None:
    x = call.args[0]
    axes = trace.twin(x).axes
    position = 2 if call.name in ("linalg_vector_norm", "norm") else 1
    dims = call.get(position, "dim")
    listed = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (list, tuple)) else []
    gone = {dim % max(x.dim(), 1) for dim in listed} or set(range(x.dim()))
    for dim in gone:
        if call.name in ("argmax", "argmin"):
            freeze(axes[dim], f"{call.name} numbers its units")
        blur(axes[dim], f"{call.name} over its units")
    if call.out.dim() == x.dim():
        return tuple(ONE if dim in gone else axis for dim, axis in enumerate(axes))
    return tuple(axis for dim, axis in enumerate(axes) if dim not in gone)


def _softmax(trace: Trace, call: Call) -> Axes | None:
    axes = trace.twin(call.args[0]).axes
    if axes:
        blur(axes[call.args[1]], "softmax over its units")
    return axes


def _cumulative(trace: Trace, call: Call) -> Axes | None:
    axes = trace.twin(call.args[0]).axes
    freeze(axes[call.get(1, "dim")], f"{call.name} depends on the order of its units")
    return axes


def _window(trace: Trace, call: Call) -> Axes | None:
    """Pooling and resizing in space: no units may stand where the window moves."""
    x, out = call.args[0], call.out
    axes = trace.twin(x).axes
    if x.dim() != out.dim():
        return None
    moving = next((int(letter) for letter in call.name if letter.isdigit()), x.dim() - 2)  # max_pool2d: two dimensions
    spatial = [dim for dim in range(x.dim()) if x.size(dim) != out.size(dim) or dim >= x.dim() - moving]
    for dim in spatial:
        freeze(axes[dim], f"{call.name} runs over its units")
    _freeze_positions(call)
    return tuple(Fixed(out.size(dim)) if dim in spatial else axis for dim, axis in enumerate(axes))


def _freeze_positions(call: Call) -> None:
    """What tells an operator where to look in its first input."""
    for twin in call.twins[1:]:
        for axis in twin.axes:
            freeze(axis, f"{call.name} takes positions from it")


def _roi_align(trace: Trace, call: Call) -> Axes | None:
    axes = trace.twin(call.args[0]).axes
    _freeze_positions(call)
    return Fixed(call.out.size(0)), axes[1], Fixed(call.out.size(2)), Fixed(call.out.size(3))


def _glu(trace: Trace, call: Call) -> Axes | None:
    axes = list(trace.twin(call.args[0]).axes)
    dim = call.get(1, "dim", -1)
    outer, axes[dim] = split(axes[dim], (2, size(axes[dim]) // 2))
    freeze(outer, "a gated unit tells its halves apart")
    return tuple(axes)


def _lstm_cell(trace: Trace, call: Call) -> Axes | list[Axes] | None:
    """The fused cells of a GPU: gates ``[batch, 4 or 3 × hidden]`` to states ``[batch, hidden]``."""
    hidden = call.out.size(1)
    state = trace.twin(call.args[2])
    for gates in call.args[:2]:
        outer, inner = split(trace.twin(gates).axes[1], (gates.size(1) // hidden, hidden))
        freeze(outer, "a recurrent cell tells its gates apart")
        unite(inner, state.axes[1])
    for bias in call.args[3:5]:
        if isinstance(bias, Tensor):
            unite(trace.twin(call.args[0]).axes[1], trace.twin(bias).axes[0])
            trace.attach(trace.twin(bias))
    axes = tuple(map(canonical, state.axes))
    return [axes if tensor.size(1) == hidden else _constant(tensor) for tensor in call.outputs]


# -- bookkeeping -------------------------------------------------------------------------------------------------------


def _history(trace: Trace, call: Call) -> tuple[str | None, tuple[str, ...]]:
    """The operators passed since the units were made; operators that join two activations end the account."""
    known = [twin for twin in call.twins if twin.live and twin.source is None]
    if len(known) != 1:
        return None, ("?",)
    if call.name in ("clone", "detach", "alias", "_to_copy"):
        return known[0].maker, known[0].chain
    name = call.name
    numbers = [a for a in call.args[1:] if isinstance(a, (int, float)) and not isinstance(a, bool)]
    if name in ("leaky_relu", "elu", "hardtanh"):
        name += "(" + ", ".join(f"{n:g}" for n in numbers or [0.01]) + ")"
    return known[0].maker, (*known[0].chain, name)


_BLANK = {"zeros", "ones", "full", "empty", "scalar_tensor", "empty_strided"}


_KINDS: dict[Rule, str] = {
    products.convolution: "convolution",
    products.linear: "linear",
    products.matmul: "mm bmm mv dot",
    products.addmm: "addmm baddbmm addmv",
    products.embedding: "embedding",
    products.attention: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention"
    " _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    _pointwise: "prelu _prelu_kernel copy masked_fill where fill zero hardswish log_sigmoid_forward rsub"
    " rrelu_with_noise",
    _batch_norm: "native_batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training"
    " _native_batch_norm_legit _batch_norm_with_update miopen_batch_norm",
    _layer_norm: "native_layer_norm _fused_rms_norm",
    _group_norm: "native_group_norm",
    _reshape: "view _unsafe_view _reshape_alias _reshape_copy",
    _permute: "permute transpose t",
    _same: "clone detach alias _to_copy native_dropout contiguous lift_fresh bernoulli uniform normal exponential",
    _restride: "as_strided",
    _complex: "view_as_complex view_as_real",
    _like: "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_full new_empty",
    _expand: "expand",
    _repeat: "repeat",
    _narrow: "slice",
    _select: "select",
    _unbind: "unbind",
    _split: "split split_with_sizes unsafe_split unsafe_split_with_sizes",
    _squeeze: "squeeze",
    _unsqueeze: "unsqueeze",
    _cat: "cat",
    _stack: "stack",
    _flip: "flip roll",
    _pad: "constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"
    " reflection_pad3d replication_pad3d",
    _index: "index index_select",
    _pixel_shuffle: "pixel_shuffle pixel_unshuffle",
    _channel_shuffle: "channel_shuffle native_channel_shuffle",
    _im2col: "im2col",
    _unfold: "unfold",
    _reduction: "mean sum amax amin var std var_mean std_mean max min prod logsumexp linalg_vector_norm norm all any"
    " argmax argmin",
    _softmax: "_softmax _log_softmax _safe_softmax",
    _cumulative: "cumsum cumprod logcumsumexp",
    _window: "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d max_pool1d avg_pool1d"
    " mkldnn_max_pool2d avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d upsample_nearest1d"
    " upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d"
    " upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d grid_sampler_2d"
    " adaptive_max_pool3d max_unpool2d",
    _roi_align: "roi_align",
    _glu: "glu",
    _lstm_cell: "_thnn_fused_lstm_cell _thnn_fused_gru_cell",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _KINDS.items() for name in names.split()}
#: Rules under which a parameter stays that parameter.
_KEEPING = {_reshape, _permute, _same, _expand, _narrow, _select, _unbind, _split, _squeeze, _unsqueeze}
