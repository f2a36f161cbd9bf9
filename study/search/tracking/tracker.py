"""Writes a study to MLflow from a thread of its own.

Tracking never holds up a study and never ends it: while the server is away, what is to be written waits and is caught
up with later. Runs are found again by tags, so a resumed study goes on with the runs it had.
"""

from __future__ import annotations

import contextvars
import json
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from network_surgery.ops.errors import first_line
from network_surgery.study.errors import StudyError
from network_surgery.study.search import comparing
from network_surgery.study.search.tracking import EXPERIMENT, default_uri, inputs, measures, model, names
from network_surgery.study.search.tracking.machine import Machine
from network_surgery.study.search.tracking.views import view_tags
from network_surgery.study.store import trainings, words
from network_surgery.study.store.folder import Folder
from network_surgery.study.store.ledger import SEARCHING
from network_surgery.study.store.words import short
from network_surgery.study.task import Classification, Task
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.convergence import improving
from network_surgery.study.training.records import finished

#: Seconds between tries to reach a server that is away, and how long the end of a study waits for it.
RETRY_SECONDS, PATIENCE_SECONDS = 5.0, 30.0

#: Parts of a result that a run is tagged by.
TAGS = ("device", "failure", "stopped", "same_as")


class Tracker:
    """Writes a study to MLflow, as a context manager around the study; ``lost`` counts what never got through.

    ``reason`` is what the first failure said.
    """

    def __init__(self, folder: Folder, data: Task) -> None:
        for name, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")):
            os.environ.setdefault(name, value)
        self._folder, self._data = folder, data
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._closing = threading.Event()
        self._runs: dict[str, str] = {}
        self._models: dict[str, Any] = {}  # cell name → MLflow's record of its final network
        self._datasets: dict[str, Any] = {}
        self._client: Any = None
        self._machine: Machine | None = None
        self._experiment = self._parent = ""
        self._began = 0  # milliseconds
        self._origin: dict[str, str] = {}
        self._status = "FINISHED"
        self.lost, self.reason = 0, ""
        context = contextvars.copy_context()  # with what Python gave to this study (``study.references.lent``)
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="mlflow", daemon=True)

    def __enter__(self) -> Tracker:
        self._thread.start()
        self._jobs.put(self._open)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self._status = "KILLED" if kind is KeyboardInterrupt else "FAILED"
        self._closing.set()
        if self._machine:
            self._machine.join()
        self._jobs.put(lambda: self._client.set_terminated(self._parent, self._status))
        self._jobs.put(None)
        self._thread.join()

    # -- what is heard ---------------------------------------------------------------------------------------------

    def started(self, cell: Cell) -> None:
        self._jobs.put(lambda: self._start(cell))

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None:
        self._metrics(cell.name, measures.of_epoch(record, self._folder.metric))

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        tags: dict[str, str] = {name: str(result[name]) for name in TAGS if name in result}
        if finished(result) and (still := improving(result, self._folder.metric)) is not None:
            tags["improving"] = str(still).lower()
        violations = self._violations(cell, result)
        if violations:
            tags["feasible"] = str(max(violations.values()) <= 0).lower()
        self._jobs.put(lambda: self._tags(cell, tags))
        if "failure" not in result:
            step = len(result.get("epochs", ()))
            self._metrics(cell.name, [(f"budget/over {name}", each, step) for name, each in violations.items()])
            self._metrics(cell.name, measures.of_outcome(result))
            network = self._folder.path / result.get("network", "none")
            if network.is_file():  # a worker may have another file system
                self._jobs.put(lambda: self._network(cell))
                self._jobs.put(lambda: self._files(cell, network))
            self._metrics(cell.name, measures.of_test(result, self._folder.metric), on="test")
        status = "FAILED" if "failure" in result else "FINISHED"
        self._jobs.put(lambda: self._client.set_terminated(self._runs[cell.name], status))

    def _violations(self, cell: Cell, result: Mapping[str, Any]) -> dict[str, float]:
        """How far a run of the search lies beyond each limit of the study's budget."""
        if "failure" in result or cell.arm not in SEARCHING:
            return {}
        return comparing.budget_of(self._folder, [cell.seed]).violations(result)

    def stage_ended(self) -> None:
        """The parent run's table of all trainings that have ended so far."""
        rows = trainings.table(self._folder.records(), self._folder.metric)
        self._jobs.put(lambda: self._table("trainings.json", rows))

    def interrupted(self) -> None:
        """The study ends before it is whole; its unfinished runs say so."""
        self._status = "KILLED"
        self._jobs.put(self._kill)

    def summary(self, results: Mapping[str, Any], files: Sequence[Path]) -> None:
        """The closing table, the verdict, the front and the files (figures, report, results) on the parent run."""
        verdicts, front = results["comparison"]["verdicts"], results["front"]
        letters = words.names(row["trial"] for row in results["comparison"]["summary"] if row["trial"] is not None)

        def write() -> None:
            name = self._folder.metric.name
            titles = {"metric": name, "metric_deviation": f"{name}_deviation"}
            rows = [
                {titles.get(key, key): value for key, value in row.items()} for row in results["comparison"]["summary"]
            ]
            self._table("comparison.json", rows)
            if front:
                self._client.log_metric(self._parent, "front/hypervolume", front["hypervolume"])
            for row in results["comparison"]["summary"]:
                arm = measures.group(" ".join(filter(None, (row["arm"], letters.get(row["trial"], "")))))
                self._client.log_metric(self._parent, f"arm mean/{arm}", row["metric"])
            answer = results.get("answer") or {}
            if answer.get("sentence"):
                self._client.set_tag(self._parent, "answer", answer["sentence"])
            if verdicts:
                best = {
                    key: verdicts[0][key] for key in ("surgery", "rival", "difference", "compute_ratio", "time_ratio")
                }
                for key, value in best.items():
                    self._client.log_metric(self._parent, f"verdict/{key}", value)
                self._client.set_tag(self._parent, "verdict", verdicts[0]["sentence"])
                note = _described(answer.get("sentence"), verdicts, letters)
                self._client.set_tag(self._parent, "mlflow.note.content", note)
            for file in files:
                inside = "figures" if file.parent == self._folder.figures else None
                self._client.log_artifact(self._parent, str(file), inside)

        self.stage_ended()
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

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client = mlflow.MlflowClient(tracking_uri=default_uri(self._folder))
        self._origin = names.origin_tags()
        self._datasets = self._datasets or inputs.datasets(self._folder.settings, self._data)
        self._experiment = self._find_experiment()
        self._parent = self._find(names.STUDY, self._folder.identity) or self._new_run(
            names.parent_name(self._folder), names.study_tags(self._folder), self._folder.settings.to_data(), "test"
        )
        self._client.update_run(self._parent, status="RUNNING")
        self._began = self._client.get_run(self._parent).info.start_time
        if not self._machine:
            self._machine = Machine(self._load, self._closing)

    def _find_experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            found = experiment.experiment_id
        else:  # with a database of our own the artifacts lie beside it, with a server where the server keeps them
            place = None if self._folder.settings.tracking_uri else self._folder.artifacts.as_uri()
            kind = {"mlflow.experimentKind": "custom_model_development"}  # not language models and their traces
            found = self._client.create_experiment(EXPERIMENT, artifact_location=place, tags=kind)
        for tag, view in view_tags(self._folder.metric).items():
            self._client.set_experiment_tag(found, tag, view)
        return found

    def _start(self, cell: Cell) -> None:
        name = cell.name
        if name not in self._runs:
            self._runs[name] = self._find(*names.cell_tag(self._folder, cell)) or self._new_child(cell)
        self._client.update_run(self._runs[name], status="RUNNING")

    def _new_child(self, cell: Cell) -> str:
        about = {"arm": cell.arm, "seed": cell.seed, "schedule": json.dumps(list(cell.schedule)), **cell.params}
        about = about if cell.trial is None else {"trial": cell.trial, **about}
        schedule = self._schedule(cell)
        tags = names.cell_tags(self._folder, cell, self._parent, schedule)
        return self._new_run(names.run_name(cell, schedule), tags, about, *(["test"] if cell.test else []))

    def _schedule(self, cell: Cell) -> str:
        """What the schedule that a cell is about does, in a few words; a rival has none of its own."""
        if cell.schedule and cell.arm in ("surgery", *SEARCHING):
            return short(cell.schedule)
        known = (r.cell for r in self._folder.records("search", "surgery") if cell.trial is not None)
        return next((short(each.schedule) for each in known if each.trial == cell.trial), "")

    def _new_run(self, name: str, tags: dict[str, str], values: Mapping[str, Any], *parts: str) -> str:
        """Makes a run that says what it is, with which parameters, and on which samples (these ``parts``, too)."""
        from mlflow.entities import Param

        run = self._client.create_run(self._experiment, run_name=name, tags=self._origin | tags).info.run_id
        self._client.log_batch(run, params=[Param(key, str(value)[:6000]) for key, value in values.items()])
        self._client.log_inputs(run, [self._datasets[part] for part in ("train", "validation", *parts)])
        return run

    def _find(self, tag: str, value: str) -> str | None:
        if "'" in value:
            return None
        found = self._client.search_runs([self._experiment], f"tags.`{tag}` = '{value}'", max_results=1)
        return found[0].info.run_id if found else None

    def _kill(self) -> None:
        query = f"tags.`mlflow.parentRunId` = '{self._parent}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([self._experiment], query, max_results=1000):
            self._client.set_terminated(run.info.run_id, "KILLED")

    def _network(self, cell: Cell) -> None:
        """A model of the run, still without its files."""
        run = self._runs[cell.name]
        known = {key: str(value) for key, value in self._client.get_run(run).data.params.items()}
        self._models[cell.name] = self._client.create_logged_model(
            self._experiment, model.NAME, source_run_id=run, params=known,
            model_type="classifier" if isinstance(self._data, Classification) else None,
            tags=names.cell_tags(self._folder, cell, self._parent),
        )  # fmt: skip

    def _files(self, cell: Cell, network: Path) -> None:
        from mlflow.entities import LoggedModelOutput

        logged = self._models[cell.name]
        with tempfile.TemporaryDirectory(prefix="network-surgery-") as scratch:
            place = Path(scratch) / model.NAME
            try:
                model.write(place, network, self._folder.settings, self._data, logged)
            except Exception as error:  # it is made here, so that trying again cannot help
                raise StudyError(f"the network of {cell.name} cannot be made a model: {first_line(error)}") from error
            self._client.log_model_artifacts(logged.model_id, str(place))
        self._client.finalize_logged_model(logged.model_id, "READY")
        step = cell.epochs or self._folder.settings.epochs
        self._client.log_outputs(self._runs[cell.name], [LoggedModelOutput(logged.model_id, step)])

    def _tags(self, cell: Cell, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self._client.set_tag(self._runs[cell.name], name, value)

    def _metrics(self, name: str, measured: measures.Measured, on: str | None = None) -> None:
        """``on``: the part of the data that says something of the final network."""
        now = int(time.time() * 1000)

        def write() -> None:
            from mlflow.entities import Metric

            run, logged = self._runs[name], self._models.get(name)
            about: dict[str, Any] = {}
            if on is not None and logged is not None:
                data = self._datasets[on].dataset
                about = {"model_id": logged.model_id, "dataset_name": data.name, "dataset_digest": data.digest,
                         "run_id": run}  # fmt: skip
            metrics = [Metric(key, value, now, step, **about) for key, value, step in measured]
            self._client.log_batch(run, metrics=metrics)

        if measured:
            self._jobs.put(write)

    def _load(self, measured: dict[str, float]) -> None:
        """The machine's load; its steps are seconds since the study began."""
        now = int(time.time() * 1000)

        def write() -> None:
            from mlflow.entities import Metric

            step = (now - self._began) // 1000
            self._client.log_batch(self._parent, [Metric(key, value, now, step) for key, value in measured.items()])

        self._jobs.put(write)

    def _table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Rows as MLflow stores a table (its ``log_table`` would append them to those that are there)."""
        from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

        if not rows:
            return
        rows = [_flat(row) for row in rows]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        data = [
            ["" if row.get(key) is None else row[key] for key in columns] for row in rows
        ]  # else the page says null
        content = {"columns": columns, "data": data}
        self._client.log_text(self._parent, json.dumps(content), name)
        tags = self._client.get_run(self._parent).data.tags
        known = json.loads(tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        if (entry := {"path": name, "type": "table"}) not in known:
            self._client.set_tag(self._parent, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*known, entry]))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A table's row whose cells are all plain: what was taken of several things gets a column for each."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        found |= {f"{key} {part}": each for part, each in value.items()} if isinstance(value, dict) else {key: value}
    return found


def _described(answer: str | None, verdicts: Sequence[dict[str, Any]], letters: Mapping[int, str]) -> str:
    """The parent run's description, in Markdown: the answer, and the verdict on each schedule."""
    lines = [f"**{letters[verdict['trial']]}**: {verdict['sentence']} {verdict['details']}" for verdict in verdicts]
    return "\n\n".join([f"**{answer}**"] * bool(answer) + lines)


def _permanent(error: Exception) -> bool:
    """Whether trying again cannot help: what was sent is at fault, not the way there."""
    return getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST") or isinstance(
        error, (KeyError, StudyError)
    )
