"""Stacks: blocks of equal shapes that follow each other in a container, found by looking at the network as it runs.

A container (``nn.Sequential``, ``nn.ModuleList``) whose children map a tensor to one of its shape can be made deeper or
shallower. Whether the network takes one block more is tried: a copy is put in, and all blocks must run once, in order,
each on what the one before has made. Numbers that networks keep of their layers follow (``blocks.counting``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from network_surgery.ops.anatomy.axes import Factor
from network_surgery.ops.anatomy.layers import HiddenLayer
from network_surgery.ops.anatomy.rebuild import undoing
from network_surgery.ops.anatomy.running import call, flat_tensors, plainly
from network_surgery.ops.errors import SurgeryError, first_line, pass_on_memory
from network_surgery.ops.network.blocks import CONTAINERS, Blocks, child_names, counting, numbered
from network_surgery.ops.network.blocks import MARK as ARRANGED
from network_surgery.ops.network.modules import MARK

if TYPE_CHECKING:
    from network_surgery.ops.anatomy import Anatomy


@dataclass(frozen=True, eq=False)
class Pass:
    """One call of a module: what ``entered`` and what ``left``, the first tensors of one shape, copied.

    ``given`` are the tensors that it was called with, and ``made`` is what it returned, themselves.
    """

    module: nn.Module
    entered: Tensor | None
    left: Tensor | None
    given: tuple[Tensor, ...]
    made: Tensor | None

    def reads(self, other: Pass) -> bool:
        """Whether it was called with what another module returned."""
        made = other.made
        return made is not None and any(
            x.shape == made.shape and x.untyped_storage().data_ptr() == made.untyped_storage().data_ptr()
            for x in self.given
        )


class Watch:
    """Hooks that note every call of some modules in ``passes``, for the time of a ``with`` block."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = list(dict.fromkeys(modules))
        self._waiting: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []
        self.passes: list[Pass] = []

    def __enter__(self) -> Watch:
        self._handles: list[Any] = []
        for module in self._modules:
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after, with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = tuple(x for x in flat_tensors((args, kwargs)) if x.is_floating_point() or x.is_complex())
        self._waiting.append((given, tuple(x.detach().clone() for x in given)))  # the module may write to it

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given, copies = self._waiting.pop()
        made = next(iter(flat_tensors(output)), None)
        entered = None if made is None else next((x for x in copies if x.shape == made.shape), None)
        left = None if made is None else made.detach().clone()
        self.passes.append(Pass(module, entered, left, given, made))


@dataclass(frozen=True, eq=False)
class Run:
    """Blocks that follow each other: ``number`` of the ``children`` of the container ``path``, from ``first`` on.

    ``counts`` and ``numbered`` as in ``Blocks``.
    """

    path: str
    first: int
    number: int
    children: tuple[nn.Module, ...]
    counts: tuple[str, ...] = ()
    numbered: tuple[str, ...] = ()

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        return self.children[self.first : self.first + self.number]

    def whole(self, sources: Sequence[int]) -> tuple[int, ...]:
        """The sources of all children of the container, where those of its blocks are these."""
        last = self.first + self.number
        return (*range(self.first), *(self.first + each for each in sources), *range(last, len(self.children)))


