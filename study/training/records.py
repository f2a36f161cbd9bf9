"""What the theatre writes down: a record of each operation, of each look at a condition, and the spikes of the loss.

In an outcome (``study.training.run``), in the ledger, in checkpoints and in ``results.json`` records are plain data.
This is the one place that turns them into it and back. What an older version did not write has a default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from typing import Any, Self

from network_surgery.study.errors import StudyError

#: The least loss that a factor divides by.
LEAST = 1e-12


class Plain:
    """A record that can be plain data."""

    def to_data(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_data``; what this version does not know is left out.

        Raises:
            StudyError: a part is missing that every version of this package has written.
        """
        kind: Any = cls
        known, needed = _fields(kind)
        if lacking := [name for name in needed if name not in data]:
            raise StudyError(f"a kept {cls.__name__} lacks {lacking[0]!r}")
        return cls(**{name: data[name] for name in known if name in data})


@cache
def _fields(kind: Any) -> tuple[list[str], list[str]]:
    """The names of a record's fields, and of those without a default."""
    known = fields(kind)
    return [each.name for each in known], [
        each.name for each in known if each.default is MISSING and each.default_factory is MISSING
    ]


@dataclass
class OperationRecord(Plain):
    """One operation: when it came, what it changed, what it did to the loss, and how long it took.

    ``epoch``: a number of epochs, with its fraction; ``iteration``: optimizer steps done before. Losses and metrics
    ``before`` and ``after`` are of the held-out samples; the training losses are those of the last batch before
    and of the first one after. ``loss_error`` and ``metric_error``: the standard error, over the ``held_out`` samples,
    of the change since before the first operation of that moment (paired, sample by sample). ``epoch_seconds`` are of
    the last whole epoch before the operation; without one, of the epoch that it opened or interrupted.
    ``epochs_to_recover``: until the held-out loss was back where it was before the first operation of that moment; None
    if that was not seen. ``evidence``: what the operation says of its choice. ``after``: what becomes of the learning
    rate, as in the schedule (``ops.schedule.after_data``). ``bytes``: of the tensors that ``ops.save`` writes; None in
    records of an older version. ``weights_flops``: what it took before to compute compressed weights, once a batch.
    """

    when: str
    epoch: float
    iteration: int
    layer: str
    operation: str
    units_before: int
    units_after: int
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int
    predicted_error: float | None
    loss_before: float
    loss_after: float
    seconds: float
    metric_before: float | None = None
    metric_after: float | None = None
    training_loss_before: float | None = None
    training_loss_after: float | None = None
    epoch_seconds: float | None = None
    epochs_to_recover: int | None = None
    repair: list[str] = field(default_factory=list)
    evidence: dict[str, float] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    held_out: int | None = None
    loss_error: float | None = None
    metric_error: float | None = None
    weights_flops: int = 0
    bytes_before: int | None = None
    bytes_after: int | None = None

    @property
    def spike_factor(self) -> float:
        """The held-out loss after ÷ before."""
        return self.loss_after / max(self.loss_before, LEAST)

    @property
    def loss_factor(self) -> float | None:
        """The thesis's factor: the training loss after ÷ before; None without a batch before, or after."""
        if self.training_loss_before is None or self.training_loss_after is None:
            return None
        return self.training_loss_after / max(self.training_loss_before, LEAST)

    @property
    def interruptibility(self) -> float | None:
        """The seconds of the epoch ÷ those of the operation; None before the epoch has ended."""
        return None if self.epoch_seconds is None else self.epoch_seconds / max(self.seconds, 1e-9)

    @property
    def changed(self) -> bool:
        """Whether there were other units or (where weights are pruned) parameters afterwards."""
        return self.units_before != self.units_after or self.parameters_before != self.parameters_after

    def to_data(self) -> dict[str, Any]:
        factors = {"spike_factor": self.spike_factor, "loss_factor": self.loss_factor}
        return super().to_data() | factors | {"interruptibility": self.interruptibility}


@dataclass
class ConditionCheck(Plain):
    """One look at a condition: which ``step`` of the schedule waits for it, and the ``gain`` that the layer had (see
    ``ops.Condition``). Its seconds are part of the operation's where the step was ``operated``.
    """

    step: int
    iteration: int
    epoch: float
    layer: str
    units: int
    gain: float
    operated: bool
    seconds: float
    measure: str = "redundancy"


