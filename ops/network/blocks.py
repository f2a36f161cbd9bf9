"""Blocks of a container: some are copied, some go, in place.

A container (``nn.Sequential``, ``nn.ModuleList``) stays the object that it is, and so does each block that stays. So
hooks, references and optimizers hold on to what they held. A copy goes on sharing what its block shares with the rest
of the network: tied parameters, a configuration, functions, hooks. A container that surgery has rearranged carries a
mark, so that files can say which blocks of the factory's network its own are made of.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from network_surgery.ops.errors import SurgeryError, explained
from network_surgery.ops.network.optimizer_groups import rearrange

CONTAINERS = (nn.Sequential, nn.ModuleList)
KIND = "Blocks"
#: The attribute that marks a container: what ``Blocks.to_data`` says, of the container that the factory makes.
MARK = "_surgery_blocks"
#: Attributes that hold the number of layers of a network, where their value is that number.
COUNTS = re.compile(r"(n|num|number|nb)?_?(of_)?(hidden_|encoder_|decoder_)?(layers?|blocks?|depth)")
#: Attributes that hold a block's place, where they grow by one from block to block.
NUMBERED = re.compile(r"(layer|block|depth)?_?(idx|index|id|no|num|number)")
#: Objects that hold a network's settings, by the names that networks keep them under.
SETTINGS = re.compile(r"_?(config|cfg|args|hparams|params|settings|options)")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

Undo = list[Callable[[], object]]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks that a container holds from now on.

    ``sources``: for each of its children the number of the old one that it continues; the first one to do so is the old
    one itself, the others are copies. ``zeroed``: of a copy, by its number, the parameters that are zero, by their
    names in the block. ``carry``: copies begin with the optimizer state of what they copy (not what is zeroed).
    ``counts``: attributes of the network that hold the number of blocks, and ``numbered``, those of a block that hold
    its number. ``effective`` as in ``Change``. ``children``: what the container held when that was planned.
    """

    sources: tuple[int, ...]
    zeroed: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    carry: bool = False
    counts: tuple[str, ...] = ()
    numbered: tuple[str, ...] = ()
    effective: Callable[[Mapping[str, nn.Module]], Mapping[str, Tensor]] | None = None
    children: tuple[nn.Module, ...] = ()

    @property
    def copies(self) -> list[int]:
        """The numbers of the children that are copies."""
        return [place for place, source in enumerate(self.sources) if source in self.sources[:place]]

    def to_data(self) -> dict[str, Any]:
        return {
            "kind": KIND, "sources": list(self.sources), "counts": list(self.counts), "numbered": list(self.numbered),
        }  # fmt: skip

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Blocks:
        """The inverse of ``to_data``. Raises SurgeryError where it is something else."""
        try:
            return cls(tuple(data["sources"]), counts=tuple(data["counts"]), numbered=tuple(data["numbered"]))
        except (KeyError, TypeError) as error:
            raise SurgeryError(f"how the architecture arranges blocks is not known: {data!r:.80}") from error

    def check(self, model: nn.Module, path: str, average: bool = False) -> None:
        """Raises SurgeryError unless the container is there, as it was when this was planned, or as an ``average`` of
        it.
        """
        held = _container(model, path)
        if average and len(held) != len(self.children):
            raise SurgeryError(
                f"an average of the network must have its shapes, but {path} has {len(held)} blocks in the average and "
                f"{len(self.children)} in the network; give every average to every operation"
            )
        if not self.sources or not all(0 <= source < len(held) for source in self.sources):
            raise SurgeryError(f"{path or 'the network'} has {len(held)} blocks, not those that {self.sources} name")
        if self.children and not average and held != list(self.children):
            raise SurgeryError(f"{path or 'the network'} has changed since the plan was made: propose again")
        if not average:
            return
        if any(one is other for one, other in zip(held, self.children, strict=False)):
            raise SurgeryError(f"an average must be a copy of the network, but {path} is the network's own")
        shapes = [[(n, t.shape) for n, t in each.state_dict().items()] for each in (*held, *self.children)]
        if shapes[: len(held)] != shapes[len(held) :]:
            raise SurgeryError(
                f"an average of the network must have its shapes, but the blocks of {path} have others; give every "
                "average to every operation"
            )

    def arrange(self, model: nn.Module, path: str, optimizers: tuple[Optimizer, ...] = ()) -> Undo:
        """Gives a container of this network these blocks, and optimizers their parameters; returns what undoes it.

        Raises:
            SurgeryError: a block cannot be copied, or an optimizer cannot follow; nothing has changed.
        """
        container, held = model.get_submodule(path), _container(model, path)
        names = child_names(container, len(self.sources))
        before, old = dict(container._modules), list[Tensor](container.parameters())
        children, origins = list[nn.Module](), dict[int, Tensor]()
        carried = set[int]()
        for place, source in enumerate(self.sources):
            child = held[source]
            if place in self.copies:
                child = copy_block(held[source], model)
                own = dict(child.named_parameters())
                for name, parameter in held[source].named_parameters():
                    if own[name] is not parameter:
                        origins[id(own[name])] = parameter
                        carried |= {id(own[name])} if self.carry and name not in self.zeroed.get(place, ()) else set()
                for name in self.zeroed.get(place, ()):
                    own[name].data.zero_()
            children.append(child)
        undo: Undo = [partial(_refill, container._modules, before)]
        firsts = {name: _first_number(held, name) for name in self.numbered}
        _refill(container._modules, dict(zip(names, children, strict=True)))
        try:
            for name, first in firsts.items():
                for place, child in enumerate(children):
                    if first is not None and (found := _number(child, name)) is not None:
                        undo.append(_set(*found, first + place))
            for name in self.counts:
                holder, attribute = _holder(model, name)
                undo.append(_set(holder, attribute, getattr(holder, attribute) + len(children) - len(held)))
            undo.append(partial(_mark, container, getattr(container, MARK, None)))
            known = getattr(container, MARK, None) or self.to_data() | {"sources": list(range(len(held)))}
            _mark(container, known | {"sources": [known["sources"][source] for source in self.sources]})
            parts = [(f"{path}.{name}".lstrip("."), each) for name, each in container.named_parameters()]
            called = {id(each): name for name, each in parts}
            undo.extend(rearrange(optimizers, old, [each for _, each in parts], origins, carried, called))
        except BaseException:
            for step in reversed(undo):
                step()
            raise
        return undo


