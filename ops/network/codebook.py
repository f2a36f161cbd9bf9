"""Weights whose entries are chosen from a codebook: for each, or each block of a row, a number of few bits is stored.

Sources: Gong et al. 2014, *Compressing deep convolutional networks using vector quantization* (scalar and product
quantization by k-means); Han, Mao and Dally 2016, *Deep compression* (the codebook is trained on: its gradient is the
sum over the entries that share a number).

When units that make a row go, its codes go; the codes of a row's other entries stay stored, as hashed numbers do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.maths.clusters import bits, pack, unpack
from network_surgery.ops.network.expressed import Undo
from network_surgery.ops.network.fields import SEED, SHAPE, TRUTH, Field, whole
from network_surgery.ops.network.hashed import Read


class Codebook(Read):
    """A weight whose rows are made of blocks of ``block`` entries, each one of ``clusters`` blocks that are stored.

    ``own``: each block of a row has a codebook of its own, which all rows share (product quantization); else there is
    one codebook. ``codes``: which block it is, ``[rows, blocks of a row]``; they are stored packed, log₂ ``clusters``
    bits each, each row in whole bytes. Without them, as in a network that is described but not trained, they are
    random. ``names``: by axis, the positions that it has now, where they are not those that it was made with.
    """

    kind = "shared"
    fields: ClassVar[Mapping[str, Field]] = {
        "shape": SHAPE, "clusters": whole(1), "block": whole(1), "own": TRUTH, "seed": SEED,
    }  # fmt: skip

    def __init__(
        self,
        shape: Sequence[int],
        clusters: int,
        block: int = 1,
        own: bool = False,
        seed: int = 0,
        codes: Tensor | None = None,
        names: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._entries = math.prod(shape[1:])
        self._blocks = -(-self._entries // block)
        super().__init__(shape, clusters * block * (self._blocks if own else 1), seed, names)
        self._clusters, self._block, self._own = clusters, block, own
        if codes is None:
            generator = torch.Generator().manual_seed(seed)
            codes = torch.randint(clusters, (shape[0], self._blocks), generator=generator)
        # No buffer: an exponential average of the network's buffers rounds whole numbers, so codes would change.
        self.codes = pack(codes, bits(clusters))

    def beside(self, shape: Sequence[int]) -> int:
        return shape[0] * self.codes.shape[1]

    def read(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        codes = self.codes.to(positions.device)
        table, entry = unpack(codes, bits(self._clusters), self._blocks).flatten(), positions % self._entries
        part = entry // self._block
        code = table[positions // self._entries * self._blocks + part].long()
        if self._own:
            code += part * self._clusters
        return (code if self._block == 1 else code * self._block + entry % self._block), None

    def gathered(self, axis: int, index: Tensor) -> Undo:
        if axis:
            return super().gathered(axis, index)
        before, shape = self.codes, self._shape
        self.codes, self._shape = before.index_select(0, index.to(before.device)), (len(index), *shape[1:])
        return [partial(setattr, self, "codes", before), partial(setattr, self, "_shape", shape)]

    def held(self) -> list[Tensor]:
        return [self.codes]

    def get_extra_state(self) -> Tensor:
        """The codes, for the network's ``state_dict``."""
        return self.codes

    def set_extra_state(self, state: Tensor) -> None:
        """Raises SurgeryError where these are no codes of this weight."""
        if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.shape != self.codes.shape:
            raise SurgeryError(f"the codes of a weight must be bytes of the shape {tuple(self.codes.shape)}")
        if int(unpack(state, bits(self._clusters), self._blocks).max()) >= self._clusters:
            raise SurgeryError(f"the codes of a weight must be below {self._clusters}, the number of its clusters")
        self.codes = state.to(self.codes.device, copy=True)

    def to_data(self) -> dict[str, Any]:
        data = super().to_data() | {"clusters": self._clusters, "block": self._block, "own": self._own}
        return {name: value for name, value in data.items() if name != "numbers"}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Codebook:
        return cls(**{name: value for name, value in data.items() if name != "kind"})

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves to a device."""
        self.codes = fn(self.codes)
        return super()._apply(fn, recurse)
