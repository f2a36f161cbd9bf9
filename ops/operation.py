"""The contract of an operation, and the checks that every operation shares."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from network_surgery.ops.errors import SurgeryError

if TYPE_CHECKING:
    from network_surgery.ops.anatomy import HiddenLayer
    from network_surgery.ops.plan import Plan
    from network_surgery.ops.signals.signals import Signals


class Operation:
    """Something that can be done to a hidden layer.

    Every operation is a frozen dataclass; its fields are its hyperparameters and hold their only defaults. It proposes
    and changes nothing. ``needs_signals``: whether ``propose`` must be given ``Signals``; ``whole_network``,
    whether it can be done on the whole network at once (``anatomy["*"]``) as well as on one layer; ``makes_layers``,
    whether layers that are new come of it, called after parts of the old one (``fc1.0``); ``of_blocks``, whether it
    works on a stack of blocks (``anatomy.stacks``) in place of a layer's units. ``alternatives``: hyperparameters of
    which a step of a schedule may give one.
    """

    needs_signals: ClassVar[bool] = False
    whole_network: ClassVar[bool] = False
    makes_layers: ClassVar[bool] = False
    of_blocks: ClassVar[bool] = False
    alternatives: ClassVar[tuple[str, ...]] = ()

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


def fraction(operation: Operation, field: str, value: float, above: float = 0.0, most: float = 1.0) -> None:
    """Raises SurgeryError unless ``above < value <= most``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and above < value <= most):
        must = f"{'lie' if number else 'be a number (of Python)'} above {above:g} and at most {most:g}"
        raise SurgeryError(f"{type(operation).__name__}: {field} is {value!r:.60}, but it must {must}")


def whole(operation: Operation, field: str, value: int) -> None:
    """Raises SurgeryError unless the value is a whole number from 0 on, of 63 bits at most (as torch's seeds)."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        most = " below 2^63" if isinstance(value, int) and value > 0 else ""
        words = f"it must be a whole number from 0 on{most}"
        raise SurgeryError(f"{type(operation).__name__}: {field} is {value!r:.60}, but {words}")


def choice(operation: Operation, field: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raises SurgeryError unless the value is one of those allowed."""
    if value not in allowed:
        raise SurgeryError(f"{type(operation).__name__}: {field} is {value!r}, but it must be one of {allowed}")


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