@dataclass
class Spike(Plain):
    """The operations of one moment taken together: held-out loss and metric before the first and after the last one.

    ``loss_error`` and ``metric_error``: the standard errors of their changes over the ``held_out`` samples; None where
    they are not known (records of an older version; a loss or a metric that is no mean over samples).
    """

    epoch: float
    loss_before: float
    loss_after: float
    seconds: float
    epochs_to_recover: int | None = None
    metric_before: float | None = None
    metric_after: float | None = None
    held_out: int | None = None
    loss_error: float | None = None
    metric_error: float | None = None

    @property
    def factor(self) -> float:
        """The held-out loss after ÷ before."""
        return self.loss_after / max(self.loss_before, LEAST)

    @property
    def loss_change(self) -> float:
        """The held-out loss after − before, in the loss's unit (nats of a cross entropy)."""
        return self.loss_after - self.loss_before

    @property
    def metric_change(self) -> float | None:
        """The held-out metric after − before."""
        if self.metric_before is None or self.metric_after is None:
            return None
        return self.metric_after - self.metric_before

    def to_data(self) -> dict[str, Any]:
        changes = {"loss_change": self.loss_change, "metric_change": self.metric_change}
        return super().to_data() | {"factor": self.factor} | changes


def spikes(operations: Iterable[OperationRecord]) -> list[Spike]:
    """The spikes of a training run, in the order of its operations."""
    found: dict[int, Spike] = {}
    for each in operations:
        if each.iteration not in found:
            first = (each.epoch, each.loss_before, each.loss_after, 0.0, each.epochs_to_recover, each.metric_before)
            found[each.iteration] = Spike(*first)
        spike = found[each.iteration]
        spike.loss_after, spike.metric_after = each.loss_after, each.metric_after
        spike.held_out, spike.loss_error, spike.metric_error = each.held_out, each.loss_error, each.metric_error
        spike.seconds += each.seconds
    return list(found.values())


Outcome = Mapping[str, Any]
#: What older versions, which knew one metric, called what is now of a task's primary one.
RENAMED = {
    "validation_accuracy": "validation_metric", "test_accuracy": "test_metric", "train_accuracy": "train_metric",
    "accuracy_before": "metric_before", "accuracy_after": "metric_after",
}  # fmt: skip


def rename(outcome: Outcome) -> dict[str, Any]:
    """An outcome of any version under the names that it has now, with its epochs and operations."""
    found = {RENAMED.get(name, name): value for name, value in outcome.items()}
    for part in ("epochs", "operations"):
        if part in found:
            found[part] = [rename(each) for each in found[part]]
    if "test_top5" in found:
        found["test_metrics"] = {"accuracy": found["test_metric"], "top 5": found.pop("test_top5")}
    return found


def is_finished(outcome: Outcome) -> bool:
    """Whether it was trained to its end: neither failed nor stopped early."""
    return "failure" not in outcome and "stopped" not in outcome


def has_grown(operations: Iterable[OperationRecord]) -> bool:
    """Whether an operation has added units or blocks."""
    return any(each.units_after > each.units_before for each in operations)


def check(outcome: Outcome) -> None:
    """Raises StudyError where a record of an outcome is not whole."""
    for each in outcome.get("operations", ()):
        OperationRecord.from_data(each)
    checks_of(outcome), spikes_of(outcome)


def operations_of(outcome: Outcome) -> list[OperationRecord]:
    """The operations of an outcome that is plain data. Raises StudyError where a record is not whole."""
    return [OperationRecord.from_data(each) for each in outcome["operations"]]


def checks_of(outcome: Outcome) -> list[ConditionCheck]:
    """The looks at conditions of an outcome; of an older one there are none."""
    return [ConditionCheck.from_data(each) for each in outcome.get("checks", ())]


def spikes_of(outcome: Outcome) -> list[Spike]:
    """The spikes of an outcome; of a training run that failed there are none."""
    return [Spike.from_data(each) for each in outcome.get("spikes", ())]
