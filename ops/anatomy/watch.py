"""Watch: what a network's own code asks of its tensors and modules while it is traced.

Operators do not show why a network calls them. Two things are seen in Python only. Code that reads the *mode*
(``self.training``, ``torch.is_grad_enabled()``, a tensor's ``requires_grad``), wherever it stands, may do something
else in training mode, which then has to be followed as well. Code that reads the *size* of a tensor gets a number that
knows which axis it is the size of (``Extent``): where a view or a slice is given that number, the two axes are one;
where it is compared with another number, the network may take another path once an edit has changed one of them.
torch's own code is not watched.
"""

from __future__ import annotations

import itertools
import math
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from network_surgery.ops.anatomy.axes import Axis, Factor, canonical, is_fixed, size, unite
from network_surgery.ops.anatomy.snapshot import OWN
from network_surgery.ops.anatomy.steady import NOISE, Steady
from network_surgery.ops.errors import pass_on_memory

if TYPE_CHECKING:
    from network_surgery.ops.anatomy.facts import Facts


def _is_known(depth: int) -> bool:
    """Whether the code that asks belongs to torch or to this package."""
    name: str = sys._getframe(depth + 1).f_globals.get("__name__", "")
    return name.startswith(("torch.", "network_surgery.ops."))


@dataclass(frozen=True)
class Comparison:
    """A comparison of a size: ``outcome`` is what it would say at the sizes that the axes in it have now."""

    axes: tuple[Axis, ...]
    outcome: Callable[[], Any]


class Extent(int):
    """The size of a tensor along an axis, or a number that is computed from such sizes (``axis`` is then None).

    ``now``: the number at the sizes that the ``axes`` in it have now.
    """

    watch: Watch
    axis: Axis | None
    axes: tuple[Axis, ...]
    now: Callable[[], int]

    __hash__ = int.__hash__

    def __bool__(self) -> bool:
        if not _is_known(1):
            self.watch.compare(operator.ne, self, 0)
        return int(self) != 0

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _comparing(compare: Callable[[Any, Any], Any]) -> Callable[[Extent, Any], Any]:
    def method(self: Extent, other: Any) -> Any:
        if isinstance(other, (int, float)) and not _is_known(1):
            self.watch.compare(compare, self, other)
        return compare(int(self), other)

    return method


def _computing(name: str) -> Callable[..., Any]:
    compute = getattr(int, name)

    def method(self: Extent, *others: Any) -> Any:
        result = compute(int(self), *others)
        if type(result) is not int:
            return result
        axes = self.axes + tuple(axis for other in others if isinstance(other, Extent) for axis in other.axes)
        return self.watch.extent(result, None, axes, lambda: compute(self.now(), *map(_now, others)))

    return method


def _now(number: Any) -> Any:
    return number.now() if isinstance(number, Extent) else number


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Extent, f"__{_name}__", _comparing(getattr(operator, _name)))
for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Extent, f"__{_name}__", _computing(f"__{_name}__"))
    setattr(Extent, f"__r{_name}__", _computing(f"__r{_name}__"))


class Asked(BaseException):
    """The network's code reads the mode; no error of the network's, so that its code does not catch it."""


class _Mode:
    """``nn.Module.training`` while a network is watched: the mode as it is, and a note that it was read."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def __get__(self, module: Any, owner: Any = None) -> bool:
        if module is None or "training" not in vars(module):
            raise AttributeError("training")
        if not _is_known(1):
            self.watch.ask_mode()
        mode: bool = vars(module)["training"]
        return mode

    def __set__(self, module: Any, mode: bool) -> None:
        vars(module)["training"] = mode


class _SizeOf:
    """A size that modules keep beside a weight, while a network is watched: a number that knows its axis."""

    def __init__(self, watch: Watch, name: str, axis: int) -> None:
        self.watch, self.name, self.axis = watch, name, axis

    def __get__(self, module: Any, owner: Any = None) -> Any:
        if module is None or self.name not in vars(module):
            raise AttributeError(self.name)
        number = vars(module)[self.name]
        return number if _is_known(1) else self.watch.size_of(module, number, self.axis)

    def __set__(self, module: Any, number: Any) -> None:
        vars(module)[self.name] = number


class _Forward(nn.Module):
    """A module without its hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module.forward(x)


