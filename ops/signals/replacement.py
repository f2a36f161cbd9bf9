"""What a unit leaves behind: the constant that takes the place of its output in what each reader is given.

Source: Evci 2018, *Detecting dead weights and units*, 3.1. He takes the mean before the activation and names the mean
after it, the median and the extremes as other choices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.anatomy.rebuild import undoing
from network_surgery.ops.errors import SurgeryError
from network_surgery.ops.maths.double import double
from network_surgery.ops.network.optimizer_state import exchange
from network_surgery.ops.signals.signals import Signals

REPLACEMENTS = ("mean", "mean_before", "median", "extreme")


def constants(layer: HiddenLayer, signals: Signals, replacement: str = "mean") -> dict[str, Tensor]:
    """Reader → the constant for each unit, ``[units]`` in float64; only readers that have a bias to hold it.

    ``mean``
        of what the reader is given, over samples and positions.
    ``mean_before``
        what the reader would be given if the unit made its mean before the activation all the time.
    ``median``
        of what the reader is given. (Before or after an activation that never falls it is the same unit's output.)
    ``extreme``
        the least or the largest value that the reader was given, whichever its values are nearer to (in the mean of
        squares): the value of a saturated unit.

    Raises:
        SurgeryError: the signals do not fit, or (``mean_before``) what a maker is fed or its bias is not known.
    """
    readers = [place for place in layer.readers if place.tensor in layer.anatomy.sinks]
    if replacement == "mean":
        return {place.tensor: signals.condensed(layer)[place.tensor].whole.origin for place in readers}
    if replacement not in REPLACEMENTS:
        raise SurgeryError(f"there is no replacement {replacement!r}; there are {', '.join(REPLACEMENTS)}")
    if replacement == "mean_before":
        return _push(layer, signals)
    found = {}
    for place in readers:
        received = signals.received(layer, place)
        if received.is_complex():
            raise SurgeryError(
                f"layer {layer.name}: {place.tensor} receives complex numbers, which have no {replacement}; take "
                "replacement='mean'"
            )
        if replacement == "median":
            found[place.tensor] = received.median(dim=0).values
        else:
            least, most = received.min(dim=0).values, received.max(dim=0).values
            found[place.tensor] = torch.where(received.mean(dim=0) > (least + most) / 2, most, least)
    return found


def _push(layer: HiddenLayer, signals: Signals) -> dict[str, Tensor]:
    """What readers are given by a network whose units make their mean, whatever they are fed."""
    anatomy = layer.anatomy
    with undoing() as undo, torch.no_grad():
        for place in layer.makers:
            sink = anatomy.sinks.get(place.tensor)
            entries = () if sink is None else tuple(dim for dim in sink.entries if dim is not None)
            if sink is None or entries != (place.axis,) or place.positions.shape[1] != 1 or None in sink.entries:
                raise SurgeryError(
                    f"layer {layer.name}: {place.tensor} has no bias of one value a unit to hold a mean before the "
                    "activation; take replacement='mean'"
                )
            weight = anatomy.tensor(place.tensor)
            means = layer.incoming(place).flatten(1) @ signals.fed(layer, place).mean(dim=0)
            bias, positions = anatomy.tensor(sink.tensor), place.positions.flatten().to(weight.device)
            silent = weight.detach().index_fill(place.axis, positions, 0)
            moved = double(bias.detach()).flatten().index_add(0, positions, sink.sign * means)
            undo.append(exchange(weight, silent, weight.grad))
            undo.append(exchange(bias, moved.view(bias.shape).to(bias), bias.grad))
        seen = signals.again(layer)
        return {
            place.tensor: seen.received(layer, place).mean(dim=0)
            for place in layer.readers if place.tensor in anatomy.sinks
        }  # fmt: skip
