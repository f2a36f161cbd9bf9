"""Signals: what data-driven operations see of a network, collected in one forward pass and shared by every layer."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor, nn

from network_surgery.ops.anatomy import HiddenLayer, Place
from network_surgery.ops.anatomy.running import plainly
from network_surgery.ops.anatomy.trace import Trace
from network_surgery.ops.errors import SurgeryError, explained
from network_surgery.ops.maths.condensed import Condensed
from network_surgery.ops.maths.double import double
from network_surgery.ops.network.checks import check_real, usable
from network_surgery.ops.network.wrappers import inner
from network_surgery.ops.signals.gradients import Gradients
from network_surgery.ops.signals.losses import Loss, mean_loss

#: Rows of one batch that an operation works on at most; of more positions a random part is taken.
MOST_SAMPLES = 8192
#: Rows for each unit after which no further batch is looked at (the draft of PCNS asks for 5 to 10).
SAMPLES_PER_UNIT = 10
#: Images of a convolution's input that are made into patches at once.
IMAGES = 16
#: One sample in this number is held out, to see how far what was fitted to the others holds for it.
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

    @property
    def finite(self) -> bool:
        return self.fitted.finite and (self.held_out is None or self.held_out.finite)

    def joined(self, other: Seen) -> Seen:
        apart = [part for part in (self.held_out, other.held_out) if part is not None]
        return Seen(self.fitted.joined(other.fitted), reduce(Condensed.joined, apart) if apart else None)


class Signals:
    """What every weight was multiplied with, for one batch, in evaluation mode.

    ``inputs`` is what the model takes (a batch of a few times as many samples as the widest layer has units). For
    operations that look at the loss, ``targets`` are class numbers ``[batch]``, or whatever ``loss`` takes: a function
    of (output, targets), see ``ops.signals.losses``; the cross entropy where there is none. The values belong to the
    network as it is now: after an operation, collect anew.

    Raises:
        SurgeryError: the network does not run on the inputs. Targets are looked at when the loss is.
    """

    def __init__(self, model: nn.Module, inputs: Any, targets: Any = None, loss: Loss | None = None) -> None:
        self._batches: Iterable[Any] = [inputs]
        self._looked = 1
        self.targets, self.loss_function = usable(targets), loss
        self._inputs = usable(inputs)
        self._condensed: dict[str, dict[str, Seen]] = {}
        self._gradients: Gradients | None = None
        self._look(inner(model), self._inputs, True)

    @classmethod
    def over(
        cls,
        model: nn.Module,
        batches: Iterable[Any],
        layers: Iterable[HiddenLayer],
        targets: Any = None,
        loss: Loss | None = None,
    ) -> Signals:
        """Of several batches, for some layers only; memory does not grow with their number.

        ``batches`` can be gone through again and again (a list, or an object that makes each batch as it is asked
        for). The first is remembered as ever, ``targets`` and ``loss`` are its own; ``condensed`` is of as many as give
        each of the layers ``SAMPLES_PER_UNIT`` rows for each unit, or of all of them.
        """
        self = cls.__new__(cls)
        self._batches, self._looked, self.targets, self._condensed = batches, 0, usable(targets), {}
        self.loss_function, self._gradients = loss, None
        if not isinstance(batches, Iterable) or isinstance(layers, HiddenLayer) or not isinstance(layers, Iterable):
            raise SurgeryError("signals over batches take a list of batches and a list of layers")
        layers = list(layers)
        if odd := [layer for layer in layers if not isinstance(layer, HiddenLayer)]:
            raise SurgeryError(f"signals are of layers of an anatomy, not of {odd[0]!r:.60}")
        model, layers = inner(model), [layer for layer in layers if layer.readers]  # the whole network has none
        wanted = {place.tensor for layer in layers for place in (*layer.readers, *layer.makers)}
        first = None
        for inputs in map(usable, batches):
            self._look(model, inputs, wanted)
            self._looked += 1
            first = first or (self.outputs, self._seen, self._padding, inputs)
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
        self.outputs, self._seen, self._padding, self._inputs = first
        return self

    @property
    def inputs(self) -> Any:
        """The (first) batch, as the model takes it."""
        return self._inputs

    @property
    def shown(self) -> Iterator[Any]:
        """The batches that these signals were taken from, once more."""
        return itertools.islice(self._batches, self._looked)

    def _look(self, model: nn.Module, inputs: Any, wanted: bool | Container[str]) -> None:
        check_real(model, inputs)
        with explained("signals: the network does not run on this batch"), plainly(model):
            trace = Trace(model, 1, remember=wanted)
            trace.run(inputs)
        self.model, self.outputs = model, trace.output
        self._seen, self._padding = trace.seen, trace.padding

    def again(self, layer: HiddenLayer) -> Signals:
        """What the layer's readers are given of the (first) batch by the network as it is now."""
        new = type(self).__new__(type(self))
        new._batches, new._looked, new._inputs = [self._inputs], 1, self._inputs
        new.targets, new.loss_function, new._condensed, new._gradients = self.targets, self.loss_function, {}, None
        new._look(layer.anatomy.model, self._inputs, {place.tensor for place in layer.readers})
        return new

    @property
    def classes(self) -> Any:
        """The targets. Raises SurgeryError where there are none, unless a loss is given, which may need none."""
        if self.targets is None and self.loss_function is None:
            raise SurgeryError("what looks at the loss needs targets: give Signals(model, inputs, targets)")
        return self.targets

    @property
    def loss(self) -> Tensor:
        """The loss of the (first) batch. Raises SurgeryError without targets, or where it cannot be had of them."""
        return mean_loss(self.outputs, self.classes, self.loss_function)

    def gradients(self, layer: HiddenLayer) -> Gradients:
        """The gradients of the (first) batch's losses; one backward pass serves every layer. See
        ``ops.signals.gradients``."""
        self.check_network(layer)
        if self._gradients is None:
            self._gradients = Gradients(self.model, self._inputs, self.classes, self._seen, self.loss_function)
        return self._gradients

    def sloped(self, layer: HiddenLayer, place: Place) -> Iterator[tuple[Tensor, Tensor]]:
        """What a reader is given of the (first) batch, and the gradient of each sample's loss at it.

        Both ``[units, positions of a unit, samples, rows of a sample, …]``. Raises SurgeryError where there are no
        targets, or the gradient there is not known.
        """
        gradients = self.gradients(layer)
        slopes = self._by_unit(layer, place, gradients.received(place, self._inputs_of(layer, place)))
        for given, slope in zip(self._by_unit(layer, place), slopes, strict=True):
            yield gradients.by_sample(layer, place, given), gradients.by_sample(layer, place, slope)

    def precision(self, layer: HiddenLayer) -> torch.dtype:
        """The coarsest type of number that the layer's readers are given."""
        given = [x.dtype for place in layer.readers for x in self._inputs_of(layer, place)]
        return max(given, key=lambda dtype: torch.finfo(dtype).eps)

    def samples(self, layer: HiddenLayer) -> int:
        """How many rows ``condensed`` stands for, at the reader that has the fewest."""
        return min(
            seen.fitted.samples + (0 if seen.held_out is None else seen.held_out.samples)
            for seen in self.condensed(layer).values()
        )

    def padded_rows(self, place: Place, rows: int) -> float:
        """How many rows of padded zeros a convolution meets beside this number of rows of its input."""
        share = self._padding.get(place.tensor, 0.0)
        return rows * share / (1.0 - share)

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
        if not all(seen.finite for seen in found.values()):
            raise SurgeryError(f"layer {layer.name}: its outputs are not finite")
        return found

    def received(self, layer: HiddenLayer, place: Place, held_out: bool | None = None) -> Tensor:
        """What a reader receives from each unit: ``[samples × positions, units]`` in float64, thinned.

        Of the first batch. ``held_out``: only the samples that are held out (True), only the others (False). Raises
        SurgeryError where the batch did not meet the reader as the anatomy did.
        """
        return thin(torch.cat([_rows(_part(x, 2, held_out)) for x in self._by_unit(layer, place)]))

    def fed(self, layer: HiddenLayer, place: Place, held_out: bool | None = None) -> Tensor:
        """What a maker's rows are multiplied with: ``[samples × positions, inputs]`` in float64, thinned.

        Of the first batch, ``held_out`` as in ``received``. A convolution's inputs are patches, ``channels × kernel``
        like its weight. Raises SurgeryError where a convolution is not an nn.Conv1d or nn.Conv2d in one group.
        """
        given = [_part(x, 0, held_out) for x in self._inputs_of(layer, place)]
        if layer.tensor(place).dim() > 2:
            module = layer.anatomy.owner(place.tensor)
            if not isinstance(module, (nn.Conv1d, nn.Conv2d)) or module.groups != 1:
                raise SurgeryError(f"layer {layer.name}: what {place.tensor} is fed is not known as patches")
            return patches(module, given)
        return thin(torch.cat([x.reshape(-1, x.shape[-1]) for x in given]))

    def _divided(self, layer: HiddenLayer, place: Place) -> Seen:
        """Rows of the batch that was looked at last, divided sample by sample."""
        fitted, apart = (
            [_rows(_part(x, 2, held_out)) for x in self._by_unit(layer, place)] for held_out in (False, True)
        )
        if sum(map(len, fitted)) < 2 * layer.units or not sum(map(len, apart)):
            return Seen(Condensed.of(self.received(layer, place)), None)
        return Seen(Condensed.of(thin(torch.cat(fitted))), Condensed.of(thin(torch.cat(apart))))

    def _by_unit(self, layer: HiddenLayer, place: Place, given: Iterable[Tensor] | None = None) -> Iterator[Tensor]:
        """``[units, positions of a unit, samples, …]``; each group of a grouped convolution reads its own part."""
        for x in self._inputs_of(layer, place) if given is None else given:
            if x.shape[-1] % place.size:
                raise SurgeryError(
                    f"layer {layer.name}: {place.tensor} reads {place.size} positions, but was given {x.shape[-1]}"
                )
            yield x.movedim(-1, 0)[place.positions_among(x.shape[-1]).to(x.device)]

    def check_network(self, layer: HiddenLayer) -> None:
        """Raises SurgeryError unless the layer is one of the network that the signals are of."""
        if layer.anatomy.model is not self.model:
            raise SurgeryError(
                f"layer {layer.name}: the signals are those of another network (a {type(self.model).__name__}); "
                "signals need the same model, not a copy of it"
            )

    def _inputs_of(self, layer: HiddenLayer, place: Place) -> list[Tensor]:
        self.check_network(layer)
        layer.tensor(place)  # complains of an anatomy that is out of date
        if place.tensor not in self._seen:
            raise SurgeryError(
                f"layer {layer.name}: nothing was seen of what {place.tensor} is given; signals need the same model"
            )
        if not any(x.numel() for x in self._seen[place.tensor]):
            raise SurgeryError(f"layer {layer.name}: nothing of this batch reaches {place.tensor}; is it empty?")
        return self._seen[place.tensor]


