"""Unit labels: which entries of which tensors belong to the same unit of a network.

Every position along every axis of every parameter is a *node* (an integer). Activations carry a twin tensor of node
numbers of their own shape. Uniting two nodes says that they belong to one unit and can only come or go together;
freezing a node says that it must stay, and why. Node 0 stands for everything that is no unit: inputs and constants.

Label tensors are mostly constant along batch and space; there they are *expanded* (stride 0), so that carrying them
costs no memory and comparing them costs one entry per unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

NO_UNIT = 0
FAN_IN, VECTOR, FAN_OUT = "fan_in", "vector", "fan_out"


@dataclass
class Labels:
    """Union–find over nodes, with a reason for each class that must not change or whose change is inexact."""

    parent: list[int] = field(default_factory=lambda: [NO_UNIT])
    frozen: dict[int, str] = field(default_factory=lambda: {NO_UNIT: "it is an input or a constant"})
    inexact: dict[int, str] = field(default_factory=dict)
    axes: dict[tuple[str, int], range] = field(default_factory=dict)

    def nodes(self, name: str, axis: int, size: int) -> Tensor:
        """The nodes of one axis of one tensor, shape ``[size]``; made at the first call."""
        if (name, axis) not in self.axes:
            first = len(self.parent)
            self.parent.extend(range(first, first + size))
            self.axes[name, axis] = range(first, first + size)
        nodes = self.axes[name, axis]
        return torch.arange(nodes.start, nodes.stop)

    def find(self, node: int) -> int:
        parent = self.parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def roots(self, name: str, axis: int) -> list[int]:
        return [self.find(node) for node in self.axes[name, axis]]

    def unite(self, left: Tensor, right: Tensor) -> None:
        """Entry by entry, the two label tensors (broadcast against each other) mean the same units."""
        for one, other in _pairs(left, right):
            self._unite(one, other)

    def _unite(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        if one == other:
            return
        if one in self.frozen or other in self.frozen:  # freezing is final, so frozen classes need not merge
            reason = self.frozen.get(one) or self.frozen[other]
            self.frozen.setdefault(one, reason)
            self.frozen.setdefault(other, reason)
            return
        self.parent[other] = one
        if other in self.inexact:
            self.inexact.setdefault(one, self.inexact.pop(other))

    def freeze(self, ids: Tensor, reason: str) -> None:
        for node in distinct(ids):
            self.frozen.setdefault(self.find(node), reason)

    def blur(self, ids: Tensor, reason: str) -> None:
        """A change of these units will not be exact, for this reason."""
        for node in distinct(ids):
            if (root := self.find(node)) not in self.frozen:
                self.inexact.setdefault(root, reason)

    def all_frozen(self, ids: Tensor) -> bool:
        return all(self.find(node) in self.frozen for node in distinct(ids))


def none_like(tensor: Tensor) -> Tensor:
    """The label tensor of something that is no unit anywhere."""
    return torch.zeros((), dtype=torch.int64).expand(tensor.shape)


def distinct(ids: Tensor) -> list[int]:
    return torch.unique(squeezed(ids)).tolist()


def squeezed(ids: Tensor) -> Tensor:
    """The same labels with every expanded dimension cut to one entry."""
    for dim in range(ids.dim()):
        if ids.stride(dim) == 0 and ids.size(dim) > 1:
            ids = ids.narrow(dim, 0, 1)
    return ids


def compact(ids: Tensor) -> Tensor:
    """The same labels, expanded along every dimension in which they do not vary."""
    shape = ids.shape
    ids = squeezed(ids)
    for dim in range(ids.dim()):
        if ids.size(dim) > 1:
            first = ids.narrow(dim, 0, 1)
            if torch.equal(ids, first.expand_as(ids)):
                ids = first
    return ids.expand(shape)


def varying(ids: Tensor) -> list[int]:
    """The dimensions along which a compact label tensor varies."""
    return [dim for dim in range(ids.dim()) if ids.size(dim) > 1 and ids.stride(dim) != 0]


def _pairs(left: Tensor, right: Tensor) -> list[list[int]]:
    left, right = torch.broadcast_tensors(left, right)
    both = torch.stack(torch.broadcast_tensors(squeezed(left), squeezed(right)), dim=-1).reshape(-1, 2)
    return torch.unique(both, dim=0).tolist()
