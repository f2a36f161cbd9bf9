"""MLflow hears everything once, holds nothing up and ends nothing."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import TensorDataset

from network_surgery.ops import Anatomy, ZeroExpand, operate, save
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.references import lent
from network_surgery.study.search import tracking
from network_surgery.study.search.tracking import check_server, default_uri, inputs, measures, names, tracker
from network_surgery.study.search.tracking.machine import Machine
from network_surgery.study.search.tracking.tracker import Tracker
from network_surgery.study.search.tracking.views import first, view_tags
from network_surgery.study.store.folder import Folder
from network_surgery.study.task import ACCURACY, Metric, Sets, Stream, Task, build
from network_surgery.study.task.check import fresh
from network_surgery.study.task.images import Images, ImageTask, load
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import call
from network_surgery.study.training.cell import Cell
from tests.study.operated import looked_at, operated, spiked
from tests.study.task import pictures
from tests.tiers import long

CELL = Cell("search", 0, [{"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}], trial=3,
            params={"op": "min_weight", "keep": 0.5})  # fmt: skip
OPERATION = operated(evidence={"held_out_error": 0.25})
EPOCH = {"epoch": 2.0, "train_loss": 0.5, "validation_loss": 0.4, "validation_metric": 0.9, "train_seconds": 1.0,
         "parameters": 10, "operations": [OPERATION],
         "checks": [looked_at()],
         "redundancy": {"blocks.0.attention:heads": {"units": 8, "samples": 90, "units_99": 3, "units_99.9": 5},
                        "weird (n/me)": {"units_99": 2}},
         "idle": {"fc1": {"units": 8, "dead": 3, "frozen": 1}}, "probe_seconds": 0.01}  # fmt: skip
OUTCOME = {"validation_metric": 0.9, "validation_loss": 0.4, "parameters": 10, "flops": 20, "seconds": 2.0,
           "train_seconds": 1.5, "operation_seconds": 0.5, "probe_seconds": 0.01, "epochs": [{}] * 10,
           "latency_seconds": {"1": 0.002}, "peak_memory": None, "device": "cpu",
           "spikes": [spiked(2.0)], "operations": [OPERATION | {"epochs_to_recover": 2}]}  # fmt: skip

PERPLEXITY = Metric("perplexity", "lower", margin=0.05)
VERDICT = {"trial": 3, "sentence": "Surgery is fine.", "details": "By 10 points.",
           "surgery": 0.9, "rival": 0.8, "difference": 0.1,
           "compute_ratio": 1.0, "time_ratio": 1.0}  # fmt: skip


def images(count: int, seed: int = 0) -> Images:
    random = np.random.default_rng(seed)
    return Images(random.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), np.arange(count) % 3)


DATA = ImageTask(images(6), images(5, 1), images(4, 2), ("a", "b", "c"))


def folder(path: Path, **changes: Any) -> Folder:
    return Folder.make(path / "study", Settings(**changes), {"fc1": 8}, "smoke")


def client(study: Folder) -> Any:
    import mlflow

    return mlflow.MlflowClient(default_uri(study))


def runs(study: Folder) -> dict[str, Any]:
    api = client(study)
    experiment = api.get_experiment_by_name(tracking.EXPERIMENT)
    return {run.info.run_name: run for run in api.search_runs([experiment.experiment_id])}


def test_a_study_is_one_parent_and_a_child_for_each_cell(tmp_path: Path) -> None:
    import mlflow

    study = folder(tmp_path)
    note = tmp_path / "note.txt"
    note.write_text("hello")
    with Tracker(study, DATA) as tracked:
        tracked.started(CELL)
        tracked.epoch(CELL, EPOCH)
        study.ended(CELL, OUTCOME)
        tracked.ended(CELL, OUTCOME)
        failing = Cell("search", 0, trial=4)
        tracked.started(failing)
        tracked.ended(failing, {"failure": "the loss became nan"})
        ended_early = Cell("search", 0, trial=5)
        tracked.started(ended_early)
        tracked.ended(ended_early, OUTCOME | {"stopped": 2})
        rows = [{"arm": "original", "trial": None, "metric": 0.9, "latency_seconds": {"1": 0.1, "256": 0.2}}]
        rows.append({"arm": "surgery", "trial": 3, "metric": 0.8, "latency_seconds": {}})
        found = {"comparison": {"summary": rows, "verdicts": [VERDICT]}, "front": {"hypervolume": 0.75}}
        found["answer"] = {"sentence": "Use it: it is small."}
        tracked.summary(found, [note])
        while not tracked._machine:  # a study outlasts the making of its database
            time.sleep(0.01)
    assert tracked.lost == 0
    found = runs(study)
    parent, child = found["study: small_cnn on digits"], found["search: min_weight to ½ of fc1 at 1ep (trial 3)"]
    failed = found["search (trial 4)"]
    assert child.data.tags["mlflow.parentRunId"] == failed.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params["keep"] == "0.5" and child.data.params["trial"] == "3"
    assert json.loads(child.data.params["schedule"]) == list(CELL.schedule)
    assert parent.data.params["epochs"] == "10"
    tags = {"arm": "search", "schedule": "min_weight to ½ of fc1 at 1ep"}
    tags |= {"trial": "3", "operation": "min_weight", "preset": "smoke", "device": "cpu"}
    assert tags.items() <= child.data.tags.items()
    assert parent.data.tags["preset"] == "smoke" and parent.data.tags["verdict"] == "Surgery is fine."
    assert child.data.metrics["accuracy/validation"] == 0.9
    assert client(study).get_metric_history(child.info.run_id, "loss/train")[0].step == 2
    assert (parent.info.status, child.info.status, failed.info.status) == ("FINISHED", "FINISHED", "FAILED")
    assert found["search (trial 5)"].data.tags["stopped"] == "2" and found["search (trial 5)"].info.status == "FINISHED"
    assert failed.data.tags["failure"] == "the loss became nan"
    files = {artifact.path for artifact in client(study).list_artifacts(parent.info.run_id)}
    assert files == {"note.txt", "comparison.json", "training_runs.json"}
    listed = json.loads(parent.data.tags["mlflow.loggedArtifacts"])  # what MLflow's page shows as tables
    assert {entry["path"] for entry in listed} == {"comparison.json", "training_runs.json"}
    table = mlflow.artifacts.load_dict(f"{parent.info.artifact_uri}/training_runs.json")
    (row,) = (dict(zip(table["columns"], row, strict=True)) for row in table["data"])
    assert (row["training"], row["validation accuracy"], row["test accuracy"]) == ("search-003", 0.9, "")
    table = mlflow.artifacts.load_dict(f"{parent.info.artifact_uri}/comparison.json")
    assert table["columns"] == ["arm", "trial", "accuracy", "latency_seconds 1", "latency_seconds 256"]
    assert table["data"] == [["original", "", 0.9, 0.1, 0.2], ["surgery", 3, 0.8, "", ""]]
    note = "**Use it: it is small.**\n\n**A**: Surgery is fine. By 10 points."
    assert parent.data.tags["mlflow.note.content"] == note and parent.data.tags["answer"] == "Use it: it is small."
    assert parent.data.metrics["arm mean/original"] == 0.9 and parent.data.metrics["arm mean/surgery A"] == 0.8
    assert parent.data.metrics["verdict/difference"] == 0.1 and parent.data.metrics["front/hypervolume"] == 0.75
    assert any(name.startswith("system/") for name in parent.data.metrics)
    assert (tmp_path / "study" / "mlflow-artifacts").is_dir()

    again = Folder.open(tmp_path / "study")  # a resumed study goes on with the runs it had
    with Tracker(again, DATA) as tracked:
        tracked.started(failing)
        tracked.ended(failing, OUTCOME)
        tracked.interrupted()
    assert tracked.lost == 0
    after = runs(study)
    assert set(after) == set(found)
    assert after["search (trial 4)"].info.run_id == failed.info.run_id
    assert after["search (trial 4)"].info.status == "FINISHED"
    assert after["study: small_cnn on digits"].info.status == "KILLED"


def test_the_metrics_of_an_epoch_and_of_an_outcome() -> None:
    found = {name: (value, step) for name, value, step in measures.of_epoch(EPOCH)}
    for name, value in {
        "loss/train": 0.5, "accuracy/validation": 0.9, "size/parameters": 10, "seconds/probe": 0.01,
        "operation loss/spike_factor fc1": 2, "operation size/units_after fc1": 4, "operation seconds/seconds fc1": 0.1,
        "operation loss/held_out_error fc1": 0.25, "condition/redundancy fc1": 0.25, "idle/dead fc1": 3,
        "redundancy/units_99.9 blocks.0.attention:heads": 5, "redundancy/units_99 weird _n_me_": 2,
    }.items():  # fmt: skip
        assert found[name] == (value, 2)
    assert "operation loss/epochs_to_recover fc1" not in found  # nobody knows yet
    ended = {name: (value, step) for name, value, step in measures.of_outcome(OUTCOME)}
    assert ended["seconds/total"] == (2, 10) and ended["seconds/latency 1"] == (0.002, 10)
    assert ended["operation loss/epochs_to_recover fc1"] == ended["operation loss/spike_factor"] == (2, 2)
    assert "size/peak_memory" not in ended and not measures.of_test(OUTCOME)
    assert measures.of_test(OUTCOME | {"test_metric": 0.75}) == [("accuracy/test", 0.75, 10)]
    gap = {"train_metric": 1.0, "train_test_gap": 0.25}
    assert measures.of_test(OUTCOME | gap) == [("accuracy/train", 1.0, 10), ("accuracy/train minus test", 0.25, 10)]
    ten = {"test_metric": 0.75, "test_metrics": {"accuracy": 0.75, "top 5": 1.0}}
    assert measures.of_test(OUTCOME | ten) == [("accuracy/test", 0.75, 10), ("top 5/test", 1.0, 10)]
    assert all(name.count("/") == 1 for name in found | ended)  # MLflow's charts have a section for what is before it


def test_metrics_have_the_name_of_the_task_s_metric() -> None:
    epoch = EPOCH | {"validation_metric": 12.5, "validation_metrics": {"perplexity": 12.5, "bits/byte": 3.6}}
    found = {name: value for name, value, _ in measures.of_epoch(epoch, PERPLEXITY)}
    assert found["perplexity/validation"] == 12.5 and found["bits_byte/validation"] == 3.6
    assert not any(name.startswith("accuracy") for name in found)
    ended = {"test_metric": 13.0, "train_metric": 10.0, "train_test_gap": 3.0}
    assert measures.of_test(OUTCOME | ended, PERPLEXITY) == [
        ("perplexity/test", 13.0, 10), ("perplexity/train", 10.0, 10), ("perplexity/test minus train", 3.0, 10)
    ]  # fmt: skip
    loss = Metric("loss", "lower")  # its values are the losses: each once, and not mixed with those of epochs
    names = [name for name, *_ in measures.of_epoch(EPOCH | {"validation_metric": 0.4}, loss)]
    assert names.count("loss/validation") == names.count("loss/train") == 1
    ended |= {"test_loss": 13.0}
    assert [name for name, *_ in measures.of_test(OUTCOME | ended, loss)] == [
        "loss/test", "loss/train final", "loss/test minus train"
    ]  # fmt: skip


OWN = """
import numpy as np
import torch
from torch import nn
from network_surgery.study.task import Metric, Samples, Stream, Task


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, left, right):
        return {"score": self.fc2(torch.relu(self.fc1(torch.cat([left, right], 1))))}


