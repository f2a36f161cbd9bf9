"""A plan: what an operation will do to one layer, as data that can be looked at before anything happens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.anatomy.rebuild import Edit, moves, rebuild_mask
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.network.blocks import Blocks
from network_surgery.ops.network.checks import usable
from network_surgery.ops.network.expressed import Compressed
from network_surgery.ops.network.masks import count_hidden
from network_surgery.ops.network.modules import Change


@dataclass(frozen=True, eq=False)
class Plan:
    """The new units of a layer, unit by unit, and how the weights around it follow.

    Before and after are the numbers of ``units``, ``parameters``, ``flops`` of one sample, and the ``bytes`` of the
    tensors that ``ops.save`` writes.

    Attributes:
        layer: the layer to change.
        operation: the operation that proposed this, e.g. ``MinWeight(keep=0.5)``.
        sources: for each new unit the old one that it continues, −1 where there is none.
        shares: for each new unit the factor on its fan-out, shape ``[new]``; None means 1 everywhere.
        replaced: new values of old shape that some tensors take first (rank-reduced weights). They lift a mask that was
            there before, and not one of the plan's own.
        newborn: for makers and vectors, the values of the units whose source is −1, units first; otherwise the fan-in
            is zero and vectors are neutral.
        fan_in: for makers, what is added to the incoming weights of all new units in the end, ``[new, inputs,
            positions of a unit × kernel]`` (``HiddenLayer.by_unit``): noise, so that copies part.
        fan_out: the same for readers and outgoing weights; of those whose source is −1 these are all.
        mixing: for readers, the matrix ``[old, new]`` by which old outputs are made of new ones; the reader's weight is
            multiplied by it (instead of gathered and shared).
        masks: by parameter, where it keeps its values (1) and where it becomes zero for good (0), at its old shape.
        expressed: by parameter, how it is computed from what is stored of it from now on (``ops.network.expressed``).
        ratios: by dropout module, the ratio that it has from now on.
        fresh: what is stored of such a parameter, where that is not made of its values; optimizer state begins anew.
        modules: by module, what takes its place, or (``Blocks``) which blocks it holds; the anatomy is taken anew
            then. ``size``: parameters, FLOPs and bytes of the network afterwards.
        notes: sentences that the plan's table ends with.
        constants: for readers, the constant part ``[old]`` of each old unit's output that goes into the next bias.
        error: predicted relative error of what the readers receive (0 exact), None where nothing is predicted.
        evidence: further numbers that speak for the plan or against it, by name, from the operation that proposed it.
        measured: relative difference of the network's output from what the plan says, in double precision, once
            ``verification.measure`` has tried it; rounding where the layer is exact.
    """

    layer: HiddenLayer = field(repr=False)
    operation: str
    sources: tuple[int, ...]
    shares: Tensor | None = field(default=None, repr=False)
    replaced: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    newborn: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    fan_in: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    fan_out: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    mixing: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    constants: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    masks: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    expressed: Mapping[str, Compressed] = field(default_factory=dict, repr=False)
    fresh: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    ratios: Mapping[str, float] = field(default_factory=dict, repr=False)
    modules: Mapping[str, Change | Blocks] = field(default_factory=dict, repr=False)
    size: tuple[int, int, int] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)
    error: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict, repr=False)
    measured: float | None = field(default=None, init=False)
    units_before: int = field(init=False)
    parameters_before: int = field(init=False)
    parameters_after: int = field(init=False)
    flops_before: int = field(init=False)
    flops_after: int = field(init=False)
    bytes_before: int = field(init=False)
    bytes_after: int = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.layer, HiddenLayer):
            raise SurgeryError(f"a plan is for a layer of an anatomy, not for a {type(self.layer).__name__}")
        if not isinstance(self.sources, Sequence) or isinstance(self.sources, (str, bytes)):
            raise SurgeryError(
                f"sources name an old unit for each new one, so they are a tuple, not {self.sources!r:.60}"
            )
        for name in ("shares", "replaced", "newborn", "fan_in", "fan_out", "mixing", "constants", "masks", "fresh"):
            object.__setattr__(self, name, usable(getattr(self, name)))
        units, masks = self.layer.units, self.layer.anatomy.masks()
        before = after = (*self.layer.cost(units), self.layer.bytes(units))
        if len(self.sources) != units:
            after = (*self.layer.cost(len(self.sources)), self.layer.bytes(len(self.sources)))
        object.__setattr__(self, "units_before", units)
        object.__setattr__(self, "parameters_before", before[0])
        uncovered = count_hidden(masks.values()) - self._hidden(masks)
        object.__setattr__(self, "parameters_after", after[0] + uncovered + self._stored() - self._whole())
        object.__setattr__(self, "flops_before", before[1])
        object.__setattr__(self, "flops_after", after[1])
        object.__setattr__(self, "bytes_before", before[2])
        object.__setattr__(self, "bytes_after", after[2] + self._more_bytes())
        self._check_writes()
        if self.size is not None:
            for name, value in zip(("parameters_after", "flops_after", "bytes_after"), self.size, strict=True):
                object.__setattr__(self, name, value)

    def _hidden(self, now: Mapping[str, Tensor]) -> int:
        """How many parameters masks will hide, where these hide some now; what is rewritten is hidden no more."""
        masks = {**now, **self.masks}
        for name in {*self.replaced, *self.mixing} - {*self.masks}:
            masks.pop(name, None)
        if masks and all(-1 <= source < self.layer.units for source in self.sources):
            for name, steps in moves([Edit(self.layer, torch.tensor(self.sources))]).items():
                if name in masks and masks[name].shape == self.layer.anatomy.tensor(name).shape:
                    masks[name] = rebuild_mask(masks[name], steps)
        return count_hidden(masks.values())

    def _stored(self) -> int:
        """How many numbers are stored of what will be expressed."""
        return sum(math.prod(each.stored_shape) for each in self.expressed.values())

    def _whole(self) -> int:
        return sum(self.layer.anatomy.stored(name).numel() for name in self.expressed)

    def _more_bytes(self) -> int:
        """What expressions and new masks add."""
        anatomy = self.layer.anatomy
        more = sum(mask.numel() for name, mask in self.masks.items() if anatomy.mask(name) is None)
        for name, each in self.expressed.items():
            weight = anatomy.stored(name)
            more += (math.prod(each.stored_shape) - weight.numel()) * weight.element_size() + each.beside(weight.shape)
        return more

    def _check_writes(self) -> None:
        """Raises SurgeryError where the plan writes a weight anew that is expressed otherwise."""
        anatomy, grown = self.layer.anatomy, -1 in self.sources
        written = {*self.replaced, *self.newborn, *self.fan_in, *self.fan_out, *self.mixing, *self.masks}
        written |= {*self.expressed} | {place.tensor for place in self.layer.places if grown}
        written |= {place.tensor for place in self.layer.readers if self.shares is not None}
        for name in sorted(written & set(anatomy.expressions)):
            if (expression := anatomy.expression(name)) is not None:
                raise SurgeryError(
                    f"{self.operation} on {self.layer.name} writes {name} anew, which is {expression.kind}: make it "
                    "plain first, ops.materialize(model, optimizers), or take an operation that only removes units"
                )

    @property
    def units_after(self) -> int:
        return len(self.sources)

    @property
    def removed(self) -> tuple[int, ...]:
        """The old units that no new unit continues."""
        continued = set(self.sources)
        return tuple(unit for unit in range(self.units_before) if unit not in continued)

    def continued(self) -> Tensor:
        """One where a new unit continues an old one, else zero: shape ``[units after, units before]``."""
        sources = torch.tensor(self.sources, dtype=torch.long)
        return (sources.unsqueeze(1) == torch.arange(self.units_before)).to(torch.float64)

    def __str__(self) -> str:
        """The plan as a small table."""
        rows = [
            ("units", self.units_before, self.units_after),
            ("parameters", self.parameters_before, self.parameters_after),
            ("FLOPs a sample", self.flops_before, self.flops_after),
            ("bytes stored", self.bytes_before, self.bytes_after),
        ]
        lines = [f"{self.operation} on {self.layer.name}", f"{'':16}{'before':>14}{'after':>14}{'change':>9}"]
        for title, before, after in rows:
            lines.append(f"{title:16}{before:14,}{after:14,}{(after - before) / max(before, 1):+9.1%}")
        born, grown = self.sources.count(-1), len(self.sources) - len(set(self.sources) - {-1}) - self.sources.count(-1)
        lines.append(f"{len(self.removed)} removed, {grown} copied, {born} newborn")
        if self.error is not None:
            lines.append(f"predicted relative error {self.error:.2g}")
        evidence = [
            f"{name.replace('_', ' ')} {value:.3g}" for name, value in self.evidence.items() if _is_number(value)
        ]
        if evidence:
            lines.append(", ".join(evidence))
        lines.extend(self.notes)
        if not self.layer.exact:
            size = "" if self.measured is None else f", which changes the output by {self.measured:.2g} of its size"
            lines.append(f"inexact: {self.layer.reason}{size}")
        return "\n".join(lines)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
