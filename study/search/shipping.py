"""What a trial in another process needs of a task that is loaded, and whether it can be sent there."""

from __future__ import annotations

import copy
import importlib.util
import sys

from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.references import PYTHON
from network_surgery.study.task import Samples, Sets, Task


def ship(task: Task, settings: Settings) -> Task | Sets | None:
    """What a trial needs of a task that is loaded: ours, and one that Python gave, as it is; of anyone's the samples
    where they are in memory.

    Ray shares the arrays in it between processes without copying. Anyone's class is made again where the trial runs,
    since it need not be in a module there that can be imported by the name that it has here.
    """
    if type(task).__module__.startswith("network_surgery.") or settings.task.startswith(f"{PYTHON}:"):
        return task
    sets = task.sets
    return sets if all(isinstance(part, Samples) for part in (sets.train, sets.validation, sets.test)) else None


def check_shipped(task: Task) -> None:
    """Raises StudyError where a task that Python gave cannot be sent to other processes.

    A class that those could not import is sent with its code, as are those of a notebook.
    """
    from ray import cloudpickle

    module = type(task).__module__
    if module != "__main__" and importlib.util.find_spec(module) is None:
        cloudpickle.register_pickle_by_value(sys.modules[module])
    try:
        bare = copy.copy(task)
        bare.__dict__.pop("sets", None)  # the samples may be large
        cloudpickle.dumps(bare)
    except StudyError:
        raise
    except Exception as error:  # whatever somebody's class makes of it
        pass_on_memory(error)
        raise StudyError(
            f"the task {type(task).__name__} cannot be sent to the processes that train ({first_line(error)}); keep in "
            "it what can be pickled, and make the rest in its methods"
        ) from error