class Named(Task):
    metric = Metric("error", "lower", margin=0.1)

    def inputs(self, n):
        random = np.random.default_rng(n)
        return {"left": random.normal(size=(n, 4)).astype("float32"), "right": np.ones((n, 2), "float32")}

    def load(self):
        return [Samples(self.inputs(n), np.ones((n, 1), "float32")) for n in (8, 6, 4)]

    def model(self):
        return Two()

    def loss(self, outputs, targets):
        return (outputs["score"] - targets).square().mean()

    def measure(self, outputs, targets):
        return {"error": (outputs["score"] - targets).abs().flatten()}


class Placed(Named):
    def inputs(self, n):
        return tuple(super().inputs(n).values())


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, number):
        return {"left": torch.zeros(4), "right": torch.ones(2)}, torch.ones(1)


class Streamed(Named):
    def load(self):
        return Pairs(), Pairs(), Pairs()
"""


def test_a_trial_beyond_the_budget_says_so_and_by_how_much(tmp_path: Path) -> None:
    settings = Settings(budget={"parameters": 0.1})
    study = Folder.make(tmp_path / "study", settings, {"fc1": 8}, "smoke", original={"parameters": 80, "flops": 9})
    small, racing = Cell("search", 0, trial=4), Cell("racing", 1000, trial=4)
    with Tracker(study, DATA) as tracked:
        for cell, parameters in ((CELL, 10), (small, 8), (racing, 8)):
            tracked.started(cell)
            tracked.ended(cell, OUTCOME | {"parameters": parameters})
    assert tracked.lost == 0
    found = {(run.data.tags.get("arm"), run.data.tags.get("trial")): run.data for run in runs(study).values()}
    assert found["search", "3"].tags["feasible"] == "false" and found["search", "4"].tags["feasible"] == "true"
    assert found["search", "3"].metrics["budget/over parameters"] == pytest.approx(0.25)
    assert found["racing", "4"].tags["feasible"] == "true"


@pytest.mark.parametrize("kind", ["Named", "Placed", "Streamed"])
def test_the_network_of_one_s_own_task_is_a_model_that_its_settings_make_again(kind: str, tmp_path: Path) -> None:
    import mlflow

    (tmp_path / "mine.py").write_text(OWN)
    settings = Settings(task=f"{tmp_path / 'mine.py'}:{kind}")
    task = build(settings)
    study = Folder.make(tmp_path / "study", settings, {"fc1": 8}, None, task.metric, task.unit)
    network, example = fresh(task), Batches(task.validation, torch.device("cpu")).take(slice(0, 2))[0]
    operate(Anatomy(network, example)["fc1"], ZeroExpand(0.5))
    (study.path / "networks").mkdir()
    save(network, study.path / "networks" / "it.pt")
    cell = Cell("surgery", 1, CELL.schedule, trial=3, test=True)
    with Tracker(study, task) as tracked:
        tracked.started(cell)
        curve = [{"epoch": float(epoch), "validation_metric": 2.0 - epoch / 10} for epoch in range(1, 11)]
        tracked.ended(cell, OUTCOME | {"test_metric": 0.75, "network": "networks/it.pt", "epochs": curve})
    assert tracked.lost == 0, tracked.reason
    found = runs(study)
    run = next(run for name, run in found.items() if name.startswith("surgery, seed 1"))
    assert run.data.tags["improving"] == "true"
    assert run.data.metrics["error/test"] == 0.75 and f"study: mine.py:{kind}" in found
    mlflow.set_tracking_uri(default_uri(study))
    loaded = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/network")
    assert loaded.get_raw_model().fc1.out_features == 12
    with torch.no_grad():
        wanted = call(network.eval(), example)["score"]
    asked = torch.utils._pytree.tree_map(lambda tensor: tensor.numpy(), example)
    answer = loaded.predict(asked)
    torch.testing.assert_close(torch.tensor(answer["score"]), wanted)
    signature = loaded.metadata.signature
    if kind == "Placed":  # MLflow knows no tuples
        assert signature is None
    else:
        assert [(spec.name, spec.shape) for spec in signature.inputs.inputs] == [("left", (-1, 4)), ("right", (-1, 2))]
        assert [(spec.name, spec.shape) for spec in signature.outputs.inputs] == [("score", (-1, 1))]
    kinds = {tag.value: each.dataset for each in run.inputs.dataset_inputs for tag in each.tags}
    assert {data.name for data in kinds.values()} == {f"mine.py:{kind}"} and "mine.py" in kinds["test"].source
    wanted_digest = "test-6" if kind == "Streamed" else task.test.digest()
    assert kinds["test"].digest == wanted_digest


class Given(Task):
    """As if it were defined in a notebook."""

    metric = Metric("error", "lower", margin=0.1)

    def load(self) -> Any:
        parts = [np.random.default_rng(seed).normal(size=(9, 4)).astype(np.float32) for seed in (0, 1, 2)]
        return [(part, part[:, :1]) for part in parts]

    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))


@pytest.mark.parametrize("known", [True, False])
def test_a_model_that_cannot_be_made_costs_no_other_record(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread knows what Python gave; elsewhere loading is refused in a sentence, and it is tried once."""
    import mlflow

    write, tries = tracker.model.write, list[Any]()
    monkeypatch.setattr(tracker.model, "write", lambda *given: (tries.append(given), write(*given)))
    settings, task = Settings(task="python:Given"), Given()
    study = Folder.make(tmp_path / "study", settings, {"0": 8}, None, task.metric, task.unit)
    (study.path / "networks").mkdir()
    save(fresh(task), study.path / "networks" / "it.pt")
    cell = Cell("surgery", 1, CELL.schedule, trial=3, test=True)
    with lent({"python:Given": Given} if known else {}), Tracker(study, task) as tracked:
        tracked.started(cell)
        tracked.ended(cell, OUTCOME | {"test_metric": 0.75, "network": "networks/it.pt"})
    assert tracked.lost == (not known) and len(tries) == 1
    assert known or tracked.reason.startswith(
        "the network of surgery-003-seed-1 cannot be made a model: the task Given"
    )
    run = next(run for name, run in runs(study).items() if name.startswith("surgery, seed 1"))
    assert run.data.metrics["error/test"] == 0.75 and run.info.status == "FINISHED"
    if not known:
        return
    mlflow.set_tracking_uri(default_uri(study))
    with pytest.raises(StudyError, match=r"the task Given of this network was given from Python, .*study\.open\("):
        mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/network")
    with lent({"python:Given": Given}):
        assert mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/network").predict(
            np.zeros((2, 4), np.float32)
        ).shape == (2, 1)


