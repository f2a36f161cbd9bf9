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
import math
import os
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from network_surgery.ops.errors import first_line
from network_surgery.study import interruption
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError, near
from network_surgery.study.scratch import scratch, sweep
from network_surgery.study.search.nodes import Node, Nodes, Share, slots
from network_surgery.study.search.once import Once
from network_surgery.study.search.replay import reports
from network_surgery.study.search.shipping import shipped
from network_surgery.study.search.sources import Source
from network_surgery.study.search.stopping import stopped
from network_surgery.study.search.travel import MARKER, Marker
from network_surgery.study.store.folder import Record, checkpoint_of, checkpoints_of, stack_of
from network_surgery.study.task import Task
from network_surgery.study.task import start as starting
from network_surgery.study.training import watch
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.checkpoint import discard, remove
from network_surgery.study.training.device import check_device, pick_device
from network_surgery.study.training.failure import lost
from network_surgery.study.training.trainer import steps_per_epoch

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output is silent at verbose=0
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000000",  # nothing of Tune's is restored, so nothing needs to be saved
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
#: How the resource of Ray begins that says which type of GPU a node has.
ACCELERATOR = "accelerator_type:"


#: Seconds that processes have to end by themselves.
GRACE = 2.0
#: How often a cell is tried again whose process is lost.
RETRIES = 2


class Listener(Protocol):
    """Hears what happens on the driver. A cell's name is unique in its stage."""

    def started(self, cell: Cell) -> None: ...

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None: ...

    def ended(self, cell: Cell, result: dict[str, Any]) -> None: ...


