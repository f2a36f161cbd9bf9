"""What the readers of a layer receive once a plan is applied, against what they received before.

Where a norm stands over the units, those that stay change as well, and only a trial shows by how much.
"""

from __future__ import annotations

import torch

from network_surgery.ops.maths.condensed import relative_error
from network_surgery.ops.maths.double import energy
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.surgery.surgery import trial_surgery


def received_error(
    plan: Plan, signals: Signals, held_out: bool | None = None, units: torch.Tensor | None = None
) -> float:
    """The relative error of what all readers receive of the (first) batch once the plan is applied.

    The plan is tried in the network, in its own precision, and taken back. ``held_out``: as in ``Signals.received``;
    ``units``: only of these old units, ``[units]`` of true and false.
    """
    layer, mixing = plan.layer, dict(plan.mixing)
    old = [signals.received(layer, place, held_out) for place in layer.readers]
    shares = torch.ones(plan.units_after) if plan.shares is None else plan.shares.cpu()
    continued = plan.continued().T * shares.to(torch.float64)  # how old outputs are made of new ones
    missed = spread = 0.0
    with trial_surgery(plan):
        tried = signals.again(layer)
        for place, before in zip(layer.readers, old, strict=True):
            after = tried.received(layer, place, held_out)
            constant = plan.constants.get(place.tensor, before.new_zeros(before.shape[1])).to(before)
            made = mixing[place.tensor].to(after) if place.tensor in mixing else continued.to(after)
            off, around = after @ made.T + constant - before, before - before.mean(dim=0)
            if units is not None:
                off, around = off[:, units.to(off.device)], around[:, units.to(off.device)]
            rows = signals.padded_rows(place, len(before))
            missed += float(energy(off).sum() + rows * energy(constant).sum())
            spread += float(energy(around).sum())
    return relative_error(missed, spread)
