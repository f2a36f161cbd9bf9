"""The workers of a trial that several processes train (``workers_per_trial``): this one is the first, or is started.

A trial reserves a bundle of resources for each worker, packed on as few nodes as hold them. Tune runs the trial in the
first one: it does what any trial does, and starts the others as tasks of Ray in the other bundles. All of them follow
``run`` (``study.training.ranks``), connected by torch's process group: gloo on CPUs, on GPUs what torch has for them.
Where one fails, all end, and the reason is that of the worker which did not end for the others' sake. A lost worker
makes the trial a lost one, which Ray and ``resume`` run again.

Why not Ray Train's ``TorchTrainer``: of Ray 2.60 it makes a placement group of its own for its workers, beside that of
the trial that starts it (``WorkerGroup._create_placement_group``), under a controller of its own. A study decides by
the trial's group which nodes are avoided, how many trials run at once, and that ``cpus_per_trial`` is all that a trial
takes. Trials that hold their own resources while they wait for a second group can wait for each other for ever. So
the bundles are the trial's, and torch connects the processes as ``TorchTrainer`` would have it do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search.preflight import examine
from network_surgery.study.search.travel import place
from network_surgery.study.store.folder import network_of
from network_surgery.study.task import Sets, Task, build
from network_surgery.study.task.start import Start
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.device import pick_device
from network_surgery.study.training.failure import describe_lost, failure
from network_surgery.study.training.ranks import ALONE, Ranks, is_of_others
from network_surgery.study.training.run import run

#: Seconds until all workers must have met, and after which one that waits for another in training gives up.
MEETING, PATIENCE = 300.0, 3600.0
#: Seconds in which workers end, once one of them has.
ENDING = 15.0
#: What this process has put into Ray's store for its workers, by what it was sent.
_PUT: dict[str, Any] = {}


class Failed(Exception):
    """Another worker has failed; ``outcome`` says why, as ``study.training.failure`` does, or who refuses to train."""

    def __init__(self, outcome: dict[str, Any]) -> None:
        super().__init__(outcome.get("failure", ""))
        self.outcome = outcome


@contextlib.contextmanager
def together(
    cell: Cell, given: Task | Sets | None, settings: Settings, device: torch.device, folder: Path, start: Start | None,
    marker: str, checked: Collection[str],
) -> Iterator[Ranks]:  # fmt: skip
    """The workers of this trial for the time of a ``with`` block, in which this one trains as the first of them.

    The arguments are those of ``trial``.

    Raises:
        Failed: another worker has failed, and this one with it.
    """
    if settings.workers_per_trial == 1:
        yield ALONE
        return
    import ray

    if marker not in _PUT:
        _PUT.clear()
        _PUT[marker] = ray.put((given, settings, start))
    size, host = settings.workers_per_trial, ray.util.get_node_ip_address()
    store = dist.TCPStore(host, 0, size, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=MEETING))
    others = _start(size, cell, _PUT[marker], str(folder), marker, frozenset(checked), host, store.port)
    try:
        _meet(store, others)
        with _joined(Ranks(0, size), store, host, device) as ranks:
            yield ranks
            ray.wait(others, num_returns=len(others), timeout=ENDING)  # so that their processes can be used again
    except Exception as error:
        if isinstance(error, Failed):
            raise
        reasons = _reasons(others)
        if is_of_others(error) or any("refused" in each for each in reasons):
            raise Failed(
                reasons[0] if reasons else describe_lost("the connection to another worker was lost")
            ) from error
        raise
    finally:
        for other in others:
            ray.cancel(other, force=True)


def _start(size: int, *arguments: Any) -> list[Any]:
    """Starts the other workers, each in its bundle of this trial's resources."""
    import ray
    from ray.util.placement_group import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = get_current_placement_group()
    assert group is not None  # Tune has made one for the trial
    # A process with a GPU ends with its task, so that no memory stays taken; Ray uses others again.
    remote = ray.remote(max_retries=0)(_work)
    return [
        remote.options(
            num_cpus=group.bundle_specs[number].get("CPU", 0), num_gpus=group.bundle_specs[number].get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
        ).remote(number, size, *arguments)
        for number in range(1, size)
    ]  # fmt: skip


