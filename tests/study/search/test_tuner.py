"""Cells on Ray: parallel, quiet, robust; nothing is left running. One local cluster serves the whole file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import torch

from network_surgery.ops import MinWeight, Moment, Schedule, Step
from network_surgery.ops import load as load_network
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.scratch import PREFIX
from network_surgery.study.search import cluster, tuner
from network_surgery.study.search.nodes import Nodes, trial_resources
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.search.sources import Listed
from network_surgery.study.search.stages import Stage, Stages
from network_surgery.study.search.tracking import EXPERIMENT, default_uri
from network_surgery.study.store.folder import Folder
from network_surgery.study.store.ledger import Record
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.training import watch
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.evaluation import evaluate
from network_surgery.study.training.run import run
from tests.study.nodes import node

SETTINGS = Settings(model="mlp", epochs=3, device="cpu", held_out=64, signal_images=64)
SHRINK = Schedule((Step(Moment(1), "fc1", MinWeight(0.5)),)).to_data()


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


@pytest.fixture(scope="module")
def resources() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        with cluster.joined(SETTINGS) as found:
            yield found


def test_a_process_is_in_one_cluster(resources: Nodes) -> None:
    import ray

    here = ray.get_runtime_context().gcs_address
    with cluster.joined(replace(SETTINGS, address=here)), socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        said = f"this process is in the Ray cluster at {here}, not at {address}; call ray.shutdown() first, or "
        with pytest.raises(StudyError, match=re.escape(said)), cluster.joined(replace(SETTINGS, address=address)):
            pass
    assert ray.is_initialized()


class Notes:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.epochs: dict[str, list[float]] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.records: list[Record] = []

    def started(self, cell: Cell) -> None:
        self.heard.append(("started", cell.name))

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None:
        self.epochs.setdefault(cell.name, []).append(record["epoch"])

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        self.heard.append(("ended", cell.name))
        self.results[cell.name] = result
        self.records.append(Record(cell, result))


def workers() -> list[psutil.Process]:
    """The processes of this file's own cluster that train."""
    return [p for p in psutil.Process().children(recursive=True) if "ray::ImplicitFunc" in " ".join(p.cmdline())]


def test_cells_run_and_a_failure_does_not_end_the_study(digits: ImageTask, resources: Nodes, tmp_path: Path) -> None:
    bad = [{"when": "1ep", "layer": "fc9", "op": "min_weight", "keep": 0.5}]
    cells = [Cell("original", 1, test=True), Cell("surgery", 1, bad, trial=0), Cell("surgery", 2, SHRINK, trial=1)]

    def follow(cell: Cell, outcome: dict[str, Any]) -> list[Cell]:
        return [Cell("restart", 2, architecture=outcome["architecture"], trial=1)] if cell.arm == "surgery" else []

    notes = Notes()
    source = Listed(cells, follow, lambda cell: int(cell.arm == "surgery"))
    assert tuner.run_stages([Stage(source, [notes])], digits, SETTINGS, resources, tmp_path)
    assert set(notes.results) == {"original-seed-1", "surgery-000-seed-1", "surgery-001-seed-2", "restart-001-seed-2"}
    assert "names the layer 'fc9'; this network has fc1, fc2" in notes.results["surgery-000-seed-1"]["failure"]
    surgery, restart = notes.results["surgery-001-seed-2"], notes.results["restart-001-seed-2"]
    assert surgery["parameters"] == restart["parameters"] < notes.results["original-seed-1"]["parameters"]
    assert notes.epochs["surgery-001-seed-2"] == [1.0, 2.0, 3.0]
    assert surgery["device"] == "cpu"
    assert not list((tmp_path / "checkpoints").iterdir())
    kept = {path.name for path in (tmp_path / "networks").iterdir()}  # of what ended, and is not only tried
    assert kept == {"original-seed-1.pt", "original-seed-1.npy"} and "network" not in surgery


@pytest.mark.long
def test_workers_are_kept_from_stage_to_stage(digits: ImageTask, resources: Nodes, tmp_path: Path) -> None:
    class Pids(Notes):
        def ended(self, cell: Cell, result: dict[str, Any]) -> None:
            super().ended(cell, result)
            pids.update(each.pid for each in workers())

    pids: set[int] = set()
    first, second = Pids(), Pids()

    def stages() -> Iterator[Stage]:
        yield Stage(Listed([Cell("original", 1), Cell("original", 2)]), [first])
        assert len(first.results) == 2 and not second.heard  # the next one is asked for when all of one have ended
        best = max(first.results.values(), key=lambda result: result["validation_metric"])
        yield Stage(Listed([]), [second])
        yield Stage(Listed([Cell("original", 3 + best["parameters"]), Cell("original", 4)]), [second])

    settings = replace(SETTINGS, epochs=1, train_images=64)
    assert tuner.run_stages(stages(), digits, settings, resources, tmp_path)
    assert not any("failure" in result for result in (first.results | second.results).values())
    assert len(first.results) == len(second.results) == 2
    assert len(pids) <= sum(each.slots(trial_resources(settings, resources)) for each in resources)


