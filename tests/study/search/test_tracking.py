"""MLflow hears everything once, holds nothing up and ends nothing."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from study.config import Settings
from study.errors import StudyError
from study.evidence.results import Folder
from study.search import tracking
from study.search.tracking import Tracker, check_server, default_uri
from study.training.run import Cell

CELL = Cell("search", 0, [{"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}], trial=3,
            params={"op": "min_weight", "keep": 0.5})  # fmt: skip
OPERATION: dict[str, Any] = dict.fromkeys(tracking._OPERATION_METRICS, 2.0) | {
    "layer": "fc1", "epochs_to_recover": None, "epoch": 1.0, "evidence": {"held_out_error": 0.25}
}  # fmt: skip
EPOCH = {"epoch": 2.0, "train_loss": 0.5, "validation_loss": 0.4, "validation_accuracy": 0.9, "train_seconds": 1.0,
         "parameters": 10, "operations": [OPERATION],
         "checks": [{"layer": "fc1", "measure": "redundancy", "gain": 0.25}],
         "redundancy": {"blocks.0.attention:heads": {"units": 8, "samples": 90, "units_99": 3, "units_99.9": 5},
                        "weird (name)": {"units_99": 2}},
         "idle": {"fc1": {"units": 8, "dead": 3, "frozen": 1}}, "probe_seconds": 0.01}  # fmt: skip
OUTCOME = {"validation_accuracy": 0.9, "validation_loss": 0.4, "parameters": 10, "flops": 20, "seconds": 2.0,
           "train_seconds": 1.5, "operation_seconds": 0.5, "probe_seconds": 0.01,
           "latency_seconds": {"1": 0.002}, "peak_memory": None,
           "spikes": [{"epoch": 1.0, "factor": 2.0}], "operations": [OPERATION | {"epochs_to_recover": 2}]}  # fmt: skip

VERDICT = {"sentence": "Surgery is fine.", "surgery": 0.9, "rival": 0.8, "difference": 0.1, "compute_ratio": 1.0,
           "time_ratio": 1.0}  # fmt: skip


def folder(path: Path, **changes: Any) -> Folder:
    return Folder.make(path / "study", Settings(**changes), {"fc1": 8})


def client(study: Folder) -> Any:
    import mlflow

    return mlflow.MlflowClient(default_uri(study))


def runs(study: Folder) -> dict[str, Any]:
    api = client(study)
    experiment = api.get_experiment_by_name(tracking.EXPERIMENT)
    return {run.info.run_name: run for run in api.search_runs([experiment.experiment_id])}


@pytest.mark.slow
def test_a_study_is_one_parent_and_a_child_for_each_cell(tmp_path: Path) -> None:
    study = folder(tmp_path)
    note = tmp_path / "note.txt"
    note.write_text("hello")
    with Tracker(study) as tracker:
        tracker.started(CELL)
        tracker.epoch(CELL, EPOCH)
        tracker.ended(CELL, OUTCOME)
        failing = Cell("search", 0, trial=4)
        tracker.started(failing)
        tracker.ended(failing, {"failure": "the loss became nan"})
        tracker.summary([{"arm": "original", "accuracy": 0.9}], [VERDICT], [note])
    assert tracker.lost == 0
    found = runs(study)
    parent, child, failed = found["study: small_cnn on digits"], found["search-003 min_weight"], found["search-004"]
    assert child.data.tags["mlflow.parentRunId"] == failed.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params["keep"] == "0.5" and child.data.params["trial"] == "3"
    assert parent.data.params["epochs"] == "10"
    assert child.data.metrics["accuracy/validation"] == 0.9
    assert child.data.metrics["operation/spike_factor/fc1"] == 2.0
    assert child.data.metrics["final/latency_1"] == 0.002 and "final/peak_memory" not in child.data.metrics
    assert child.data.metrics["operation/epochs_to_recover/fc1"] == 2.0
    assert child.data.metrics["operation/held_out_error/fc1"] == 0.25
    assert child.data.metrics["redundancy/blocks.0.attention:heads/units_99"] == 3
    assert child.data.metrics["redundancy/blocks.0.attention:heads/units_99.9"] == 5
    assert child.data.metrics["redundancy/weird _name_/units_99"] == 2
    assert (child.data.metrics["idle/fc1/dead"], child.data.metrics["idle/fc1/frozen"]) == (3, 1)
    assert child.data.metrics["redundancy/fc1/gain"] == 0.25 and child.data.metrics["seconds/probe"] == 0.01
    assert client(study).get_metric_history(child.info.run_id, "redundancy/fc1/gain")[0].step == 2
    assert child.data.tags["operation"] == "min_weight" and child.data.tags["arm"] == "search"
    assert client(study).get_metric_history(child.info.run_id, "loss/train")[0].step == 2
    assert (parent.info.status, child.info.status, failed.info.status) == ("FINISHED", "FINISHED", "FAILED")
    assert failed.data.tags["failure"] == "the loss became nan"
    assert parent.data.tags["verdict"] == "Surgery is fine."
    names = {artifact.path for artifact in client(study).list_artifacts(parent.info.run_id)}
    assert names == {"note.txt", "summary.json", "summary.md"}
    assert parent.data.metrics["verdict/difference"] == 0.1
    assert (tmp_path / "study" / "mlflow-artifacts").is_dir()

    again = Folder.open(tmp_path / "study")  # a resumed study goes on with the runs it had
    with Tracker(again) as tracker:
        tracker.started(failing)
        tracker.ended(failing, OUTCOME)
        tracker.interrupted()
    assert tracker.lost == 0
    after = runs(study)
    assert set(after) == set(found)
    assert after["search-004"].info.run_id == failed.info.run_id
    assert after["search-004"].info.status == "FINISHED"
    assert after["study: small_cnn on digits"].info.status == "KILLED"


def test_a_server_that_is_away_neither_holds_up_nor_ends_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    study = folder(tmp_path, tracking_uri=f"http://127.0.0.1:{port}")
    with Tracker(study) as tracker:
        start = time.monotonic()
        for _ in range(100):
            tracker.started(CELL)
            tracker.epoch(CELL, EPOCH)
        held_up = time.monotonic() - start
    assert held_up < 1
    assert tracker.lost > 0
    with pytest.raises(StudyError, match=f"nothing can be tracked at http://127.0.0.1:{port}"):
        check_server(f"http://127.0.0.1:{port}")


def test_what_waits_is_caught_up_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tries fail, as when a server restarts; nothing is lost and the order stays."""
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.05)
    tracker = Tracker(folder(tmp_path))
    failures = iter([True, True, False, True])
    heard: list[str] = []

    def job(name: str) -> Any:
        def write() -> None:
            if next(failures, False):
                raise ConnectionError("away")
            heard.append(name)

        return write

    monkeypatch.setattr(tracker, "_open", job("open"))
    monkeypatch.setattr(tracker, "_client", type("C", (), {"set_terminated": lambda *_: heard.append("closed")})())
    with tracker:
        for name in "abc":
            tracker._jobs.put(job(name))
    assert heard == ["open", "a", "b", "c", "closed"]
    assert tracker.lost == 0
