"""Collapse: a layer goes, and the modules on both its sides become one.

Source: Graham 2019, chapter 5 (*collapse* of stretched layers). Where nothing stands between the two, exactly. Dense:
``W = W₂ W₁``, ``b = W₂ b₁ + b₂``; convolutions: the kernel of both is as large as k₁ + (k₂ − 1) · stride₁, and it is
dilated no more (``ops.maths.factors.compose``). The inverse of ``stretch``: at full rank the network that comes back is
the same but for rounding. Through an activation or a norm, by least squares: the one module that comes nearest to what
the second one makes of what the first is given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from network_surgery.ops.anatomy import Anatomy, HiddenLayer
from network_surgery.ops.anatomy.running import call, plainly
from network_surgery.ops.errors import SurgeryError, Unsuitable, explained
from network_surgery.ops.maths.condensed import Condensed
from network_surgery.ops.maths.double import double, energy
from network_surgery.ops.maths.factors import compose
from network_surgery.ops.network.modules import Change, build, spec_of
from network_surgery.ops.operation import Operation, choice
from network_surgery.ops.operations.stretch import stretchable, with_size
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import HELD_OUT, Signals, patches, thin
from network_surgery.ops.surgery.surgery import trial_surgery
from network_surgery.ops.surgery.verification import TOLERANCE, difference

#: What reshapes a batch of sequences for a dense layer, which works on each vector alone.
VIEWS = ("view", "_unsafe_view")


class Event(NamedTuple):
    """A module that ran: its name, what it was given and what it made, as they were then.

    ``read`` and ``written`` are the tensors themselves, which others may have written to since.
    """

    path: str
    given: Tensor
    made: Tensor
    read: Tensor
    written: Tensor


@dataclass(frozen=True, repr=False)
class Collapse(Operation):
    """Joins the module that makes a layer's units with the one that reads them; an identity is left in its place.

    It is exact, and refused where it would not be: something stands between the two (an activation, dropout), several
    modules make or read the units, a convolution pads between them, or the network's output on the example input would
    be another one. It is also refused where only one of the two is frozen. The network computes what it did, often with
    more parameters: that is the point after training, as one layer is faster than two. Optimizer state begins anew.

    ``fitted``: activations, norms and dropout may stand between, if each is a module of its own: identities take their
    places, and weight and bias of the one module are fitted to the signals by least squares, for the network and for
    its averages. The plan's error is the norm of what it misses of the second module's outputs over that of their
    deviations from their mean; its evidence has the ``held_out_error`` of a fit to four fifths of the samples, tried on
    the others (where these are enough).
    """

    fitted: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        choice(self, "fitted", self.fitted, (True, False))

    @property
    def needs_signals(self) -> bool:  # type: ignore[override]
        return self.fitted

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
        if not self.fitted and (met or vectors or not layer.exact):
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
        if self.fitted:
            return self._fit(layer, signals, (first, second), spec | {"bias": True})
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
        if not self.fitted and pads and (not passing or not alike or one.bias is not None):
            raise self._refusal(layer, "the second convolution pads what the first one makes")
        spacing = tuple(s * d for s, d in zip(a["stride"], b["dilation"], strict=True))
        wide = [d * (k - 1) + 1 for k, d in zip(a["kernel_size"], a["dilation"], strict=True)]
        sizes = [w + (k - 1) * gap for w, k, gap in zip(wide, b["kernel_size"], spacing, strict=True)]
        strides = [s * t for s, t in zip(a["stride"], b["stride"], strict=True)]
        padding = [p + s * q for p, s, q in zip(a["padding"], a["stride"], b["padding"], strict=True)]
        mode = b["padding_mode"] if pads else a["padding_mode"]
        spec = a | {
            "out_channels": b["out_channels"], "kernel_size": sizes, "stride": strides, "padding": padding,
            "dilation": [1] * len(sizes), "padding_mode": mode,
        }  # fmt: skip
        return spec, spacing

    def _fit(self, layer: HiddenLayer, signals: Signals | None, ends: tuple[str, str], spec: dict[str, Any]) -> Plan:
        """The plan with a module that is fitted, in place of both ``ends`` and of what stands between them."""
        if signals is None:
            raise SurgeryError(f"{self!r} on {layer.name} looks at outputs: give it Signals(model, inputs)")
        signals.check_network(layer)
        anatomy, (first, second) = layer.anatomy, ends
        leaves = [path for path, module in anatomy.modules.items() if not [*module.children()]]
        events = self._watch(anatomy, signals.inputs, leaves, ends)
        begin, *between, end = self._on_the_way(layer, events, ends)
        module = build(spec, anatomy.modules[first])
        given, wanted = self._samples(layer, module, begin.given, end.made)
        rows, inputs = torch.cat([given, wanted], dim=1), given.shape[1]
        if len(rows) <= inputs or not rows.isfinite().all():
            raise SurgeryError(
                f"{self!r} on {layer.name}: {inputs + 1} numbers for each output are fitted to {len(rows)} positions "
                "of the signals: give more samples, all finite"
            )
        seen, evidence = Condensed.of(rows), {"samples": float(len(rows))}
        found = seen.combination(tuple(range(inputs)))
        held_out = torch.arange(len(rows), device=rows.device) % HELD_OUT == HELD_OUT - 1
        if int((~held_out).sum()) > inputs:
            apart = Condensed.of(rows[held_out])
            fitted = Condensed.of(rows[~held_out]).combination(found.sources)
            evidence["held_out_error"] = (fitted.missed(apart) / _spread(apart, inputs)) ** 0.5
        weight = found.mixing[inputs:].view(module.get_parameter("weight").shape)
        values = {"weight": weight, "bias": found.constant[inputs:]}
        neither: dict[str, Any] = {"kind": "Identity"}
        changes = {first: Change(spec, lambda modules: values, before=spec_of(anatomy.modules[first]))}
        changes |= {each.path: Change(neither, effective=lambda modules: {}) for each in between}
        changes[second] = Change(neither, effective=lambda modules: {}, before=spec_of(anatomy.modules[second]))
        error = (found.missed(seen) / _spread(seen, inputs)) ** 0.5
        plan = with_size(Plan(layer, repr(self), (), modules=changes, error=error, evidence=evidence))
        with trial_surgery(plan):
            passes = [self._watch(anatomy, signals.inputs, ends, ends)]
            with contextlib.suppress(SurgeryError):  # not every network runs in training mode on inputs alone
                passes.append(self._watch(anatomy, signals.inputs, ends, ends, training=True))
        if not all(torch.equal(each[0].made.flatten(), each[-1].given.flatten()) for each in passes):
            raise self._refusal(layer, "something stands between the two that is no module of its own")
        return plan

    def _samples(self, layer: HiddenLayer, module: nn.Module, given: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
        """What the one module will be given, and what it is to make of it: ``[positions, numbers]``, thinned alike."""
        if isinstance(module, nn.Linear):
            return thin(given.reshape(-1, given.shape[-1])), thin(made.reshape(-1, made.shape[-1]))
        if not isinstance(module, (nn.Conv1d, nn.Conv2d)) or module.padding_mode != "zeros":
            raise self._refusal(layer, "of convolutions only those over one or two axes that pad zeros are fitted")
        with torch.no_grad():
            positions = module(given[:1]).shape[2:]
        if positions != made.shape[2:]:
            raise self._refusal(layer, "one convolution reads other positions than the two, as with pooling between")
        return patches(module, [given.movedim(1, -1)]), thin(made.movedim(1, -1).flatten(0, -2))

    def _watch(
        self, anatomy: Anatomy, inputs: Any, paths: Sequence[str], kept: Sequence[str], training: bool = False
    ) -> list[Event]:
        """What the modules at these paths were given and made, in the order in which they ran; a copy of it for those
        in ``kept``.
        """
        events, model = list[Event](), anatomy.model

        def note(path: str, given: tuple[Any, ...], made: Any) -> None:
            if given and isinstance(given[0], Tensor) and isinstance(made, Tensor):
                there = [each.detach().clone() if path in kept else each for each in (given[0], made)]
                events.append(Event(path, there[0], there[1], given[0], made))

        hooks = [
            model.get_submodule(path).register_forward_hook(lambda _, given, made, path=path: note(path, given, made))
            for path in paths
        ]
        running = explained(f"{self!r}: the network does not run on the signals' batch")
        try:
            with running, torch.no_grad(), plainly(model, training):
                call(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return events

    def _on_the_way(self, layer: HiddenLayer, events: list[Event], ends: tuple[str, str]) -> list[Event]:
        """The two modules and what stands between them, each of which hands on what it makes to the next."""
        way: list[Event] = []
        for event in events:
            if event.path == ends[0] or (way and way[-1].path != ends[1] and _is_same(event.read, way[-1].written)):
                way.append(event)
        names = [event.path for event in way]
        if names[:1] != [ends[0]] or names[-1:] != [ends[1]] or names.count(ends[0]) > 1:
            raise self._refusal(layer, "something stands between the two that is no module of its own")
        for name in names[1:-1]:
            module = layer.anatomy.modules[name]
            again = [event.path for event in events].count(name) > 1
            if again or any(parameter.dim() > 1 for parameter in module.parameters()):
                reason = "also works elsewhere" if again else "has weights of its own"
                raise self._refusal(layer, f"{name} ({type(module).__name__}), which stands between, {reason}")
        return way

    def _refusal(self, layer: HiddenLayer, reason: str, kind: type[SurgeryError] = Unsuitable) -> SurgeryError:
        return kind(f"{self!r} on {layer.name}: {reason}, so the two modules around it cannot become one")


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in memory, in one shape or another."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def _spread(seen: Condensed, first: int) -> float:
    """The sum of the squares of the deviations of all columns from the first on."""
    return max(float(energy(seen.deviations[:, first:]).sum()), torch.finfo(torch.float64).tiny)


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