@contextlib.contextmanager
def cluster(settings: Settings, narrate: Callable[[str], None] = lambda words: None) -> Iterator[Nodes]:
    """Ray for the time of a ``with`` block: the cluster at ``settings.address`` or, as Ray does, at ``RAY_ADDRESS`` or
    started on this machine by ``ray start``; else one of our own, which is stopped at the end. Yields its nodes.

    ``narrate`` is given a line about it, and one about each node that is avoided.
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
        sweep()
    with scratch(LONGEST_PLACE) if ours and _alone(settings.address) else contextlib.nullcontext() as place:
        _before.append({*psutil.Process().children(recursive=True)} if ours else None)
        try:
            if ours:
                _init(settings.address, place)
            yield Nodes(narrate)
        finally:
            leave()
            _before.pop()


#: The most characters of Ray's folder: it adds up to 66 to the names of its sockets, of which Linux allows 107.
LONGEST_PLACE = 40


def _alone(address: str | None) -> bool:
    """Whether Ray will be started by us, not joined, and nobody else says where its files go."""
    current = os.path.join(tempfile.gettempdir(), "ray", "ray_current_cluster")  # what ``ray start`` writes
    return address is None and not {"RAY_ADDRESS", "RAY_TMPDIR"} & os.environ.keys() and not os.path.exists(current)


def _init(address: str | None, place: Path | None) -> None:
    """Starts or joins Ray, which writes its files to ``place``; signals stay with those who handle them."""
    import ray
    from ray._private import worker

    # It prints what befalls its processes to standard output, which is for the answer, whatever ``log_to_driver`` says.
    worker.print_to_stdstream = lambda *_, **__: None
    more: dict[str, Any] = {} if place is None or len(str(place)) > LONGEST_PLACE else {"_temp_dir": str(place)}
    try:
        with _without_stack():
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **more)
    except (ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise StudyError(f"there is no Ray cluster at {address!r}: {reason}") from None


@contextlib.contextmanager
def _without_stack() -> Iterator[None]:
    """Gives signals back that Ray takes in a ``with`` block: its handler of SIGTERM prints a stack and aborts."""
    handling = interruption.current()
    if handling is None:
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        handling.again()
        if hasattr(signal, "alarm"):
            signal.alarm(0)  # by which that handler aborts
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


#: For each open ``cluster``: the processes that this one had before it started or joined Ray; None: Ray was there.
_before: list[set[psutil.Process] | None] = []


def leave() -> None:
    """Leaves or ends the Ray that ``cluster`` joined or started, if it did: none of its processes is left."""
    before = _before[-1] if _before else None
    if before is None:
        return
    import ray

    started = [each for each in psutil.Process().children(recursive=True) if each not in before]
    try:
        ray.shutdown()
    finally:
        for each in psutil.wait_procs([each for each in started if _is_rays(each)], timeout=GRACE)[1]:
            with contextlib.suppress(psutil.Error):
                each.kill()


def _is_rays(process: psutil.Process) -> bool:
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return False
    return "ray::" in words or f"{os.sep}ray{os.sep}" in words


def _stop_softly(over: threading.Event) -> bool:
    """Lets Tune end after its current step, as it does when it is sent SIGUSR1; whether it listens."""
    tunes = signal.getsignal(signal.SIGUSR1) if hasattr(signal, "SIGUSR1") else None
    if not callable(tunes):
        return False
    over.set()

    def kill() -> None:
        for each in psutil.Process().children(recursive=True):  # Tune would wait for what they are at
            with contextlib.suppress(psutil.Error):
                if "ray::ImplicitFunc" in " ".join(each.cmdline()):
                    each.kill()

    timer = threading.Timer(GRACE, kill)
    timer.daemon = True
    timer.start()
    tunes(signal.SIGUSR1, None)
    return True


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
    source: Source, task: Task, settings: Settings, nodes: Nodes, out: Path,
    listeners: Sequence[Listener], known: Sequence[Record] = (), keep: Sequence[int] = (),
    spare: Sequence[int] = (),
) -> bool:  # fmt: skip
    """Runs every cell of a source, none of them twice: ``known``, ``keep`` and ``spare`` as in ``study.search.once``.

    Returns False where Ctrl-C ended it early; raises StudyError where nothing fits, or no node can train.
    """
    from ray import tune

    from network_surgery.study.search.trial import trial

    share = trial_resources(settings, nodes)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(10**6)  # how many there are is up to _Room
    per_epoch = steps_per_epoch(len(task.train), settings.batch_size, settings.accumulate)
    once = Once(source, settings, per_epoch, out, known, keep, spare)
    marker = Marker(out, nodes)
    room = _Room(nodes, share, settings.generation, marker)
    over = threading.Event()
    pace = watch.Pace(settings.hang_factor, watch.LEAST)
    broken = _Broken()
    searcher, scheduler, callback = _adaptors(once, listeners, settings, out, pace, over, room, broken)
    # No trial takes a GPU by itself that it did not ask Ray for.
    where = settings if "GPU" in share or settings.device != "auto" else replace(settings, device="cpu")
    function = tune.with_parameters(
        trial, given=shipped(task, settings), settings=where, folder=str(out), start=starting.load(settings, task),
        marker=marker.name, checked=frozenset(nodes.checked),
    )  # fmt: skip
    handling = interruption.current()
    if handling is not None:
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        if hasattr(signal, "SIGUSR1"):  # of a stage before, Tune's handler would hear nothing any more
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    one, alone = room.request(False), room.request(True)
    with marker, scratch() as place:
        tuner = tune.Tuner(
            tune.with_resources(function, lambda config: alone if config["alone"] else one),
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=scheduler, num_samples=-1, reuse_actors=True, metric="report", mode="max"
            ),
            run_config=tune.RunConfig(
                name="cells", storage_path=str(place), callbacks=[callback], verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )  # fmt: skip
        with contextlib.nullcontext() if handling is None else handling.softly(lambda: _stop_softly(over)):
            tuner.fit()
    broken.say()
    room.check()
    if source.finished:
        forget(out)
    return source.finished and not over.is_set()


def forget(out: Path) -> None:
    """Removes what a driver that was killed has left of the checkpoints that cells keep for each other."""
    for path in (*checkpoints_of(out).glob("*-epoch-*.pt"), *out.glob(f"{MARKER}*")):
        discard(path)
    with contextlib.suppress(OSError):  # there are some of those that hung or crashed
        stack_of(Cell("original", 0), out).parent.rmdir()


def trial_resources(settings: Settings, nodes: Iterable[Node]) -> dict[str, float]:
    """What one training run asks of its node, by Ray's names. Raises StudyError where no node could ever give that."""
    nodes = list(nodes)
    gpus = settings.gpus_per_trial if settings.device != "cpu" and _most(nodes, "GPU") else 0.0
    check_device(settings.device)
    if not _most(nodes, "GPU"):
        pick_device(settings.device)  # one that Ray does not count, such as mps
    share = {"CPU": settings.cpus_per_trial} | ({"GPU": gpus} if gpus else {})
    if settings.cpus_per_trial > (most := _most(nodes, "CPU")):
        where = "this Ray cluster has" if len(nodes) == 1 else "no node of this Ray cluster has more than"
        raise StudyError(f"cpus_per_trial is {settings.cpus_per_trial:g}, but {where} {most:g} CPUs")
    if settings.accelerator is not None:
        known = [kind.removeprefix(ACCELERATOR) for node in nodes for kind in node.resources if ACCELERATOR in kind]
        if settings.accelerator not in known:
            types = f"only {', '.join(sorted({*known}))}" if known else "no type of GPU that Ray knows"
            raise StudyError(
                f"accelerator is {settings.accelerator!r}, but this Ray cluster has {types}"
                f"{near(settings.accelerator, known)}"
            )
        share[f"{ACCELERATOR}{settings.accelerator}"] = 0.001  # so little that the GPUs alone decide
    if not slots(nodes, share):
        parts = " and ".join(f"{amount:g} {kind}s" for kind, amount in share.items() if amount >= 0.01)
        raise StudyError(
            f"a training run takes {parts}, but no node of this Ray cluster has all of that together; lower "
            "cpus_per_trial or gpus_per_trial"
        )
    return share


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


def _most(nodes: Iterable[Node], kind: str) -> float:
    """How much of a resource the node has that has most of it."""
    return max((node.resources.get(kind, 0.0) for node in nodes), default=0.0)