class Watch(TorchFunctionMode):
    """Notes what code that is not torch's reads during a traced pass.

    ``asks_mode``: it reads the mode. ``settled``: modules that do, but do the same to each unit. ``pretending``:
    gradients are said to be recorded, as they are in training. ``hasty``: a module with layers that reads the mode ends
    the pass (``asked``), as it has to be followed in both. ``measured``: it reads the size of an axis with units on
    it. ``comparisons``: of such sizes with others than their own.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.facts = facts
        self.asks_mode = self.measured = self.pretending = self.hasty = self.asked = False
        self.settled: set[nn.Module] = set()
        self._same: dict[str, bool] = {}
        self._failed: list[Tensor] = []
        self._running: list[tuple[nn.Module, tuple[Any, ...] | None]] = []
        self._small: list[tuple[nn.Module, tuple[Any, ...]]] = []
        self.comparisons: dict[object, Comparison] = {}

    def __enter__(self) -> Watch:
        self._is_grad_enabled = torch.is_grad_enabled
        torch.is_grad_enabled = self._grad_mode
        nn.Module.training = _Mode(self)  # type: ignore[assignment]
        for kind, name, axis in KEPT:
            setattr(kind, name, _SizeOf(self, name, axis))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        del nn.Module.training
        for kind, name, _ in KEPT:
            delattr(kind, name)
        torch.is_grad_enabled = self._is_grad_enabled

    def _grad_mode(self) -> bool:
        if _is_known(1):
            return self._is_grad_enabled()
        self.ask_mode()
        return self.pretending or self._is_grad_enabled()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            out = func(*args, **(kwargs or {}))
        except Exception:
            self._failed.extend(each for each in _pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor))
            raise
        if func not in WATCHED:
            return out
        if func in SIZES:
            return out if _is_known(1) else self._sized(args[0], out, args[1] if len(args) > 1 else None)
        if func == REQUIRES_GRAD:
            if not _is_known(1):
                self.ask_mode()
                return out or (self.pretending and args[0].is_floating_point())
        elif func == Tensor.__len__:  # a plain number, whatever is made of it
            self.measured |= not _is_known(1) and any(not is_fixed(a) for a in self.facts.twin(args[0]).axes[:1])
        elif func in VIEWS:
            self._viewed(args[1:], out)
        elif func == Tensor.__getitem__:
            self._cut(args[1], out)
        return out

    # -- modes ---------------------------------------------------------------------------------------------------------

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> bool:
        """A module begins to run; what a small one is given is kept, in case that it reads the mode. Returns whether it
        is small."""
        small = (
            len(args) == 1 and len(module._modules) < 3 and not any(m._modules for m in module._modules.values() if m)
        )
        self._running.append((module, args if small else None))
        return small

    def leave(self) -> None:
        self._running.pop()

    def ask_mode(self) -> None:
        """The module that runs reads the mode."""
        if self.hasty and self._running and _has_layers(self._running[-1][0]):
            self.asked = True
            raise Asked
        if not self._running or self._running[-1][1] is None:
            self.asks_mode = True
        else:
            self._small.append(self._running[-1])  # type: ignore[arg-type]

    def settle(self) -> None:
        """Small modules that read the mode (stochastic depth, norms with an activation) are tried by themselves.

        If they do the same to each unit in training mode, the network need not be followed in it."""
        for module, args in self._small:
            kind = self._kind(module, args)
            if kind not in self._same:
                self._same[kind] = self._does_the_same(module, args)
            if self._same[kind]:
                self.settled.update(module.modules())
        self.asks_mode = self.asks_mode or not all(self._same.values())
        self._small.clear()
        self.facts.refuse(self._failed, "an operator fails on it, and the network goes on")
        self._failed.clear()

    def _kind(self, module: nn.Module, args: tuple[Any, ...]) -> str:
        """Modules of one kind differ in their number of units only, which are on the same dimensions."""
        axes = [(n, is_fixed(axis)) for x in args if isinstance(x, Tensor) for n, axis in _dimensions(self.facts, x)]
        units = {n for n, fixed in axes if not fixed}

        def key(value: Any) -> object:
            if type(value) is int and value in units:
                return "units"
            if type(value) is float:  # a rate, most likely: none or some
                return bool(value)
            return value if type(value) in (int, bool, str, tuple) else id(value)

        kept = ((type(each), vars(each)) for each in module.modules())
        settings = [(kind, *(key(value) for name, value in own.items() if name not in OWN)) for kind, own in kept]
        return repr((settings, [fixed for _, fixed in axes]))

    def _does_the_same(self, module: nn.Module, args: tuple[Any, ...]) -> bool:
        (x,) = args
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.layout != torch.strided:
            return False
        dims = [dim for dim, axis in enumerate(self.facts.twin(x).axes) if not is_fixed(axis)]
        held = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
        vectors = {name: tensor for name, tensor in held.items() if tensor.dim()}
        if vectors:  # one entry for each unit, as the pass has shown
            own = [self.facts.met(tensor) for tensor in vectors.values()]
            axis = canonical(self.facts.twin(x).axes[dims[0]]) if len(dims) == 1 else None
            if axis is None or any(axes is None or list(map(canonical, axes)) != [axis] for axes in own):
                return False
        modes = [(each, each.training) for each in module.modules()]
        try:
            module.train()
            x = torch.where(x == 0, NOISE, x)  # what is done to a unit that is silent here shows, too
            with Steady():
                whole = module.forward(x.clone())
                other = x
                for dim in sorted(dims, key=x.size, reverse=True):  # the longest grow least
                    other, whole = _among_strangers(other, dim), _turn(whole, dim)
                    vectors = {name: _turn(tensor, more=STRANGERS) for name, tensor in vectors.items()}
                again = functional_call(_Forward(module), {f"module.{n}": t for n, t in vectors.items()}, (other,))
            for dim in dims:
                if again.size(dim) != whole.size(dim) + STRANGERS:
                    return False
                again = again.narrow(dim, 0, whole.size(dim))
            if again.shape != whole.shape:
                return False
            return bool((again - whole).abs_().sub_(whole.abs(), alpha=1e-3).max() <= 1e-4)
        except Exception as error:  # whatever the foreign forward pass raises
            pass_on_memory(error)
            return False
        finally:
            for each, mode in modes:
                each.training = mode

    # -- sizes ---------------------------------------------------------------------------------------------------------

    def extent(self, number: int, axis: Axis | None, axes: tuple[Axis, ...], now: Callable[[], int]) -> Extent:
        found = Extent(number)
        found.watch, found.axis, found.axes, found.now = self, axis, axes, now
        return found

    def _sized(self, tensor: Tensor, out: Any, dim: int | None) -> Any:
        """What a tensor says of its sizes: numbers that know their axes, where there are units on them."""
        if tensor.layout != torch.strided or tensor.is_nested:
            return out
        axes = self.facts.twin(tensor).axes
        if len(axes) != tensor.dim() or all(map(is_fixed, axes)):
            return out
        self.measured = True
        each = [
            n if is_fixed(axis) else self.extent(n, axis, (axis,), partial(size, axis))
            for n, axis in zip(tensor.shape, axes, strict=True)
        ]
        if isinstance(out, torch.Size):
            return torch.Size(each)
        return math.prod(each) if dim is None else each[dim]

    def size_of(self, module: nn.Module, number: Any, dim: int) -> Any:
        """A size that a module keeps, as that of its weight along an axis where it is that."""
        weight = module._parameters.get("weight")
        axes = self.facts.axes_if_known(weight) if weight is not None else ()
        if len(axes) <= dim or type(number) is not int or number != size(axes[dim]) or is_fixed(axes[dim]):
            return number
        self.measured = True
        return self.extent(number, axes[dim], (axes[dim],), partial(size, axes[dim]))

    def compare(self, compare: Callable[[Any, Any], Any], extent: Extent, other: Any) -> None:
        """Notes a comparison, unless both are the size of one axis."""
        axes = extent.axes + (other.axes if isinstance(other, Extent) else ())
        if isinstance(other, Extent) and tuple(map(canonical, extent.axes)) == tuple(map(canonical, other.axes)):
            return
        key = tuple(map(canonical, axes)), compare, int(extent), float(other)
        self.comparisons.setdefault(key, Comparison(axes, lambda: compare(extent.now(), _now(other))))

    def _joined(self, axis: Axis, number: Any) -> None:
        """An axis is as long as the code says, by a number that is the size of another axis."""
        if isinstance(number, Extent) and number.axis is not None:
            one, other = canonical(axis), canonical(number.axis)
            if isinstance(one, Factor) and isinstance(other, Factor) and size(one) == size(other):
                unite(one, other)

    def _viewed(self, args: Sequence[Any], out: Tensor) -> None:
        """``x.view(…)``, ``x.reshape(…)``: each size by itself or all in one."""
        sizes = args[0] if args and isinstance(args[0], (tuple, list)) else args
        if any(isinstance(n, Extent) for n in sizes) and len(sizes) == out.dim():
            for axis, number in zip(self.facts.twin(out).axes, sizes, strict=True):
                self._joined(axis, number)

    def _cut(self, index: Any, out: Tensor) -> None:
        """``x[:, :n]``: the piece is as long as ``n`` says."""
        index = index if isinstance(index, tuple) else (index,)
        if all(isinstance(each, slice) for each in index):
            for axis, each in zip(self.facts.twin(out).axes, index, strict=False):
                if not each.start and each.step in (None, 1):
                    self._joined(axis, each.stop)


def _has_layers(module: nn.Module) -> bool:
    """Whether it consists of modules with weights, so that it is not one that does the same to each unit."""
    return any(child is not None and any(True for _ in child.parameters()) for child in module._modules.values())


def _turn(x: Tensor, dim: int = 0, more: int = 0) -> Tensor:
    """Each unit in the place of the one before it, the first one after the last, and some once ``more``."""
    units = x.size(dim)
    starts = [(1, units - 1), (0, 1), *((n % units, 1) for n in range(more))]
    return torch.cat([x.narrow(dim, start, length) for start, length in starts], dim)


def _among_strangers(x: Tensor, dim: int) -> Tensor:
    """The units turned, and after them others, larger and smaller than all: what is done to a unit by its place, its
    neighbours, all of them or their number is then done otherwise."""
    turned = _turn(x, dim, more=STRANGERS)
    entries = turned.select(dim, 0)
    far = torch.arange(entries.numel(), device=x.device).view(entries.shape).remainder_(2).mul_(2).sub_(1)
    far = far * (x.abs().max() + 1)
    for number, times in enumerate((1, 2, -3)):
        turned.select(dim, x.size(dim) + number).copy_(far * times)
    return turned


def _dimensions(facts: Facts, x: Tensor) -> list[tuple[int, Axis]]:
    return list(zip(x.shape, facts.twin(x).axes, strict=False))


#: How many units are added where a part is tried by itself.
STRANGERS = 3
#: Sizes that modules keep of their ``weight``: class, attribute, axis. They follow it (``ops.network.architecture``).
KEPT: list[tuple[Any, str, int]] = [
    (nn.Linear, "out_features", 0), (nn.Linear, "in_features", 1), (_NormBase, "num_features", 0),
    (_ConvNd, "out_channels", 0), (_ConvNd, "in_channels", 1), (nn.GroupNorm, "num_channels", 0),
    (nn.Embedding, "embedding_dim", 1), (nn.EmbeddingBag, "embedding_dim", 1), (nn.PReLU, "num_parameters", 0),
]  # fmt: skip
REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
SIZES = {Tensor.shape.__get__, Tensor.size, Tensor.numel, Tensor.nelement}  # type: ignore[attr-defined]
VIEWS = {Tensor.view, Tensor.reshape, torch.reshape}
WATCHED = SIZES | VIEWS | {REQUIRES_GRAD, Tensor.__len__, Tensor.__getitem__}
