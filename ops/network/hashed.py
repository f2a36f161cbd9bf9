"""Weights read from fewer numbers by their position: hashed weights and random edges. No table of indices is stored.

Which number an entry reads follows from its position in the weight and a seed by integer arithmetic, on the device, in
each forward pass. So a weight takes what its numbers take, and no multiplication of the network is saved: FLOPs stay.

Source: Chen et al. 2015, *Compressing neural networks with the hashing trick* (HashedNets), section 4; random edge
removal is their rival there. The sign hash ξ is the paper's.

When units go, the positions of those that stay keep their numbers, so removal is exact. Numbers that no entry reads any
more stay stored. What writes weights anew (a repair by least squares, new units) cannot be: it needs plain weights,
see ``materialize``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from network_surgery.ops.maths.double import double
from network_surgery.ops.network.expressed import Compressed, Undo
from network_surgery.ops.network.fields import SEED, SHAPE, TRUTH, Field, whole

#: Hashes are whole numbers of 32 bits, in tensors of 64.
WORD = 0xFFFFFFFF


class Placed(Compressed):
    """A weight of ``shape`` whose entries depend on their positions, which those that stay keep when units go.

    ``names``: by axis, the positions that it has now, where they are not those that it was made with.
    """

    def __init__(self, shape: Sequence[int], names: Mapping[str, Sequence[int]] | None = None) -> None:
        super().__init__()
        self._shape = tuple(shape)
        # No buffers: a running average of the network's buffers would not leave them whole.
        self._names = {int(axis): torch.tensor(known) for axis, known in (names or {}).items()}

    def positions(self, first: int, device: torch.device) -> Tensor:
        """Where the entries that there are now stood at first, counted along the axes from ``first`` on.

        Shape: that of the weight from that axis on.
        """
        positions = torch.zeros((), dtype=torch.int64, device=device)
        for axis, length in enumerate(self._shape[first:], first):
            names = self._names.get(axis)
            here = torch.arange(length, device=device) if names is None else names.to(device)
            stride = math.prod(self._shape[axis + 1 :])
            positions = positions + (here * stride).view(-1, *[1] * (len(self._shape) - axis - 1))
        return positions

    def gathered(self, axis: int, index: Tensor) -> Undo:
        before = self._names
        old = before.get(axis, torch.arange(self._shape[axis], device=index.device))
        if len(index) == len(old) and torch.equal(index, torch.arange(len(old), device=index.device)):
            return []
        self._names = {**before, axis: old.index_select(0, index.to(old.device))}
        return [partial(setattr, self, "_names", before)]

    def to_data(self) -> dict[str, Any]:
        kept = {str(axis): names.tolist() for axis, names in sorted(self._names.items())}
        return {"shape": list(self._shape)} | ({"names": kept} if kept else {})

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves to a device."""
        self._names = {axis: fn(names) for axis, names in self._names.items()}
        return super()._apply(fn, recurse)


