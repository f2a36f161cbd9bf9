"""Records of the theatre: plain data and back, what older versions wrote, and what is no record."""

from __future__ import annotations

import ast
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from network_surgery import study
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.store.folder import Folder
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import (
    ConditionCheck,
    OperationRecord,
    Spike,
    checks_of,
    operations_of,
    spikes_of,
)
from tests.study.operated import looked_at, operated, spiked

#: What the first version of this package wrote of an operation, and of a look at a condition.
FIRST = {
    "when", "epoch", "iteration", "layer", "operation", "units_before", "units_after", "parameters_before",
    "parameters_after", "flops_before", "flops_after", "predicted_error", "loss_before", "loss_after", "spike_factor",
    "training_loss_before", "training_loss_after", "loss_factor", "seconds", "epoch_seconds", "interruptibility",
    "epochs_to_recover",
}  # fmt: skip


def outcome(**more: Any) -> dict[str, Any]:
    """An outcome as it is kept: through JSON."""
    whole = {"operations": [operated()], "checks": [looked_at()], "spikes": [spiked(2.0)]} | more
    return json.loads(json.dumps(whole))


def test_records_survive_json() -> None:
    kept = outcome(operations=[operated(evidence={"error": 0.5}, repair=["bias"], training_loss_after=1.0)])
    for read, key in ((operations_of, "operations"), (checks_of, "checks"), (spikes_of, "spikes")):
        assert [record.to_data() for record in read(kept)] == kept[key]  # type: ignore[attr-defined]


def test_what_follows_from_a_record_is_kept_with_it() -> None:
    (record,) = operations_of(outcome(operations=[operated(training_loss_before=2.0, training_loss_after=3.0)]))
    assert (record.spike_factor, record.loss_factor, record.interruptibility) == (2.0, 1.5, 10.0)
    assert record.to_data().items() >= {"spike_factor": 2.0, "loss_factor": 1.5, "interruptibility": 10.0}.items()
    waiting = OperationRecord.from_data(operated(epoch_seconds=None))
    assert waiting.loss_factor is waiting.interruptibility is None


def test_what_the_first_version_wrote_can_be_read() -> None:
    whole = operated()
    (record,) = operations_of(outcome(operations=[{key: whole[key] for key in FIRST}]))
    assert record.evidence == {} and record.repair == [] and record.metric_after is None
    old = {key: value for key, value in looked_at().items() if key != "measure"}
    assert checks_of(outcome(checks=[old]))[0].measure == "redundancy"
    older = outcome()
    del older["checks"]
    assert checks_of(older) == [] and spikes_of({"failure": "the loss became nan"}) == []


@pytest.mark.parametrize("kind", [OperationRecord, ConditionCheck, Spike])
def test_what_is_no_record_is_refused_in_one_sentence(kind: type[OperationRecord]) -> None:
    with pytest.raises(StudyError, match=f"^a kept {kind.__name__} lacks '{fields(kind)[0].name}'$"):
        kind.from_data({})


def test_a_damaged_ledger_is_refused_with_its_name(tmp_path: Path) -> None:
    folder = Folder.make(tmp_path / "s", Settings(), {"fc1": 8})
    folder.ended(
        Cell("surgery", 1, trial=0),
        {"validation_metric": 0.5, "parameters": 1} | outcome(operations=[{"layer": "fc1"}]),
    )
    with pytest.raises(
        StudyError,
        match=r"line 1 of .*cells\.jsonl \(surgery-000-seed-1\) is damaged: a kept OperationRecord lacks 'when'",
    ):
        folder.records()


def test_nobody_reads_a_record_by_the_name_of_its_part() -> None:
    """Outside of ``records`` and where a row of a table has a column of that name."""
    parts = {each.name for each in fields(OperationRecord)} | {"spike_factor", "loss_factor", "interruptibility"}
    own = parts - {"when", "epoch", "iteration", "layer", "operation", "repair", "seconds", "evidence", "after"}
    allowed = {("closing.py", "spike_factor"), ("report.py", "spike_factor")}  # the closing table's
    root = Path(study.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value in own:
                assert (path.name, node.slice.value) in allowed, f"{path}:{node.lineno}"
