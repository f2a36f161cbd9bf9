"""Every training run of a study in one table: what it was, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from network_surgery.study.config import ARMS
from network_surgery.study.store.folder import Record
from network_surgery.study.store.ledger import SEARCHING
from network_surgery.study.store.words import describe
from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training import convergence
from network_surgery.study.training.records import operations_of, spikes_of


def table(records: Iterable[Record], metric: Metric = ACCURACY) -> list[dict[str, Any]]:
    """A row for each training run, those of the search first, then arm by arm; None where something does not apply.

    Columns are named after the ``metric`` of the study's task. Accuracies are 0 … 1, ``train − test`` (``test − train``
    of a metric of which less is better) is how much better the network is on what it was trained on, ``loss spike`` the
    largest of its operations, ``improving`` whether it was still when it ended; ``failure`` says why it has no more.
    """
    order = (*SEARCHING, *ARMS)
    return [_row(record, metric) for record in sorted(records, key=lambda record: order.index(record.cell.arm))]


def _row(record: Record, metric: Metric) -> dict[str, Any]:
    cell, result = record.cell, record.result
    return {
        "training": cell.name,
        f"validation {metric.name}": result.get("validation_metric"),
        f"test {metric.name}": result.get("test_metric"),
        metric.gap: result.get("train_test_gap"),
        "parameters": result.get("parameters"),
        "FLOPs": result.get("flops"),
        "seconds": result.get("seconds"),
        "loss spike": max((spike.factor for spike in spikes_of(result)), default=None),
        "improving": convergence.improving(result, metric) if record.finished else None,
        "operations": None if record.failed else len(operations_of(result)),
        "schedule": describe(cell.schedule) if cell.schedule else None,
        "failure": result.get("failure"),
        "arm": cell.arm,
        "trial": cell.trial,
        "seed": cell.seed,
    }
