"""The experiment on the optimizer's state, small: it compares what it says it compares, and claims follow the rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from network_surgery.ops import MinWeight
from network_surgery.study import models
from network_surgery.study.bench import page as bench
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.experiment import Options
from network_surgery.study.bench.rows import Rows
from network_surgery.study.experiments.optimizer_state import EXPERIMENT, measure, page
from network_surgery.study.experiments.optimizer_state.measure import ARMS, OPERATIONS, OPTIMIZERS
from network_surgery.study.task.images import load
from network_surgery.study.task.samples import Batches
from tests.study.experiments.made_up import measured_of


def test_the_arms_start_equal_and_part(monkeypatch):
    monkeypatch.setattr(measure, "BEFORE", 4)
    monkeypatch.setattr(measure, "AFTER", 6)
    _, tasks = measure.measure(Options(seeds=2))
    rows = Rows(row for _, task in tasks for row in task())
    assert len(rows) == 2 * len(OPTIMIZERS) * len(OPERATIONS) * len(ARMS)
    for place, arm in itertools.product(page.PLACES, ARMS):
        losses, carried = page.curves(rows, place, arm), page.curves(rows, place, "carry")
        assert losses.shape == (2, 6) and np.isfinite(losses).all()
        np.testing.assert_allclose(losses[:, 0], carried[:, 0], rtol=1e-6)
        assert (arm == "carry") == np.allclose(losses[:, 1:], carried[:, 1:])


def made_up(gain):
    """Rows in which ``reset`` lies above ``carry`` by ``gain`` in the end, ``stale`` below it, with some noise."""
    noise, rows = np.random.default_rng(0), Rows()
    for seed, (optimizer, operation), arm in itertools.product(range(5), page.PLACES, ARMS):
        above = gain * (ARMS.index(arm) % 2 or -ARMS.index(arm)) * (np.arange(40) >= 10)
        losses = 1 + above + noise.normal(0, 0.01, 40)
        about = {"seed": seed, "optimizer": optimizer, "operation": operation, "arm": arm}
        rows.append(about | {"losses": losses.tolist()})
    facts = {"train": 10, "validation": 10, "test": 10}
    return measured_of("optimizer_state", Options(), facts, rows)


@pytest.mark.parametrize(
    ("gain", "reset", "stale"), [(0.2, "holds", "does not hold"), (-0.2, "does not hold", "holds")]
)
def test_claims_and_page_follow_the_rows(gain, reset, stale, tmp_path):
    measured = made_up(gain)
    words = {verdict.claim.text: verdict.word.partition(":")[0] for verdict in judge(page.claims(measured.rows))}
    assert words == {
        "steps 1–10: the loss is higher with reset than with carry": "undecided",
        "steps 1–40: the loss is higher with reset than with carry": reset,
        "steps 1–10: the loss is higher with stale than with carry": "undecided",
        "steps 1–40: the loss is higher with stale than with carry": stale,
    }
    file = bench.write(EXPERIMENT.folder / "page.md", page.parts(measured), measured, tmp_path)
    text = file.read_text(encoding="utf-8")
    assert f"- **{reset}**: steps 1–40: the loss is higher with reset" in text and "nan" not in text
    picture = (tmp_path / "losses.png").read_bytes()
    assert "](losses.png)" in text and picture.startswith(b"\x89PNG") and len(picture) < 150_000


def test_curves_are_smoothed_over_what_there_is():
    losses = np.random.default_rng(0).random((2, 9))
    by_hand = [[row[max(0, at - 2) : at + 3].mean() for at in range(9)] for row in losses]
    np.testing.assert_allclose(page.smooth(losses), by_hand)


def test_stale_state_stays_where_it_was():
    dataset = load("digits", validation=0.2)
    images = Batches(dataset.train, torch.device("cpu"))
    model = models.build("small_cnn", dataset.shape, 10)
    make = OPTIMIZERS["Adam, 1e-3"]
    optimizer = make(model)
    measure.train(model, optimizer, images, 2, seed=0)
    old = optimizer.state[model.conv2.weight]["exp_avg"]
    for arm in ARMS:
        operated, follower = measure.through_surgery(arm, model, optimizer, make, MinWeight(keep=0.5), images)
        state = follower.state.get(operated.conv2.weight)
        if arm == "reset":
            assert state is None
        else:
            assert torch.equal(state["exp_avg"], old[:32, :16]) == (arm == "stale") and state["step"] == 2
    assert model.conv2.weight.shape == (64, 32, 3, 3)
