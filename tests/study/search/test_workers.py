"""Trials of two workers on Ray: equal to one worker, and whatever befalls one of them ends both with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search import cluster, tuner
from network_surgery.study.search.nodes import Node, Nodes, asynchronous, slots, trial_resources
from network_surgery.study.search.sources import Listed
from network_surgery.study.search.stages import Stage
from network_surgery.study.store.folder import network_of
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from tests.study.nodes import node
from tests.tiers import long

OPTIONS: dict[str, Any] = {
    "epochs": 3, "batch_size": 31, "train_images": 124, "optimizer": "sgd", "learning_rate": 0.05, "held_out": 31,
    "signal_images": 31, "probe": 0, "device": "cpu",
}  # fmt: skip
SHRINK = [{"when": "1ep", "layer": "fc1", "op": "eigen_remove", "keep": 0.5}]
MODEL = """
import os, signal, torch, torch.distributed as dist
from network_surgery.study import models

class Failing(torch.nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.inside = models.build("mlp", shape, classes)

    def forward(self, x):
        if self.training and len(x) in (15, 16) and dist.get_rank() == {rank}:
            {act}
        return self.inside(x)
"""


class Notes:
    """A listener that keeps how cells end."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self.epochs: list[float] = []

    def started(self, cell: Cell) -> None: ...

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None:
        self.epochs.append(record["epoch"])

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        self.results[cell.name] = result


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        with cluster.joined(Settings(**OPTIONS)) as found:
            yield found


def trained(settings: Settings, nodes: Nodes, out: Path, *cells: Cell) -> Notes:
    notes = Notes()
    assert tuner.run_stages([Stage(Listed(list(cells)), [notes])], ImageTask.of(settings), settings, nodes, out)
    return notes


@pytest.mark.long
def test_two_workers_are_one_to_rounding(nodes: Nodes, tmp_path: Path) -> None:
    """One run after another on two workers, the second of which goes on from a checkpoint of the first."""
    cells = [Cell("original", 1, test=True), Cell("surgery", 1, SHRINK, trial=1, test=True)]
    found = trained(Settings(**OPTIONS, workers_per_trial=2), nodes, tmp_path, *cells).results
    assert all(network_of(cell, tmp_path).exists() for cell in cells)
    for cell in cells:
        one = run(cell, ImageTask.of(Settings(**OPTIONS)), Settings(**OPTIONS), torch.device("cpu"))
        for key in ("test_loss", "validation_loss", "test_metric", "parameters", "training_flops"):
            assert found[cell.name][key] == pytest.approx(one[key], rel=1e-3), (cell.name, key)
    assert found["surgery-001-seed-1"]["forked"] and found["surgery-001-seed-1"]["operations"]


@pytest.mark.parametrize("rank", [long(0), 1])
def test_a_worker_that_fails_ends_all_with_its_reason(nodes: Nodes, tmp_path: Path, rank: int) -> None:
    (tmp_path / "failing.py").write_text(MODEL.format(rank=rank, act='raise ValueError("not this batch")'))
    settings = Settings(**OPTIONS, workers_per_trial=2, model=f"{tmp_path}/failing.py:Failing")
    (result,) = trained(settings, nodes, tmp_path / "out", Cell("original", 1)).results.values()
    assert result["failure"].startswith("ImageTask fails on a training batch of epoch 1: not this batch")
    assert result["error"]["message"] == "not this batch" and "failing.py, line 12" in result["error"]["where"]
    assert "lost" not in result


def test_a_worker_that_is_lost_makes_the_trial_a_lost_one(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(MODEL.format(rank=1, act="os.kill(os.getpid(), signal.SIGKILL)"))
    settings = Settings(**OPTIONS, workers_per_trial=2, model=f"{tmp_path}/failing.py:Failing")
    (result,) = trained(settings, nodes, tmp_path / "out", Cell("original", 1)).results.values()
    assert result["lost"] and "the process was lost" in result["failure"]


SHARE = {"CPU": 1.0}


def test_a_trial_takes_a_bundle_for_each_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes()
    monkeypatch.setattr(nodes, "alive", lambda: [node("one", CPU=3), node("two", CPU=3)])
    room = tuner._Room(nodes, SHARE, 1, cast(Any, SimpleNamespace(serve=lambda: None)), workers=2)
    assert room() == 3 + 1 and room.whole == room.share
    nodes.avoid("two", "there is no model.py")
    assert room() == 1 + 1
    request = room.request(True)
    assert request.bundles == [SHARE, SHARE] and request.strategy == "PACK"


def test_the_slots_of_several_workers_are_counted_together() -> None:
    nodes = [node("one", CPU=3), node("two", CPU=3)]
    assert [slots(nodes, SHARE, number) for number in (1, 2, 4, 7)] == [6, 3, 1, 0]
    assert asynchronous(nodes, SHARE, 2) and not asynchronous(nodes, SHARE, 4)


def test_each_worker_takes_a_whole_gpu() -> None:
    settings = Settings(workers_per_trial=2)
    assert trial_resources(settings, [node(CPU=2, GPU=2)]) == {"CPU": 1, "GPU": 1}
    assert trial_resources(settings, [node(CPU=2)]) == {"CPU": 1}


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ([node(CPU=2)], "workers_per_trial is 3, but a worker takes 1 CPUs, and this Ray cluster has room for 2"),
        (
            [node("one", CPU=4, GPU=1), node("two", CPU=4, GPU=1)],
            "a worker takes 1 CPUs and 1 GPUs, and this Ray cluster has room for 2 of them",
        ),
    ],
)
def test_more_workers_than_a_cluster_holds_are_refused(nodes: list[Node], sentence: str) -> None:
    with pytest.raises(StudyError, match=re.escape(sentence)):
        trial_resources(Settings(workers_per_trial=3), nodes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 2}, "workers_per_trial is 4, but a batch has 2 samples to divide; lower workers_per_trial or"),
        ({"compile": True}, "workers_per_trial is 4, but compile is true, which is for one worker; leave out one"),
        ({"cuda_graph": True}, "workers_per_trial is 4, but cuda_graph is true, which is for one worker; leave out"),
    ],
)
def test_what_workers_cannot_do_together_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=re.escape(sentence)):
        Settings(workers_per_trial=4, **changes)


def test_a_head_without_cpus_does_not_wait_for_workers_that_are_all_avoided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes()
    there = [node("head"), node("one", CPU=2)]
    monkeypatch.setattr(nodes, "alive", lambda: there)
    room = tuner._Room(nodes, SHARE, 4, cast(Any, SimpleNamespace(serve=lambda: None)))
    room()
    room.check()
    nodes.avoid("one", "there is no model.py")
    room()
    with pytest.raises(StudyError, match=r"no node of this Ray cluster can train: there is no model\.py"):
        room.check()
    there.append(node("two", CPU=2))  # autoscaling has brought another one
    room()
    room.check()
