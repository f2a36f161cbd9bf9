"""Emission: new weights with which a layer emits the eigenvectors of its outputs, for ``PCNS(basis="eigen")``.

Source: Rolet 2022, *PCNS: Principal Component Network Shrinking* (draft), sections 2.2 and 2.3 (the weights by ordinary
least squares, the projection into the next layer), 3.4 (how far that holds), 5.2.3 (activations by shift and by parts)
and 6 (convolution, BatchNorm and dropout, which it leaves open).

=====================  =================================================================================
identity, LeakyReLU    the eigenvectors themselves, at the size of the old outputs
tanh, hardtanh         the same, smaller where that leaves the image
sigmoid, ReLU6         shifted into the middle of the image; the shift goes into the bias after the reader
ReLU                   an eigenvector takes two units, its positive and its negative part; the mean takes one
=====================  =================================================================================

A convolution is the dense layer that it is on patches: its units are channels, its samples the positions of images. A
BatchNorm of the layer is set to the identity on the sample, in evaluation as in training: its statistics are those of
what the new units feed it, its scale and shift undo them. What follows must treat every unit alike and be linear over
positions (views, average pooling), so that recombining units commutes with it.

The outputs whose eigenvectors are emitted are those right after the activation, before a norm or an average that
follows; how many eigenvectors there are (PCNS's M) depends on what the readers receive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from network_surgery.ops.anatomy import HiddenLayer, Place
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.maths.condensed import SINGULAR, relative_error
from network_surgery.ops.maths.inverses import IDENTITY, Activation, activation, encode, one_sided
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.surgery.received import received_error

NORM = "native_batch_norm"
#: What BatchNorm is called where, besides.
NORMS = (
    NORM, "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
)  # fmt: skip
#: Operators that only move values, or do nothing in evaluation.
VIEWS = (
    "view", "_unsafe_view", "_reshape_alias", "_reshape_copy", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "expand", "slice", "select", "flip", "roll", "contiguous", "native_dropout",
)  # fmt: skip
#: Operators that are linear over positions and the same for each unit.
AVERAGES = (
    "mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_bicubic2d", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d",
)  # fmt: skip
#: A BatchNorm's tensors, one entry for each unit.
ENTRIES = ("weight", "bias", "running_mean", "running_var")


class Emission:
    """How a layer can be made to emit its eigenvectors. ``operation`` names the operation in errors and plans.

    Raises:
        SurgeryError: what makes the units, or lies between them and their readers, is none of what the module lists;
            the sentence says what.
    """

    def __init__(self, layer: HiddenLayer, operation: str) -> None:
        self.layer, self.operation = layer, operation
        self.maker = self._only_maker()
        self.activation, after = self._passage()
        sink = layer.anatomy.sinks.get(self.maker.tensor)
        name = sink.tensor if sink is not None and sink.sign > 0 else ""
        self.bias = next((place for place in layer.vectors if place.tensor == name), None)
        self.norm = None if after is None else self._only_norm(after)
        self._check_vectors()
        self._check_sinks("activation" if self.activation.shifted else "BatchNorm" if after else "")

    def units(self, vectors: int) -> int:
        """The number of units that emit this number of eigenvectors and the mean."""
        return 2 * vectors + 1 if self.activation.by_parts else vectors + 1

    def vectors(self, units: int) -> int:
        """The number of eigenvectors that this number of units emits in full, besides the mean."""
        return (units - 1) // 2 if self.activation.by_parts else units - 1

    def plan(self, signals: Signals, count: int) -> Plan:
        """The plan for ``count`` units that emit the leading eigenvectors and the mean of the layer's outputs.

        Its ``error`` is that of all that the readers receive from the sample. Its evidence: ``emission_error``, the
        relative error of the eigenvectors and the mean as they are emitted, after the activation; ``condition``, that
        of the least squares (``inverses.one_sided``); ``held_out_error``, the readers' error on every fifth sample when
        the plan is made from the others (where these are two for each unit). What readers receive is found out by
        trying the plan in the network, in its own precision, and taking it back.
        """
        layer = self.layer
        plan = self._solved(signals, count)
        evidence = dict(plan.evidence)
        fitted, apart = (
            [len(signals.received(layer, place, part)) for place in layer.readers] for part in (False, True)
        )
        if min(fitted) >= 2 * layer.units and min(apart) > 0:
            evidence["held_out_error"] = received_error(self._solved(signals, count, held_out=False), signals, True)
        return replace(plan, error=received_error(plan, signals), evidence=evidence)

    def _solved(self, signals: Signals, count: int, held_out: bool | None = None) -> Plan:
        layer, sigma = self.layer, self.activation
        fed = signals.fed(layer, self.maker, held_out)
        outputs, scale, shift = self._outputs(fed)
        vectors = self.vectors(count)
        targets, weights = principal(outputs, vectors + int(self.units(vectors) < count))
        code = encode(targets, sigma, count)
        free = self.bias is not None or (self.norm is not None and not self.norm.after)  # to add a constant
        design = torch.cat([fed, torch.ones_like(fed[:, :1])], dim=1) if free else fed
        solved, condition = one_sided(design, code.values, sigma)
        made = fed @ solved[: fed.shape[1]]
        constant = solved[-1] if free else torch.zeros_like(made[0])
        emitted = sigma.forward(made + constant)
        rows = solved[: fed.shape[1]].T
        newborn = {self.maker.tensor: rows.reshape(count, *layer.tensor(self.maker).shape[1:])}
        if self.bias is not None:
            newborn[self.bias.tensor] = constant
            made, constant = made + constant, torch.zeros_like(constant)
        if self.norm is not None:
            after = self.norm.after
            newborn |= self.norm.identity(emitted) if after else self.norm.identity(made, constant)
        mixing = scale.unsqueeze(1) * (weights @ code.decode)
        offset = shift - mixing @ code.shift
        missed = (emitted - code.shift) @ code.decode.T - targets
        spread = (targets - targets.mean(dim=0)).square().sum()
        readers = [place.tensor for place in layer.readers]
        return Plan(
            layer, self.operation, (-1,) * count, newborn=newborn, mixing=dict.fromkeys(readers, mixing),
            constants=dict.fromkeys(readers, offset) if offset.any() else {},
            evidence={
                "emission_error": relative_error(float(missed.square().sum()), float(spread)), "condition": condition,
            },
        )  # fmt: skip

    def _outputs(self, fed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the layer emits ``[samples, units]``, and what a norm after it multiplies it with and adds to it."""
        made = fed @ self.layer.incoming(self.maker).flatten(1).T
        if self.bias is not None:
            made = made + self._entries(self.bias)
        scale, shift = torch.ones_like(made[0]), torch.zeros_like(made[0])
        if self.norm is not None:
            weight, bias, mean, variance = map(self._entries, self.norm.places)
            scale = weight / (variance + self.norm.module.eps).sqrt()
            shift = bias - scale * mean
            if not self.norm.after:
                made, scale, shift = made * scale + shift, torch.ones_like(scale), torch.zeros_like(shift)
        return self.activation.forward(made), scale, shift

    def _entries(self, place: Place) -> Tensor:
        tensor = self.layer.tensor(place).detach().to(torch.float64).flatten()
        return tensor[place.positions[:, 0].to(tensor.device)]

    # -- what is refused ----------------------------------------------------------------------------------------------

    def _refuse(self, reason: str) -> NoReturn:
        raise SurgeryError(f"{self.operation} on {self.layer.name}: {reason}; use basis='pivoted'")

    def _only_maker(self) -> Place:
        makers = self.layer.makers
        if len(makers) != 1:
            names = ", ".join(place.tensor for place in makers)
            self._refuse(f"its units are made by {len(makers)} weights ({names}), and one is solved for")
        (maker,) = makers
        if any(self.layer.tensor(place).is_complex() for place in self.layer.places):
            self._refuse("its weights are complex, and activations are inverted for real ones")
        module = self.layer.anatomy.owner(maker.tensor)
        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            kind = type(module).__name__
            self._refuse(f"{maker.tensor} must belong to an nn.Linear, nn.Conv1d or nn.Conv2d, not to a {kind}")
        if getattr(module, "groups", 1) != 1:
            self._refuse(f"{maker.tensor} is a convolution in {module.groups} groups, not in one")
        if maker.positions.shape[1] != 1:
            self._refuse(f"each of its units is made by {maker.positions.shape[1]} rows of {maker.tensor}, not by one")
        return maker

    def _passage(self) -> tuple[Activation, bool | None]:
        """The activation, and whether a BatchNorm is after it (None: there is none); the same for every reader."""
        found = {}
        for place in self.layer.readers:
            chain = self.layer.anatomy.chains.get(place.tensor, ("?",))
            if "?" in chain:
                self._refuse(f"on their way to {place.tensor} its outputs meet others, or pass what is not known")
            found[place.tensor] = self._steps(chain)
        (name, steps), *others = found.items()
        for other, differing in others:
            if differing != steps:
                ways = [", ".join(each) or "nothing" for each in (steps, differing)]
                self._refuse(f"its readers see it differently: {name} through {ways[0]}, {other} through {ways[1]}")
        named = [step for step in steps if step != NORM]
        sigma = activation(named[0]) if named else IDENTITY
        assert isinstance(sigma, Activation)  # _steps has seen to it
        return sigma, steps[0] != NORM if NORM in steps else None

    def _steps(self, chain: tuple[str, ...]) -> tuple[str, ...]:
        """The norm and the activation in a chain, in their order."""
        steps: list[str] = []
        average = ""
        for step in (NORM if step in NORMS else step for step in chain):
            if step in AVERAGES:
                average = average or step
            elif step not in VIEWS:
                if step != NORM and isinstance(reason := activation(step), str):
                    self._refuse(reason)
                if average:
                    self._refuse(f"{step} after {average} does not commute with recombining units")
                if any((step == NORM) is (known == NORM) for known in steps):
                    self._refuse(f"more than one norm and one activation follow it ({', '.join(chain)})")
                steps.append(step)
        return tuple(steps)

    def _only_norm(self, after: bool) -> Norm:
        owner, vectors = self.layer.anatomy.owner, self.layer.vectors
        modules = [owner(place.tensor) for place in vectors if isinstance(owner(place.tensor), _BatchNorm)]
        places = {place.tensor.rpartition(".")[2]: place for place in vectors if owner(place.tensor) in modules[:1]}
        if set(places) != set(ENTRIES):
            self._refuse("its BatchNorm must have running statistics, a scale and a shift")
        assert isinstance(modules[0], _BatchNorm)
        return Norm(modules[0], tuple(places[entry] for entry in ENTRIES), after)

    def _check_vectors(self) -> None:
        known = {*(self.norm.places if self.norm else ()), self.bias}
        for place in self.layer.vectors:
            if place not in known or place.positions.shape[1] != 1:
                self._refuse(f"what {place.tensor} does to its units is not known")

    def _check_sinks(self, shifted: str) -> None:
        """A shift comes back through a bias after each reader; at the edge of what is padded it is not one number."""
        for place in self.layer.readers if shifted else ():
            if place.tensor not in self.layer.anatomy.sinks:
                self._refuse(f"the shift of its {shifted} needs a bias after {place.tensor}, which has none")
            module = self.layer.anatomy.owner(place.tensor)
            padding = getattr(module, "padding", 0) if getattr(module, "padding_mode", "") == "zeros" else 0
            if padding == "same" or (isinstance(padding, tuple) and any(padding)):
                self._refuse(f"the shift of its {shifted} is not the same where {place.tensor} meets padded zeros")


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer's BatchNorm, where it keeps ``ENTRIES``, and whether it is after the activation."""

    module: _BatchNorm
    places: tuple[Place, ...]
    after: bool

    def identity(self, fed: Tensor, constant: Tensor | float = 0.0) -> dict[str, Tensor]:
        """The entries, by tensor, with which it adds ``constant`` to what new units feed it, ``[samples, new]``.

        The variance is the one by which training divides: so it does the same in either mode.
        """
        mean, variance = fed.mean(dim=0), fed.var(dim=0, correction=0)
        values = (variance + self.module.eps).sqrt(), mean + constant, mean, variance
        return {place.tensor: value for place, value in zip(self.places, values, strict=True)}