def arrangements(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Container → which blocks of the factory's it holds, of those that surgery has rearranged."""
    return {path: getattr(each, MARK) for path, each in model.named_modules() if getattr(each, MARK, None)}


def copies_of(model: nn.Module) -> list[str]:
    """The names of the blocks that are not in the network as the factory makes it, but copies of others."""
    found: list[str] = []
    for path, data in arrangements(model).items():
        names = list(model.get_submodule(path)._modules)
        found += [f"{path}.{names[place]}".lstrip(".") for place in Blocks.from_data(data).copies]
    return found


def copy_block(block: nn.Module, model: nn.Module) -> nn.Module:
    """A copy of a block of a network; what the block shares with the rest of it, it goes on sharing.

    Raises:
        SurgeryError: something in the block cannot be copied.
    """
    inside, memo = set(block.modules()), dict[int, Any]()
    for module in model.modules():
        if module not in inside:
            values = (*vars(module).values(), *module._parameters.values(), *module._buffers.values())
            memo |= {id(value): value for value in (module, *values)}
    for module in inside:
        for table in HOOKS:
            for hook in vars(module)[table].values():
                if getattr(hook, "__self__", None) not in inside:
                    memo[id(hook)] = hook
    with explained("a block cannot be copied"), torch.inference_mode(False):
        return copy.deepcopy(block, memo)


def child_names(container: nn.Module, number: int) -> list[str]:
    """The names of this number of children, as the container numbers its own.

    Raises:
        SurgeryError: it does not number them.
    """
    known = [re.fullmatch(r"(.*?)(\d+)", name) for name in container._modules]
    parts = [(each[1], int(each[2])) for each in known if each is not None]
    if not parts or parts != [(parts[0][0], parts[0][1] + place) for place in range(len(known))]:
        raise SurgeryError(f"its children are not numbered, but called {', '.join(container._modules)}"[:200])
    prefix, first = parts[0]
    return [f"{prefix}{first + place}" for place in range(number)]


def counting(model: nn.Module, path: str, numbers: Sequence[int]) -> tuple[str, ...]:
    """The attributes of a network, and of the settings that it keeps, that hold the number of blocks of a container.

    ``numbers``: what that may be. Of the modules around the container alone. ``config.num_hidden_layers``, say.
    """
    found, seen = list[str](), set[tuple[int, str]]()
    parts = path.split(".") if path else []
    for depth in range(len(parts), -1, -1):
        around = ".".join(parts[:depth])
        module = model.get_submodule(around)
        holders = {around: module} | {
            f"{around}.{name}".lstrip("."): value
            for name, value in vars(module).items()
            if SETTINGS.fullmatch(name) and hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type))
        }
        for name, holder in holders.items():
            for attribute, value in vars(holder).items():
                known = COUNTS.fullmatch(attribute) and type(value) is int and value in numbers
                if known and (id(holder), attribute) not in seen:
                    seen.add((id(holder), attribute))
                    found.append(f"{name}.{attribute}".lstrip("."))
    return tuple(found)


