"""Axes: what the positions along an axis of a tensor stand for, as an expression over sets of units.

A ``Factor`` is a set of units, as many as it has now; ``Fixed`` is a number of positions that are no units (batch,
space, inputs). An axis is one of these, or a ``Product`` of axes, outermost first (channels × 49 positions after a
flatten; heads × width of a head), or a ``Sum`` of axes one after the other (a concatenation). Every axis of every
parameter begins as a factor of its own, and what a network does with its tensors *unites* axes: a product of matrices
unites what it sums over, an addition its two sides, a reshape what it splits with the product of its pieces. Uniting
refines factors as far as the sizes demand (64 channels that are cut into two halves become 2 × 32), so attention heads,
the groups of a convolution and the halves of a gated unit all come out of the same few lines. What cannot be united is
frozen: it keeps its size, and a reason says why. The cost does not depend on how wide the layers are.

While a network is traced, axes are compared and changed in their simplest form (``canonical``); what is asked of them
afterwards (``index``, ``spread``, ``unit_at``) takes axes in that form, whatever size their factors have got since.

A label for every single position would cost more, and could not say that a position belongs to a head *and* to a place
inside that head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False, slots=True)
class Factor:
    """A set of units. ``bound`` is the axis that it turned out to be; the other fields then speak for that axis.

    ``frozen`` and ``inexact`` are reasons: the number of units must not change; changing it is not exact. ``kind``
    names factors that share an axis with others: ``"heads"``, ``"groups"``. ``cut``: a reshape or a slice made it, so
    that numbers in the network's code may depend on its size.
    """

    size: int
    bound: Axis | None = None
    frozen: str | None = None
    inexact: str | None = None
    kind: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Fixed:
    """Positions that are no units."""

    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """Nested axes, outermost first."""

    parts: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """Axes one after the other."""

    parts: tuple[Axis, ...]


Axis = Factor | Fixed | Product | Sum
ONE = Fixed(1)


def size(axis: Axis) -> int:
    """How many positions an axis has now."""
    if isinstance(axis, Factor):
        return axis.size if axis.bound is None else size(axis.bound)
    if isinstance(axis, Fixed):
        return axis.size
    return (math.prod if isinstance(axis, Product) else sum)(map(size, axis.parts))


def product(*parts: Axis) -> Axis:
    """A product in its simplest form: flat, without parts of size one, constants merged."""
    found: list[Axis] = []
    for part in parts:
        part = canonical(part)
        for each in part.parts if isinstance(part, Product) else (part,):
            if isinstance(each, Fixed) and found and isinstance(found[-1], Fixed):
                found[-1] = Fixed(found[-1].size * each.size)
            elif size(each) != 1:
                found.append(each)
    return Product(tuple(found)) if len(found) > 1 else found[0] if found else ONE


def total(*parts: Axis) -> Axis:
    """A sum in its simplest form: flat, constants merged."""
    found: list[Axis] = []
    for part in parts:
        part = canonical(part)
        for each in part.parts if isinstance(part, Sum) else (part,):
            if size(each) == 1:
                each = ONE
            if isinstance(each, Fixed) and found and isinstance(found[-1], Fixed):
                found[-1] = Fixed(found[-1].size + each.size)
            elif size(each):
                found.append(each)
    return Sum(tuple(found)) if len(found) > 1 else found[0] if found else Fixed(0)


def canonical(axis: Axis) -> Axis:
    """The axis with every bound factor replaced by what it is."""
    if isinstance(axis, Factor):
        if axis.bound is None:
            return axis
        axis.bound = canonical(axis.bound)
        return axis.bound
    if isinstance(axis, Fixed) or all(map(_is_settled, axis.parts)):
        return axis  # as products and sums are only made in their simplest form
    return product(*axis.parts) if isinstance(axis, Product) else total(*axis.parts)


def _is_settled(axis: Axis) -> bool:
    """Whether no factor in it is bound."""
    if isinstance(axis, Factor):
        return axis.bound is None
    return isinstance(axis, Fixed) or all(map(_is_settled, axis.parts))


def factors(axis: Axis) -> list[Factor]:
    """The factors of an axis, outermost and first ones first; one that occurs twice is listed twice."""
    axis = canonical(axis)
    if isinstance(axis, Factor):
        return [axis]
    return [] if isinstance(axis, Fixed) else list(_factors(axis))


def _factors(axis: Axis) -> Iterator[Factor]:
    if isinstance(axis, Factor):
        yield axis
    elif isinstance(axis, (Product, Sum)):
        for part in axis.parts:
            yield from _factors(part)


def units_on(axis: Axis) -> list[Factor]:
    """As ``factors``, of an axis in its simplest form, whatever size its factors have got since."""
    return list(_factors(axis))


def is_fixed(axis: Axis) -> bool:
    """No units anywhere on it."""
    if isinstance(axis, Factor):
        return axis.bound is not None and is_fixed(axis.bound)
    return isinstance(axis, Fixed) or all(map(is_fixed, axis.parts))


def freeze(axis: Axis, reason: str) -> None:
    """Its units must not change in number."""
    for factor in factors(axis):
        factor.frozen = factor.frozen or reason


def blur(axis: Axis, reason: str) -> None:
    """Changing the number of its units is not exact."""
    for factor in factors(axis):
        factor.inexact = factor.inexact or reason


def unite(one: Axis, other: Axis, why: str = "an input or a constant is joined with it") -> None:
    """The two axes hold the same units in the same order; ``why`` is said of units that meet a constant."""
    one, other = canonical(one), canonical(other)
    if one is other or one == other:
        return
    if size(one) != size(other):
        _freeze_all([one, other], "it is joined with an axis of another size")
    elif isinstance(one, Factor):
        _bind(one, other, why)
    elif isinstance(other, Factor):
        _bind(other, one, why)
    elif isinstance(one, Fixed) or isinstance(other, Fixed):
        _freeze_all([one, other], why)
    elif isinstance(one, Sum) or isinstance(other, Sum):
        _unite_sums(_terms(one), _terms(other), why)
    else:
        _unite_products(list(one.parts), list(other.parts), why)


def split(axis: Axis, sizes: Sequence[int], *, cut: bool = True) -> list[Axis]:
    """The axis as a product of factors of these sizes, outermost first; ``cut`` as in ``Factor``."""
    pieces: list[Axis] = [Factor(n, cut=cut) if n != 1 else ONE for n in sizes]
    axis = canonical(axis)
    if isinstance(axis, Fixed):
        return [Fixed(n) for n in sizes]
    unite(axis, product(*pieces), "its size is fixed")
    return [canonical(piece) for piece in pieces]


def section(axis: Axis, start: int, stop: int) -> Axis:
    """The axis from ``start`` to ``stop``: terms of a concatenation, half of it, or a cut.

    A piece that is cut off and is as long as another one is united with it: one number may stand for both.
    """
    axis = canonical(axis)
    length, whole = stop - start, size(axis)
    if length == whole:
        return axis
    if isinstance(axis, Fixed) or length < 1:
        return Fixed(max(length, 0))
    if length > 1 and (frozen := _reason(axis)):  # whose pieces need not be known
        return Factor(length, frozen=frozen, cut=True)
    if length > 1 and 2 * length == whole and start in (0, length) and not isinstance(axis, Sum):
        outer, inner = split(axis, (2, length))  # as a gated unit has them
        freeze(outer, "its parts are told apart by position")
        return inner
    if not {start, stop} <= _seams(axis):
        left = _cut(axis, start) if start else (Fixed(0), axis)
        right = _cut(left[1], length) if left and start + length < whole else left and (left[1], Fixed(0))
        if left is None or right is None:
            freeze(axis, "its units are picked by position")
            return Fixed(length)
        _unite_equals(_terms(canonical(axis)))
        return canonical(right[0])
    before, found = 0, []
    for term in _terms(axis):
        if start <= before < stop:
            found.append(term)
        before += size(term)
    return total(*found)


def sections(axis: Axis, lengths: Sequence[int], *, alike: bool = False) -> list[Axis]:
    """The axis in pieces of these lengths, one after the other; ``alike``: they are of one size for ever."""
    bounds = list(itertools.accumulate(lengths, initial=0))
    fitting = set(bounds) <= _seams(canonical(axis)) and not alike
    if len(set(lengths)) == 1 and len(lengths) > 1 and not fitting:
        outer, inner = split(axis, (len(lengths), lengths[0]))
        freeze(outer, "its parts are told apart by position")
        return [inner] * len(lengths)
    for start, stop in itertools.pairwise(bounds):  # a later cut may refine an earlier piece
        section(axis, start, stop)
    return [section(axis, start, stop) for start, stop in itertools.pairwise(bounds)]


def _reason(axis: Axis) -> str | None:
    """Why an axis is frozen, None where some of its units are not or it is a concatenation."""
    reasons = [] if isinstance(axis, Sum) else [factor.frozen for factor in _factors(axis)]
    return reasons[0] if reasons and all(reasons) else None


def _seams(axis: Axis) -> set[int]:
    """The positions at which terms of a concatenation begin and end."""
    return set(itertools.accumulate(map(size, _terms(axis)), initial=0))


def _unite_equals(terms: Sequence[Axis]) -> None:
    """Unites the cut pieces among these terms that are of one size."""
    known: dict[int, Axis] = {}
    for term in terms:
        if isinstance(term, Factor) and term.cut:
            unite(known.setdefault(term.size, term), term)


def index(axis: Axis, chosen: Mapping[Factor, Tensor]) -> Tensor:
    """The old position of each new position (−1: newborn) when factors take these sources; shape ``[new size]``."""
    if isinstance(axis, Sum):
        offsets = [0]
        for part in axis.parts:
            offsets.append(offsets[-1] + size(part))
        moved = (index(part, chosen) for part in axis.parts)
        return torch.cat([torch.where(at < 0, -1, at + offset) for at, offset in zip(moved, offsets, strict=False)])
    if isinstance(axis, Product):
        found = index(axis.parts[0], chosen)
        for part in axis.parts[1:]:
            inner, outer = index(part, chosen), found.unsqueeze(1)
            found = torch.where((outer < 0) | (inner < 0), -1, outer * size(part) + inner).reshape(-1)
        return found
    return chosen[axis] if isinstance(axis, Factor) and axis in chosen else torch.arange(axis.size)


def spread(axis: Axis, values: Mapping[Factor, Tensor], chosen: Mapping[Factor, Tensor]) -> Tensor:
    """The product of the factors' ``values`` at each new position, 1 where there is none; shape ``[new size]``."""
    if isinstance(axis, Sum):
        return torch.cat([spread(part, values, chosen) for part in axis.parts])
    if isinstance(axis, Product):
        found = spread(axis.parts[0], values, chosen)
        for part in axis.parts[1:]:
            found = (found.unsqueeze(1) * spread(part, values, chosen)).reshape(-1)
        return found
    if isinstance(axis, Factor) and axis in values:
        return values[axis]
    length = len(chosen[axis]) if isinstance(axis, Factor) and axis in chosen else axis.size
    return torch.ones(length, dtype=torch.float64)


