"""Files of a study's folder for nodes that do not share it: they travel through Ray, and nothing is lost.

The driver leaves a *marker* in the folder. A training run that does not see it works in a temporary folder of its own
instead. There it gets the files that it begins from, and what it writes is sent to the driver's node after every epoch:
checkpoints, its final network, and the values beside it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from network_surgery.study.scratch import scratch
from network_surgery.study.search.nodes import Nodes
from network_surgery.study.store.folder import write_whole

#: How markers begin. They are in no study's listings.
MARKER = ".driver-"
#: Seconds to wait for the actor that keeps the files.
PATIENCE = 60.0
#: Files that are not whole yet, and the stacks that a process writes when it hangs or crashes.
LEFT_OUT = re.compile(r"\.part(\.|$)|^stacks/")


class Shelf:
    """An actor on the driver's node that reads and writes files of the folder, by their names in it."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """The files that are there, of these names; a name may be a pattern."""
        found = {path for name in names for path in self._folder.glob(name) if not LEFT_OUT.search(path.name)}
        return {path.relative_to(self._folder).as_posix(): path.read_bytes() for path in sorted(found)}

    def write(self, name: str, content: bytes) -> None:
        """Writes one file, whole or not at all."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)

    def remove(self, name: str) -> None:
        """Removes one file, if it is there."""
        (self._folder / name).unlink(missing_ok=True)


class Marker:
    """The driver's side, for the time of a ``with`` block: the marker, and the shelf once there are other nodes."""

    def __init__(self, folder: Path, nodes: Nodes) -> None:
        self.name = f"{MARKER}{uuid.uuid4().hex}"
        self._folder, self._nodes = folder, nodes
        self._shelf: Any = None

    def __enter__(self) -> Marker:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / self.name).touch()
        return self

    def __exit__(self, *error: object) -> None:
        (self._folder / self.name).unlink(missing_ok=True)
        if self._shelf is not None:
            import ray

            with contextlib.suppress(Exception):  # the cluster is gone, and the actor with it
                ray.kill(self._shelf)

    def serve(self) -> None:
        """Starts the shelf, once there is a node besides the driver's."""
        if self._shelf is not None or len(self._nodes.alive()) < 2:
            return
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"name": self.name, "num_cpus": 0, "scheduling_strategy": here}
        self._shelf = ray.remote(Shelf).options(**options).remote(str(self._folder))


class Mirror:
    """The trial's side: a temporary folder with the files that it needs, whose changes ``send`` sends."""

    def __init__(self, path: Path, shelf: Any) -> None:
        self.path, self._shelf = path, shelf
        path.mkdir(exist_ok=True)
        self._known: dict[str, tuple[int, int]] = {}

    def bring(self, names: Iterable[str]) -> None:
        """Gets the files of these names, or patterns, that the study's folder has."""
        import ray

        for name, content in ray.get(self._shelf.read.remote(list(names))).items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self._known[name] = _state(path)

    def send(self) -> None:
        """Sends what was written since, and returns when it is kept; what was removed here is removed there, too."""
        import ray

        there = {path.relative_to(self.path).as_posix(): path for path in self.path.rglob("*") if path.is_file()}
        waiting = []
        for name, path in there.items():
            if not LEFT_OUT.search(name) and self._known.get(name) != (state := _state(path)):
                waiting.append(self._shelf.write.remote(name, path.read_bytes()))
                self._known[name] = state
        for name in self._known.keys() - there.keys():
            waiting.append(self._shelf.remove.remote(name))
            del self._known[name]
        ray.get(waiting)


def shares(folder: Path, marker: str) -> bool:
    """Whether this node shares the study's folder with the driver, and may write there."""
    return (folder / marker).exists() and os.access(folder, os.W_OK)


@contextlib.contextmanager
def place(folder: Path, marker: str) -> Iterator[tuple[Path, Mirror | None]]:
    """Where a training run on this node keeps its files: the study's folder, or a mirror of it."""
    if shares(folder, marker):
        yield folder, None
        return
    with scratch() as room:
        mirror = Mirror(room / "study", _shelf(marker))
        yield mirror.path, mirror


def _shelf(marker: str) -> Any:
    import ray

    end = time.monotonic() + PATIENCE
    while True:
        try:
            return ray.get_actor(marker)
        except ValueError:  # it starts as soon as the driver sees this node
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size
