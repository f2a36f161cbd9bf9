"""Weights expressed otherwise: a module computes its weight from what is stored of it.

An expression is a parametrization of torch's (``torch.nn.utils.parametrize``) that this package knows: a mask
(``ops.network.masks``), a hash or random edges (``ops.network.hashed``), a codebook (``ops.network.codebook``), a
dictionary (``ops.network.predicted``). What is stored is one parameter. It stays the object that the weight was, so
optimizers, hooks and ties hold on to it, though its shape may be another one. For surgery it goes on under the weight's
own name (``conv1.weight``, as ``tensors_of`` has it), though torch now keeps it as
``conv1.parametrizations.weight.original``.

``Expressed`` and ``Compressed`` are what an expression has to define. The anatomy, signals and scores look at a network
``expanded``, with whole weights for a while, so that no other code need know how a weight is stored.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.network.fields import SHAPE, Field

Undo = list[Callable[[], object]]
Modules = Mapping[str, nn.Module]


class Expressed(nn.Module, ABC):
    """How a weight is computed from what is stored of it, which has the weight's shape unless it is ``Compressed``."""

    kind: ClassVar[str] = ""

    def forward(self, stored: Tensor) -> Tensor:
        return self.weight(stored)

    @abstractmethod
    def weight(self, stored: Tensor) -> Tensor:
        """The weight, differentiable by what is stored."""

    def held(self) -> list[Tensor]:
        """What is stored beside the parameter."""
        return [*self.buffers()]


class Compressed(Expressed):
    """What is stored has another shape than the weight, so units are operated on in the weight, not in it."""

    #: Whether what is stored has the weight's rows (its first axis), so that it follows them as a plain weight does.
    rows: ClassVar[bool] = False
    #: Whether the weight is a linear function of what is stored, so that optimizer state and averages can follow.
    linear: ClassVar[bool] = True
    #: What ``to_data`` has, but for ``names``.
    fields: ClassVar[Mapping[str, Field]] = {"shape": SHAPE}
    standing: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("standing", None)  # the whole weight, while the network is expanded
        self.last = False  # whether the weight had its channels last in memory

    def forward(self, stored: Tensor) -> Tensor:
        return self.weight(stored) if self.standing is None else self.standing

    @property
    @abstractmethod
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of what is stored of the weight that there is now."""

    @property
    def density(self) -> float:
        """The mean square of the weight's entries where the stored numbers have a mean square of 1."""
        return 1.0

    def begin(self, values: Tensor) -> Tensor:
        """What is stored, such that the weight has the deviation of these random values, ``stored_shape``."""
        return values * self.density**-0.5

    def beside(self, shape: Sequence[int]) -> int:
        """How many bytes are stored beside the parameter, of a weight of this shape."""
        return 0

    def flops(self) -> int:
        """How many FLOPs it takes to compute the weight once, but for what is done to single entries."""
        return 0

    @abstractmethod
    def reduced(self, weight: Tensor, degree: int | None = None) -> Tensor:
        """What is stored of a weight; or of something of its shape that is of this degree in its gradient."""

    @abstractmethod
    def spread(self, stored: Tensor, degree: int | None = None) -> Tensor:
        """The opposite, in the weight's shape: the weight, or what each entry has of something of this degree."""

    @abstractmethod
    def gathered(self, axis: int, index: Tensor) -> Undo:
        """Lets an axis of the weight hold these of its positions, ``[new]``, from now on; returns what undoes it."""

    @abstractmethod
    def to_data(self) -> dict[str, Any]:
        """Numbers, lists and texts that ``from_data`` makes it of."""

    @classmethod
    @abstractmethod
    def from_data(cls, data: Mapping[str, Any]) -> Compressed:
        """What ``to_data`` describes."""


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, under its first name; stored ones under the weight's, expressions left out."""
    plain: dict[str, str] = {}
    modules = list(model.named_modules())
    for path, module in modules:
        if (expression := _expression(module)) is not None:
            held = (*expression._parameters, *expression._buffers)
            plain |= {f"{path}.original": plain_name(f"{path}.original")} | dict.fromkeys(
                (f"{path}.0.{name}" for name in held), ""
            )
            if isinstance(expression, Compressed) and expression.standing is not None:
                plain |= {f"{path}.original": "", f"{path}.0.standing": plain_name(f"{path}.original")}
    for kind in ("_parameters", "_buffers"):  # as named_parameters and named_buffers do, which walk the modules anew
        seen: set[int] = set()
        for path, module in modules:
            for attribute, tensor in getattr(module, kind).items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    name = f"{path}.{attribute}" if path else attribute
                    if plain.get(name, name):
                        yield plain.get(name, name), tensor


