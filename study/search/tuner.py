"""Runs a study's stages as trials of one run of Ray Tune (``trial``: what its workers run, ``cluster``: on what).

Tune asks the stages for cells through a searcher, which ones go on through a scheduler, and their listeners hear of
every start, epoch and end on the driver. A trial that is stopped ends in its process's next report, and the process is
used again. Ray's own checkpoints and restores are not used: a cell keeps its checkpoint under the study's folder, by
what it computes, so that a lost node, a killed driver and Ctrl-C all resume in the same way.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from network_surgery.ops.errors import first_line
from network_surgery.study import interruption
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.scratch import scratch
from network_surgery.study.search.cluster import GRACE
from network_surgery.study.search.nodes import Nodes, Share, most, slots, trial_resources
from network_surgery.study.search.shipping import ship
from network_surgery.study.search.stages import Stage, Stages
from network_surgery.study.search.stopping import stop
from network_surgery.study.search.travel import MARKER, Marker
from network_surgery.study.store.folder import checkpoint_of, checkpoints_of, stack_of
from network_surgery.study.task import Task
from network_surgery.study.task import start as starting
from network_surgery.study.training import watch
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.checkpoint import discard, remove
from network_surgery.study.training.failure import describe_lost
from network_surgery.study.training.trainer import steps_per_epoch

#: How often a cell is tried again whose process is lost.
RETRIES = 2
#: More than any cluster runs at once.
MANY = 10**6


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


def run_stages(stages: Iterable[Stage], task: Task, settings: Settings, nodes: Nodes, out: Path) -> bool:
    """Runs every cell of the stages, one stage after the other (see ``study.search.stages``).

    Returns False where Ctrl-C ended it early; raises StudyError where nothing fits, or no node can train.
    """
    from ray import tune

    from network_surgery.study.search.trial import trial

    per_epoch = steps_per_epoch(len(task.train), settings.batch_size, settings.accumulate)
    source = Stages(stages, settings, per_epoch, out)
    if not source.advance():
        _forget(out)
        return True
    share = trial_resources(settings, nodes)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(MANY)  # how many there are is up to _Room
    marker = Marker(out, nodes)
    room = _Room(nodes, share, settings.generation, marker, settings.workers_per_trial)
    over = threading.Event()
    pace = watch.Pace(settings.hang_factor, watch.LEAST)
    broken = _Broken()
    searcher, scheduler, callback = _adaptors(source, settings, out, pace, over, room, broken)
    # No trial takes a GPU by itself that it did not ask Ray for.
    where = settings if "GPU" in share or settings.device != "auto" else replace(settings, device="cpu")
    function = tune.with_parameters(
        trial, given=ship(task, settings), settings=where, folder=str(out), start=starting.load(settings, task),
        marker=marker.name, checked=frozenset(nodes.checked),
    )  # fmt: skip
    handling = interruption.current()
    if handling is not None:
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        if hasattr(signal, "SIGUSR1"):  # of a run before, Tune's handler would hear nothing any more
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
        _forget(out)
    return source.finished and not over.is_set()


def _forget(out: Path) -> None:
    """Removes what is left of the checkpoints that cells keep for each other, and of a driver that was killed."""
    for path in (*checkpoints_of(out).glob("*-epoch-*.pt"), *out.glob(f"{MARKER}*")):
        discard(path)
    with contextlib.suppress(OSError):  # there are some of those that hung or crashed
        stack_of(Cell("original", 0), out).parent.rmdir()


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


@dataclass
class _Room:
    """How many cells Tune may have at once, and where: on the nodes as they are at the time."""

    nodes: Nodes
    share: Share
    ahead: int
    marker: Marker
    workers: int = 1
    none: bool = False

    def __call__(self) -> int:
        """The number of cells that may be under way now."""
        self.none = self._all_avoided()
        self.marker.serve()
        return self.nodes.room(self.share, self.ahead, self.workers)

    @property
    def whole(self) -> dict[str, float]:
        """What a trial takes that is to have its device for itself: a whole GPU, else all CPUs of a node.

        Of several workers there may not be such a node for each.
        """
        if self.workers > 1:
            return {**self.share}
        if "GPU" in self.share:
            return {**self.share, "GPU": float(math.ceil(self.share["GPU"]))}
        return {**self.share, "CPU": max(self.share["CPU"], most(self.nodes, "CPU"))}

    def request(self, alone: bool) -> Any:
        """What Tune asks of Ray for one trial that starts now."""
        from ray import tune

        selector = self.nodes.selector
        labels: dict[str, Any] = {"bundle_label_selector": [selector] * self.workers} if selector else {}
        one = self.whole if alone else self.share
        return tune.PlacementGroupFactory([dict(one) for _ in range(self.workers)], strategy="PACK", **labels)

    def _all_avoided(self) -> bool:
        """Whether a trial would have room if no node were avoided, and has none: a head need not have any."""
        useful, alive = (slots(nodes, self.share, self.workers) for nodes in (self.nodes, self.nodes.alive()))
        return useful == 0 < alive

    def check(self) -> None:
        """Raises StudyError where every node that could train is avoided."""
        if self.none:
            reasons = "; ".join(dict.fromkeys(self.nodes.avoided.values()))
            raise StudyError(f"no node of this Ray cluster can train: {reasons}")


class _Idle:
    """Workers that wait for the next cell. By itself Tune ends all but one when nothing is pending, as between stages.

    They are kept for as long as all trials ask for the same resources: an idle worker holds its own, which a trial that
    asks for others may wait for.
    """

    def __init__(self) -> None:
        self._cache: Any = None
        self._kept: Any = None  # what they ask for
        self._over = False

    def keep(self, controller: Any, resources: Any) -> None:
        """Keeps the workers, if a trial asks for the same resources as those before it."""
        if self._kept is None and not self._over:
            self._cache, self._kept = getattr(controller, "_actor_cache", None), resources
            self._change("increase_max")
        elif self._kept != resources:
            self.release()

    def release(self) -> None:
        """Leaves them to Tune from now on."""
        if self._kept is not None:
            self._change("decrease_max")
        self._kept, self._over = None, True

    def _change(self, method: str) -> None:
        change = getattr(self._cache, method, None)  # Tune's own: another version of Ray may have it no more
        if change is not None:
            change(self._kept, MANY)


def _adaptors(
    source: Stages, settings: Settings, out: Path, pace: watch.Pace, over: threading.Event, room: _Room, broken: _Broken
) -> tuple[Any, Any, Any]:
    """The stages as Tune's searcher, scheduler and callback; all see a trial by Tune's id of it.

    ``pace`` learns how long a training run may take. ``over``: from when on processes are lost because we end them.
    One whose memory ran out is tried again alone, where it has more of it then.
    """
    from ray.tune import Callback
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    idle = _Idle()
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
        source.ended(cell, outcome)

    class Unsaved:
        """Tune pickles what it is given to restore from it later, which we never do."""

        def __reduce__(self) -> Any:
            return (dict, ())

    class Ask(Unsaved, Searcher):
        @broken.guard(Searcher.FINISHED)
        def suggest(self, trial_id: str) -> Any:
            if not source.advance() or room.none:
                idle.release()
                return Searcher.FINISHED
            if len(cells) - len(ended) >= room():
                return None
            again = refused or crowded
            cell = again.popleft() if again else source.next()
            if cell is None:
                return None  # the next time there is one, or none of any stage
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
            idle.keep(tune_controller, trial.placement_group_factory)

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
            if source.epoch(cell, report):
                return TrialScheduler.CONTINUE
            end(trial, stop(report))
            remove(checkpoint_of(cell, settings, out))  # it cannot remove its own
            return TrialScheduler.STOP

    class Hear(Unsaved, Callback):
        @broken.guard(None)
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            if trial.trial_id in ended:
                return
            pace.started(cells[trial.trial_id].name)
            source.started(cells[trial.trial_id])

        @broken.guard(None)
        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            if over.is_set():
                return
            error = trial.get_error()
            reason = str(getattr(error, "cause", None) or error or "")
            stack = stack_of(cells[trial.trial_id], out)
            written = stack.read_text(errors="replace") if stack.is_file() else None
            end(trial, describe_lost(reason, written))

    return Ask(metric="report", mode="max"), GoOn(), Hear()
