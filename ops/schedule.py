"""Schedules: which operation on which layer, when. Plain data, so that search spaces and checkpoints can hold it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ops.errors import SurgeryError
from ops.operation import Operation
from ops.repair import check_chain


@dataclass(frozen=True)
class Moment:
    """A point of training: after so many whole epochs ("3ep") or optimizer steps ("250it").

    >>> Moment.parse("3ep")
    Moment(count=3, unit='ep')
    """

    count: int
    unit: str = "ep"

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


@dataclass(frozen=True)
class Step:
    """One operation on one layer (by name) at one moment, and the repairs that follow it (see ``ops.repair``)."""

    when: Moment
    layer: str
    operation: Operation
    repair: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_chain(self.repair)

    def __str__(self) -> str:
        return f"{self.when}: {' + '.join((str(self.operation), *self.repair))} on {self.layer}"


@dataclass(frozen=True)
class Schedule:
    """Steps in the order in which they are written; those of one moment follow each other.

    >>> from ops import MinWeight
    >>> schedule = Schedule((Step(Moment(2), "0", MinWeight(keep=0.5)),))
    >>> Schedule.from_data(schedule.to_data()) == schedule
    True
    """

    steps: tuple[Step, ...] = ()

    def check(self, layers: Iterable[str], epochs: int, per_epoch: int) -> None:
        """Raises SurgeryError unless every layer exists and every moment lies before the end of training."""
        known = list(layers)
        for step in self.steps:
            if step.layer not in known:
                raise SurgeryError(f"the schedule names the layer {step.layer!r}; this network has {', '.join(known)}")
            if step.when.iteration(per_epoch) >= epochs * per_epoch:
                raise SurgeryError(
                    f"the schedule has a step at {step.when}, but training ends after {epochs} epochs "
                    f"({epochs * per_epoch} iterations); choose an earlier moment"
                )

    def to_data(self) -> list[dict[str, Any]]:
        """Plain data for JSON, YAML and checkpoints."""
        from ops import OPERATIONS

        names = {kind: name for name, kind in OPERATIONS.items()}
        return [
            {"when": str(s.when), "layer": s.layer, "op": names[type(s.operation)], **dataclasses.asdict(s.operation)}  # type: ignore[call-overload]
            | ({"repair": list(s.repair)} if s.repair else {})
            for s in self.steps
        ]

    @classmethod
    def from_data(cls, data: Iterable[Mapping[str, Any]]) -> Schedule:
        """The inverse of ``to_data``. Raises SurgeryError for an unknown operation or hyperparameter."""
        return cls(tuple(_step(dict(entry)) for entry in data))


def _step(entry: dict[str, Any]) -> Step:
    from ops import OPERATIONS

    missing = {"when", "layer", "op"} - set(entry)
    if missing:
        raise SurgeryError(f"a step of the schedule lacks {', '.join(sorted(missing))}: {entry}")
    # A layer called 0 or 1.5 is a number in YAML.
    when, layer, name = Moment.parse(entry.pop("when")), str(entry.pop("layer")), str(entry.pop("op"))
    repair = check_chain(entry.pop("repair", None) or ())
    if name not in OPERATIONS:
        raise SurgeryError(f"there is no operation {name!r}; there are {', '.join(OPERATIONS)}")
    kind = OPERATIONS[name]
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in set(entry) - known)
    if unknown:
        raise SurgeryError(f"{name} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return Step(when, layer, kind(**entry), repair)
