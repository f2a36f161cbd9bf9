"""What each aten operator does to axes.

A rule is a function ``(facts, call) -> axes of each output``; where it cannot follow, ``None`` or the reason. There
are few kinds: products read units and make new ones (``products``); element-wise work unites its operands; views carry
their axes along; reductions end them; norms pass them and attach their parameters. ``RULES`` is the whole table;
whatever is not in it freezes what it is given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from network_surgery.ops.anatomy import elementwise, indexing, products, reductions, views
from network_surgery.ops.anatomy.axes import size
from network_surgery.ops.anatomy.calls import Axes, Call, Twin, constant, tensors_in

if TYPE_CHECKING:
    from network_surgery.ops.anatomy.facts import Facts

Rule = Callable[["Facts", Call], "Axes | list[Axes] | str | None"]


def apply_rule(facts: Facts, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Gives the outputs of one operator call their twins."""
    inputs = tensors_in((*args, *kwargs.values()))
    twins = [facts.twin(tensor) for tensor in inputs]
    for twin in twins:
        twin.met()
    name, rule, sized = _look_up(func)
    call = Call(name, args, kwargs, inputs, tensors_in((out,)), twins)
    if name == "mul" and facts.masks(inputs):
        return facts.mark(call.out, twins[0])
    _carry(facts, func, call, rule, sized)
    _account(facts, call, rule)
    if func._schema.is_mutable and inputs and inputs[0]._base is not None:
        _write_into(facts, inputs[0]._base, call)


def _carry(facts: Facts, func: Any, call: Call, rule: Rule | None, sized: bool) -> None:
    """The axes of the outputs."""
    name, inputs, twins = call.name, call.inputs, call.twins
    plain = all(twin.plain for twin in twins)
    if name in _BLANK and (plain if name.startswith("new_") else not inputs):
        return facts.mark(call.out, Twin(views.blank(facts, call.out)))
    live = any(twin.live for twin in twins)
    if not call.outputs and inputs:  # a value leaves the tensors, and anything may depend on it
        facts.refuse(inputs, f"{name} hands its values to Python")
        facts.steered |= live
    facts.sized |= live and sized
    if plain and rule is not views.expand:  # which makes a tensor as long as it is asked to
        for tensor in call.outputs if live else ():
            facts.mark(tensor, Twin(constant(tensor), live=True))
    if not call.outputs or (plain and rule is not views.expand):
        return
    try:
        found = rule(facts, call) if rule else None
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError):  # an unusual form of the operator
        found = None
    if found is None or isinstance(found, str):
        facts.refuse(inputs, found or _why_unknown(name))
        found = [constant(tensor) for tensor in call.outputs]
    each = found if isinstance(found, list) else [found] * len(call.outputs)
    if rule in views.KEEPING and twins[0].source is not None:  # a view or copy of a parameter is that parameter still
        result = partial(replace, twins[0], origins=views.origins(call, twins[0], rule))
    else:
        maker, chain = _history(call) if call.chain is None else (call.maker, call.chain)
        result = partial(Twin, live=live, maker=maker, chain=chain, blurs=call.blurs, making=call.making)
    for tensor, axes in zip(call.outputs, each, strict=False):
        fits = tuple(map(size, axes)) == tuple(tensor.shape)
        if not fits and tensor is call.out:  # the others are statistics of norms, places of maxima and the like
            facts.refuse(inputs, f"{name} is used in a way that is not known to keep its units apart")
        facts.mark(tensor, result(axes=axes if fits else constant(tensor)))


def _why_unknown(name: str) -> str:
    if "quantize" in name:
        return "it is trained for quantization: operate on the network first, then prepare it for quantization"
    return f"the operator {name} is not known to keep its units apart"


def _write_into(facts: Facts, base: Tensor, call: Call) -> None:
    """A view of ``base`` was written to: what was known of how its units came about is no longer true."""
    twin = facts.twin(base)
    if twin.source is not None:
        return
    if twin.making is not None and twin.making is not call.twins[0].making:
        twin.making.meet(None)
    live = any(each.live for each in (twin, *call.twins))
    facts.mark(base, replace(twin, live=live, maker=None, chain=("?",), making=None))


def _account(facts: Facts, call: Call, rule: Rule | None) -> None:
    """What the call does to products that nothing was done to yet, and how it uses parameters (``sinks``)."""
    for twin in call.twins:
        if twin.making is not None and twin.making not in call.held:
            passed = [facts.twin(tensor) for tensor in call.outputs] if call.name in _PASSING else []
            for after in passed:
                after.making = twin.making
            if not passed or not all(facts.carries(tensor) for tensor in call.outputs):
                twin.making.meet(None)
        if twin.source is not None and not (rule in views.KEEPING and twin is call.twins[0]):
            facts.account.use(twin.source, call.partners.get(twin.source))


