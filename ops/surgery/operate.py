"""The one call of a training loop: propose, repair, verify, apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.errors import SurgeryError, Unsuitable
from network_surgery.ops.operation import Operation
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.surgery.repair import apply_repairs, reestimate
from network_surgery.ops.surgery.surgery import Averages, Optimizers, apply, several
from network_surgery.ops.surgery.verification import measure


def operate(
    layer: HiddenLayer,
    operation: Operation,
    optimizers: Optimizers = (),
    signals: Signals | None = None,
    *,
    repair: Sequence[str] = (),
    averages: Averages = (),
    verify: Any = False,
) -> Plan:
    """Proposes and applies: the one call of a training loop.

    ``optimizers``: one or several that train this network. ``repair``: what is put right when units go, a chain of
    ``bias``, ``least_squares`` and ``batchnorm`` (see ``ops.surgery.repair``), from the signals. ``averages``: networks
    of the same shape that follow it, such as ``torch.optim.swa_utils.AveragedModel``; ``batchnorm`` repairs each of
    them. ``verify``: True, or a batch (what the model takes): the plan is measured in double precision first and
    refused where the network would not compute what the plan says. Returns the plan that was applied.

    Raises:
        SurgeryError: the operation cannot be done on this layer, or does not do what it says; nothing has changed.
    """
    if not isinstance(layer, HiddenLayer) or not isinstance(operation, Operation):
        raise SurgeryError(
            "operate takes a layer of an anatomy and an operation, such as MinWeight(keep=0.5); it was given a "
            f"{type(layer).__name__} and {operation!r}"
        )
    proposed = operation.propose(layer, signals)
    if proposed.modules and repair:
        raise Unsuitable(f"{operation!r} on {layer.name} replaces modules, and repairs are for units that go")
    plan = apply_repairs(proposed, signals, repair)
    if verify is not False:
        measure(plan, None if verify is True else verify)
    undo = apply(plan, optimizers, averages)
    if "batchnorm" in repair and signals is not None:
        try:
            for model in (layer.anatomy.model, *several(averages)):
                reestimate(model, signals, layer, {*plan.masks, *plan.expressed})
        except BaseException:
            for step in reversed(undo):
                step()
            raise
    return plan
