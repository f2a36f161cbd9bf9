"""What an edit of a hidden layer promises, each promise against its own definition, and what the checks would notice.

*duplicate*: units doubled at uneven shares leave the output as it was. *permute*: so does another order. *remove*:
what is left equals the network in which nobody reads the removed units. *regrow*: growing and shrinking back changes
nothing. A layer that a norm over its units makes inexact may be in another order, must *run* without some units, and
keeps its output when all units that the norm sees are doubled (*double*). With every layer smaller the network must
also run in training mode (*train*), and what does not change the output does not change it there, either (*in
training*). An exact layer may become as large as something else in the network is (*meet*). All errors are relative
to the output's scale, in double precision.

``examine`` asks all of this of an anatomy; ``lively`` makes a network whose output depends on every part of it.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree

from network_surgery.ops import Anatomy, HiddenLayer, Plan, trial_surgery
from network_surgery.ops.anatomy import call
from tests.ops.networks import silenced

EXACT = 1e-9  #: relative error that counts as none
AMPLIFIED = 1e-4  #: the largest error that a network which amplifies rounding may excuse
SHAKES = 4  #: one draw of last digits may move a chaotic network by a twentieth of what another does
FAINT = 1e-6  #: a change smaller than this would show nothing: the check has no power

Edit = tuple[HiddenLayer, tuple[int, ...], list[float]]


@dataclass(frozen=True)
class Verdict:
    """One promise of one layer (or of all): its error, infinite where the edited network does not run.

    ``rounding``: how far the output moves with the last digit of every weight at most, where that was asked.
    """

    layer: str
    promise: str
    error: float
    note: str = ""
    tolerance: float = EXACT
    rounding: float = 0.0

    @property
    def broken(self) -> bool:
        return not self.error < max(self.tolerance, min(10 * self.rounding, AMPLIFIED))

    def __str__(self) -> str:
        return f"{self.layer}: {self.promise} is off by {self.error:.1e}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Examination:
    """All verdicts on one anatomy.

    ``faint`` layers hardly reach the output, so that they pass every check; ``resized`` are the parameters and buffers
    that some layer resizes.
    """

    verdicts: list[Verdict]
    faint: list[str]
    resized: set[str]

    @property
    def broken(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.broken]

    @property
    def worst(self) -> float:
        """The largest error among the promises that are kept."""
        return max((v.error for v in self.verdicts if not v.broken), default=0.0)


def examine(
    anatomy: Anatomy, inputs: Any, seed: int = 0, careful: bool = True, tolerance: float = EXACT, doubles: bool = True
) -> Examination:
    """Every promise of every layer, one layer at a time and then all of them at once.

    ``careful`` compares every bit of the network after each layer instead of once at the end. ``tolerance`` is for
    networks that compute in single precision whatever they are given. Without ``doubles`` it is not asked of norms that
    they overlook doubling: the network also counts its units, or a softmax runs over them.
    """
    chance = random.Random(seed)
    model = anatomy.model
    before = fingerprint(model)
    plain = outputs(model, inputs)
    verdicts: list[Verdict] = []
    faint: list[str] = []
    resized: set[str] = set()

    def judge(name: str, promise: str, error: Callable[..., float | tuple[float, float]], *arguments: Any) -> None:
        try:
            found = error(model, inputs, *arguments)
            off, rounding = found if isinstance(found, tuple) else (found, 0.0)
            verdicts.append(Verdict(name, promise, off, tolerance=tolerance, rounding=rounding))
        except Exception as problem:  # whatever a network raises at another size
            first = (str(problem).splitlines() or [""])[0]
            verdicts.append(Verdict(name, promise, math.inf, f"{type(problem).__name__}: {first[:200]}"))

    blurred = [layer for layer in anatomy.values() if not layer.exact]
    for name, layer in anatomy.items():
        judge(name, "permute", _unchanged, plain, [shuffled(layer, chance)])
        if layer.exact:
            judge(name, "duplicate", _unchanged, plain, [grown(layer, chance)])
            judge(name, "remove", _removed, [layer], chance, resized)
            judge(name, "regrow", _regrown, plain, layer, chance)
            for units in meeting(model, layer):
                judge(name, f"meet {units}", _met, layer, units)
        else:
            together = _full_doubling(model, layer, blurred, chance)
            inside = ":" in name  # a norm inside heads undoes the shares of queries and keys
            if doubles and together and not inside and re.search("Norm|mean|amax", layer.reason or ""):
                judge(name, "double", _unchanged, plain, together)
            judge(name, "run", _runs, plain, layer, chance, resized)
        with silenced([(layer, range(layer.units))]):
            if difference(plain, outputs(model, inputs)) < FAINT:
                faint.append(name)
        if careful and fingerprint(model) != before:
            verdicts.append(Verdict(name, "undo", math.inf, "the network is not what it was"))
            return Examination(verdicts, faint, resized)
    exact = [layer for layer in anatomy.values() if layer.exact]
    if len(anatomy) > 1:
        judge("all", "permute", _unchanged, plain, [shuffled(layer, chance) for layer in anatomy.values()])
        judge("all", "duplicate", _unchanged, plain, [grown(layer, chance) for layer in exact])
        judge("all", "remove", _removed, exact, chance, resized)
    trained = _training_shapes(model, inputs)
    if trained is not None and anatomy:
        judge("all", "train", _trains, trained, list(anatomy.values()), chance)
        judge("all", "in training", _unchanged_in_training, exact, blurred, chance)
    if fingerprint(model) != before:
        verdicts.append(Verdict("all", "undo", math.inf, "the network is not what it was"))
    return Examination(verdicts, faint, resized)


# -- edits -------------------------------------------------------------------------------------------------------------


def shuffled(layer: HiddenLayer, chance: random.Random) -> Edit:
    """The units in a random order that is not theirs."""
    order = list(range(layer.units))
    while len(order) > 1 and order == sorted(order):
        chance.shuffle(order)
    return layer, tuple(order), [1.0] * layer.units


def grown(layer: HiddenLayer, chance: random.Random) -> Edit:
    """A random subset doubled: each copy at a random place, with a random share that its unit loses."""
    shares = [1.0] * layer.units
    units = [(unit, False) for unit in range(layer.units)]
    copies: dict[int, float] = {}
    for unit in chance.sample(range(layer.units), chance.randint(1, layer.units)):
        copies[unit] = chance.uniform(0.1, 0.4)
        shares[unit] -= copies[unit]
        units.insert(chance.randint(0, len(units)), (unit, True))
    return layer, tuple(unit for unit, _ in units), [copies[u] if copy else shares[u] for u, copy in units]


def doubled(layer: HiddenLayer, chance: random.Random) -> Edit:
    """Every unit doubled, the copy beside it: means over the units, and over groups of them, stay."""
    shares = [chance.uniform(0.1, 0.4) for _ in range(layer.units)]
    sources = tuple(unit for unit in range(layer.units) for _ in range(2))
    return layer, sources, [part for share in shares for part in (1 - share, share)]


def halved(layer: HiddenLayer, chance: random.Random) -> tuple[Edit, list[int]]:
    """A random subset of the units goes, at least one and never all; also which."""
    gone = sorted(chance.sample(range(layer.units), chance.randint(1, layer.units - 1)))
    kept = tuple(unit for unit in range(layer.units) if unit not in gone)
    return (layer, kept, [1.0] * len(kept)), gone


def edited(edits: list[Edit]) -> AbstractContextManager[None]:
    """The network after these edits, one after another, for the time of a ``with`` block."""
    plans = [Plan(layer, "edit", sources, shares=torch.tensor(s, dtype=torch.float64)) for layer, sources, s in edits]
    return trial_surgery(*plans)


# -- promises ----------------------------------------------------------------------------------------------------------


def _unchanged(model: nn.Module, inputs: Any, plain: list[Tensor], edits: list[Edit]) -> float:
    with edited(edits):
        return difference(plain, outputs(model, inputs))


def _removed(
    model: nn.Module, inputs: Any, layers: list[HiddenLayer], chance: random.Random, resized: set[str]
) -> tuple[float, float]:
    """The error, and what rounding does: without these units, deep networks may amplify all that is left.

    Where they amplify it beyond what can be excused, the output tells nothing; the modules up to there do.
    """
    pairs = [halved(layer, chance) for layer in layers if layer.units > 1]
    edits, gone = [edit for edit, _ in pairs], [(edit[0], units) for edit, units in pairs]
    with silenced(gone):
        wanted = outputs(model, inputs)
    before = sizes(model)
    with edited(edits):
        resized.update(name for name, size in sizes(model).items() if size != before[name])
        found = outputs(model, inputs)
        error = difference(wanted, found)
        if error < EXACT:
            return error, 0.0
        rounding = 0.0
        for seed in range(SHAKES):
            with shaken(model, seed):
                rounding = max(rounding, difference(found, outputs(model, inputs)))
    return (error, rounding) if 10 * rounding <= AMPLIFIED else _removed_on_the_way(model, inputs, edits, gone)


def _removed_on_the_way(
    model: nn.Module, inputs: Any, edits: list[Edit], gone: list[tuple[HiddenLayer, list[int]]]
) -> tuple[float, float]:
    with silenced(gone):
        wanted = followed(model, inputs)
    with edited(edits):
        found = followed(model, inputs)
        with shaken(model):
            moved = followed(model, inputs)
    error, rounding, visible = math.inf, 0.0, False
    for one, other, third in zip(wanted, found, moved, strict=True):
        if [t.shape for t in one] != [t.shape for t in other]:
            visible = True  # from here on it can be seen whether the right units are gone
        elif 10 * difference(other, third) > AMPLIFIED:
            break
        elif visible:
            rounding = max(rounding, difference(other, third))
            error = max(0.0 if math.isinf(error) else error, difference(one, other))
    return error, rounding


@torch.no_grad()
def followed(model: nn.Module, inputs: Any) -> list[list[Tensor]]:
    """What each of the innermost modules answers, in order."""
    seen: list[list[Tensor]] = []

    def look(module: nn.Module, args: Any, out: Any) -> None:
        seen.append([leaf.clone() for leaf in _pytree.tree_leaves(out) if isinstance(leaf, Tensor)])

    hooks = [m.register_forward_hook(look) for m in model.modules() if not list(m.children())]
    try:
        outputs(model, inputs)
        return seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def shaken(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """The network with the last digit of every weight changed, for the time of a ``with`` block."""
    chance = torch.Generator().manual_seed(seed)
    kept = [(parameter, parameter.data) for parameter in model.parameters() if parameter.is_floating_point()]
    try:
        for parameter, data in kept:
            sign = torch.rand(data.shape, generator=chance).round().mul(2).sub(1).to(data)
            parameter.data = data * (1 + torch.finfo(data.dtype).eps * sign)
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def _regrown(model: nn.Module, inputs: Any, plain: list[Tensor], layer: HiddenLayer, chance: random.Random) -> float:
    """Grown, then one of the two copies goes and the other takes its share again."""
    edit = grown(layer, chance)
    _, sources, shares = edit
    last = {unit: at for at, unit in enumerate(sources)}
    back = tuple(last[unit] for unit in range(layer.units))
    with edited([edit]), edited([(layer, back, [1 / shares[at] for at in back])]):
        return difference(plain, outputs(model, inputs))


def _full_doubling(
    model: nn.Module, layer: HiddenLayer, blurred: list[HiddenLayer], chance: random.Random
) -> list[Edit]:
    """The edit that doubles this layer, alone or with all that are inexact; empty where both double an axis in part.

    A norm may run over several layers, or over a layer and a constant: its statistics stay only if all of it doubles.
    """
    before = sizes(model)
    for layers in ([layer], blurred):
        edits = [doubled(each, chance) for each in layers]
        with edited(edits):
            pairs = [(a, b) for name, size in sizes(model).items() for a, b in zip(before[name], size, strict=True)]
        if all(new in (old, 2 * old) for old, new in pairs):
            return edits
    return []


def _runs(
    model: nn.Module, inputs: Any, plain: list[Tensor], layer: HiddenLayer, chance: random.Random, resized: set[str]
) -> float:
    """Zero if the network runs without some of the units and answers in the same shapes, with numbers."""
    if layer.units < 2:
        return 0.0
    before = sizes(model)
    with edited([halved(layer, chance)[0]]):
        resized.update(name for name, size in sizes(model).items() if size != before[name])
        return 0.0 if math.isfinite(difference(plain, outputs(model, inputs))) else math.inf


def _trains(model: nn.Module, inputs: Any, shapes: list[torch.Size], layers: list[HiddenLayer], chance: Any) -> float:
    """Zero if the network answers in training mode too: parts that only train may read a layer as well."""
    with edited([halved(layer, chance)[0] for layer in layers if layer.units > 1]):
        return 0.0 if _training_run(model, inputs) == shapes else math.inf


def meeting(model: nn.Module, layer: HiddenLayer, most: int = 1) -> list[int]:
    """Sizes of other things at which this layer may be: the nearest smaller ones, and one larger."""
    others = sorted({size for _, tensor in tensors(model) for size in tensor.shape})
    smaller = [size for size in others if 1 < size < layer.units][-most:]
    return smaller + [size for size in others if layer.units < size <= 2 * layer.units][:1]


def _met(model: nn.Module, inputs: Any, layer: HiddenLayer, units: int) -> tuple[float, float]:
    """The layer at another size: without its last units, or with its first ones twice; as ``_removed``."""
    twice = units - layer.units
    sources = [*range(min(units, layer.units)), *range(max(twice, 0))]
    shares = [0.5 if unit < twice else 1.0 for unit in sources]
    with silenced([(layer, range(units, layer.units))]):
        wanted = outputs(model, inputs)
    edit = layer, tuple(sources), shares
    with edited([edit]):
        found = outputs(model, inputs)
        error = difference(wanted, found)
        if error < EXACT:
            return error, 0.0
        with shaken(model):
            rounding = difference(found, outputs(model, inputs))
    if 10 * rounding <= AMPLIFIED or units > layer.units:
        return error, rounding
    return _removed_on_the_way(model, inputs, [edit], [(layer, list(range(units, layer.units)))])


def _unchanged_in_training(
    model: nn.Module, inputs: Any, exact: list[HiddenLayer], blurred: list[HiddenLayer], chance: random.Random
) -> tuple[float, float]:
    """What grows and moves leaves the answer in training mode as it was; nothing is asked of noise."""
    with _training(model):
        wanted = _noisy(model, inputs, 0)
        if difference(wanted, _noisy(model, inputs, 1)) > 0:
            return 0.0, 0.0
        with shaken(model):
            rounding = difference(wanted, _noisy(model, inputs, 0))
    edits = [*(grown(layer, chance) for layer in exact), *(shuffled(layer, chance) for layer in blurred)]
    with edited(edits), _training(model):
        return difference(wanted, _noisy(model, inputs, 0)), rounding


def _noisy(model: nn.Module, inputs: Any, seed: int) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return outputs(model, inputs)


def _training_shapes(model: nn.Module, inputs: Any) -> list[torch.Size] | None:
    try:
        return _training_run(model, inputs)
    except Exception:  # such as a detector's, which asks for targets
        return None


def _training_run(model: nn.Module, inputs: Any) -> list[torch.Size]:
    """The shapes of the network's answer in training mode."""
    with _training(model):
        return [tensor.shape for tensor in outputs(model, inputs)]


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Training mode for a while; running statistics and modes are as before."""
    modes = {module: module.training for module in model.modules()}
    buffers = {module: dict(module._buffers) for module in model.modules()}
    for module in model.modules():
        module.training = True
        module._buffers.update({k: b.clone() for k, b in module._buffers.items() if b is not None})
    try:
        yield
    finally:
        for module in model.modules():
            module.training = modes[module]
            module._buffers.update(buffers[module])


# -- what the checks notice --------------------------------------------------------------------------------------------


def slips(anatomy: Anatomy, layer: HiddenLayer, inputs: Any, seed: int = 0) -> dict[tuple[str, int], float]:
    """How far the output moves when a removal is wrong in one place: (tensor, axis) → relative difference.

    In each tensor that the removal resizes the axis is rolled by one, as if this place had kept other units.
    """
    edit, gone = halved(layer, random.Random(seed))
    model = anatomy.model
    with silenced([(layer, gone)]):
        wanted = outputs(model, inputs)
    before = sizes(model)
    found: dict[tuple[str, int], float] = {}
    with edited([edit]):
        for name, tensor in tensors(model):
            for axis, (old, new) in enumerate(zip(before[name], tensor.shape, strict=True)):
                if old != new > 1:
                    right = tensor.data
                    tensor.data = right.roll(1, axis)
                    found[name, axis] = difference(wanted, outputs(model, inputs))
                    tensor.data = right
    return found


# -- networks ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """What the network answers, which is in evaluation mode."""
    fresh = _pytree.tree_map_only(Tensor, torch.clone, inputs)  # some networks work in place
    return [leaf for leaf in _pytree.tree_leaves(call(model, fresh)) if isinstance(leaf, Tensor)]


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of the same tensor; infinite between unlike answers."""
    if [t.shape for t in one] != [t.shape for t in other]:
        return math.inf
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        if a.numel() == 0:
            continue
        if not torch.equal(a.isfinite(), b.isfinite()):
            return math.inf
        a, b = a.nan_to_num(0.0, 0.0, 0.0), b.nan_to_num(0.0, 0.0, 0.0)
        worst = max(worst, float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1e-12)))
    return worst


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def sizes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors(model)}


