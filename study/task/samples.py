"""Sets of samples, and how they reach a device: held in memory, or streamed from a dataset of torch's kind.

A sample is what a network answers at once: an image, a row of a table, a window of text. *Inputs* are what the network
is called with (a tensor, a tuple or list of arguments, or a dict of keyword arguments), *targets* what its loss
compares the outputs with; in both, every tensor's first axis is the samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree

from network_surgery.study.errors import StudyError
from network_surgery.study.task.stream import Batch, Stream, evenly


@dataclass(frozen=True)
class Samples:
    """A set in memory: ``inputs`` and ``targets``, arrays ``[n, …]`` or lists, tuples and dicts of them.

    Tensors become NumPy arrays, which Ray shares between processes without copying.

    Raises:
        StudyError: there is no array in them, or their first axes differ.
    """

    inputs: Any
    targets: Any

    def __post_init__(self) -> None:
        for part in ("inputs", "targets"):
            object.__setattr__(self, part, _pytree.tree_map(_array, getattr(self, part)))
        sizes = {len(array) if array.ndim else -1 for array in self._arrays()}
        if len(sizes) != 1 or min(sizes) < 0:
            raise StudyError(
                "inputs and targets of a set must be arrays with one entry for each sample, all of the same number; "
                f"these have {', '.join(map(str, sorted(sizes))) or 'none'}"
            )

    def __len__(self) -> int:
        return len(self._arrays()[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self._arrays())

    def take(self, index: NDArray[np.int64]) -> Self:
        """The samples of these numbers."""
        return type(self)(*(_pytree.tree_map(lambda array: array[index], part) for part in (self.inputs, self.targets)))

    def thinned(self, count: int) -> Self:
        """``count`` of the samples (all where there are fewer), evenly spread over the set."""
        return self.take(evenly(len(self), count))

    def digest(self) -> str:
        """A fingerprint: equal for equal samples in the same order, 16 hexadecimal digits."""
        arrays = self._arrays()
        words = hashlib.blake2b(repr(arrays[0].shape).encode(), digest_size=8)
        for array in arrays:
            words.update(np.ascontiguousarray(array).tobytes())
        return words.hexdigest()

    def prepare(self, inputs: Any) -> Any:
        """What the network is called with, of ``inputs`` as they are stored; on the device."""
        return inputs

    def _arrays(self) -> list[NDArray[Any]]:
        return _pytree.tree_leaves((self.inputs, self.targets))


class Batches:
    """A set as batches on a device: a held one lies there whole, a streamed one comes batch by batch."""

    def __init__(self, samples: Samples | Stream, device: torch.device) -> None:
        self.samples, self.device = samples, device
        self._held: Batch | None = None
        if isinstance(samples, Samples):
            parts = (samples.inputs, samples.targets)
            self._held = _pytree.tree_map(lambda array: torch.tensor(array, device=device), parts)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def home(self) -> torch.device:
        """Where the numbers of samples are best kept: with the samples, so that taking them waits for nothing."""
        return torch.device("cpu") if self._held is None else self.device

    def take(self, index: Tensor | slice) -> Batch:
        """Inputs and targets of the samples of these numbers."""
        if self._held is None:
            assert isinstance(self.samples, Stream)
            return self._moved(self.samples.read(torch.arange(len(self))[index]))
        place = index.to(self.device) if isinstance(index, Tensor) else index
        inputs, targets = _pytree.tree_map(lambda tensor: tensor[place], self._held)
        return self.samples.prepare(inputs), targets

    def over(self, parts: Iterable[Tensor], seed: int = 0) -> Iterator[Batch]:
        """A batch for each part, the numbers of its samples; ``seed`` is of what is random in reading them."""
        if self._held is not None:
            yield from map(self.take, parts)
            return
        assert isinstance(self.samples, Stream)
        for batch in self.samples.batches(parts, seed, pin=self.device.type not in ("cpu", "mps")):
            yield self._moved(batch)

    def whole(self, size: int) -> Iterator[Batch]:
        """All samples in order, ``size`` at a time."""
        return self.over(torch.arange(len(self), device=self.home).split(size))

    def _moved(self, batch: Batch) -> Batch:
        inputs, targets = _pytree.tree_map_only(Tensor, lambda t: t.to(self.device, non_blocking=True), batch)
        return self.samples.prepare(inputs), targets


@dataclass(frozen=True)
class Sets:
    """The samples of a task: trained on, chosen on, read once at the end."""

    train: Samples | Stream
    validation: Samples | Stream
    test: Samples | Stream


def size_of(batch: Any) -> int:
    """The number of samples in inputs or targets of a batch."""
    return int(next(leaf for leaf in _pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()).shape[0])


def first(batch: Any, count: int) -> Any:
    """The first ``count`` samples of inputs or targets."""
    return _pytree.tree_map_only(Tensor, lambda tensor: tensor[:count], batch)


def join(batches: Sequence[Any]) -> Any:
    """Inputs or targets of several batches in one."""
    leaves, spec = zip(*(_pytree.tree_flatten(batch) for batch in batches), strict=True)
    return _pytree.tree_unflatten([torch.cat(parts) for parts in zip(*leaves, strict=True)], spec[0])


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind not in "biufc":
        raise StudyError(f"inputs and targets of a set must be numbers, not {type(value).__name__} of {array.dtype}")
    return array
