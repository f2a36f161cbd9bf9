"""The rehearsal: what the trace proposes is tried before it is offered.

All layers are changed at once, in place and undone: all units are put in another order, about a sixteenth of them is
doubled at uneven shares, and units are added that have weights of their own but that nobody reads. None of this may
change the output at all; that taking such units away again changes nothing is what removal claims. A layer that fails
(a hard-coded size, a unit used by its position, a maximum over the units) is pinned with the reason instead of being
offered. Layers of one size get several new sizes, so that code that couples two layers by their size is noticed.
Layers that a norm couples are only put in another order; they, and those that the code cuts into pieces, run
once more at about half their size, by which no old size can be divided. For that two samples do, unless values in the
network decide what it runs. A network in which everything is right costs one or two passes, besides the traced one.

Only where the network gives reason to, more is tried. Where its code reads the mode, the same must hold in training
mode, unless that runs the same operators. Where it reads sizes, there are more new sizes, and what runs at half its
size runs at a larger one, too. Where it compares sizes, each layer is tried at the sizes at which the comparison comes
out otherwise (a shortcut that is projected only if two shapes differ).

Whether a difference is rounding is not left to rounding: in doubt, both networks are computed in double precision.

Where operators are small, it is not they that take the time but the Python around them, so each tensor is rebuilt in
few operations: vectors that change alike (of a norm, say) together, strangers from one draw. The smaller sizes come
first, as they stop early where numbers are missing. Of wide layers fewer units are doubled: to copy weights takes long.

A network shows little of itself where its input is constant, a scale is zero or a bias is not yet trained; for the time
of the discovery, such inputs and the vectors among its parameters are random (``lively``). Numbers that modules keep,
and that only happen to be the size of an axis, are left alone as long as the network runs without changing them.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from network_surgery.ops.anatomy import axes, trials
from network_surgery.ops.anatomy.culprits import Trial, isolate
from network_surgery.ops.anatomy.rebuild import Edit, Rebuilt
from network_surgery.ops.anatomy.stage import MOST_ROUNDING, Problem, Stage
from network_surgery.ops.errors import pass_on_memory

if TYPE_CHECKING:
    from network_surgery.ops.anatomy import Anatomy
    from network_surgery.ops.anatomy.layers import HiddenLayer
    from network_surgery.ops.anatomy.watch import Comparison


class Chaotic(Exception):
    """Rounding alone moves the output of the network so far that nothing can be compared."""


#: More layers than these are not tried one by one at sizes at which the network decides otherwise.
MOST_ALONE = 16


def faults(
    anatomy: Anatomy,
    example: Any,
    output: list[Tensor],
    entered: list[nn.Module],
    samples: int | None = None,
    *,
    training: list[Tensor] | None = None,
    comparisons: Sequence[Comparison] = (),
    measured: bool = False,
    calm: bool = False,
) -> list[tuple[HiddenLayer, str]]:
    """The layers that cannot be operated on, with the reason; ``output`` is the network's, unchanged, and ``entered``
    the modules that it passed.

    ``samples``: how many there are, if the trace saw no value decide what is run or how large a tensor is. Whether the
    network runs does then not depend on what the samples hold, and two that pass the same modules stand for all.
    ``training``: what the network answers in training mode, if the same is to be tried in it. ``comparisons`` of sizes
    are what the network's code may decide by; ``measured``: it reads sizes. Raises Chaotic where nothing can be
    compared, unless the network is ``calm``.
    """
    two = samples is not None and samples > 2
    rebuilds = Rebuilt()
    stage = Stage(anatomy, example, output, two or bool(comparisons), entered, rebuilds=rebuilds)
    if not stage.numbered:
        return [(layer, "the network's output holds no finite number to compare") for layer in anatomy.values()]
    stages = [stage]
    if samples is not None and two:
        stages.insert(0, Stage(anatomy, _two(example, samples), _two(output, samples), two, rebuilds=rebuilds))
    if training is not None:
        learning = Stage(anatomy, example, training, False, training=True, rebuilds=rebuilds)
        stage.learning = stages[0].learning = learning
    widths = trials.WIDTHS_MEASURED if measured else trials.WIDTHS
    new_order, half = functools.cache(trials.reorder), functools.cache(trials.halve)  # the same edits
    larger = functools.cache(trials.larger)

    def try_order(layers: Sequence[HiddenLayer]) -> Problem | None:
        sizes, edits = Counter[int](), []
        for layer in layers:
            edits.append(new_order(layer, sizes[layer.units], widths))
            sizes[layer.units] += 1
        for some in trials.split_edits(edits):
            problem = stage.problem(some, equal=True)
            if problem is not None:
                if not calm and problem.moved and stage.rounding > MOST_ROUNDING:
                    raise Chaotic
                return problem
        return None

    def try_half(layers: Sequence[HiddenLayer]) -> Problem | None:
        return resized([half(layer) for layer in layers]) or resized(
            [larger(x) for x in layers if not x.exact and (measured or x.factor.cut)]
        )

    def resized(edits: list[Edit]) -> Problem | None:
        problem = None
        for each in stages:
            problem = each.problem(edits, equal=False)
            if problem is None and each.entered == stage.entered:
                break
        return problem

    found = _regular(anatomy, _remembering(anatomy, try_order), _remembering(anatomy, try_half))
    failed = {layer for layer, _ in found}
    rest = [layer for layer in anatomy.values() if layer not in failed]
    return found + (_deciding(rest, comparisons, stage, entered) if comparisons else [])


def _remembering(anatomy: Anatomy, trial: Trial) -> Trial:
    """The trial, which is made once for the same layers and the same numbers that follow them: it would say the same
    again."""
    known: dict[object, Problem | None] = {}

    def remember(layers: Sequence[HiddenLayer]) -> Problem | None:
        changed = {layer.factor for layer in layers}
        following = tuple(number for number in anatomy.written if changed & set(axes.units_on(number.axis)))
        key = tuple(layers), following
        if key not in known:
            known[key] = trial(layers)
        return known[key]

    return remember


def _regular(anatomy: Anatomy, reordered: Trial, halved: Trial) -> list[tuple[HiddenLayer, str]]:
    layers, numbers = list(anatomy.values()), anatomy.written
    resized = [layer for layer in layers if not layer.exact or layer.factor.cut]
    anatomy.written = [number for number in numbers if number.sure]
    if halved(resized) is None and reordered(layers) is None:  # the first one stops early where numbers are missing
        return []
    best: list[tuple[HiddenLayer, str]] | None = None
    choices = (numbers, [number for number in numbers if number.sure or not number.shared])
    for written in choices[: 1 + any(number.shared and not number.sure for number in numbers)]:
        anatomy.written = written
        found: list[tuple[HiddenLayer, str]] = []
        for some, trial in ((layers, reordered), (resized, halved)):
            failed = {layer for layer, _ in found}
            left = [layer for layer in some if layer not in failed]
            found += isolate(left, trial, trial(left))
        if best is None or len(found) < len(best):
            best, numbers = found, written
        if not found:
            break
    anatomy.written = numbers
    return best or []


def _deciding(
    layers: Sequence[HiddenLayer], comparisons: Sequence[Comparison], stage: Stage, entered: list[nn.Module]
) -> list[tuple[HiddenLayer, str]]:
    """The layers that fail at a size at which the network's code decides otherwise than it does now.

    Fewer units are compared with the same units silenced, more with the network as it is; of a layer that a norm
    couples, the network must pass the same modules.
    """

    def problem(chosen: Sequence[tuple[HiddenLayer, int]]) -> bool:
        edits = [trials.change_size(layer, units) for layer, units in chosen]
        if not all(edit.layer.exact for edit in edits):
            return stage.problem(edits, equal=False) is not None or stage.entered != entered
        try:
            return not stage.keeps(edits) or stage.entered != entered
        except Exception as error:  # whatever the foreign forward pass raises at another size
            pass_on_memory(error)
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


def _two(tree: Any, samples: int) -> Any:
    """The first two samples of every tensor that is as long as there are samples."""

    def cut(x: Any) -> Any:
        plain = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested and x.dim() > 0
        return x[:2] if plain and x.size(0) == samples else x

    return _pytree.tree_map(cut, tree)
