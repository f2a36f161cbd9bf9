"""Sets that are read as they are needed, from a dataset of torch's kind, in worker processes or without.

A batch is read as a whole where its samples lie, and what is random in reading it follows the seed and the samples of
the batch alone. So it is the same with any number of workers, leaves the random numbers of training as they were, and
repeats when a run resumes.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as MapDataset

from network_surgery.ops.errors import first_line, is_of_memory
from network_surgery.study.counts import format_count
from network_surgery.study.errors import StudyError

Batch = tuple[Any, Any]


class Stream:
    """A set that is read as it is needed: a ``dataset`` of torch's kind, ``len(dataset)`` pairs of inputs and targets.

    ``collate`` makes a batch of a list of pairs, as for ``torch.utils.data.DataLoader``, whose worker processes
    (``workers``; 0: none) read them. What is random in reading (by torch's, NumPy's and Python's global numbers)
    follows the seed, the epoch and the samples of a batch alone, whatever ``workers`` is.

    Raises:
        StudyError: the dataset has no length, or its samples have no numbers.
    """

    def __init__(
        self, dataset: MapDataset[Any], workers: int = 0, collate: Callable[[list[Any]], Batch] = default_collate
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise StudyError(
                f"a Stream needs a dataset with a length and a pair of inputs and targets for each number, which a "
                f"{type(dataset).__name__} has not"
            )
        self.dataset, self.workers, self.collate = dataset, workers, collate
        #: The numbers of its samples in the dataset; None: all of them.
        self.index: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.dataset) if self.index is None else len(self.index)  # type: ignore[arg-type]

    def take(self, index: NDArray[np.int64]) -> Self:
        """The samples of these numbers, still to be read."""
        taken = copy.copy(self)
        taken.index = index if self.index is None else self.index[index]
        return taken

    def thinned(self, count: int) -> Self:
        """``count`` of the samples (all where there are fewer), evenly spread over the set."""
        return self.take(evenly(len(self), count))

    def digest(self) -> str | None:
        """A fingerprint: of the dataset's own (``dataset.digest()``) and which of its samples are in the set.

        None where the dataset has none: nobody reads all of it.
        """
        whole = getattr(self.dataset, "digest", None)
        if not callable(whole):
            return None
        if self.index is None:
            return whole()
        return hashlib.blake2b(str(whole()).encode() + self.index.tobytes(), digest_size=8).hexdigest()

    def prepare(self, inputs: Any) -> Any:
        """What the network is called with, of ``inputs`` as they are read; on the device."""
        return inputs

    def read(self, index: Tensor, seed: int = 0) -> Batch:
        """A batch of the samples of these numbers, read in this process.

        Raises:
            StudyError: a sample that cannot be read, or samples that make no batch.
        """
        return _check(self._reader[self._order(index, seed)])

    def batches(self, parts: Iterable[Tensor], seed: int = 0, pin: bool = False) -> Iterator[Batch]:
        """A batch for each part, the numbers of its samples; ``pin``: in memory that a GPU copies from at once.

        Raises:
            StudyError: as ``read``, or a worker process was lost.
        """
        orders = [self._order(part, seed) for part in parts]
        workers = min(self.workers, len(orders)) if len(orders) > 1 else 0
        # Linux starts a process like this one in milliseconds; elsewhere the way that is safe there.
        context = "fork" if workers and sys.platform == "linux" else None
        loader = DataLoader(
            self._reader, batch_size=None, sampler=orders, num_workers=workers, collate_fn=_as_it_is, pin_memory=pin,
            generator=torch.Generator().manual_seed(seed), multiprocessing_context=context,
        )  # fmt: skip
        try:
            for batch in loader:
                yield _check(batch)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise StudyError(
                f"a process that reads samples was lost ({first_line(error)}); if memory ran out, fewer workers or a "
                "smaller batch_size need less"
            ) from None

    @property
    def _reader(self) -> _Reader:
        return _Reader(self.dataset, self.collate)

    def _order(self, index: Tensor, seed: int) -> _Order:
        numbers = index.numpy() if self.index is None else self.index[index.numpy()]
        return _Order(seed, numbers)


class _Order(NamedTuple):
    """A batch to be read: numbers of samples in the dataset."""

    seed: int
    numbers: NDArray[np.int64]


class _Unread(NamedTuple):
    """What comes in place of a batch that could not be read; an error would bring the worker's traceback along."""

    reason: str
    of_memory: bool


class _Reader(MapDataset[Any]):
    """A dataset whose samples are whole batches, each by its order."""

    def __init__(self, dataset: MapDataset[Any], collate: Callable[[list[Any]], Batch]) -> None:
        self._dataset, self._collate = dataset, collate

    def __getitem__(self, order: _Order) -> Batch | _Unread:
        what = format_count(len(order.numbers), "sample")
        together = getattr(self._dataset, "__getitems__", None)
        try:
            with _seeded(order):
                if callable(together):
                    samples = together(order.numbers.tolist())
                else:
                    samples = []
                    for number in order.numbers.tolist():
                        what = f"sample {number}"
                        samples.append(self._dataset[number])
                what = f"a batch of {format_count(len(samples), 'sample')}"
                return self._collate(samples)
        except StudyError as error:
            return _Unread(str(error), False)
        except Exception as error:  # anyone's dataset may fail in any way
            reason = f"{what} of {type(self._dataset).__name__} cannot be read: {_reason(error)}"
            return _Unread(reason, is_of_memory(error))


@contextlib.contextmanager
def _seeded(order: _Order) -> Iterator[None]:
    """Random numbers of the CPU follow from an order in a ``with`` block; after it they are as before."""
    words = f"{order.seed} ".encode() + order.numbers.tobytes()
    number = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(number)  # not torch.manual_seed, which is of GPUs as well
    np.random.seed(number % 2**32)
    random.seed(number)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def evenly(total: int, count: int) -> NDArray[np.int64]:
    """``count`` numbers below ``total`` (all where there are fewer), evenly spread."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def _check(batch: Any) -> Batch:
    if isinstance(batch, _Unread):
        raise MemoryError(batch.reason) if batch.of_memory else StudyError(batch.reason)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise StudyError(
            f"a dataset must give pairs of inputs and targets; a batch of streamed samples is a {type(batch).__name__}"
        )
    return batch[0], batch[1]


def _reason(error: BaseException) -> str:
    """An error's kind and its first line; a KeyError says nothing but the key."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def _as_it_is(batch: Any) -> Any:
    return batch
