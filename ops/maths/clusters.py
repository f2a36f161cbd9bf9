"""Clusters: which of a few vectors stands for each of many (k-means), and their numbers packed in few bits."""

from __future__ import annotations

import warnings

import numpy
import torch
from scipy.cluster.vq import kmeans2, vq
from torch import Tensor

#: Of more vectors, a random part of this size is clustered, and all of them are assigned.
MOST = 1 << 16
#: Rounds of Lloyd's algorithm.
ROUNDS = 50


def cluster(vectors: Tensor, clusters: int, seed: int) -> Tensor:
    """The cluster of each vector, ``[vectors, d]`` → ``[vectors]``, counted from 0: at most ``clusters``, none empty.

    k-means++, then Lloyd's algorithm (scipy), on the host, where the result is. Complex vectors are clustered as pairs
    of real ones.

    >>> cluster(torch.tensor([[0.0], [5.0], [0.1], [5.1]]), 2, seed=0).diff().ne(0)
    tensor([True, True, True])
    """
    real = torch.view_as_real(vectors).flatten(1) if vectors.is_complex() else vectors
    points = real.detach().double().cpu().numpy()
    distinct = numpy.unique(points, axis=0)
    if len(distinct) <= clusters:
        codes = vq(points, distinct)[0]
    else:
        rng = numpy.random.default_rng(seed)
        some = points if len(points) <= MOST else points[rng.permutation(len(points))[:MOST]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a cluster became empty
            centres, _ = kmeans2(some, clusters, iter=ROUNDS, minit="++", rng=rng)
        codes = vq(points, centres)[0]
    return torch.from_numpy(numpy.unique(codes, return_inverse=True)[1])


def bits(clusters: int) -> int:
    """How many bits the number of one of the clusters takes.

    >>> [bits(n) for n in (1, 2, 3, 16, 17)]
    [1, 1, 2, 4, 5]
    """
    return max(1, (clusters - 1).bit_length())


def pack(codes: Tensor, width: int) -> Tensor:
    """Whole numbers ``[rows, n]`` below 2^width as bytes ``[rows, ⌈n · width / 8⌉]``; ``unpack`` is the inverse.

    >>> pack(torch.tensor([[1, 0, 3, 2, 1]]), 2)
    tensor([[177,   1]], dtype=torch.uint8)
    """
    steps = torch.arange(width, device=codes.device)
    row = (codes.long().unsqueeze(-1) >> steps & 1).flatten(1)
    row = torch.nn.functional.pad(row, (0, -row.shape[1] % 8)).view(len(row), -1, 8)
    return (row << torch.arange(8, device=row.device)).sum(dim=-1).to(torch.uint8)


def unpack(packed: Tensor, width: int, n: int) -> Tensor:
    """The numbers ``[rows, n]`` (of some type of whole numbers), on the device of the bytes."""
    if 8 % width == 0:  # some in each byte
        steps = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
        return (packed.unsqueeze(-1) >> steps & ((1 << width) - 1)).flatten(1)[:, :n]
    row = packed.int().unsqueeze(-1) >> torch.arange(8, dtype=torch.int32, device=packed.device) & 1
    row = row.flatten(1)[:, : n * width].view(len(packed), n, width)
    return (row << torch.arange(width, dtype=torch.int32, device=packed.device)).sum(dim=-1)
