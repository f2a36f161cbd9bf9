"""A network whose layers are shrunk and grown, each alone and by every method: every operation is done, and undone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from network_surgery import ops
from network_surgery.ops import HiddenLayer, Plan
from network_surgery.ops.anatomy import evaluating
from network_surgery.ops.errors import first_line
from network_surgery.study.bench.rows import Row
from network_surgery.study.experiments.isolation.curves import RANKS, REPLACED, growths, leading, removals

#: Inputs that go through the network together.
TOGETHER = 1024


class Network:
    """A network in evaluation mode, and its outputs ``before`` any operation, ``[inputs, outputs]``.

    Operations that look at activations see the inputs ``shown``. ``labels``: the class of each of the ``inputs``, where
    they have one.
    """

    def __init__(self, model: nn.Module, inputs: Tensor, shown: Tensor, labels: Tensor | None = None) -> None:
        self.model, self.inputs, self.labels = model, inputs, labels
        self.anatomy, self.signals = ops.Anatomy(model, shown[:2]), ops.Signals(model, shown)
        self.before = self.outputs()
        self.norm = float(vector_norm(self.before, dtype=torch.float64)) ** 2

    def rows(self, layer: HiddenLayer, keeps: Sequence[float], grows: Sequence[float], seed: int) -> Iterator[Row]:
        """Rows of kinds ``spectrum`` (of the layer's fan-out), ``shrink`` and ``grow``: one for each method and size,
        of the fractions that stay and that are added; or ``missing`` for a method that the layer refuses.
        """
        yield from spectrum(layer)
        for kind, make, plain, fractions in (
            ("shrink", removals, ops.RandomRemove, keeps), ("grow", growths, ops.ZeroExpand, grows),
        ):  # fmt: skip
            sizes = {len(plain(each).propose(layer).sources): each for each in fractions}
            different = [each for size, each in sizes.items() if size != layer.units]
            for method in make(fractions[0], seed):
                try:
                    points = [self.tried(self.propose(layer, make(each, seed)[method])) for each in different]
                    yield from ({"kind": kind, "method": method} | each for each in points)
                except ops.SurgeryError as error:
                    yield {"kind": "missing", "method": method, "why": first_line(error)}
            for each in different:
                yield {"kind": kind, "method": REPLACED} | self.tried(plain(each).propose(layer), seed)

    def propose(self, layer: HiddenLayer, operation: ops.Operation) -> Plan:
        """What the operation would do to the layer."""
        return operation.propose(layer, self.signals if operation.needs_signals else None)

    def tried(self, plan: Plan, seed: int | None = None) -> Row:
        """What a plan does to the output: the squared distance, also over the squared norm before, and the accuracy.

        ``seed``: the weights on both sides of the layer are then drawn anew.
        """
        with ops.trial_surgery(plan):
            if seed is not None:
                self.redraw(plan.layer, torch.Generator().manual_seed(seed + 1_000_003))
            after = self.outputs()
        distance = float(vector_norm(after - self.before, dtype=torch.float64)) ** 2
        if not math.isfinite(distance):
            raise ops.SurgeryError(f"{plan.operation} on {plan.layer.name}: the output is not finite")
        measured = {"size": plan.units_after, "distance": distance, "relative": distance / max(self.norm, 1e-300)}
        return measured | self.accuracy(after)

    @torch.no_grad()
    def redraw(self, layer: HiddenLayer, generator: torch.Generator) -> None:
        """Gives the weights that make and read a layer PyTorch's default values for their present shape."""
        for name in dict.fromkeys(place.tensor for place in (*layer.makers, *layer.readers)):
            weight = layer.anatomy.tensor(name)
            bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
            weight.copy_((2 * torch.rand(weight.shape, generator=generator) - 1) * bound)

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """``[inputs, outputs]``, in evaluation mode."""
        with evaluating(self.model):
            return torch.cat([self.model(part) for part in self.inputs.split(TOGETHER)])

    def accuracy(self, outputs: Tensor) -> Row:
        """The fraction of the inputs that are classified right, where there are labels."""
        right = None if self.labels is None else outputs.argmax(dim=1).eq(self.labels).double().mean()
        return {} if right is None else {"accuracy": float(right)}


def spectrum(layer: HiddenLayer) -> Iterator[Row]:
    """The share of the fan-out's squared norm that its leading singular vectors hold, at each of ``RANKS``."""
    squares = torch.linalg.svdvals(layer.outgoing_rows()).square()
    for rank, name in RANKS.items():
        share = squares[: leading(rank, len(squares))].sum() / squares.sum()
        yield {"kind": "spectrum", "rank": name, "share": float(share)}
