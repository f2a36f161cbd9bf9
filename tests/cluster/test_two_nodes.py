"""A cluster of two nodes, the second without some folders: it is avoided where it cannot train, and loses nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from network_surgery.study.config import Settings
from network_surgery.study.search import tuner
from network_surgery.study.search.cluster import joined
from network_surgery.study.search.nodes import Nodes
from network_surgery.study.search.preflight import preflight
from network_surgery.study.search.sources import Listed
from network_surgery.study.search.stages import Stage
from network_surgery.study.search.travel import MARKER
from network_surgery.study.store.folder import checkpoints_of, network_of
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell

pytestmark = pytest.mark.timeout(600)
MODEL = """
from network_surgery.study import models

def small(shape, classes):
    return models.build("mlp", shape, classes)
"""
#: A node, for as long as this program runs. ``ray start`` would have others on this machine join it.
NODE = """
import json, sys, time
from ray._private.node import Node
from ray._private.parameter import RayParams

more = {"min_worker_port": 0, "max_worker_port": 0, "node_manager_port": 0, "include_log_monitor": False}
params = RayParams(gcs_address=sys.argv[1], redis_address=None, num_gpus=0, **more, **json.loads(sys.argv[2]))
params.dashboard_agent_listen_port = None
Node(params, head=False)
while True:
    time.sleep(60)
