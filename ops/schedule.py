"""Schedules: which operation on which layer, when. Plain data, so that search spaces and checkpoints can hold it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from network_surgery.ops.allocation import (
    Allocation,
    Size,
    allocate,
    check_operation,
    check_possible,
    limits,
    size,
)
from network_surgery.ops.anatomy import WHOLE, Anatomy, HiddenLayer
from network_surgery.ops.arguments import name_list
from network_surgery.ops.errors import NoSignal, SurgeryError, explained
from network_surgery.ops.maths.condensed import units_needed
from network_surgery.ops.operation import Operation
from network_surgery.ops.operations import operation_class, operation_name
from network_surgery.ops.operations.dead_units import dead_units
from network_surgery.ops.signals.signals import Signals
from network_surgery.ops.surgery.repair import check_chain


@dataclass(frozen=True)
class Moment:
    """A point of training: after a number of whole epochs ("3ep") or optimizer steps ("250it").

    >>> Moment.parse("3ep")
    Moment(count=3, unit='ep')
    """

    count: int
    unit: str = "ep"

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 0 or self.unit not in ("ep", "it"):
            raise SurgeryError(
                f"{self} is not a moment of training; give Moment(3) (epochs) or Moment(250, 'it') (steps)"
            )

    @classmethod
    def parse(cls, text: str) -> Moment:
        match = re.fullmatch(r"(\d+)(ep|it)", str(text).strip())
        if match is None:
            raise SurgeryError(f"{text!r} is not a moment of training; write it like '3ep' (epochs) or '250it' (steps)")
        return cls(int(match.group(1)), match.group(2))

    def iteration(self, per_epoch: int) -> int:
        """The number of optimizer steps done by then, with ``per_epoch`` of them in an epoch."""
        return self.count * per_epoch if self.unit == "ep" else self.count

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


def redundancy(layer: HiddenLayer, signals: Signals, threshold: float) -> float:
    """The fraction of the units (0 … 1) that PCNS would remove, losing a fraction ``threshold`` of the variance.

    Source: Rolet 2022, *PCNS*, section 3.1 (a draft).
    """
    left_over = max(0, layer.units - units_needed(signals.together(layer).spectrum(), threshold))
    return left_over / layer.units  # of whole numbers: 1 of 10 is 0.1 as it is written


def dead_fraction(layer: HiddenLayer, signals: Signals, threshold: float) -> float:
    """The fraction of the units (0 … 1) that are dead at this ``threshold`` (see ``ops.operations.dead_units``).

    0 where the loss says nothing of the layer.
    """
    try:
        return int(dead_units(layer, signals, threshold).sum()) / layer.units
    except NoSignal:
        return 0.0


#: What a condition may look at: how large a fraction of a layer's units it could do without.
MEASURES: dict[str, Callable[[HiddenLayer, Signals, float], float]] = {
    "redundancy": redundancy,
    "dead_fraction": dead_fraction,
}
#: How a condition is written.
EXAMPLE = "redundancy(0.01) >= 0.3 from 2ep every 1ep at most 2"
NUMBER = r"(\d*\.?\d+(?:e[+-]?\d+)?)"
CONDITION = re.compile(
    rf"({'|'.join(MEASURES)})\s*\(\s*{NUMBER}\s*\)\s*>=\s*{NUMBER}"
    r"\s+from\s+(\w+)\s+every\s+(\w+)\s+at\s+most\s+(\d+)"
)


@dataclass(frozen=True)
class Condition:
    """Not a moment but a finding: the layer could do without enough of its units.

    From ``first`` on the layer is looked at ``every`` so often. The step is done whenever the ``measure`` (one of
    ``MEASURES``) at this ``threshold`` finds at least a fraction ``gain`` of the units, but ``times`` times at most.

    >>> Condition.parse("dead_fraction(0.01) >= 0.1 from 2ep every 1ep at most 2").times
    2
    """

    threshold: float
    gain: float
    first: Moment
    every: Moment = Moment(1)
    times: int = 1
    measure: str = "redundancy"

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("gain", self.gain)):
            if not isinstance(value, (int, float)) or not 0 < value < 1:
                raise SurgeryError(f"the {name} of a condition is {value!r:.60}, but it must lie between 0 and 1")
        for name, moment in (("first look", self.first), ("every", self.every)):
            if not isinstance(moment, Moment):
                raise SurgeryError(f"the {name} of a condition cannot be {moment!r:.60}: give ops.Moment(3)")
        if not isinstance(self.times, int):
            raise SurgeryError(f"the times of a condition are {self.times!r:.60}, but must be a whole number")
        if not isinstance(self.measure, str) or self.measure not in MEASURES:
            raise SurgeryError(f"a condition looks at {' or '.join(MEASURES)}, not at {self.measure!r}")
        if self.every.count < 1 or self.times < 1:
            raise SurgeryError(f"the condition '{self}' looks never: what follows 'every' and 'at most' is 1 or more")

    @classmethod
    def parse(cls, text: str) -> Condition:
        """The inverse of ``str``."""
        match = CONDITION.fullmatch(str(text).strip())
        if match is None:
            raise SurgeryError(f"{text!r} is not a condition; write it like {EXAMPLE!r}")
        measure, threshold, gain, first, every, times = match.groups()
        return cls(float(threshold), float(gain), Moment.parse(first), Moment.parse(every), int(times), measure)

    def iteration(self, per_epoch: int) -> int:
        """The number of optimizer steps done by the first look, with ``per_epoch`` of them in an epoch."""
        return self.first.iteration(per_epoch)

    def gain_of(self, layer: HiddenLayer, signals: Signals) -> float:
        """The gain that the layer has now, 0 … 1. Raises SurgeryError where the layer cannot be looked at."""
        return MEASURES[self.measure](layer, signals, self.threshold)

    def __str__(self) -> str:
        return (
            f"{self.measure}({self.threshold!r}) >= {self.gain!r} from {self.first} every {self.every} "
            f"at most {self.times}"
        )


#: What may become of the learning rate after an operation; training does it, a step only carries it.
AFTER = ("continue", "rewarm", "rewind")
#: What a step says of the training after its operation.
AFTERWARDS = ("after", "after_length", "freeze", "lr_factor")
#: A fraction of the training that is left, or a number of epochs or optimizer steps.
Length = float | Moment


def parse_length(value: Any, field: str = "after_length") -> Length:
    """A length from a number or text such as "2ep" or "50it"; ``field``: what errors call it.

    >>> parse_length("2ep"), parse_length(0.25)
    (Moment(count=2, unit='ep'), 0.25)

    Raises:
        SurgeryError: neither, a fraction outside 0 … 1, or no steps at all.
    """
    length: Length | None = value if isinstance(value, Moment) else None
    if length is None and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            length = float(value)
    if length is None:
        with contextlib.suppress(SurgeryError):
            length = Moment.parse(value)
    if length is None or not (length.count > 0 if isinstance(length, Moment) else 0 < length <= 1):
        raise SurgeryError(
            f"{field} is {value!r:.60}; write a fraction of what is left, above 0 and at most 1, or a number of "
            "epochs or steps such as '2ep' or '50it'"
        )
    return length


#: What the parts of a step are.
EXPECTED = {
    "operation": "give an object of an operation, such as ops.MinWeight(0.5)",
    "when": "give ops.Moment(3) for after 3 epochs, ops.Moment.parse('250it') for steps, or an ops.Condition",
    "allocation": "give an ops.Allocation, or none",
}


@dataclass(frozen=True)
class Step:
    """One operation on one layer (by name; ``*`` is the whole network), when it is done, and the repairs that follow.

    The repairs are those of ``ops.surgery.repair``. ``after`` and ``after_length``: what becomes of the learning rate
    (``AFTER``) and over which length. ``freeze``: how long all layers but those that the operation changed do not
    train. ``lr_factor``: by what the recipe's learning rate is multiplied from then on, until a later step says
    otherwise. A step only carries and prints these four; training gives them their meaning.
    ``allocation``: on the whole network, with an operation that has ``keep``: a budget that the network is to meet.
    When the step is due, ``resolve`` makes of it an operation for each layer, each with a ``keep`` of its own; that of
    ``operation`` says nothing and becomes 1.
    """

    when: Moment | Condition
    layer: str
    operation: Operation
    repair: tuple[str, ...] = ()
    after: str = "continue"
    after_length: Length | None = None
    allocation: Allocation | None = None
    freeze: Length | None = None
    lr_factor: float | None = None

    def __post_init__(self) -> None:
        for field, kind in (("operation", Operation), ("when", Moment | Condition), ("allocation", Allocation | None)):
            if not isinstance(value := getattr(self, field), kind):
                raise SurgeryError(f"the {field} of a step cannot be {value!r:.60}: {EXPECTED[field]}")
        check_chain(self.repair)
        if self.allocation is not None:
            check_operation(type(self.operation))
            whole: Any = dataclasses.replace(self.operation, keep=1.0)  # type: ignore[type-var, call-arg]
            object.__setattr__(self, "operation", whole)
            if self.layer != WHOLE:
                raise SurgeryError(f"a budget is of the whole network: write layer: '{WHOLE}', not {self.layer!r}")
            if isinstance(self.when, Condition):
                raise SurgeryError(f"a budget is met at a moment such as '3ep', not whenever '{self.when}'")
        if self.after not in AFTER:
            raise SurgeryError(f"after an operation the learning rate can {', '.join(AFTER)}, not {self.after!r:.60}")
        if self.after_length is not None:
            if self.after == "continue":
                raise SurgeryError("after_length is for steps with after: rewarm or rewind; this one continues")
            object.__setattr__(self, "after_length", parse_length(self.after_length))
        if self.freeze is not None:
            if self.layer == WHOLE and self.allocation is None and not self.operation.of_blocks:
                raise SurgeryError("freeze is for steps on a layer; one on the whole network leaves no other to freeze")
            object.__setattr__(self, "freeze", parse_length(self.freeze, "freeze"))
        factor = self.lr_factor
        if factor is not None and not (type(factor) in (int, float) and 0 < factor < math.inf):
            raise SurgeryError(f"lr_factor is {factor!r:.60}; write a number above 0, such as 0.1")

    def resolve(self, anatomy: Anatomy, original: Size, signals: Signals | None = None) -> list[Step]:
        """The steps that a budget comes to now: one for each layer that loses units, in the network's order.

        ``original``: the size that the budget's fractions are of. ``signals``: of all layers, for
        the methods that look at data. Without a budget it is the step itself. Raises SurgeryError as ``allocate`` does.
        """
        if self.allocation is None:
            return [self]
        keep = allocate(
            anatomy, self.operation, self.allocation.budget, self.allocation.method, signals,
            layers=self.allocation.layers, of=original, repair=self.repair, seed=getattr(self.operation, "seed", 0),
        )  # fmt: skip
        return [self.part(name, each) for name, each in keep.items() if each < 1]

    def part(self, layer: str, keep: float) -> Step:
        """The step that a budget comes to for one layer."""
        operation = dataclasses.replace(self.operation, keep=keep)  # type: ignore[type-var, call-arg]
        return dataclasses.replace(self, layer=layer, allocation=None, operation=operation)

    def __str__(self) -> str:
        named = str(self.operation)
        if self.allocation is not None:
            others = (f"{k}={v!r}" for k, v in self.operation.hyperparameters().items() if k != "keep")
            named = f"{type(self.operation).__name__}({', '.join(others)}) {self.allocation}"
        done = f"{self.when}: {' + '.join((named, *self.repair))} on {self.layer}"
        length = "" if self.after_length is None else f" {self.after_length}"
        done += "" if self.after == "continue" else f", then {self.after}{length}"
        done += "" if self.freeze is None else f", other layers frozen for {self.freeze}"
        return done + ("" if self.lr_factor is None else f", learning rate times {self.lr_factor!r}")


@dataclass(frozen=True)
class Schedule:
    """Steps in the order in which they are written; those that are due at one time follow each other.

    >>> from network_surgery.ops import MinWeight
    >>> schedule = Schedule((Step(Moment(2), "0", MinWeight(keep=0.5)),))
    >>> Schedule.from_data(schedule.to_data()) == schedule
    True
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        steps = self.steps
        if not isinstance(steps, (list, tuple)) or not all(isinstance(step, Step) for step in steps):
            raise SurgeryError(f"a schedule is made of a tuple of ops.Step(when, layer, operation), not {steps!r:.60}")
        object.__setattr__(self, "steps", tuple(steps))

    def check(self, layers: Iterable[str], epochs: float, per_epoch: int, stacks: Iterable[str] = ()) -> None:
        """Raises SurgeryError unless every layer exists, or a step before makes it, and every moment or first look is
        before training ends.

        ``epochs``: ``math.inf`` where nobody knows when it ends. ``stacks``: what operations on blocks can work on.
        """
        for name, value in (("epochs", epochs), ("steps of an epoch", per_epoch)):
            if not isinstance(value, (int, float)) or not value > 0:
                raise SurgeryError(f"the number of {name} is {value!r:.60}; give a number above 0")
        known, parts = name_list(layers), tuple[str, ...]()
        for step in self.steps:
            if step.operation.of_blocks:
                parts += _check_blocks(step, list(stacks), parts)
            elif step.allocation is not None:
                step.allocation.check_layers(dict.fromkeys(known))
            elif step.layer == WHOLE:
                if not step.operation.whole_network or isinstance(step.when, Condition):
                    raise SurgeryError(f"the step '{step}' can be done on a layer, not on the whole network, '{WHOLE}'")
            elif step.layer not in known and not step.layer.startswith(parts):
                raise SurgeryError(f"the schedule names the layer {step.layer!r}; this network has {', '.join(known)}")
            if step.operation.makes_layers and not step.operation.of_blocks:
                parts += tuple(f"{name}." for name in (known if step.layer == WHOLE else [step.layer]))
            if step.when.iteration(per_epoch) >= epochs * per_epoch:
                raise SurgeryError(
                    f"the schedule has a step at {step.when}, but training ends after {epochs} epochs "
                    f"({epochs * per_epoch} iterations); choose an earlier moment"
                )

    def check_budgets(self, anatomy: Anatomy) -> None:
        """Raises SurgeryError where a budget is larger than this network, or could never be met.

        That is known of the first step alone; of a later one, that all layers cut to two units would not meet it.
        """
        for place, step in enumerate(self.steps):
            if (wanted := step.allocation) is not None:
                most = limits(wanted.budget, size(anatomy))
                check_possible(anatomy, dataclasses.replace(wanted, layers=()) if place else wanted, most)

    def to_data(self) -> list[dict[str, Any]]:
        """Plain data for JSON, YAML and checkpoints.

        Raises:
            SurgeryError: an operation's class is neither in ``OPERATIONS`` nor at the top of a module.
        """
        return [
            {"when": str(s.when), "layer": s.layer, "op": operation_name(type(s.operation))}
            | _parameters(s)
            | ({"repair": list(s.repair)} if s.repair else {})
            | after_data(s)
            for s in self.steps
        ]

    @classmethod
    def from_data(cls, data: Iterable[Mapping[str, Any]]) -> Schedule:
        """The inverse of ``to_data``. Raises SurgeryError for an unknown operation or hyperparameter."""
        if isinstance(data, (str, Mapping)) or not isinstance(data, Iterable):
            raise SurgeryError(f"a schedule is a list of steps, each with when, layer and op, not {data!r:.60}")
        entries = list(data)
        for entry in entries:
            if not isinstance(entry, Mapping):
                raise SurgeryError(f"a step of a schedule has when, layer and op; it is {entry!r:.60}")
        return cls(tuple(_step(dict(entry)) for entry in entries))


