"""The task of a study's settings."""

from __future__ import annotations

import copy
import inspect

from network_surgery.ops.errors import first_line
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.references import PYTHON, theirs
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Sets
from network_surgery.study.task.task import Classification, Task
from network_surgery.study.task.text import TextTask

#: Tasks that come with the product, by the name that the setting ``task`` has for them.
TASKS: dict[str, type] = {"images": ImageTask, "text": TextTask}


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

    A class of anyone's is made without arguments, or with the settings if it takes one. An instance that Python gave
    has its own augmentation, as such a class has.

    Raises:
        StudyError: there is no such task, or it cannot be made.
    """
    made = task_class(settings.task)
    if settings.task != "images":
        _refuse_augmentation(settings)
    if settings.task.startswith(f"{PYTHON}:") and isinstance(given := theirs(settings.task, "task"), Task):
        amount = settings.label_smoothing
        return _smoothed(copy.copy(given), amount) if amount else given  # what Python gave stays as it is
    if settings.task in TASKS:
        return _smoothed(made.of(settings), settings.label_smoothing)  # type: ignore[attr-defined]
    try:
        task = made(settings) if inspect.signature(made).parameters else made()  # type: ignore[call-arg]
    except StudyError:
        raise
    except Exception as error:  # anyone's class may fail in any way
        raise StudyError(f"task {settings.task!r} cannot be made: {first_line(error)}") from error
    if sets is not None:
        task.__dict__["sets"] = sets
    return _smoothed(task, settings.label_smoothing)


def _smoothed(task: Task, amount: float) -> Task:
    """The task with smoothed labels. Raises StudyError where its loss does not smooth them."""
    if amount:
        if not isinstance(task, Classification) or type(task).training_loss is not Classification.training_loss:
            raise StudyError(
                f"label_smoothing is {amount}, but the training loss of {type(task).__name__} is not that of "
                "Classification, which alone smooths labels; set it to 0"
            )
        task.label_smoothing = amount
    return task


def _refuse_augmentation(settings: Settings) -> None:
    """Settings that no task but ``images`` heeds: nor does an ``ImageTask`` that Python gave, which has its own."""
    for name, none in (("augment", "none"), ("cutout", 0), ("mix", "none")):
        if (value := getattr(settings, name)) != none:
            raise StudyError(
                f"{name} is {value!r}, but it is for task images alone; {settings.task!r} may have a method augment"
            )
