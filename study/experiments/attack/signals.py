"""What is measured of every unit of a layer, on images that are not trained on: ``[units]`` each.

Source: Evci 2018, *Detecting dead weights and units*, section 3.1 (MRP, MRS) and 3.2 (output gradient, flat region).

``mrp``
    Mean replacement penalty: what the next layer receives from the unit is replaced by its mean over images and
    positions; the change of an image's loss, without its sign, mean over images.
``mrp_before``
    The same with the mean taken before the activation, as the thesis does, and sent through it.
``mrs``
    The first order of ``mrp``: |(mean − output) · gradient of an image's loss|, mean over images.
``gradient``, ``largest``
    Of the gradient at the unit's own output, before the activation: its L1 norm over positions, mean over images, and
    its largest entry.
``flat``
    The share of outputs at which the activation's slope is below ``FLAT``: the zeros of ReLU, the ends of tanh.
``in_l1``, ``in_l2``, ``out_l1``, ``out_l2``
    Norms of the incoming and of the outgoing weights, without biases.

``ops.signals.unit_scores`` has the first three for any network. These networks are chains of modules: only what comes
after a layer is run again for each of its units, which takes a third of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from network_surgery.ops import HiddenLayer
from network_surgery.ops.anatomy import evaluating

#: A slope of the activation below which its input is called flat; for tanh, an output beyond ± 0.975.
FLAT = 0.05


def unit_signals(
    model: nn.Sequential, layer: HiddenLayer, inputs: Tensor, targets: Tensor, before: bool = False
) -> dict[str, Tensor]:
    """The signals above of a layer, ``[units]`` each, in evaluation mode; ``mrp_before`` only if ``before`` (it doubles
    the time).

    ``inputs [n, …]``, ``targets [n]`` classes.
    """
    (maker,), (reader,) = layer.makers, layer.readers
    names = [name for name, _ in model.named_children()]
    first, last = (names.index(place.tensor.rpartition(".")[0]) for place in (maker, reader))
    with evaluating(model):
        with torch.no_grad():
            made = model[: first + 1](inputs)
        made.requires_grad_()
        received = made
        for module in model[first + 1 : last]:
            if isinstance(module, (nn.ReLU, nn.Tanh)):  # of which there is one
                level = received.detach().requires_grad_()
                (slopes,) = torch.autograd.grad(module(level).sum(), level)
            received = module(received)

        def loss(replaced: Tensor) -> Tensor:
            return nn.functional.cross_entropy(model[last:](replaced), targets, reduction="none")

        losses = loss(received)
        at_made, at_received = torch.autograd.grad(losses.sum(), (made, received))
        outputs = by_unit(received.detach(), layer.units)

        def penalty(unit: int, constant: Tensor) -> Tensor:
            replaced = outputs.clone()
            replaced[:, unit] = constant
            return (loss(replaced.reshape(received.shape)) - losses).abs().mean()

        with torch.no_grad():
            constants = {"mrp": outputs.mean(dim=(0, 2))}
            if before:
                centre = by_unit(made, layer.units).mean(dim=(0, 2)).view(1, -1, *[1] * (made.dim() - 2))
                sent = model[first + 1 : last](centre.expand_as(made[:1]))
                constants["mrp_before"] = by_unit(sent, layer.units)[0, :, 0]
            penalties = {
                name: torch.stack([*map(penalty, range(layer.units), each)]) for name, each in constants.items()
            }
    around = (constants["mrp"].view(-1, 1) - outputs) * by_unit(at_received, layer.units)
    gradient = by_unit(at_made, layer.units).abs()
    incoming, outgoing = layer.incoming(maker).flatten(1), layer.outgoing_rows()
    return {
        **penalties,
        "mrs": around.sum(dim=2).abs().mean(dim=0),
        "gradient": gradient.sum(dim=2).mean(dim=0), "largest": gradient.amax(dim=(0, 2)),
        "flat": (by_unit(slopes, layer.units) < FLAT).double().mean(dim=(0, 2)),
        "in_l1": incoming.norm(p=1, dim=1), "in_l2": incoming.norm(dim=1),
        "out_l1": outgoing.norm(p=1, dim=1), "out_l2": outgoing.norm(dim=1),
    }  # fmt: skip


def by_unit(outputs: Tensor, units: int) -> Tensor:
    """``[n, units, positions]`` of a layer's outputs ``[n, units, *positions]`` or ``[n, units × positions]``."""
    return outputs.reshape(len(outputs), units, -1)