def _check_blocks(step: Step, stacks: list[str], made: tuple[str, ...]) -> tuple[str, ...]:
    """What the names of layers begin with that a step on blocks makes. Raises SurgeryError where it cannot be done."""
    if isinstance(step.when, Condition):
        raise SurgeryError(
            f"the step '{step}' works on blocks, and comes at a moment such as '3ep', not at a condition"
        )
    names = stacks if step.layer == WHOLE else [step.layer]
    if not names or (step.layer not in (WHOLE, *stacks) and not step.layer.startswith(made)):
        known = f"the stacks {', '.join(stacks)}" if stacks else "no blocks of equal shapes that follow each other"
        raise SurgeryError(f"the step '{step}' works on a stack of blocks; this network has {known}")
    return tuple(
        f"{name.rpartition('.')[0] if name.rpartition('.')[2].isdigit() else name}.".lstrip(".") for name in names
    )


def _parameters(step: Step) -> dict[str, Any]:
    """The hyperparameters of a step's operation; where a budget decides on ``keep``, the budget in its place."""
    found = step.operation.hyperparameters()
    if (wanted := step.allocation) is None:
        return found
    found.pop("keep", None)
    among = {"layers": list(wanted.layers)} if wanted.layers else {}
    method = wanted.method if isinstance(wanted.method, str) else dict(wanted.method)
    return found | {"budget": dict(wanted.budget), "allocate": method} | among


