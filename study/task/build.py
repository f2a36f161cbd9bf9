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

AUGMENTATION = ("augment", "cutout", "mix")
#: Settings that decide about data and network before a task does, and the one task that comes with the product and
#: heeds them, if it is one alone.
DATA = (
    "data", "model", "train_images", "validation", "train_on_validation",
    "image_size", "stream", "normalize", "context",
)  # fmt: skip
ONLY = {"image_size": "images", "stream": "images", "normalize": "images", "context": "text"}


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
    given = theirs(settings.task, "task") if settings.task.startswith(f"{PYTHON}:") else None
    takes = settings.task in TASKS or (not isinstance(given, Task) and _takes_settings(made))
    _refuse_ignored(settings, takes or isinstance(given, Task))
    if isinstance(given, Task):  # it stays as it is, and needs neither data nor model, which presets may set
        amount = settings.label_smoothing
        return _smooth(copy.copy(given), amount) if amount else given
    if settings.task in TASKS:
        return _smooth(made.of(settings), settings.label_smoothing)  # type: ignore[attr-defined]
    try:
        task = made(settings) if takes else made()  # type: ignore[call-arg]
    except StudyError:
        raise
    except Exception as error:  # anyone's class may fail in any way
        raise StudyError(f"task {settings.task!r} cannot be made: {first_line(error)}") from error
    if sets is not None:
        task.__dict__["sets"] = sets
    return _smooth(task, settings.label_smoothing)


def _takes_settings(made: type[Task]) -> bool:
    """Whether a class is made with the settings: by a parameter that it must be given, or that is called so."""
    parameters = inspect.signature(made).parameters.values()
    named = [each for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    return any(each.default is each.empty or each.name == "settings" for each in named)


def _smooth(task: Task, amount: float) -> Task:
    """The task with smoothed labels. Raises StudyError where its loss does not smooth them."""
    if amount:
        if not isinstance(task, Classification) or type(task).training_loss is not Classification.training_loss:
            raise StudyError(
                f"label_smoothing is {amount}, but the training loss of {type(task).__name__} is not that of "
                "Classification, which alone smooths labels; set it to 0"
            )
        task.label_smoothing = amount
    return task


def _refuse_ignored(settings: Settings, takes: bool) -> None:
    """Settings that the task would not heed. ``takes``: whether it is made with the settings."""
    for name in (*AUGMENTATION, *DATA):
        if (value := getattr(settings, name)) == getattr(Settings, name):
            continue
        if name in AUGMENTATION and settings.task != "images":
            right = f"it is for task images alone; {settings.task!r} may have a method augment"
        elif not takes:
            right = f"task {settings.task!r} makes its own data and network; it takes the settings if its __init__ does"
        elif settings.task in TASKS and settings.task != ONLY.get(name, settings.task):
            right = f"it is for task {ONLY[name]} alone"
        else:
            continue
        raise StudyError(f"{name} is {value!r}, but {right}")
