"""One forward pass, watched from below: every aten call also runs on the labels.

``Trace`` is a dispatch mode. It sees each operator of the forward pass with its tensors, asks ``rules`` what the
operator does to unit labels, and records where units are made, kept and read. What no rule knows freezes its inputs:
an unknown operator costs a layer, never a wrong cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ops.anatomy.labels import Labels, none_like
from ops.anatomy.rules import apply_rule


@dataclass
class Use:
    """How one axis of one tensor meets the units: made by it, carried along it, read by it."""

    roles: set[str] = field(default_factory=set)
    fill: float = 0.0  # what a newborn unit gets in a per-unit vector
    across: int | None = None  # of a weight: the other axis of the product


@dataclass(frozen=True)
class View:
    """A parameter or buffer, or a view of one: for each dimension the tensor's axis and the positions on it."""

    name: str
    dims: tuple[tuple[int, Tensor] | None, ...] | None  # None: the view mixes axes and cannot be read


class Trace(TorchDispatchMode):
    """Carries labels through one forward pass of ``model``.

    Attributes: ``labels``; ``uses`` ``(tensor, axis) → Use``; ``calls`` weight → how often each of its elements is
    used per sample (for FLOPs); ``sinks`` weight → the bias that what it makes meets first, with the sign in which a
    constant enters it; ``chains`` weight → operators between the units' birth and this reader.
    """

    def __init__(self, model: nn.Module, batch: int) -> None:
        super().__init__()
        self.labels = Labels()
        self.batch = max(batch, 1)
        self.uses: dict[tuple[str, int], Use] = {}
        self.calls: dict[str, float] = {}
        self.sinks: dict[str, tuple[str, float]] = {}
        self.chains: dict[str, tuple[str, ...]] = {}
        self._named = {t.untyped_storage().data_ptr(): (n, t) for n, t in reversed(list(tensors_of(model)))}
        self._shapes = {name: tensor.shape for name, tensor in self._named.values()}
        self._twins: dict[int, Tensor] = {}
        self._alive: dict[int, Tensor] = {}  # keeps ids unique while the trace lasts
        self._history: dict[int, tuple[str | None, tuple[str, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        apply_rule(self, func, args, kwargs, out)
        return out

    # -- what is known of a tensor ---------------------------------------------------------------------------------

    def view(self, tensor: Tensor) -> View | None:
        """The parameter that this tensor is or shows, or None."""
        if id(tensor) in self._twins or tensor.numel() == 0:
            return None
        found = self._named.get(tensor.untyped_storage().data_ptr())
        return None if found is None else View(found[0], _dims(tensor, found[1]))

    def ids(self, tensor: Tensor) -> Tensor:
        """The label twin of an activation; no unit for anything else."""
        twin = self._twins.get(id(tensor))
        return none_like(tensor) if twin is None else twin

    def mark(self, tensor: Tensor, ids: Tensor, history: tuple[str | None, tuple[str, ...]] = (None, ())) -> None:
        self._twins[id(tensor)] = ids
        self._alive[id(tensor)] = tensor
        self._history[id(tensor)] = history

    def history(self, tensor: Tensor) -> tuple[str | None, tuple[str, ...]]:
        """The weight that made this activation and the operators since."""
        return self._history.get(id(tensor), (None, ("?",)))

    # -- what is learnt ----------------------------------------------------------------------------------------------

    def nodes(self, view: View, dim: int) -> Tensor | None:
        """The nodes along one dimension of a view, or None where it shows no axis."""
        place = view.dims[dim] if view.dims is not None else None
        if place is None:
            return None
        axis, positions = place
        return self.labels.nodes(view.name, axis, self.shape(view.name)[axis])[positions]

    def note(self, view: View, dim: int, role: str, fill: float = 0.0) -> Use:
        assert view.dims is not None and view.dims[dim] is not None
        use = self.uses.setdefault((view.name, view.dims[dim][0]), Use(fill=fill))  # type: ignore[index]
        use.roles.add(role)
        return use

    def freeze_parameter(self, name: str, reason: str) -> None:
        for axis, size in enumerate(self.shape(name)):
            self.labels.freeze(self.labels.nodes(name, axis, size), reason)

    def shape(self, name: str) -> torch.Size:
        return self._shapes[name]


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, under its first name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def flat_tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _dims(view: Tensor, base: Tensor) -> tuple[tuple[int, Tensor] | None, ...] | None:
    """Reads a view by its strides and offset: which axis of ``base`` each dimension walks, and from where."""
    offset, steps = int(view.storage_offset() - base.storage_offset()), base.stride()
    axes = sorted((a for a in range(base.dim()) if base.size(a) > 1), key=lambda a: steps[a], reverse=True)
    start = {}
    for axis in axes:
        start[axis], offset = divmod(offset, steps[axis])
    dims: list[tuple[int, Tensor] | None] = []
    for dim in range(view.dim()):
        size, stride = view.size(dim), view.stride(dim)
        if size == 1 or stride == 0:
            dims.append(None)
            continue
        walked = next((a for a in axes if steps[a] == stride), None)
        if walked is None or start[walked] < 0 or start[walked] + size > base.size(walked):
            return None
        dims.append((walked, torch.arange(start[walked], start[walked] + size)))
    return tuple(dims)
