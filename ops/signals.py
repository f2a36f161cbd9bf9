"""Signals: what data-driven operations see of a network, collected in one forward pass and shared by every layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ops.anatomy import HiddenLayer, Place
from ops.anatomy.running import plainly
from ops.anatomy.trace import Trace
from ops.errors import SurgeryError
from ops.wrappers import inner

#: Rows that an operation works on at most; of more positions a random part is taken.
MOST_SAMPLES = 8192


class Signals:
    """What every weight was multiplied with, for one batch, in evaluation mode.

    ``inputs`` is what the model takes (a batch of a few times as many samples as the widest layer has units);
    ``targets`` are class numbers ``[batch]`` for operations that look at the loss. The values belong to the network as
    it is now: after an operation, collect anew.
    """

    def __init__(self, model: nn.Module, inputs: Any, targets: Tensor | None = None) -> None:
        self.targets = targets
        model = inner(model)
        trace = Trace(model, 1, remember=True)
        with plainly(model):
            trace.run(inputs)
        self.outputs = trace.output
        self._seen = trace.seen

    @property
    def loss(self) -> Tensor:
        """The mean cross entropy of the batch. Raises SurgeryError without targets."""
        if self.targets is None:
            raise SurgeryError("these signals have no targets; give Signals(model, inputs, targets)")
        return nn.functional.cross_entropy(self.outputs, self.targets)

    def received(self, layer: HiddenLayer, place: Place) -> Tensor:
        """What a reader receives from each unit: ``[samples × positions, units]`` in float64, thinned.

        Raises SurgeryError where the batch did not meet the reader as the anatomy did.
        """
        return _thin(torch.cat([x.movedim(0, -1).flatten(0, -2) for x in self._by_unit(layer, place)]))

    def fed(self, layer: HiddenLayer, place: Place) -> Tensor:
        """What a dense maker is fed: ``[samples, inputs]`` in float64, thinned like ``received``."""
        return _thin(torch.cat([x.reshape(-1, x.shape[-1]) for x in self._inputs_of(layer, place)]))

    def _by_unit(self, layer: HiddenLayer, place: Place) -> Iterator[Tensor]:
        """``[units, positions of a unit, …]``; each group of a grouped convolution reads its own part."""
        for x in self._inputs_of(layer, place):
            groups, rest = divmod(x.shape[-1], place.size)
            if rest:
                raise SurgeryError(
                    f"layer {layer.name}: {place.tensor} reads {place.size} positions, but was given {x.shape[-1]}"
                )
            starts = torch.arange(groups).view(1, -1, 1) * place.size
            positions = (starts + place.positions.unsqueeze(1)).flatten(1)
            yield x.movedim(-1, 0)[positions.to(x.device)]

    def _inputs_of(self, layer: HiddenLayer, place: Place) -> list[Tensor]:
        layer.tensor(place)  # complains of an anatomy that is out of date
        if place.tensor not in self._seen:
            raise SurgeryError(
                f"layer {layer.name}: nothing was seen of what {place.tensor} is given; signals need the same model"
            )
        return self._seen[place.tensor]


def _thin(rows: Tensor) -> Tensor:
    """At most ``MOST_SAMPLES`` of the rows, the same for every tensor of so many; an even stride would meet one column
    of every image.
    """
    if len(rows) > MOST_SAMPLES:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MOST_SAMPLES]
        rows = rows[chosen.to(rows.device)]
    return rows.to(torch.float64)
