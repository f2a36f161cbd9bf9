"""The thesis's setting: one hidden layer of random weights, shrunk and grown step by step (Graham 2019, 4.1.1).

Every size and form of EigenRemove would decompose the same weight again: here that is done once, and PCNS takes no
spectrum. The plans are the operations' own (``tests/study/experiments/test_isolation.py`` compares them).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn

from network_surgery.ops import PCNS, EigenRemove, HiddenLayer, Operation, Plan
from network_surgery.ops.operation import units_to_keep
from network_surgery.ops.operations.min_weight import strongest
from network_surgery.ops.signals.signals import MOST_SAMPLES
from network_surgery.ops.surgery.repair import least_squares
from network_surgery.study.bench.rows import Row
from network_surgery.study.experiments.isolation.curves import leading
from network_surgery.study.experiments.isolation.network import Network

WHERE = "random weights"


def measure(width: int, step: int, device: torch.device, seed: int) -> list[Row]:
    """The rows of one random network: kinds ``spectrum``, ``shrink`` and ``grow``."""
    steps = range(step, width - 1, step)
    network = RandomNetwork(width, width + steps[-1], seed, device)
    keeps, grows = [(width - each) / width for each in steps], [each / width for each in steps]
    about = {"where": WHERE, "units": width, "seed": seed}
    return [row | about for row in network.rows(network.anatomy["0"], keeps, grows, seed)]


def build(width: int, generator: torch.Generator) -> nn.Sequential:
    """Dense ``width`` – ``width`` – ``width`` with tanh, its weights as PyTorch draws them by default.

    There is no bias: that of the output layer is zero, and is there so that an operation that moves constants can.
    """
    hidden, output = (nn.utils.skip_init(nn.Linear, width, width, bias=bias) for bias in (False, True))
    for linear in (hidden, output):
        nn.init.uniform_(linear.weight, -1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)
    nn.init.zeros_(output.bias)
    return nn.Sequential(hidden, nn.Tanh(), output, nn.Tanh())


class RandomNetwork(Network):
    """A network of random weights with its own inputs, uniform from 0 to 1; ``largest``: the largest size to come."""

    def __init__(self, width: int, largest: int, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        model = build(width, generator).to(device)
        inputs = torch.rand(width, width, generator=generator).to(device)
        super().__init__(model, inputs, torch.rand(min(4 * width, MOST_SAMPLES), width, generator=generator).to(device))
        fan_in, fan_out, _ = (parameter.detach().double() for parameter in model.parameters())
        self.largest, self.by_unit = largest, (fan_in, fan_out.T)
        self.vectors = [torch.linalg.eigh(weight @ weight.T).eigenvectors for weight in self.by_unit]
        self.reduced = cache(self._reduced)

    def propose(self, layer: HiddenLayer, operation: Operation) -> Plan:
        if isinstance(operation, EigenRemove) and operation.rank:
            fan_in, fan_out = self.reduced(operation.rank)
            replaced = {"0.weight": fan_in.to(self.inputs), "2.weight": fan_out.T.to(self.inputs)}
            sources = strongest(fan_out.norm(dim=1), units_to_keep(layer, operation.keep))
            return Plan(layer, repr(operation), sources, replaced=replaced if operation.weights == "reduced" else {})
        if isinstance(operation, PCNS) and operation.keep:
            sources = self.signals.together(layer).spanning_units(units_to_keep(layer, operation.keep))
            return least_squares(Plan(layer, repr(operation), sources), self.signals)
        return super().propose(layer, operation)

    def _reduced(self, rank: float) -> list[Tensor]:
        """The weights on both sides of the layer, ``[units, …]``, reduced to a rank."""
        most = [vectors[:, -leading(rank, len(vectors)) :] for vectors in self.vectors]
        return [v @ (v.T @ weight) if rank < 1 else weight for v, weight in zip(most, self.by_unit, strict=True)]

    @torch.no_grad()
    def redraw(self, layer: HiddenLayer, generator: torch.Generator) -> None:
        """Gives each size the first units of one large draw, scaled as PyTorch's default is."""
        makes, reads = (layer.anatomy.tensor(name) for name in ("0.weight", "2.weight"))
        width, size = len(reads), len(makes)
        fan_in, fan_out = (2 * torch.rand(self.largest, width, generator=generator) - 1 for _ in range(2))
        makes.copy_(fan_in[:size] / math.sqrt(width))
        reads.copy_(fan_out[:size].T / math.sqrt(size))