def test_the_final_network_is_the_model_of_its_run(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """It is altered, so that the factory alone would not make it; what MLflow loads computes what it computes."""
    import mlflow

    study = folder(tmp_path, model="mlp")
    network = models.build("mlp", DATA.shape, 3)
    operate(Anatomy(network, torch.zeros(2, 1, 8, 8))["fc1"], ZeroExpand(0.5))
    (study.path / "networks").mkdir()
    save(network, study.path / "networks" / "it.pt")
    cell = Cell("surgery", 1, CELL.schedule, trial=3, test=True)
    outcome = OUTCOME | {"test_metric": 0.75, "network": "networks/it.pt"}
    with Tracker(study, DATA) as tracked:
        tracked.started(cell)
        tracked.ended(cell, outcome)
    assert tracked.lost == 0
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)], "MLflow's, on the terminal"
    run = runs(study)["surgery, seed 1: min_weight to ½ of fc1 at 1ep (trial 3)"]
    mlflow.set_tracking_uri(default_uri(study))
    loaded = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/network")
    shown = np.random.default_rng(0).uniform(-1, 1, (7, 1, 8, 8)).astype(np.float32)
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(loaded.predict(shown)), network.eval()(torch.tensor(shown)))
    assert loaded.get_raw_model().fc1.out_features == 192
    assert [spec.shape for spec in loaded.metadata.signature.inputs.inputs] == [(-1, 1, 8, 8)]
    assert [spec.shape for spec in loaded.metadata.signature.outputs.inputs] == [(-1, 3)]
    with pytest.raises(mlflow.MlflowException, match="shape"):
        loaded.predict(shown[:, :, :4])
    model = client(study).search_logged_models([run.info.experiment_id])[0]
    assert (model.name, str(model.status), model.source_run_id) == ("network", "READY", run.info.run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.dataset_digest) == ("accuracy/test", 0.75, DATA.test.digest())
    assert run.data.metrics["accuracy/test"] == 0.75
    kinds = {tag.value: each.dataset for each in run.inputs.dataset_inputs for tag in each.tags}
    assert {kind: data.digest for kind, data in kinds.items()} == {
        "training": DATA.train.digest(), "validation": DATA.validation.digest(),
        "test": DATA.test.digest(),
    }  # fmt: skip
    assert json.loads(kinds["test"].profile)["features_shape"] == [4, 1, 8, 8]