def after_data(step: Step) -> dict[str, Any]:
    """What comes after a step's operation as plain data: nothing where training just continues."""
    found: dict[str, Any] = {} if step.after == "continue" else {"after": step.after}
    for name in ("after_length", "freeze"):
        if (length := getattr(step, name)) is not None:
            found[name] = plain_length(length)
    return found if step.lr_factor is None else found | {"lr_factor": step.lr_factor}


def plain_length(length: Length) -> float | str:
    """A length as plain data, the inverse of ``parse_length``."""
    return str(length) if isinstance(length, Moment) else length


def parse_when(text: str) -> Moment | Condition:
    """A moment or a condition from its text. Raises SurgeryError for text that is neither."""
    return _remembered(text) if isinstance(text, str) else _parse(text)


def _parse(text: Any) -> Moment | Condition:
    kind = Condition if str(text).strip().startswith(tuple(MEASURES)) else Moment
    return kind.parse(text)


_remembered = lru_cache(4096)(_parse)


def _step(entry: dict[str, Any]) -> Step:
    missing = {"when", "layer", "op"} - set(entry)
    if missing:
        raise SurgeryError(f"a step of the schedule lacks {', '.join(sorted(missing))}: {entry}")
    # A layer called 0 or 1.5 is a number in YAML.
    when, layer, name = parse_when(entry.pop("when")), str(entry.pop("layer")), str(entry.pop("op"))
    repair = check_chain(entry.pop("repair", None) or ())
    afterwards = {name: entry.pop(name) for name in AFTERWARDS if name in entry}
    kind, allocation = operation_class(name), _allocation(entry)
    if allocation is not None:
        check_operation(kind)
        entry["keep"] = 1.0
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in set(entry) - known)
    if unknown:
        raise SurgeryError(f"{name} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    given = [field for field in kind.alternatives if entry.get(field) is not None]
    if given[1:]:
        raise SurgeryError(f"{name} has {' and '.join(given)}, but only one of {', '.join(kind.alternatives)} can hold")
    with explained(f"{name} cannot be made of {entry}"):
        return Step(when, layer, kind(**entry), repair, allocation=allocation, **afterwards)


def _allocation(entry: dict[str, Any]) -> Allocation | None:
    """The budget of a step as plain data, taken out of it; None where it has none."""
    budget, method, layers = (entry.pop(name, None) for name in ("budget", "allocate", "layers"))
    if budget is None:
        if method is not None or layers is not None:
            raise SurgeryError("allocate and layers divide a budget, and this step has none: give budget as well")
        return None
    if "keep" in entry:
        raise SurgeryError("a step has a budget, which says what each layer keeps, or keep, but not both")
    by = method if isinstance(method, Mapping) else "uniform" if method is None else str(method)
    return Allocation(budget, by, () if layers is None else layers)