def principal(outputs: Tensor, vectors: int) -> tuple[Tensor, Tensor]:
    """The leading eigenvectors of outputs ``[samples, units]`` and their mean over the units.

    Returns them as columns ``[samples, vectors + 1]``, the mean last, and weights ``[units, vectors + 1]`` by which
    they make the outputs again. The outputs are centred across units. Each eigenvector has the root mean square length
    of the old outputs, since one of unit length would be a tiny signal on every sample, and a positive sum: there
    LeakyReLU's inverse is tame. Vectors without variance (below ``SINGULAR`` of the largest) are zero.
    """
    mean = outputs.mean(dim=1, keepdim=True)
    centred = outputs - mean
    rows = torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred
    _, values, right = torch.linalg.svd(rows, full_matrices=False)
    rank = min(vectors, int((values > SINGULAR * values[:1]).sum()))
    size = outputs.square().sum().div(outputs.shape[1]).sqrt().clamp(min=1e-12)
    found, weights = outputs.new_zeros(len(outputs), vectors), outputs.new_zeros(outputs.shape[1], vectors)
    found[:, :rank] = centred @ right[:rank].T / values[:rank] * size
    weights[:, :rank] = right[:rank].T * values[:rank] / size
    sign = torch.where(found.sum(dim=0) < 0, -1.0, 1.0)
    return torch.cat([found * sign, mean], dim=1), torch.cat([weights * sign, outputs.new_ones(len(weights), 1)], dim=1)
