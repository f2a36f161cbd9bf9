"""Anatomy: every hidden layer of any network, found by running it once.

What each axis of each tensor stands for is found by watching a forward pass (``passes``, ``trace``, ``rules``,
``products``, ``axes``); the sets of units on them are the layers (``layers``). What the trace proposes is then tried,
in place and undone (``rehearsal``, ``rebuild``), before it is offered.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from network_surgery.ops.anatomy import axes, computed
from network_surgery.ops.anatomy.axes import Axis, Factor
from network_surgery.ops.anatomy.calls import FAN_IN, FAN_OUT
from network_surgery.ops.anatomy.layers import HiddenLayer, Place
from network_surgery.ops.anatomy.lively import lively
from network_surgery.ops.anatomy.passes import follow, follow_otherwise, follow_training
from network_surgery.ops.anatomy.rebuild import Undo
from network_surgery.ops.anatomy.rehearsal import Chaotic, faults
from network_surgery.ops.anatomy.running import call, evaluating, flat_tensors, own_modes, plainly
from network_surgery.ops.anatomy.stacks import Stack, Stacks
from network_surgery.ops.anatomy.trace import Trace
from network_surgery.ops.errors import SurgeryError, explained
from network_surgery.ops.maths.double import numeric
from network_surgery.ops.network.attention import FreeAttention
from network_surgery.ops.network.checks import check_real, find_scripted, usable
from network_surgery.ops.network.expressed import (
    Compressed,
    Expressed,
    expanded,
    expression_of,
    find_stored,
    holder,
    raw,
    tensors_of,
)
from network_surgery.ops.network.masks import Mask, count_hidden, parameters_of
from network_surgery.ops.network.modules import whole_name
from network_surgery.ops.network.wrappers import inner

__all__ = ["Anatomy", "HiddenLayer", "Place", "Stack", "call", "count", "evaluating"]


#: The name of the whole network, as a layer of all its units.
WHOLE = "*"


@dataclass(frozen=True, eq=False)
class Number:
    """A size that a module keeps as an attribute (``position``: in a tuple), and the axis whose size it is.

    ``sure``: the operator itself is given the number; otherwise it only happens to be equal. ``shared``: another axis
    is as long.
    """

    module: str
    attribute: str
    position: int | None
    axis: Axis
    sure: bool
    shared: bool = False

    def set(self, modules: Mapping[str, nn.Module]) -> Undo:
        """Writes the size down in a network, given by its modules; returns what undoes it."""
        module = modules[self.module]
        old = getattr(module, self.attribute)
        new = axes.size(self.axis)
        if self.position is not None:
            new = type(old)(new if at == self.position else each for at, each in enumerate(old))
        setattr(module, self.attribute, new)
        return [partial(setattr, module, self.attribute, old)]


class Anatomy(Mapping[str, HiddenLayer]):
    """The hidden layers of ``model``: an ordered mapping ``name → HiddenLayer``.

    ``example_input`` is what the model takes: a tensor, a tuple of arguments or a dict of keyword arguments; a batch of
    two small samples is enough. The model is run in evaluation mode without gradients and left in the mode it was in.
    A layer is named after the module that makes its units. Where the positions of one axis belong to several layers,
    the name says which: ``attention.value`` (the width of each head), ``attention.value:heads``, ``conv2:groups``.
    The name ``*`` stands for the whole network, for operations that work on all of its weights at once.
    ``pinned`` says of every other place where units are made why they cannot be operated on. Containers of blocks that
    can be copied or removed are ``stacks``, and ``anatomy["blocks"]`` is one of these, if no layer has that name.

    All of this is true of the paths that the example and its negative take: of what a network does with other inputs
    only (control flow that depends on the data), nothing is known.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> Anatomy(net, torch.zeros(2, 4))
    Anatomy(0: 8 units)

    Raises:
        SurgeryError: the example input holds no tensor, or the network does not run on it; on look-up, no such layer.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        if not isinstance(model, nn.Module):
            raise SurgeryError(f"an anatomy is taken of a torch.nn.Module, not of a {type(model).__name__}")
        self.model = model = inner(model)
        tensors = dict(tensors_of(model))
        check_real(model, example_input)
        self.example_input = example_input = usable(example_input)
        self.modules = dict(model.named_modules())
        self.stacks = Stacks(self)
        self._owners = _owners(self.modules, tensors)
        self._batch = _batch(example_input)
        self._parameters = {name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
        with expanded(model):
            try:
                self._discover(dict(tensors_of(model)))
            except Chaotic:
                self._discover(dict(tensors_of(model)), calm=True)
        self._explain()

    def retake(self) -> Undo:
        """Takes the anatomy anew, in place, where modules have been replaced; returns what undoes it."""
        before = dict(vars(self))

        def restore() -> None:
            vars(self).clear()
            vars(self).update(before)

        try:
            self.__init__(self.model, self.example_input)  # type: ignore[misc]
        except BaseException:
            restore()
            raise
        return [restore]

    def _discover(self, tensors: Mapping[str, Tensor], calm: bool = False) -> None:
        """Finds the layers. Raises Chaotic where rounding hides what edits do, unless the network is ``calm``."""
        self.pinned: dict[str, str] = {}
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            lively(self.modules, tensors, self.example_input, calm) as shown,
        ):
            trace, output, shown = follow(self.model, self._batch, (shown, self.example_input))
            entered, draws = trace.entered, trace.draws
            calls, products = dict(trace.calls), list(trace.products)  # of one pass
            if trace.steered:  # the network chooses its path by its data: see another one
                follow_otherwise(trace, shown)
            training: list[Tensor] | None = None
            if trace.missed or trace.watch.asks_mode or own_modes(self.modules.values()):
                training = follow_training(trace, shown, output)  # some have branches that only training takes
            trace.recall = None
            for name, reason in find_scripted(self.model).items():
                trace.freeze_parameter(name, reason)
            self.chains, self.sinks, self.calls = trace.chains, trace.account.result(), trace.calls | calls
            self.products = [axes.product(*each) for each in products]
            self.expressions = {name: tuple(map(axes.canonical, mine)) for name, mine in trace.axes.items()}
            self._layers = self._gather(trace)
            self.written = self._numbers(trace)
            self.draws = draws if any(axes.factors(axis) for each in draws for axis in each) else []
            samples = None if trace.steered or trace.sized or self.draws else self._batch
            found = faults(
                self, shown, output, entered, samples, training=training,
                comparisons=list(trace.watch.comparisons.values()), measured=trace.watch.measured, calm=calm,
            )  # fmt: skip
            for layer, reason in found:
                self.pinned[layer.name] = layer.factor.frozen = reason
                del self._layers[layer.name]

    def __getitem__(self, name: str) -> HiddenLayer:
        if not isinstance(name, str):
            raise SurgeryError(self._lack(name))
        if name == WHOLE:
            return HiddenLayer(self, WHOLE, Factor(sum(layer.units for layer in self.values())), [])
        if name in self._layers:
            return self._layers[name]
        if name in self.stacks:
            return self.stacks[name]
        raise SurgeryError(self._lack(name))

    def _lack(self, name: str) -> str:
        """Why there is no layer of this name."""
        if not isinstance(name, str):
            return (
                f"a layer is called by its name, not {name!r:.60}; this network has {', '.join(self._layers) or 'none'}"
            )
        for pinned in (self.pinned, self.stacks.pinned):
            if name in pinned:
                return f"layer {name!r} cannot be operated on: {pinned[name]}"
        for layer in self.values():
            if any(place.tensor in (name, f"{name}.weight") for place in layer.makers):
                return f"{name!r} makes the units of layer {layer.name!r}, together with others: operate on that one"
        return f"there is no layer {name!r}; this network has {', '.join(self._layers) or 'none'}"

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"Anatomy({', '.join(f'{name}: {layer.units} units' for name, layer in self.items())})"

    def tensor(self, name: str, modules: Mapping[str, nn.Module] | None = None) -> Tensor:
        """A parameter or buffer by its name, as it is now: of the model, or of another network's ``modules``.

        Of a weight that is expressed otherwise (hashed, say) it is the weight, computed; see ``stored``.
        """
        return raw((modules or self.modules)[self._owners[name][0]], name.rpartition(".")[2])

    def stored(self, name: str, modules: Mapping[str, nn.Module] | None = None) -> Tensor:
        """As ``tensor``, but the parameter that is stored where a weight is expressed otherwise."""
        return find_stored((modules or self.modules)[self._owners[name][0]], name.rpartition(".")[2])

    def expression(self, name: str, modules: Mapping[str, nn.Module] | None = None) -> Compressed | None:
        """How a weight is expressed that has another shape than what is stored of it; None for plain and masked ones.

        While the network is expanded there are none.
        """
        found = self._expressed(name, modules)
        return found if _is_compressed(found) else None

    def live(self, name: str, modules: Mapping[str, nn.Module] | None = None) -> Tensor:
        """What the network takes a tensor for: its values, detached, and zero where they are masked."""
        tensor, mask = self.tensor(name, modules).detach(), self.mask(name, modules)
        return tensor if mask is None else tensor * mask

    def mask(self, name: str, modules: Mapping[str, nn.Module] | None = None) -> Tensor | None:
        """The mask on a parameter as it is now, None where there is none."""
        found = self._expressed(name, modules)
        return found.mask if isinstance(found, Mask) else None

    def _expressed(self, name: str, modules: Mapping[str, nn.Module] | None = None) -> Expressed | None:
        return expression_of((modules or self.modules)[self._owners[name][0]], name.rpartition(".")[2])

    def masks(self) -> dict[str, Tensor]:
        """Parameter → its mask as it is now, for every one that has one."""
        found = {name: self.mask(name) for name in self._parameters}
        return {name: mask for name, mask in found.items() if mask is not None}

    @property
    def weights(self) -> list[str]:
        """The parameters by which something is multiplied and summed over: of dense layers, convolutions and such."""
        known = [(name, self.tensor(name)) for name in self.calls if name in self._parameters]
        plain = [(name, tensor) for name, tensor in known if self.expression(name) is None]
        return [name for name, tensor in plain if tensor.dim() > 1 and numeric(tensor)]

    def cost(self, widths: Mapping[str, int] = MappingProxyType({})) -> tuple[int, int]:
        """Parameters and FLOPs (two per multiply-add of convolutions and products) of one sample.

        ``widths``: as if these layers had these numbers of units. What a mask hides is no parameter, as many of them as
        are hidden now; it is multiplied all the same.
        """
        factors = {self[name].factor: units for name, units in widths.items()}
        now = {factor: factor.size for factor in factors}
        try:
            for factor, units in factors.items():
                factor.size = units
            parameters, flops = self.held(self._parameters)
            return parameters, flops + round(2 * sum(axes.size(each) for each in self.products) / self._batch)
        finally:
            for factor, units in now.items():
                factor.size = units

    def held(self, tensors: Iterable[str]) -> tuple[int, int]:
        """Parameters, and FLOPs of one sample, of some tensors."""
        numbers = {name: self._numel(name) for name in tensors if name in self._parameters}
        found = {name: self._expressed(name) for name in numbers}
        parameters = sum(self._kept(name, n, found[name]) for name, n in numbers.items())
        parameters -= count_hidden(each.mask for each in found.values() if isinstance(each, Mask))
        return parameters, round(2 * sum(n * self.calls.get(name, 0) for name, n in numbers.items()))

    def bytes(self) -> int:
        """How many bytes the tensors take that ``ops.save`` writes, at the numbers of units that the layers have."""
        total = 0
        for name in self._owners:
            numel, found = self._numel(name), self._expressed(name)
            total += self._kept(name, numel, found) * self.stored(name).element_size()
            if isinstance(found, Mask):
                total += numel * found.mask.element_size()
            elif _is_compressed(found):
                total += found.beside(self._shape(name))
        return total

    def _shape(self, name: str) -> list[int]:
        known = self.expressions.get(name)
        return [*self.tensor(name).shape] if known is None else [*map(axes.size, known)]

    def _numel(self, name: str) -> int:
        return math.prod(self._shape(name))

    def _kept(self, name: str, numel: int, expressed: Expressed | None) -> int:
        """How many numbers are stored of a tensor, at the numbers of units that the layers have."""
        if not _is_compressed(expressed):
            return numel
        stored = expressed.stored_shape
        return self._shape(name)[0] * math.prod(stored[1:]) if expressed.rows else math.prod(stored)

    def owner(self, name: str, modules: Mapping[str, nn.Module] | None = None) -> nn.Module:
        """The module that holds a tensor (the first one, where it is tied), among ``modules`` where it is a copy."""
        return (self.modules if modules is None else modules)[self._owners[name][0]]

    def holders(self, layer: HiddenLayer) -> list[str]:
        """The names of every module that holds a tensor of this layer."""
        return list(dict.fromkeys(module for place in layer.places for module in self._owners[place.tensor]))

    def _gather(self, trace: Trace) -> dict[str, HiddenLayer]:
        """The sets of units as layers; what cannot be one goes to ``pinned``."""
        places: dict[Factor, list[Place]] = {}
        obstacles: dict[Factor, str] = {}
        met = {axis: [(use, set(axes.factors(use.part))) for use in uses] for axis, uses in trace.uses.items()}
        for name, expressions in self.expressions.items():
            for axis, expression in enumerate(expressions):
                uses = met.get((name, axis), ())
                for factor, times in Counter(axes.factors(expression)).items():
                    mine = {(use.role, use.fill, use.across) for use, units in uses if factor in units}
                    roles = {role for role, _, _ in mine}
                    if len(roles) == 1 and not (times > 1 and axes.crosses(expression, factor)):
                        role, fill, across = min(mine, key=repr) if len(mine) > 1 else next(iter(mine))
                        places.setdefault(factor, []).append(Place(name, axis, role, expression, factor, fill, across))
                    else:
                        obstacles.setdefault(
                            factor,
                            f"{name} both makes and reads its units on one axis"
                            if roles
                            else f"how {name} meets its units is not known",
                        )
        layers: dict[str, HiddenLayer] = {}
        seen: set[Factor] = set()
        for (name, axis), uses in met.items():
            made = {factor for use, units in uses if use.role == FAN_IN for factor in units}
            if not made:
                continue
            here = list(dict.fromkeys(axes.factors(self.expressions[name][axis])))
            reasons: dict[str, str] = {}
            for factor in here:
                if factor in seen or factor not in made:
                    continue
                title = self._title(name, factor.kind if len(here) > 1 else "", layers)
                reason = factor.frozen or obstacles.get(factor)
                if reason is None and factor.size < 2:
                    reason = "it has a single unit"
                if reason is None and not any(place.role == FAN_OUT for place in places[factor]):
                    reason = "no weight that is known reads its units"
                if reason is None:
                    seen.add(factor)
                    layers[title] = HiddenLayer(self, title, factor, places[factor])
                else:
                    reasons.setdefault(title, reason)
            if not seen & set(here):
                self.pinned.update((title, reason) for title, reason in reasons.items() if title not in layers)
        return layers

    def _title(self, maker: str, kind: str, taken: Mapping[str, HiddenLayer]) -> str:
        """A layer's name: the module that makes its units, or the parameter where that name is taken."""
        suffix = f":{kind}" if kind else ""
        module = whole_name(maker.rpartition(".")[0] or maker, self.modules)
        names = itertools.chain((module, maker), (f"{module}[{number}]" for number in itertools.count(1)))
        return next(name + suffix for name in names if name + suffix not in taken)

    def _numbers(self, trace: Trace) -> list[Number]:
        """The sizes of layers that modules keep as attributes, unless one number could be the size of two things."""
        names = {module: name for name, module in self.modules.items()}
        offered = {layer.factor for layer in self._layers.values()}
        found = []
        for (module, attribute, position), written in trace.written.items():
            as_long = set(map(axes.canonical, written))
            expressions = {each for each in as_long if offered & set(axes.units_on(each))}
            if len(expressions) == 1 and module in names:
                free = isinstance(module, FreeAttention)
                sure = free or attribute in ("groups", "num_groups", "normalized_shape")
                sure |= (module, attribute, position) in trace.given
                shared = len(as_long) > 1
                found.append(Number(names[module], attribute, position, expressions.pop(), sure, shared))
        return found

    def _explain(self) -> None:
        """Says of every other weight why it makes no layer."""
        known = {place.tensor for layer in self.values() for place in layer.places}
        for name in sorted(self._parameters - known):
            title, owner = name.rpartition(".")[0] or name, self.owner(name)
            plain = title.partition(".parametrizations.")[0]
            if plain != title:  # what torch keeps it under is nobody's name for it
                self.pinned.pop(title, None)
                title = plain
            if self.tensor(name).dim() < 2 or title in self.pinned or name in self.pinned or title in self:
                continue
            if (why := computed.reason(self.modules.get(title, owner))) is not None and self.mask(name) is None:
                self.pinned[title] = why
            elif name in self.expressions:
                frozen = [factor.frozen for axis in self.expressions[name] for factor in axes.factors(axis)]
                self.pinned[title] = next(filter(None, frozen), "its weight is not used as one")
            else:
                self.pinned[title] = "the forward pass does not use it"


