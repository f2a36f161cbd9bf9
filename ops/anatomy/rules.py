"""What each aten operator does to unit labels.

A rule is a function ``(trace, func, args, kwargs, out) -> label tensor`` for the (first) output, or ``None`` when the
output carries no units. There are few kinds: products read units and make new ones; element-wise work unites its
operands; views are the same call on the labels; reductions and windows need labels that are constant where they
reduce; norms pass labels and attach their parameters. ``RULES`` is the whole table; whatever is not in it freezes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ops.anatomy.labels import FAN_IN, FAN_OUT, VECTOR, compact, none_like, varying

if TYPE_CHECKING:
    from ops.anatomy.trace import Trace, View

Rule = Callable[["Trace", Any, tuple[Any, ...], dict[str, Any], Any], Tensor | None]


def apply_rule(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Labels the outputs of one operator call."""
    inputs = _tensors(args) + _tensors(kwargs.values())
    outputs = _tensors([out])
    if not inputs or not outputs:
        if inputs:  # a value leaves the tensors, and anything may depend on it
            _freeze(trace, inputs, f"{_name(func)} hands its values to Python")
        return
    if all(trace.view(t) is not None for t in inputs) and trace.view(outputs[0]) is not None:
        return  # a view of a parameter is known by its storage
    known = [t for t in inputs if id(t) in trace._twins]
    if not known and all(trace.view(t) is None for t in inputs):
        return  # constants among themselves
    rule = RULES.get(func.overloadpacket.__name__)
    if rule is None and torch.Tag.pointwise in func.tags:
        rule = _pointwise
    ids = rule(trace, func, args, kwargs, out) if rule else _unknown(trace, func, inputs)
    made = trace.history(outputs[0]) if rule in (_convolution, _matmul, _addmm, _linear, _embedding) else None
    history = made or _extend(trace, func, args, known)
    several = isinstance(out, (list, tuple)) and rule in (_split, _unbind)
    for position, tensor in enumerate(outputs):
        mine = ids[position] if several and isinstance(ids, (list, tuple)) else ids
        if not isinstance(mine, Tensor) or mine.shape != tensor.shape:
            mine = none_like(tensor)
        trace.mark(tensor, compact(mine), history)


# -- products: read units, make units ----------------------------------------------------------------------------------


