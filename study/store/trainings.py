"""Every training of a study in one table: what it was, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from network_surgery.study.config import ARMS
from network_surgery.study.store.folder import Record
from network_surgery.study.store.words import describe
from network_surgery.study.training.records import operations_of, spikes_of


def table(records: Iterable[Record]) -> list[dict[str, Any]]:
    """A row for each training, those of the search first, then arm by arm; None where something does not apply.

    Accuracies are 0 … 1, ``train − test`` is how far that on the training images is above that on the test images,
    ``loss spike`` the largest of its operations; ``failure`` says why it has no more.
    """
    order = ("search", *ARMS)
    return [_row(record) for record in sorted(records, key=lambda record: order.index(record.cell.arm))]


def _row(record: Record) -> dict[str, Any]:
    cell, result = record.cell, record.result
    return {
        "training": cell.name,
        "validation accuracy": result.get("validation_metric"),
        "test accuracy": result.get("test_metric"),
        "train − test": result.get("train_test_gap"),
        "parameters": result.get("parameters"),
        "FLOPs": result.get("flops"),
        "seconds": result.get("seconds"),
        "loss spike": max((spike.factor for spike in spikes_of(result)), default=None),
        "operations": None if record.failed else len(operations_of(result)),
        "schedule": describe(cell.schedule) if cell.schedule else None,
        "failure": result.get("failure"),
        "arm": cell.arm,
        "trial": cell.trial,
        "seed": cell.seed,
    }