def test_idle_workers_are_kept_for_trials_that_ask_for_the_same() -> None:
    from ray.tune import PlacementGroupFactory
    from ray.tune.utils.object_cache import _ObjectCache

    one, whole = PlacementGroupFactory([{"CPU": 1.0}]), PlacementGroupFactory([{"CPU": 2.0}])
    controller, idle = SimpleNamespace(_actor_cache=_ObjectCache(may_keep_one=True)), tuner._Idle()
    cache = controller._actor_cache
    for _ in range(3):
        idle.keep(controller, one)
    assert cache.cache_object(one, "a") and cache.cache_object(one, "b")
    assert not list(cache.flush_cached_objects())
    idle.keep(controller, whole)  # it would wait for what the idle ones hold
    assert set(cache.flush_cached_objects()) >= {"a"} and cache.total_max_objects == 0
    idle.keep(controller, one)
    idle.release()
    assert cache.total_max_objects == 0
    tuner._Idle().keep(object(), one)  # a Tune without such a cache


def test_ray_computes_what_a_plain_call_computes(digits: ImageTask, resources: Nodes, tmp_path: Path) -> None:
    notes = Notes()
    cell = Cell("surgery", 5, SHRINK, trial=3, test=True)
    tuner.run_stages([Stage(Listed([cell]), [notes])], digits, SETTINGS, resources, tmp_path)
    plain = run(cell, digits, SETTINGS, torch.device("cpu"))
    for key in ("test_metric", "test_loss", "validation_loss", "parameters", "architecture"):
        assert notes.results[cell.name][key] == plain[key]
    assert measured(tmp_path, notes.results[cell.name], digits) == {
        key: plain[key] for key in ("test_loss", "test_metric", "test_metrics")
    }


def measured(folder: Path, outcome: dict[str, Any], data: ImageTask) -> dict[str, Any]:
    """What the stored final network does on the test images."""
    network = load_network(lambda: models.build("mlp", data.shape, 10), folder / outcome["network"])
    return evaluate(network, data, Batches(data.test, torch.device("cpu"))).named("test")


def test_a_lost_worker_resumes_from_its_last_epoch(digits: ImageTask, resources: Nodes, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=12)
    cell = Cell("surgery", 1, SHRINK, trial=0, test=True)
    plain = run(cell, digits, settings, torch.device("cpu"))

    class Killer(Notes):
        killed = False

        def epoch(self, cell: Cell, record: dict[str, Any]) -> None:
            super().epoch(cell, record)
            if record["epoch"] >= 4 and not self.killed:
                self.killed = True
                for worker in workers():
                    worker.send_signal(signal.SIGKILL)

    notes = Killer()
    tuner.run_stages([Stage(Listed([cell]), [notes])], digits, settings, resources, tmp_path)
    assert notes.killed
    reports = notes.epochs[cell.name]
    assert reports.count(1.0) == 1 and reports[-1] == 12.0  # it did not start again
    outcome = notes.results[cell.name]
    assert outcome["test_loss"] == plain["test_loss"] == measured(tmp_path, outcome, digits)["test_loss"]


