"""The metrics of an epoch and of an outcome, as ``(name, value, step)``; a step is a number of epochs.

A name is ``group/measure`` or ``group/measure layer``: MLflow's page of charts has a section for whatever stands before
the last slash, so a layer's name must not add one. Each metric of the study's task is a group of its own:
``accuracy/validation``, ``perplexity/test``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.records import OperationRecord, checks_of, operations_of, spikes_of

Measured = list[tuple[str, float, int]]

_EPOCH = {
    "train_loss": "loss/train", "validation_loss": "loss/validation",
    "parameters": "size/parameters", "train_seconds": "seconds/epoch", "probe_seconds": "seconds/probe",
    "joules": "energy/epoch", "learning_rate": "optimizer/learning_rate",
    "zero_weights": "size/zero_weights",
}  # fmt: skip
_OUTCOME = {
    "flops": "size/flops", "peak_memory": "size/peak_memory", "seconds": "seconds/total",
    "train_seconds": "seconds/total training", "operation_seconds": "seconds/total operations",
    "probe_seconds": "seconds/total probes", "joules": "energy/total",
}  # fmt: skip


def of_epoch(record: Mapping[str, Any], metric: Metric = ACCURACY) -> Measured:
    """Of an epoch's record, with the operations and the looks at redundancy and idle units since the last one."""
    step = int(record["epoch"])
    found = [(name, record[key]) for key, name in _EPOCH.items() if key in record]
    found += [each for each in _of_part(record, "validation", metric) if each[0] != "loss/validation"]
    for operation in operations_of(record):
        found += _on(operation.layer, of_operation(operation))
    for look in ("redundancy", "idle"):
        for layer, numbers in record.get(look, {}).items():
            found += _on(layer, {f"{look}/{key}": value for key, value in numbers.items()})
    for check in checks_of(record):
        found += _on(check.layer, {f"condition/{check.measure}": check.gain})
    return [(name, float(value), step) for name, value in found if value is not None]


def of_outcome(result: Mapping[str, Any]) -> Measured:
    """What a finished training is known by only at its end; the test's are apart (``of_test``)."""
    step = len(result["epochs"])
    found = [(name, result[key], step) for key, name in _OUTCOME.items() if result.get(key) is not None]
    found += [(f"seconds/latency {batch}", each, step) for batch, each in result.get("latency_seconds", {}).items()]
    found += [("operation loss/spike_factor", spike.factor, _after(spike.epoch)) for spike in spikes_of(result)]
    for operation in operations_of(result):  # how long its loss took to come back shows only later
        if operation.epochs_to_recover is not None:
            numbers = {"operation loss/epochs_to_recover": operation.epochs_to_recover}
            found += [(name, value, _after(operation.epoch)) for name, value in _on(operation.layer, numbers)]
    return [(name, float(value), at) for name, value, at in found]


def of_test(result: Mapping[str, Any], metric: Metric = ACCURACY) -> Measured:
    """What the test samples say of the final network; empty where they were not looked at.

    A metric that is the loss itself is that of the final network on all training samples as ``loss/train final``: in
    ``loss/train`` are the means over epochs.
    """
    step, name = len(result["epochs"]), group(metric.name)
    found = dict(_of_part(result, "test", metric))
    train = f"{name}/train final" if name == "loss" else f"{name}/train"
    more = {
        "loss/test": result.get("test_loss"), train: result.get("train_metric"),
        f"{name}/{metric.gap.replace('−', 'minus')}": result.get("train_test_gap"),
    }  # fmt: skip
    found |= {key: value for key, value in more.items() if value is not None}
    return [(key, float(value), step) for key, value in found.items()]


def group(name: str) -> str:
    """A metric's name as MLflow allows it, without a slash."""
    return re.sub(r"[^\w.\- :]", "_", name)


def _of_part(record: Mapping[str, Any], part: str, metric: Metric) -> list[tuple[str, float]]:
    """All metrics of a task on a part of the data, the primary one first."""
    if record.get(f"{part}_metric") is None:
        return []
    values = {metric.name: record[f"{part}_metric"]} | dict(record.get(f"{part}_metrics", {}))
    return [(f"{group(name)}/{part}", value) for name, value in values.items()]


def of_operation(operation: OperationRecord) -> dict[str, float | None]:
    """What the theatre has measured around an operation, by name, and what the operation says of its choice."""
    return {
        "operation loss/loss_before": operation.loss_before,
        "operation loss/loss_after": operation.loss_after,
        "operation loss/spike_factor": operation.spike_factor,
        "operation loss/loss_factor": operation.loss_factor,
        "operation loss/predicted_error": operation.predicted_error,
        "operation loss/epochs_to_recover": operation.epochs_to_recover,
        "operation size/units_before": operation.units_before,
        "operation size/units_after": operation.units_after,
        "operation size/parameters_before": operation.parameters_before,
        "operation size/parameters_after": operation.parameters_after,
        "operation size/flops_before": operation.flops_before,
        "operation size/flops_after": operation.flops_after,
        "operation size/bytes_before": operation.bytes_before,
        "operation size/bytes_after": operation.bytes_after,
        "operation seconds/seconds": operation.seconds,
        "operation seconds/epoch_seconds": operation.epoch_seconds,
        "operation seconds/interruptibility": operation.interruptibility,
    } | {f"operation loss/{name}": value for name, value in operation.evidence.items()}


def _after(epoch: float) -> int:
    """The epoch at whose end an operation is reported."""
    return int(epoch) + 1


def _on(layer: str, numbers: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Measures of a layer. MLflow allows letters, digits and ``_-. :`` in a name."""
    return [(f"{name} {group(layer)}", value) for name, value in numbers.items()]