"""
OPTIONS = {"epochs": 3, "device": "cpu", "held_out": 64, "signal_images": 64, "probe": 0}
SHRINK = [{"when": "2ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}]


def hidden(folder: Path, command: list[str]) -> list[str]:
    """A command that sees an empty folder there, in a mount namespace of its own."""
    script = 'mount -t tmpfs none "$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(folder), *command]


def can_hide(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(hidden(folder, ["true"]), capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the second node does not have."""
    folder = tmp_path_factory.mktemp("apart")
    if not can_hide(folder):
        pytest.skip("no mount namespace can be made here")
    (folder / "model.py").write_text(MODEL)
    return folder


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a node as the loss of its machine would."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def cluster(apart: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A head and a node beside it, each with one CPU; this process is connected. Yields the second node's process."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        # Else every process on this machine that starts Ray would join this cluster.
        patch.setattr("ray._private.utils.write_ray_address", lambda *_: None)
        few = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        head = Cluster(initialize_head=True, head_node_args=few | {"include_dashboard": False})
        start = [sys.executable, "-c", NODE, head.address, json.dumps(few)]
        second = subprocess.Popen(hidden(apart, start), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with joined(Settings(device="cpu", address=head.address)):
                end = time.monotonic() + 60
                while len([each for each in ray.nodes() if each["Alive"]]) < 2:
                    assert time.monotonic() < end and second.poll() is None, "the second node does not come"
                    time.sleep(0.2)
                yield second
        finally:
            kill(second)
            head.shutdown()


class Notes:
    """A listener that keeps how cells end."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, Any]] = {}

    def started(self, cell: Cell) -> None: ...

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None: ...

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        self.results[cell.name] = result


def node_here() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


@contextlib.contextmanager
def busy_here() -> Iterator[Callable[[], None]]:
    """Takes this node's CPU, so that everything is trained on the other one; yields what gives it back."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where = NodeAffinitySchedulingStrategy(node_here(), soft=False)
    task = ray.remote(num_cpus=1, scheduling_strategy=where, max_retries=0)(lambda: time.sleep(600)).remote()
    try:
        yield lambda: ray.cancel(task, force=True)
    finally:
        ray.cancel(task, force=True)


@pytest.mark.long
def test_a_node_that_cannot_train_is_avoided(cluster: subprocess.Popen[bytes], apart: Path, tmp_path: Path) -> None:
    settings = Settings(model=f"{apart}/model.py:small", **OPTIONS)
    task, words = ImageTask.of(settings), list[str]()
    nodes = Nodes(words.append)
    reports = preflight(nodes, settings, task, tmp_path, {"CPU": 1.0})
    assert sorted(report.reason is None for report in reports) == [False, True]
    (other,) = nodes.avoided
    assert other != node_here() and nodes.checked == {node_here()}
    (sentence,) = words
    assert "is avoided" in sentence and "model.py:small' cannot be loaded" in sentence


@pytest.mark.long
def test_a_node_that_comes_after_the_preflight_is_found_out_by_its_first_trial(
    cluster: subprocess.Popen[bytes], apart: Path, tmp_path: Path
) -> None:
    settings = Settings(model=f"{apart}/model.py:small", **OPTIONS)
    words: list[str] = []
    nodes = Nodes(words.append, checked={node_here()})
    notes = Notes()
    cells = [Cell("surgery", seed, SHRINK, trial=seed) for seed in range(2)]
    assert tuner.run_stages([Stage(Listed(cells), [notes])], ImageTask.of(settings), settings, nodes, tmp_path)
    assert len(notes.results) == 2 and not any("failure" in each for each in notes.results.values())
    assert len(words) == len(nodes.avoided) == 1


def test_a_folder_that_is_not_shared_loses_nothing(cluster: subprocess.Popen[bytes], apart: Path) -> None:
    """Networks, values and what others begin from arrive, whichever node trains."""
    settings = Settings(model="mlp", **OPTIONS)
    task, nodes, out = ImageTask.of(settings), Nodes(), apart / "study"
    out.mkdir()
    reports = preflight(nodes, settings, task, out, {"CPU": 1.0})
    notes = {report.node.id == node_here(): report.notes for report in reports}
    assert notes[True] == () and "its files travel through Ray" in notes[False][0]

    cells = [Cell("original", 1, test=True), Cell("surgery", 1, SHRINK, trial=1, test=True)]
    notes_there = Notes()
    with busy_here():
        assert tuner.run_stages([Stage(Listed(cells), [notes_there])], task, settings, nodes, out)
    for cell in cells:
        result = notes_there.results[cell.name]
        assert result["network"] == f"networks/{cell.name}.pt" and network_of(cell, out).exists()
        assert np.load(network_of(cell, out).with_suffix(".npy")).size > 0
    assert notes_there.results["surgery-001-seed-1"]["forked"] == {"from": "original-seed-1", "epoch": 2}
    left = [path for path in (*checkpoints_of(out).iterdir(), *out.glob(f"{MARKER}*"))]
    assert left == []


def test_what_is_not_shared_is_the_same(cluster: subprocess.Popen[bytes], apart: Path, tmp_path: Path) -> None:
    """A mirror holds what was brought, sends what has changed, and removes what was removed."""
    import ray

    from network_surgery.study.search.travel import Mirror, Shelf

    out, copy = tmp_path / "out", tmp_path / "copy"
    (out / "checkpoints").mkdir(parents=True)
    copy.mkdir()
    (out / "checkpoints" / "a.pt").write_bytes(b"1")
    (out / "checkpoints" / "b.pt").write_bytes(b"2")
    mirror = Mirror(copy, ray.remote(num_cpus=0)(Shelf).remote(str(out)))
    mirror.bring(["checkpoints/a.*", "checkpoints/c.*"])
    assert [path.name for path in (copy / "checkpoints").iterdir()] == ["a.pt"]
    (copy / "checkpoints" / "c.pt").write_bytes(b"3")
    (copy / "checkpoints" / "d.part").write_bytes(b"not whole")
    os.replace(copy / "checkpoints" / "c.pt", copy / "checkpoints" / "a.pt")
    mirror.send()
    assert {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()} == {"a.pt": b"3", "b.pt": b"2"}
    (copy / "checkpoints" / "a.pt").unlink()
    mirror.send()
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["b.pt"]


@pytest.mark.long
def test_a_lost_node_that_shared_nothing_costs_two_epochs_at_most(
    cluster: subprocess.Popen[bytes], apart: Path
) -> None:
    """The last test: it kills the second node, and the run goes on here from the checkpoint that was sent."""
    settings = Settings(model="mlp", **OPTIONS | {"epochs": 30})
    out = apart / "lost"
    heard: list[float] = []

    with busy_here() as free:

        class Killer(Notes):
            def epoch(self, cell: Cell, record: dict[str, Any]) -> None:
                heard.append(record["epoch"])
                if record["epoch"] == 6 and cluster.poll() is None:
                    kill(cluster)
                    free()

        notes = Killer()
        cell = Cell("surgery", 3, SHRINK, trial=3, test=True)
        assert tuner.run_stages([Stage(Listed([cell]), [notes])], ImageTask.of(settings), settings, Nodes(), out)
    assert "failure" not in notes.results[cell.name] and network_of(cell, out).exists()
    assert heard.count(1.0) == 1 and heard[-1] == 30 and len(heard) - 30 <= 2