FAILING = """
import ctypes, os, sys, time
import torch
from torch import nn


class Failing(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 16), nn.Linear(16, classes)
        self.seed, self.calls = torch.initial_seed(), 0

    def forward(self, images):
        self.calls += self.training
        if self.calls == 36:  # in the second epoch that a process trains
            with open(f"{os.path.dirname(__file__)}/{self.seed}", "a+") as tries:
                tries.write(".")
                tries.flush()
                self.fail(tries.tell())
        return self.fc2(torch.relu(self.fc1(images.flatten(1))))

    def fail(self, tries):
        if self.seed == 1:
            raise KeyError("no such thing")
        if self.seed == 2:
            sys.exit(3)
        if self.seed == 3 or (self.seed == 4 and tries == 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        if self.seed == 5:
            raise ConnectionResetError(104, "Connection reset by peer")
        if self.seed == 6:
            time.sleep(120)
        if self.seed == 7:
            ctypes.string_at(0)
        if self.seed == 8:
            os._exit(3)


build = Failing
"""
#: Seed → the reason that is kept, and how often it was tried.
REASONS = {
    1: (
        r"ImageTask fails on a training .*: 'no such thing' \(KeyError at failing.py, line 24, in fail\)",
        1,
    ),
    2: (r"SystemExit: 3 \(failing.py, line 26, in fail\)", 1),
    3: (r"out of memory: CUDA out of memory\. .* \(failing.py, line 28, in fail\)", 2),
    4: (None, 2),
    5: (r".*reset by peer \(ConnectionResetError at failing.py, line 30, in fail\)", 1),
    6: (r"it hung: no epoch ended within 5 s \(failing.py, line 32, in fail\)", 1),
    7: (r"its process crashed: Segmentation fault \(failing.py, line 34, in fail\)", 2),
    8: ("the process was lost: .*", 2),
}