@dataclass
class _Room:
    """How many cells Tune may have at once, and where: on the nodes as they are at the time."""

    nodes: Nodes
    share: Share
    ahead: int
    marker: Marker
    none: bool = False

    def __call__(self) -> int:
        """The number of cells that may be under way now."""
        self.none = not list(self.nodes)
        self.marker.serve()
        return self.nodes.room(self.share, self.ahead)

    @property
    def whole(self) -> dict[str, float]:
        """What a trial takes that is to have its device for itself: a whole GPU, else all CPUs of a node."""
        if "GPU" in self.share:
            return {**self.share, "GPU": float(math.ceil(self.share["GPU"]))}
        return {**self.share, "CPU": max(self.share["CPU"], _most(self.nodes, "CPU"))}

    def request(self, alone: bool) -> Any:
        """What Tune asks of Ray for one trial that starts now."""
        from ray import tune

        selector = self.nodes.selector
        labels: dict[str, Any] = {"bundle_label_selector": [selector]} if selector else {}
        return tune.PlacementGroupFactory([self.whole if alone else dict(self.share)], **labels)

    def check(self) -> None:
        """Raises StudyError where every node is avoided."""
        if self.none:
            reasons = "; ".join(dict.fromkeys(self.nodes.avoided.values()))
            raise StudyError(f"no node of this Ray cluster can train: {reasons}")


def _adaptors(
    source: Once, listeners: Sequence[Listener], settings: Settings, out: Path, pace: watch.Pace,
    over: threading.Event, room: _Room, broken: _Broken,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """The source as Tune's searcher and scheduler, the listeners as its callback; all see a trial by Tune's id of it.

    ``pace`` learns how long a training may take. ``over``: from when on processes are lost because we end them.
    One whose memory ran out is tried again alone, where it has more of it then.
    """
    from ray.tune import Callback
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    cells: dict[str, Cell] = {}
    ended: set[str] = set()
    refused: deque[Cell] = deque()
    crowded: deque[Cell] = deque()  # their memory ran out, and they are tried again alone
    alone: set[str] = set()

    def end(trial: Any, outcome: dict[str, Any]) -> None:
        if trial.trial_id in ended:  # its process was lost after it had reported its outcome
            return
        ended.add(trial.trial_id)
        cell = cells[trial.trial_id]
        pace.ended(cell.name)
        if outcome.get("memory") and room.whole != room.share and cell.name not in alone:
            alone.add(cell.name)
            crowded.append(cell)
            return
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
            if source.finished or room.none:
                return Searcher.FINISHED
            if len(cells) - len(ended) >= room():
                return None
            again = refused or crowded
            cell = again.popleft() if again else source.next()
            while copy() and cell is None:
                cell = source.next()
            if cell is None:
                return Searcher.FINISHED if source.finished else None
            cells[trial_id] = cell
            stack_of(cell, out).unlink(missing_ok=True)
            limits = json.dumps(asdict(pace.limits))
            return {"cell": json.dumps(asdict(cell)), "limits": limits, "alone": cell.name in alone}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            """Everything is reported by the others, which also hear of trials that end by an error."""

        def save(self, checkpoint_path: str) -> None: ...

        def restore(self, checkpoint_path: str) -> None: ...

    class GoOn(Unsaved, FIFOScheduler):
        """Hears every result, since Tune asks its scheduler before it calls its callbacks."""

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            super().on_trial_add(tune_controller, trial)
            if room.nodes.avoided:
                trial.update_resources(room.request(trial.config["alone"]))

        @broken.guard(TrialScheduler.STOP)
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if trial.trial_id in ended:  # Ray runs it again: its process was lost after it had reported its outcome
                return TrialScheduler.STOP
            cell, report = cells[trial.trial_id], json.loads(result["report"])
            if result["kind"] == "refused":  # by a node that cannot train it: another one shall
                ended.add(trial.trial_id)
                pace.ended(cell.name)
                refused.append(cell)
                room.nodes.avoid(report["node"], report["reason"])
                return TrialScheduler.STOP
            if result["kind"] == "outcome":
                end(trial, report)  # and the trial ends by itself
                return TrialScheduler.CONTINUE
            if report["epoch"] > (cell.fork or {}).get("epoch", 0):  # the others were trained by another cell
                pace.epoch(cell.name)
            for listener in listeners:
                listener.epoch(cell, report)
            if source.epoch(cell, report):
                return TrialScheduler.CONTINUE
            end(trial, stopped(report))
            remove(checkpoint_of(cell, settings, out))  # it cannot remove its own
            return TrialScheduler.STOP

    class Hear(Unsaved, Callback):
        @broken.guard(None)
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            if trial.trial_id in ended:
                return
            pace.started(cells[trial.trial_id].name)
            for listener in listeners:
                listener.started(cells[trial.trial_id])

        @broken.guard(None)
        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            if over.is_set():
                return
            error = trial.get_error()
            reason = str(getattr(error, "cause", None) or error or "")
            stack = stack_of(cells[trial.trial_id], out)
            written = stack.read_text(errors="replace") if stack.is_file() else None
            end(trial, lost(reason, written))

    return Ask(metric="report", mode="max"), GoOn(), Hear()