def fingerprint(model: nn.Module) -> Mapping[str, Any]:
    """Every bit of every tensor, its identity, gradient and flag, and every module's mode and plain attributes."""
    seen: dict[str, Any] = {}
    for name, tensor in tensors(model):
        bits = hash(tensor.detach().cpu().to_dense().contiguous().numpy().tobytes())
        identity = id(tensor) if isinstance(tensor, nn.Parameter) else 0
        seen[name] = (identity, tuple(tensor.shape), bits, tensor.requires_grad, tensor.grad is None)
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if all(isinstance(e, (int, float, str)) for e in _elements(v))}
        seen[f"module {name}"] = tuple(sorted((k, repr(v)) for k, v in plain.items()))
    return seen


def _elements(value: Any) -> tuple[Any, ...] | list[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def lively(model: nn.Module, inputs: Any, seed: int = 0) -> nn.Module:
    """Random weights by which every part shows in the output, in evaluation mode.

    Nothing is left at 0, 1 or 1e-6: norms have scales and shifts, batch norms running statistics near those of
    ``inputs``, layer scales are of order one; dense and convolution weights give outputs of deviation one.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            _enliven(name, parameter)
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0, 0.5)
                module.running_var.uniform_(0.5, 2)
        hooks = list(_calibrated(model))
        model.eval()
        outputs(model, inputs)
        for hook in hooks:
            hook.remove()
    return model


def _enliven(name: str, parameter: Tensor) -> None:
    if not parameter.is_floating_point():
        return
    wide = [size for size in parameter.shape if size > 1]
    last = name.rpartition(".")[2]
    if len(wide) > 1 and not any(word in name for word in ("pos", "token", "table", "embed", "cls")):
        parameter.normal_(0, math.sqrt(1.5 / max(1, parameter.numel() // parameter.shape[0])))
    elif len(wide) <= 1 and any(word in last for word in ("weight", "gamma", "scale")):
        parameter.uniform_(0.5, 1.5)
    else:
        parameter.normal_(0, 0.5)


def _calibrated(model: nn.Module) -> Iterator[Any]:
    """Hooks that at the first call scale what weighted modules make to deviation one and set running statistics."""
    done: set[int] = set()

    def scaled(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        weight = module.weight
        spread = float(out.std()) if isinstance(out, Tensor) and out.numel() > 1 else 0.0
        if id(weight) in done or not isinstance(weight, nn.Parameter) or not 1e-9 < spread < math.inf:
            return None
        done.add(id(weight))
        for parameter in (weight, module.bias):
            if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
                parameter.div_(spread)
        return out / spread

    def measured(module: nn.Module, args: Any) -> None:
        x, mean, variance = args[0], module.running_mean, module.running_var
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or id(module) in done:
            return
        done.add(id(module))
        channels = x.transpose(0, 1).flatten(1)
        noise = torch.rand_like(variance)
        least = 0.7 * float(channels.square().mean().sqrt()) + 1e-9  # a smaller one would magnify rounding
        deviation = channels.std(1, correction=0).clamp(min=least)
        mean.copy_(channels.mean(1) + (noise - 0.5) * deviation)
        variance.copy_(deviation.square() * (0.5 + noise))

    for module in model.modules():
        if isinstance(module, (nn.Linear, _ConvNd)):
            yield module.register_forward_hook(scaled)
        elif isinstance(module, _BatchNorm):
            yield module.register_forward_pre_hook(measured)


def unaccounted(anatomy: Anatomy, resized: Iterable[str]) -> Iterator[str]:
    """Modules that make several units, which no layer resizes and which are not pinned with a reason either."""
    pinned = {name.split(":")[0] for name in anatomy.pinned}
    known = set(resized) | pinned | {f"{name}.weight" for name in pinned}
    named = list(anatomy.model.named_parameters(remove_duplicate=False))
    accounted = {id(parameter) for name, parameter in named if name in known}  # tied weights have several names
    for name, module in anatomy.model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, (nn.Linear, nn.Embedding, _ConvNd)) or not isinstance(weight, nn.Parameter):
            continue
        units = module.out_channels if isinstance(module, _ConvNd) else weight.shape[-isinstance(module, nn.Embedding)]
        depthwise = isinstance(module, _ConvNd) and module.groups == module.in_channels == units
        if units > 1 and not depthwise and id(weight) not in accounted:
            yield name
