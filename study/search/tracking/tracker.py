"""Writes a study to MLflow from a thread of its own.

Tracking never holds up a study and never ends it: while the server is away, what is to be written waits. What has not
arrived by the end, of this process or of one that was killed, follows from the ledger: it is sent when the study goes
on, or by ``surgery track``. Runs are found again by tags and metrics by name, step and value, so nothing is sent twice.
"""

from __future__ import annotations

import contextvars
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from network_surgery.ops.errors import first_line
from network_surgery.study import secrets
from network_surgery.study.errors import StudyError
from network_surgery.study.scratch import scratch
from network_surgery.study.search import comparing
from network_surgery.study.search.replay import reports
from network_surgery.study.search.storage import hurry
from network_surgery.study.search.tracking import ENVIRONMENT, EXPERIMENT, default_uri, inputs, measures, model, names
from network_surgery.study.search.tracking.machine import Machine
from network_surgery.study.search.tracking.views import view_tags
from network_surgery.study.store import trainings, words
from network_surgery.study.store.folder import Folder, Record
from network_surgery.study.store.ledger import SEARCHING
from network_surgery.study.store.words import short
from network_surgery.study.task import Classification, Task
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.convergence import improving
from network_surgery.study.training.records import is_finished

#: Seconds between tries to reach a server that is away, and how long the end of a study waits for one that does not
#: answer.
RETRY_SECONDS, PATIENCE_SECONDS = 5.0, 1.0
#: Seconds that a database may take for one thing when a study ends.
DATABASE_SECONDS = 30.0
#: The most metrics that MLflow takes at once.
MOST = 1000

#: Parts of a result that a run is tagged by.
TAGS = ("device", "failure", "stopped", "same_as")


