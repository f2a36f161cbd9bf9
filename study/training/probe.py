"""The probe: how many units each layer needs, and how many are dead, seen over training while nothing is changed.

Sources: Rolet 2022, *PCNS: Principal Component Network Shrinking* (draft), section 3.1: the number of principal
components that hold a given part of the variance of a layer's outputs is known before anything is changed. Evci 2018,
*Detecting dead weights and units*, 3.2: dead and frozen units.

A look costs a few forward passes and a backward pass of some training images and hardly more, so the number of images
decides its price: at most ``SHARE`` of the training images for every epoch that a look has to itself. A layer of which
there are rows enough is left out of what is still to be shown, so convolutions see few images. Training neither sees
nor pays for a look.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

from torch import Tensor, nn

from network_surgery.ops import HiddenLayer, Signals, SurgeryError, dead_units, frozen_units
from network_surgery.ops.maths.condensed import Condensed, components_needed
from network_surgery.ops.signals.losses import Loss
from network_surgery.ops.signals.signals import SAMPLES_PER_UNIT
from network_surgery.study.training.device import clock
from network_surgery.study.training.theatre import Theatre
from network_surgery.study.training.trainer import Callback, Shown, Trainer

#: The parts of the variance, in percent, whose principal components are counted.
PERCENT = (90, 99, 99.9, 99.99)
#: Images that a look may take, as a fraction of the training images, for each epoch from one look to the next.
SHARE = 1 / 100


class Probe(Callback):
    """Looks after every ``every``-th epoch. The anatomy is the theatre's; where it has none yet, its seconds count.

    The epoch's record gets ``redundancy`` (layer → ``units``, ``samples`` and ``units_90``, ``units_99``,
    ``units_99.9``, ``units_99.99``, see ``count_needed``), ``idle`` (layer → ``units``, ``dead`` and ``frozen``, see
    ``idle``) and ``probe_seconds``. What is in the record travels with it: to whatever receives epochs, into
    checkpoints and results. ``threshold``: how near to nothing a dead or frozen unit is.
    """

    adds = frozenset({"redundancy", "idle", "probe_seconds"})

    def __init__(self, theatre: Theatre, every: int, threshold: float) -> None:
        self._theatre, self._every, self._threshold = theatre, every, threshold

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        if trainer.epoch % self._every:
            return
        start = clock(trainer.device)
        anatomy = self._theatre.anatomy(trainer)
        most = max(2, math.ceil(self._every * SHARE * len(trainer.train)))
        count = math.ceil(most / (2 * trainer.batch_size))  # a training step needs as much memory
        shown, layers = Shown(trainer.train, math.ceil(most / count)), list(anatomy.values())
        record["redundancy"] = count_needed(trainer.model, islice(shown, count), layers)
        record["idle"] = idle(
            trainer.model, next(iter(shown)), shown.targets, layers, self._threshold, trainer.task.loss
        )
        record["probe_seconds"] = clock(trainer.device) - start


def count_needed(model: nn.Module, batches: Iterable[Tensor], layers: list[HiddenLayer]) -> dict[str, dict[str, int]]:
    """Layer → its ``units``, the ``samples`` (rows) seen of it, and ``units_P``, those needed for P % of the variance.

    Batches are shown as long as a layer has fewer than ``SAMPLES_PER_UNIT`` rows for each unit. Few samples have few
    components: below that the numbers are too low, those for 90 and 99 % by about a fifth at most where it was tried
    (``vgg16_quarter``, 59 images), those for 99.99 % by far more. A layer whose outputs cannot be seen, or are not
    finite, is left out.
    """
    seen: dict[str, Condensed] = {}
    samples = dict.fromkeys((layer.name for layer in layers), 0)
    wanting = layers
    for inputs in batches:
        for layer, rows, outputs in _look(model, inputs, wanting):
            samples[layer.name] += rows
            seen[layer.name] = seen[layer.name].joined(outputs) if layer.name in seen else outputs
        wanting = [x for x in layers if x.name in seen and samples[x.name] < SAMPLES_PER_UNIT * x.units]
        if not wanting:
            break
    found = {}
    for layer in layers:
        if layer.name in seen:
            spectrum = seen[layer.name].spectrum()
            counts = {f"units_{part}": components_needed(spectrum, 1 - part / 100) for part in PERCENT}
            found[layer.name] = {"units": layer.units, "samples": samples[layer.name], **counts}
    return found


def idle(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    layers: list[HiddenLayer],
    threshold: float,
    loss: Loss | None = None,
) -> dict[str, dict[str, int]]:
    """Layer → its ``units``, and how many of them are ``dead`` and ``frozen`` (``ops.operations.dead_units``) on one
    batch.

    A layer of which that cannot be seen is left out.
    """
    signals, found = Signals(model, inputs, targets, loss), {}
    for layer in layers:
        with contextlib.suppress(SurgeryError):
            dead, frozen = (count(layer, signals, threshold).sum() for count in (dead_units, frozen_units))
            found[layer.name] = {"units": layer.units, "dead": int(dead), "frozen": int(frozen)}
    return found


def _look(model: nn.Module, inputs: Tensor, layers: list[HiddenLayer]) -> list[tuple[HiddenLayer, int, Condensed]]:
    """One pass for all layers; where one of them stands in the way, a pass for each."""
    try:
        signals = Signals.over(model, [inputs], layers)
        return [(layer, signals.samples(layer), signals.together(layer)) for layer in layers]
    except SurgeryError:
        return [] if len(layers) == 1 else [entry for layer in layers for entry in _look(model, inputs, [layer])]
