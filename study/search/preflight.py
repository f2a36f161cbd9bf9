"""Preflight: whether each node of a cluster can train what this process would, before anything is trained there.

A node that cannot is avoided, and its share of the work goes to others. It is *visited* by a task of Ray's that takes
no CPU. That task brings its code along, so that it also runs where the package is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.references import theirs
from network_surgery.study.search.nodes import Node, Nodes
from network_surgery.study.search.shipping import ship
from network_surgery.study.search.travel import Marker, shares
from network_surgery.study.task import Sets, Task, build
from network_surgery.study.task import start as starting
from network_surgery.study.task.samples import Stream
from network_surgery.study.task.start import Start
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.failure import failure
from network_surgery.study.training.run import make_network

#: Seconds until a node must have answered; where a job brings packages, Ray installs them first.
PATIENCE = 300.0
#: Seconds that a GPU may be busy until it is not tried.
GPU_PATIENCE = 60.0
#: So little of a GPU that any that is not wholly taken has it.
SLIVER = 0.01


@dataclass(frozen=True)
class Report:
    """What a visit of a node has shown: why it cannot train (None: it can), and what else should be known of it."""

    node: Node
    title: str
    reason: str | None
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The report in a line."""
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        return f"{self.title}: {self.reason or 'ready'}{notes}"


def preflight(
    nodes: Nodes,
    settings: Settings,
    task: Task | None = None,
    folder: Path | None = None,
    share: dict[str, float] | None = None,
) -> list[Report]:
    """Visits every node at once and avoids those that cannot train (``nodes.avoid``).

    Compared with this process are the versions of Python, Ray and torch, and the package's code. Of a ``task`` the
    network is made and a streamed sample is read. Of a ``folder`` it is seen whether the node shares it. Where Ray
    counts GPUs, one computes. Nodes that a ``share`` does not fit on are left out.

    Raises:
        StudyError: no node can train.
    """
    import ray

    visited = [node for node in nodes if share is None or node.slots(share)]
    package = None if task is None else (ship(task, settings), settings, starting.load(settings, task))
    box = [ray.put(package)]
    with contextlib.nullcontext() if folder is None else Marker(folder, nodes) as marker:
        where = None if marker is None else (str(folder), marker.name)
        visits = {node.id: _send(_visitor(), node, 0.0, versions(), box, where) for node in visited}
        gpus = {
            node.id: _send(_gpu_visitor(), node, SLIVER)
            for node in visited
            if node.resources.get("GPU") and settings.device != "cpu"
        }
        for futures, patience in ((list(visits.values()), PATIENCE), (list(gpus.values()), GPU_PATIENCE)):
            if futures:
                ray.wait(futures, num_returns=len(futures), timeout=patience)
        reports = [_report(nodes, node, visits[node.id], gpus.get(node.id)) for node in visited]
    for report in reports:
        if report.reason is not None:
            nodes.avoid(report.node.id, report.reason)
        else:
            nodes.checked.add(report.node.id)
    if reports and all(report.reason is not None for report in reports):
        raise StudyError(f"no node of this Ray cluster can train: {'; '.join(each.sentence for each in reports)}")
    return reports


def examine(given: Task | Sets | None, settings: Settings, start: Start | None) -> str | None:
    """Why this process cannot train what it was sent, or None. ``given``: as ``shipping.shipped`` makes it."""
    try:
        task = given if isinstance(given, Task) else build(settings, given)
        make_network(Cell("original", settings.seed), task, settings, start)
        if ":" in settings.optimizer:
            theirs(settings.optimizer, "optimizer")
        if isinstance(task.train, Stream):
            task.train.read(torch.arange(1))
    except Exception as error:  # anyone's model or data may fail in any way
        return str(failure(error)["failure"])
    return None


def versions() -> dict[str, str]:
    """What must be equal on all nodes, by what people call it. Builds of one torch for other devices are equal."""
    import ray

    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "Ray": ray.__version__,
        "torch": version("torch").partition("+")[0],
        "network-surgery": _code(),
    }


def _code() -> str:
    """A digest of the package's source."""
    from network_surgery import ops, search_spaces, study

    words = hashlib.sha256()
    for package in (ops, search_spaces, study):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            if not (path.parent / "__init__.py").exists():  # the guide's examples are not installed
                continue
            words.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return words.hexdigest()[:12]


def _visitor() -> Callable[..., tuple[str | None, list[str]]]:
    """What runs on a node. A function inside another one travels with its code."""

    def visit(expected: dict[str, str], box: list[Any], where: tuple[str, str] | None) -> tuple[str | None, list[str]]:
        import ray

        try:
            from network_surgery.study.search import preflight as there
        except ImportError as error:
            return f"the package is not installed there, or is another version ({error})", []
        for name, found in there.versions().items():
            if found != expected[name]:
                return f"it has {name} {found}, and the driver {expected[name]}", []
        package = ray.get(box[0])
        reason = there.examine(*package) if package is not None else None
        return reason, there.about_folder(where)

    return visit


def about_folder(where: tuple[str, str] | None) -> list[str]:
    """What should be known of a study's folder, as this node sees it: (the folder, the driver's marker in it)."""
    if where is None or shares(Path(where[0]), where[1]):
        return []
    return [f"it does not share {where[0]}, so its files travel through Ray"]


def _gpu_visitor() -> Callable[[], str | None]:
    def compute() -> str | None:
        import torch

        if not torch.accelerator.is_available():
            return f"Ray counts a GPU, but torch {torch.__version__} sees none"
        try:
            device = torch.accelerator.current_accelerator()
            values = torch.ones(8, 8, device=device)
            return None if (values @ values).sum().item() == 512 else "its GPU computes wrong numbers"
        except Exception as error:  # a driver's, of any type
            return f"its GPU fails: {str(error).splitlines()[0]}"

    return compute


def _send(function: Callable[..., Any], node: Node, gpus: float, *arguments: Any) -> Any:
    """Runs a function on this very node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here: Any = NodeAffinitySchedulingStrategy(node.id, soft=False)
    remote = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=here)
    return remote(function).remote(*arguments)


def _report(nodes: Nodes, node: Node, visit: Any, gpu: Any) -> Report:
    import ray

    def answer(future: Any, otherwise: Any) -> Any:
        if not ray.wait([future], timeout=0)[0]:
            ray.cancel(future, force=True)
            return otherwise
        try:
            return ray.get(future)
        except Exception as error:  # a node that was lost, or whatever its processes raise
            lines = str(getattr(error, "cause", None) or error).strip().splitlines()
            return (f"a process there fails: {lines[-1] if lines else type(error).__name__}", [])

    reason, notes = answer(visit, (f"it does not answer within {PATIENCE:.0f} s", []))
    if gpu is not None and reason is None:
        outcome = answer(gpu, "busy")
        if outcome == "busy":
            notes = [*notes, "its GPUs are busy and were not tried"]
        else:
            reason = outcome[0] if isinstance(outcome, tuple) else outcome
    return Report(node, nodes.title(node.id), reason, tuple(notes))
