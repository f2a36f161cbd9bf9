"""The rehearsal: what the trace proposes is tried before it is offered.

All layers are changed at once, in place and undone: all units are put in another order, about an eighth of them is
doubled at uneven shares, and units are added that have weights of their own but that nobody reads. None of this may
change the output at all; that taking such units away again changes nothing is what removal claims. A layer that fails
(a hard-coded size, a unit used by its position, a maximum over the units) is pinned with the reason instead of being
offered. Layers of one size get several new sizes, so that code that couples two layers by their size is noticed.
Layers that a norm couples are only put in another order; they, and those that the code cuts into pieces, run
once more at about half their size, by which no old size can be divided. For that two samples do, unless values in the
network decide what it runs. A network in which everything is right costs one or two passes, besides the traced one.

Only where the network gives reason to, more is tried. Where its code reads the mode, the same must hold in training
mode. Where it reads sizes, the new sizes are dealt out a second time, and what runs at half its size runs at a larger
one, too. Where it compares sizes, each layer is tried at the sizes at which the comparison comes out otherwise
(a shortcut that is projected only if two shapes differ).

Whether a difference is rounding is not left to rounding: in doubt, both networks are computed in double precision.

Where operators are small, it is not they that take the time but the Python around them, so each tensor is rebuilt in
few operations: vectors that change alike (of a norm, say) together, strangers from one draw. The smaller sizes come
first, as they stop early where numbers are missing. Of wide layers fewer units are doubled: to copy weights takes long.

A network shows little of itself where its input is constant, a scale is zero or a bias is not yet trained; for the time
of the discovery, such inputs and the vectors among its parameters are random (``lively``). Numbers that modules keep,
and that only happen to be the size of an axis, are left alone as long as the network runs without changing them.
"""

from __future__ import annotations

import contextlib
import functools
import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ops.anatomy import axes
from ops.anatomy.rebuild import Edit, doubled, edited, in_double, undoing
from ops.anatomy.running import call, deviation, flat_tensors, plainly
from ops.anatomy.steady import Precisions, Redrawn, Steady
from ops.double import numeric
from ops.errors import said
from ops.masks import lift, masks_of, tensors_of
from ops.optimizer_state import exchange

if TYPE_CHECKING:
    from ops.anatomy import Anatomy
    from ops.anatomy.layers import HiddenLayer
    from ops.anatomy.watch import Comparison


class Chaotic(Exception):
    """Rounding alone moves the output of the network so far that nothing can be compared."""


@contextlib.contextmanager
def lively(
    modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], example: Any, calm: bool = False
) -> Iterator[Any]:
    """Random vectors (norms, biases, layer scales), no weight of zeros and no mask, for a while; yields the input to
    show. ``modules`` and ``tensors`` are the network's, by name; ``calm``: vectors are only moved a little."""
    random = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        dtype = torch.complex64 if like.is_complex() else torch.float32
        return torch.randn(like.shape, generator=random, dtype=dtype).to(like)

    with undoing() as undo:
        masks = masks_of(modules[""])
        vectors: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not isinstance(tensor, nn.Parameter) or not numeric(tensor) or not tensor.numel():
                continue
            if name in masks:
                shown = noise(tensor) / math.sqrt(tensor.numel() / tensor.shape[0])
                undo.append(exchange(tensor, torch.where(masks[name].bool(), tensor.data, shown), tensor.grad))
            if tensor.numel() == max(tensor.shape, default=1):
                vectors[name] = torch.randn(tensor.numel(), generator=random, dtype=torch.float32)
            elif tensor[(0,) * tensor.dim()].item() == 0 and not tensor.any():
                data = noise(tensor) / math.sqrt(tensor.numel() / tensor.shape[0])
                undo.append(exchange(tensor, data, tensor.grad))
        numbers = torch.cat([torch.empty(0, dtype=torch.float32), *vectors.values()])  # one operation, not one for each
        lengths = [len(vector) for vector in vectors.values()]
        shifts, scales = ((0.5 * numbers).split(lengths), (0.7 + 0.6 * numbers.sigmoid()).split(lengths))
        for name, shift, scale in zip(vectors, shifts, scales, strict=True):
            data = (shift if name.endswith("bias") else scale).view(tensors[name].shape).to(tensors[name], copy=True)
            if calm:
                data = torch.lerp(tensors[name].detach().clone(), data, CALM)
            undo.append(exchange(tensors[name], data, tensors[name].grad))
        undo.extend(lift(modules, masks))
        yield _pytree.tree_map(lambda x: _varied(x, noise) if isinstance(x, Tensor) else x, example)


