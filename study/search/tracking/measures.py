"""The metrics of an epoch and of an outcome, as ``(name, value, step)``; a step is a number of epochs.

A name is ``group/measure`` or ``group/measure layer``: MLflow's page of charts has a section for whatever stands before
the last slash, so a layer's name must not add one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Measured = list[tuple[str, float, int]]

_EPOCH = {
    "train_loss": "loss/train", "validation_loss": "loss/validation", "validation_accuracy": "accuracy/validation",
    "parameters": "size/parameters", "train_seconds": "seconds/epoch", "probe_seconds": "seconds/probe",
    "joules": "energy/epoch",
}  # fmt: skip
#: Known at the end, by the images that it is measured on: the test images, or none.
_TEST = {
    "test_accuracy": "accuracy/test", "test_top5": "accuracy/test top 5", "test_loss": "loss/test",
    "train_accuracy": "accuracy/train", "train_test_gap": "accuracy/train minus test",
}  # fmt: skip
_OUTCOME = {
    "flops": "size/flops", "peak_memory": "size/peak_memory", "seconds": "seconds/total",
    "train_seconds": "seconds/total training", "operation_seconds": "seconds/total operations",
    "probe_seconds": "seconds/total probes", "joules": "energy/total",
}  # fmt: skip
#: What the theatre measures around an operation, by section; what an operation says of itself comes into the first.
_OPERATION = {
    "operation loss": ("loss_before", "loss_after", "spike_factor", "loss_factor", "predicted_error",
                       "epochs_to_recover"),
    "operation size": ("units_before", "units_after", "parameters_before", "parameters_after", "flops_before",
                       "flops_after"),
    "operation seconds": ("seconds", "epoch_seconds", "interruptibility"),
}  # fmt: skip


def of_epoch(record: Mapping[str, Any]) -> Measured:
    """Of an epoch's record, with the operations and the looks at redundancy and idle units since the last one."""
    step = int(record["epoch"])
    found = [(name, record[key]) for key, name in _EPOCH.items() if key in record]
    for operation in record["operations"]:
        numbers = {f"{group}/{key}": operation[key] for group, keys in _OPERATION.items() for key in keys}
        numbers |= {f"operation loss/{key}": value for key, value in operation["evidence"].items()}
        found += _on(operation["layer"], numbers)
    for look in ("redundancy", "idle"):
        for layer, numbers in record.get(look, {}).items():
            found += _on(layer, {f"{look}/{key}": value for key, value in numbers.items()})
    for check in record["checks"]:
        found += _on(check["layer"], {f"condition/{check['measure']}": check["gain"]})
    return [(name, float(value), step) for name, value in found if value is not None]


def of_outcome(result: Mapping[str, Any]) -> Measured:
    """What a finished training is known by only at its end; the test's are apart (``of_test``)."""
    step = len(result["epochs"])
    found = [(name, result[key], step) for key, name in _OUTCOME.items() if result.get(key) is not None]
    found += [(f"seconds/latency {batch}", each, step) for batch, each in result.get("latency_seconds", {}).items()]
    found += [("operation loss/spike_factor", event["factor"], _after(event)) for event in result["spikes"]]
    for operation in result["operations"]:  # how long its loss took to come back shows only later
        if operation["epochs_to_recover"] is not None:
            numbers = {"operation loss/epochs_to_recover": operation["epochs_to_recover"]}
            found += [(name, value, _after(operation)) for name, value in _on(operation["layer"], numbers)]
    return [(name, float(value), at) for name, value, at in found]


def of_test(result: Mapping[str, Any]) -> Measured:
    """What the test images say of the final network; empty where they were not looked at."""
    step = len(result["epochs"])
    return [(name, float(result[key]), step) for key, name in _TEST.items() if result.get(key) is not None]


def _after(operation: Mapping[str, Any]) -> int:
    """The epoch at whose end an operation is told."""
    return int(operation["epoch"]) + 1


def _on(layer: str, numbers: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Measures of a layer. MLflow allows letters, digits and ``_-. :`` in a name."""
    known = re.sub(r"[^\w.\- :]", "_", layer)
    return [(f"{name} {known}", value) for name, value in numbers.items()]