def unit_at(axis: Axis, factor: Factor) -> Tensor:
    """Which unit of ``factor`` each position belongs to (−1: to none); shape ``[size]``."""
    if isinstance(axis, Sum):
        return torch.cat([unit_at(part, factor) for part in axis.parts])
    if isinstance(axis, Product):
        found = unit_at(axis.parts[0], factor)
        for part in axis.parts[1:]:
            found = torch.maximum(found.unsqueeze(1), unit_at(part, factor)).reshape(-1)
        return found
    return torch.arange(axis.size) if axis is factor else torch.full((axis.size,), -1)


def crosses(axis: Axis, factor: Factor) -> bool:
    """Whether a factor meets itself in a product, so that a position belongs to two units of it."""
    if isinstance(axis, Product):
        return sum(factor in _factors(part) for part in axis.parts) > 1 or any(crosses(p, factor) for p in axis.parts)
    return isinstance(axis, Sum) and any(crosses(part, factor) for part in axis.parts)


def _terms(axis: Axis) -> list[Axis]:
    return list(axis.parts) if isinstance(axis, Sum) else [axis]


def _freeze_all(axes: Sequence[Axis], reason: str) -> None:
    for axis in axes:
        freeze(axis, reason)


def _bind(factor: Factor, axis: Axis, why: str) -> None:
    inside = factors(axis)
    if factor in inside:
        _freeze_all([factor, axis], "it is joined with itself at another place")
        return
    if isinstance(axis, Fixed):
        factor.frozen = factor.frozen or why
        return
    if isinstance(axis, Factor):
        axis.kind = axis.kind or factor.kind
        axis.cut = axis.cut or factor.cut
    for each in inside:
        each.frozen = each.frozen or factor.frozen
        each.inexact = each.inexact or factor.inexact
    factor.bound = axis


