"""Allocation: how many units each layer keeps, so that the whole network meets a budget of parameters or FLOPs.

Every method says in which order a layer gives up its units, and what each of them is worth beside those of the other
layers. The units that are worth least go, over all layers, until the network meets the budget; then, the most worthy
first, units come back as long as it still does. Where it comes nearer so, the last unit stays and others go in its
place. Which units a layer gives up is the operation's choice.

``uniform``
    The same share of every layer.
``random``
    Units drawn at random from those of all layers.
``magnitude``
    The norm of a unit's outgoing weights over that of its layer.
``saliency``
    The first-order effect on the loss of a unit's output becoming zero, ``mean over samples of |Σ h · ∂ loss / ∂ h|``,
    over the norm of these scores in its layer: Molchanov et al. 2017, *Pruning convolutional neural networks for
    resource efficient inference*, equations 8 and 9.
``snip``
    The connection sensitivity ``|g · w|``, summed over the weights that make a unit, as it is: Lee et al. 2019, *SNIP:
    single-shot network pruning based on connection sensitivity*. It is meant for use at initialization.
``redundancy``
    The units that PCNS needs, at one fraction of lost variance for all layers (``ops.operations.pcns``).
``sensitivity``
    Each layer alone is cut by the operation to a few sizes and the loss of the signals' batch is measured; layers are
    cut to where the increase is the same, after Li et al. 2017, *Pruning filters for efficient convnets*, section 3.2.

A residual stream and whatever else is coupled is one layer of the anatomy, and a head is one unit, so both stay whole.
At least two units stay in each layer (``ops.operation.units_to_keep``). A budget counts whole tensors: what masks hide
of them counts as well.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor

from network_surgery.ops.anatomy import Anatomy, HiddenLayer
from network_surgery.ops.anatomy.running import call, plainly
from network_surgery.ops.arguments import is_seed
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.network.masks import count_hidden
from network_surgery.ops.operation import Operation, units_to_keep
from network_surgery.ops.signals.losses import mean_loss
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.signals.unit_scores import unit_scores
from network_surgery.ops.surgery.repair import apply_repairs, check_chain
from network_surgery.ops.surgery.surgery import trial_surgery

#: What a budget may be of, in words.
WORDS = {"parameters": "parameters", "flops": "FLOPs"}
#: The fewest units of a layer.
LEAST = 2
#: The shares of its units to which each layer alone is cut to see how sensitive the loss is to it; and to the fewest.
SHARES = (0.9, 0.75, 0.5, 0.25)


class Size(NamedTuple):
    """What a budget counts: parameters (what masks hide is counted), and FLOPs of one sample."""

    parameters: int
    flops: int


@dataclass(frozen=True)
class Allocation:
    """A budget of the whole network and how it is divided among the layers, as a step of a schedule has it.

    ``budget``: ``parameters``, ``flops`` or both, each as a fraction of the network (above 0, at most 1) or as a whole
    number above 1. ``method``: one of ``METHODS``, or shares: a number above 0 for layers by name or pattern (1 for all
    others), to which the fraction of its units that a layer keeps is proportional, up to all of them. ``layers``: among
    which units are chosen, by name or by a pattern such as ``blocks.*.mlp``; all others stay as they are. None are all
    layers.

    Raises:
        SurgeryError: the budget is none, or there is no such method.
    """

    budget: Mapping[str, float]
    method: str | Mapping[str, float] = "uniform"
    layers: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", check_budget(self.budget))
        if isinstance(self.method, Mapping):
            object.__setattr__(self, "method", _shares(self.method))
        elif not isinstance(self.method, str) or self.method not in METHODS:
            raise SurgeryError(f"a budget is allocated by {', '.join(METHODS)}, not by {self.method!r:.60}")
        listed = isinstance(self.layers, Sequence) and not isinstance(self.layers, str)
        if not listed or not all(isinstance(name, (str, int, float)) for name in self.layers):
            raise SurgeryError(f"layers are a list of names of layers, not {self.layers!r:.60}")
        object.__setattr__(self, "layers", tuple(map(str, self.layers)))

    def __hash__(self) -> int:
        return hash((tuple(self.budget.items()), str(self.method), self.layers))

    def __str__(self) -> str:
        among = f" among {', '.join(self.layers)}" if self.layers else ""
        if isinstance(self.method, str):
            return f"to {budget_text(self.budget)} by {self.method}{among}"
        shares = ", ".join(f"{name} {share:g}" for name, share in self.method.items())
        return f"to {budget_text(self.budget)} by the shares {shares}{among}"

    def check_layers(self, layers: Mapping[str, Any]) -> None:
        """Raises SurgeryError where a layer that it names is not among these."""
        chosen_layers(layers, self.layers)
        if isinstance(self.method, Mapping):
            chosen_layers(layers, list(self.method))


def allocate(
    anatomy: Anatomy,
    operation: Operation,
    budget: Mapping[str, float],
    method: str | Mapping[str, float] = "uniform",
    signals: Signals | None = None,
    *,
    layers: Sequence[str] = (),
    of: Size | None = None,
    repair: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, float]:
    """The fraction of its units that each layer keeps, so that the network meets the budget: layer → ``keep``.

    The network that results is never larger than the budget, and no layer could have one unit more. ``operation``: what
    is going to remove the units, anything with ``keep``. ``signals``: with targets for the methods that look at the
    loss (``WITH_SIGNALS`` lists those that need any). ``budget``, ``method`` and ``layers`` as in ``Allocation``;
    ``of``: the size that fractions are of, where it is not the present one. ``repair``: what is going to follow, as
    ``sensitivity`` measures with it. ``seed``: of ``random``.

    A network that meets the budget already keeps every unit.

    Raises:
        SurgeryError: the operation has no ``keep``, the budget is larger than what it is a fraction of or cannot be met
            with two units in each of the layers, there is no such method or layer, or signals are missing; whatever
            a unit score or (``sensitivity``) the operation raises.

    >>> from network_surgery.ops import MinWeight
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))
    >>> allocate(Anatomy(net, torch.zeros(2, 4)), MinWeight(), {"parameters": 0.5})
    {'0': 0.45}
    """
    if not isinstance(anatomy, Anatomy) or not is_seed(seed):
        raise SurgeryError(
            "a budget is allocated to the layers of an Anatomy(model, inputs), with a whole number as seed; given were "
            f"a {type(anatomy).__name__} and {seed!r:.60}"
        )
    check_operation(type(operation))
    wanted = Allocation(budget, method, layers)  # type: ignore[arg-type]
    if wanted.method in WITH_SIGNALS and not isinstance(signals, Signals):
        raise SurgeryError(f"to allocate a budget by {method} looks at data: give it Signals(model, inputs, targets)")
    wanted.check_layers(anatomy)
    now, chosen = size(anatomy), chosen_layers(anatomy, wanted.layers)
    most = limits(wanted.budget, of or now)
    check_possible(anatomy, wanted, most)
    if all(getattr(now, name) <= limit for name, limit in most.items()):
        return dict.fromkeys(chosen, 1.0)
    request = Request(operation, signals, check_chain(repair), torch.Generator().manual_seed(seed))
    worths = {name: _worths(wanted.method, anatomy[name], request) for name in chosen}
    widths = _fit_units(anatomy, worths, most)
    return {name: share(widths[name], anatomy[name].units) for name in chosen}


def size(anatomy: Anatomy, widths: Mapping[str, int] | None = None) -> Size:
    """The size of the network, or the one it would have with these numbers of units (layer → units).

    Raises:
        SurgeryError: this is no anatomy, it has no such layer, or a number of units is no whole number above 0.
    """
    if not isinstance(anatomy, Anatomy):
        raise SurgeryError(f"a size is that of an Anatomy(model, inputs), not of a {type(anatomy).__name__}")
    widths = {} if widths is None else widths
    if not isinstance(widths, Mapping):
        raise SurgeryError(f"widths are numbers of units by layer, such as {{'fc1': 10}}, not {widths!r:.60}")
    for name, units in widths.items():
        if not isinstance(units, int) or units < 1:
            raise SurgeryError(f"the units of layer {name!r} would be {units!r:.60}; give a whole number above 0")
    parameters, flops = anatomy.cost(widths)
    return Size(parameters + count_hidden(anatomy.masks().values()), flops)


def share(units: int, of: int) -> float:
    """The ``keep`` that leaves exactly this number of units, in whichever way an operation rounds."""
    keep = units / of
    return keep if int(keep * of) == units else math.nextafter(keep, 2)


def check_budget(budget: Any) -> dict[str, float]:
    """The budget as a dict. Raises SurgeryError unless it is one, see ``Allocation``."""
    if not isinstance(budget, Mapping) or not budget or not set(budget) <= set(Size._fields):
        raise SurgeryError(f"a budget is of parameters or flops, such as {{'parameters': 0.2}}; it is {budget!r:.60}")
    for name, value in budget.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
        if not number or (value > 1 and value != int(value)):
            raise SurgeryError(
                f"the budget of {name} is {value!r:.60}; write a fraction of the network, above 0 and at most 1, or a "
                "whole number above 1"
            )
    return {name: budget[name] for name in Size._fields if name in budget}


def budget_text(budget: Mapping[str, float]) -> str:
    """A budget in words.

    >>> budget_text({"parameters": 0.2, "flops": 1000000})
    '20 % of the parameters and 1,000,000 FLOPs'
    """
    return " and ".join(
        f"{100 * value:.4g} % of the {WORDS[name]}" if value <= 1 else f"{int(value):,} {WORDS[name]}"
        for name, value in budget.items()
    )


def limits(budget: Mapping[str, float], of: Size) -> dict[str, int]:
    """The most that a network may have. Raises SurgeryError where that is more than what it is a fraction of."""
    found = {}
    for name, value in budget.items():
        whole = getattr(of, name)
        if value > whole:
            raise SurgeryError(
                f"the budget of {int(value):,} {name} is larger than the network, which has {whole:,}; give less, or a "
                "fraction of it"
            )
        found[name] = int(value) if value > 1 else math.floor(value * whole + 1e-9)
    return found


def check_operation(kind: type[Operation]) -> None:
    """Raises SurgeryError unless it is a kind of operation with ``keep``, which is of units."""
    if getattr(kind, "of_blocks", False):
        raise SurgeryError(f"a budget says how many units each layer keeps, and {kind.__name__} removes blocks")
    if not is_dataclass(kind) or "keep" not in {each.name for each in fields(kind)}:
        raise SurgeryError(
            f"a budget says how many units each layer keeps, and {getattr(kind, '__name__', kind)!s:.60} has no keep: "
            "take an operation that has, such as min_weight or eigen_remove"
        )


def chosen_layers(layers: Mapping[str, Any], patterns: Sequence[str]) -> list[str]:
    """The names that these are, or that match one of these patterns, in the network's order; all where there is none.

    Raises SurgeryError where one of them matches nothing.
    """
    found = set[str]()
    for pattern in patterns:
        matched = {pattern} if pattern in layers else {name for name in layers if fnmatchcase(name, pattern)}
        if not matched:
            raise SurgeryError(
                f"a budget is to be allocated to the layer {pattern!r}; this network has {', '.join(layers) or 'none'}"
            )
        found |= matched
    if not layers:
        raise SurgeryError("a budget cannot be allocated: this network has no layer that can be operated on")
    return [name for name in layers if not patterns or name in found]


def check_possible(anatomy: Anatomy, allocation: Allocation, most: Mapping[str, int]) -> None:
    """Raises SurgeryError where the network is larger than the budget with two units in each of the layers."""
    chosen = chosen_layers(anatomy, allocation.layers)
    least = size(anatomy, {name: min(LEAST, anatomy[name].units) for name in chosen})
    for name, limit in most.items():
        if getattr(least, name) > limit:
            every = len(chosen) == len(anatomy)
            where = "each layer" if every else f"{', '.join(chosen)} and all others whole"
            raise SurgeryError(
                f"the budget of {budget_text({name: allocation.budget[name]})}, {limit:,}, cannot be met: with {LEAST} "
                f"units in {where} the network has {getattr(least, name):,}"
            )


@dataclass(frozen=True)
class Request:
    """What a method may look at besides the layer."""

    operation: Operation
    signals: Signals | None
    repair: tuple[str, ...]
    generator: torch.Generator


Worths = Callable[[HiddenLayer, Request], Tensor]


def _uniform(layer: HiddenLayer, request: Request) -> Tensor:
    return 1 - (torch.arange(layer.units, dtype=torch.float64) + 0.5) / layer.units


def _random(layer: HiddenLayer, request: Request) -> Tensor:
    return _rank(torch.rand(layer.units, generator=request.generator, dtype=torch.float64))


def _magnitude(layer: HiddenLayer, request: Request) -> Tensor:
    return _rank(_normalize(unit_scores(layer, None, "l2")))


def _saliency(layer: HiddenLayer, request: Request) -> Tensor:
    return _rank(_normalize(unit_scores(layer, request.signals, "taylor")))


def _snip(layer: HiddenLayer, request: Request) -> Tensor:
    return _rank(unit_scores(layer, request.signals, "snip"))


def _redundancy(layer: HiddenLayer, request: Request) -> Tensor:
    """Up to which fraction of lost variance PCNS needs each number of units (``maths.condensed.units_needed``)."""
    assert request.signals is not None
    spectrum = request.signals.together(layer).spectrum().cpu().double()
    found = torch.zeros(layer.units, dtype=torch.float64)
    lost = (1 - spectrum.cumsum(0)).clamp(min=0)[: max(layer.units - 2, 0)]
    found[:2], found[2 : 2 + len(lost)] = 1, lost
    return found


def _sensitivity(layer: HiddenLayer, request: Request) -> Tensor:
    """How much the loss rises as this layer alone is cut to one unit less; between the sizes that are tried, linear."""
    assert request.signals is not None
    signals, units = request.signals, layer.units
    sizes = sorted({units_to_keep(layer, each) for each in SHARES} | {min(LEAST, units)}, reverse=True)
    tried, rises, highest = [units], [0.0], 0.0
    before = _loss(layer, signals)
    for count in sizes:
        if count < units:
            cut = replace(request.operation, keep=share(count, units))  # type: ignore[type-var, call-arg]
            chain = [each for each in request.repair if each != "batchnorm"]  # which is no part of a plan
            with trial_surgery(apply_repairs(cut.propose(layer, signals), signals, chain)):
                rise = _loss(layer, signals) - before
            highest = max(highest, rise if math.isfinite(rise) else math.inf)
            tried.append(count)
            rises.append(min(highest, 1e300))
    found = torch.full((units,), math.inf, dtype=torch.float64)
    for (large, low), (small, high) in itertools.pairwise(zip(tried, rises, strict=True)):
        for left in range(small, large):  # the unit that goes when ``left`` of them are left
            found[left] = high + (low - high) * (left - small) / (large - small)
    return found


def _loss(layer: HiddenLayer, signals: Signals) -> float:
    with plainly(layer.anatomy.model):
        outputs = call(layer.anatomy.model, signals.inputs)
        return float(mean_loss(outputs, signals.classes, signals.loss_function))


def _rank(scores: Tensor) -> Tensor:
    return scores.detach().cpu().double().sort(descending=True).values


def _normalize(scores: Tensor) -> Tensor:
    """Scores ``[units]`` over their norm in the layer."""
    return scores / scores.norm().clamp(min=torch.finfo(scores.dtype).tiny)


#: Method → what the first, second, … unit that a layer keeps is worth, ``[units]``, descending.
METHODS: dict[str, Worths] = {
    "uniform": _uniform,
    "redundancy": _redundancy,
    "saliency": _saliency,
    "snip": _snip,
    "magnitude": _magnitude,
    "sensitivity": _sensitivity,
    "random": _random,
}
#: The methods that look at the loss of one batch, and all that look at data.
BY_LOSS = ("saliency", "snip", "sensitivity")
WITH_SIGNALS = ("redundancy", *BY_LOSS)


def _worths(method: str | Mapping[str, float], layer: HiddenLayer, request: Request) -> Tensor:
    """What the first, second, … unit that a layer keeps is worth, ``[units]``, descending."""
    if isinstance(method, str):
        return METHODS[method](layer, request)
    patterns = [pattern for pattern in method if pattern == layer.name or fnmatchcase(layer.name, pattern)]
    share = method[min(patterns, key=lambda pattern: pattern != layer.name)] if patterns else 1.0
    return -(torch.arange(layer.units, dtype=torch.float64) + 0.5) / layer.units / share


def _shares(shares: Mapping[Any, Any]) -> dict[str, float]:
    """Shares as a dict. Raises SurgeryError where one is not a number above 0."""
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < math.inf:
            raise SurgeryError(f"the share of {name} in a budget is {share!r:.60}, but it must be a number above 0")
    if not shares:
        raise SurgeryError("a budget is allocated by shares, and there are none: write some such as {fc1: 0.5}")
    return {str(name): share for name, share in shares.items()}


def _fit_units(anatomy: Anatomy, worths: Mapping[str, Tensor], most: Mapping[str, int]) -> dict[str, int]:
    """The number of units of each layer. ``worths``: as in ``METHODS``; ``most``: what the network may have."""
    full = {name: anatomy[name].units for name in worths}
    order = [name for *_, name in sorted(_candidates(worths))]

    def measure_use(widths: Mapping[str, int]) -> float:
        """How much of the budget a network takes, where it takes most of it; above 1 it is too large."""
        found = size(anatomy, widths)
        return max(getattr(found, name) / limit for name, limit in most.items())

    def left(gone: Sequence[str]) -> dict[str, int]:
        taken = Counter(gone)
        return {name: units - taken[name] for name, units in full.items()}

    def cut(order: Sequence[str]) -> int:
        """The fewest units that must go in this order; one more than there are where all are too few."""
        return bisect_left(range(len(order) + 1), True, key=lambda gone: measure_use(left(order[:gone])) <= 1)

    def refill(gone: Sequence[str]) -> dict[str, int]:
        """As many of them back as still fit, the last one first."""
        widths, growing = left(gone), set(full)
        for name in reversed(gone):
            if name in growing:
                larger = {**widths, name: widths[name] + 1}
                if measure_use(larger) <= 1:
                    widths = larger
                else:  # nor will it later, as the others only grow
                    growing.remove(name)
        return widths

    gone = cut(order)
    found = [refill(order[:gone])]
    if gone:  # the last one may have been a large one: without it, others have to go in its place
        spared = [*order[: gone - 1], *(name for name in order[gone:] if name != order[gone - 1])]
        if (other := cut(spared)) <= len(spared):
            found.append(refill(spared[:other]))
    return max(found, key=measure_use)


def _candidates(worths: Mapping[str, Tensor]) -> Iterator[tuple[float, float, int, str]]:
    """The units that may go: what each is worth; among equals each layer gives the same share."""
    for place, (name, worth) in enumerate(worths.items()):
        units = len(worth)
        for unit, value in enumerate(worth.tolist()):
            if unit >= LEAST:
                yield value, 1 - (unit + 0.5) / units, place, name
