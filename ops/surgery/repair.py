"""Repairs: what can be put right when units go, for every operation that removes some.

A *chain* names them in order. All look at ``Signals``, so what they take belongs to the operation's cost.

``bias``
    The mean output that each removed unit sent on is added to the bias after its reader (Evci 2018, *Detecting dead
    weights and units*, chapter 3). A constant unit leaves without a trace.
``least_squares``
    Each reader is refitted to what it received before: every old output as a linear combination of those kept, with a
    constant where there is a bias to hold it (the second half of PCNS, Rolet 2022). What ``bias`` does is part of it.
``batchnorm``
    The running statistics of every BatchNorm after the layer are estimated anew, as the plain average over the
    signals' batches, with the network as it is after the operation.

The first two are part of the plan, and so is their error: where a convolution pads, the constant is not exact at the
border; where a norm stands over the units, those that stay change, and the plan is tried to see by how much. A reader
after which no vector can hold a constant (``ops.anatomy.sinks``) gets none. BatchNorm's statistics are no weights: they
are estimated once the plan has been applied, layer after layer where several are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from network_surgery.ops.anatomy import HiddenLayer
from network_surgery.ops.anatomy.running import call, flat_tensors, plainly
from network_surgery.ops.errors import SurgeryError, first_line, pass_on_memory
from network_surgery.ops.maths.condensed import Combination, Condensed, relative_error
from network_surgery.ops.maths.double import energy
from network_surgery.ops.network.wrappers import inner
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.surgery.received import received_error

CHAIN = ("bias", "least_squares", "batchnorm")
#: What least squares adds to the kept units' covariance, as a fraction of their mean variance.
RIDGE = 1e-6


def check_chain(chain: Sequence[str]) -> tuple[str, ...]:
    """The chain as a tuple. Raises SurgeryError unless it names known repairs, none twice."""
    known = isinstance(chain, Sequence) and not isinstance(chain, str) and all(step in CHAIN for step in chain)
    if not known or len(set(chain)) != len(chain):
        raise SurgeryError(f"a repair is a list of {', '.join(CHAIN)}, none of them twice; it is {chain!r:.60}")
    return tuple(chain)


def apply_repairs(plan: Plan, signals: Signals | None, chain: Sequence[str]) -> Plan:
    """The plan with those repairs that are part of a plan.

    Raises:
        SurgeryError: there are no signals, or the plan does something else than remove units.
    """
    chain = check_chain(chain)
    if not chain:
        return plan
    if signals is None:
        raise SurgeryError(f"the repair {', '.join(chain)} looks at outputs: give it Signals(model, inputs)")
    for step in chain:
        if step == "bias":
            plan = bias(plan, signals)
        elif step == "least_squares":  # its constants make up for more than those of bias
            plan = least_squares(replace(plan, constants={}), signals, RIDGE)
    return replace(plan, operation=" + ".join((plan.operation, *chain)))


def bias(plan: Plan, signals: Signals) -> Plan:
    """The plan with each removed unit's mean output as a constant in the bias after each reader that has one."""
    sinks = plan.layer.anatomy.sinks
    return _left(plan, signals, lambda tensor, seen: seen.origin if tensor in sinks else None)


def leave(plan: Plan, signals: Signals, left: Mapping[str, Tensor]) -> Plan:
    """The plan with a constant for each removed unit in the bias after each reader that ``left`` names.

    ``left``: reader → ``[units]``, of readers only that have a bias.
    """
    return _left(plan, signals, lambda tensor, seen: left.get(tensor))


def least_squares(plan: Plan, signals: Signals, ridge: float = 0.0) -> Plan:
    """The plan with each reader refitted; ``ridge`` as in ``Condensed.combination``.

    The plan's evidence has the ``condition`` number of the worst least squares.
    """
    sinks = plan.layer.anatomy.sinks
    return _with(
        plan, signals,
        lambda tensor, seen: (seen if tensor in sinks else seen.about_zero()).combination(plan.sources, ridge),
    )  # fmt: skip


