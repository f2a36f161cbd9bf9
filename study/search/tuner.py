"""The one place that talks to Ray (with ``trial``, which runs in its workers).

It starts or joins a cluster and runs the cells of a source as Tune trials. Tune asks the source for cells through a
searcher, which ones go on through a scheduler, and the listeners hear of every start, epoch and end on the driver. A
trial that is stopped ends in its process's next report, and the process is used again. Ray's own checkpoints and
restores are not used: a cell keeps its checkpoint under the study's folder, by what it computes, so that a lost
node, a killed driver and Ctrl-C all resume in the same way.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from network_surgery.ops.errors import first_line
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search.once import Once, reports
from network_surgery.study.search.sources import Source
from network_surgery.study.search.stopping import stopped
from network_surgery.study.store.folder import Record, checkpoint_of, checkpoints_of
from network_surgery.study.task import Task
from network_surgery.study.task import start as starting
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.checkpoint import discard, remove
from network_surgery.study.training.device import check_device, pick_device
from network_surgery.study.training.trainer import steps_per_epoch

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output is silent at verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000000",  # nothing of Tune's is restored, so nothing needs to be saved
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Listener(Protocol):
    """Hears what happens on the driver. A cell's name is unique in its stage."""

    def started(self, cell: Cell) -> None: ...

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None: ...

    def ended(self, cell: Cell, result: dict[str, Any]) -> None: ...


@contextlib.contextmanager
def cluster(settings: Settings, narrate: Callable[[str], None] = lambda words: None) -> Iterator[dict[str, float]]:
    """Ray for the time of a ``with`` block: the cluster at ``settings.address`` or, as Ray does, at ``RAY_ADDRESS`` or
    started on this machine by ``ray start``; else one of our own, which is stopped at the end. Yields its resources.

    ``narrate`` is given a line about it.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    import ray

    # What goes wrong in a trial, or on the way to MLflow, is reported in a sentence, not by a traceback.
    for name in ("ray.tune", "ray.air", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    ours = not ray.is_initialized()
    if ours:
        narrate(f"joining Ray at {settings.address}" if settings.address else "starting Ray")
        _reach(settings.address)
        try:
            ray.init(settings.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise StudyError(f"there is no Ray cluster at {settings.address!r}: {first_line(error)}") from None
            if "AF_UNIX" in str(error):
                raise StudyError(
                    f"the temporary directory {tempfile.gettempdir()} has a longer path than sockets may have; set "
                    "TMPDIR or RAY_TMPDIR to a shorter one, such as /tmp"
                ) from None
            raise
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise StudyError(f"there is no Ray cluster at {settings.address!r}: {reason}") from None
    try:
        yield ray.cluster_resources()
    finally:
        if ours:
            ray.shutdown()


def _reach(address: str | None) -> None:
    """Raises StudyError where nothing answers at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or address is None or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise StudyError(
            f"there is no Ray cluster at {address} ({error}); give HOST:PORT of its head, or auto"
        ) from None


def run_cells(
    source: Source, task: Task, settings: Settings, resources: dict[str, float], out: Path,
    listeners: Sequence[Listener], known: Sequence[Record] = (), keep: Sequence[int] = (),
    spare: Sequence[int] = (),
) -> bool:  # fmt: skip
    """Runs every cell of a source, none of them twice: ``known``, ``keep`` and ``spare`` as in ``study.search.once``.

    Returns False where Ctrl-C ended it early; raises StudyError where nothing fits.
    """
    from ray import tune

    from network_surgery.study.search.trial import shipped, trial

    share = trial_resources(settings, resources)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(settings.generation)  # else one waits for a process at a time
    per_epoch = steps_per_epoch(len(task.train), settings.batch_size, settings.accumulate)
    once = Once(source, settings, per_epoch, out, known, keep, spare)
    broken = _Broken()
    adaptors = _adaptors(once, listeners, lambda cell: checkpoint_of(cell, settings, out), broken)
    searcher, scheduler, callback = adaptors
    # No trial takes a GPU by itself that it did not ask Ray for.
    where = settings if "gpu" in share or settings.device != "auto" else replace(settings, device="cpu")
    function = tune.with_parameters(
        trial, given=shipped(task, settings), settings=where, folder=str(out), start=starting.load(settings, task)
    )
    with tempfile.TemporaryDirectory(prefix="network-surgery-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(function, share),
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=scheduler, num_samples=-1, reuse_actors=True, metric="report", mode="max"
            ),
            run_config=tune.RunConfig(
                name="cells", storage_path=scratch, callbacks=[callback], verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )  # fmt: skip
        tuner.fit()
    broken.say()
    if source.finished:
        forget(out)
    return source.finished


def forget(out: Path) -> None:
    """Removes what a driver that was killed has left of the checkpoints that cells keep for each other."""
    for path in checkpoints_of(out).glob("*-epoch-*.pt"):
        discard(path)