def _unite_products(one: list[Axis], other: list[Axis], why: str) -> None:
    """From the innermost part outwards; where the sizes differ, the larger part becomes a product itself."""
    while one and other:
        left, right = canonical(one.pop()), canonical(other.pop())
        if isinstance(left, Product) or isinstance(right, Product):  # refined meanwhile
            one.extend(left.parts if isinstance(left, Product) else (left,))
            other.extend(right.parts if isinstance(right, Product) else (right,))
            continue
        small: Axis
        large: Axis
        small, large, rest = (left, right, other) if size(left) <= size(right) else (right, left, one)
        if size(small) != size(large):
            halves = _halve(large, size(small), why) if size(small) else None
            if halves is None:
                _freeze_all([left, right, *one, *other], "it is cut into pieces that do not fit one another")
                return
            rest.append(halves[0])
            large = halves[1]
        unite(small, large, why)


def _halve(axis: Axis, inner: int, why: str) -> tuple[Axis, Axis] | None:
    """An axis as outer × inner positions."""
    outer, rest = divmod(size(axis), inner)
    if rest:
        return None
    if isinstance(axis, Fixed):
        return Fixed(outer), Fixed(inner)
    if isinstance(axis, Factor):
        halves = Factor(outer, cut=axis.cut), Factor(inner, cut=axis.cut)
        _bind(axis, product(*halves), why)
        return halves
    piece: Axis = Factor(inner)  # a concatenation of equal pieces
    remaining: Axis = axis
    for left in range(outer, 1, -1):
        cut = _cut(remaining, inner)
        if cut is None:
            return None
        unite(cut[0], piece, why)
        remaining = canonical(cut[1])
        assert size(remaining) == (left - 1) * inner
    unite(remaining, piece, why)
    return Fixed(outer), canonical(piece)


