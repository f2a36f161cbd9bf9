"""A trial as Ray Tune runs it: one cell, trained in a worker, reported to the driver epoch by epoch.

Workers are reused, so everything that a training leaves behind (random state, threads, the device's cache) is set anew.
Whatever a training raises ends as a result with its reason (``study.training.failure``), not as an exception: the study
goes on, and Ray tries nothing again that would fail again. Only a lost process is tried again there.
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

from network_surgery.ops.errors import first_line, pass_on_memory
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.references import PYTHON
from network_surgery.study.store.folder import checkpoint_of, checkpoints_of, network_of, stack_of
from network_surgery.study.task import Samples, Sets, Task, build
from network_surgery.study.task.start import Start
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.device import device_name, pick_device
from network_surgery.study.training.failure import failure, lost
from network_surgery.study.training.run import run
from network_surgery.study.training.watch import Limits, Watch


def trial(
    config: dict[str, Any], given: Task | Sets | None, settings: Settings, folder: str, start: Start | None = None
) -> None:
    """Runs ``config["cell"]`` (JSON), within ``config["limits"]`` of a ``Watch`` (JSON). ``given``: see ``shipped``;
    ``folder``: the study's, for all nodes; ``start``: what training starts from, read once for all of them.

    There it keeps a checkpoint while it runs, those that others begin from, and the final network of a comparison; the
    outcome's ``network`` says where in the folder.
    """
    cell = Cell(**json.loads(config["cell"]))
    device = torch.device("cpu")
    torch.set_num_threads(max(1, int(settings.cpus_per_trial)))
    saved = checkpoint_of(cell, settings, Path(folder))
    network = network_of(cell, Path(folder)) if cell.test else None
    teacher = network_of(cell.teacher, Path(folder)) if cell.teacher else None
    over, stack = False, stack_of(cell, Path(folder))

    def tell(epoch: dict[str, Any]) -> None:
        nonlocal over
        try:
            tune.report({"kind": "epoch", "report": json.dumps(epoch)})
        except SystemExit:  # so Tune ends a trial that is stopped early
            over = True
            raise

    if stack.exists() and (written := stack.read_text(errors="replace")).startswith("Timeout"):
        outcome = lost("", written)  # the try before hung; another one would keep the place from others
    else:
        try:
            with Watch(stack, Limits(**json.loads(config["limits"]))) as watch:
                device = pick_device(settings.device, granted=bool(ray.get_gpu_ids()))
                if device.type != "cpu":
                    torch.get_device_module(device).empty_cache()
                task = given if isinstance(given, Task) else build(settings, given)
                outcome = run(
                    cell, task, settings, device, tell, saved, network, start, checkpoints_of(Path(folder)), teacher,
                    [watch],
                )  # fmt: skip
                if network is not None:
                    outcome["network"] = network.relative_to(folder).as_posix()
        except torch.AcceleratorError:  # the device refuses whatever this process asks of it from now on
            raise
        except (Exception, SystemExit) as error:  # anyone's code may fail in any way, or end the program
            if over:
                raise
            outcome = failure(error)
    outcome["device"] = device_name(device)
    tune.report({"kind": "outcome", "report": json.dumps(outcome)})
    if not outcome.get("lost"):  # then it goes on from there, when it is run again
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
