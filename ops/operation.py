"""The contract of an operation, and the checks that every operation shares."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

from network_surgery.ops.anatomy import WHOLE, HiddenLayer, Stack
from network_surgery.ops.arguments import is_seed
from network_surgery.ops.errors import SurgeryError, Unsuitable
from network_surgery.ops.network.checks import check_current
from network_surgery.ops.plan import Plan
from network_surgery.ops.signals.signals import Signals


class Operation:
    """Something that can be done to a hidden layer.

    Every operation is a frozen dataclass; its fields are its hyperparameters and hold their only defaults. It proposes
    and changes nothing. What ``propose`` is given is checked before it begins, in every subclass.

    ``needs_signals``: whether ``propose`` must be given ``Signals``; ``whole_network``, whether it can be done on the
    whole network at once (``anatomy["*"]``) as well as on one layer; ``makes_layers``, whether layers that are new come
    of it, called after parts of the old one (``fc1.0``); ``of_blocks``, whether it works on a stack of blocks
    (``anatomy.stacks``) in place of a layer's units. ``alternatives``: hyperparameters of which a step of a schedule
    may give one.
    """

    needs_signals: ClassVar[bool] = False
    whole_network: ClassVar[bool] = False
    makes_layers: ClassVar[bool] = False
    of_blocks: ClassVar[bool] = False
    alternatives: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "propose" in vars(cls):
            cls.propose = _checked(cls.propose)  # type: ignore[assignment, method-assign]

    def hyperparameters(self) -> dict[str, Any]:
        """The fields by name; those declared with ``repr=False``, rare options, only where they are not the default.

        So neither plans and errors nor schedules that were written down before an option came grow longer by it.
        """
        values = ((each, getattr(self, each.name)) for each in fields(self))  # type: ignore[arg-type]
        return {each.name: value for each, value in values if each.repr or value != each.default}

    def __repr__(self) -> str:
        """As a dataclass's, of ``hyperparameters``; for a class with ``@dataclass(frozen=True, repr=False)``."""
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.hyperparameters().items())})"

    def propose(self, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        raise SurgeryError(f"{type(self).__name__} does not say what it proposes")


Propose = Callable[[Operation, HiddenLayer, Signals | None], Plan]


def _checked(propose: Propose) -> Propose:
    """The same for a layer of an anatomy that this operation can be done on and for signals, if any."""

    @functools.wraps(propose)
    def checked(operation: Operation, layer: HiddenLayer, signals: Signals | None = None) -> Plan:
        if not isinstance(layer, HiddenLayer):
            raise SurgeryError(
                f"{operation!r} takes a layer of an anatomy, such as Anatomy(model, inputs)['fc1'], not {layer!r:.60}"
            )
        if signals is not None and not isinstance(signals, Signals):
            raise SurgeryError(f"signals must be Signals(model, inputs), not {type(signals).__name__}")
        check_current(layer)
        if layer.name == WHOLE and not operation.whole_network:
            raise Unsuitable(f"{operation!r} works on one layer at a time, not on the whole network ('{WHOLE}')")
        if isinstance(layer, Stack) and not operation.of_blocks:
            raise Unsuitable(
                f"{operation!r} works on units, and {layer.name} is a stack of blocks: Deepen, or DropBlock"
            )
        return propose(operation, layer, signals)

    return checked


def fraction(operation: Operation, field: str, value: float, above: float = 0.0, most: float = 1.0) -> None:
    """Raises SurgeryError unless ``above < value <= most``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and above < value <= most):
        must = f"{'lie' if number else 'be a number (of Python)'} above {above:g} and at most {most:g}"
        raise SurgeryError(f"{type(operation).__name__}: {field} is {value!r:.60}, but it must {must}")


def whole(operation: Operation, field: str, value: int) -> None:
    """Raises SurgeryError unless the value is a whole number from 0 on, of 63 bits at most (as torch's seeds)."""
    if not is_seed(value):
        most = " below 2^63" if isinstance(value, int) and value > 0 else ""
        words = f"it must be a whole number from 0 on{most}"
        raise SurgeryError(f"{type(operation).__name__}: {field} is {value!r:.60}, but {words}")


def choice(operation: Operation, field: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises SurgeryError unless the value is one of those allowed."""
    if not isinstance(value, (str, int, float)) or value not in allowed:
        raise SurgeryError(f"{type(operation).__name__}: {field} is {value!r:.60}, but it must be one of {allowed}")


#: How a fraction of a layer becomes a whole number of units; ``down`` is Python's ``int()``, as in published code.
ROUNDINGS = ("nearest", "down")


def units_to_keep(layer: HiddenLayer, keep: float, rounding: str = "nearest") -> int:
    """How many units a fraction of the layer is: the nearest whole number (or the one below), at least two.

    Two, because a layer of a single unit looks like a broadcast dimension, so no anatomy would find it again.
    """
    count = int(keep * layer.units) if rounding == "down" else round(keep * layer.units)
    return min(layer.units, max(2, count))


def new_units(layer: HiddenLayer, grow: float, rounding: str = "nearest") -> int:
    """How many units are added to a layer that grows by a fraction: the nearest whole number (or that below), at least
    one.
    """
    count = int(grow * layer.units) if rounding == "down" else round(grow * layer.units)
    return max(1, count)
