"""A study from Python: the command line is a thin layer over these functions.

Everything that a user can put right is raised as ``StudyError``, one sentence. What has ended is kept in the study's
folder at once, so a study that was interrupted goes on with ``resume``.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from network_surgery.ops import Schedule, Step, SurgeryError
from network_surgery.study import conduct
from network_surgery.study.compose import PRESETS, compose
from network_surgery.study.config import Settings
from network_surgery.study.counts import format_count
from network_surgery.study.errors import StudyError, explain
from network_surgery.study.references import PYTHON, lent, name_of
from network_surgery.study.result import Result
from network_surgery.study.search.shipping import check_shipped
from network_surgery.study.search.space import check_importable
from network_surgery.study.store.copies import at_hand
from network_surgery.study.store.folder import Folder
from network_surgery.study.task import Task, build
from network_surgery.study.terminal import say, say_path

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from network_surgery.search_spaces import Suggest

__all__ = ["Result", "compare", "open", "report", "resume", "run", "track"]

Steps = Schedule | Sequence[Step] | Sequence[Mapping[str, Any]]


def run(
    task: Task | type[Task] | str | None = None,
    *,
    schedules: Sequence[Steps] | None = None,
    space: Suggest | str | None = None,
    trials: int | None = None,
    seeds: int | None = None,
    out: Path | str | None = None,
    preset: str | None = None,
    config: Path | str | None = None,
    sampler: BaseSampler | type[BaseSampler] | str | None = None,
    pruner: BasePruner | str | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Result:
    """Searches schedules of operations in ``space``, or takes ``schedules``, and compares them with starting over.

    ``task``: what is trained, a ``Task``, its class or its name; by default the images of the setting ``data``. Each of
    ``schedules`` is an ``ops.Schedule``, a list of its steps, or of steps as plain data; then nothing is searched.
    ``space``: a function ``(trial, layers, epochs) -> schedule`` or its name. ``sampler`` and ``pruner``: Optuna's, or
    their names. ``out``: the study's folder, by default a new one under ``runs``; a study that is there goes on, and
    only ``trials``, ``top`` and ``seeds`` may be others. Further ``settings`` by name overlay those of the ``preset``
    and of the YAML file ``config``.

    It runs on the Ray that this process is connected to, on the cluster at ``address``, or on one of its own, which is
    stopped at the end.

    Raises:
        StudyError: whatever a user can put right; before the first training run nothing has been written.
        KeyboardInterrupt: it was interrupted; go on with ``resume``.
    """
    named, objects = _name_objects(task=task, space=space, sampler=sampler, pruner=pruner)
    flags = named | {"trials": trials, "seeds": seeds} | settings
    if schedules is not None:
        if isinstance(schedules, (Schedule, Step, str, bytes)) or not isinstance(schedules, Iterable):
            raise StudyError(
                f"schedules is a {type(schedules).__name__}; give a list of schedules: schedules=[Schedule(…)]"
            )
        flags["schedules"] = [_steps(steps) for steps in schedules]
    with _one_kind_of_error(), lent(objects):
        composed = compose(preset, _path(config, "config") if config is not None else None, flags, "study.run")
        return start(composed, out, preset or PRESETS.get(composed.task), _console(quiet))


def resume(
    study: Path | str,
    *,
    task: Task | type[Task] | None = None,
    space: Suggest | None = None,
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
    trials: int | None = None,
    failed: bool = False,
    quiet: bool = False,
    console: Console | None = None,
) -> Result:
    """Goes on with the study in this folder; nothing that has ended is trained again. A URI names its copy
    (``copy_to``): then a folder is made of that under ``runs``.

    What failed for a reason that may go otherwise (its process was lost, it hung, memory ran out) is run again, and
    with ``failed`` whatever has failed. ``trials``: the search goes on to this number. ``task``, ``space``,
    ``sampler``, ``pruner``: what ``run`` was given, where that was an object that no text can name. ``console``: where
    what goes on is shown.

    Raises:
        StudyError: there is no such study, its data have changed, or what it was given from Python is missing.
        KeyboardInterrupt: it was interrupted again.
    """
    _path(study, "the study")
    with (
        _one_kind_of_error(),
        _opened(at_hand(study), task=task, space=space, sampler=sampler, pruner=pruner) as folder,
    ):
        made = build(folder.settings)
        conduct.check_data(folder, made)
        with folder.locked():
            if trials is not None:
                folder = _with_trials(folder, trials)
            if failed:
                folder.run_again()
            return carry_on(folder, made, console or _console(quiet))


def compare(
    study: Path | str,
    *,
    top: int | None = None,
    seeds: int | None = None,
    task: Task | type[Task] | None = None,
    space: Suggest | None = None,
    quiet: bool = False,
    console: Console | None = None,
) -> Result:
    """Compares the ``top`` schedules of a study with this number of ``seeds``; runs that are there already count.

    ``console``: where what goes on is shown.

    Raises:
        StudyError: there is no such study, its data have changed, or there is no schedule that could be compared.
        KeyboardInterrupt: it was interrupted; what has ended is kept.
    """
    with _one_kind_of_error(), _opened(study, task=task, space=space) as folder:
        made = build(folder.settings)
        conduct.check_data(folder, made)
        return _whole(conduct.compare(folder, made, console or _console(quiet), top, seeds), folder, made)


def track(study: Path | str, *, task: Task | type[Task] | None = None) -> str:
    """Sends to MLflow what a study has stored and has not arrived there; a sentence that says so.

    A server was away, or the study was killed. Nothing is sent twice. ``task``: what ``run`` was given, where that was
    an object that no text can name.

    Raises:
        StudyError: there is no such study, another process runs it, or the server does not answer.
    """
    with _one_kind_of_error(), _opened(study, task=task) as folder:
        made = build(folder.settings)
        return conduct.track(folder, made)


def report(study: Path | str) -> Result:
    """Writes results.json, figures and report.html anew from what a study has stored so far.

    Raises:
        StudyError: there is no such study.
    """
    with _one_kind_of_error():
        folder = Folder.open(_path(study, "the study"))
        folder.check_places()
        conduct.write_report(folder)
        return Result(folder)


def open(study: Path | str, *, task: Task | type[Task] | None = None) -> Result:
    """What the study in this folder has stored. ``task``: what ``run`` was given, for ``Result.network``.

    Raises:
        StudyError: there is no such study.
    """
    with _one_kind_of_error(), _opened(study, task=task) as folder:
        return Result(folder, build(folder.settings) if task is not None else None)


def start(settings: Settings, out: Path | str | None, preset: str | None, console: Console) -> Result:
    """Runs a study of these settings, or goes on with the one in this folder. Raises as ``run``."""
    place = _path(out, "out") if out is not None else new_place(preset or settings.task.rpartition(":")[2])
    if (place / "study.json").exists():
        folder = Folder.open(place)
        with folder.locked():
            return carry_on(_go_on(folder, settings), build(settings), console)
    check_importable(step for schedule in settings.schedules for step in schedule)
    if settings.task.startswith(f"{PYTHON}:"):
        check_shipped(build(settings))
    with conduct.begin(settings, place, preset, console) as (folder, task):
        sets = f"{len(task.train):,} + {len(task.validation):,} + {len(task.test):,} {task.unit}"
        classes = f", {len(task.classes)} classes" * bool(task.classes)
        count = len(folder.layers)
        layers = f"{format_count(count, 'layer')} to operate on"
        say(console, f"{settings.subject}: {sets} (train, validation, test){classes}; {layers}")
        if task.note:
            say(console, f"{settings.data}: {task.note}")
        say_path(console, f"results go to {place}")
        return carry_on(folder, task, console)


def carry_on(folder: Folder, task: Task, console: Console) -> Result:
    """Runs what is missing of a study. Raises as ``resume``."""
    return _whole(conduct.proceed(folder, task, console), folder, task)


def _whole(whole: bool, folder: Folder, task: Task) -> Result:
    if not whole:
        ended = len(Folder.open(folder.path).records())
        raise KeyboardInterrupt(f"{ended} training runs are kept; go on with study.resume({str(folder.path)!r})")
    return Result(Folder.open(folder.path), task)


@contextlib.contextmanager
def _opened(study: Path | str, **given: Any) -> Iterator[Folder]:
    """The study in a folder, with the objects that it was given from Python, for the time of a ``with`` block."""
    folder = Folder.open(_path(study, "the study"))
    named, objects = _name_objects(**given)
    for name, reference in named.items():
        if reference is not None and reference != getattr(folder.settings, name):
            raise StudyError(
                f"the {name} of this study is {getattr(folder.settings, name)}, not {reference}; "
                f"give that one, or leave out {name}"
            )
    with lent(objects):
        yield folder


def _with_trials(folder: Folder, trials: int) -> Folder:
    if not folder.settings.searches:
        raise StudyError("this study searches nothing, since its schedules are listed, so it has no trials to add")
    if trials < (there := len(folder.records("search"))):
        raise StudyError(f"trials is {trials}, but {there} trials of this study have ended; give {there} or more")
    return folder.changed(trials=trials)


#: Settings that a study may have other values of when it goes on.
GROWING = ("trials", "top", "seeds")


def _go_on(folder: Folder, settings: Settings) -> Folder:
    """The study with as many trials, schedules and seeds as these settings have.

    Raises:
        StudyError: it has other settings, or more trials already.
    """
    there, wanted = folder.settings.to_data(), settings.to_data()
    wanted["start_digest"] = wanted["start_digest"] or there["start_digest"]  # a study writes it
    if wanted["sampling"] == "auto":  # a study settles it where it begins
        wanted["sampling"] = there["sampling"]
    if others := [name for name in there if name not in GROWING and there[name] != wanted[name]]:
        name, more = others[0], f" (and {', '.join(others[1:])})" if others[1:] else ""
        raise StudyError(
            f"{folder.path} holds a study whose {name} is {there[name]!r}, not {wanted[name]!r}{more}; "
            f"only {', '.join(GROWING[:-1])} and {GROWING[-1]} may change, so choose another --out"
        )
    if settings.searches and settings.trials != folder.settings.trials:
        folder = _with_trials(folder, settings.trials)
    return folder.changed(top=settings.top, seeds=settings.seeds)


def _path(value: Any, what: str) -> Path:
    """Raises StudyError where it names no file or folder."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in str(value):
        raise StudyError(f"{what} is {value!r:.60}; give the path of a {'file' if what == 'config' else 'folder'}")
    return Path(value)


