"""Samples of somebody's own loop as sets of this package: loaders, datasets, pairs of tensors, lists of batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils.data import DataLoader, default_collate

from network_surgery.study.errors import StudyError
from network_surgery.study.task.samples import Batches, Samples, Stream, evenly, join, size_of

Split = Callable[[Any], tuple[Any, Any]]
#: The least number of samples that are read where a loader cannot be asked for samples by number.
READ = 2048


def pair(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch: of ``(inputs, …, targets)``, or of a dict with ``labels``, which stay in it.

    Raises:
        StudyError: it is neither.
    """
    if isinstance(batch, Mapping) and "labels" in batch:
        return {**batch}, batch["labels"]
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
    raise StudyError(
        f"a batch is a {type(batch).__name__}, neither (inputs, targets) nor a dict with 'labels'; give "
        "split=function, which returns (inputs, targets) of a batch"
    )


def training_samples(data: Any, split: Split | None = None) -> Samples | Stream:
    """The samples of a ``DataLoader``, a dataset of torch's kind, a pair of tensors or an iterable of batches.

    ``split``: (inputs, targets) of a batch, ``pair`` by default. What has no length is read from its beginning, until
    there are ``READ`` samples.

    Raises:
        StudyError: it is none of these.
    """
    split = split or pair
    if isinstance(data, (Samples, Stream)):
        return data
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[-1], Tensor):
        return Samples(*data)
    if isinstance(data, DataLoader) and data.batch_sampler is not None and _has_length(data.dataset):
        collate = data.collate_fn
        return Stream(data.dataset, collate=lambda samples: split(collate(samples)))
    if not isinstance(data, (DataLoader, list, tuple)) and _has_length(data) and hasattr(data, "__getitem__"):
        return Stream(data, collate=lambda samples: split(default_collate(samples)))
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, Tensor)):
        return _read(data, split)
    raise StudyError(
        f"samples are a DataLoader, a dataset, a pair (inputs, targets) of tensors or a list of batches, not a "
        f"{type(data).__name__}"
    )


def some(samples: Samples | Stream, count: int) -> Samples:
    """``count`` of the samples (all where there are fewer), evenly spread, in memory and always the same."""
    if isinstance(samples, Samples):
        return samples.thinned(count)
    index = torch.from_numpy(evenly(len(samples), count))
    batch = Batches(samples, torch.device("cpu")).take(index)
    return Samples(*_pytree.tree_map_only(Tensor, lambda x: x.float() if x.dtype == torch.bfloat16 else x, batch))


def in_precision(samples: Samples | Stream, model: nn.Module) -> Samples | Stream:
    """The samples, whose inputs follow the network's precision where all of it has one (``model.bfloat16()``)."""
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if len(kinds) != 1 or kinds == {torch.float32}:
        return samples
    (kind,), batches = kinds, Batches(samples, torch.device("cpu"))

    def collate(numbers: list[int]) -> tuple[Any, Any]:
        inputs, targets = batches.take(torch.tensor(numbers))
        return _pytree.tree_map_only(Tensor, lambda x: x.to(kind) if x.is_floating_point() else x, inputs), targets

    return Stream(range(len(samples)), collate=collate)  # type: ignore[arg-type]


def _has_length(data: Any) -> bool:
    try:
        return len(data) > 0
    except TypeError:
        return False


def _read(batches: Iterable[Any], split: Split) -> Samples:
    found: list[tuple[Any, Any]] = []
    for batch in itertools.islice(batches, READ):
        found.append(split(batch))
        if sum(size_of(targets) for _, targets in found) >= READ:
            break
    if not found:
        raise StudyError("there is no batch to look at: the samples for surgery are an empty iterable")
    try:
        return Samples(*(join(parts) for parts in zip(*found, strict=True)))
    except RuntimeError as error:  # of torch.cat, where batches are padded to different lengths
        raise StudyError(
            "the batches for surgery differ in more than their number of samples; give a list of one batch"
        ) from error
