"""Verification: does the network after surgery compute what the plan says it computes?

A plan says what readers receive: some units are gone or constant from now on, shared among copies or mixed of others.
That can be had *without* changing any weight or size: while the network runs, what each product with a reader's weight
is given is changed as the plan says (``received_as``). Surgery is right when the network after it computes what this
one computes, wherever surgery has put the constants. A convolution that pads meets them in the padding as well; that it
does not in the network before is part of the plan's error.

Where a norm or a mean over the units stands between, the two cannot be equal, and the difference is the plan's measured
error. Where old outputs are made of those of newborn units (PCNS's eigenvectors), or copies get noise, no old unit can
stand in for them, and the difference is that from the network before. So it is where newborn units are read, too: they
are to change nothing (GradMax).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from network_surgery.ops.anatomy import Anatomy, Place
from network_surgery.ops.anatomy.products import FACTORS
from network_surgery.ops.anatomy.rebuild import in_double, to_double, undoing
from network_surgery.ops.anatomy.rules import apply_rule
from network_surgery.ops.anatomy.running import call, deviation, flat_tensors, plainly
from network_surgery.ops.anatomy.steady import Redrawn
from network_surgery.ops.anatomy.trace import Trace
from network_surgery.ops.errors import SurgeryError, first_line, pass_on_memory
from network_surgery.ops.maths.double import double
from network_surgery.ops.network.checks import check_real, usable
from network_surgery.ops.network.masks import lift
from network_surgery.ops.network.optimizer_state import exchange
from network_surgery.ops.plan import Plan
from network_surgery.ops.surgery.surgery import trial_surgery

#: The largest relative difference that rounding explains in double precision.
TOLERANCE = 1e-8
#: How much larger the network's difference may be than that of what readers receive.
BORDER = 100


def measure(plan: Plan, batch: Any = None) -> float:
    """The relative difference between the network after surgery and what the plan says it computes.

    ``batch`` is what the model takes (None: the anatomy's example input). Both are computed in double precision, in
    evaluation mode; the network is left as it was. The result is kept as ``plan.measured``: rounding where the layer is
    exact, and where it is not, how much the norms over its units change the output.

    Raises:
        SurgeryError: the layer is said to be exact, but the difference is larger than rounding.
    """
    if not isinstance(plan, Plan):
        raise SurgeryError(f"a plan is what an operation proposes, not a {type(plan).__name__}")
    measured = difference(plan, batch)
    object.__setattr__(plan, "measured", measured)
    slight = BORDER * (plan.error or 0.0) if plan.fan_out else 0.0  # what padding does not meet
    if plan.layer.exact and not _new_basis(plan) and not measured <= TOLERANCE + slight:
        raise SurgeryError(
            f"{plan.operation} on {plan.layer.name} should be exact, but the output would differ by {measured:.2g} "
            "of its size from what the plan says: nothing has been changed; please report this network"
        )
    return measured


def difference(plan: Plan, batch: Any = None, training: bool = False) -> float:
    """What ``measure`` measures, without a verdict; also in training mode, with the same random numbers."""
    anatomy = plan.layer.anatomy
    example = anatomy.example_input if batch is None else usable(batch)
    check_real(anatomy.model, example)
    with in_double(anatomy):
        example = _pytree.tree_map(to_double, example)
        try:
            wanted = _answer(anatomy, example, training)
        except Exception as error:  # whatever the foreign forward pass raises
            pass_on_memory(error)
            raise SurgeryError(
                f"the network does not run on this batch in double precision: {first_line(error)}"
            ) from error
        if not any(torch.isfinite(tensor).any() for tensor in wanted):
            raise SurgeryError("nothing can be verified on this batch: the network's output holds no finite number")
        if plan.modules and not _new_basis(plan):
            with _rewritten(plan):
                wanted = _answer(anatomy, example, training)
        elif not (_new_basis(plan) or plan.fan_out):
            wanted = received_as(plan, example)
        redrawn = Redrawn(anatomy.draws, {plan.layer.factor: torch.tensor(plan.sources, dtype=torch.int64)})
        with trial_surgery(plan), redrawn if anatomy.draws else contextlib.nullcontext():
            found = _answer(anatomy, example, training)
    return deviation(wanted, found)


def _new_basis(plan: Plan) -> bool:
    """Whether no old unit or weight can stand for what the plan makes."""
    made = (-1 in plan.sources and bool(plan.mixing)) or bool(plan.fan_in)
    return made or any(change.effective is None for change in plan.modules.values())


def received_as(plan: Plan, example: Any) -> list[Tensor]:
    """The output of the network at its old size, while its readers receive the units as the plan says."""
    with _rewritten(plan), plainly(plan.layer.anatomy.model):
        altered = _Altered(plan)
        output = altered.run(example)
        if strange := altered.waiting & set(altered.axes):
            raise SurgeryError(
                f"{plan.operation} on {plan.layer.name}: the batch does not meet {min(strange)} as the anatomy did; "
                "measure on a batch that does"
            )
    return output


class _Altered(Trace):
    """A forward pass in which every product with a reader's weight is given other values.

    ``waiting``: the readers that no product has met yet.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.layer.anatomy.model, 1)
        self._plan = plan
        self._places = {(place.tensor, place.axis): place for place in plan.layer.readers}
        self.waiting = {tensor for tensor, _ in self._places}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*self._altered(func.overloadpacket.__name__, args), **kwargs)
        apply_rule(self, func, args, kwargs, out)
        return out

    def _altered(self, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """An operator's arguments, changed if it is a product with a reader's weight."""
        new = list(args)
        if name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            place = self._place(weight, 0 if transposed else 1)
            if place is not None:
                if not transposed and any(args[4]):
                    x = nn.functional.pad(x, [n for each in reversed(args[4]) for n in (each, each)])
                    new[4] = [0] * len(args[4])
                new[0] = self._received(place, x, 1)
        elif name in FACTORS:
            one = FACTORS[name]
            left, right = args[one], args[one + 1]
            read = right.dim() - 1 if name == "linear" else max(right.dim() - 2, 0)
            if (place := self._place(right, read)) is not None:
                new[one] = self._received(place, left, left.dim() - 1)
            elif (place := self._place(left, left.dim() - 1)) is not None:
                new[one + 1] = self._received(place, right, read)
        return tuple(new)

    def _place(self, weight: Tensor, dim: int) -> Place | None:
        """The reader whose axis is this dimension of a tensor."""
        twin = self.twin(weight)
        return None if twin.source is None else self._places.get((twin.source, twin.origins[dim]))  # type: ignore[arg-type]

    def _received(self, place: Place, x: Tensor, dim: int) -> Tensor:
        self.waiting.discard(place.tensor)
        made, constant = _weights(self._plan, place.tensor).to(x), self._plan.constants.get(place.tensor)
        positions = place.positions_among(x.shape[dim]).to(x.device)
        x = x.movedim(dim, 0).clone()
        units = torch.einsum("uv,vk...->uk...", made, x[positions])
        if constant is not None:
            units = units + constant.to(x).view(-1, *[1] * (units.dim() - 1))
        x[positions] = units
        return x.movedim(0, dim)


def _answer(anatomy: Anatomy, example: Any, training: bool = False) -> list[Tensor]:
    """What the network answers; each pass begins in the state that the network is in."""
    with plainly(anatomy.model, training):
        return flat_tensors(call(anatomy.model, example))


@contextlib.contextmanager
def _rewritten(plan: Plan) -> Iterator[None]:
    """The network with the plan's masks and replaced values, for the time of a ``with`` block."""
    anatomy = plan.layer.anatomy
    with undoing() as undo:
        for name, mask in plan.masks.items():
            tensor = anatomy.tensor(name)
            undo.append(exchange(tensor, anatomy.live(name) * mask.to(tensor.device), tensor.grad))
        for name, expression in plan.expressed.items():
            tensor = anatomy.tensor(name)
            stored = plan.fresh[name].to(tensor) if name in plan.fresh else expression.reduced(anatomy.live(name))
            undo.append(exchange(tensor, expression.weight(stored), tensor.grad))
        for path, change in plan.modules.items():
            for name, value in change.effective(anatomy.modules).items() if change.effective else ():
                tensor = anatomy.modules[path].get_parameter(name)
                undo.append(exchange(tensor, value.to(tensor), tensor.grad))
        undo.extend(lift(anatomy.modules, plan.replaced))
        for name, value in plan.replaced.items():
            tensor = anatomy.tensor(name)
            undo.append(exchange(tensor, value.to(tensor), tensor.grad))
        yield


@contextlib.contextmanager
def emulated(plan: Plan) -> Iterator[None]:
    """The network whose weights make each old unit count as the plan says, at its old size, for a ``with`` block."""
    layer, anatomy = plan.layer, plan.layer.anatomy
    if plan.fan_out:  # new units are to change nothing
        yield
        return
    with _rewritten(plan), undoing() as undo:
        undo.extend(lift(anatomy.modules, [place.tensor for place in layer.readers]))
        for place in layer.readers:
            tensor, outgoing = layer.tensor(place), layer.outgoing(place)
            if place.tensor in plan.constants:
                bias, weight = anatomy.tensor(anatomy.sinks[place.tensor].tensor), anatomy.live(place.tensor)
                sent = layer.sent(place, weight.to(outgoing), plan.constants[place.tensor].to(outgoing))
                undo.append(exchange(bias, bias.data + sent.to(bias), bias.grad))
            counted = torch.einsum("uok,uv->vok", outgoing, _weights(plan, place.tensor).to(outgoing))
            undo.append(exchange(tensor, layer.written(place, tensor, counted), tensor.grad))
        yield


def _weights(plan: Plan, reader: str) -> Tensor:
    """How old unit ``v``'s fan-out is made of the old fan-outs ``u``: shape ``[units, units]``."""
    continued = plan.continued()
    if reader in plan.mixing:
        return (mixing := double(plan.mixing[reader].cpu())) @ continued.to(mixing)
    shares = torch.ones(plan.units_after) if plan.shares is None else plan.shares.cpu()
    return torch.diag(shares.to(torch.float64) @ continued)