def reestimate(model: nn.Module, signals: Signals, layer: HiddenLayer, changed: Collection[str] = ()) -> None:
    """Estimates the running statistics of every BatchNorm after the layer's first reader anew.

    ``model``: the layer's network, or an average of it. ``changed``: where other weights were changed than those that
    read its units, after the first of these instead.

    The batches that the signals were taken from are shown to the network with these norms, and nothing else, in
    training mode; each statistic is the plain average over the batches. What comes before the reader is as it was, and
    so are the statistics there.

    Raises:
        SurgeryError: the network does not run on the batches that way (of a single sample, say).
    """
    model = inner(model)
    modules = dict(model.named_modules())
    readers = {id(layer.anatomy.owner(name, modules)) for name in changed or [place.tensor for place in layer.readers]}
    reached: list[_BatchNorm] = []
    begun = False

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal begun
        begun = begun or id(module) in readers
        if begun and isinstance(module, _BatchNorm) and module.running_mean is not None and module not in reached:
            reached.append(module)
            module.reset_running_stats()
            module.momentum, module.training = None, True

    hooks = [module.register_forward_pre_hook(enter) for module in model.modules()]
    try:
        with plainly(model):
            for inputs in signals.shown:
                begun = False
                if not any(tensor.numel() for tensor in flat_tensors(inputs)):
                    raise ValueError("it is empty")
                call(model, inputs)
                if not reached:  # no norm lies after this layer
                    break
            estimated = [(buffer, buffer.clone()) for norm in reached for buffer in norm.buffers()]
            if not all(bool(torch.isfinite(values).all()) for _, values in estimated):
                raise ValueError("they are not finite there")
    except Exception as error:  # whatever the foreign forward pass raises
        pass_on_memory(error)
        raise SurgeryError(f"BatchNorm's statistics cannot be estimated on this batch: {first_line(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    for buffer, values in estimated:  # all else is as it was before the passes
        buffer.data.copy_(values)


def _with(plan: Plan, signals: Signals, fit: Callable[[str, Condensed], Combination]) -> Plan:
    """The plan with readers that make up for what is gone: ``fit(reader, sample)``."""
    layer, units = plan.layer, plan.units_before
    rewritten = plan.shares is not None or plan.replaced or plan.mixing or plan.masks
    if rewritten or min(plan.sources) < 0 or len(plan.removed) + len(plan.sources) != units:
        raise SurgeryError(
            f"{plan.operation} on {layer.name} cannot be repaired: bias and least_squares are for operations that "
            "remove units and leave the others as they are"
        )
    if not plan.removed:
        return plan
    mixing, constants = {}, {}
    missed = spread = unseen_missed = unseen_spread = condition = 0.0
    places = {place.tensor: place for place in layer.readers}
    for tensor, seen in signals.condensed(layer).items():
        found = fit(tensor, seen.whole)
        mixing[tensor] = found.mixing
        if tensor in layer.anatomy.sinks:
            constants[tensor] = found.constant
        padded = signals.padded_rows(places[tensor], seen.whole.samples) * float(energy(found.constant).sum())
        missed, spread = missed + found.missed(seen.whole) + padded, spread + seen.whole.spread
        condition = max(condition, found.condition)
        if seen.held_out is not None:
            unseen = fit(tensor, seen.fitted)
            padded = signals.padded_rows(places[tensor], seen.held_out.samples) * float(energy(unseen.constant).sum())
            unseen_missed += unseen.missed(seen.held_out) + padded
            unseen_spread += seen.held_out.spread
    evidence: dict[str, Any] = {"condition": condition} if condition else {}
    plan = replace(plan, mixing=mixing, constants=constants, error=relative_error(missed, spread))
    if not layer.exact:  # the units that stay change as well
        return replace(plan, error=received_error(plan, signals), evidence={**plan.evidence, **evidence})
    if unseen_spread:
        evidence["held_out_error"] = relative_error(unseen_missed, unseen_spread)
    return replace(plan, evidence={**plan.evidence, **evidence})


def _left(plan: Plan, signals: Signals, left: Callable[[str, Condensed], Tensor | None]) -> Plan:
    """``left(reader, sample)``: the constant of each unit; None where there is nothing left."""
    kept = list(plan.sources)

    def fit(tensor: str, seen: Condensed) -> Combination:
        constants = left(tensor, seen)
        mixing = torch.eye(len(seen.origin), dtype=seen.origin.dtype, device=seen.origin.device)[:, kept]
        constant = torch.zeros_like(seen.origin) if constants is None else constants.to(seen.origin).clone()
        constant[kept] = 0
        return Combination(plan.sources, mixing, constant, 0.0)

    return replace(_with(plan, signals, fit), mixing={})  # those that stay are gathered, as they would be
