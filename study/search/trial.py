"""A trial as Ray Tune runs it: one cell, trained in a worker, reported to the driver epoch by epoch.

Workers are reused, so everything that a training run leaves behind (random state, threads, the device's cache) is set
anew. Whatever a training run raises ends as a result with its reason (``study.training.failure``), not as an exception:
the study goes on, and Ray tries nothing again that would fail again. Only a lost process is tried again there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search.preflight import examine
from network_surgery.study.search.travel import Mirror, place
from network_surgery.study.search.workers import Failed, together
from network_surgery.study.store.folder import checkpoint_of, checkpoints_of, network_of, stack_of
from network_surgery.study.task import Sets, Task, build
from network_surgery.study.task.start import Start
from network_surgery.study.training import checkpoint, fork
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.device import device_name, pick_device
from network_surgery.study.training.failure import describe_lost, failure
from network_surgery.study.training.run import run
from network_surgery.study.training.watch import Limits, Watch

#: Reasons why this process cannot train, by what it was sent; it is asked once.
_EXAMINED: dict[str, str | None] = {}


def trial(
    config: dict[str, Any],
    given: Task | Sets | None,
    settings: Settings,
    folder: str,
    start: Start | None = None,
    marker: str = "",
    checked: Collection[str] = (),
) -> None:
    """Runs ``config["cell"]`` (JSON), within ``config["limits"]`` of a ``Watch`` (JSON). ``given``: see
    ``study.search.shipping``; ``folder``: the study's; ``start``: what training starts from, read once for all of them;
    ``marker``: see ``study.search.travel``.

    In the folder it keeps a checkpoint while it runs, those that others begin from, and the final network of a
    comparison; the outcome's ``network`` says where there. On a node that has come after the preflight (``checked``
    are those that passed it) and cannot train, it says so instead: then the cell runs elsewhere.
    """
    node = ray.get_runtime_context().get_node_id()
    if node not in checked and marker not in _EXAMINED:
        _EXAMINED[marker] = examine(given, settings, start)
    if reason := _EXAMINED.get(marker):
        tune.report({"kind": "refused", "report": json.dumps({"node": node, "reason": reason})})
        return
    with place(Path(folder), marker) as (here, mirror):
        cell, limits = Cell(**json.loads(config["cell"])), Limits(**json.loads(config["limits"]))
        _train(cell, limits, given, settings, here, start, mirror, marker, checked)


def _train(
    cell: Cell,
    limits: Limits,
    given: Task | Sets | None,
    settings: Settings,
    folder: Path,
    start: Start | None,
    mirror: Mirror | None,
    marker: str,
    checked: Collection[str],
) -> None:
    """Trains a cell, together with other workers if it has some; ``folder``: the study's, or a ``mirror`` of it."""
    device = torch.device("cpu")
    torch.set_num_threads(max(1, int(settings.cpus_per_trial)))
    saved = checkpoint_of(cell, settings, folder)
    network = network_of(cell, folder) if cell.test else None
    teacher = network_of(cell.teacher, folder) if cell.teacher else None
    over, stack = False, stack_of(cell, folder)
    if mirror is not None:
        needed = [saved, *fork.find_needed(cell, settings, checkpoints_of(folder)), *([teacher] if teacher else [])]
        mirror.bring(f"{path.relative_to(folder).with_suffix('').as_posix()}.*" for path in needed)

    def tell(epoch: dict[str, Any]) -> None:
        nonlocal over
        if mirror is not None:  # first, since others may begin from it as soon as this epoch is reported
            mirror.send()
        try:
            tune.report({"kind": "epoch", "report": json.dumps(epoch)})
        except SystemExit:  # so Tune ends a trial that is stopped early
            over = True
            raise

    if stack.exists() and (written := stack.read_text(errors="replace")).startswith("Timeout"):
        outcome = describe_lost("", written)  # the try before hung; another one would keep the place from others
        with contextlib.suppress(StudyError):
            device = pick_device(settings.device, granted=bool(ray.get_gpu_ids()))
    else:
        try:
            with Watch(stack, limits) as watch:
                device = pick_device(settings.device, granted=bool(ray.get_gpu_ids()))
                if device.type != "cpu":
                    torch.get_device_module(device).empty_cache()
                task = given if isinstance(given, Task) else build(settings, given)
                kept = checkpoints_of(folder)
                with together(cell, given, settings, device, folder, start, marker, checked) as ranks:
                    outcome = run(
                        cell, task, settings, device, tell, saved, network, start, kept, teacher, [watch], ranks=ranks,
                        written=(lambda: None) if mirror is None else mirror.send,
                    )  # fmt: skip
                if network is not None:
                    outcome["network"] = network.relative_to(folder).as_posix()
        except Failed as failed:  # another worker
            outcome = failed.outcome
            if "refused" in outcome:
                tune.report({"kind": "refused", "report": json.dumps(outcome["refused"])})
                return
        except torch.AcceleratorError:  # the device refuses whatever this process asks of it from now on
            raise
        except (Exception, SystemExit) as error:  # anyone's code may fail in any way, or end the program
            if over:
                raise
            outcome = failure(error)
    outcome["device"] = device_name(device)
    if mirror is not None:
        mirror.send()
    tune.report({"kind": "outcome", "report": json.dumps(outcome)})
    if not outcome.get("lost"):  # then it goes on from there, when it is run again
        checkpoint.remove(saved)
    if mirror is not None:
        mirror.send()