def patches(convolution: nn.Conv1d | nn.Conv2d, given: Sequence[Tensor]) -> Tensor:
    """What a convolution in one group multiplies its weight with at each of its positions, in float64, thinned.

    ``given``: its inputs, ``[samples, *positions, channels]``, padded already where ``padding_mode`` is not zeros.
    Returns ``[samples × positions, channels × kernel]``, sample by sample.
    """
    flat = isinstance(convolution, nn.Conv1d)
    kernel, stride, dilation = convolution.kernel_size, convolution.stride, convolution.dilation
    padding: Sequence[int] = [0] * len(kernel)
    if convolution.padding_mode == "zeros" and convolution.padding != "valid":
        same = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]  # what is odd was padded before
        padding = same if isinstance(convolution.padding, str) else convolution.padding
    settings = {
        name: (neutral, *sizes) if flat else tuple(sizes)
        for name, sizes, neutral in (
            ("kernel_size", kernel, 1), ("stride", stride, 1), ("dilation", dilation, 1), ("padding", padding, 0),
        )
    }  # fmt: skip
    images = [piece for x in given for piece in (x.unsqueeze(1) if flat else x).movedim(-1, 1).split(IMAGES)]
    counts = [len(x) * nn.functional.unfold(x[:1, :1], **settings).shape[2] for x in images]
    chosen = _choose_rows(sum(counts)).to(images[0].device)
    rows = double(images[0]).new_empty(len(chosen), convolution.weight[0].numel())
    start = 0
    for x, count in zip(images, counts, strict=True):
        here = ((chosen >= start) & (chosen < start + count)).nonzero().squeeze(1)
        unfolded = nn.functional.unfold(double(x), **settings).transpose(1, 2).flatten(0, 1)
        rows[here] = unfolded[chosen[here] - start]
        start += count
    return rows


def _part(x: Tensor, dim: int, held_out: bool | None) -> Tensor:
    """All samples along a dimension, or only those that are held out, or only the others."""
    if held_out is None:
        return x
    out = torch.arange(x.shape[dim]) % HELD_OUT == HELD_OUT - 1
    return x.index_select(dim, (out == held_out).nonzero().squeeze(1).to(x.device))


def _rows(by_unit: Tensor) -> Tensor:
    return by_unit.movedim(0, -1).flatten(0, -2)


def _choose_rows(rows: int) -> Tensor:
    """At most ``MOST_SAMPLES`` of this number of rows; an even stride would meet one column of every image."""
    if rows <= MOST_SAMPLES:
        return torch.arange(rows)
    return torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:MOST_SAMPLES]


def thin(rows: Tensor) -> Tensor:
    """At most ``MOST_SAMPLES`` of the rows, the same for every tensor of this length, in float64."""
    if len(rows) > MOST_SAMPLES:
        rows = rows[_choose_rows(len(rows)).to(rows.device)]
    return double(rows)