@functools.cache
def _look_up(func: Any) -> tuple[str, Rule | None, bool]:
    """An operator's name (see ``Call``), its rule, and whether its output may be as large as values say."""
    full: str = func.overloadpacket.__name__
    name = full.rstrip("_") or full
    rule = None
    if func.namespace in ("aten", "torchvision"):
        rule = RULES.get(full) or RULES.get(name)
        if rule is None and (_element_wise(func.overloadpacket) or _element_wise(getattr(torch.ops.aten, name, None))):
            rule = elementwise.pointwise
    return name, rule, func.namespace != "aten" or torch.Tag.dynamic_output_shape in func.tags


def _element_wise(packet: Any) -> bool:
    """Whether torch tags any form of the operator so: forms in place or for numbers often lack the tag."""
    forms = packet.overloads() if packet is not None else ()
    return any(torch.Tag.pointwise in getattr(packet, form).tags for form in forms)


def _history(call: Call) -> tuple[str | None, tuple[str, ...]]:
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


#: Operators that hand on every value of a tensor, perhaps in another shape.
_PASSING = {
    "view", "_unsafe_view", "_reshape_alias", "_reshape_copy", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "alias", "clone", "detach", "contiguous", "_to_copy", "lift_fresh",
}  # fmt: skip
_BLANK = {"zeros", "ones", "full", "empty", "scalar_tensor", "empty_strided"}
_BLANK |= {"new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided", "randn", "rand", "normal"}


_KINDS: dict[Rule, str] = {
    products.convolution: "convolution",
    products.linear: "linear",
    products.matmul: "mm bmm mv dot",
    products.addmm: "addmm baddbmm addmv _sparse_addmm",
    products.embedding: "embedding",
    products.grouped_product: "_grouped_mm",
    products.embedding_bag: "_embedding_bag _embedding_bag_forward_only",
    products.attention: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention"
    " _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
    elementwise.pointwise: "prelu _prelu_kernel copy masked_fill where fill zero hardswish log_sigmoid_forward rsub"
    " rrelu_with_noise bernoulli uniform normal exponential log_normal cauchy geometric"
    " leaky_relu _conj_physical",  # torch tags the last two since 2.12
    elementwise.batch_norm: "native_batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training"
    " _native_batch_norm_legit _batch_norm_with_update miopen_batch_norm",
    elementwise.layer_norm: "native_layer_norm _fused_rms_norm",
    elementwise.group_norm: "native_group_norm",
    views.reshape: "view _unsafe_view _reshape_alias _reshape_copy",
    views.permute: "permute transpose t",
    views.uncut: "alias",
    views.same: "clone detach _to_copy native_dropout contiguous lift_fresh",
    views.restride: "as_strided",
    views.as_complex: "view_as_complex view_as_real",
    views.like: "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_full new_empty",
    views.expand: "expand",
    views.repeat: "repeat",
    views.narrow: "slice",
    views.select: "select",
    views.slice_scatter: "slice_scatter select_scatter",
    views.unbind: "unbind",
    views.split_up: "split split_with_sizes unsafe_split unsafe_split_with_sizes",
    views.squeeze: "squeeze",
    views.unsqueeze: "unsqueeze",
    views.cat: "cat",
    views.stack: "stack",
    views.flip: "flip roll",
    views.pad: "constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d"
    " reflection_pad3d replication_pad3d",
    views.pixel_shuffle: "pixel_shuffle pixel_unshuffle",
    views.channel_shuffle: "channel_shuffle native_channel_shuffle",
    views.im2col: "im2col",
    indexing.fold: "col2im",
    indexing.index: "index index_select",
    indexing.index_put: "index_put _unsafe_index_put",
    indexing.index_onto: "index_add index_copy index_reduce index_fill",
    indexing.scatter: "scatter scatter_add scatter_reduce gather",
    indexing.masked_scatter: "masked_scatter",
    indexing.segments: "segment_reduce",
    indexing.order: "sort topk argsort kthvalue median nanmedian mode",
    indexing.pack: "_pack_padded_sequence",
    indexing.diagonal: "diagonal",
    views.unfold: "unfold",
    reductions.reduction: "mean sum amax amin var std var_mean std_mean max min prod logsumexp linalg_vector_norm norm"
    " all any argmax argmin",
    reductions.validation: "_is_all_true _is_any_true",
    reductions.softmax: "_softmax _log_softmax _safe_softmax",
    reductions.cumulative: "cumsum cumprod logcumsumexp cummax cummin",
    reductions.window: "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d max_pool1d"
    " avg_pool1d mkldnn_max_pool2d avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d upsample_nearest1d"
    " upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d"
    " upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d grid_sampler_2d"
    " adaptive_max_pool3d max_unpool2d",
    reductions.roi_align: "roi_align",
    elementwise.glu: "glu",
    elementwise.lstm_cell: "_thnn_fused_lstm_cell _thnn_fused_gru_cell",
}
RULES: dict[str, Rule] = {name: rule for rule, names in _KINDS.items() for name in names.split()}