class Stack(HiddenLayer):
    """Blocks that can be copied, inserted or removed; its ``units`` are blocks. ``*`` is all that the network has."""

    def __init__(self, anatomy: Anatomy, name: str, runs: Sequence[Run]) -> None:
        super().__init__(anatomy, name, Factor(sum(run.number for run in runs)), [])
        self.runs = tuple(runs)
        self._others = {run.path: len(run.children) for run in runs}

    @property
    def units(self) -> int:
        """The number of its blocks now."""
        model = self.anatomy.model
        grown = sum(len(model.get_submodule(path)._modules) - number for path, number in self._others.items())
        return sum(run.number for run in self.runs) + grown

    def arrangement(
        self,
        sources: Sequence[Sequence[int]],
        zeroed: Mapping[tuple[int, int], tuple[str, ...]] = MappingProxyType({}),
        **how: Any,
    ) -> dict[str, Blocks]:
        """By container, the blocks of runs of these ``sources``, each of which counts from the run's first block.

        ``zeroed``: by run and block, the parameters that are zero in its copies. ``how``: as in ``Blocks``.
        """
        found: dict[str, Blocks] = {}
        for path in self._others:
            mine = [(run, number) for number, run in enumerate(self.runs) if run.path == path]
            children: list[int] = []
            silent: dict[int, tuple[str, ...]] = {}
            for run, number in mine:
                children += range(children[-1] + 1 if children else 0, run.first)
                start = len(children)
                children += [run.first + each for each in sources[number]]
                for place, each in enumerate(sources[number]):
                    if (number, each) in zeroed and each in sources[number][:place]:
                        silent[start + place] = zeroed[number, each]
                rest = run.first + run.number
            children += range(rest, self._others[path])
            run = mine[0][0]
            found[path] = Blocks(
                tuple(children), silent, counts=run.counts, numbered=run.numbered, children=run.children, **how
            )
        return found


