"""Unit scores: how much a network would miss each unit of a layer.

Sources: Evci 2018, *Detecting dead weights and units*, 3.1 (mean replacement penalty and saliency) and 4.1; Molchanov
et al. 2016, *Pruning convolutional neural networks for resource efficient inference* (Taylor); norms as in Graham 2019.

``l1``, ``l2``
    Norm of the outgoing weights.
``l1_in``, ``l2_in``
    Norm of the incoming weights, without biases (Evci's norm scores).
``variance``
    The root of the expected squared change of what the readers compute if this unit alone is replaced: the mean square
    of its output around what replaces it times the squared norm of its outgoing weights, summed over readers. Exact
    for a dense reader of one value a unit; where a reader takes several positions of a unit (kernels, flattened
    channels), it counts them as varying independently.
``mrp``
    Mean replacement penalty: ``mean over samples of |loss after this unit alone was removed − loss|``, with what it
    leaves behind in the bias. Measured, see ``mean_replacement_penalty``.
``mrs``
    Mean replacement saliency, the first order of it: ``mean over samples of |Σ (constant − h) · ∂ loss / ∂ h|``, summed
    over the unit's positions. One backward pass for all units of all layers.
``mrs_before``
    Evci's own form of it (equation 3.3): the same, but ``h`` is what the unit's makers make *before* BatchNorm and
    activation, the constant is its mean over samples and positions, and the gradient is that at ``h``. Of several
    makers (a residual stream, a gate) the first orders are summed. What it measures is replacement by the mean before
    the activation: the first order of ``mrp`` with ``replacement="mean_before"`` where no pooling chooses between.
``mrs_before_positions``
    The same with the absolute value taken at each position before the sum, ``mean over samples of Σ |(mean − h) ·
    ∂ loss / ∂ h|``, as Evci's pytorchpruner does for convolutions. With one position a unit, the same.
``taylor``
    ``mean over samples of |Σ h · ∂ loss / ∂ h|``: the same for an output that becomes zero.
``snip``
    Connection sensitivity: ``|g · w|`` of the mean loss's gradient ``g``, summed over the weights ``w`` that make the
    unit (Lee et al. 2019, *SNIP: single-shot network pruning based on connection sensitivity*). A backward pass a call.
``random``
    By a seed: the control.

Evci sums over his 1,000 samples where these are means, so that thresholds do not depend on the sample's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from network_surgery.ops.anatomy import HiddenLayer, Place
from network_surgery.ops.anatomy.running import call, plainly
from network_surgery.ops.arguments import is_seed
from network_surgery.ops.errors import SurgeryError, explained
from network_surgery.ops.maths.condensed import Condensed
from network_surgery.ops.maths.double import double, energy
from network_surgery.ops.network.altered import Altered, Together
from network_surgery.ops.signals.losses import Loss, batch_of, changes, is_batch_first, suit
from network_surgery.ops.signals.replacement import constants
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.signals.weight_scores import weight_scores

SCORES = (
    "l2", "l1", "l2_in", "l1_in", "variance", "mrs", "mrs_before", "mrs_before_positions", "mrp", "taylor", "snip",
    "random",
)  # fmt: skip
#: Those that look at the loss.
BY_LOSS = ("mrs", "mrs_before", "mrs_before_positions", "mrp", "taylor", "snip")
#: Samples, and units that are replaced one by one, in one batch of ``mean_replacement_penalty``.
SAMPLES, UNITS = 32, 32


def unit_scores(
    layer: HiddenLayer, signals: Signals | None, score: str, *, replacement: str = "mean", seed: int = 0
) -> Tensor:
    """A score for each unit, ``[units]`` in float64; those with the highest stay.

    ``signals``: needed by all but the norms and ``random``; all of these but ``variance`` look at the loss, so with
    targets. ``replacement``: what a unit leaves behind (``ops.signals.replacement``), for ``variance`` (about the mean
    only), ``mrp`` and ``mrs``. ``seed``: of ``random``.

    Raises:
        SurgeryError: there is no such score, the signals that it needs are missing or not those of this network, or
            scores are not finite.
    """
    check_layer(layer, signals)
    if not is_seed(seed):
        raise SurgeryError(f"seed is {seed!r}, but it must be a whole number from 0 on below 2^63")
    scores = _scores(layer, signals, score, replacement, seed)
    if not torch.isfinite(scores).all():
        raise SurgeryError(
            f"layer {layer.name}: the unit score {score!r} is not finite: look for NaN or infinite numbers in the "
            "network's weights and in the batch"
        )
    return scores


def check_layer(layer: HiddenLayer, signals: Signals | None) -> None:
    """Raises SurgeryError unless these are a layer with units of its own, and signals if anything."""
    if not isinstance(layer, HiddenLayer):
        raise SurgeryError(f"units are those of a layer of an anatomy, not of a {type(layer).__name__}")
    if not layer.readers:
        raise SurgeryError(f"units are looked at one layer at a time, not in the whole network ('{layer.name}')")
    if signals is not None and not isinstance(signals, Signals):
        raise SurgeryError(f"signals must be Signals(model, inputs, targets), not {type(signals).__name__}")


def _scores(layer: HiddenLayer, signals: Signals | None, score: str, replacement: str, seed: int) -> Tensor:
    if score in ("l1", "l2"):
        return layer.outgoing_rows().norm(p=int(score[1]), dim=1)
    if score in ("l1_in", "l2_in"):
        rows = torch.cat([layer.incoming(place).flatten(1) for place in layer.makers], dim=1)
        return rows.norm(p=int(score[1]), dim=1)
    if score == "random":
        order = torch.randperm(layer.units, generator=torch.Generator().manual_seed(seed))
        return order.to(layer.outgoing_rows().real)
    if score not in SCORES:
        raise SurgeryError(f"there is no unit score {score!r}; there are {', '.join(SCORES)}")
    if signals is None:
        raise SurgeryError(f"the unit score {score!r} looks at outputs: give it Signals(model, inputs, targets)")
    if score == "variance":
        return variance(layer, {place: signals.condensed(layer)[place.tensor].whole for place in layer.readers})
    if score == "taylor":
        return first_order(layer, signals, {}).abs().mean(dim=0)
    if score == "snip":
        return connection_sensitivity(layer, signals)
    if score in ("mrs_before", "mrs_before_positions"):
        return first_order_before(layer, signals, each_position=score.endswith("positions")).abs().mean(dim=0)
    left = constants(layer, signals, replacement)
    if score == "mrs":
        return first_order(layer, signals, left).abs().mean(dim=0)
    return mean_replacement_penalty(layer, signals, left)


def connection_sensitivity(layer: HiddenLayer, signals: Signals) -> Tensor:
    """The score ``snip`` of the (first) batch, ``[units]`` in float64.

    Raises SurgeryError where there are no targets, or weights are complex or have no gradient.
    """
    signals.check_network(layer)
    names = list(dict.fromkeys(place.tensor for place in layer.makers))
    if odd := [name for name in names if layer.anatomy.tensor(name).is_complex()]:
        raise SurgeryError(f"layer {layer.name}: the unit score snip is one of real weights, but {odd[0]} is complex")
    found = weight_scores(
        layer.anatomy.model, names, "taylor1_abs", signals.inputs, signals.classes, loss=signals.loss_function
    )
    rows = [layer.by_unit(place, found[place.tensor]).flatten(1).sum(dim=1) for place in layer.makers]
    return torch.stack([row.double() for row in rows]).sum(dim=0)


def variance(layer: HiddenLayer, seen: Mapping[Place, Condensed]) -> Tensor:
    """The score of that name, ``[units]``. ``seen``: what each reader receives."""
    change = torch.zeros_like(layer.outgoing_rows()[:, 0].real)
    for place, each in seen.items():
        about = each if place.tensor in layer.anatomy.sinks else each.about_zero()
        around = energy(about.deviations).sum(dim=0) / each.samples
        change += around * energy(layer.outgoing(place)).flatten(1).sum(dim=1)
    return change.sqrt()


def first_order(layer: HiddenLayer, signals: Signals, left: Mapping[str, Tensor]) -> Tensor:
    """How each sample's loss changes, in first order, as each unit's output becomes constant: ``[samples, units]``.

    ``left``: reader → the constant ``[units]``; zero where a reader has none.
    """
    total: Tensor | float = 0.0
    for place in layer.readers:
        constant = left.get(place.tensor, torch.zeros(layer.units))
        for given, slope in signals.sloped(layer, place):
            moved = constant.to(given).view(-1, *[1] * (given.dim() - 1)) - given
            summed = [dim for dim in range(1, given.dim()) if dim != 2]
            total = total + (moved * slope.conj()).real.sum(dim=summed, dtype=torch.float64)
    assert isinstance(total, Tensor)
    return total.T


def first_order_before(layer: HiddenLayer, signals: Signals, each_position: bool = False) -> Tensor:
    """How each sample's loss changes, in first order, as each unit makes its mean all the time: ``[samples, units]``.

    The mean is of what a maker makes, before BatchNorm and activation, over samples and positions (and calls, where it
    is called more than once). ``each_position``: the sum of the absolute values over positions.

    Raises:
        SurgeryError: no targets, or what a maker makes or the gradient there is not known.
    """
    gradients = signals.gradients(layer)
    total: Tensor | float = 0.0
    for place in layer.makers:
        values = [double(_by_unit(x, place)) for x in gradients.values(place)]
        rows = torch.cat([x.flatten(2) for x in values], dim=2)
        mean = rows.mean(dim=2)
        for value, made in zip(values, gradients.made(place), strict=True):
            moved = mean.view(*mean.shape, *[1] * (value.dim() - 2)) - value
            moved = (moved * _by_unit(made, place).conj()).real
            moved = gradients.by_sample(layer, place, moved)
            summed = [dim for dim in range(1, moved.dim()) if dim != 2]
            total = total + (moved.abs() if each_position else moved).sum(dim=summed)
    assert isinstance(total, Tensor)
    return total.T


def _by_unit(made: Tensor, place: Place) -> Tensor:
    """``[..., size of the place]`` as ``[units, positions of a unit, ...]``."""
    return made.movedim(-1, 0)[place.positions.to(made.device)]


def mean_replacement_penalty(layer: HiddenLayer, signals: Signals, left: Mapping[str, Tensor]) -> Tensor:
    """``mean over samples of |loss without this unit − loss|`` on the (first) batch, ``[units]`` in float64.

    ``left``: as in ``loss_changes``.
    """
    return loss_changes(layer, signals, left).abs().mean(dim=1)


def loss_changes(layer: HiddenLayer, signals: Signals, left: Mapping[str, Tensor]) -> Tensor:
    """``loss without this unit − loss`` of each sample of the (first) batch, ``[units, samples]`` in float64.

    ``left``: reader → the constant ``[units]`` that goes into the bias after it (so after a convolution that pads it
    counts at the border as well, as it does after the removal).

    Many units are removed at once, each from a copy of what reads it: what comes before the readers is computed once
    for all of them. A network that cannot be run so (``torch.func.vmap``) is run once for each unit.
    """
    targets = signals.classes
    signals.check_network(layer)
    model, samples, pieces = layer.anatomy.model, batch_of(targets, signals.inputs), []
    with plainly(model):
        removed, device = _Removed(layer, left), layer.tensor(layer.readers[0]).device
        for inputs, classes in _pieces(signals.inputs, targets, samples):
            with explained(f"layer {layer.name}: the network does not run on this batch"):
                before = call(model, inputs)
            changed = removed.changes(inputs, before, classes, suit(signals.loss_function, before, classes))
            some = torch.arange(layer.units, device=device).split(UNITS)
            pieces.append(torch.cat([changed(units).to(torch.float64) for units in some]))
    return torch.cat(pieces, dim=1)


class _Removed:
    """A network with one unit of a layer removed, at its old size: weights that read it are zero."""

    def __init__(self, layer: HiddenLayer, left: Mapping[str, Tensor]) -> None:
        anatomy, self._layer, self._network = layer.anatomy, layer, Altered(layer.anatomy.model)
        device = layer.tensor(layer.readers[0]).device
        self._masks: list[tuple[str, int, Tensor]] = []
        self._sent: list[tuple[str, Tensor]] = []
        for place in layer.readers:
            mask = torch.ones(layer.units, place.size).scatter_(1, place.positions, 0)
            self._masks.append((place.tensor, place.axis, mask.to(device)))
            if place.tensor in left:
                weight = double(anatomy.live(place.tensor))
                sent = layer.sent(place, weight, left[place.tensor].to(weight).diag())
                self._sent.append((anatomy.sinks[place.tensor].tensor, sent))

    def changes(self, inputs: Any, before: Any, targets: Any, loss: Loss) -> Together:
        """Units ``[units]`` → how the loss of every sample changes without each of them, ``[units, samples]``.

        ``before``: the network's output. ``loss``: a suited one.
        """
        return Together(lambda unit: changes(loss, before, self._network(self.tensors(unit), inputs), targets))

    def tensors(self, unit: Tensor) -> dict[str, Tensor]:
        """The tensors of the network without this unit that differ from those with it, by name."""
        changed: dict[str, Tensor] = {}
        for name, axis, mask in self._masks:
            old = changed.get(name, self._layer.anatomy.tensor(name))
            row = mask.index_select(0, unit.reshape(1)).to(old)
            changed[name] = old * row.view([-1 if dim == axis else 1 for dim in range(old.dim())])
        for name, sent in self._sent:
            old = changed.get(name, self._layer.anatomy.tensor(name))
            changed[name] = old + sent.index_select(0, unit.reshape(1)).squeeze(0).to(old)
        return changed


def _pieces(inputs: Any, targets: Any, samples: int) -> Iterator[tuple[Any, Any]]:
    """A few samples at a time, where every tensor has one entry for each of them; else all at once."""
    if not is_batch_first((inputs, targets), samples):
        yield inputs, targets
        return
    for start in range(0, samples, SAMPLES):
        part = slice(start, start + SAMPLES)
        yield _pytree.tree_map(lambda x, part=part: x[part] if isinstance(x, Tensor) else x, (inputs, targets))
