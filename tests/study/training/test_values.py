"""The metric of each test sample, kept beside the network: what is read is what was measured, and it is small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from network_surgery.study.config import Settings
from network_surgery.study.store.folder import Folder, Record
from network_surgery.study.task import build
from network_surgery.study.training import values
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.evaluation import Scores
from network_surgery.study.training.run import run


def scores(each: torch.Tensor, metric: float | None = None) -> Scores:
    mean = float(each.double().mean()) if metric is None else metric
    return Scores(0.0, mean, {"m": mean}, {"m": each})


@pytest.mark.parametrize(
    ("each", "size"),
    [
        (torch.tensor([1.0, 0.0] * 500), 1000 / 8),
        (torch.rand(1000, generator=torch.Generator().manual_seed(0)), 2 * 1000),
        (torch.linspace(0, 1e6, 1000), 4 * 1000),
    ],
    ids=["bits", "half floats", "floats"],
)
def test_values_come_back_from_a_small_file(each: torch.Tensor, size: float, tmp_path: Path) -> None:
    assert values.keep(scores(each), "m", tmp_path / "networks" / "a.pt") == 1000
    np.testing.assert_allclose(values.read(tmp_path / "networks" / "a.pt", 1000), each, rtol=1e-3, atol=1e-6)
    assert (tmp_path / "networks" / "a.npy").stat().st_size <= size + 200
    assert values.read(tmp_path / "networks" / "b.pt", 1000) is None


def test_a_metric_that_is_no_mean_over_samples_has_none(tmp_path: Path) -> None:
    assert values.keep(scores(torch.rand(10), 7.0), "m", tmp_path / "a.pt") is None
    assert values.keep(scores(torch.rand(10)), "other", tmp_path / "a.pt") is None
    assert not list(tmp_path.iterdir())


def test_a_run_keeps_them_and_its_study_reads_them(tmp_path: Path) -> None:
    settings = Settings(model="mlp", epochs=1, train_images=80, probe=0)
    folder, task, cell = (
        Folder.make(tmp_path / "s", settings, {"fc1": 8}),
        build(settings),
        Cell("original", 1, test=True),
    )
    network = folder.path / "networks" / f"{cell.name}.pt"
    outcome = run(cell, task, settings, torch.device("cpu"), network=network)
    kept = folder.test_values(Record(cell, outcome))
    assert outcome["test_values"] == len(task.test) == len(kept)  # type: ignore[arg-type]
    assert kept is not None and kept.mean() == pytest.approx(outcome["test_metric"])
    same = folder.test_values(Record(Cell("restart_flops", 1, test=True), outcome | {"same_as": cell.name}))
    assert same is not None and (same == kept).all()
    assert folder.test_values(Record(cell, {"test_metric": 0.9})) is None  # an older study
