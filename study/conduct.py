"""Conducts a study from its settings to its report: search, comparison, closing table; each stage what is missing."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from network_surgery.ops import Schedule, SurgeryError
from network_surgery.ops.errors import explained
from network_surgery.ops.references import resolve
from network_surgery.search_spaces import find_space
from network_surgery.study.arms import FROM_THE_END
from network_surgery.study.closing import show
from network_surgery.study.config import Settings
from network_surgery.study.counts import format_count
from network_surgery.study.errors import PageError, StudyError
from network_surgery.study.evidence import answer, comparison, figures, front, moments, report
from network_surgery.study.evidence.drawing import Drawing
from network_surgery.study.evidence.feasible import budget_note, feasibility, trials
from network_surgery.study.evidence.importance import importance
from network_surgery.study.evidence.left_out import left_out
from network_surgery.study.evidence.naming import arm_title
from network_surgery.study.evidence.state import epochs, state
from network_surgery.study.progress import Display
from network_surgery.study.recipe.learning_rate import check_after, check_lengths
from network_surgery.study.recipe.optimization import Optimization
from network_surgery.study.references import theirs
from network_surgery.study.search import budget as limits
from network_surgery.study.search import cluster, comparing, objectives, preflight, searching, tracking, tuner
from network_surgery.study.search.nodes import Nodes, trial_resources
from network_surgery.study.search.sampled import Sampled, listed_cells
from network_surgery.study.search.sources import Source
from network_surgery.study.search.stages import Listener, Stage
from network_surgery.study.search.storage import open_storage
from network_surgery.study.search.tracking.tracker import Tracker
from network_surgery.study.store import copies
from network_surgery.study.store.copies import Copy
from network_surgery.study.store.folder import Folder, write_whole
from network_surgery.study.store.ledger import SEARCHING
from network_surgery.study.store.words import names, short
from network_surgery.study.task import Task, build
from network_surgery.study.task import start as starting
from network_surgery.study.task.fingerprint import Fingerprint
from network_surgery.study.terminal import say, say_path
from network_surgery.study.training import fork
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.examine import examine
from network_surgery.study.training.foresight import foresee
from network_surgery.study.training.trainer import steps_per_epoch

__all__ = ["begin", "check", "check_data", "compare", "proceed", "show", "write_report"]


@contextlib.contextmanager
def begin(
    settings: Settings, out: Path, preset: str | None = None, console: Console | None = None
) -> Iterator[tuple[Folder, Task]]:
    """Loads the data, builds the network once, joins the cluster for the time of a ``with`` block, makes the folder.

    ``preset``: the name that the settings were started from, for the record. ``console`` shows what goes on.

    Raises:
        StudyError, SurgeryError: whatever a user can put right; nothing has been written then.
    """
    settings, task, layers, original = check(settings, _narrate(console))
    Folder.check(out)
    if settings.storage is not None:
        open_storage(settings.storage, out)
    if settings.copy_to is not None:
        copies.check(settings.copy_to)
    with cluster.joined(settings, _narrate(console)) as nodes:
        settings = searching.settle_sampling(settings, nodes)
        data = task.fingerprint()
        known = None if data is None else data.to_data()
        yield Folder.make(out, settings, layers, preset, task.metric, task.unit, known, original), task


def check(
    settings: Settings, tell: Callable[[str], None] = lambda words: None
) -> tuple[Settings, Task, dict[str, int], Any]:
    """All that is known to be right or wrong before anything is written or any process started.

    ``tell`` is given a line where a listed schedule has a step that may never be done (``study.training.foresight``).
    Returns the settings as they are kept, the task, the network's layers with their units, and its size (see
    ``study.training.examine``). Raises as ``begin``.
    """
    tracking.check_server(settings.tracking_uri)
    if settings.page is not None:
        _page(settings.page)
    if not settings.schedules and ":" not in settings.space:
        find_space(settings.space)
    task = build(settings)
    settings = starting.settle(settings, task)
    layers, original, least, stacks = examine(settings, task)
    objectives.check(settings, task.metric)
    limits.check(settings, task.metric, original, least)
    per_epoch = steps_per_epoch(len(task.train), settings.batch_size, settings.accumulate)
    listed = listed_cells(settings, layers, original)

    def check_schedule(schedule: Schedule) -> None:
        schedule.check(layers, settings.epochs, per_epoch, stacks)
        check_after(Optimization.of(settings).curve, schedule)
        check_lengths(schedule, settings.epochs, per_epoch)

    for cell in listed:
        check_schedule(Schedule.from_data(cell.schedule))
    foresee(settings, task, tell)
    if not listed:
        Sampled.check(settings, layers, original, check_schedule)
    return settings, task, layers, original


def check_data(folder: Folder, task: Task) -> None:
    """Raises StudyError where the data of a task are not those that the study began with."""
    began, now = folder.data, task.fingerprint()
    if began is not None and now is not None and now.to_data() != began:
        raise StudyError(
            f"the data of this study have changed: it began with {Fingerprint(**began)}, and now there are {now}; "
            "bring back the old ones, or begin another study"
        )


def proceed(folder: Folder, task: Task, console: Console) -> bool:
    """Runs what is missing of the search and the comparison, then the report. False where Ctrl-C ended it early.

    Raises:
        StudyError: the search has no schedule that could be compared.
    """
    with _running(folder, task, console) as running:
        parts = [] if searching.listed_schedules(folder) else [running.search]
        return running.run(*parts, running.comparison)


def compare(folder: Folder, task: Task, console: Console, top: int | None, seeds: int | None) -> bool:
    """Runs what is missing of a comparison of the ``top`` schedules with this number of ``seeds``, then the report.

    Raises:
        StudyError: the search has no schedule that could be compared.
    """
    with folder.locked():
        given = {name: value for name, value in {"top": top, "seeds": seeds}.items() if value is not None}
        wanted = folder.changed(**given)
        return _compare_again(wanted, task, console)


def _compare_again(wanted: Folder, task: Task, console: Console) -> bool:
    with _running(wanted, task, console) as running:
        trials = [record for record in wanted.records("search") if not record.lost]
        ended = len(trials) >= wanted.settings.trials and not searching.listed_schedules(wanted)
        race = [running.race] if ended and comparing.race_of(wanted).left else []
        return running.run(*race, running.comparison)


#: Seconds that ``track`` waits for a server that does not answer.
TRACKING_PATIENCE = 30.0


def track(folder: Folder, task: Task) -> str:
    """Sends to MLflow what has not arrived there; a sentence that says so.

    Raises:
        StudyError: another process runs the study, or the server does not answer.
    """
    uri = folder.settings.tracking_uri
    place = uri or str(folder.mlflow)
    with folder.locked():
        tracking.check_server(uri, folder.path)
        with Tracker(folder, task, TRACKING_PATIENCE, load=False) as tracker:
            if write_report(folder, tracker)["state"]["now"] != "finished":
                tracker.interrupted()
    if tracker.lost:
        raise StudyError(f"{tracker.lost} records did not reach {place} ({tracker.reason}); try again when it answers")
    return f"{place} has all of {format_count(len(folder.records()), 'training run')}"


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Python looks for garbage in cycles again and again while a long ledger is read; there is none in it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def write_report(folder: Folder, tracker: Tracker | None = None) -> dict[str, Any]:
    """``results.json``, the figures, ``report.html`` and a page of the settings' own (``page``), from what is stored.

    Also while another process runs the study.

    Raises:
        PageError: that page cannot be made; the rest is written.
    """
    now = state(folder)
    if 0 < now["comparison"]["of"] <= now["comparison"]["ended"]:
        folder.looked()
    rows, verdicts = comparison.summarize(folder)
    budget = comparing.budget_of(folder)
    ended = [{"trial": r.cell.trial, **r.result} for r in folder.records("search") if r.finished]
    within = [trial for trial in ended if budget.feasible(trial)] or ended
    results = folder.write(
        rows, verdicts, left_out(folder), front=front.front(within, folder.settings.objective, folder.metric),
        state=now | epochs(folder), importance=importance(folder), moments=moments.moments(folder),
        budget=feasibility(folder), trials=trials(folder), answer=answer.answer(folder, rows, verdicts),
    )  # fmt: skip
    drawings = figures.draw(results)
    try:
        if folder.page is not None:
            page, more = _own_page(folder.settings, results)
            drawings |= more
            write_whole(folder.page, page)
    finally:  # the report does not depend on it
        files = figures.save(drawings, folder.figures)
        report.write(results, folder.report, drawings)
        if tracker is not None:
            tracker.summary(results, [*files, folder.report, folder.results])
    return results


def _page(reference: str) -> Callable[..., Any]:
    """The function that makes a page. Raises StudyError, SurgeryError where there is none."""
    file = reference.rpartition(":")[0].endswith(".py")
    function: Callable[..., Any] = theirs(reference, "page") if file else resolve(reference, "page")
    return function


def _own_page(settings: Settings, results: dict[str, Any]) -> tuple[str, dict[str, Drawing]]:
    """The page and the drawings that the function of the settings (``page``) makes of ``results``.

    Raises:
        PageError: it fails, or returns something else.
    """
    failed = f"could not be made of {len(results['comparison']['cells'])} training runs"
    try:
        with explained(f"the report is written, but the page {settings.page} {failed}"):
            made = _page(str(settings.page))(results)
            if not isinstance(made, tuple) or len(made) != 2:
                raise TypeError(f"it returned a {type(made).__name__}, but it must return (text, drawings)")
            return str(made[0]), dict(made[1])
    except SurgeryError as error:
        raise PageError(str(error)) from error


@dataclass(frozen=True)
class _Part:
    """A stage and its name; ``title`` is what people call a cell."""

    name: str
    source: Source
    title: Callable[[Cell], str]
    keep: Sequence[int] = ()
    spare: Sequence[int] = ()


@dataclass
class _Running:
    """Where a study's cells are run, and who listens."""

    folder: Folder
    task: Task
    nodes: Nodes
    tracker: Tracker
    copy: Copy
    console: Console

    def run(self, *parts: Callable[[], _Part]) -> bool:
        """Runs what is missing of the parts, each of which is made when the one before has ended.

        Returns False where Ctrl-C ended it early.
        """
        with contextlib.closing(self._stages(parts)) as stages:
            whole = tuner.run_stages(stages, self.task, self.folder.settings, self.nodes, self.folder.path)
        if not whole:
            cluster.leave()
            self.tracker.interrupted()
        return whole

    def _stages(self, parts: Iterable[Callable[[], _Part]]) -> Generator[Stage, None, None]:
        for make in parts:
            part = make()
            if part.source.total == 0:
                ended = [r for r in self.folder.records() if r.compared == (part.name == "comparison")]
                failed = sum(record.failed for record in ended)
                say(self.console, f"{part.name}: nothing is missing{f', {failed} failed' if failed else ''}")
                continue
            with Display(
                self.console, part.name, part.source, self.folder.metric, name=part.title,
                ranks=part.name == "search", feasible=self._feasible,
            ) as display:  # fmt: skip
                listeners: list[Listener] = [self.folder, self.copy, self.tracker, display]
                yield Stage(part.source, listeners, self.folder.records(), part.keep, part.spare)
            self.tracker.stage_ended()

    def _feasible(self, cell: Cell, result: dict[str, Any]) -> bool:
        return cell.arm not in SEARCHING or comparing.budget_of(self.folder, [cell.seed]).feasible(result)

    def search(self) -> _Part:
        """Trials, and the race of the best of them."""
        settings = self.folder.settings
        share = trial_resources(settings, self.nodes)
        if settings.sampling == "asynchronous":
            say(
                self.console,
                "search: trials are sampled whenever a slot is free, so another run may try others; "
                "--sampling generations repeats",
            )
        per_epoch = steps_per_epoch(len(self.task.train), settings.batch_size, settings.accumulate)
        room = lambda: self.nodes.room(share, settings.generation, settings.workers_per_trial)  # noqa: E731
        source = searching.search(self.folder, per_epoch, room, _narrate(self.console))
        return _Part("search", source, _trial, spare=fork.evenly(settings.epochs))

    def race(self) -> _Part:
        """The race alone, for more schedules than the search had compared."""
        return _Part("race", searching.race(self.folder), _trial)

    def comparison(self) -> _Part:
        """The best schedules of the search in all their arms; raises StudyError where there are none."""
        folder = self.folder
        trials = folder.records("search")
        chosen = searching.listed_schedules(folder) or [record.cell for record in comparing.find_chosen(folder)]
        if not chosen:
            failures = [record.result["failure"] for record in trials if record.failed]
            raise StudyError(
                f"no trial of {len(trials)} ended with a changed network, so there is nothing to compare"
                + (f"; the first failure: {failures[0]}" if failures else "")
            )
        if trials and len(chosen) < folder.settings.top:
            schedules = format_count(len(chosen), "schedule")
            say(
                self.console,
                f"comparison: the search has only {schedules} to compare, {folder.settings.top} are asked for",
            )
        if sentence := feasibility(folder).get("sentence"):
            say(self.console, f"comparison: {sentence}")
        cells = comparing.cells(chosen, folder.settings, [record for record in folder.records() if record.compared])
        letters = names(cell.trial for cell in chosen if cell.trial is not None)
        for cell in chosen:
            say(self.console, f"  {letters.get(cell.trial or 0, '')}  {short(cell.schedule)}", style="dim")

        def name(cell: Cell) -> str:
            letter = "" if cell.trial is None else letters.get(cell.trial, f"(trial {cell.trial})")
            return f"{arm_title(cell.arm, letter)}, seed {cell.seed}"

        ends = set(FROM_THE_END) & set(folder.settings.arms)
        return _Part("comparison", cells, name, (folder.settings.epochs,) if ends else ())