def test_a_fingerprint_is_of_pixels_and_labels() -> None:
    one = images(6)
    assert one.digest() == images(6).digest() != images(6, 1).digest()
    assert Images(one.pixels, one.labels[::-1].copy()).digest() != one.digest()
    assert Images(one.pixels.reshape(6, 1, 4, 16), one.labels).digest() != one.digest()
    read_only = one.pixels.copy()[:]
    read_only.flags.writeable = False
    assert Images(read_only, one.labels).digest() == one.digest()


@pytest.mark.parametrize(
    ("name", "part", "kind", "source"),
    [
        ("digits", "train", "code", "sklearn.datasets.load_digits"),
        ("cifar10", "test", "http", "cifar-10-python.tar.gz"),
        ("fashion_mnist", "train", "http", "fashion-mnist"),
        ("folder:/data/pets", "train", "local", "/data/pets/train"),
        ("folder:/data/pets", "test", "local", "/data/pets/test"),
    ],
)
def test_a_dataset_says_where_it_is_from(
    name: str, part: str, kind: str, source: str, recwarn: pytest.WarningsRecorder
) -> None:
    found = inputs.datasets(Settings(data=name), DATA)[part].dataset
    assert not [each for each in recwarn if issubclass(each.category, UserWarning)], "MLflow's, on the terminal"
    assert found.source_type == kind and source in found.source
    assert found.name == name.split("/")[-1]


