"""What did not reach MLflow follows from the ledger and is sent later; nothing is sent twice, and nothing waits."""

from __future__ import annotations

import base64
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search.tracking import EXPERIMENT, check_server, default_uri, names, tracker
from network_surgery.study.search.tracking.tracker import Tracker
from network_surgery.study.store.folder import Folder
from network_surgery.study.training.cell import Cell
from tests.study.operated import operated
from tests.study.search.test_tracking import DATA, OUTCOME

STEP = {"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}
CELLS = [Cell("search", 0, [STEP], trial=number, params={"keep": 0.5}) for number in range(5)]
OPERATION = operated(epoch=1.0, iteration=5)


def outcome(loss: float, epochs: int = 3) -> dict[str, Any]:
    """What a training run has come to, with the curve that the ledger keeps."""
    curve = [
        {"epoch": float(epoch), "train_loss": loss / epoch, "validation_loss": loss, "validation_metric": 0.5,
         "train_seconds": 1.0} for epoch in range(1, epochs + 1)
    ]  # fmt: skip
    return OUTCOME | {"epochs": curve, "operations": [OPERATION], "checks": []}


ENDED = {
    0: outcome(0.9),
    1: {"failure": "ValueError: shapes differ (mine.py, line 7, in forward)", "error": {}},
    2: outcome(0.8, 2) | {"stopped": 2},
    3: outcome(0.7),
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all studies of this file: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def study(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(tracker, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(tracker.Machine, "start", lambda self: None)
    monkeypatch.setattr(tracker.Machine, "join", lambda self: None)
    monkeypatch.chdir(tmp_path)  # where MLflow would put artifacts
    return Folder.make(tmp_path / "study", Settings(tracking_uri=database), {"fc1": 8})


def keep(study: Folder, *numbers: int) -> None:
    for number in numbers:
        study.ended(CELLS[number], ENDED[number])


def tracked(study: Folder) -> list[Any]:
    """All that MLflow has of the study's training runs, without times; runs that were deleted are not there."""
    import mlflow

    client = mlflow.MlflowClient(default_uri(study))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = []
    for run in client.search_runs([experiment.experiment_id], f"tags.`{names.CELL}` LIKE '{study.identity}/%'"):
        histories = {
            key: sorted((each.step, each.value) for each in client.get_metric_history(run.info.run_id, key))
            for key in run.data.metrics
        }
        tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
        samples = len(run.inputs.dataset_inputs)
        found.append(
            [tags.pop(names.CELL).rpartition("/")[2], run.info.status, tags, run.data.params, histories, samples]
        )
    return sorted(found, key=lambda each: each[0])


def live(study: Folder, tracked: Tracker, number: int) -> None:
    """As the driver reports a training run."""
    from network_surgery.study.search.replay import reports

    tracked.started(CELLS[number])
    if "failure" not in ENDED[number]:
        for epoch in reports(ENDED[number]):
            tracked.epoch(CELLS[number], epoch)
    keep(study, number)
    tracked.ended(CELLS[number], ENDED[number])


def test_what_has_not_arrived_is_sent_later_and_nothing_twice(study: Folder) -> None:
    import mlflow

    with Tracker(study, DATA) as first:
        live(study, first, 0)
        first.started(CELLS[3])  # the driver is killed here: it runs for ever
        first.started(CELLS[4])
    client = mlflow.MlflowClient(default_uri(study))
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    client.create_run(experiment, tags={names.CELL: f"{study.identity}/search-003"})  # its first answer was lost
    keep(study, 1, 2, 3)  # while the server was away
    before = tracked(study)[0]
    for _ in range(2):
        with Tracker(study, DATA) as again:
            pass
        assert again.lost == 0, again.reason
        found = tracked(study)
        assert [(name, status) for name, status, *_ in found] == [
            ("search-000", "FINISHED"), ("search-001", "FAILED"), ("search-002", "FINISHED"),
            ("search-003", "FINISHED"), ("search-004", "KILLED"),
        ]  # fmt: skip
        assert found[0] == before
        assert found[1][2]["failure"] == ENDED[1]["failure"] and found[2][2]["stopped"] == "2"
        assert [step for step, _ in found[3][4]["loss/train"]] == [1, 2, 3]
        assert all(each[5] == 2 and each[3]["keep"] == "0.5" for each in found)
    study.ended(CELLS[1], outcome(0.6))  # it was run again
    with Tracker(study, DATA) as again:
        pass
    assert tracked(study)[1][1] == "FINISHED" and "failure" not in tracked(study)[1][2]


@pytest.mark.parametrize("seed", [1, 2])
def test_lost_requests_and_lost_answers_change_nothing(
    seed: int, study: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third request or answer is lost on its way, in the making of runs, too."""
    import mlflow

    with Tracker(study, DATA) as calm:
        for number in ENDED:
            live(study, calm, number)
    chance = random.Random(seed)

    class Unsteady(mlflow.MlflowClient):
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name.startswith("_") or not callable(found):
                return found

            def call(*given: Any, **named: Any) -> Any:
                luck = chance.random()
                if luck < 0.15:
                    raise ConnectionError("the request was lost")
                answer = found(*given, **named)
                if luck < 0.3:
                    raise ConnectionError("the answer was lost")
                return answer

            return call

    other = Folder.make(tmp_path / "other", study.settings, {"fc1": 8})
    monkeypatch.setattr(mlflow, "MlflowClient", Unsteady)
    monkeypatch.setattr(tracker, "PATIENCE_SECONDS", 60.0)
    with Tracker(other, DATA) as unsteady:
        for number in ENDED:
            live(other, unsteady, number)
    monkeypatch.undo()
    assert unsteady.lost == 0 and unsteady.reason
    assert tracked(other) == tracked(study)


def test_a_server_that_never_answers_is_not_waited_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        study = Folder.make(tmp_path / "study", Settings(tracking_uri=uri), {"fc1": 8})
        began = time.monotonic()
        with Tracker(study, DATA) as away:
            keep(study, 0)
            away.started(CELLS[0])
            away.ended(CELLS[0], ENDED[0])
            time.sleep(0.2)
            ending = time.monotonic()
        assert ending - began < 1 and time.monotonic() - ending < 3  # a second, and what a busy machine adds
        assert away.lost > 0


@pytest.fixture
def guarded() -> Iterator[str]:
    """A server that asks for a name and a password, or a token; the answer is that of no experiments."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            basic = base64.b64encode(b"ada:secret of ada").decode()
            right = self.headers.get("Authorization") in (f"Basic {basic}", "Bearer token of ada")
            content = json.dumps({} if right else {"error_code": "UNAUTHENTICATED", "message": "who are you?"}).encode()
            self.send_response(200 if right else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_is_asked_with_the_credentials_that_mlflow_knows(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with pytest.raises(StudyError, match=r"nothing can be tracked at http.*who are you"):
        check_server(guarded)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token of ada")
    check_server(guarded)
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(StudyError, match="who are you"):
        check_server(guarded)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret of ada")
    check_server(guarded)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    given = Settings(tracking_uri=guarded.replace("//", "//ada:secret of ada@"))
    check_server(given.tracking_uri, tmp_path)


def test_nothing_is_made_where_nothing_can_be_tracked(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    (tmp_path / "text.db").write_text("no database at all")
    for uri, reason in {
        f"sqlite:///{nowhere}/x.db": f"there is no folder {nowhere}",
        f"file:{nowhere}": f"there is no folder {nowhere}",
        str(nowhere): f"there is no folder {nowhere}",
        f"sqlite:///{tmp_path}": f"{tmp_path} is a folder",
        f"sqlite:///{tmp_path}/text.db": "not a database",
        "sqlite://": "it would end with the process",
    }.items():
        with pytest.raises(StudyError, match="nothing can be tracked at .*" + reason):
            check_server(uri)
    check_server(f"sqlite:///{tmp_path}/new.db")
    assert [path.name for path in tmp_path.iterdir()] == ["text.db"]


def test_the_database_of_an_odd_folder_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its artifacts; nothing is made beside it under a name that is quoted."""
    import mlflow

    monkeypatch.setattr(tracker.Machine, "start", lambda self: None)
    monkeypatch.setattr(tracker.Machine, "join", lambda self: None)
    place = tmp_path / "it's a?b#c%20d\"{e}&f;g+ü:@"
    study = Folder.make(place, Settings(), {"fc1": 8})
    with Tracker(study, DATA) as tracked:
        live(study, tracked, 0)
        tracked.stage_ended()
    assert tracked.lost == 0, tracked.reason
    assert {path.name for path in place.iterdir()} == {
        "study.json",
        ".study.json",
        "cells.jsonl",
        "mlflow.db",
        "mlflow-artifacts",
    }
    assert {path.name for path in tmp_path.iterdir()} == {place.name}
    mlflow.set_tracking_uri(default_uri(study))
    (run,) = mlflow.search_runs(search_all_experiments=True, filter_string="tags.arm = 'search'", output_format="list")
    parent = mlflow.get_run(run.data.tags["mlflow.parentRunId"])
    assert mlflow.artifacts.load_dict(f"{parent.info.artifact_uri}/training_runs.json")["data"][0][0] == "search-000"
