"""A trial as Ray Tune runs it: one cell, trained in a worker, reported to the driver epoch by epoch.

Workers are reused, so everything that a training leaves behind (random state, threads, the device's cache) is set anew.
What a user can put right and what diverges ends as a result with its reason, not as an exception: the study goes on.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from network_surgery.ops import SurgeryError
from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.study.config import Settings
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.references import PYTHON
from network_surgery.study.store.folder import checkpoint_of, checkpoints_of, network_of
from network_surgery.study.task import Samples, Sets, Task, build
from network_surgery.study.task.start import Start
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.device import device_name, pick_device
from network_surgery.study.training.run import run


def trial(
    config: dict[str, Any], given: Task | Sets | None, settings: Settings, folder: str, start: Start | None = None
) -> None:
    """Runs ``config["cell"]`` (JSON). ``given``: see ``shipped``; ``folder``: the study's, for all nodes; ``start``:
    what training starts from, read once for all of them.

    There it keeps a checkpoint while it runs, those that others begin from, and the final network of a comparison; the
    outcome's ``network`` says where in the folder.
    """
    cell = Cell(**json.loads(config["cell"]))
    device = pick_device(settings.device, granted=bool(ray.get_gpu_ids()))
    torch.set_num_threads(max(1, int(settings.cpus_per_trial)))
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
    saved = checkpoint_of(cell, settings, Path(folder))
    network = network_of(cell, Path(folder)) if cell.test else None
    teacher = network_of(cell.teacher, Path(folder)) if cell.teacher else None

    def tell(epoch: dict[str, Any]) -> None:
        tune.report({"kind": "epoch", "report": json.dumps(epoch)})

    try:
        task = given if isinstance(given, Task) else build(settings, given)
        outcome = run(cell, task, settings, device, tell, saved, network, start, checkpoints_of(Path(folder)), teacher)
        if network is not None:
            outcome["network"] = network.relative_to(folder).as_posix()
    except (Diverged, SurgeryError, StudyError, torch.OutOfMemoryError) as error:
        outcome = {"failure": (str(error).splitlines() or [type(error).__name__])[0]}
    outcome["device"] = device_name(device)
    tune.report({"kind": "outcome", "report": json.dumps(outcome)})
    saved.unlink(missing_ok=True)


def shipped(task: Task, settings: Settings) -> Task | Sets | None:
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
