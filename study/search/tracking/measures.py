"""The metrics of an epoch and of an outcome, as ``(name, value, step)``; a step is a number of epochs.

A name is ``group/measure`` or ``group/measure layer``: MLflow's page of charts has a section for whatever stands before
the last slash, so a layer's name must not add one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from network_surgery.study.training.records import OperationRecord, checks_of, operations_of, spikes_of

Measured = list[tuple[str, float, int]]

_EPOCH = {
    "train_loss": "loss/train", "validation_loss": "loss/validation", "validation_metric": "accuracy/validation",
    "parameters": "size/parameters", "train_seconds": "seconds/epoch", "probe_seconds": "seconds/probe",
    "joules": "energy/epoch", "learning_rate": "optimizer/learning_rate",
}  # fmt: skip
#: Known at the end, by the images that it is measured on: the test images, or none.
_TEST = {
    "test_metric": "accuracy/test", "test_top5": "accuracy/test top 5", "test_loss": "loss/test",
    "train_metric": "accuracy/train", "train_test_gap": "accuracy/train minus test",
}  # fmt: skip
_OUTCOME = {
    "flops": "size/flops", "peak_memory": "size/peak_memory", "seconds": "seconds/total",
    "train_seconds": "seconds/total training", "operation_seconds": "seconds/total operations",
    "probe_seconds": "seconds/total probes", "joules": "energy/total",
}  # fmt: skip


def of_epoch(record: Mapping[str, Any]) -> Measured:
    """Of an epoch's record, with the operations and the looks at redundancy and idle units since the last one."""
    step = int(record["epoch"])
    found = [(name, record[key]) for key, name in _EPOCH.items() if key in record]
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


def of_test(result: Mapping[str, Any]) -> Measured:
    """What the test images say of the final network; empty where they were not looked at."""
    step = len(result["epochs"])
    return [(name, float(result[key]), step) for key, name in _TEST.items() if result.get(key) is not None]


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
        "operation seconds/seconds": operation.seconds,
        "operation seconds/epoch_seconds": operation.epoch_seconds,
        "operation seconds/interruptibility": operation.interruptibility,
    } | {f"operation loss/{name}": value for name, value in operation.evidence.items()}


def _after(epoch: float) -> int:
    """The epoch at whose end an operation is reported."""
    return int(epoch) + 1


def _on(layer: str, numbers: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Measures of a layer. MLflow allows letters, digits and ``_-. :`` in a name."""
    known = re.sub(r"[^\w.\- :]", "_", layer)
    return [(f"{name} {known}", value) for name, value in numbers.items()]