def _name_objects(**given: Any) -> tuple[dict[str, str | None], dict[str, Any]]:
    """What settings call these objects (None: not given), and those that only this process knows."""
    named: dict[str, str | None] = {}
    objects: dict[str, Any] = {}
    for kind, value in given.items():
        if value is None or isinstance(value, str):
            named[kind] = value
            continue
        module = getattr(value, "__module__", "") or ""
        if inspect.isclass(value) and module.startswith("optuna."):
            named[kind] = value.__name__
            continue
        named[kind] = reference = name_of(value)
        if reference.startswith(f"{PYTHON}:"):
            objects[reference] = value
    return named, objects


def _steps(schedule: Steps) -> list[dict[str, Any]]:
    if isinstance(schedule, Schedule):
        return schedule.to_data()
    if isinstance(schedule, Step):
        raise StudyError("a schedule is a Step; give ops.Schedule((step, …)), or a list of its steps")
    if isinstance(schedule, (str, bytes)) or not isinstance(schedule, Iterable):
        raise StudyError(f"a schedule is {schedule!r:.60}; give ops.Schedule((step, …)), or a list of its steps")
    steps = list(schedule)
    return Schedule(tuple(steps)).to_data() if all(isinstance(step, Step) for step in steps) else steps  # type: ignore


def new_place(name: str) -> Path:
    """A folder under ``runs`` that is not there yet."""
    name = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    places = (Path("runs") / f"{name}{end}" for end in ("", *(f"-{number}" for number in range(2, 1000))))
    return next(place for place in places if not place.exists())


def _console(quiet: bool) -> Console:
    return Console(quiet=quiet)


@contextlib.contextmanager
def _one_kind_of_error() -> Iterator[None]:
    try:
        yield
    except SurgeryError as error:
        raise StudyError(str(error)) from error
    except OSError as error:  # of the system: a full disk, a folder that cannot be written
        raise StudyError(explain(error)) from error