def _work(
    number: int, size: int, cell: Cell, package: Any, folder: str, marker: str, checked: Collection[str], host: str,
    port: int,
) -> dict[str, Any] | None:  # fmt: skip
    """What another worker does; returns why it failed, if it did."""
    import ray

    given, settings, start = package
    node = ray.get_runtime_context().get_node_id()
    if node not in checked and (reason := examine(given, settings, start)):
        return {"refused": {"node": node, "reason": reason}}
    torch.set_num_threads(max(1, int(settings.cpus_per_trial)))
    try:
        device = pick_device(settings.device, granted=bool(ray.get_gpu_ids()))
        task = given if isinstance(given, Task) else build(settings, given)
        with contextlib.ExitStack() as stack:
            teacher = None
            if cell.teacher:
                here, mirror = stack.enter_context(place(Path(folder), marker))
                teacher = network_of(cell.teacher, here)
                if mirror is not None:
                    mirror.bring([teacher.relative_to(here).as_posix()])
            store = dist.TCPStore(host, port, size, timeout=timedelta(seconds=MEETING))
            store.set(f"worker {number}", "here")
            own = ray.util.get_node_ip_address()
            ranks = stack.enter_context(_joined(Ranks(number, size), store, own, device))
            run(cell, task, settings, device, start=start, teacher=teacher, ranks=ranks)
    except (Exception, SystemExit) as error:  # anyone's code may fail in any way, or end the program
        return failure(error) | ({"of others": True} if is_of_others(error) else {})
    return None


def _meet(store: dist.TCPStore, others: Sequence[Any]) -> None:
    """Waits until all workers are there. Raises Failed where one has failed before."""
    import ray

    end = time.monotonic() + MEETING
    names = [f"worker {number}" for number in range(1, len(others) + 1)]
    while not store.check(names):
        if ray.wait([*others], timeout=0.2)[0] and (reasons := _reasons(others, 0.0)):
            raise Failed(reasons[0])
        if time.monotonic() > end:
            raise Failed(describe_lost(f"the workers of this trial did not meet within {MEETING:.0f} s"))


@contextlib.contextmanager
def _joined(ranks: Ranks, store: dist.TCPStore, host: str, device: torch.device) -> Iterator[Ranks]:
    """This process as one of the ranks, for the time of a ``with`` block."""
    backend = "gloo"
    if device.type != "cpu":
        known = dist.Backend.default_device_backend_map.get(device.type)
        if known is None:
            raise StudyError(f"workers_per_trial is {ranks.size}, but torch connects no devices of type {device.type}")
        backend = f"cpu:gloo,{device.type}:{known}"
    interface = _interface(host)
    if interface is not None:  # else gloo takes that of the machine's name, which may be the loopback
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    dist.init_process_group(
        backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=timedelta(seconds=PATIENCE)
    )
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def _interface(host: str) -> str | None:
    """The network interface that has this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family == socket.AF_INET and each.address == host for each in addresses):
            return name
    return None


def _reasons(others: Sequence[Any], patience: float = ENDING) -> list[dict[str, Any]]:
    """Why workers have failed: first those that failed by themselves; one that was lost has its reason from Ray."""
    import ray

    ended = ray.wait(list(others), num_returns=len(others), timeout=patience)[0]
    found = []
    for other in ended:
        try:
            outcome = ray.get(other)
        except Exception as error:  # its process was lost, or Ray could not start it
            outcome = describe_lost(str(getattr(error, "cause", None) or error))
        if outcome is not None and not outcome.get("of others"):
            found.append(outcome)
    return sorted(found, key=lambda outcome: "lost" in outcome)
