"""Collapse: a layer whose units nothing stands between goes, and the modules on both its sides become one.

Source: Graham 2019, chapter 5 (*collapse* of stretched layers). Dense: ``W = W₂ W₁``, ``b = W₂ b₁ + b₂``; convolutions:
the kernel of both is as large as k₁ + (k₂ − 1) · stride₁, and it is dilated no more (``ops.maths.factors.compose``).
The inverse of ``stretch``: at full rank the network that comes back is the same but for rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.errors import SurgeryError, Unsuitable
from network_surgery.ops.maths.double import double
from network_surgery.ops.maths.factors import compose
from network_surgery.ops.network.modules import Change, spec_of
from network_surgery.ops.operation import Operation
from network_surgery.ops.operations.stretch import stretchable, with_size
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.surgery.verification import TOLERANCE, difference

#: What reshapes a batch of sequences for a dense layer, which works on each vector alone.
VIEWS = ("view", "_unsafe_view")


@dataclass(frozen=True)
class Collapse(Operation):
    """Joins the module that makes a layer's units with the one that reads them; an identity is left in its place.

    It is exact, and refused where it would not be: something stands between the two (an activation, dropout), several
    modules make or read the units, a convolution pads between them, or the network's output on the example input would
    be another one. It is also refused where only one of the two is frozen. The network computes what it did, often with
    more parameters: that is the point after training, as one layer is faster than two. Optimizer state begins anew.
    """

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        anatomy = layer.anatomy
        if len(layer.makers) != 1 or len(layer.readers) != 1:
            raise self._refusal(layer, "several modules make its units or read them")
        maker, reader = layer.makers[0], layer.readers[0]
        try:
            first, second = (stretchable(anatomy, place.tensor) for place in (maker, reader))
        except SurgeryError as error:
            raise self._refusal(layer, str(error)) from error
        one, two = anatomy.modules[first], anatomy.modules[second]
        vectors = {place.tensor for place in layer.vectors} - {f"{first}.bias"}
        dense = isinstance(one, nn.Linear) and isinstance(two, nn.Linear)
        met = [name for name in layer.between if not (dense and name in VIEWS)]
        if met or vectors or not layer.exact:
            between = ", ".join(met).replace("?", "something") or ", ".join(sorted(vectors)) or layer.reason
            raise self._refusal(layer, f"{between} stands between the two")
        if one.weight.requires_grad is not two.weight.requires_grad:
            raise self._refusal(layer, "one of the two is frozen and the other is not")
        if isinstance(one, nn.Linear) and isinstance(two, nn.Linear) and one.out_features == two.in_features:
            spec: dict[str, Any] = spec_of(one) | {"out_features": two.out_features}
            spacing: tuple[int, ...] = ()
        elif isinstance(one, _ConvNd) and isinstance(two, _ConvNd) and one.out_channels == two.in_channels:
            spec, spacing = self._convolution(layer, one, two)
        else:
            raise self._refusal(layer, "the two are not of one kind, or something lies between that reshapes")
        spec["bias"] = one.bias is not None or two.bias is not None

        def values(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
            return _join(modules[first], modules[second], spacing)

        changes = {
            first: Change(spec, values, effective=lambda modules: {}, before=spec_of(one)),
            second: Change({"kind": "Identity"}, effective=lambda modules: {}, before=spec_of(two)),
        }
        plan = with_size(Plan(layer, repr(self), (), modules=changes, error=0.0))
        try:
            exact = difference(plan) <= TOLERANCE  # the chain is of the last time that the reader was met
        except SurgeryError as error:
            raise self._refusal(layer, str(error), SurgeryError) from error
        with contextlib.suppress(SurgeryError):  # not every network runs in training mode on inputs alone
            exact = exact and difference(plan, training=True) <= TOLERANCE  # dropout
        if not exact:
            raise self._refusal(layer, "something stands between the two", SurgeryError)
        return plan

    def _convolution(self, layer: HiddenLayer, one: _ConvNd, two: _ConvNd) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The convolution that both are together, and how far apart the second one's kernel reads the input."""
        a, b = spec_of(one), spec_of(two)
        if isinstance(a["padding"], str) or isinstance(b["padding"], str):
            raise self._refusal(layer, "a convolution says its padding in words")
        pads = any(b["padding"])
        passing = all(  # along an axis on which the first one does nothing, the second may pad
            not p or (k, q, s) == (1, 0, 1)
            for p, k, q, s in zip(b["padding"], a["kernel_size"], a["padding"], a["stride"], strict=True)
        )
        alike = a["padding_mode"] == b["padding_mode"] or not any(a["padding"])
        if pads and (not passing or not alike or one.bias is not None):
            raise self._refusal(layer, "the second convolution pads what the first one makes")
        spacing = tuple(s * d for s, d in zip(a["stride"], b["dilation"], strict=True))
        wide = [d * (k - 1) + 1 for k, d in zip(a["kernel_size"], a["dilation"], strict=True)]
        sizes = [w + (k - 1) * gap for w, k, gap in zip(wide, b["kernel_size"], spacing, strict=True)]
        strides = [s * t for s, t in zip(a["stride"], b["stride"], strict=True)]
        padding = [p + q for p, q in zip(a["padding"], b["padding"], strict=True)]
        mode = b["padding_mode"] if pads else a["padding_mode"]
        spec = a | {
            "out_channels": b["out_channels"], "kernel_size": sizes, "stride": strides, "padding": padding,
            "dilation": [1] * len(sizes), "padding_mode": mode,
        }  # fmt: skip
        return spec, spacing

    def _refusal(self, layer: HiddenLayer, reason: str, kind: type[SurgeryError] = Unsuitable) -> SurgeryError:
        return kind(f"{self!r} on {layer.name}: {reason}, so the two modules around it cannot become one")


def _join(one: nn.Module, two: nn.Module, spacing: tuple[int, ...]) -> dict[str, Tensor]:
    """The weight and the bias of two modules, one after the other; ``spacing`` as in ``compose``."""
    first, second = (double(module.get_parameter("weight").detach()) for module in (one, two))
    if spacing:
        dilation = one.dilation
        sizes = [(n - 1) * gap + 1 for n, gap in zip(first.shape[2:], dilation, strict=True)]  # type: ignore
        wide = first.new_zeros(*first.shape[:2], *sizes)
        steps: tuple[Any, ...] = (..., *(slice(None, None, gap) for gap in dilation))  # type: ignore
        wide[steps] = first
        found = {"weight": compose(second, wide, spacing)}
        through = second.flatten(2).sum(dim=2)
    else:
        found, through = {"weight": second @ first}, second
    biases = [each.bias for each in (one, two)]
    if any(each is not None for each in biases):
        bias = torch.zeros(len(second), dtype=second.dtype, device=second.device)
        if biases[0] is not None:
            bias = through @ double(biases[0].detach())  # type: ignore
        found["bias"] = bias if biases[1] is None else bias + double(biases[1].detach())  # type: ignore
    return found
