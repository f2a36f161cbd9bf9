"""The experiment on the optimizer's state, small: it compares what it says it compares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from network_surgery.ops import MinWeight
from network_surgery.study import data, models
from network_surgery.study.experiments import optimizer_state
from network_surgery.study.experiments.optimizer_state import ARMS, OPERATIONS, OPTIMIZERS
from network_surgery.study.training.trainer import Batches

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found():
    return optimizer_state.measure(seeds=2, before=4, after=6)


def test_the_arms_start_equal_and_part(found):
    assert set(found) == {(o, p, a) for o in OPTIMIZERS for p in OPERATIONS for a in ARMS}
    for (optimizer, operation, arm), losses in found.items():
        carried = found[optimizer, operation, "carry"]
        assert losses.shape == (2, 6) and np.isfinite(losses).all()
        np.testing.assert_allclose(losses[:, 0], carried[:, 0], rtol=1e-6)
        assert (arm == "carry") == np.allclose(losses[:, 1:], carried[:, 1:])


def test_a_report_and_a_figure_are_written(found, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizer_state, "measure", lambda seeds: found)
    optimizer_state.main(seeds=2, out=tmp_path / "docs")
    text = (tmp_path / "docs" / "optimizer_state.md").read_text(encoding="utf-8")
    assert text.count("| 2 |") == len(found) and "optimizer_state.png" in text
    picture = (tmp_path / "docs" / "optimizer_state.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000


def test_stale_state_stays_where_it_was():
    dataset = data.load("digits", validation=0.2)
    images = Batches(dataset.train, torch.device("cpu"))
    model = models.build("small_cnn", dataset.shape, 10)
    make = OPTIMIZERS["Adam, 1e-3"]
    optimizer = make(model)
    optimizer_state.train(model, optimizer, optimizer_state.batches(images, 2, seed=0))
    old = optimizer.state[model.conv2.weight]["exp_avg"]
    for arm in ARMS:
        operated, its = optimizer_state.through_surgery(arm, model, optimizer, make, MinWeight(keep=0.5), images)
        state = its.state.get(operated.conv2.weight)
        if arm == "reset":
            assert state is None
        else:
            assert torch.equal(state["exp_avg"], old[:32, :16]) == (arm == "stale") and state["step"] == 2
    assert model.conv2.weight.shape == (64, 32, 3, 3)