class Stacks(Mapping[str, Stack]):
    """The stacks of a network: ``name → Stack``, looked for when they are first asked for.

    A stack has the name of its container; where that is the network itself or holds several, of its first block.
    ``pinned`` says of other containers of alike blocks why they can be made neither deeper nor shallower.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy

    def __getitem__(self, name: str) -> Stack:
        return self._found[0][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found[0])

    def __len__(self) -> int:
        return len(self._found[0])

    def __repr__(self) -> str:
        return f"Stacks({', '.join(f'{name}: {stack.units} blocks' for name, stack in self.items())})"

    @property
    def pinned(self) -> dict[str, str]:
        return self._found[1]

    def whole(self, name: str) -> Stack:
        """All stacks at once, under a name; those inside of a block of another one are left out.

        Raises:
            SurgeryError: there is none.
        """
        runs = [run for stack in self.values() for run in stack.runs]
        inside = {module for run in runs for block in run.blocks for module in block.modules()}
        runs = [run for run in runs if self._anatomy.modules[run.path] not in inside]
        if not runs:
            reasons = "".join(f"; {path}: {reason}" for path, reason in self.pinned.items())
            raise SurgeryError(f"the network has no blocks of equal shapes that follow each other{reasons}")
        return Stack(self._anatomy, name, runs)

    @cached_property
    def _found(self) -> tuple[dict[str, Stack], dict[str, str]]:
        modules = self._anatomy.modules
        containers = {
            path: list(each._modules.values())
            for path, each in modules.items()
            if isinstance(each, CONTAINERS) and not getattr(each, MARK, False)
        }
        containers = {path: held for path, held in containers.items() if any(map(_kind, held))}
        with Watch(block for held in containers.values() for block in held) as watch:
            _answer(self._anatomy)
        calls: dict[nn.Module, list[Pass]] = {}
        for each in watch.passes:
            calls.setdefault(each.module, []).append(each)
        stacks, pinned = dict[str, Stack](), dict[str, str]()
        for path, held in containers.items():
            runs = []
            known = getattr(modules[path], ARRANGED, None) is not None
            for first, number in _alike(held, calls, known):
                run = Run(path, first, number, tuple(held))
                found = self._tried(run, calls)
                if isinstance(found, Run):
                    runs.append(found)
                elif number > 1:
                    pinned[path or type(modules[path]).__name__] = found
            for run in runs:
                block = child_names(modules[path], len(held))[run.first]
                name = path if path and len(runs) == 1 else f"{path}.{block}".lstrip(".")
                stacks[name] = Stack(self._anatomy, name, [run])
        return stacks, pinned

    def _tried(self, run: Run, calls: Mapping[nn.Module, Sequence[Pass]]) -> Run | str:
        """The run with the numbers that follow; or why it is none."""
        blocks, number = run.blocks, len(run.children)
        model = self._anatomy.model
        names = [name for name, each in self._anatomy.modules.items() for block in blocks if each is block]
        if len(set(blocks)) < len(blocks):
            return "it holds one module several times"
        for name, block in zip(names, blocks, strict=False):
            times = len(calls.get(block, ()))
            if times != 1:
                return f"{name} is called {times} times in a pass" if times else f"the forward pass calls no {name}"
        for one, other in pairwise(blocks):
            if not calls[other][0].reads(calls[one][0]):
                return "its blocks do not follow each other: one is not given what the one before returns"
        try:
            child_names(self._anatomy.modules[run.path], number)
        except SurgeryError as error:
            return str(error)
        reason: str | None = None
        for counts in dict.fromkeys((counting(model, run.path, (number, run.number)), ())):
            found = replace(run, counts=counts, numbered=numbered(run.children))
            why = self._takes_one_more(found)
            if why is None:
                return found
            reason = reason or why
        return f"it takes no block more: {reason}"

    def _takes_one_more(self, run: Run) -> str | None:
        """Why the network does not run a copy of the last block; None where it does."""
        anatomy = self._anatomy
        wanted = [x.shape for x in _answer(anatomy)]
        sources = run.whole([*range(run.number), run.number - 1])
        blocks = Blocks(sources, counts=run.counts, numbered=run.numbered)
        with undoing() as undo:
            try:
                undo.extend(blocks.arrange(anatomy.model, run.path))
                held = list(anatomy.model.get_submodule(run.path)._modules.values())
                with Watch(each for each in held if each is not None) as watch:
                    shapes = [x.shape for x in _answer(anatomy)]
            except Exception as error:  # whatever the foreign forward pass raises
                pass_on_memory(error)
                return first_line(error)[:200]
        mine = held[run.first : run.first + run.number + 1]
        passes = [each for each in watch.passes if each.module in mine]
        if [each.module for each in passes] != mine:
            return f"of {len(mine)} blocks it runs {len(passes)}"
        if any(not other.reads(one) for one, other in pairwise(passes)) or passes[-1].entered is None:
            return "the copy is not given what the block before it returns"
        return None if shapes == wanted else "the network's output has another shape then"


def _answer(anatomy: Anatomy, training: bool = False) -> list[Tensor]:
    with plainly(anatomy.model, training):
        return flat_tensors(call(anatomy.model, anatomy.example_input))


def _kind(block: nn.Module | None) -> tuple[Any, ...] | None:
    """What alike blocks have in common: class and places of parameters, whatever surgery has made of what is there.
    None for what is no block, such as a layer.
    """
    if block is None or next(block.parameters(), None) is None:
        return None
    if type(block).__module__.startswith("torch.nn.modules") and not block._modules:
        return None
    places: dict[str, bool] = {}  # whether something else stands there
    for path, module in block.named_modules():
        path = path.partition(".parametrizations")[0]
        replaced = getattr(module, MARK, False)
        inside = any(path.startswith(f"{each}.") for each, over in places.items() if over)
        if not inside and (replaced or module._parameters or path in places):
            places[path] = places.get(path) or replaced
    return (type(block), *places)


def _alike(
    held: Sequence[nn.Module | None], calls: Mapping[nn.Module, Sequence[Pass]], known: bool
) -> Iterator[tuple[int, int]]:
    """First and number of children that follow each other, are alike and keep a tensor's shape.

    Of a single one only if it is surely a block: its weights are several, and all that the container holds is of its
    class; or it is ``known`` that there have been others.
    """

    def find_kind(block: nn.Module | None) -> tuple[Any, ...] | None:
        kind, passes = _kind(block), calls.get(block, ()) if block is not None else ()
        if kind is None or len(passes) != 1:
            return kind
        entered = passes[0].entered
        return None if entered is None else (*kind, tuple(entered.shape))

    place = 0
    for kind, group in groupby(held, find_kind):
        number, first = len(list(group)), place
        place += number
        block = held[first]
        if kind is None or block is None:
            continue
        several = sum(each.dim() > 1 for each in block.parameters()) > 1
        if number > 1 or known or (several and {type(each) for each in held} == {type(block)}):
            yield first, number