def _convolution(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> Tensor | None:
    x, weight, bias, _, _, _, transposed, _, groups = args[:9]
    view = trace.view(weight)
    if view is None or view.dims is None or x.dim() != weight.dim():
        return _unknown(trace, func, [x, weight])
    ids = trace.ids(x)
    if set(varying(ids)) - {1}:
        return _unknown(trace, func, [x], "a convolution reads units that differ along space")
    channels = ids[(0, slice(None)) + (0,) * (x.dim() - 2)]
    trace.calls[view.name] = trace.calls.get(view.name, 0.0) + (
        (x if transposed else out).numel() / ((x if transposed else out).size(1) * trace.batch)
    )
    rows, columns = (1, 0) if transposed else (0, 1)
    if groups == 1:
        _read(trace, view, columns, channels, across=rows, history=trace.history(x))
        made = _make(trace, view, rows, across=columns)
    elif groups == x.size(1) == out.size(1):  # depth-wise: one kernel for each unit
        made = None
        if (nodes := trace.nodes(view, 0)) is not None:
            trace.labels.unite(channels, nodes)
            trace.note(view, 0, VECTOR)
        made = channels
    else:
        trace.freeze_parameter(view.name, f"{view.name} belongs to a grouped convolution")
        return _unknown(trace, func, [x], f"the grouped convolution {view.name} reads it")
    if made is None:
        return None
    shaped = made.view(1, -1, *(1,) * (out.dim() - 2))
    _bias(trace, bias, made)
    trace.mark(out, shaped.expand(out.shape), (view.name, () if groups == 1 else ("depthwise",)))
    _sink(trace, view.name, bias)
    return shaped.expand(out.shape)


def _linear(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> Tensor | None:
    return _product(trace, func, args[0], args[1], 0, args[2] if len(args) > 2 else None, out)


def _matmul(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> Tensor | None:
    return _product(trace, func, args[0], args[1], 1, None, out)


def _addmm(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> Tensor | None:
    if trace.view(args[0]) is None or kwargs:
        return _unknown(trace, func, list(args[:3]))
    return _product(trace, func, args[1], args[2], 1, args[0], out)


def _product(
    trace: Trace, func: Any, x: Tensor, weight: Tensor, rows: int, bias: Tensor | None, out: Tensor
) -> Tensor | None:
    """``x [..., K]`` times a weight that makes its dimension ``rows`` and reads the other one."""
    view = trace.view(weight)
    if view is None or view.dims is None or weight.dim() != 2 or trace.view(x) is not None:
        return _unknown(trace, func, [x, weight] + ([bias] if bias is not None else []))
    ids = trace.ids(x)
    last = x.dim() - 1
    if set(varying(ids)) - {last}:
        return _unknown(trace, func, [x], "a product reads units that differ along another axis")
    trace.calls[view.name] = trace.calls.get(view.name, 0.0) + x.numel() / (x.size(-1) * trace.batch)
    made_on, read_on = (None if dim is None else dim[0] for dim in (view.dims[rows], view.dims[1 - rows]))
    _read(trace, view, 1 - rows, ids[(0,) * last], across=made_on, history=trace.history(x))
    made = _make(trace, view, rows, across=read_on)
    if made is None:
        return None
    _bias(trace, bias, made)
    trace.mark(out, made.expand(out.shape), (view.name, ()))
    _sink(trace, view.name, bias)
    return made.expand(out.shape)


def _embedding(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> Tensor | None:
    view = trace.view(args[0])
    if view is None or view.dims is None:
        return _unknown(trace, func, [args[0]])
    made = _make(trace, view, 1, across=0)
    if made is None:
        return None
    trace.mark(out, made.expand(out.shape), (view.name, ()))
    return made.expand(out.shape)


def _read(trace: Trace, view: View, dim: int, ids: Tensor, across: int | None, history: Any) -> None:
    nodes = trace.nodes(view, dim)
    if nodes is None:  # one column
        trace.labels.freeze(ids, f"{view.name} reads it as a single unit")
        return
    trace.labels.unite(ids, nodes)
    trace.note(view, dim, FAN_OUT).across = across
    maker, chain = history
    trace.chains[view.name] = chain if maker is not None else ("?",)


def _make(trace: Trace, view: View, dim: int, across: int | None) -> Tensor | None:
    nodes = trace.nodes(view, dim)
    if nodes is not None:
        trace.note(view, dim, FAN_IN).across = across
    return nodes


def _bias(trace: Trace, bias: Tensor | None, made: Tensor) -> None:
    if bias is None:
        return
    view = trace.view(bias)
    nodes = trace.nodes(view, 0) if view is not None else None
    if view is None or nodes is None or len(nodes) != len(made):
        _freeze(trace, [bias], "a bias that is computed reads it")
        trace.labels.freeze(made, "its bias is computed, not a parameter")
        return
    trace.labels.unite(made, nodes)
    trace.note(view, 0, VECTOR)


def _sink(trace: Trace, maker: str | None, bias: Tensor | None, sign: float = 1.0) -> None:
    """The first vector that is added to what ``maker`` makes: where a constant can go."""
    view = None if bias is None else trace.view(bias)
    if maker is not None and view is not None and trace.shape(view.name) == (bias.numel(),):  # type: ignore[union-attr]
        trace.sinks.setdefault(maker, (view.name, sign))


# -- element-wise work: what meets is one unit -------------------------------------------------------------------------


def _pointwise(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> Tensor | None:
    operands = _tensors(args) + _tensors(kwargs.values())
    shape = _tensors([out])[0].shape
    activations = [t for t in operands if trace.view(t) is None]
    twins = [compact(_aligned(trace.ids(t), len(shape))) for t in activations]
    live = [i for i, ids in enumerate(twins) if varying(ids) and not trace.labels.all_frozen(ids)]
    if not live:
        for tensor in operands:
            if (view := trace.view(tensor)) is not None:
                trace.freeze_parameter(view.name, f"{_name(func)} uses it where there are no units")
        return None
    first = max(live, key=lambda i: len(varying(twins[i])))
    main = twins[first]
    for i, ids in enumerate(twins):
        if i != first:
            _meet(trace, func, main, ids)
    maker, chain = trace.history(activations[first])
    for tensor in operands:
        if (view := trace.view(tensor)) is not None:
            attached = _attach(trace, main, tensor, view, fill=float(_name(func) in ("mul", "div")))
            if attached and _name(func) == "add" and not kwargs and chain == ():
                _sink(trace, maker, tensor)
    return main.expand(shape)


def _meet(trace: Trace, func: Any, main: Tensor, ids: Tensor) -> None:
    covers = all(ids.size(dim) > 1 for dim in varying(main))
    covered = all(main.size(dim) > 1 for dim in varying(ids))
    if covers and covered:
        trace.labels.unite(main, ids)
    elif not covers:  # broadcast over the units: a gate or a scale that is one for all
        trace.labels.freeze(ids, f"{_name(func)} broadcasts it over other units")
        if not covered:
            trace.labels.freeze(main, f"{_name(func)} crosses it with other units")
    else:
        trace.labels.freeze(main, f"{_name(func)} broadcasts it over other units")
        trace.labels.freeze(ids, f"{_name(func)} crosses it with other units")


def _attach(trace: Trace, main: Tensor, tensor: Tensor, view: View, fill: float) -> bool:
    """A parameter that acts on each unit by itself becomes one of its vectors."""
    offset = main.dim() - tensor.dim()
    shared = [d for d in range(tensor.dim()) if tensor.size(d) > 1 and d + offset in varying(main)]
    if view.dims is None or (len(varying(main)) > 1 and shared):
        trace.labels.freeze(main, f"{view.name} acts on it along several axes")
        trace.freeze_parameter(view.name, "it acts on units along several axes")
        return False
    for dim in shared:
        nodes = trace.nodes(view, dim)
        if nodes is None:
            trace.labels.freeze(main, f"{view.name} is spread over it")
            continue
        trace.labels.unite(_along(main, dim + offset), nodes)
        trace.note(view, dim, VECTOR, fill)
    return bool(shared)


def _aligned(ids: Tensor, dims: int) -> Tensor:
    return ids.view((1,) * (dims - ids.dim()) + tuple(ids.shape)) if ids.dim() < dims else ids


def _along(ids: Tensor, dim: int) -> Tensor:
    """The labels along one dimension, taken where all others are 0."""
    return ids[tuple(slice(None) if d == dim else 0 for d in range(ids.dim()))]


# -- norms ------------------------------------------------------------------------------------------------------------


def _batch_norm(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> Tensor | None:
    x, weight, bias, mean, variance = args[:5]
    ids = trace.ids(x)
    if set(varying(ids)) - {1} or isinstance(mean, bool):
        return _unknown(trace, func, _tensors(args))
    channels = _along(ids, 1)
    for tensor, fill in ((weight, 1.0), (bias, 0.0), (mean, 0.0), (variance, 1.0)):
        _vector(trace, tensor, channels, fill)
    maker, chain = trace.history(x)
    if chain == ():
        _sink(trace, maker, mean, sign=-1.0)
    return ids


def _layer_norm(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> Tensor | None:
    x, normalized, weight, bias = args[:4]
    ids = trace.ids(x)
    dims = range(x.dim() - len(normalized), x.dim())
    across = [dim for dim in varying(ids) if dim in dims]
    if across and len(normalized) > 1:
        return _unknown(trace, func, [x], "a layer norm couples it with other axes")
    if across:
        trace.labels.blur(ids, "LayerNorm over its units")
        for tensor, fill in ((weight, 1.0), (bias, 0.0)):
            _vector(trace, tensor, _along(ids, across[0]), fill)
    return ids


def _group_norm(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> Tensor | None:
    x, weight, bias = args[:3]
    ids = trace.ids(x)
    if set(varying(ids)) - {1}:
        return _unknown(trace, func, [x])
    trace.labels.blur(ids, "GroupNorm over its units")
    for tensor, fill in ((weight, 1.0), (bias, 0.0)):
        _vector(trace, tensor, _along(ids, 1), fill)
    return ids


def _vector(trace: Trace, tensor: Tensor | None, units: Tensor, fill: float) -> None:
    if tensor is None:
        return
    view = trace.view(tensor)
    nodes = trace.nodes(view, 0) if view is not None else None
    if view is None or nodes is None or len(nodes) != len(units):
        trace.labels.freeze(units, "a norm with computed or single parameters acts on it")
        return
    trace.labels.unite(units, nodes)
    trace.note(view, 0, VECTOR, fill)


# -- views, joins, reductions, windows ---------------------------------------------------------------------------------


def _view(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> Tensor | None:
    """The same call on the labels."""
    if trace.view(args[0]) is not None:
        return _unknown(trace, func, [args[0]])
    ids = trace.ids(args[0])
    if func.overloadpacket.__name__ in ("view", "_unsafe_view", "reshape", "_reshape_alias"):
        return ids.reshape(out.shape)
    return func(ids, *args[1:], **kwargs)


def _same(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> Tensor | None:
    if trace.view(args[0]) is not None:
        return _unknown(trace, func, [args[0]])
    return trace.ids(args[0])


def _cat(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> Tensor | None:
    tensors, dim = args[0], (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    if any(trace.view(t) is not None for t in tensors):
        return _unknown(trace, func, list(tensors))
    tensors = [t for t in tensors if t.dim() == out.dim()]
    twins = [compact(trace.ids(t)) for t in tensors]
    for other in range(out.dim()):
        if other != dim and all(other not in varying(ids) for ids in twins):
            twins = [ids.narrow(other, 0, 1) for ids in twins]
    if not all(t.dim() == out.dim() for t in twins):
        return _unknown(trace, func, list(tensors))
    return torch.cat(twins, dim).expand(out.shape)


def _split(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> Any:
    """Cuts along an axis: fine in space, a hard-coded choice of units along the units."""
    x = args[0]
    dim = _slice_dim(func, args, kwargs) % x.dim()
    whole = isinstance(out, Tensor) and out.shape == x.shape
    if trace.view(x) is not None or (dim in varying(trace.ids(x)) and not whole):
        return _unknown(trace, func, [x], f"{_name(func)} picks some of its units by position")
    return func(trace.ids(x), *args[1:], **kwargs)


_unbind = _split


def _slice_dim(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    position = {"slice": 1, "select": 1, "unbind": 1, "split": 2, "split_with_sizes": 2}[func.overloadpacket.__name__]
    return args[position] if len(args) > position else kwargs.get("dim", 0)


def _reduction(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Tensor | None:
    x, dims = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
    if trace.view(x) is not None:
        return _unknown(trace, func, [x])
    first = _tensors([out])[0]
    listed = [dims] if isinstance(dims, int) else list(dims or range(x.dim()))
    listed = [dim % max(x.dim(), 1) for dim in listed]
    ids = trace.ids(x)
    if set(listed) & set(varying(ids)):
        return _unknown(trace, func, [x], f"{_name(func)} reduces over its units")
    for dim in listed:
        ids = ids.narrow(dim, 0, 1)
    return ids.reshape(first.shape) if ids.numel() == first.numel() else None


def _softmax(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> Tensor | None:
    ids = trace.ids(args[0])
    if args[1] % max(args[0].dim(), 1) in varying(ids):
        return _unknown(trace, func, [args[0]], "a softmax runs over its units")
    return ids


def _window(trace: Trace, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> Tensor | None:
    """Pooling, resizing and padding in space: the labels must not vary where the window moves."""
    x, first = args[0], _tensors([out])[0]
    ids = trace.ids(x)
    spatial = [d for d in range(x.dim()) if x.size(d) != first.size(d) or d >= min(2, x.dim() - 1)]
    if trace.view(x) is not None or x.dim() != first.dim() or set(spatial) & set(varying(ids)):
        return _unknown(trace, func, [x], f"{_name(func)} runs over its units")
    for dim in spatial:
        ids = ids.narrow(dim, 0, 1)
    return ids.expand(first.shape)


# -- the unknown -------------------------------------------------------------------------------------------------------


def _unknown(trace: Trace, func: Any, inputs: list[Tensor], reason: str | None = None) -> Tensor | None:
    _freeze(trace, inputs, reason or f"the operator {_name(func)} is not known to keep its units apart")
    return None


def _freeze(trace: Trace, tensors: list[Tensor], reason: str) -> None:
    for tensor in tensors:
        view = trace.view(tensor)
        if view is not None:
            trace.freeze_parameter(view.name, reason)
        else:
            trace.labels.freeze(trace.ids(tensor), reason)


def _extend(trace: Trace, func: Any, args: tuple[Any, ...], known: list[Tensor]) -> tuple[str | None, tuple[str, ...]]:
    """The operators passed since the units were made; operators that join two activations end the account."""
    if len(known) != 1:
        return (None, ("?",))
    maker, chain = trace.history(known[0])
    name = _name(func)
    if name in ("clone", "detach", "alias", "_to_copy"):
        return (maker, chain)
    numbers = [a for a in args[1:] if isinstance(a, (int, float)) and not isinstance(a, bool)]
    if name in ("leaky_relu", "elu", "hardtanh"):
        name += "(" + ", ".join(f"{n:g}" for n in numbers or [0.01]) + ")"
    return (maker, (*chain, name))


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(_tensors(value))
    return found


def _name(func: Any) -> str:
    return func.overloadpacket.__name__.rstrip("_") or func.overloadpacket.__name__


_KINDS: dict[Rule, str] = {
    _convolution: "convolution",
    _linear: "linear",
    _matmul: "mm",
    _addmm: "addmm",
    _embedding: "embedding",
    _pointwise: "prelu _prelu_kernel",
    _batch_norm: "native_batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training _native_batch_norm_legit",
    _layer_norm: "native_layer_norm",
    _group_norm: "native_group_norm",
    _view: "view _unsafe_view _reshape_alias permute transpose t unsqueeze squeeze expand",
    _same: "clone detach alias _to_copy native_dropout contiguous lift_fresh",
    _cat: "cat",
    _split: "slice select split split_with_sizes unbind",
    _reduction: "mean sum amax amin var std",
    _softmax: "_softmax _log_softmax",
    _window: "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d max_pool1d avg_pool1d"
    " mean_pool constant_pad_nd reflection_pad2d replication_pad2d upsample_nearest2d upsample_bilinear2d"
    " mkldnn_max_pool2d avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _KINDS.items() for name in names.split()}