class Tracker:
    """Writes a study to MLflow, as a context manager around the study; ``lost`` counts what never got through.

    ``reason`` is what the first failure said.
    """

    def __init__(self, folder: Folder, data: Task, patience: float | None = None, load: bool = True) -> None:
        """``patience``: seconds to wait at the end for a server that does not answer; ``load``: whether the load of
        this machine is written, too.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._folder, self._data, self._watched = folder, data, load
        self._patience = PATIENCE_SECONDS if patience is None else patience
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._closing, self._given_up = threading.Event(), threading.Event()
        self._opened = self._failing = False
        self._progress = time.monotonic()  # when something was last written
        self._runs: dict[str, str] = {}
        self._sent: dict[str, set[tuple[str, int, float]]] = {}  # cell name → the metrics that its run has
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
        ended = self._folder.records()
        self._thread.start()
        self._jobs.put(lambda: self._catch_up(ended))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self._status = "KILLED" if kind is KeyboardInterrupt else "FAILED"
            self._jobs.put(self._kill)
        self._closing.set()
        if self._machine:
            self._machine.join()
        self._jobs.put(lambda: self._client.set_terminated(self._parent, self._status))
        self._jobs.put(None)
        self._progress = time.monotonic()
        while self._thread.is_alive() and not self._given_up.is_set():
            self._thread.join(0.02)
            if self._idle > self._patience and not self._answers():
                self._given_up.set()
        if self._given_up.is_set():
            self.lost += self._jobs.qsize()  # and the one under way for the None

    # -- what is heard ---------------------------------------------------------------------------------------------

    def started(self, cell: Cell) -> None:
        self._jobs.put(lambda: self._start(cell))

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None:
        now, measured = _now(), measures.of_epoch(record, self._folder.metric)
        self._jobs.put(lambda: self._log(cell.name, measured, now))

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        now, violations = _now(), self._violations(cell, result)
        self._jobs.put(lambda: self._end(cell, result, violations, now))

    def _violations(self, cell: Cell, result: Mapping[str, Any]) -> dict[str, float]:
        """How far a run of the search lies beyond each limit of the study's budget."""
        if "failure" in result or cell.arm not in SEARCHING:
            return {}
        return comparing.budget_of(self._folder, [cell.seed]).violations(result)

    def stage_ended(self) -> None:
        """The parent run's table of all training runs that have ended so far."""
        rows = trainings.table(self._folder.records(), self._folder.metric)
        self._jobs.put(lambda: self._table("training_runs.json", rows))

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
            numbers = {"front/hypervolume": front["hypervolume"]} if front else {}
            for row in results["comparison"]["summary"]:
                arm = measures.group(" ".join(filter(None, (row["arm"], letters.get(row["trial"], "")))))
                numbers[f"arm mean/{arm}"] = row["metric"]
            answer = results.get("answer") or {}
            if answer.get("sentence"):
                self._client.set_tag(self._parent, "answer", answer["sentence"])
            if verdicts:
                parts = ("surgery", "rival", "difference", "compute_ratio", "time_ratio")
                numbers |= {f"verdict/{key}": verdicts[0][key] for key in parts}
                self._client.set_tag(self._parent, "verdict", verdicts[0]["sentence"])
                note = _describe(answer.get("sentence"), verdicts, letters)
                self._client.set_tag(self._parent, "mlflow.note.content", note)
            known = self._client.get_run(self._parent).data.metrics
            for key, value in numbers.items():
                if known.get(key) != value:
                    self._client.log_metric(self._parent, key, value)
            for file in files:
                inside = "figures" if file.parent == self._folder.figures else None
                self._client.log_artifact(self._parent, str(file), inside)

        self.stage_ended()
        self._jobs.put(write)

    # -- what is written, in the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            while not self._given_up.is_set():
                try:
                    if not self._opened:
                        self._open()
                        self._opened = True
                    job()
                    self._advance()
                    break
                except Exception as error:  # whatever a tracking server does, the study goes on
                    self._failing = True
                    self.reason = self.reason or secrets.hide((str(error).splitlines() or [type(error).__name__])[0])
                    if self._opened and _permanent(error):
                        self.lost += 1
                        self._advance()
                        break
                    if self._closing.is_set() and self._idle > self._patience:
                        self._given_up.set()
                    self._closing.wait(RETRY_SECONDS) if not self._closing.is_set() else time.sleep(0.1)

    def _advance(self) -> None:
        self._failing, self._progress = False, time.monotonic()

    @property
    def _idle(self) -> float:
        """Seconds since something was written."""
        return time.monotonic() - self._progress

    def _answers(self) -> bool:
        """Whether what is tracked to still works at what it was given: then waiting for it makes sense."""
        if self._failing:
            return False
        uri = self._folder.settings.tracking_uri or ""
        if not uri.startswith(("http://", "https://")):
            return self._idle < DATABASE_SECONDS
        import requests

        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=self._patience / 2)
        except requests.RequestException:
            return False
        return True

    def _catch_up(self, records: Sequence[Record]) -> None:
        """Sends what MLflow has not got of these; what no process trains any more does not run there either."""
        runs: dict[str, list[Any]] = {}
        for run in self._search(f"tags.`{names.CELL}` LIKE '{self._folder.identity}/%'"):
            runs.setdefault(run.data.tags[names.CELL].partition("/")[2], []).append(run)
        ended = {record.cell.name: record for record in records}
        for name, found in runs.items():
            found.sort(key=lambda run: (run.info.status not in ("FINISHED", "FAILED"), run.info.start_time))
            for twin in found[1:]:  # an answer was lost on its way, and the run was made again
                self._client.delete_run(twin.info.run_id)
            if found[0].info.status == "RUNNING" and name not in ended:
                self._client.set_terminated(found[0].info.run_id, "KILLED")
        for name, record in ended.items():
            if not (name in runs and _whole(runs[name][0], record.result)):
                self._send(record)
                self._advance()

    def _send(self, record: Record) -> None:
        """All that the run of a cell has received when the cell has ended."""
        cell, result, now = record.cell, record.result, _now()
        self._start(cell)
        for epoch in reports(result) if "epochs" in result and "failure" not in result else ():
            self._log(cell.name, measures.of_epoch(epoch, self._folder.metric), now)
        self._end(cell, result, self._violations(cell, result), now)

    def _open(self) -> None:
        import logging

        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if self._folder.settings.tracking_uri is None:
            hurry(self._folder.mlflow)
        self._client = mlflow.MlflowClient(tracking_uri=default_uri(self._folder))
        self._origin = names.origin_tags()
        self._datasets = self._datasets or inputs.datasets(self._folder.settings, self._data)
        self._experiment = self._find_experiment()
        about = names.parent_name(self._folder), names.study_tags(self._folder), self._folder.settings.to_data(), "test"
        self._parent = self._found(names.STUDY, self._folder.identity, *about)
        self._client.update_run(self._parent, status="RUNNING")
        self._began = self._client.get_run(self._parent).info.start_time
        if self._watched and not self._machine:
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
            about = {"arm": cell.arm, "seed": cell.seed, "schedule": json.dumps(list(cell.schedule)), **cell.params}
            about = about if cell.trial is None else {"trial": cell.trial, **about}
            schedule = self._schedule(cell)
            tags = names.cell_tags(self._folder, cell, self._parent, schedule)
            self._runs[name] = self._found(
                *names.cell_tag(self._folder, cell), names.run_name(cell, schedule), tags, about,
                *(["test"] if cell.test else []),
            )  # fmt: skip
        run = self._client.get_run(self._runs[name])
        if name not in self._sent:
            histories = [self._client.get_metric_history(run.info.run_id, key) for key in run.data.metrics]
            self._sent[name] = {(each.key, each.step, each.value) for history in histories for each in history}
        self._client.update_run(run.info.run_id, status="RUNNING")
        for tag in {"failure", "stopped"} & run.data.tags.keys():  # of an earlier try
            self._client.delete_tag(run.info.run_id, tag)

    def _schedule(self, cell: Cell) -> str:
        """What the schedule that a cell is about does, in a few words; a rival has none of its own."""
        if cell.schedule and cell.arm in ("surgery", *SEARCHING):
            return short(cell.schedule)
        known = (r.cell for r in self._folder.records("search", "surgery") if cell.trial is not None)
        return next((short(each.schedule) for each in known if each.trial == cell.trial), "")

    def _found(
        self, tag: str, value: str, name: str, tags: dict[str, str], values: Mapping[str, Any], *parts: str
    ) -> str:
        """The run with this tag; where there is none, one is made that says what it is, with which parameters, and on
        which samples (these ``parts``, too).
        """
        from mlflow.entities import Param

        found = next(iter(self._search(f"tags.`{tag}` = '{value}'")), None)
        run = found or self._client.create_run(self._experiment, run_name=name, tags=self._origin | tags)
        if found is None or not run.data.params or not run.inputs.dataset_inputs:
            params = [Param(key, str(value)[:6000]) for key, value in values.items()]
            self._client.log_batch(run.info.run_id, params=params)
            datasets = [self._datasets[part] for part in ("train", "validation", *parts)]
            self._client.log_inputs(run.info.run_id, datasets)
        return str(run.info.run_id)

    def _search(self, query: str) -> Iterator[Any]:
        """All runs of the experiment that a query is true of, the oldest first."""
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], query, max_results=MOST, order_by=["attributes.start_time ASC"], page_token=token
            )
            yield from page
            if not (token := page.token):
                return

    def _kill(self) -> None:
        query = f"tags.`mlflow.parentRunId` = '{self._parent}' and attributes.status = 'RUNNING'"
        for run in list(self._search(query)):
            self._client.set_terminated(run.info.run_id, "KILLED")

    def _end(self, cell: Cell, result: Mapping[str, Any], violations: Mapping[str, float], now: int) -> None:
        """How a cell has ended; its status, which comes last, says that its run is whole."""
        tags: dict[str, str] = {name: str(result[name]) for name in TAGS if name in result}
        if is_finished(result) and (still := improving(result, self._folder.metric)) is not None:
            tags["improving"] = str(still).lower()
        if violations:
            tags["feasible"] = str(max(violations.values()) <= 0).lower()
        for name, value in tags.items():
            self._client.set_tag(self._runs[cell.name], name, value)
        if "failure" not in result:
            step = len(result.get("epochs", ()))
            over = [(f"budget/over {name}", each, step) for name, each in violations.items()]
            self._log(cell.name, over + measures.of_outcome(result), now)
            network = self._folder.path / result.get("network", "none")
            if network.is_file():  # a worker may have another file system
                self._network(cell, network)
            self._log(cell.name, measures.of_test(result, self._folder.metric), now, "test")
        status = "FAILED" if "failure" in result else "FINISHED"
        self._client.set_terminated(self._runs[cell.name], status)
        del self._sent[cell.name]

    def _network(self, cell: Cell, network: Path) -> None:
        """A final network as the model of its run. One that cannot be made is missing, and everything else is there."""
        run = self._client.get_run(self._runs[cell.name])
        there = self._client.search_logged_models(
            [self._experiment], filter_string=f"source_run_id = '{run.info.run_id}'"
        )
        logged = next(iter(there), None) or self._client.create_logged_model(
            self._experiment, model.NAME, source_run_id=run.info.run_id, params=dict(run.data.params),
            model_type="classifier" if isinstance(self._data, Classification) else None,
            tags=names.cell_tags(self._folder, cell, self._parent),
        )  # fmt: skip
        self._models[cell.name] = logged
        if str(logged.status) == "READY":
            return
        with scratch() as place:
            try:
                model.write(place / model.NAME, network, self._folder.settings, self._data, logged)
            except Exception as error:  # it is made here, so that trying again cannot help
                reason = f"the network of {cell.name} cannot be made a model: {first_line(error)}"
                self.lost, self.reason = self.lost + 1, self.reason or reason
                return
            self._client.log_model_artifacts(logged.model_id, str(place / model.NAME))
        if not run.outputs.model_outputs:
            from mlflow.entities import LoggedModelOutput

            step = cell.epochs or self._folder.settings.epochs
            self._client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, step)])
        self._client.finalize_logged_model(logged.model_id, "READY")

    def _log(self, name: str, measured: measures.Measured, now: int, on: str | None = None) -> None:
        """Metrics of a cell that its run has not got yet; ``on``: the part of the data that says something of the final
        network.
        """
        from mlflow.entities import Metric

        run, logged, sent = self._runs[name], self._models.get(name), self._sent[name]
        about: dict[str, Any] = {}
        if on is not None and logged is not None:
            data = self._datasets[on].dataset
            about = {"model_id": logged.model_id, "dataset_name": data.name, "dataset_digest": data.digest,
                     "run_id": run}  # fmt: skip
        fresh = [(key, float(value), step) for key, value, step in measured if (key, step, float(value)) not in sent]
        for first in range(0, len(fresh), MOST):
            part = fresh[first : first + MOST]
            metrics = [Metric(key, value, now, step, **about) for key, value, step in part]
            self._client.log_batch(run, metrics=metrics)
            sent.update((key, step, value) for key, value, step in part)

    def _load(self, measured: dict[str, float]) -> None:
        """The machine's load; its steps are seconds since the study began."""
        now = _now()

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


def _now() -> int:
    """Milliseconds, as MLflow counts them."""
    return int(time.time() * 1000)


def _whole(run: Any, result: Mapping[str, Any]) -> bool:
    """Whether a run has all of a cell that has ended so."""
    status = "FAILED" if "failure" in result else "FINISHED"
    failure = str(result["failure"]) if "failure" in result else None
    return run.info.status == status and run.data.tags.get("failure") == failure


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A table's row whose cells are all plain: what was taken of several things gets a column for each."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        found |= {f"{key} {part}": each for part, each in value.items()} if isinstance(value, dict) else {key: value}
    return found


def _describe(answer: str | None, verdicts: Sequence[dict[str, Any]], letters: Mapping[int, str]) -> str:
    """The parent run's description, in Markdown: the answer, and the verdict on each schedule."""
    lines = [f"**{letters[verdict['trial']]}**: {verdict['sentence']} {verdict['details']}" for verdict in verdicts]
    return "\n\n".join([f"**{answer}**"] * bool(answer) + lines)


def _permanent(error: Exception) -> bool:
    """Whether trying again cannot help: what was sent is at fault, not the way there."""
    return getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST") or isinstance(
        error, (KeyError, StudyError)
    )