@contextlib.contextmanager
def _running(folder: Folder, task: Task, console: Console) -> Iterator[_Running]:
    """The cluster and the tracker for the time of a ``with`` block; however it ends, the report is written."""
    for note in (starting.note(folder.settings, task), budget_note(folder)):
        if note:
            say(console, note)
    with (
        folder.locked(),
        cluster.joined(folder.settings, _narrate(console)) as nodes,
        Copy(folder.path, folder.settings.copy_to) as copy,  # ends last: it also copies what the tracker writes
        Tracker(folder, task) as tracker,
    ):
        try:
            share = trial_resources(folder.settings, nodes)
            if len(nodes.alive()) > 1:
                say(console, f"checking {format_count(len(nodes.alive()), 'node')}")
                for report in preflight.preflight(nodes, folder.settings, task, folder.path, share):
                    if report.notes:
                        say(console, f"  {report.sentence}", style="dim")
            else:  # this machine has just built the task
                nodes.checked.update(node.id for node in nodes)
            yield _Running(folder, task, nodes, tracker, copy, console)
        except BaseException:
            cluster.leave()  # its processes have nothing to do while the report is written
            with contextlib.suppress(OSError, StudyError, SurgeryError):  # the first error is shown
                write_report(folder, tracker)
            raise
        write_report(folder, tracker)
    _say_failures(folder, console)
    if copy.reason:
        words = f"The copy at {folder.settings.copy_to} is not complete ({copy.reason}); resume sends the rest."
        say(console, words, style="yellow")
    if tracker.lost:
        words = f"{tracker.lost} records did not reach MLflow ({tracker.reason or 'it does not answer'}); the study's "
        words += f"folder is complete, and surgery track {folder.path} sends them later"
        say(console, words, style="yellow")


def _say_failures(folder: Folder, console: Console) -> None:
    """How failed training runs are run again."""
    failed = [record for record in folder.records() if record.failed]
    lost, resume = sum(record.lost for record in failed), f"surgery resume {folder.path}"
    if lost:
        words = f"{lost} failed for a reason that may go otherwise; run again by: {resume}"
        say_path(console, words, style="yellow")
    if lost < len(failed):
        words = f"{len(failed) - lost} failed; once the reason is mended, run again by: {resume} --failed"
        say_path(console, words, style="yellow")


def _trial(cell: Cell) -> str:
    """What people call a training run of the search: a trial, its repeat on another seed, or the original."""
    if cell.trial is None:
        return f"{arm_title(cell.arm)}, seed {cell.seed}"
    return f"{short(cell.schedule)} (trial {cell.trial}{f', seed {cell.seed}' * (cell.arm != 'search')})"


def _narrate(console: Console | None) -> Callable[[str], None]:
    return lambda words: None if console is None else say(console, words)
