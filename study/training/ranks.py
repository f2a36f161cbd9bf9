"""One run on several processes, its *ranks*, each on a device of its own: what they share, and what each has alone.

Every rank runs the same program from the state of the first one (``checkpoint.share``). A batch is divided among them,
and the gradients of a step are added up after its last backward pass (``combine``). A rank's gradient weighs as many
samples as it has, so the step is that of the whole batch, whatever the number of ranks. A rank that a short last batch
has no sample for computes one of the others' with weight 0. BatchNorm takes mean and variance of the whole batch, as on
one rank (``_BatchNorms``): torch's ``SyncBatchNorm`` is another module, which surgery would have to know, and not for
CPUs. Other buffers are the first rank's. What is drawn in a training step (dropout, augmentation) is drawn by each rank
for its own samples, from the seed, the epoch, the batch and the rank, so such a run is another draw than that of one
rank. Evaluation is divided, too.

Why not ``DistributedDataParallel``: it sends gradients from hooks on the nodes of autograd that accumulate them.
Surgery, and whatever tries an edit and takes it back (an anatomy, a look at a condition), has torch renew these nodes
(``ops.network.optimizer_state.exchange``), and then gradients stay unsent without a word. Here nothing hangs on them.
The price is that sending does not overlap with the backward pass.

Surgery happens on every rank, from the same samples in the same order. What decides whether and where (a condition's
gain, a budget's division) is the first rank's (``agreed``). After each operation the ranks compare digests of the
networks and the optimizer (``settle``): other sizes end the run on all of them; values that differ by the rounding of
unlike devices become those of the first rank.

A rank that fails ends; its connections close, and so the others end in their next exchange.

No test has seen NCCL: on GPUs, tensors of the device travel by it, and what is said here of gloo is what is tested.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from network_surgery.ops.network import sealed
from network_surgery.ops.network.architecture import passing
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.augmentation import apart

#: Bytes after which a message to the other ranks is full.
BUCKET = 32 * 2**20
#: What gloo and NCCL say where another process has ended.
_GONE = re.compile(r"gloo|nccl|Connection (closed|reset|refused)|Broken pipe|TCPStore|process group", re.IGNORECASE)


@dataclass(frozen=True)
class Ranks:
    """The place of this process, ``rank``, among ``size`` ones; the default process group of torch connects them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and reports."""
        return self.rank == 0

    def shard(self, numbers: Tensor) -> tuple[Tensor, float]:
        """This rank's part of the samples of a batch, and its weight in the batch.

        >>> Ranks(1, 2).shard(torch.arange(5))
        (tensor([3, 4]), 0.4)
        >>> Ranks(2, 3).shard(torch.arange(2))
        (tensor([0]), 0.0)
        """
        mine = numbers.tensor_split(self.size)[self.rank]
        return (mine, len(mine) / len(numbers)) if len(mine) else (numbers[:1], 0.0)

    def some(self, parts: Sequence[Any]) -> Sequence[Any]:
        """This rank's part of a list, in order."""
        return parts[self.rank * len(parts) // self.size : (self.rank + 1) * len(parts) // self.size]

    @contextlib.contextmanager
    def passes(self, weight: float, seed: int, device: torch.device) -> Iterator[None]:
        """For forward and backward pass of this rank's part of a batch, of this ``weight``, in a ``with`` block.

        ``seed``: of what is drawn there, which each rank draws for itself.
        """
        if self.size == 1:
            yield
            return
        with apart((seed * self.size + self.rank) % 2**63, device), _BatchNorms(weight > 0):
            yield

    def combine(self, model: nn.Module) -> None:
        """Adds up the gradients of all ranks, after a step's last backward pass; buffers become the first rank's.

        A parameter that none of them has a gradient of keeps none.
        """
        if self.size == 1:
            return
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            return
        there = torch.tensor([float(each.grad is not None) for each in parameters])
        there = there.to(parameters[0].device)
        work = dist.all_reduce(there, async_op=True)
        for each in parameters:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        _in_buckets([each.grad for each in parameters if each.grad is not None], dist.all_reduce)
        work.wait()
        for each, ranks in zip(parameters, there.tolist(), strict=True):
            if not ranks:
                each.grad = None
        _in_buckets([*model.buffers()], lambda flat: dist.broadcast(flat, 0))

    def mean(self, loss: Tensor, weight: float) -> Tensor:
        """The mean loss of a batch, of that of this rank's part."""
        if self.size == 1:
            return loss
        loss = loss * weight
        dist.all_reduce(loss)
        return loss

    def agreed(self, content: Any) -> Any:
        """What the first rank gives; plain data and tensors, which arrive on the host."""
        return content if self.size == 1 else self.gathered(content if self.first else None)[0]

    def gathered(self, content: Any) -> list[Any]:
        """What each rank gives, in order; plain data and tensors, which arrive on the host."""
        if self.size == 1:
            return [content]
        buffer = io.BytesIO()
        sealed.write(content, buffer)
        own = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        lengths = [torch.zeros((), dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor(len(own)))
        parts = [torch.empty(int(length), dtype=torch.uint8) for length in lengths]
        for rank, part in enumerate(parts):
            part = part.copy_(own) if rank == self.rank else part
            dist.broadcast(part, rank)
        return [sealed.read(io.BytesIO(part.numpy().tobytes())) for part in parts]

    def settle(self, networks: Sequence[nn.Module], optimizer: Optimizer, what: str) -> bool:
        """Compares the networks and the optimizer's state of all ranks after an operation, named by ``what``; where
        values differ, all take the first rank's. Returns whether they were equal to the bit.

        Raises:
            StudyError: sizes differ; on all ranks.
        """
        if self.size == 1:
            return True
        tensors = _tensors(networks, optimizer)
        shapes = _digest(f"{name} {tuple(each.shape)} {each.dtype}".encode() for name, each in tensors.items())
        values = _digest(_bytes(each) for each in tensors.values())
        found = self.gathered([shapes, values])
        if odd := [rank for rank, each in enumerate(found) if each[0] != found[0][0]]:
            raise StudyError(
                f"after '{what}' the network has other sizes on rank {odd[0]} of this run than on rank 0; use devices "
                "of one type, or workers_per_trial: 1"
            )
        if all(each == found[0] for each in found):
            return True
        _in_buckets([*tensors.values()], lambda flat: dist.broadcast(flat, 0))
        return False


#: A run of one process.
ALONE = Ranks()


def is_of_others(error: BaseException | None) -> bool:
    """Whether an exception only says that another rank has ended."""
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _GONE.search(str(error))):
            return True
        error = error.__cause__
    return False


class _BatchNorms(TorchFunctionMode):
    """BatchNorms in training take the statistics of the parts of all ranks. ``counts``: whether this one's does.

    Source: Ioffe & Szegedy 2015, *Batch normalization*; over devices as in torch's ``SyncBatchNorm``, but in two passes
    (the mean, then the variance), which round less.
    """

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self._weight = float(counts)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        """The arguments of ``torch.nn.functional.batch_norm``; ``input``: ``[samples, units, …]``."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        values = input if input.dtype == torch.float64 else input.float()
        axes, shape = [0, *range(2, input.dim())], [1, -1, *[1] * (input.dim() - 2)]
        count = values.new_full((1,), self._weight * values.numel() / values.shape[1])
        sums = _sum(torch.cat([values.sum(axes) * self._weight, count]))
        number = sums[-1].detach()
        mean = sums[:-1] / number
        apart_ = values - mean.view(shape)
        variance = _sum(apart_.square().sum(axes) * self._weight) / number
        with torch.no_grad():
            for running, new in ((running_mean, mean), (running_var, variance * (number / (number - 1)))):
                if running is not None:
                    running.lerp_(new.to(running.dtype), momentum)
        outputs = apart_ * torch.rsqrt(variance + eps).view(shape)
        outputs = outputs if weight is None else outputs * weight.view(shape)
        outputs = outputs if bias is None else outputs + bias.view(shape)
        return outputs.to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all ranks, which each of them goes on with."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _add(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _add(gradient)


def _sum(tensor: Tensor) -> Tensor:
    return _Sum.apply(tensor)


def _add(tensor: Tensor) -> Tensor:
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


@torch.no_grad()
def _in_buckets(tensors: Sequence[Tensor], exchange: Callable[[Tensor], object]) -> None:
    """Exchanges tensors with the other ranks in place, many of one type in one message."""
    buckets: dict[Any, list[list[Tensor]]] = {}
    for tensor in tensors:
        alike = buckets.setdefault((tensor.dtype, tensor.device), [[]])
        if sum(each.nbytes for each in alike[-1]) > BUCKET:
            alike.append([])
        alike[-1].append(tensor)
    for bucket in itertools.chain.from_iterable(buckets.values()):
        flat = torch.cat([each.reshape(-1) for each in bucket])
        exchange(flat)
        for tensor, new in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            tensor.copy_(new.view(tensor.shape))


def _tensors(networks: Sequence[nn.Module], optimizer: Optimizer) -> dict[str, Tensor]:
    """Parameters and buffers of the networks, and the optimizer's state, by names that say where."""
    found: dict[str, Tensor] = {}
    for place, network in enumerate(networks):
        parts = {**network.state_dict(), **passing(network)}
        found |= {f"{place} {name}": each for name, each in parts.items() if isinstance(each, Tensor)}
    for number, state in optimizer.state_dict()["state"].items():
        found |= {f"state {number} {name}": each for name, each in state.items() if isinstance(each, Tensor)}
    return found


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _digest(parts: Iterator[Any]) -> str:
    words = hashlib.blake2b(digest_size=16)
    for part in parts:
        words.update(part)
    return words.hexdigest()
