"""The edits that a rehearsal tries: new sizes and orders of a layer's units."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy
import torch

from network_surgery.ops.anatomy import axes
from network_surgery.ops.anatomy.rebuild import Edit, resize, undoing

if TYPE_CHECKING:
    from network_surgery.ops.anatomy.layers import HiddenLayer

#: How many new sizes layers of one size share out among them; where the network's code reads sizes, there are more.
WIDTHS, WIDTHS_MEASURED = 3, 9
#: No axis that several layers share grows more times than these at once.
MOST_GROWTH = 4


def reorder(layer: HiddenLayer, number: int, widths: int) -> Edit:
    """The units rotated and, where that is exact, some of them doubled at uneven shares and newborn ones added.

    ``number``: how many layers of this size come before, which all get another order and, those next to each other,
    another size out of this number of ``widths``.
    """
    units = layer.units
    order = numpy.roll(numpy.arange(units), 1 + (units // 3 + number) % max(units - 1, 1))
    if not layer.exact:
        return Edit(layer, torch.from_numpy(order))
    strangers = _strangers(layer)
    copies = numpy.arange(_enlarge(layer, number % widths) - strangers)
    sources, weights = order[copies % units], 1.0 + copies // units
    shares = weights / numpy.bincount(sources, weights)[sources]
    at = number % len(sources)
    sources = numpy.concatenate([sources[:at], [-1] * strangers, sources[at:]])
    shares = numpy.concatenate([shares[:at], [1.0] * strangers, shares[at:]])
    return Edit(layer, torch.from_numpy(sources), torch.from_numpy(shares), stranger=True)


def split_edits(edits: list[Edit]) -> list[list[Edit]]:
    """The edits in as few parts as keep each axis with the units of several layers from growing many times over.

    In a chain of convolutions whose groups are the units before them, sizes of 48 × 2 × 2 × 2 units multiply.
    """
    if _grow_little(edits):
        return [edits] if edits else []
    parts: list[list[Edit]] = []
    for edit in edits:
        part = next((part for part in parts if _grow_little([*part, edit])), None)
        if part is None:
            parts.append([edit])
        else:
            part.append(edit)
    return parts


def _grow_little(edits: Sequence[Edit]) -> bool:
    """Whether no axis with the units of several layers grows many times over."""
    met = {id(place.expression): place.expression for edit in edits for place in edit.layer.places}
    old = [(axis, axes.size(axis)) for axis in met.values() if len(axes.units_on(axis)) > 1]
    with undoing() as undo:
        undo.extend(resize(edits))
        return all(axes.size(axis) <= MOST_GROWTH * size for axis, size in old)


def _strangers(layer: HiddenLayer) -> int:
    """How many units are added: two, whose weights have opposite signs; a head or a group has both signs in itself."""
    return 1 if layer.factor.kind else 2


def _enlarge(layer: HiddenLayer, number: int) -> int:
    """About a sixteenth more units, of wide layers 32, and another number for the next layer of this size. Where the
    network's code cuts the units into pieces, the first ones are prime numbers, by which nothing divides by luck.
    """
    wanted = layer.units + max(_strangers(layer) + 1, min(layer.units // 16, 32))
    if not layer.factor.cut:  # convolutions are fast at multiples of eight
        return (-(-wanted // 8) + number) * 8 if wanted >= 64 else wanted + number
    wanted = max(5, wanted)
    primes = [_next_prime(wanted)]
    while len(primes) < WIDTHS:
        primes.append(_next_prime(primes[-1] + 1))
    others = [n for n in range(wanted, wanted + WIDTHS_MEASURED + WIDTHS) if n not in primes]
    return (primes + others)[number]


def _next_prime(number: int) -> int:
    """The smallest prime number that is not smaller."""
    while not _is_prime(number):
        number += 1
    return number


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def halve(layer: HiddenLayer) -> Edit:
    """About half of the units: a number that has no divisor in common with that of all, if there is one."""
    units = layer.units
    primes = (n for n in range(units // 2, 1, -1) if _is_prime(n))
    likely = itertools.chain(primes, range(units // 2 + 1, units))
    return Edit(layer, torch.arange(next((n for n in likely if units % n and math.gcd(n, units) == 1), 1)))


def larger(layer: HiddenLayer) -> Edit:
    """Some more units: a prime number."""
    return Edit(layer, torch.arange(_next_prime(layer.units + 1)) % layer.units)


def change_size(layer: HiddenLayer, units: int) -> Edit:
    """Without its last units, or with its first ones once more, at equal shares."""
    sources = torch.arange(units) % layer.units
    counts = torch.bincount(sources, minlength=layer.units)
    return Edit(layer, sources, (1.0 / counts[sources]).to(torch.float64))
