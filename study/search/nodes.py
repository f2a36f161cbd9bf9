"""The nodes of a Ray cluster, read whenever they are needed: autoscaling adds some, others are lost or avoided.

A *share* is what one training run asks of its node, by Ray's names of resources; a *slot* is room for one share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from network_surgery.study.config import Settings
from network_surgery.study.counts import format_count
from network_surgery.study.errors import StudyError, near
from network_surgery.study.training.device import check_device, pick_device

#: Seconds for which an answer of the cluster is used again.
FRESH = 2.0
#: What Ray calls the label of a node that holds its id.
LABEL = "ray.io/node-id"
#: More slots than this, or more than one node, and trials are sampled asynchronously by default.
FEW_SLOTS = 8
#: How the resource of Ray begins that says which type of GPU a node has.
ACCELERATOR = "accelerator_type:"
ROUNDING = 1e-9

Share = Mapping[str, float]


@dataclass(frozen=True)
class Node:
    """One node: Ray's ``id`` of it, what people call it, and its ``resources`` whether they are in use or not."""

    id: str
    name: str
    resources: Mapping[str, float]

    def slots(self, share: Share) -> int:
        """How many shares fit on the node."""
        counts = [self.resources.get(kind, 0.0) / amount for kind, amount in share.items() if amount]
        return int(min(counts, default=0.0) + ROUNDING)


@dataclass
class Nodes:
    """The nodes of the cluster that this process is connected to, without the ``avoided`` ones (id → reason).

    ``narrate`` is given a line about each that is avoided. ``checked``: the ids of those that passed the preflight
    (``study.search.preflight``).
    """

    narrate: Callable[[str], None] = lambda words: None
    avoided: dict[str, str] = field(default_factory=dict)
    checked: set[str] = field(default_factory=set)
    _known: tuple[float, list[Node]] = (-FRESH, [])

    def __iter__(self) -> Iterator[Node]:
        return (node for node in self.alive() if node.id not in self.avoided)

    def alive(self) -> list[Node]:
        """All nodes, at most ``FRESH`` seconds old."""
        if time.monotonic() - self._known[0] > FRESH:
            import ray

            found = [
                Node(each["NodeID"], each["NodeManagerHostname"], each["Resources"])
                for each in ray.nodes()
                if each["Alive"]
            ]
            self._known = time.monotonic(), found
        return self._known[1]

    def avoid(self, node: str, reason: str) -> None:
        """Keeps further trials from the node of this id."""
        if node not in self.avoided:
            self.avoided[node] = reason
            self.narrate(f"{self.title(node)} is avoided: {reason}")

    def title(self, node: str) -> str:
        """What people call the node of this id: its name, and where its id begins."""
        names = {each.id: each.name for each in self.alive()}
        return f"node {names.get(node, '')} ({node[:8]})"

    def room(self, share: Share, ahead: int, workers: int = 1) -> int:
        """How many training runs may be under way: one for each slot, and ``ahead`` that wait.

        Those have the next process start early, and an autoscaling cluster grow.
        """
        return slots(self, share, workers) + ahead

    @property
    def selector(self) -> dict[str, str]:
        """Ray's label selector of the nodes that are not avoided; empty where none is."""
        return {LABEL: f"!in({', '.join(sorted(self.avoided))})"} if self.avoided else {}


def slots(nodes: Iterable[Node], share: Share, workers: int = 1) -> int:
    """How many runs fit on these nodes together, each of this number of workers with a share of its own."""
    return sum(node.slots(share) for node in nodes) // workers


def asynchronous(nodes: Iterable[Node], share: Share, workers: int = 1) -> bool:
    """Whether waiting for a generation's slowest trial would waste the cluster, by the number of its slots."""
    useful = [node for node in nodes if node.slots(share)]
    number = slots(useful, share, workers)
    return (len(useful) > 1 and number > 1) or number > FEW_SLOTS


def trial_resources(settings: Settings, nodes: Iterable[Node]) -> dict[str, float]:
    """What each worker of a training run asks of its node, by Ray's names.

    Raises:
        StudyError: no node could ever give that, or the nodes together have no room for all workers.
    """
    nodes = list(nodes)
    gpus = settings.gpus_per_trial if settings.device != "cpu" and most(nodes, "GPU") else 0.0
    if settings.workers_per_trial > 1 and gpus:  # two of them on one device cannot be connected
        gpus = 1.0
    check_device(settings.device)
    if not most(nodes, "GPU"):
        pick_device(settings.device)  # one that Ray does not count, such as mps
    share = {"CPU": settings.cpus_per_trial} | ({"GPU": gpus} if gpus else {})
    if settings.cpus_per_trial > (cores := most(nodes, "CPU")):
        where = "this Ray cluster has" if len(nodes) == 1 else "no node of this Ray cluster has more than"
        raise StudyError(f"cpus_per_trial is {settings.cpus_per_trial:g}, but {where} {format_count(cores, 'CPU')}")
    if settings.accelerator is not None:
        known = [kind.removeprefix(ACCELERATOR) for node in nodes for kind in node.resources if ACCELERATOR in kind]
        if settings.accelerator not in known:
            types = f"only {', '.join(sorted({*known}))}" if known else "no type of GPU that Ray knows"
            raise StudyError(
                f"accelerator is {settings.accelerator!r}, but this Ray cluster has {types}"
                f"{near(settings.accelerator, known)}"
            )
        share[f"{ACCELERATOR}{settings.accelerator}"] = 0.001  # so little that the GPUs alone decide
    if not slots(nodes, share):
        parts = " and ".join(f"{amount:g} {kind}s" for kind, amount in share.items() if amount >= 0.01)
        raise StudyError(
            f"a training run takes {parts}, but no node of this Ray cluster has all of that together; lower "
            "cpus_per_trial or gpus_per_trial"
        )
    if not slots(nodes, share, settings.workers_per_trial):
        parts = " and ".join(f"{amount:g} {kind}s" for kind, amount in share.items() if amount >= 0.01)
        raise StudyError(
            f"workers_per_trial is {settings.workers_per_trial}, but a worker takes {parts}, and this Ray cluster has "
            f"room for {slots(nodes, share)} of them"
        )
    return share


def most(nodes: Iterable[Node], kind: str) -> float:
    """How much of a resource the node has that has most of it."""
    return max((node.resources.get(kind, 0.0) for node in nodes), default=0.0)