def test_a_streamed_dataset_says_its_number_and_fingerprint(tmp_path: Path) -> None:
    path = pictures.folder(tmp_path / "pets")
    task = load(f"folder:{path}", 0.25, stream="true")
    found = {part: each.dataset for part, each in inputs.datasets(Settings(data=f"folder:{path}"), task).items()}
    assert {part: about.digest for part, about in found.items()} == {
        part: getattr(task, part).digest() for part in ("train", "validation", "test")
    }
    assert json.loads(found["test"].profile) == {"num_rows": 4, "shape": [3, 6, 5]}
    assert found["train"].source_type == "local" and found["test"].source.count(str(path / "test"))


def test_anyones_stream_without_a_fingerprint_has_one_of_its_name(tmp_path: Path) -> None:
    part = Stream(TensorDataset(torch.zeros(5, 1), torch.zeros(5)))
    task = Task()
    task.load = lambda: Sets(part, part, part)  # type: ignore[method-assign]
    found = inputs.datasets(Settings(task="mine:Task"), task)["train"].dataset
    assert found.digest and json.loads(found.profile) == {"num_rows": 5}


def test_every_operation_of_a_schedule_is_a_tag(tmp_path: Path) -> None:
    steps = [{"op": "pcns"}, {"op": "eigen_remove"}, {"op": "pcns"}]
    tags = names.cell_tags(folder(tmp_path), Cell("surgery", 1, steps), "parent")
    assert tags["operation"] == "pcns, eigen_remove" and "trial" not in tags
    assert names.cell_tags(folder(tmp_path / "other"), Cell("original", 1), "parent")["operation"] == "none"


