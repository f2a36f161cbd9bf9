"""Deepen: blocks of a stack are copied, and the copies compute what their blocks do, or nothing as yet.

Sources: Gong et al. 2019, *Efficient training of BERT by progressively stacking*, and Du et al. 2024, *Stacking your
transformers* (``G_stack``: the whole stack once more on top of itself); Kim et al. 2023, *SOLAR 10.7B* (two overlapping
copies, where the stack does not double); Wu et al. 2024, *LLaMA Pro* (copies between the blocks whose last projections
are zero); Chen, Goodfellow and Shlens 2016, *Net2Net* (new layers that are the identity).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from network_surgery.ops.anatomy import WHOLE, Anatomy, HiddenLayer
from network_surgery.ops.anatomy.lively import vary
from network_surgery.ops.anatomy.rebuild import undoing
from network_surgery.ops.anatomy.running import call, deviation, plainly
from network_surgery.ops.anatomy.stacks import Run, Stack, Watch
from network_surgery.ops.errors import SurgeryError, Unsuitable, first_line, pass_on_memory
from network_surgery.ops.network.blocks import Blocks
from network_surgery.ops.operation import Operation, choice
from network_surgery.ops.operations.stretch import with_size
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals

WHERE = ("stack", "between")
INIT = ("copy", "identity")
STATE = ("copy", "fresh")
#: The largest relative difference of what enters and what leaves a block that rounding explains.
ROUNDING = 1e-5
#: Deviation of the noise that shows which parameters matter, also where a network begins with zeros.
NOISE = 0.1


@dataclass(frozen=True)
class Deepen(Operation):
    """Makes a stack deeper (``anatomy.stacks``), or every one of the network (``*``): copies of its blocks come.

    ``grow``: how many, as a fraction of the stack's blocks; at least one. ``where``: ``stack`` repeats the whole
    sequence on top of itself (of fewer than double, two overlapping parts of it: 0 1 2 1 2 3), ``between`` puts copies
    after the blocks that they copy, evenly spread (0 0 1 2 2 3). ``init``: ``copy`` as they are, or ``identity``: the
    last projection of each branch is zero in copies, so the network computes what it did, and the plan's ``error`` is
    0. Which those are is tried: the fewest parameters without which a block returns what it is given. Where there are
    none (a norm after the sum), or if the block does otherwise in training mode, ``identity`` is refused.

    ``state``: copies begin with the optimizer state of what they copy, or ``fresh``; what is zero always begins anew.
    Blocks are numbered anew, so later layers have other names; in the plan, units are blocks.
    """

    grow: float = 1.0
    where: str = "stack"
    init: str = "copy"
    state: str = "copy"
    whole_network: ClassVar[bool] = True
    makes_layers: ClassVar[bool] = True
    of_blocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number = isinstance(self.grow, (int, float)) and not isinstance(self.grow, bool)
        if not (number and 0 < self.grow < math.inf):
            raise SurgeryError(f"Deepen: grow is {self.grow!r}, but it must be a number above 0")
        choice(self, "where", self.where, WHERE)
        choice(self, "init", self.init, INIT)
        choice(self, "state", self.state, STATE)

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        stack = stack_of(self, layer)
        sources = [order(run.number, max(1, round(self.grow * run.number)), self.where) for run in stack.runs]
        exact, zeroed = self.init == "identity", dict[tuple[int, int], tuple[str, ...]]()
        if exact:
            for number, run in enumerate(stack.runs):
                zeroed |= {(number, each): names for each, names in self._silent_parts(stack, run).items()}
        changes = stack.arrangement(
            sources, zeroed, carry=self.state == "copy", effective=(lambda modules: {}) if exact else None
        )
        starts = [sum(run.number for run in stack.runs[:place]) for place in range(len(stack.runs))]
        units = [
            -1 if exact and each in mine[:place] else start + each
            for start, mine in zip(starts, sources, strict=True) for place, each in enumerate(mine)
        ]  # fmt: skip
        if exact:
            self._check_silence(stack, changes)
        plan = Plan(stack, repr(self), tuple(units), modules=changes, error=0.0 if exact else None)
        return with_size(plan, saving=False)

    def _silent_parts(self, stack: Stack, run: Run) -> dict[int, tuple[str, ...]]:
        """By block of a run, the parameters that are zero in its copies."""
        found: dict[tuple[str, ...], tuple[str, ...]] = {}
        names = [tuple(name for name, _ in block.named_parameters()) for block in run.blocks]
        for each, known in enumerate(names):  # surgery may have made other parts of some
            if known not in found:
                found[known] = self._silent(stack, run, each)
        return {each: found[known] for each, known in enumerate(names)}

    def _silent(self, stack: Stack, run: Run, which: int) -> tuple[str, ...]:
        """The fewest parameters of a block, module by module, without which it returns what it is given."""
        anatomy = stack.anatomy
        sources = sorted([*range(run.number), which])
        blocks = Blocks(run.whole(sources), counts=run.counts, numbered=run.numbered)
        with undoing() as undo, torch.no_grad():
            undo.extend(blocks.arrange(anatomy.model, run.path))
            block = _children(anatomy, run.path)[run.first + which + 1]
            shared = {id(each) for each in run.blocks[which].parameters()}
            random = torch.Generator().manual_seed(0)
            parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
            for path, module in block.named_modules():
                own = {f"{path}.{n}".lstrip("."): p for n, p in module.named_parameters(recurse=False)}
                own = {name: p for name, p in own.items() if id(p) not in shared and p.is_floating_point()}
                if own:
                    parts.append((own, {name: p + NOISE * _noise(p, random) for name, p in own.items()}))
            silenced = list(range(len(parts)))

            def passes(zero: Sequence[int], training: bool = False) -> bool:
                for place, (own, values) in enumerate(parts):
                    for name, parameter in own.items():
                        parameter.data.copy_(values[name]) if place not in zero else parameter.data.zero_()
                return _returns_what_it_is_given(anatomy, [block], training)

            if not passes(silenced):
                raise SurgeryError(
                    f"{self!r} on {stack.name}: a block of {run.path or 'the network'} does not return what it is "
                    "given where all of its weights are zero, as where a norm or an activation follows the sum; take "
                    "init 'copy'"
                )
            for place in range(len(parts)):
                if passes([each for each in silenced if each != place]):
                    silenced.remove(place)
            return tuple(name for place in silenced for name in parts[place][0])

    def _check_silence(self, stack: Stack, changes: dict[str, Blocks]) -> None:
        """Raises SurgeryError unless all copies return what they are given, in both modes."""
        anatomy = stack.anatomy
        with undoing() as undo:
            for path, blocks in changes.items():
                undo.extend(blocks.arrange(anatomy.model, path))
            copies = [_children(anatomy, path)[place] for path, each in changes.items() for place in each.copies]
            for training in (False, True):
                if not _returns_what_it_is_given(anatomy, copies, training):
                    mode = "training" if training else "evaluation"
                    raise SurgeryError(
                        f"{self!r} on {stack.name}: in {mode} mode the new blocks do not return what they are given, "
                        "though their last projections are zero; take init 'copy'"
                    )


def stack_of(operation: Operation, layer: HiddenLayer) -> Stack:
    """The stack that an operation is to work on; of the whole network all of them.

    Raises:
        SurgeryError: it is a layer of units, or there is no stack.
    """
    if isinstance(layer, Stack):
        return layer
    stacks = layer.anatomy.stacks
    if layer.name == WHOLE:
        return stacks.whole(WHOLE)
    known = f"the network has {', '.join(stacks)}" if stacks else "the network has none"
    raise Unsuitable(f"{operation!r} on {layer.name}: that is a layer of units, not a stack of blocks; {known}")


def order(blocks: int, new: int, where: str) -> list[int]:
    """Which block each of ``blocks + new`` continues.

    >>> order(3, 3, "stack"), order(4, 2, "stack"), order(2, 3, "stack")
    ([0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 3], [0, 1, 0, 1, 1])
    >>> order(3, 3, "between"), order(4, 2, "between")
    ([0, 0, 1, 1, 2, 2], [0, 0, 1, 2, 2, 3])
    """
    if where == "between":
        return [place * blocks // (blocks + new) for place in range(blocks + new)]
    times, rest = divmod(new, blocks)
    below = blocks - (blocks - rest) // 2  # the two parts of the last repetition overlap in the middle
    return [*range(blocks)] * times + ([*range(below), *range(below - rest, blocks)] if rest else [*range(blocks)])


def _returns_what_it_is_given(anatomy: Anatomy, blocks: Sequence[nn.Module], training: bool) -> bool:
    """Whether blocks do in a pass; where the network does not run in training mode, that is not asked."""
    random = torch.Generator().manual_seed(0)
    shown = _pytree.tree_map(
        lambda x: vary(x, lambda like: _noise(like, random)) if isinstance(x, Tensor) else x, anatomy.example_input
    )
    problem: Exception | None = None
    for example in (shown, anatomy.example_input):
        try:
            with plainly(anatomy.model, training), Watch(blocks) as watch:
                call(anatomy.model, example)
        except Exception as error:  # whatever the foreign forward pass raises
            pass_on_memory(error)
            problem = error
            continue
        passes = [(each.entered, each.left) for each in watch.passes]
        return len(passes) == len(blocks) and all(
            one is not None and other is not None and deviation([one], [other]) <= ROUNDING for one, other in passes
        )
    if training:
        return True
    raise SurgeryError(f"the network does not run on the example input: {first_line(problem or RuntimeError())}")


def _children(anatomy: Anatomy, path: str) -> list[nn.Module]:
    return list(anatomy.model.get_submodule(path)._modules.values())  # type: ignore[arg-type]


def _noise(like: Tensor, random: torch.Generator) -> Tensor:
    dtype = torch.complex64 if like.is_complex() else torch.float32
    return torch.randn(like.shape, generator=random, dtype=dtype).to(like)