def _unite_sums(one: list[Axis], other: list[Axis], why: str) -> None:
    """From the first term on; where the sizes differ, the larger term is cut."""
    while one and other:
        left, right = canonical(one.pop(0)), canonical(other.pop(0))
        if isinstance(left, Sum) or isinstance(right, Sum):  # refined meanwhile
            one[:0], other[:0] = _terms(left), _terms(right)
            continue
        small: Axis
        large: Axis
        small, large, rest = (left, right, other) if size(left) <= size(right) else (right, left, one)
        if size(small) != size(large):
            cut = _cut(large, size(small))
            if cut is None:
                _freeze_all([left, right, *one, *other], "it is concatenated in pieces that do not fit one another")
                return
            rest.insert(0, cut[1])
            large = cut[0]
        unite(small, large, why)


def _cut(axis: Axis, at: int) -> tuple[Axis, Axis] | None:
    """An axis as two, one after the other; None where a part would have to be cut at other than its seams."""
    axis = canonical(axis)
    if isinstance(axis, Fixed):
        return Fixed(at), Fixed(axis.size - at)
    if isinstance(axis, Factor):
        halves = tuple(Factor(n, cut=True) if n > 1 else ONE for n in (at, axis.size - at))
        _bind(axis, total(*halves), "its units are told apart by position")
        return halves[0], halves[1]
    if isinstance(axis, Sum):
        before = 0
        for number, part in enumerate(axis.parts):
            if before + size(part) >= at:
                cut = (part, Fixed(0)) if before + size(part) == at else _cut(part, at - before)
                if cut is None:
                    return None
                return total(*axis.parts[:number], cut[0]), total(cut[1], *axis.parts[number + 1 :])
            before += size(part)
        return None
    inner = size(Product(axis.parts[1:]))
    if at % inner:
        return None
    cut = _cut(axis.parts[0], at // inner)
    return None if cut is None else (product(cut[0], *axis.parts[1:]), product(cut[1], *axis.parts[1:]))
