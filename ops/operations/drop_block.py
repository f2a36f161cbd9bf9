"""DropBlock: the blocks of a stack go that change least what passes through them, or that the loss misses least.

Sources: Men et al. 2024, *ShortGPT: layers in large language models are more redundant than you expect* (the cosine of
what enters and what leaves a block); Veit, Wilber and Belongie 2016, *Residual networks behave like ensembles of
relatively shallow networks* (the loss without a block).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.nn.modules.conv import _ConvNd

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.anatomy.rebuild import undoing
from network_surgery.ops.anatomy.running import call, plainly
from network_surgery.ops.anatomy.stacks import Stack, Watch
from network_surgery.ops.errors import SurgeryError, explained
from network_surgery.ops.maths.condensed import relative_error
from network_surgery.ops.maths.double import double, energy
from network_surgery.ops.operation import Operation, choice, fraction, whole
from network_surgery.ops.operations.deepen import stack_of
from network_surgery.ops.operations.stretch import with_size
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.losses import mean_loss
from network_surgery.ops.signals.signals import Signals

SCORES = ("cosine", "loss", "random")
#: For each run of a stack, the numbers of the blocks that are left.
Left = list[list[int]]


@dataclass(frozen=True)
class DropBlock(Operation):
    """Removes blocks of a stack (``anatomy.stacks``), or of all stacks of the network together (``*``).

    ``keep``: the fraction that stays, at least one block of each run. ``score``: one minus the ``cosine`` of what
    enters a block and what leaves it, position by position (over the channels, where the block has a convolution, else
    over the last axis), on the signals' batches; the ``loss`` of the first batch without the block, which takes one
    forward pass for each block and needs targets; or ``random`` (``seed``). The block with the lowest goes, and what is
    left is scored anew.

    The plan's ``error`` is that of what leaves the stack, on the first batch; its ``evidence`` has the lowest scores
    together (``importance``) and, where the signals have targets, the measured ``loss_change``. Optimizer state of what
    goes is dropped. The blocks that are left are numbered anew; in the plan, units are blocks.
    """

    keep: float = 0.5
    score: str = "cosine"
    seed: int = 0
    needs_signals: ClassVar[bool] = True
    whole_network: ClassVar[bool] = True
    makes_layers: ClassVar[bool] = True
    of_blocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fraction(self, "keep", self.keep)
        choice(self, "score", self.score, SCORES)
        whole(self, "seed", self.seed)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        if signals is None:
            raise SurgeryError(f"{self!r} needs signals: operate(layer, operation, optimizers, Signals(model, inputs))")
        stack = stack_of(self, layer)
        signals.check_network(stack)
        wanted = max(len(stack.runs), round(self.keep * stack.units))
        left: Left = [list(range(run.number)) for run in stack.runs]
        importance = 0.0
        random = torch.Generator().manual_seed(self.seed)
        while sum(map(len, left)) > wanted:
            scores = self._scores(stack, left, signals, random)
            least = min(scores, key=lambda place: scores[place])
            importance += scores[least]
            left[least[0]].remove(least[1])
        starts = [sum(run.number for run in stack.runs[:place]) for place in range(len(left))]
        units = tuple(start + each for start, mine in zip(starts, left, strict=True) for each in mine)
        error, change = self._damage(stack, left, signals)
        evidence = {"importance": importance} | ({} if change is None else {"loss_change": change})
        return with_size(
            Plan(stack, repr(self), units, modules=stack.arrangement(left), error=error, evidence=evidence),
            saving=len(units) < stack.units,
        )  # fmt: skip

    def _scores(
        self, stack: Stack, left: Left, signals: Signals, random: torch.Generator
    ) -> dict[tuple[int, int], float]:
        """By run and block, how much would be missed without it; those alone in their run are left out."""
        places = [(run, block) for run, mine in enumerate(left) for block in mine if len(mine) > 1]
        if self.score == "random":
            return dict(zip(places, torch.rand(len(places), generator=random).tolist(), strict=True))
        if self.score == "cosine":
            found = _measure_turn(stack, left, signals)
            return {place: found[place] for place in places}

        def without(run: int, block: int) -> Left:
            return [[each for each in mine if (at, each) != (run, block)] for at, mine in enumerate(left)]

        now = _loss(stack, left, signals)
        return {place: _loss(stack, without(*place), signals) - now for place in places}

    def _damage(self, stack: Stack, left: Left, signals: Signals) -> tuple[float, float | None]:
        """The relative error of what leaves the stack on the first batch, and the change of the loss, if known."""
        whole: Left = [list(range(run.number)) for run in stack.runs]
        before, after = (_leaving(stack, each, signals) for each in (whole, left))
        missed = sum(float(energy(one - other).sum()) for one, other in zip(before, after, strict=True))
        spread = sum(float(energy(one - one.mean(dim=0)).sum()) for one in before)
        known = signals.targets is not None or signals.loss_function is not None
        change = _loss(stack, left, signals) - _loss(stack, whole, signals) if known else None
        return relative_error(missed, spread), change


class _Shortened:
    """The network with these blocks alone, for the time of a ``with`` block; ``blocks`` by run."""

    def __init__(self, stack: Stack, left: Left) -> None:
        self._stack, self._left = stack, left
        self.blocks = [[run.blocks[each] for each in mine] for run, mine in zip(stack.runs, left, strict=True)]

    def __enter__(self) -> _Shortened:
        self._undoing = undoing()
        undo = self._undoing.__enter__()
        for path, blocks in self._stack.arrangement(self._left).items():
            undo.extend(blocks.arrange(self._stack.anatomy.model, path))
        return self

    def __exit__(self, *error: Any) -> None:
        self._undoing.__exit__(*error)

    def run(self, inputs: Any, watched: Sequence[nn.Module] = ()) -> tuple[Any, Watch]:
        """What the network returns, and what passed these modules."""
        model = self._stack.anatomy.model
        without = f"the network does not run without blocks of {self._stack.name}"
        with explained(without), plainly(model), Watch(watched) as watch:
            return call(model, inputs), watch


def _measure_turn(stack: Stack, left: Left, signals: Signals) -> dict[tuple[int, int], float]:
    """By run and block, one minus the mean cosine of what enters and what leaves it."""
    with _Shortened(stack, left) as network:
        places = {
            block: (run, left[run][at]) for run, mine in enumerate(network.blocks) for at, block in enumerate(mine)
        }
        found: dict[tuple[int, int], list[Tensor]] = {place: [] for place in places.values()}
        for inputs in signals.shown:
            for each in network.run(inputs, list(places))[1].passes:
                if each.entered is None or each.left is None:
                    raise SurgeryError(f"a block of {stack.name} returns no tensor of the shape that it is given")
                convolves = any(isinstance(module, _ConvNd) for module in each.module.modules())
                axis = 1 if convolves else -1
                cosines = cosine_similarity(double(each.entered), double(each.left), dim=axis)
                found[places[each.module]].append(cosines.flatten())
    return {place: 1 - float(torch.cat(cosines).mean()) for place, cosines in found.items()}


def _leaving(stack: Stack, left: Left, signals: Signals) -> list[Tensor]:
    """What leaves each run, of the first batch."""
    with _Shortened(stack, left) as network:
        passes = network.run(signals.inputs, [mine[-1] for mine in network.blocks])[1].passes
    return [double(each.left) for each in passes if each.left is not None]


def _loss(stack: Stack, left: Left, signals: Signals) -> float:
    with _Shortened(stack, left) as network:
        outputs = network.run(signals.inputs)[0]
    return float(mean_loss(outputs, signals.classes, signals.loss_function))