def numbered(children: Sequence[nn.Module]) -> tuple[str, ...]:
    """The attributes of blocks that hold their number: ``self_attn.layer_idx``, say."""
    names = [
        f"{path}.{attribute}".lstrip(".") for path, module in children[-1].named_modules()
        for attribute, value in vars(module).items() if NUMBERED.fullmatch(attribute) and type(value) is int
    ]  # fmt: skip
    found = []
    for name in names:
        values = [(place, _value(child, name)) for place, child in enumerate(children)]
        offsets = {value - place for place, value in values if value is not None}
        if len(offsets) == 1 and (len(children) > 1 or offsets <= {0, 1}):
            found.append(name)
    return tuple(found)


def _container(model: nn.Module, path: str) -> list[nn.Module]:
    """The children of a container. Raises SurgeryError where there is none of this name."""
    try:
        found = model.get_submodule(path)
    except AttributeError:
        found = None
    if not isinstance(found, CONTAINERS):
        raise SurgeryError(f"the network has no nn.Sequential or nn.ModuleList called {path!r}")
    return list(found._modules.values())  # type: ignore[arg-type]


def _refill(table: dict[str, Any], content: Mapping[str, Any]) -> None:
    content = dict(content)
    table.clear()
    table.update(content)


def _mark(container: nn.Module, data: Mapping[str, Any] | None) -> None:
    if data is None:
        vars(container).pop(MARK, None)
    else:
        setattr(container, MARK, dict(data))


def _set(holder: Any, attribute: str, value: int) -> Callable[[], object]:
    before = getattr(holder, attribute)
    setattr(holder, attribute, value)
    return partial(setattr, holder, attribute, before)


def _holder(model: nn.Module, name: str) -> tuple[Any, str]:
    """The object in a network that has an attribute. Raises SurgeryError where there is none."""
    *path, attribute = name.split(".")
    holder: Any = model
    for part in path:
        holder = getattr(holder, part, None)
    if type(getattr(holder, attribute, None)) is not int:
        raise SurgeryError(f"the network has no {name} that counts its blocks")
    return holder, attribute


def _number(block: nn.Module, name: str) -> tuple[nn.Module, str] | None:
    path, _, attribute = name.rpartition(".")
    module = dict(block.named_modules()).get(path)
    return None if module is None or type(vars(module).get(attribute)) is not int else (module, attribute)


def _value(block: nn.Module, name: str) -> int | None:
    found = _number(block, name)
    return None if found is None else getattr(*found)


def _first_number(children: Sequence[nn.Module], name: str) -> int | None:
    """What a child in the first place would be numbered."""
    values = ((place, _value(child, name)) for place, child in enumerate(children))
    return next((value - place for place, value in values if value is not None), None)
