"""The table of all training runs: each once, in the order of the arms, with what came of it."""

from __future__ import annotations

from typing import Any

from network_surgery.study.store.folder import Record
from network_surgery.study.store.trainings import table
from network_surgery.study.task.metric import Metric
from network_surgery.study.training.cell import Cell
from tests.study.operated import operated, spiked

STEP = {"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}


def outcome(accuracy: float, **more: Any) -> dict[str, Any]:
    ended = {"validation_metric": accuracy, "parameters": 10, "flops": 20, "seconds": 1.5, "spikes": []}
    return ended | {"operations": []} | more


def test_columns_are_named_after_the_metric() -> None:
    falling = [{"epoch": float(epoch), "validation_metric": 20.0 - epoch} for epoch in range(1, 9)]
    ended = outcome(12.0, test_metric=13.0, train_test_gap=2.0, epochs=falling)
    (row,) = table([Record(Cell("original", 1), ended)], Metric("perplexity", "lower"))
    assert (row["validation perplexity"], row["test perplexity"], row["test − train"]) == (12.0, 13.0, 2.0)
    assert row["improving"] is True and not any("accuracy" in name for name in row)


def test_the_table_of_all_trainings() -> None:
    done = {"spikes": [spiked(1.25), spiked(3.5, epoch=2.0)], "operations": [operated()]}
    records = [
        Record(Cell("restart", 1, trial=0), outcome(0.8, test_metric=0.7)),
        Record(
            Cell("surgery", 1, [STEP], trial=0),
            outcome(0.9, test_metric=0.85, **done),
        ),
        Record(Cell("original", 1), outcome(0.7, test_metric=0.6, train_test_gap=0.125)),
        Record(Cell("search", 0, [STEP], trial=1), {"failure": "the loss became nan"}),
        Record(Cell("search", 0, [STEP], trial=0), outcome(0.5)),
    ]
    rows = table(records)
    names = ["search-001", "search-000", "original-seed-1", "surgery-000-seed-1", "restart-000-seed-1"]
    assert [row["training"] for row in rows] == names
    failed, searched, original, surgery, restart = rows
    assert failed["failure"] == "the loss became nan"
    assert {key for key, value in failed.items() if value is not None} == {
        "training", "failure", "schedule", "arm", "trial", "seed"
    }  # fmt: skip
    assert searched["validation accuracy"] == 0.5 and searched["test accuracy"] is None
    assert original["trial"] is None and original["schedule"] is None and original["failure"] is None
    assert surgery["loss spike"] == 3.5 and surgery["operations"] == 1 and restart["loss spike"] is None
    assert surgery["schedule"] == "min_weight keep 0.5 on fc1 at 1ep"
    assert [row["test accuracy"] for row in rows] == [None, None, 0.6, 0.85, 0.7]
    assert [row["train − test"] for row in rows] == [None, None, 0.125, None, None]