def count(model: nn.Module, example_input: Any) -> tuple[int, int]:
    """Parameters, and FLOPs per sample (two per multiply-add of convolutions and products), from one forward pass.

    Raises SurgeryError where the network does not run on the example.
    """
    model = inner(model)
    check_real(model, example_input)
    with explained("the network does not run on the example input"), plainly(model):
        trace = Trace(model, _batch(example_input))
        trace.run(example_input)
        sizes = {name: tensor.numel() for name, tensor in tensors_of(model) if isinstance(tensor, nn.Parameter)}
    terms = sum(sizes.get(name, 0) * times for name, times in trace.calls.items())
    terms += sum(axes.size(axes.product(*each)) for each in trace.products) / trace.batch
    return parameters_of(model), round(2 * terms)


def _is_compressed(expressed: Expressed | None) -> TypeGuard[Compressed]:
    """Whether a weight has another shape than what is stored of it; none has while the network is expanded."""
    return expressed is not None and isinstance(expressed, Compressed) and expressed.standing is None


def _batch(example: Any) -> int:
    tensors = flat_tensors(example)
    if not tensors:
        raise SurgeryError(
            f"the example input (a {type(example).__name__}) holds no tensor; give a batch such as "
            "torch.zeros(2, 3, 32, 32)"
        )
    return tensors[0].size(0) if tensors[0].dim() else 1


def _owners(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The names of the modules that hold each tensor, by the tensor's first name."""
    names = {id(tensor): name for name, tensor in tensors.items()}
    held: dict[str, list[str]] = {name: [] for name in tensors}
    for path, module in modules.items():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and id(tensor) in names:  # masks have no name of their own
                held[names[id(tensor)]].append(holder(path, module))
    return held
