"""Sets of samples, and how they reach a device: held in memory, or streamed from a dataset of torch's kind.

A sample is what a network answers at once: an image, a row of a table, a window of text. *Inputs* are what the network
is called with (a tensor, a tuple or list of arguments, or a dict of keyword arguments), *targets* what its loss
compares the outputs with; in both, every tensor's first axis is the samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as MapDataset

from network_surgery.study.errors import StudyError

Batch = tuple[Any, Any]


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


class Stream:
    """A set that is read as it is needed: a ``dataset`` of torch's kind, ``len(dataset)`` pairs of inputs and targets.

    ``collate`` makes a batch of a list of pairs, as for ``torch.utils.data.DataLoader``, whose worker processes
    (``workers``; 0: none) read them. What is random in reading follows the seed and the epoch alone.
    """

    def __init__(
        self, dataset: MapDataset[Any], workers: int = 0, collate: Callable[[list[Any]], Batch] = default_collate
    ) -> None:
        self.dataset, self.workers, self.collate = dataset, workers, collate

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def thinned(self, count: int) -> Stream:
        """``count`` of the samples (all where there are fewer), evenly spread over the set."""
        chosen = evenly(len(self), count).tolist()
        return Stream(torch.utils.data.Subset(self.dataset, chosen), self.workers, self.collate)

    def digest(self) -> str | None:
        """The dataset's own fingerprint (``dataset.digest()``); None where it has none: nobody reads all of it."""
        digest = getattr(self.dataset, "digest", None)
        return digest() if callable(digest) else None


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
            numbers = torch.arange(len(self))[index].tolist()
            return self._moved(self.samples.collate([self.samples.dataset[number] for number in numbers]))
        place = index.to(self.device) if isinstance(index, Tensor) else index
        inputs, targets = _pytree.tree_map(lambda tensor: tensor[place], self._held)
        return self.samples.prepare(inputs), targets  # type: ignore[union-attr]

    def over(self, parts: Iterable[Tensor], seed: int = 0) -> Iterator[Batch]:
        """A batch for each part, the numbers of its samples; ``seed`` is of what is random in reading them."""
        if self._held is not None:
            yield from map(self.take, parts)
            return
        assert isinstance(self.samples, Stream)
        loader = DataLoader(
            self.samples.dataset, batch_sampler=[part.tolist() for part in parts], num_workers=self.samples.workers,
            collate_fn=self.samples.collate, pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        for batch in loader:
            yield self._moved(batch)

    def whole(self, size: int) -> Iterator[Batch]:
        """All samples in order, ``size`` at a time."""
        return self.over(torch.arange(len(self)).split(size))

    def _moved(self, batch: Any) -> Batch:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise StudyError(
                f"a dataset must give pairs of inputs and targets; a batch of {type(self.samples).__name__.lower()}ed "
                f"samples is a {type(batch).__name__}"
            )
        inputs, targets = _pytree.tree_map_only(Tensor, lambda t: t.to(self.device, non_blocking=True), tuple(batch))
        return inputs, targets


@dataclass(frozen=True)
class Sets:
    """The samples of a task: trained on, chosen on, read once at the end."""

    train: Samples | Stream
    validation: Samples | Stream
    test: Samples | Stream


def evenly(total: int, count: int) -> NDArray[np.int64]:
    """``count`` numbers below ``total`` (all where there are fewer), evenly spread."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def size_of(batch: Any) -> int:
    """The number of samples in inputs or targets of a batch."""
    return int(next(leaf for leaf in _pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()).shape[0])


def first(batch: Any, count: int) -> Any:
    """The first ``count`` samples of inputs or targets."""
    return _pytree.tree_map_only(Tensor, lambda tensor: tensor[:count], batch)


def joined(batches: Sequence[Any]) -> Any:
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
