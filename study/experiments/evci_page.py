"""What the pages of the experiments on Evci 2018 share: the cost of a removal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from network_surgery.study.bench.rows import Measured, Rows, Values
from network_surgery.study.bench.tables import deviation
from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.experiments import magnitude_maps
from network_surgery.study.experiments.evci import BATCH, NETWORKS, RATE, UNPRUNED

ACTIVATIONS = tuple(NETWORKS)
#: The fields of a change of the loss, and the images that they are of.
IMAGES = {"change": "images that the scores saw", "elsewhere": "other images"}


def trained_on(measured: Measured) -> str:
    """The networks, the images, the training and the looks, in words."""
    facts, rows = measured.facts, measured.rows
    ends = {each: rows.grid("test", kind="end", activation=each) for each in ACTIVATIONS}
    return (
        "**Trained on.** `evci_cnn` and `evci_cnn_tanh` (convolutions of 8 and 16 channels, 5 × 5, 64 dense units) on "
        f"{facts['train']:,} images of {measured.about['options']['label']}, {facts['validation']:,} others for "
        f"validation, {facts['test']:,} for the test: plain SGD {RATE:g}, batches of {BATCH}, no momentum, no decay; "
        f"{len(rows.distinct('seed', kind='loss'))} seeds. Networks are looked at after "
        f"{', '.join(f'{moment:,}' for moment in rows.moments())} iterations (ten epochs of the thesis's 60,000 images "
        "are 18,750). Test accuracy at the last look is "
        f"{' and '.join(f'{deviation(each, 2, 100)} % ({name})' for name, each in ends.items())}."
    )


def cost(rows: Rows, layers: Sequence[str], field: str = "change", late: bool = False, **which: Any) -> Values:
    """``[seeds]``: the change of the loss in the mean of layers and looks (``late``: those of the second half)."""
    each = np.mean([rows.grid(field, kind="change", layer=layer, **which) for layer in layers], axis=0)
    return each[:, each.shape[1] // 2 * late :].mean(axis=1)  # type: ignore[no-any-return]


def on_images(number: Callable[..., Values], *names: str) -> dict[str, Values]:
    """The conditions of a claim: ``number(field=…, activation=…)`` on both sets of images, for each of these networks.

    Without names there is no activation.
    """
    if not names:
        return {words: number(field=field) for field, words in IMAGES.items()}
    return {
        f"{name}, {words}": number(field=field, activation=name) for name in names for field, words in IMAGES.items()
    }


def growth(values: Values) -> Values:
    """The mean of the second half of the moments less that of the first, by seed."""
    half = values.shape[1] // 2
    return values[:, half:].mean(axis=1) - values[:, :half].mean(axis=1)  # type: ignore[no-any-return]


def map_picture(rows: Rows, arm: str) -> Drawing:
    """The sizes of the weights of the first seed, unpruned and pruned."""
    maps = {row["arm"]: row["maps"] for row in rows.where(kind="map", seed=0)}
    pair = {UNPRUNED: maps[UNPRUNED], f"pruned by {arm}": maps[arm]}
    return magnitude_maps.draw(pair, "Sizes of weights with and without pruning")