class Read(Placed):
    """A weight whose entries read one of ``numbers`` stored ones each; a subclass says which (``read``)."""

    fields: ClassVar[Mapping[str, Field]] = {"shape": SHAPE, "numbers": whole(1), "seed": SEED}

    def __init__(
        self, shape: Sequence[int], numbers: int, seed: int, names: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        super().__init__(shape, names)
        self._stored, self._seed = numbers, seed

    @property
    def stored_shape(self) -> tuple[int, ...]:
        return (self._stored,)

    @abstractmethod
    def read(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """For entries at these positions: the number that each reads, and its factor, of the same shape (None: 1)."""

    def weight(self, stored: Tensor) -> Tensor:
        index, factor = self._now(stored)
        values = stored.index_select(0, index.flatten()).view(index.shape)
        return values if factor is None else values * factor

    def reduced(self, weight: Tensor, degree: int | None = None) -> Tensor:
        """The least squares: the mean of the entries that read a number (times their sign). Of optimizer state the sum,
        as the gradient of a number is the sum of theirs: exact in the first degree; in the second, where their
        gradients are uncorrelated. Of what has no degree, the mean.
        """
        wide = double(weight)  # in half precision a sum of hundreds stops growing
        index, factor = self._now(wide)
        factor = torch.ones_like(wide.real) if factor is None else factor
        values = wide * factor ** (1 if degree is None else degree or 2)
        found = wide.new_zeros(self._stored).index_add(0, index.flatten(), values.flatten())
        return (found if degree else found / self._counts(index, factor)).to(weight.dtype)

    def spread(self, stored: Tensor, degree: int | None = None) -> Tensor:
        """Of optimizer state an equal part for each entry that reads a number."""
        if degree is None:
            return self.weight(stored)
        wide = double(stored)
        index, factor = self._now(wide)
        factor = wide.real.new_ones(index.shape) if factor is None else factor
        parts = wide if not degree else wide / self._counts(index, factor)
        return (parts.index_select(0, index.flatten()).view(index.shape) * factor ** (degree or 2)).to(stored.dtype)

    def to_data(self) -> dict[str, Any]:
        return super().to_data() | {"numbers": self._stored, "seed": self._seed}

    def _now(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """As ``read``, for every entry that the weight has now; factors in the precision of ``like``."""
        index, factor = self.read(self.positions(0, like.device))
        return index, None if factor is None else factor.to(like.real.dtype)

    def _counts(self, index: Tensor, factor: Tensor) -> Tensor:
        """How many entries read each number; 1 where none does."""
        return factor.new_zeros(self._stored).index_add(0, index.flatten(), (factor * factor).flatten()).clamp(min=1)


class Hashed(Read):
    """Each entry reads the number that the hash of its position names, times a ``sign`` by another hash.

    Equation 5 of the source: ``V_ij = w_φ(i,j)``; with the sign, ``V_ij = ξ(i,j) w_φ(i,j)``.
    """

    kind = "hashed"
    fields: ClassVar[Mapping[str, Field]] = {**Read.fields, "sign": TRUTH}

    def __init__(
        self,
        shape: Sequence[int],
        numbers: int,
        seed: int,
        sign: bool = True,
        names: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(shape, numbers, seed, names)
        self._sign = sign

    def read(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        begun = _begun(positions)
        index = _end(begun, 2 * self._seed) % self._stored
        return index, 1 - 2 * (_end(begun, 2 * self._seed + 1) & 1) if self._sign else None

    def to_data(self) -> dict[str, Any]:
        return super().to_data() | {"sign": self._sign}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Hashed:
        return cls(data["shape"], data["numbers"], data["seed"], data["sign"], data.get("names"))


class Edges(Read):
    """The entries with the lowest hashes have a number each, of their own; all others are zero for good.

    ``last``: the highest hash of these (None: it is looked for). What is stored are the numbers, in the order of their
    entries.
    """

    kind = "cut to random edges"
    fields: ClassVar[Mapping[str, Field]] = {**Read.fields, "last": whole(0, WORD)}

    def __init__(
        self,
        shape: Sequence[int],
        numbers: int,
        seed: int,
        last: int | None = None,
        names: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(shape, numbers, seed, names)
        if last is None:  # hashes of one seed are all different
            last = int(mix(torch.arange(math.prod(shape)), seed).kthvalue(numbers).values)
        self._last = last

    @property
    def density(self) -> float:
        return self._stored / math.prod(self._shape)

    def read(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        whole = torch.arange(math.prod(self._shape), device=positions.device)
        lives = mix(whole, self._seed) <= self._last
        order = lives.cumsum(0).sub(1).clamp(min=0)
        return order[positions], lives[positions]

    def to_data(self) -> dict[str, Any]:
        return super().to_data() | {"last": self._last}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Edges:
        edges = cls(data["shape"], data["numbers"], data["seed"], data["last"], data.get("names"))
        hashes = mix(torch.arange(math.prod(edges._shape)), edges._seed)
        if (count := int((hashes <= edges._last).sum())) != edges._stored:
            raise ValueError(f"{count} edges are left, not {edges._stored}")
        return edges


def mix(positions: Tensor, seed: int) -> Tensor:
    """Hashes of 32 bits, in int64: of one seed a bijection of whole numbers below 2³².

    Two rounds of the finalizer of MurmurHash3 (Appleby), with the seed between them.

    >>> hashes = mix(torch.arange(100_000), seed=1)
    >>> len(hashes.unique()), bool((hashes < 2**32).all())
    (100000, True)
    """
    return _end(_begun(positions), seed)


def _begun(positions: Tensor) -> Tensor:
    """The round before the seed, which hashes of several seeds share: the lowest 32 bits as int32."""
    return _finalize(positions.to(torch.int32))


def _end(begun: Tensor, seed: int) -> Tensor:
    return _finalize(begun ^ _to_signed(_seeded(seed))).to(torch.int64) & WORD


def _finalize(x: Tensor) -> Tensor:
    """In int32, whose products wrap around: processors multiply eight of them at once, and not of int64.

    Shifts copy the sign, which the masks remove.
    """
    x = (x ^ ((x >> 16) & 0xFFFF)) * _to_signed(0x85EBCA6B)
    x = (x ^ ((x >> 13) & 0x7FFFF)) * _to_signed(0xC2B2AE35)
    return x ^ ((x >> 16) & 0xFFFF)


def _to_signed(word: int) -> int:
    """The number of 32 bits that int32 writes so."""
    return word - (1 << 32) if word >> 31 else word


def _seeded(seed: int) -> int:
    x = (seed * 0x9E3779B1 + 0x85EBCA6B) & WORD
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & WORD
    return x ^ (x >> 16)