@pytest.mark.long
def test_a_failure_keeps_its_reason_and_only_what_may_go_otherwise_is_tried_again(
    resources: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    settings = replace(SETTINGS, model=f"{tmp_path / 'failing.py'}:build", epochs=3)
    monkeypatch.setattr(tuner.watch.Pace, "limits", tuner.watch.Limits(1, least=5.0))
    monkeypatch.setattr(tuner, "RETRIES", 1)
    notes = Notes()
    cells = {seed: Cell("surgery", seed, trial=0) for seed in REASONS}
    data, study = ImageTask.of(settings), tmp_path / "study"
    assert tuner.run_stages([Stage(Listed(cells.values()), [notes])], data, settings, resources, study)
    for seed, (reason, tries) in REASONS.items():
        result = notes.results[cells[seed].name]
        assert (tmp_path / str(seed)).read_text() == "." * tries
        if reason is None:  # alone it has memory enough
            assert "failure" not in result and result["epochs"]
            continue
        assert re.fullmatch(reason, result["failure"]), result
        assert bool(result.get("lost")) == (seed > 2) and result.get("memory", False) == (seed == 3)
        assert set(result["error"]) == {"type", "message", "where"}
    assert {path.name for path in (study / "stacks").iterdir()} == {
        f"surgery-000-seed-{seed}.txt" for seed in (6, 7, 8)
    }


@pytest.mark.long
def test_nothing_is_trained_twice_and_nothing_is_left_of_it(
    digits: ImageTask, resources: Nodes, tmp_path: Path
) -> None:
    """Surgery begins from the original's checkpoint, its twin is not trained, and both report their whole curves."""
    cells = [Cell("original", 1, test=True), *(Cell("surgery", 1, SHRINK, trial=n, test=True) for n in range(2))]
    notes, alone = Notes(), Notes()
    assert tuner.run_stages([Stage(Listed(cells), [notes])], digits, SETTINGS, resources, tmp_path)
    original, surgery, twin = (notes.results[cell.name] for cell in cells)
    assert original["kept"]["epochs"] == [1] and surgery["forked"] == {"from": "original-seed-1", "epoch": 1}
    assert twin["same_as"] == "surgery-000-seed-1" and twin["network"] == "networks/surgery-001-seed-1.pt"
    assert surgery["epochs"][0]["train_seconds"] == original["epochs"][0]["train_seconds"]
    assert [notes.epochs[cell.name] for cell in cells] == [[1.0, 2.0, 3.0]] * 3
    assert [notes.heard.count((what, cell.name)) for what in ("started", "ended") for cell in cells] == [1] * 6
    assert not list((tmp_path / "checkpoints").iterdir())

    tuner.run_stages([Stage(Listed(cells[1:2]), [alone])], digits, SETTINGS, resources, tmp_path / "alone")
    whole = alone.results["surgery-000-seed-1"]
    assert "forked" not in whole
    for outcome in (surgery, twin):
        for key in ("test_loss", "test_metric", "validation_loss", "training_flops", "architecture"):
            assert outcome[key] == whole[key]
        loss, metric = (measured(tmp_path, outcome, digits)[key] for key in ("test_loss", "test_metric"))
        assert (loss, metric) == (whole["test_loss"], whole["test_metric"])


@pytest.mark.long
def test_trials_are_stopped_early_and_a_resumed_search_knows_its_rungs(
    digits: ImageTask, resources: Nodes, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, epochs=8, trials=12, early_stopping="asha", first_rung=2, recovery=1)

    def search(folder: Path, ended: Sequence[Record] = ()) -> Notes:
        notes = Notes()
        folder.mkdir()
        source = Sampled(settings, {"fc1": 128, "fc2": 64}, folder / "optuna.db")
        source.catch_up(ended)
        assert tuner.run_stages([Stage(source, [notes])], digits, settings, resources, folder)
        assert not list((folder / "checkpoints").iterdir())
        return notes

    notes = search(tmp_path / "whole")
    stopped = {name: result["stopped"] for name, result in notes.results.items() if "stopped" in result}
    assert len(notes.results) == 12 and stopped
    assert not {"search-000", "search-001", "search-002", "search-003"} & set(stopped)
    for name, result in notes.results.items():
        assert "failure" not in result and len(result["epochs"]) == len(notes.epochs[name]) == stopped.get(name, 8)
        assert notes.heard.count(("ended", name)) == 1
    for name in stopped:
        result = notes.results[name]
        assert result["operations"] and result["spikes"] and result["seconds"] > 0 and result["parameters"] > 0
        assert result["validation_metric"] == result["epochs"][-1]["validation_metric"]

    ended = [record for record in notes.records if (record.cell.trial or 0) < 8]  # what an interruption leaves
    rest = search(tmp_path / "rest", ended).results
    assert len(rest) == 4 and {name: len(result["epochs"]) for name, result in rest.items()} == {
        name: len(notes.results[name]["epochs"]) for name in rest
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "cuda"}, "device is 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'"),
        ({"device": "gpu"}, "device is 'gpu', which is no device type of torch; use 'auto', 'cpu', 'cuda'"),
        ({"cpus_per_trial": 64}, "cpus_per_trial is 64, but this Ray cluster has 2 CPUs"),
    ],
)
def test_what_no_node_can_give_is_said_at_once(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        trial_resources(Settings(**changes), [node(CPU=2)])


class Alone:
    """Room for one cell at a time, which nothing shares."""

    none, whole, share = False, {"CPU": 1.0}, {"CPU": 1.0}

    def __call__(self) -> int:
        return 1


def test_a_trial_that_ray_runs_again_after_its_outcome_counts_once(tmp_path: Path) -> None:
    """Its process was lost when all had been reported: whatever the next one reports is of no use."""
    notes, broken, pace = Notes(), tuner._Broken(), watch.Pace(0.0)
    source = Stages([Stage(Listed([Cell("original", 1)]), [notes])], SETTINGS, 10, tmp_path)
    ask, go_on, hear = tuner._adaptors(source, SETTINGS, tmp_path, pace, threading.Event(), cast(Any, Alone()), broken)
    trial, outcome = SimpleNamespace(trial_id="a"), {"validation_metric": 0.9, "failure": "it failed"}
    assert ask.suggest("a") is not None
    for kind, report, decision in (("epoch", {"epoch": 1.0}, "CONTINUE"), ("outcome", outcome, "CONTINUE"),
                                   ("epoch", {"epoch": 1.0}, "STOP"), ("outcome", outcome, "STOP")):  # fmt: skip
        if report == {"epoch": 1.0}:
            hear.on_trial_start(0, [], trial)
        assert go_on.on_trial_result(None, trial, {"kind": kind, "report": json.dumps(report)}) == decision
    assert broken.error is None and not source.advance()
    assert notes.heard == [("started", "original-seed-1"), ("ended", "original-seed-1")]
    assert list(notes.epochs.values()) == [[1.0]]


def test_a_fraction_of_a_gpu_shares_it() -> None:
    settings = Settings(gpus_per_trial=0.25)
    assert trial_resources(settings, [node(CPU=16, GPU=1)]) == {"CPU": 1, "GPU": 0.25}
    assert trial_resources(settings, [node(CPU=16)]) == {"CPU": 1}
    assert trial_resources(Settings(device="cpu"), [node(CPU=16, GPU=1)]) == {"CPU": 1}


def listening() -> None:
    """Signals do what they do by default: nohup ignores SIGHUP, and shells SIGINT for what runs in the background."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def surgery() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line; what is still running when the test ends is ended with all of its processes."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(
            [sys.executable, "-m", "network_surgery.study", *arguments], cwd=cwd, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | environment,
            preexec_fn=listening, start_new_session=True,
        ))  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            every = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for each in every:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """What it has started; its own children may end meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [each for each in psutil.Process(process.pid).children(recursive=True) if each.is_running()]
    return []


def words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def ended_by(end: signal.Signals, process: subprocess.Popen[str]) -> str:
    """What it wrote until this signal ended it; of its processes none is left then.

    All of its group get the signal, as by Ctrl-C, a closed terminal and ``timeout``.
    """
    started = descendants(process)
    os.killpg(process.pid, end)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + end, text
    assert not psutil.wait_procs(started, timeout=10)[1]
    return text


def comparable(folder: Path) -> list[Any]:
    results = json.loads((folder / "results.json").read_text())
    cells = results["trials"] + results["comparison"]["cells"]
    keys = ("name", "params", "schedule", "validation_loss", "test_metric", "parameters", "flops", "training_flops")
    return [[cell.get(key) for key in keys] for cell in cells]


SMALL = ("--preset", "smoke", "--epochs", "6", "--arms", "original,surgery,restart,restart_flops")


def done(process: subprocess.Popen[str]) -> str:
    """What a command wrote that ends well."""
    text, _ = process.communicate(timeout=280)
    assert process.returncode == 0 and "Traceback" not in text, text
    return text


@pytest.mark.timeout(600)
def test_the_main_job_interrupted_and_resumed(surgery: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """The smallest main job: once whole, once stopped by Ctrl-C and resumed; both give the same."""
    import mlflow

    text = done(surgery("study", *SMALL, "--out", "whole", cwd=tmp_path))
    assert "Report " in text and "surgery ui whole" in text
    for name in ("report.html", "results.json", "mlflow.db", "figures/arms.png"):
        assert (tmp_path / "whole" / name).exists()

    ledger = tmp_path / "broken" / "cells.jsonl"
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as place:  # its path is short enough for Ray's sockets
        broken = surgery("study", *SMALL, "--out", "broken", cwd=tmp_path, TMPDIR=place)
        while broken.poll() is None and not ledger.exists():
            time.sleep(0.05)
        text = ended_by(signal.SIGINT, broken)
        assert "Go on with: surgery resume broken" in text and "Traceback" not in text
        assert not [path.name for path in Path(place).iterdir() if path.name.startswith(("ray", PREFIX))]

    done(surgery("resume", "broken", cwd=tmp_path))
    assert comparable(tmp_path / "broken") == comparable(tmp_path / "whole")

    study = Folder.open(tmp_path / "broken")
    compared = {record.cell.name for record in study.records() if record.compared}
    assert {path.stem for path in (study.path / "networks").iterdir()} == compared
    client = mlflow.MlflowClient(default_uri(study))
    tracked = client.search_logged_models([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    runs = {client.get_run(model.source_run_id).data.tags["network_surgery.cell"] for model in tracked}
    assert len(tracked) == len(compared) and runs == {f"{study.identity}/{name}" for name in compared}
    assert study.preset == "smoke"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_main_job_ended_by_signals_repeated_and_extended(
    surgery: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Whatever ends it, nothing of it is left running; what is there is not run again, and a comparison is added to."""
    ledger = tmp_path / "broken" / "cells.jsonl"
    with tempfile.TemporaryDirectory(prefix="", dir="/tmp") as place:
        for command, end, moment in (
            (("study", *SMALL, "--out", "broken"), signal.SIGTERM, "ray::ImplicitFunc"),
            (("resume", "broken"), signal.SIGHUP, "raylet"),
        ):
            stopped = surgery(*command, cwd=tmp_path, TMPDIR=place)
            while stopped.poll() is None and not any(moment in words(each) for each in descendants(stopped)):
                time.sleep(0.05)
            text = ended_by(end, stopped)
            assert "Go on with: surgery resume broken" in text
            assert not [word for word in ("Traceback", "received at time", "raylet") if word in text], text
        assert not [path.name for path in Path(place).iterdir() if path.name.startswith(("ray", PREFIX))]

    done(surgery("resume", "broken", cwd=tmp_path))
    text = done(surgery("resume", "broken", cwd=tmp_path))  # nothing is missing, so nothing is run
    assert "training runs" not in text and "did not reach MLflow" not in text

    kept = ledger.read_text()
    text = done(surgery("compare", "broken", "--top", "9", "--seeds", "1", cwd=tmp_path))
    assert "the search has only 3 schedules to compare, 9 are asked for" in text and "Report " in text
    assert ledger.read_text().startswith(kept)
    new = [json.loads(line)["cell"] for line in ledger.read_text()[len(kept) :].splitlines() if line]
    assert {cell["seed"] for cell in new} == {1} and len({cell["trial"] for cell in new}) == 2
