"""One call of an operator, and what is known of the tensors that it meets."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from network_surgery.ops.anatomy.axes import ONE, Axis, Fixed, blur, canonical, is_fixed, size, unite

if TYPE_CHECKING:
    from network_surgery.ops.anatomy.sinks import Making

Axes = tuple[Axis, ...]
FAN_IN, VECTOR, FAN_OUT = "fan_in", "vector", "fan_out"
COMPUTED = "a weight that is computed meets it; keep it as one parameter (merge a LoRA, fold a scale into it)"


@dataclass(slots=True)
class Twin:
    """What is known of a tensor: its axes, and where it comes from.

    ``source`` is the parameter or buffer that it is, or shows unchanged; ``origins`` then says for each dimension
    which axis of the source it runs along. ``live``: it depends on the network's input. ``maker`` and ``chain``: the
    weight that made these units and the operators since. ``blurs``: an axis and the reason why editing its units is not
    exact, if anything comes of this tensor. ``making``: the product that it is, as long as nothing has been done to it.
    """

    axes: Axes
    source: str | None = None
    origins: tuple[int | None, ...] = ()
    live: bool = False
    maker: str | None = None
    chain: tuple[str, ...] = ("?",)
    blurs: tuple[Axis, str] | None = None
    making: Making | None = None

    @property
    def plain(self) -> bool:
        """Whether no units are on it."""
        return self.source is None and all(map(is_fixed, self.axes))

    def met(self) -> None:
        """An operator, or whoever called the network, is given the tensor."""
        if self.blurs is not None:
            blur(*self.blurs)


@dataclass(slots=True)
class Use:
    """How the units on (a part of) one axis of one tensor are met: made there, carried along, or read.

    ``fill`` is what a newborn unit gets in a per-unit vector, ``across`` the other axis of a weight's product.
    """

    part: Axis
    role: str
    fill: float = 0.0
    across: int | None = None


@dataclass(slots=True)
class Call:
    """One call of an operator, by its ``name`` without the mark of those that work in place.

    ``maker``, ``chain``, ``blurs`` and ``making`` are what a rule says of its output. ``partners``: the weights of
    products and the vectors that are added to them, each with the weight; ``held``: the products that a vector is added
    to.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]
    twins: list[Twin]
    maker: str | None = None
    chain: tuple[str, ...] | None = None
    blurs: tuple[Axis, str] | None = None
    making: Making | None = None
    partners: dict[str, str] = field(default_factory=dict)
    held: list[Making] = field(default_factory=list)

    @property
    def out(self) -> Tensor:
        return self.outputs[0]

    def get(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


def constant(tensor: Tensor) -> Axes:
    """The axes of a tensor that holds no units."""
    return tuple(map(_positions, tensor.shape))


#: One object for each number, as axes that are one object are known to be equal at once.
_positions = functools.lru_cache(1024)(Fixed)


def broadcast(twins: Iterable[Twin], dims: int) -> Axes:
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


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operator's arguments or results, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(tensors_in(value))
    return found