def trial_resources(settings: Settings, resources: dict[str, float]) -> dict[str, float]:
    """What one trial asks of the cluster. Raises StudyError where no trial could ever start."""
    gpus = 0.0 if settings.device == "cpu" or not resources.get("GPU") else settings.gpus_per_trial
    check_device(settings.device)
    if not resources.get("GPU"):
        pick_device(settings.device)  # one that Ray does not count, such as mps
    if settings.cpus_per_trial > resources.get("CPU", 0):
        raise StudyError(
            f"cpus_per_trial is {settings.cpus_per_trial:g}, but this Ray cluster has {resources.get('CPU', 0):g} CPUs"
        )
    if gpus > resources.get("GPU", 0):
        raise StudyError(f"gpus_per_trial is {gpus:g}, but this Ray cluster has {resources['GPU']:g} GPUs")
    return {"cpu": settings.cpus_per_trial} | ({"gpu": gpus} if gpus else {})


class _Broken:
    """What went wrong on the driver, such as a full disk: the first error ends the stage.

    Tune by itself would take it for the trial's, and go on.
    """

    error: Exception | None = None

    def guard(self, otherwise: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Lets a method return ``otherwise`` from the first error on."""

        def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def guarded(*arguments: Any, **named: Any) -> Any:
                if self.error is None:
                    try:
                        return method(*arguments, **named)
                    except Exception as error:  # raised again when Tune has ended
                        self.error = error
                return otherwise

            return guarded

        return wrap

    def say(self) -> None:
        """Raises the first error; that of a database as a StudyError."""
        if self.error is None:
            return
        if type(self.error).__module__.partition(".")[0] in ("optuna", "sqlalchemy", "sqlite3"):
            reason = first_line(self.error.__cause__ or self.error)
            raise StudyError(
                f"Optuna's storage failed ({reason}); what has ended is kept, so go on with surgery resume"
            ) from self.error
        raise self.error


def _adaptors(
    source: Once, listeners: Sequence[Listener], checkpoint: Callable[[Cell], Path], broken: _Broken
) -> tuple[Any, Any, Any]:
    """The source as Tune's searcher and scheduler, the listeners as its callback; all see a trial by Tune's id of it.

    ``checkpoint`` says where a cell keeps its checkpoint: a trial that is stopped cannot remove its own.
    """
    from ray.tune import Callback
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    cells: dict[str, Cell] = {}
    ended: set[str] = set()

    def end(trial: Any, outcome: dict[str, Any]) -> None:
        if trial.trial_id in ended:  # Ray runs a trial again whose process is lost after it has reported its outcome
            return
        ended.add(trial.trial_id)
        cell = cells[trial.trial_id]
        for listener in listeners:  # the ledger first: what it holds is never run again
            listener.ended(cell, outcome)
        source.tell(cell, outcome)
        copy()

    def copy() -> bool:
        """Ends the cells whose outcome another's training has given; whether there were any."""
        cell = None
        for cell, outcome in source.copies():
            for listener in listeners:
                listener.started(cell)
            for record in reports(outcome):
                for listener in listeners:
                    listener.epoch(cell, record)
                source.epoch(cell, record)  # it is not stopped: there is nothing to save
            for listener in listeners:
                listener.ended(cell, outcome)
            source.tell(cell, outcome)
        return cell is not None

    class Unsaved:
        """Tune pickles what it is given to restore from it later, which we never do."""

        def __reduce__(self) -> Any:
            return (dict, ())

    class Ask(Unsaved, Searcher):
        @broken.guard(Searcher.FINISHED)
        def suggest(self, trial_id: str) -> Any:
            if source.finished:
                return Searcher.FINISHED
            cell = source.next()
            while copy() and cell is None:
                cell = source.next()
            if cell is None:
                return Searcher.FINISHED if source.finished else None
            cells[trial_id] = cell
            return {"cell": json.dumps(asdict(cell))}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """Everything is reported by the others, which also hear of trials that end by an error."""

        def save(self, checkpoint_path: str) -> None: ...

        def restore(self, checkpoint_path: str) -> None: ...

    class GoOn(Unsaved, FIFOScheduler):
        """Hears every result, since Tune asks its scheduler before it tells its callbacks."""

        @broken.guard(TrialScheduler.STOP)
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            cell, report = cells[trial.trial_id], json.loads(result["report"])
            if result["kind"] == "outcome":
                end(trial, report)  # and the trial ends by itself
                return TrialScheduler.CONTINUE
            for listener in listeners:
                listener.epoch(cell, report)
            if source.epoch(cell, report):
                return TrialScheduler.CONTINUE
            end(trial, stopped(report))
            remove(checkpoint(cell))
            return TrialScheduler.STOP

    class Hear(Unsaved, Callback):
        @broken.guard(None)
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            for listener in listeners:
                listener.started(cells[trial.trial_id])

        @broken.guard(None)
        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            error = trial.get_error()
            reason = str(getattr(error, "cause", None) or error or "the trial's process was lost")
            end(trial, {"failure": reason.strip().splitlines()[-1], "lost": True})

    return Ask(metric="report", mode="max"), GoOn(), Hear()
