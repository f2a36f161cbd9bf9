"""The table of ``surgery layers``: what of a network can be operated on, at what price, and what cannot and why."""

from __future__ import annotations

from dataclasses import replace

import torch
from rich.table import Table

from ops import Anatomy, HiddenLayer, Signals, SurgeryError
from ops.pcns import components_needed
from study import data, models
from study.config import Settings
from study.training.run import make_optimizer
from study.training.trainer import Batches, Trainer

#: The fractions of variance whose principal components are counted.
VARIANCES = (0.9, 0.99, 0.999)


def table(settings: Settings, epochs: int) -> list[Table]:
    """One table of the layers, one of the places that are pinned (if any).

    The network is trained for ``epochs`` epochs first (0: as it is made); redundancy is how many principal components
    carry 90, 99 and 99.9 % of the variance of a layer's outputs on ``settings.signal_images`` training images.
    """
    dataset = data.load(settings.data, settings.validation)
    device = torch.device("cpu")
    torch.manual_seed(settings.seed)
    model = models.build(settings.model, dataset.shape, len(dataset.classes))
    if epochs:
        settings = replace(settings, epochs=epochs)
        Trainer(
            model, make_optimizer(settings, model), dataset, epochs=epochs, batch_size=settings.batch_size,
            seed=settings.seed, device=device,
        ).fit()  # fmt: skip
    anatomy = Anatomy(model, torch.zeros(2, *dataset.shape))
    shown = Batches(dataset.train.thinned(settings.signal_images), device)
    signals = Signals(model, shown.take(slice(None))[0])
    total, flops = anatomy.cost()
    trained = f"trained for {epochs} epoch{'s' * (epochs != 1)}" if epochs else "untrained"
    found = Table(
        title=f"{settings.model} on {settings.data}, {trained}: {total:,} parameters, {flops:,} FLOPs an image",
        title_justify="left",
    )
    for column in ("layer", "units", "edits", "parameters", "FLOPs", *(f"for {v:.1%}" for v in VARIANCES)):
        found.add_column(column, justify="left" if column in ("layer", "edits") else "right")
    for name, layer in anatomy.items():
        halved = layer.cost(layer.units // 2 or 1)
        found.add_row(
            name, f"{layer.units:,}", "exact" if layer.exact else f"inexact: {layer.reason}",
            f"{(halved[0] - total) / total:+.1%}", f"{(halved[1] - flops) / flops:+.1%}", *_needed(layer, signals),
        )  # fmt: skip
    found.caption = (
        "parameters and FLOPs: what halving the layer would change; last columns: units needed for that variance"
    )
    if not anatomy.pinned:
        return [found]
    pinned = Table(title="Not operated on", title_justify="left")
    pinned.add_column("place")
    pinned.add_column("why")
    for name, reason in anatomy.pinned.items():
        pinned.add_row(name, reason)
    return [found, pinned]


def _needed(layer: HiddenLayer, signals: Signals) -> list[str]:
    try:
        outputs = torch.cat([signals.received(layer, place) for place in layer.readers])
    except SurgeryError:
        return ["?"] * len(VARIANCES)
    return [str(components_needed(outputs, 1 - variance)) for variance in VARIANCES]
