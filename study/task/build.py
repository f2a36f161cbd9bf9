"""The task of a study's settings."""

from __future__ import annotations

import inspect

from network_surgery.ops.errors import first_line
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.references import PYTHON, theirs
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Sets
from network_surgery.study.task.task import Task

#: Tasks that come with the product, by the name that the setting ``task`` has for them.
TASKS: dict[str, type] = {"images": ImageTask}


def task_class(name: str) -> type[Task]:
    """The class of a task by its name in ``TASKS``, or by ``MODULE:CLASS`` or ``FILE.py:CLASS``.

    Raises:
        StudyError: there is no such task, or it is no subclass of ``Task``.
    """
    if name in TASKS:
        return TASKS[name]
    if ":" not in name:
        raise StudyError(f"there is no task {name!r}; give {' or '.join(TASKS)}, or MODULE:CLASS or FILE.py:CLASS")
    made = theirs(name, "task")
    made = type(made) if isinstance(made, Task) else made  # what Python gave may be an instance
    if not inspect.isclass(made) or not issubclass(made, Task):
        raise StudyError(f"task {name!r} must be a subclass of network_surgery.study.task.Task, not {made!r:.80}")
    return made


def build(settings: Settings, sets: Sets | None = None) -> Task:
    """The task of these settings. ``sets``: its samples, where they have been loaded already.

    A class of anyone's is made without arguments, or with the settings if it takes one.

    Raises:
        StudyError: there is no such task, or it cannot be made.
    """
    made = task_class(settings.task)
    if settings.task.startswith(f"{PYTHON}:") and isinstance(given := theirs(settings.task, "task"), Task):
        return given
    if settings.task in TASKS:
        return made.of(settings)  # type: ignore[attr-defined]
    try:
        task = made(settings) if inspect.signature(made).parameters else made()  # type: ignore[call-arg]
    except StudyError:
        raise
    except Exception as error:  # anyone's class may fail in any way
        raise StudyError(f"task {settings.task!r} cannot be made: {first_line(error)}") from error
    if sets is not None:
        task.__dict__["sets"] = sets
    return task
