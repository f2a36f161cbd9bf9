"""How many samples PCNS needs (the draft's section 3.2 asks for 5 to 10 times as many as there are units).

A layer's outputs are condensed from ``n`` samples; its units are chosen and the others fitted to them on these, and
what is missed is measured on new images. For outputs with a normal distribution and ``k`` units chosen beforehand the
expected squares are known: with the error ``s²`` that no fit can avoid, ``s² (n − k − 1) / n`` on the sample and
``s² (n + 1) (n − 2) / (n (n − k − 2))`` on new data (Stein 1960, *Multiple regression*; Browne 1975, *A comparison of
single sample and cross-validation methods for estimating the mean squared error of prediction in multiple linear
regression*).

The draft's own form solves as many weights for each unit as the layer has inputs, so it is tried by the number of
images too (``emitted``).
"""

from __future__ import annotations

import torch

from network_surgery.ops import PCNS, HiddenLayer, Signals, SurgeryError, operate
from network_surgery.ops.maths.condensed import Condensed, components_needed, relative_error
from network_surgery.study.data import Dataset
from network_surgery.study.experiments.pcns.trained import SETTINGS, Setting, Trained

#: Samples for each unit.
RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0)
#: The fraction of units that stays, and the dropped variance at which components are counted.
KEEP, DROPPED = 0.25, 1e-2
#: (setting, layer) → ratio → components, relative error on the sample and on new images.
Sampled = dict[tuple[str, str], dict[float, tuple[float, float, float]]]


def expected(samples: float, kept: float) -> float:
    """The error on new data over that on the sample, by the normal distribution's formulas.

    >>> round(expected(1000, 100), 3), round(expected(10, 5), 2)
    (1.112, 2.71)
    """
    return ((samples + 1) * (samples - 2) / ((samples - kept - 2) * (samples - kept - 1))) ** 0.5


def measure(seed: int, dataset: Dataset, settings: tuple[Setting, ...] = SETTINGS) -> Sampled:
    """Every layer of every setting, for one seed."""
    found: Sampled = {}
    for setting in settings:
        trained = Trained(setting, seed, dataset)
        for name, layer in trained.anatomy(trained.model).items():
            found[setting.name, name] = dict(of_layer(trained, layer))
    return found


def of_layer(trained: Trained, layer: HiddenLayer) -> list[tuple[float, tuple[float, float, float]]]:
    """By ratio: components needed, error on the sample, error on the test images."""
    reader = layer.readers[0]
    old, new = (
        Signals(trained.model, batches.take(slice(None))[0]).received(layer, reader)
        for batches in (trained.train, trained.test)
    )
    generator = torch.Generator().manual_seed(trained.seed)
    old = old[torch.randperm(len(old), generator=generator)]
    unseen, kept = Condensed.of(new), round(KEEP * layer.units)
    found = []
    for ratio in RATIOS:
        samples = round(ratio * layer.units)
        if samples > len(old):
            break
        seen = Condensed.of(old[:samples])
        fitted = seen.combination(seen.spanning_units(kept))
        errors = [relative_error(fitted.missed(each), each.spread) for each in (seen, unseen)]
        found.append((ratio, (float(components_needed(seen.spectrum(), DROPPED)), *errors)))
    return [(ratio, (count, on_sample, on_new)) for ratio, (count, on_sample, on_new) in found]


#: Images that PCNS is shown at once; at most as many as there are.
SHOWN_AT_ONCE = (512, 1024, 2048, 3600)
#: (setting, basis, images) → accuracy on the test images right after; only where the draft's form can be had.
Emitted = dict[tuple[str, str, int], float]


def emitted(seed: int, dataset: Dataset, settings: tuple[Setting, ...] = SETTINGS) -> Emitted:
    """Both bases at a dropped variance of ``DROPPED`` on every layer, the last one first, by the number of images."""
    found: Emitted = {}
    for setting in settings:
        trained = Trained(setting, seed, dataset)
        for images in sorted({min(count, len(trained.train)) for count in SHOWN_AT_ONCE}):
            for basis in ("eigen", "pivoted"):
                model, optimizer = trained.copy()
                anatomy, inputs = trained.anatomy(model), trained.train.take(slice(0, images))[0]
                try:
                    for name in list(anatomy)[::-1]:
                        operate(anatomy[name], PCNS(DROPPED, basis), optimizer, Signals(model, inputs))
                except SurgeryError:  # a form that cannot be had after every activation
                    break
                found[setting.name, basis, images] = trained.accuracy(model)
    return found