def test_the_commit_of_the_folder_that_the_command_runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    said = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    monkeypatch.chdir(tmp_path)
    tags = names.origin_tags()
    assert tags["mlflow.source.git.commit"] == said.stdout.strip()
    assert tags["mlflow.user"] and tags["mlflow.source.name"]


def test_the_load_of_the_machine_is_told_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    over, heard = threading.Event(), []
    machine = Machine(heard.append, over)
    while len(heard) < 3:
        time.sleep(0.01)
    over.set()
    machine.join()
    count = len(heard)
    time.sleep(0.1)
    assert len(heard) == count
    assert 0 < heard[0]["system/system_memory_usage_percentage"] < 100


@pytest.mark.parametrize("metric", [ACCURACY, Metric("F1 (macro)", "higher"), PERPLEXITY])
def test_views_show_what_the_tracker_writes(metric: Metric) -> None:
    """Every column and every order is a metric or a tag that runs have."""
    test = measures.of_test(OUTCOME | {"test_metric": 0.75}, metric)
    known = {name for name, *_ in [*measures.of_epoch(EPOCH, metric), *measures.of_outcome(OUTCOME), *test]}
    tags = {"arm", "operation"}
    assert f"mlflow.sharedViewState.{first(metric)}" in view_tags(metric)
    assert (view_tags(metric).keys() == view_tags().keys()) == (metric == ACCURACY)  # both may lie on one server
    opened = json.loads(json.loads(view_tags(metric)[f"mlflow.sharedViewState.{first(metric)}"])["state"])
    assert [key["groupByData"] for key in opened["groupBy"]["groupByKeys"]] == ["arm", "schedule"]
    for view in view_tags(metric).values():
        state = json.loads(json.loads(view)["state"])
        assert state["orderByAsc"] == (metric.better == "lower")
        for column in (*state["selectedColumns"], state["orderByKey"]):
            kind, _, name = column.partition(".")
            assert name.strip("`") in {"metrics": known, "tags": tags}[kind]