def torch_names(model: nn.Module) -> dict[str, str]:
    """Each tensor's name as ``tensors_of`` has it → the one that torch calls it by (``functional_call``)."""
    theirs = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    return {name: theirs[id(tensor)] for name, tensor in tensors_of(model)}


def met(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters as the network meets them: the weight where it is expressed otherwise, under its own name.

    Inside of ``parametrize.cached()`` these are the very tensors that a forward pass works with.
    """
    names: dict[int, str] = {}
    for path, module in model.named_modules():
        if _expression(module) is not None:
            holding = model.get_submodule(holder(path, module))
            name = names.setdefault(id(module.original), plain_name(f"{path}.original"))
            yield name, getattr(holding, path.rpartition(".")[2])
    for name, parameter in model.named_parameters():
        if not name.endswith(".standing"):  # which has its own name already
            yield name, parameter


def plain_name(name: str) -> str:
    """The name that a parameter had before it was expressed otherwise.

    >>> plain_name("conv1.parametrizations.weight.original"), plain_name("parametrizations.weight.original")
    ('conv1.weight', 'weight')
    """
    path, _, attribute = f".{name.removesuffix('.original')}".rpartition(".parametrizations.")
    return f"{path}.{attribute}".removeprefix(".")


def holder(path: str, module: nn.Module) -> str:
    """The name of the module whose parameters a module holds: of that with the weight, where it does so for it."""
    return plain_name(path).rpartition(".")[0] if _expression(module) is not None else path


def find_stored(module: nn.Module, attribute: str) -> Tensor:
    """A parameter or buffer of a module, what is stored of it where it is expressed otherwise."""
    listed = _list(module, attribute)
    found: Tensor = getattr(module, attribute) if listed is None else listed.original
    return found


def raw(module: nn.Module, attribute: str) -> Tensor:
    """A parameter or buffer of a module in its own shape: the parameter itself, unless it is hashed or the like."""
    listed = _list(module, attribute)
    expression = None if listed is None else _expression(listed)
    if listed is None or not isinstance(expression, Compressed):
        return find_stored(module, attribute)
    if expression.standing is not None:
        return expression.standing
    with torch.no_grad():
        return expression(listed.original).requires_grad_(listed.original.requires_grad)


def expression_of(module: nn.Module, attribute: str) -> Expressed | None:
    """How a parameter is expressed, None where it is plain."""
    listed = _list(module, attribute)
    return None if listed is None else _expression(listed)


def expressions_of(model: nn.Module) -> dict[str, Expressed]:
    """Parameter → how it is expressed, for every one that is not plain."""
    modules = dict(model.named_modules())
    if all(_expression(module) is None for module in modules.values()):
        return {}
    found = {name: expression_of(*at(modules, name)) for name, _ in tensors_of(model)}
    return {name: expression for name, expression in found.items() if expression is not None}


def find_compressed(model: nn.Module) -> dict[str, Compressed]:
    """Parameter → how it is compressed, for every one that is."""
    return {name: each for name, each in expressions_of(model).items() if isinstance(each, Compressed)}


def weights_flops(model: nn.Module) -> int:
    """How many FLOPs it takes to compute all compressed weights once, as each forward pass does."""
    return sum(each.flops() for each in find_compressed(model).values())


@contextlib.contextmanager
def expanded(model: nn.Module) -> Iterator[None]:
    """The network with whole weights in place of what is stored of them, for the time of a ``with`` block.

    ``tensors_of`` and ``raw`` have these then; what is done to them is gone afterwards. Masks stay.
    """
    begun: list[Compressed] = []
    for module in model.modules():
        expression = _expression(module)
        if isinstance(expression, Compressed) and expression.standing is None:
            kept: Tensor = module.original  # type: ignore[assignment]
            with torch.inference_mode(False), torch.no_grad():
                whole = expression.weight(kept).clone()
            expression.standing = nn.Parameter(whole, requires_grad=kept.requires_grad)
            begun.append(expression)
    try:
        yield
    finally:
        for expression in begun:
            expression.standing = None


def express(modules: Modules, name: str, expression: Expressed) -> Undo:
    """Lets a parameter be what is stored for an expression, in every module that holds it; returns what undoes it.

    ``modules``: the network's, by name. The parameter's values and shape are left as they are.
    """
    module, attribute = at(modules, name)
    if isinstance(module, torch.jit.ScriptModule):
        raise SurgeryError(
            f"{name} cannot be {expression.kind}: it is in a scripted part; operate first, script afterwards"
        )
    weight = module._parameters.get(attribute)
    if weight is None:
        raise SurgeryError(
            f"{name} cannot be {expression.kind}: it is no parameter, or it is parametrized by something else"
        )
    undo: Undo = []
    for each in modules.values():
        for place in [place for place, parameter in each._parameters.items() if parameter is weight]:
            undo.append(partial(_take_off, each, place, list(each._parameters)))
            parametrize.register_parametrization(each, place, expression, unsafe=True)
            _prepare(each)
    return undo


def take_off(modules: Modules, name: str) -> None:
    """Makes what is stored of a parameter the parameter itself, in every module that holds it."""
    weight = find_stored(*at(modules, name))
    for module in modules.values():
        lists = getattr(module, "parametrizations", {})
        for place in [p for p, each in lists.items() if _expression(each) is not None and each.original is weight]:
            parametrize.remove_parametrizations(module, place, leave_parametrized=False)


def at(modules: Modules, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor, and its name there."""
    path, _, attribute = name.rpartition(".")
    return modules[path], attribute


def _expression(module: nn.Module) -> Expressed | None:
    """The expression in a module of torch's that holds exactly one; None for any other module."""
    if not isinstance(module, ParametrizationList) or len(module) != 1:
        return None
    return module[0] if isinstance(module[0], Expressed) else None


def _list(module: nn.Module, attribute: str) -> ParametrizationList | None:
    lists = None if isinstance(module, ScriptModule) else module._modules.get("parametrizations")
    if lists is None:
        return None
    found = lists._modules.get(attribute) if isinstance(lists, nn.ModuleDict) else None
    return found if isinstance(found, ParametrizationList) and _expression(found) is not None else None


def _prepare(module: nn.Module) -> None:
    """Lets a module, whose class torch has just made for it, be copied, and say why it cannot be scripted."""
    kind: Any = type(module)
    if "__prepare_scriptable__" in vars(kind):
        return
    kind.__prepare_scriptable__, kind.__deepcopy__ = _refuse_script, _copying(kind.__deepcopy__)
    if isinstance(module, nn.RNNBase):  # it keeps the weights of its last pass, which cannot be copied
        kind._flat_weights = property(_flat_weights, _keep_nothing)


def _copying(plainly: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """How such a module is deep-copied: to a class of its own, since taking an expression off changes the class."""

    def copied(module: Any, memo: Any) -> Any:
        replica, kind = plainly(module, memo), type(module)
        if type(replica) is kind:
            own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
            replica.__class__ = type(kind.__name__, kind.__bases__, own)
        return replica

    return copied


def _refuse_script(module: nn.Module) -> nn.Module:
    raise SurgeryError(
        "TorchScript knows no masked or hashed weights (parametrizations): script a copy with plain ones, "
        "torch.jit.script(ops.without_masks(model))"
    )


def _flat_weights(module: nn.RNNBase) -> list[Tensor | None]:
    """What a recurrent module computes with. What it holds under this name are its parameters."""
    return [getattr(module, name, None) for name in module._flat_weights_names]


def _keep_nothing(module: nn.RNNBase, weights: list[Tensor | None]) -> None:
    pass


def _take_off(module: nn.Module, attribute: str, order: list[str]) -> None:
    """Makes the parameter the module's own again, at its old place among the others."""
    parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    kept = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({name: kept[name] for name in order if name in kept} | kept)