def _varied(x: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
    """Noise in place of a constant input; zeros and ones in place of whole zeros (token numbers, say)."""
    if x.layout != torch.strided or x.is_meta or x.numel() < 2:
        return x
    for part in (x.flatten()[:16], x):
        if not bool((part == part.flatten()[0]).all()):
            return x
    if numeric(x):
        return noise(x)
    whole = not x.is_complex() and x.dtype != torch.bool and int(x.flatten()[0]) == 0
    return (noise(x.float()) > 0).to(x.dtype) if whole else x


@dataclass(frozen=True)
class Problem:
    """What went wrong, and in which module if the network did not run."""

    reason: str
    module: str | None = None


#: The largest relative difference that rounding explains, by the precision of the output; what needs no second look.
TOLERANCE = {
    torch.float64: 1e-7, torch.complex128: 1e-7, torch.float32: 1e-3, torch.complex64: 1e-3,
    torch.bfloat16: 0.1, torch.float16: 0.02,
}  # fmt: skip
CLEAR = TOLERANCE | {torch.float32: 1e-4, torch.complex64: 1e-4, torch.bfloat16: 1e-3, torch.float16: 1e-3}

#: Larger networks (bytes of parameters in double precision) are not copied to double precision.
MOST_DOUBLED = 1 << 32
#: How many new sizes layers of one size share out among them.
WIDTHS = 3
#: More layers than these are not tried one by one at sizes at which the network decides otherwise.
MOST_ALONE = 16

#: How far vectors go from their own values to random ones in a network that is chaotic otherwise.
CALM = 0.05
#: No larger difference is taken for rounding, however much a network amplifies it.
MOST_ROUNDING = 0.03

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

Trial = Callable[[Sequence["HiddenLayer"]], Problem | None]


def faults(
    anatomy: Anatomy,
    example: Any,
    output: list[Tensor],
    entered: list[nn.Module],
    samples: int | None = None,
    *,
    training: bool = False,
    comparisons: Sequence[Comparison] = (),
    measured: bool = False,
    calm: bool = False,
) -> list[tuple[HiddenLayer, str]]:
    """The layers that cannot be operated on, with the reason; ``output`` is the network's, unchanged, and ``entered``
    the modules that it passed.

    ``samples``: how many there are, if the trace saw no value decide what is run or how large a tensor is. Whether the
    network runs does then not depend on what the samples hold, and two that pass the same modules stand for all.
    ``training``: the same is tried in training mode. ``comparisons`` of sizes are what the network's code may decide
    by; ``measured``: it reads sizes. Raises Chaotic where nothing can be compared, unless the network is ``calm``.
    """
    numbered = any((t.is_floating_point() or t.is_complex()) and torch.isfinite(t).any() for t in output)
    if not numbered:
        return [(layer, "the network's output holds no finite number to compare") for layer in anatomy.values()]

    two = samples is not None and samples > 2
    stage = _Stage(anatomy, example, output, two or bool(comparisons), entered)
    stages = [stage]
    if samples is not None and two:
        stages.insert(0, _Stage(anatomy, _two(example, samples), _two(output, samples), two))
    modes = [stage, *_training_stage(anatomy, example)] if training else [stage]

    def reordered(layers: Sequence[HiddenLayer]) -> Problem | None:
        for turn in range(2 if measured else 1):
            sizes, edits = Counter[int](), []
            for layer in layers:
                edits.append(_reordered(layer, sizes[layer.units], turn))
                sizes[layer.units] += 1
            if turn and max(sizes.values(), default=0) <= WIDTHS:
                break
            for each in modes:
                problem = each.problem(edits, equal=True)
                if problem is not None:
                    if not calm and stage._rounding > MOST_ROUNDING:
                        raise Chaotic
                    return problem
        return None

    def halved(layers: Sequence[HiddenLayer]) -> Problem | None:
        return resized([_halved(layer) for layer in layers]) or resized(
            [_larger(x) for x in layers if not x.exact and (measured or x.factor.cut)]
        )

    def resized(edits: list[Edit]) -> Problem | None:
        problem = None
        for each in stages:
            problem = each.problem(edits, equal=False)
            if problem is None and each.entered == stage.entered:
                break
        return problem or next(filter(None, (each.problem(edits, equal=False) for each in modes[1:])), None)

    found = _regular(anatomy, reordered, halved)
    failed = {layer for layer, _ in found}
    rest = [layer for layer in anatomy.values() if layer not in failed]
    return found + (_deciding(rest, comparisons, stage, entered) if comparisons else [])


def _regular(anatomy: Anatomy, reordered: Trial, halved: Trial) -> list[tuple[HiddenLayer, str]]:
    layers, numbers = list(anatomy.values()), anatomy.written
    resized = [layer for layer in layers if not layer.exact or layer.factor.cut]
    anatomy.written = [number for number in numbers if number.sure]
    smaller = halved(resized)  # it stops early where numbers are missing, so it comes first
    other = None if smaller else reordered(layers)
    if smaller is None and other is None:
        return []
    missing = len(anatomy.written) < len(numbers)
    anatomy.written = numbers
    if missing or smaller:
        other = reordered(layers)
    found = _isolate(layers, reordered, other)
    failed = {layer for layer, _ in found}
    resized = [layer for layer in resized if layer not in failed]
    if missing or failed:
        smaller = halved(resized)
    return found + _isolate(resized, halved, smaller)


def _training_stage(anatomy: Anatomy, example: Any) -> list[_Stage]:
    """The network in training mode, if it runs so and answers in numbers."""
    stage = _Stage(anatomy, example, [], False, training=True)
    try:
        stage.output = stage.answer()
    except Exception:  # such as a detector's, which asks for targets
        return []
    return [stage] if any(torch.isfinite(t).any() for t in stage.output if t.is_floating_point()) else []


def _deciding(
    layers: Sequence[HiddenLayer], comparisons: Sequence[Comparison], stage: _Stage, entered: list[nn.Module]
) -> list[tuple[HiddenLayer, str]]:
    """The layers that fail at a size at which the network's code decides otherwise than it does now.

    Fewer units are compared with the same units silenced, more with the network as it is; of a layer that a norm
    couples, the network must pass the same modules.
    """

    def problem(chosen: Sequence[tuple[HiddenLayer, int]]) -> bool:
        edits = [_resized(layer, units) for layer, units in chosen]
        if not all(edit.layer.exact for edit in edits):
            return stage.problem(edits, equal=False) is not None or stage.entered != entered
        try:
            return not stage.keeps(edits) or stage.entered != entered
        except Exception:  # whatever the foreign forward pass raises at another size
            return True

    found: dict[HiddenLayer, str] = {}
    waiting = [(layer, units) for layer in layers for units in _other_sizes(layer, comparisons)]
    reason = "the network's code compares its size with another one, and goes another way at {} units"
    if len(waiting) > MOST_ALONE:
        for exact in (True, False):
            for smaller in (True, False):
                group = [(x, n) for x, n in waiting if x.exact is exact and (n < x.units) is smaller]
                if group and not problem(group):
                    waiting = [each for each in waiting if each not in group]
    for layer, units in waiting:
        if layer not in found and problem([(layer, units)]):
            found[layer] = reason.format(units)
    return list(found.items())


def _other_sizes(layer: HiddenLayer, comparisons: Sequence[Comparison]) -> list[int]:
    """The next smaller and the next larger size of a layer at which each comparison comes out otherwise, unless it does
    so anyway at another size."""
    found: set[int] = set()
    for comparison in comparisons:
        if not any(layer.factor in axes.factors(axis) for axis in comparison.axes):
            continue
        now = _outcome(layer, comparison, layer.units)
        smaller, larger = range(layer.units - 1, 0, -1), range(layer.units + 1, 2 * layer.units + 1)
        otherwise = [[n for n in sizes if _outcome(layer, comparison, n) != now] for sizes in (smaller, larger)]
        if len(otherwise[0]) < len(smaller) or len(otherwise[1]) < len(larger):  # else whatever is tried is otherwise
            found.update(n for sizes in otherwise for n in sizes[:1])
    return sorted(found)


def _outcome(layer: HiddenLayer, comparison: Comparison, units: int) -> Any:
    before, layer.factor.size = layer.factor.size, units
    try:
        return bool(comparison.outcome())
    except ArithmeticError:
        return None
    finally:
        layer.factor.size = before


def _resized(layer: HiddenLayer, units: int) -> Edit:
    """Without its last units, or with its first ones once more, at equal shares."""
    sources = torch.arange(units) % layer.units
    counts = torch.bincount(sources, minlength=layer.units)
    return Edit(layer, sources, (1.0 / counts[sources]).to(torch.float64))


@contextlib.contextmanager
def _silenced(anatomy: Anatomy, edits: Sequence[Edit]) -> Iterator[None]:
    """The network in which nobody reads the units that the edits take away, for the time of a ``with`` block."""
    with undoing() as undo:
        for edit in edits:
            for place in edit.layer.readers:
                tensor = anatomy.tensor(place.tensor)
                gone = place.positions[len(edit.sources) :].flatten().to(tensor.device)
                undo.append(exchange(tensor, tensor.data.index_fill(place.axis, gone, 0), tensor.grad))
        yield


def _two(tree: Any, samples: int) -> Any:
    """The first two samples of every tensor that is as long as there are samples."""

    def cut(x: Any) -> Any:
        plain = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested and x.dim() > 0
        return x[:2] if plain and x.size(0) == samples else x

    return _pytree.tree_map(cut, tree)


def _reordered(layer: HiddenLayer, number: int, turn: int = 0) -> Edit:
    """The units rotated and, where that is exact, some of them doubled at uneven shares and newborn ones added.

    ``number``: how many layers of this size come before, which all get another order and, next to each other, another
    size; those that got one and the same size at one ``turn`` get several at the next.
    """
    units = layer.units
    order = torch.arange(units).roll(1 + (units // 3 + number) % max(units - 1, 1))
    if not layer.exact:
        return Edit(layer, order)
    strangers = _strangers(layer)
    copies = torch.arange(_enlarged(layer, number // WIDTHS**turn) - strangers)
    sources, weights = order[copies % units], 1.0 + (copies // units).to(torch.float64)
    shares = weights / weights.new_zeros(units).index_add(0, sources, weights)[sources]
    at = number % len(sources)
    sources = torch.cat([sources[:at], copies.new_full((strangers,), -1), sources[at:]])
    return Edit(layer, sources, torch.cat([shares[:at], shares.new_ones(strangers), shares[at:]]), stranger=True)


def _strangers(layer: HiddenLayer) -> int:
    """How many units are added: two, whose weights have opposite signs; a head or a group has both signs in itself."""
    return 1 if layer.factor.kind else 2


def _enlarged(layer: HiddenLayer, number: int) -> int:
    """About an eighth more units, of wide layers 64, and another number for the next layer of this size. Where the
    network's code cuts the units into pieces it is a prime number, so that nothing divides by luck.
    """
    wanted = layer.units + max(_strangers(layer) + 1, min(layer.units // 8, 64))
    if not layer.factor.cut:  # convolutions are fast at multiples of eight
        return (-(-wanted // 8) + number % WIDTHS) * 8 if wanted >= 64 else wanted + number % WIDTHS
    wanted = max(5, wanted)
    for _ in range(number % WIDTHS):
        wanted = _next_prime(wanted) + 1
    return _next_prime(wanted)


def _next_prime(number: int) -> int:
    """The smallest prime number that is not smaller."""
    while not _is_prime(number):
        number += 1
    return number


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _halved(layer: HiddenLayer) -> Edit:
    """About half of the units: a number that has no divisor in common with that of all, if there is one."""
    units = layer.units
    likely = [n for n in range(units // 2, 1, -1) if _is_prime(n)] + list(range(units // 2 + 1, units))
    return Edit(layer, torch.arange(next((n for n in likely if units % n and math.gcd(n, units) == 1), 1)))


def _larger(layer: HiddenLayer) -> Edit:
    """Some more units: a prime number."""
    return Edit(layer, torch.arange(_next_prime(layer.units + 1)) % layer.units)


@dataclass
class _Stage:
    """Where edits are tried: the network, what it is shown and answers unchanged, and the modules that were entered
    last time (kept true if ``watching``). In ``training`` mode, noise is the same for networks of all sizes."""

    anatomy: Anatomy
    example: Any
    output: list[Tensor]
    watching: bool
    entered: list[nn.Module] = field(default_factory=list)
    training: bool = False

    def problem(self, edits: list[Edit], *, equal: bool) -> Problem | None:
        """What goes wrong with these edits: the network no longer runs, or (``equal``) computes something else."""
        if not edits:
            return None
        mode = " in training mode" if self.training else ""
        try:
            redrawn = Redrawn(self.anatomy.draws, {edit.layer.factor: edit.sources for edit in edits})
            with edited(self.anatomy, edits), self._watched():
                found = self.answer(redrawn)
        except Exception as error:  # whatever the foreign forward pass raises at another size pins the layer
            names = {module: name for name, module in self.anatomy.modules.items()}
            running = [module for module in _running(error) if module in names]
            where = [names[module] for module in running if any(True for _ in module.children())]
            reason = f"the network does not run at another size{mode} ({said(error)[:120]})"
            return Problem(reason, where[-1] if where else None)
        if [tensor.shape for tensor in found] != [tensor.shape for tensor in self.output]:
            return Problem(f"the output changes its shape with the layer{mode}")
        if equal and not self._only_rounding(edits, deviation(self.output, found)):
            return Problem(
                f"the network uses its units by position or number, so an edit would change its output{mode}"
            )
        return None

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        if not self.watching:
            yield
            return
        self.entered = []
        enter: Callable[[nn.Module, Any], None] = lambda module, args: self.entered.append(module)  # noqa: E731
        hook = nn.modules.module.register_module_forward_pre_hook(enter)
        try:
            yield
        finally:
            hook.remove()

    def keeps(self, edits: list[Edit]) -> bool:
        """Whether the network with these edits computes what it does when nobody reads the units that they take away.

        Raises whatever the network does where it does not run.
        """
        with _silenced(self.anatomy, edits):
            wanted = self.answer()
        with edited(self.anatomy, edits), self._watched():
            difference = deviation(wanted, self.answer())
        if difference <= max((CLEAR.get(tensor.dtype, 0.0) for tensor in wanted), default=0.0):
            return True
        if not self._is_double and self._doubled is not None:
            with in_double(self.anatomy):
                return self._doubled.keeps(edits)
        return difference <= MOST_ROUNDING and difference <= 10 * self._rounding

    @property
    def _is_double(self) -> bool:
        return all(tensor.dtype in (torch.float64, torch.complex128) for tensor in self.output)

    def _only_rounding(self, edits: list[Edit], difference: float) -> bool:
        """Whether rounding explains a relative difference. If in doubt, that in double precision decides; where there
        is none, what rounding does in this network is tried."""
        kinds = [tensor.dtype for tensor in self.output]
        if difference <= max((CLEAR.get(kind, 0.0) for kind in kinds), default=0.0):
            return True
        if not self._is_double:
            exactly = self._in_double(edits)
            if exactly is not None:
                return exactly
            if difference <= max((TOLERANCE.get(kind, 0.0) for kind in kinds), default=0.0):
                return True
        return difference <= MOST_ROUNDING and difference <= 10 * self._rounding

    def _in_double(self, edits: list[Edit]) -> bool | None:
        """Whether the edits change nothing but rounding in double precision; None where not all is computed in it."""
        if self._doubled is None:
            return None
        try:
            with in_double(self.anatomy):
                return self._doubled.problem(edits, equal=True) is None
        except Exception:  # whatever the foreign forward pass raises
            return None

    @functools.cached_property
    def _doubled(self) -> _Stage | None:
        """The stage in double precision."""
        tensors = [tensor for _, tensor in tensors_of(self.anatomy.model) if tensor.is_floating_point()]
        if 8 * sum(tensor.numel() for tensor in tensors) > MOST_DOUBLED:
            return None
        stage = _Stage(self.anatomy, _pytree.tree_map(doubled, self.example), [], False, training=self.training)
        try:
            with in_double(self.anatomy):
                with Precisions() as precisions:
                    stage.output = stage.answer()
                stage._rounding  # noqa: B018  # kept while it is in double precision
        except Exception:  # whatever the foreign forward pass raises
            return None
        return None if precisions.coarse or not stage.output else stage

    @functools.cached_property
    def _rounding(self) -> float:
        """How far the output moves with the last digit of every parameter: much in a deep network that amplifies."""
        random = torch.Generator().manual_seed(0)
        with undoing() as undo:
            for _, tensor in self.anatomy.model.named_parameters():
                if numeric(tensor):
                    sign = torch.randint(2, tensor.shape, generator=random, dtype=torch.int8).mul_(2).sub_(1).to(tensor)
                    data = tensor.data * (1 + torch.finfo(tensor.dtype).eps * sign)
                    undo.append(exchange(tensor, data, tensor.grad))
            return deviation(self.output, self.answer())

    def answer(self, redrawn: Redrawn | None = None) -> list[Tensor]:
        """What the network answers; ``redrawn`` gives each unit its noise where some of them have changed.

        In training mode gradients are recorded, as the code may ask for that, too.
        """
        if not self.training:
            noise = redrawn if self.anatomy.draws and redrawn is not None else contextlib.nullcontext()
            with plainly(self.anatomy.model), noise:
                return flat_tensors(call(self.anatomy.model, self.example))
        with plainly(self.anatomy.model, training=True), torch.enable_grad(), Steady():
            return [tensor.detach() for tensor in flat_tensors(call(self.anatomy.model, self.example))]


def _running(error: Exception) -> list[nn.Module]:
    """The modules whose forward passes an error comes out of, outermost first."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return [frame.f_locals["self"] for frame in frames if frame.f_code is nn.Module._call_impl.__code__]


def _isolate(layers: Sequence[HiddenLayer], trial: Trial, problem: Problem | None) -> list[tuple[HiddenLayer, str]]:
    """The layers that fail a trial; ``problem`` is what it says of all of them.

    Where the network stops running, those met in the module where it does are under suspicion; they are left out kind
    by kind (the same place in modules of one class), in the whole network, until it runs past that point.
    """
    remaining = list(layers)
    found: list[tuple[HiddenLayer, str]] = []
    while problem is not None:
        culprit: tuple[object, ...] | None = None
        after: Problem | None = None
        kinds = {layer: _kind(layer, problem.module) for layer in remaining}
        for kind in _suspects(kinds, problem.module):
            left = trial([layer for layer in remaining if kinds[layer] != kind])
            passed = left is None or left.module != problem.module
            if passed or (culprit is None and left != problem):  # one of several culprits, perhaps
                culprit, after = kind, left
            if passed:
                break
        if culprit is None or (after is not None and after.module is None):
            return found + _divided(remaining, trial)
        found += [(layer, problem.reason) for layer in remaining if kinds[layer] == culprit]
        remaining = [layer for layer in remaining if kinds[layer] != culprit]
        problem = after
    return found


def _suspects(kinds: Mapping[HiddenLayer, tuple[object, ...]], module: str | None) -> list[tuple[object, ...]]:
    """The kinds of layers that a module meets: heads and groups first, then the most local ones."""
    met = {
        kind: (not layer.factor.kind, len(layer.places))
        for layer, kind in reversed(list(kinds.items()))
        if module is not None and any(place.tensor.startswith(f"{module}." if module else "") for place in layer.places)
    }
    return sorted(met, key=lambda kind: met[kind])


def _divided(layers: Sequence[HiddenLayer], trial: Trial) -> list[tuple[HiddenLayer, str]]:
    """The layers that fail, kind by kind and then by halving."""
    found: list[tuple[HiddenLayer, str]] = []
    kinds: dict[object, list[HiddenLayer]] = {}
    for layer in layers:
        kinds.setdefault(_kind(layer), []).append(layer)
    for group in kinds.values() if len(kinds) > 1 else ():
        problem = trial(group)
        if problem is not None and trial(group[:1]) is not None:  # one cannot, so none of its kind is offered
            found.extend((layer, problem.reason) for layer in group)
    failed = {layer for layer, _ in found}
    return found + _halves([layer for layer in layers if layer not in failed], trial)


def _halves(layers: Sequence[HiddenLayer], trial: Trial) -> list[tuple[HiddenLayer, str]]:
    """The culprits among several layers, by halving."""
    problem = trial(layers) if layers else None
    if problem is None:
        return []
    if len(layers) == 1:
        return [(layers[0], problem.reason)]
    half = len(layers) // 2
    return _halves(layers[:half], trial) + _halves(layers[half:], trial)


def _kind(layer: HiddenLayer, module: str | None = None) -> tuple[object, ...]:
    """Layers are alike where the same attributes, from modules of one class on, lead to what makes them.

    The class is that of ``module`` for what such modules hold (there, the same number in a list does not matter), else
    that of the module that holds the weight, or the list of modules that it is in.
    """
    path, modules = layer.makers[0].tensor.split("."), layer.anatomy.modules
    if module is not None and not isinstance(modules[module], LISTS):
        for depth in range(len(path) - 2, 0, -1):
            if type(modules[".".join(path[:depth])]) is type(modules[module]):
                steps = ("*" if step.isdigit() else step for step in path[depth:])
                return type(modules[module]), *steps, layer.factor.kind
    for depth in range(max(len(path) - 2, 0), -1, -1):
        owner = modules[".".join(path[:depth])]
        if not isinstance(owner, LISTS):
            break
    return type(owner), *path[depth:], layer.factor.kind
