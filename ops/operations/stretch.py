"""Stretch: one layer becomes two (or three), of less rank.

Sources: Xue, Li and Gong 2013, *Restructuring of deep neural network acoustic models with singular value decomposition*
(dense layers); Kim et al. 2016, *Compression of deep convolutional neural networks* (Tucker-2: 1 × 1, the kernel,
1 × 1); Jaderberg et al. 2014 (vertical filters, then horizontal ones). Graham 2019, chapter 5, asks for layers with
something nonlinear in between. The maths is in ``ops.maths.factors``; ``collapse`` is the inverse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from network_surgery.ops.anatomy import WHOLE, Anatomy, HiddenLayer, count
from network_surgery.ops.errors import SurgeryError, Unsuitable, explained
from network_surgery.ops.maths.double import double, energy
from network_surgery.ops.maths.factors import Cut, compose, filters, pair, tucker
from network_surgery.ops.network.files import tensor_bytes
from network_surgery.ops.network.modules import CONVOLUTIONS, NORMS, Change, Spec, spec_of
from network_surgery.ops.operation import Operation, choice, fraction
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.surgery.surgery import trial_surgery

#: What comes between the new layers.
BETWEEN = ("nothing", "relu", "tanh", "batch_norm")
KERNELS = ("tucker", "separable")
SEQUENCES = "reads several vectors of each sample, and a batch_norm would take their positions for units"


@dataclass(frozen=True)
class Stretch(Operation):
    """Factorizes the module that makes a layer, or every one of the network (``*``) that is smaller for it.

    ``rank``: the fraction of the directions that stays, or in its place ``variance``: as few as have this fraction of
    the squared singular values; or ``threshold``: those whose singular value reaches it. ``kernels``: convolutions
    become 1 × 1, the kernel, 1 × 1 (``tucker``), or k × 1, 1 × k (``separable``). ``between``: what comes between the
    new layers, ``nothing``, ``relu``, ``tanh`` or a ``batch_norm``.

    The units of the layer stay as they are, and so does its name; the new layers before it are called after the parts
    (``fc1.0``). The plan's ``error`` is that of the weights (see ``HashWeights``), None where something comes between:
    then it is another network. The bias keeps its optimizer state, that of the new weights begins anew, and an average
    of the network gets the same factors but for one, which is fitted to its own weight. A plan that saves no parameters
    or no FLOPs says so in ``notes``; of the whole network, modules that would not are left out.
    """

    rank: float | None = 0.25
    variance: float | None = None
    threshold: float | None = None
    kernels: str = "tucker"
    between: str = "nothing"
    whole_network: ClassVar[bool] = True
    makes_layers: ClassVar[bool] = True
    alternatives: ClassVar[tuple[str, ...]] = ("rank", "variance", "threshold")

    def __post_init__(self) -> None:
        choice(self, "kernels", self.kernels, KERNELS)
        choice(self, "between", self.between, BETWEEN)
        if (self.variance is not None or self.threshold is not None) and self.rank == type(self).rank:
            object.__setattr__(self, "rank", None)
        given = [name for name in ("rank", "variance", "threshold") if getattr(self, name) is not None]
        if len(given) != 1:
            raise SurgeryError(
                f"Stretch: one of rank, variance and threshold says how much stays, not {given or 'none'}"
            )
        if self.threshold is None:
            fraction(self, given[0], getattr(self, given[0]))
        elif (
            isinstance(self.threshold, bool)
            or not isinstance(self.threshold, (int, float))
            or not 0 <= self.threshold < math.inf
        ):
            raise SurgeryError(f"Stretch: threshold is {self.threshold!r}, but it must be a number from 0 on")

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        anatomy = layer.anatomy
        whole = layer.name == WHOLE
        names = anatomy.weights if whole else list(dict.fromkeys(place.tensor for place in layer.makers))
        changes, missed, size = dict[str, Change](), 0.0, 0.0
        for name in names:
            try:
                path = stretchable(anatomy, name)
                if self.between == "batch_norm" and anatomy.tensor(name).dim() == 2 and anatomy.calls[name] != 1:
                    raise Unsuitable(f"{path} {SEQUENCES}")
            except SurgeryError as error:
                if not whole:
                    raise type(error)(f"{self!r} on {layer.name}: {error}") from error
                continue
            change = self._change(path, anatomy.modules[path])
            if whole and not _saves(change.spec, anatomy.modules[path]):
                continue
            changes[path] = change
            weight = double(anatomy.live(name))
            factored = _effective(change, path, anatomy)
            missed, size = missed + float(energy(factored - weight).sum()), size + float(energy(weight).sum())
        if not changes:
            raise SurgeryError(f"{self!r} on {layer.name}: there is no layer that could be stretched, and be smaller")
        lost = math.sqrt(missed / size) if size else 0.0
        exact = self.between == "nothing"
        if not exact:
            changes = {path: replace(change, effective=None) for path, change in changes.items()}
        return with_size(
            Plan(
                layer, repr(self), tuple(range(layer.units)), modules=changes, error=lost if exact else None,
                evidence={"weight_error": lost},
            )
        )  # fmt: skip

    def _change(self, path: str, module: nn.Module) -> Change:
        weight, cut = double(module.weight.detach()), Cut(self.rank, self.variance, self.threshold)  # type: ignore
        with explained(f"{path} cannot be factorized"):
            if isinstance(module, nn.Linear):
                return self._dense(path, module, weight, cut)
            assert isinstance(module, _ConvNd)
            if all(n == 1 for n in module.kernel_size):
                return self._pointwise(path, module, weight, cut)
            if self.kernels == "separable":
                return self._separable(path, module, weight, cut)
            return self._tucker(path, module, weight, cut)

    def _dense(self, path: str, module: nn.Linear, weight: Tensor, cut: Cut) -> Change:
        left, right = pair(weight, cut)
        parts = [_linear(right.shape[1], len(right), False), _linear(len(right), len(left), module.bias is not None)]

        def values(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
            last, first = _fit_factors(double(modules[path].get_parameter("weight").detach()), left, right)
            return {"0": first, "last": last}

        return self._joined(path, module, parts, values, lambda v: v["last"] @ v["0"])

    def _pointwise(self, path: str, module: _ConvNd, weight: Tensor, cut: Cut) -> Change:
        left, right = pair(weight.flatten(1), cut)
        spec = spec_of(module)
        first = spec | {"out_channels": len(right), "bias": False}
        last = spec | {
            "in_channels": len(right),
            "stride": [1] * (weight.dim() - 2),
            "padding": [0] * (weight.dim() - 2),
        }
        ones = (1,) * (weight.dim() - 2)

        def values(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
            last, first = _fit_factors(double(modules[path].get_parameter("weight").detach()).flatten(1), left, right)
            return {"0": first.view(*first.shape, *ones), "last": last.view(*last.shape, *ones)}

        return self._joined(path, module, [first, last], values, lambda v: compose(v["last"], v["0"], ones))

    def _tucker(self, path: str, module: _ConvNd, weight: Tensor, cut: Cut) -> Change:
        outer, inner = tucker(weight, cut)
        spec, dims = spec_of(module), weight.dim() - 2
        point = {"kernel_size": [1] * dims, "stride": [1] * dims, "padding": [0] * dims, "dilation": [1] * dims}
        parts = [
            spec | point | {"out_channels": inner.shape[1], "bias": False},
            spec | {"in_channels": inner.shape[1], "out_channels": outer.shape[1], "bias": False},
            spec | point | {"in_channels": outer.shape[1]},
        ]
        ones = (1,) * dims

        def values(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
            own = double(modules[path].get_parameter("weight").detach())
            outs, ins = outer.to(own), inner.to(own)
            core = torch.einsum("oi...,or,is->rs...", own, outs, ins)
            return {"0": ins.T.reshape(*ins.T.shape, *ones), "1": core, "last": outs.view(*outs.shape, *ones)}

        def product(v: Mapping[str, Tensor]) -> Tensor:
            return torch.einsum("rs...,or,si->oi...", v["1"], v["last"].flatten(1), v["0"].flatten(1))

        return self._joined(path, module, parts, values, product)

    def _separable(self, path: str, module: _ConvNd, weight: Tensor, cut: Cut) -> Change:
        if weight.dim() != 4:
            raise Unsuitable(f"{path} is no convolution of images, so it has no vertical and horizontal filters")
        outputs, inputs, height, width = weight.shape
        left, right = pair(filters(weight), cut)
        spec, number = spec_of(module), len(right)

        def part(axis: int, **channels: Any) -> dict[str, Any]:
            sizes: dict[str, Any] = dict(channels)
            for name, neutral in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
                value = spec[name]
                sizes[name] = (
                    value if isinstance(value, str) else [v if a == axis else neutral for a, v in enumerate(value)]
                )
            return spec | sizes

        parts = [part(0, out_channels=number, bias=False), part(1, in_channels=number)]

        def values(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
            own = double(modules[path].get_parameter("weight").detach())
            last, first = _fit_factors(filters(own), left, right)
            horizontal = last.view(outputs, width, number).permute(0, 2, 1).unsqueeze(2)
            return {"0": first.view(number, inputs, height, 1), "last": horizontal}

        return self._joined(path, module, parts, values, lambda v: compose(v["last"], v["0"], (1, 1)))

    def _joined(self, path: str, module: nn.Module, layers: list[dict[str, Any]], values: Any, product: Any) -> Change:
        """The change to these layers, with what comes between; ``values`` has ``last`` for the last of them."""
        parts: list[dict[str, Any]] = []
        for each in layers:
            if parts and self.between != "nothing":
                parts.append(_module_between(self.between, parts[-1]))
            parts.append(each)
        at = [str(place) for place, part in enumerate(parts) if "bias" in part]
        named = {"last": at[-1], **{str(n): place for n, place in enumerate(at[:-1])}}

        def by_name(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
            return {f"{named[key]}.weight": value for key, value in values(modules).items()}

        def effective(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
            return {"weight": product(values(modules))}

        kept = {} if module.bias is None else {f"{at[-1]}.bias": "bias"}
        return Change({"kind": "Sequential", "parts": parts}, by_name, kept, effective, spec_of(module))


def stretchable(anatomy: Anatomy, name: str) -> str:
    """The module whose weight this is. Raises Unsuitable where nothing can take its place, with the reason."""
    path, _, attribute = name.rpartition(".")
    module = anatomy.modules.get(path)
    if anatomy.mask(name) is not None or anatomy.expression(name) is not None:
        raise Unsuitable(f"{name} is masked or hashed: ops.without_masks, or ops.materialize, makes it plain")
    if attribute != "weight" or not path or type(module) not in (nn.Linear, *CONVOLUTIONS):
        kind = "no module" if module is None else f"a {type(module).__name__}"
        raise Unsuitable(f"{path or name} is {kind} and not a dense layer or a convolution of torch's own class")
    if isinstance(module, _ConvNd) and module.groups != 1:
        raise Unsuitable(f"{path} is a convolution in {module.groups} groups")
    if not anatomy.tensor(name).is_floating_point():
        raise Unsuitable(f"{name} is not of real numbers")
    places = [p for p, each in anatomy.model.named_modules(remove_duplicate=False) if each is module]
    assert module is not None
    holders = [m for m in anatomy.modules.values() if any(p is module.weight for p in m._parameters.values())]
    if len(places) > 1 or len(holders) > 1:
        raise Unsuitable(f"{name} is tied: other modules hold it as well")
    return path


def with_size(plan: Plan, saving: bool = True) -> Plan:
    """The plan with the network's size afterwards, which is tried. ``saving``: with a note where it saves nothing.

    Raises SurgeryError where the network does not run with the new modules.
    """
    anatomy = plan.layer.anatomy
    before = tensor_bytes(anatomy.model)
    with trial_surgery(plan):
        try:
            parameters, flops = count(anatomy.model, anatomy.example_input)
        except SurgeryError as error:
            failed = "the network does not run with the new modules"
            raise SurgeryError(f"{plan.operation} on {plan.layer.name}: {failed}: {error}") from error
        stored = plan.bytes_before + tensor_bytes(anatomy.model) - before
    notes = [
        f"it saves no {what}" for what, old, new in (
            ("parameters", plan.parameters_before, parameters), ("FLOPs", plan.flops_before, flops),
        ) if saving and new >= old
    ]  # fmt: skip
    given = {name: getattr(plan, name) for name in ("modules", "error", "evidence")}
    return Plan(
        plan.layer, plan.operation, plan.sources, **given, size=(parameters, flops, stored), notes=tuple(notes)
    )  # fmt: skip


def _fit_factors(matrix: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of a matrix, one of them given: the smaller one, so that at full rank every matrix has a pair."""
    left, right = left.to(matrix), right.to(matrix)
    if len(left) < right.shape[1]:
        return left, torch.linalg.pinv(left) @ matrix
    return matrix @ torch.linalg.pinv(right), right


def _effective(change: Change, path: str, anatomy: Anatomy) -> Tensor:
    assert change.effective is not None
    return change.effective(anatomy.modules)["weight"]


def _saves(spec: Spec, module: nn.Module) -> bool:
    """Whether the weights of the parts are fewer than the module's."""
    sizes = 0
    for part in spec["parts"]:
        if part["kind"] == "Linear":
            sizes += part["in_features"] * part["out_features"]
        elif "in_channels" in part:
            sizes += part["in_channels"] * part["out_channels"] * math.prod(part["kernel_size"])
    return sizes < module.get_parameter("weight").numel()


def _linear(inputs: int, outputs: int, bias: bool) -> dict[str, Any]:
    return {"kind": "Linear", "in_features": inputs, "out_features": outputs, "bias": bias}


def _module_between(name: str, after: Mapping[str, Any]) -> dict[str, Any]:
    """What comes after one of the new layers."""
    if name != "batch_norm":
        return {"kind": {"relu": "ReLU", "tanh": "Tanh"}[name]}
    dims = len(after["kernel_size"]) if "kernel_size" in after else 1
    return {"kind": NORMS[dims - 1].__name__, "num_features": after.get("out_channels", after.get("out_features"))}
