"""The one place that talks to MLflow: one parent run a study, one child run a cell.

A listener on the driver puts what it hears into a queue; a thread of its own writes it in batches. Tracking never
holds up a study and never ends it: while the server is away, what is to be written waits and is caught up with later.
Runs are found again by tags, so a resumed study goes on with the runs it had.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from study.errors import StudyError
from study.evidence.results import Folder
from study.training.run import Cell

EXPERIMENT = "network-surgery"
STUDY, CELL = "network_surgery.study", "network_surgery.cell"
#: Seconds between tries to reach a server that is away, and how long the end of a study waits for it.
RETRY_SECONDS, PATIENCE_SECONDS = 5.0, 30.0

_OPERATION_METRICS = (
    "loss_before", "loss_after", "spike_factor", "loss_factor", "seconds", "epoch_seconds", "interruptibility",
    "units_before", "units_after", "parameters_before", "parameters_after", "flops_before", "flops_after",
    "predicted_error", "epochs_to_recover",
)  # fmt: skip


def default_uri(folder: Folder) -> str:
    """Where a study is tracked: the URI of its settings, else a database beside its results."""
    return folder.settings.tracking_uri or f"sqlite:///{folder.mlflow}"


def check_server(uri: str | None) -> None:
    """Raises StudyError where tracking is to go somewhere that does not answer or is no place for it."""
    if uri is None:
        return
    if uri.startswith(("http://", "https://")):
        import requests

        try:
            answer = requests.get(f"{uri.rstrip('/')}/health", timeout=5)
            reason = "" if answer.ok else f"it answers {answer.status_code}"
        except requests.RequestException as error:
            reason = type(error).__name__
    else:
        import mlflow

        try:
            mlflow.MlflowClient(uri).search_experiments(max_results=1)
            reason = ""
        except Exception as error:  # whatever MLflow and its stores make of a URI
            reason = str(error).splitlines()[0]
    if reason:
        raise StudyError(
            f"nothing can be tracked at {uri} ({reason}); give the address of an MLflow server or "
            "sqlite:////PATH/mlflow.db, or leave out --tracking-uri"
        )


class Tracker:
    """Writes a study to MLflow, as a context manager around the study; ``lost`` counts what never got through.

    ``reason`` is what the first failure said.
    """

    def __init__(self, folder: Folder) -> None:
        for name, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")):
            os.environ.setdefault(name, value)
        self._folder = folder
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._closing = threading.Event()
        self._runs: dict[str, str] = {}
        self._client: Any = None
        self._experiment = self._parent = ""
        self._status = "FINISHED"
        self.lost, self.reason = 0, ""
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def __enter__(self) -> Tracker:
        self._thread.start()
        self._jobs.put(self._open)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self._status = "KILLED" if kind is KeyboardInterrupt else "FAILED"
        self._jobs.put(lambda: self._client.set_terminated(self._parent, self._status))
        self._jobs.put(None)
        self._closing.set()
        self._thread.join()

    # -- what is heard ---------------------------------------------------------------------------------------------

    def started(self, cell: Cell) -> None:
        self._jobs.put(lambda: self._start(cell))

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None:
        names = {
            "train_loss": "loss/train", "validation_loss": "loss/validation", "train_seconds": "seconds/epoch",
            "validation_accuracy": "accuracy/validation", "parameters": "size/parameters",
        }  # fmt: skip
        step = int(record["epoch"])
        metrics = [(names[key], float(record[key]), step) for key in names]
        for operation in record["operations"]:
            numbers = {key: operation[key] for key in _OPERATION_METRICS} | operation["evidence"]
            for key, value in numbers.items():
                if value is not None:
                    metrics.append((f"operation/{key}/{_known(operation['layer'])}", float(value), step))
        for layer, found in record.get("redundancy", {}).items():
            metrics += [(f"redundancy/{_known(layer)}/{key}", float(value), step) for key, value in found.items()]
        for layer, found in record.get("idle", {}).items():
            metrics += [(f"idle/{_known(layer)}/{key}", float(value), step) for key, value in found.items()]
        for check in record["checks"]:
            metrics.append((f"{check['measure']}/{_known(check['layer'])}/gain", check["gain"], step))
        if "probe_seconds" in record:
            metrics.append(("seconds/probe", record["probe_seconds"], step))
        self._metrics(cell.name, metrics)

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        if "failure" in result:
            self._jobs.put(lambda: self._client.set_tag(self._runs[cell.name], "failure", result["failure"]))
        else:
            names = ("validation_accuracy", "validation_loss", "test_accuracy", "test_loss", "test_top5", "parameters",
                     "flops", "peak_memory")  # fmt: skip
            seconds = ("seconds", "train_seconds", "operation_seconds", "probe_seconds")
            metrics = [
                (f"final/{key}", float(result[key]), 0) for key in (*names, *seconds) if result.get(key) is not None
            ]
            metrics += [(f"final/latency_{n}", value, 0) for n, value in result.get("latency_seconds", {}).items()]
            metrics += [("spike/factor", event["factor"], int(event["epoch"]) + 1) for event in result["spikes"]]
            for operation in result["operations"]:  # known only at the end of training
                if operation["epochs_to_recover"] is not None:
                    name = f"operation/epochs_to_recover/{_known(operation['layer'])}"
                    metrics.append((name, float(operation["epochs_to_recover"]), int(operation["epoch"]) + 1))
            self._metrics(cell.name, metrics)
        status = "FAILED" if "failure" in result else "FINISHED"
        self._jobs.put(lambda: self._client.set_terminated(self._runs[cell.name], status))

    def interrupted(self) -> None:
        """The study ends before it is whole; its unfinished runs say so."""
        self._status = "KILLED"
        self._jobs.put(self._kill)

    def summary(
        self, rows: Sequence[dict[str, Any]], verdicts: Sequence[dict[str, Any]], files: Sequence[Path]
    ) -> None:
        """The closing table, the verdict and the files (figures, report, results) on the parent run."""

        def write() -> None:
            if rows:
                columns = {key: [row[key] for row in rows] for key in rows[0]}
                self._client.log_dict(self._parent, columns, "summary.json")
                self._client.log_text(self._parent, _markdown(rows), "summary.md")
            if verdicts:
                best = {
                    key: verdicts[0][key] for key in ("surgery", "rival", "difference", "compute_ratio", "time_ratio")
                }
                for key, value in best.items():
                    self._client.log_metric(self._parent, f"verdict/{key}", value)
                self._client.set_tag(self._parent, "verdict", verdicts[0]["sentence"])
                self._client.set_tag(self._parent, "mlflow.note.content", "\n\n".join(v["sentence"] for v in verdicts))
            for file in files:
                inside = "figures" if file.parent == self._folder.figures else None
                self._client.log_artifact(self._parent, str(file), inside)

        self._jobs.put(write)

    # -- what is written, in the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        given_up = None
        while (job := self._jobs.get()) is not None:
            while True:
                try:
                    if given_up is not None and time.monotonic() > given_up:
                        self.lost += 1
                    else:
                        job()
                    break
                except Exception as error:  # whatever a tracking server does, the study goes on
                    self.reason = self.reason or (str(error).splitlines() or [type(error).__name__])[0]
                    if _permanent(error):
                        self.lost += 1
                        break
                    if self._closing.is_set() and given_up is None:
                        given_up = time.monotonic() + PATIENCE_SECONDS
                    self._closing.wait(RETRY_SECONDS) if not self._closing.is_set() else time.sleep(1.0)

    def _open(self) -> None:
        import logging

        import mlflow

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self._client = mlflow.MlflowClient(tracking_uri=default_uri(self._folder))
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            self._experiment = experiment.experiment_id
        else:  # with a database of our own the artifacts lie beside it, with a server where the server keeps them
            place = None if self._folder.settings.tracking_uri else self._folder.artifacts.as_uri()
            kind = {"mlflow.experimentKind": "custom_model_development"}  # opens on runs, not on language-model traces
            self._experiment = self._client.create_experiment(EXPERIMENT, artifact_location=place, tags=kind)
        self._parent = self._find(STUDY, self._folder.identity) or self._new_parent()
        self._client.update_run(self._parent, status="RUNNING")

    def _new_parent(self) -> str:
        settings = self._folder.settings
        run = self._client.create_run(
            self._experiment,
            run_name=f"{self._folder.path.name}: {settings.model} on {Path(settings.data).name}",
            tags={STUDY: self._folder.identity, CELL: "study", "folder": str(self._folder.path)},
        )
        self._parameters(run.info.run_id, settings.to_data())
        return run.info.run_id

    def _start(self, cell: Cell) -> None:
        name = cell.name
        if name not in self._runs:
            self._runs[name] = self._find(CELL, f"{self._folder.identity}/{name}") or self._new_child(cell)
        self._client.update_run(self._runs[name], status="RUNNING")

    def _new_child(self, cell: Cell) -> str:
        operation = cell.schedule[0]["op"] if cell.schedule else "none"
        tags = {
            CELL: f"{self._folder.identity}/{cell.name}", "mlflow.parentRunId": self._parent, "arm": cell.arm,
            "operation": operation,
        }  # fmt: skip
        run = self._client.create_run(
            self._experiment, run_name=f"{cell.name} {cell.params.get('op', '')}".strip(), tags=tags
        )
        about = {"arm": cell.arm, "seed": cell.seed, "schedule": list(cell.schedule), **cell.params}
        self._parameters(run.info.run_id, about if cell.trial is None else {"trial": cell.trial, **about})
        return run.info.run_id

    def _find(self, tag: str, value: str) -> str | None:
        if "'" in value:
            return None
        found = self._client.search_runs([self._experiment], f"tags.`{tag}` = '{value}'", max_results=1)
        return found[0].info.run_id if found else None

    def _kill(self) -> None:
        query = f"tags.`mlflow.parentRunId` = '{self._parent}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([self._experiment], query, max_results=1000):
            self._client.set_terminated(run.info.run_id, "KILLED")

    def _parameters(self, run: str, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        self._client.log_batch(run, params=[Param(key, str(value)[:6000]) for key, value in values.items()])

    def _metrics(self, name: str, metrics: list[tuple[str, float, int]]) -> None:
        now = int(time.time() * 1000)

        def write() -> None:
            from mlflow.entities import Metric

            self._client.log_batch(
                self._runs[name], metrics=[Metric(key, value, now, step) for key, value, step in metrics]
            )

        self._jobs.put(write)


def _known(layer: str) -> str:
    """A layer's name as a part of a metric's: MLflow allows letters, digits and ``_-. :/``, and no empty part."""
    return re.sub(r"[^\w.\- :/]", "_", layer).strip("/") or "_"


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The closing table for MLflow's preview, which shows Markdown."""
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    for row in rows:
        cells = (
            "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
            for value in row.values()
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _permanent(error: Exception) -> bool:
    """Whether trying again cannot help: what was sent is at fault, not the way there."""
    return getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST") or isinstance(error, KeyError)
