"""Signals: what data-driven operations see of a network, collected in one forward pass and shared by every layer."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor, nn

from ops.anatomy import HiddenLayer, Place
from ops.anatomy.running import plainly
from ops.anatomy.trace import Trace
from ops.condensed import Condensed
from ops.errors import SurgeryError
from ops.wrappers import inner

#: Rows of one batch that an operation works on at most; of more positions a random part is taken.
MOST_SAMPLES = 8192
#: Rows for each unit after which no further batch is looked at (the draft of PCNS asks for 5 to 10).
SAMPLES_PER_UNIT = 10
#: Every so many-th sample is held out, to see how far what was fitted to the others holds for it.
HELD_OUT = 5


@dataclass(frozen=True)
class Seen:
    """What one reader was given: the samples that things are fitted to, and those that they are tried on.

    ``held_out`` is None where a sample is too small to be divided: below ``2.5`` rows a unit.
    """

    fitted: Condensed
    held_out: Condensed | None

    @cached_property
    def whole(self) -> Condensed:
        """All samples together."""
        return self.fitted if self.held_out is None else self.fitted.joined(self.held_out)

    def joined(self, other: Seen) -> Seen:
        apart = [part for part in (self.held_out, other.held_out) if part is not None]
        return Seen(self.fitted.joined(other.fitted), reduce(Condensed.joined, apart) if apart else None)


class Signals:
    """What every weight was multiplied with, for one batch, in evaluation mode.

    ``inputs`` is what the model takes (a batch of a few times as many samples as the widest layer has units);
    ``targets`` are class numbers ``[batch]`` for operations that look at the loss. The values belong to the network as
    it is now: after an operation, collect anew.
    """

    def __init__(self, model: nn.Module, inputs: Any, targets: Tensor | None = None) -> None:
        self.batches: Iterable[Any] = [inputs]
        self.targets = targets
        self._condensed: dict[str, dict[str, Seen]] = {}
        self._look(inner(model), inputs, True)

    @classmethod
    def over(
        cls, model: nn.Module, batches: Iterable[Any], layers: Iterable[HiddenLayer], targets: Tensor | None = None
    ) -> Signals:
        """Of several batches, for some layers only; memory does not grow with their number.

        ``batches`` can be gone through again and again (a list, or an object that makes each batch as it is asked
        for). The first is remembered as ever, ``targets`` are its classes; ``condensed`` is of as many as give each
        of the layers ``SAMPLES_PER_UNIT`` rows for each unit, or of all of them.
        """
        self = cls.__new__(cls)
        self.batches, self.targets, self._condensed = batches, targets, {}
        model, layers = inner(model), list(layers)
        wanted = {place.tensor for layer in layers for place in (*layer.readers, *layer.makers)}
        first = None
        for inputs in batches:
            self._look(model, inputs, wanted)
            first = first or (self.outputs, self._seen)
            found = {
                layer.name: {place.tensor: self._divided(layer, place) for place in layer.readers} for layer in layers
            }
            for name, places in found.items():
                for tensor, seen in places.items():
                    known = self._condensed.setdefault(name, {})
                    known[tensor] = known[tensor].joined(seen) if tensor in known else seen
            if all(self.samples(layer) >= SAMPLES_PER_UNIT * layer.units for layer in layers):
                break
        if first is None:
            raise SurgeryError("signals need at least one batch")
        self.outputs, self._seen = first
        return self

    def _look(self, model: nn.Module, inputs: Any, wanted: bool | Container[str]) -> None:
        trace = Trace(model, 1, remember=wanted)
        with plainly(model):
            trace.run(inputs)
        self.outputs, self._seen = trace.output, trace.seen

    @property
    def loss(self) -> Tensor:
        """The mean cross entropy of the (first) batch. Raises SurgeryError without targets."""
        if self.targets is None:
            raise SurgeryError("these signals have no targets; give Signals(model, inputs, targets)")
        return nn.functional.cross_entropy(self.outputs, self.targets)

    def samples(self, layer: HiddenLayer) -> int:
        """How many rows ``condensed`` stands for, at the reader that has the fewest."""
        return min(
            seen.fitted.samples + (0 if seen.held_out is None else seen.held_out.samples)
            for seen in self.condensed(layer).values()
        )

    def together(self, layer: HiddenLayer) -> Condensed:
        """What all readers of the layer receive."""
        return reduce(Condensed.joined, (seen.whole for seen in self.condensed(layer).values()))

    def condensed(self, layer: HiddenLayer) -> dict[str, Seen]:
        """What each reader (by its tensor) receives from each unit, of all batches.

        Raises SurgeryError where the batch did not meet the reader as the anatomy did, or holds what is not finite.
        """
        if layer.name not in self._condensed:
            self._condensed[layer.name] = {place.tensor: self._divided(layer, place) for place in layer.readers}
        found = self._condensed[layer.name]
        if not all(seen.fitted.finite for seen in found.values()):
            raise SurgeryError(f"layer {layer.name}: its outputs are not finite")
        return found

    def received(self, layer: HiddenLayer, place: Place) -> Tensor:
        """What a reader receives from each unit: ``[samples × positions, units]`` in float64, thinned.

        Of the first batch. Raises SurgeryError where it did not meet the reader as the anatomy did.
        """
        return _thin(torch.cat([_rows(x) for x in self._by_unit(layer, place)]))

    def fed(self, layer: HiddenLayer, place: Place) -> Tensor:
        """What a dense maker is fed: ``[samples, inputs]`` in float64, thinned like ``received``."""
        return _thin(torch.cat([x.reshape(-1, x.shape[-1]) for x in self._inputs_of(layer, place)]))

    def _divided(self, layer: HiddenLayer, place: Place) -> Seen:
        """Rows of the batch that was looked at last, divided sample by sample."""
        fitted, apart = [], []
        for x in self._by_unit(layer, place):
            out = torch.arange(x.shape[2]) % HELD_OUT == HELD_OUT - 1
            fitted.append(_rows(x[:, :, ~out.to(x.device)]))
            apart.append(_rows(x[:, :, out.to(x.device)]))
        if sum(map(len, fitted)) < 2 * layer.units or not sum(map(len, apart)):
            return Seen(Condensed.of(self.received(layer, place)), None)
        return Seen(Condensed.of(_thin(torch.cat(fitted))), Condensed.of(_thin(torch.cat(apart))))

    def _by_unit(self, layer: HiddenLayer, place: Place) -> Iterator[Tensor]:
        """``[units, positions of a unit, samples, …]``; each group of a grouped convolution reads its own part."""
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


def _rows(by_unit: Tensor) -> Tensor:
    return by_unit.movedim(0, -1).flatten(0, -2)


def _thin(rows: Tensor) -> Tensor:
    """At most ``MOST_SAMPLES`` of the rows, the same for every tensor of so many; an even stride would meet one column
    of every image.
    """
    if len(rows) > MOST_SAMPLES:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MOST_SAMPLES]
        rows = rows[chosen.to(rows.device)]
    return rows.to(torch.float64)