def test_a_server_that_is_away_neither_holds_up_nor_ends_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(tracker, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    study = folder(tmp_path, tracking_uri=f"http://127.0.0.1:{port}")
    with Tracker(study, DATA) as tracked:
        start = time.monotonic()
        for _ in range(100):
            tracked.started(CELL)
            tracked.epoch(CELL, EPOCH)
        held_up = time.monotonic() - start
    assert held_up < 1
    assert tracked.lost > 0
    with pytest.raises(StudyError, match=f"nothing can be tracked at http://127.0.0.1:{port}"):
        check_server(f"http://127.0.0.1:{port}")


def test_what_waits_is_caught_up_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tries fail, as when a server restarts; nothing is lost and the order stays."""
    monkeypatch.setattr(tracker, "RETRY_SECONDS", 0.05)
    tracked = Tracker(folder(tmp_path), DATA)
    failures = iter([True, True, False, True])
    heard: list[str] = []

    def job(name: str) -> Any:
        def write() -> None:
            if next(failures, False):
                raise ConnectionError("away")
            heard.append(name)

        return write

    monkeypatch.setattr(tracked, "_open", job("open"))
    monkeypatch.setattr(tracked, "_catch_up", lambda records: None)
    monkeypatch.setattr(tracked, "_client", type("C", (), {"set_terminated": lambda *_: heard.append("closed")})())
    with tracked:
        for name in "abc":
            tracked._jobs.put(job(name))
    assert heard == ["open", "a", "b", "c", "closed"]
    assert tracked.lost == 0


@pytest.mark.parametrize("end", [signal.SIGINT, long(signal.SIGTERM)])
def test_nothing_of_the_browser_interface_is_left_when_it_is_ended(end: int, tmp_path: Path) -> None:
    study = Folder.make(tmp_path / "study", Settings(), {"fc1": 8})
    with Tracker(study, DATA):
        pass
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "network_surgery.study", "ui", str(study.path), "--port", str(port)]
    shown = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert shown.stdout is not None
    assert any("startup complete" in line for line in shown.stdout)
    processes = psutil.Process(shown.pid).children(recursive=True)
    assert processes
    shown.send_signal(end)
    assert shown.wait(60) == 0
    assert not psutil.wait_procs(processes, 20)[1]
