"""The experiment on widened layers, small: its arms differ in what they say, and in nothing else."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch

from network_surgery.study.bench import page as bench
from network_surgery.study.bench import training
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.rows import Measured, Rows
from network_surgery.study.experiments.widening import EXPERIMENT, measure, page
from network_surgery.study.experiments.widening.measure import (
    CODE,
    LATER,
    NOISY,
    OPERATIONS,
    REGULARIZERS,
    RESTART,
    SETTINGS,
    TRIED,
    TWIN,
    WHOLE,
    Options,
)
from network_surgery.study.task import images as data
from network_surgery.study.task.samples import Batches
from tests.study.experiments.made_up import measured_of

SMALL = Options(train_images=400, seeds=2, dense=(2, 3), conv=(2, 3), regularizers=(8, 2))
EXACT = ("equal", "uneven", "signed", "zero")
DOUBLED = [name for name, (_, units, wide, _) in SETTINGS.items() if wide == 2 * units]


@pytest.fixture(scope="module")
def measured():
    facts, tasks = measure.measure(SMALL)
    return measured_of("widening", SMALL, facts, (row for _, task in tasks for row in task()))


@pytest.fixture(scope="module")
def rows(measured):
    return measured.rows


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", measure.VALIDATION, SMALL.train_images)


def arm(rows, name, setting, field):
    return rows.grid(field, kind="arm", setting=setting, arm=name)[:, 0]


@pytest.mark.long
def test_every_arm_is_there_for_every_setting(rows):
    every = [WHOLE, TWIN, *OPERATIONS, RESTART, LATER]
    for setting in SETTINGS:
        there = [each for each in every if each != TWIN or setting in DOUBLED]
        assert rows.distinct("arm", kind="arm", setting=setting) == there
        assert all(arm(rows, each, setting, "loss").shape == (2, 4) for each in there)
    assert [row["arm"] for row in rows.where(regularizer=NOISY, seed=1)] == list(TRIED)
    assert rows.distinct("regularizer", kind="regularized") == list(REGULARIZERS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_arms_that_keep_the_function_start_at_the_same_loss(rows, setting):
    whole = arm(rows, WHOLE, setting, "loss")
    for name in EXACT:
        np.testing.assert_allclose(arm(rows, name, setting, "loss")[:, 0], whole[:, 0], rtol=1e-5)
    for name in (CODE, RESTART):
        assert not np.allclose(arm(rows, name, setting, "loss")[:, 0], whole[:, 0], rtol=1e-4)
    _, units, wide, _ = SETTINGS[setting]
    np.testing.assert_allclose(arm(rows, "zero", setting, "loss"), whole, rtol=1e-4)
    dead = arm(rows, "zero", setting, "dead") - arm(rows, WHOLE, setting, "dead")
    np.testing.assert_allclose(dead, wide - units)  # zero units are dead, and nothing changes


@pytest.mark.parametrize("setting", SETTINGS)
def test_equal_copies_never_part_and_others_do(rows, setting):
    rank = arm(rows, "equal", setting, "rank")
    assert (arm(rows, "equal", setting, "distance") < 1e-5).all()
    for name in ("uneven", "signed"):
        distance = arm(rows, name, setting, "distance")
        assert (distance[:, 0] == 0).all() and (distance[:, -1] > 1e-3).all()
        assert (arm(rows, name, setting, "rank")[:, -1] > rank[:, -1]).all()
    parted = arm(rows, CODE, setting, "distance") > 1e-4  # by the faults, where a layer is not doubled
    assert not parted.any() if setting in DOUBLED else parted.all()
    if setting in DOUBLED:
        np.testing.assert_allclose(rank[:, 0], arm(rows, WHOLE, setting, "rank")[:, 0], rtol=1e-5)
        np.testing.assert_allclose(arm(rows, "equal", setting, "loss"), arm(rows, TWIN, setting, "loss"), rtol=1e-2)
        assert (rank <= SETTINGS[setting][1] + 1e-6).all()


@pytest.mark.parametrize("optimizer", [measure.SGD_002, measure.ADAM], ids=["SGD", "Adam"])
@pytest.mark.parametrize("network", [measure.dense, measure.conv])
def test_a_double_of_equal_copies_is_the_narrow_network_at_other_rates(digits, network, optimizer):
    inputs, labels = Batches(digits.train, torch.device("cpu")).take(slice(256))

    def fit(model, optimizing):
        losses = []
        for part, targets in zip(inputs.double().split(32), labels.split(32), strict=True):
            optimizing.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(part), targets)
            loss.backward()
            optimizing.step()
            losses.append(loss.item())
        return losses

    torch.manual_seed(0)
    model = network(4, digits.shape, 10).double()
    optimizing = optimizer(model.parameters())
    fit(model, optimizing)
    wide, widened = copy.deepcopy((model, optimizing))
    measure.set_rates(model, optimizing)
    measure.operate(measure.Anatomy(wide, inputs[:2].double())["hidden"], measure.WeakExpand(1.0, "equal"), widened)
    rounding = 1e-5 if optimizer is measure.ADAM else 1e-9  # Adam: its eps does not scale
    np.testing.assert_allclose(fit(model, optimizing), fit(wide, widened), rtol=rounding)


def test_a_restart_has_the_wide_shape_and_the_whole_or_the_later_epochs(rows, digits):
    name = "dense 6 → 9, SGD"
    network, _, wide, optimizer = SETTINGS[name]
    whole, later = (arm(rows, each, name, "loss")[0] for each in (RESTART, LATER))
    test = Batches(digits.test, torch.device("cpu"))
    for epochs, loss in ((0, later[0]), (2, whole[0]), (3, later[-1]), (5, whole[-1])):
        trainer = training.train(digits, partial(network, wide), optimizer, epochs, 0)
        assert trainer.model.hidden.weight.shape == (9, 64)
        assert measure.follow(trainer, test, 0)[0]["loss"] == loss


def test_equal_seeds_give_equal_numbers_and_other_seeds_others(rows, digits):
    name = "dense 6 → 12, Adam"
    assert measure.arms(digits, name, *SMALL.dense, 0) == rows.where(kind="arm", setting=name, seed=0)
    losses = arm(rows, "equal", name, "loss")
    assert not np.allclose(losses[0], losses[1])


def test_effective_rank_and_distance():
    assert math.isclose(measure.effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])), 3, rel_tol=1e-6)
    assert math.isclose(measure.effective_rank(torch.tensor([5.0, 0.0])), 1, rel_tol=1e-6)
    units = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert measure.copy_distance(units, measure.copies((0, 1, 0))) == 0 and measure.copy_distance(units, ()) is None
    assert math.isclose(measure.copy_distance(units, [(0, 1)]), math.sqrt(2), rel_tol=1e-6)


def test_regularization_is_disturbed_where_it_must_be(rows):
    def factor(field, regularizer, name):
        return rows.grid(field, regularizer=regularizer, arm=name)[:, 0]

    for regularizer in set(REGULARIZERS) - {NOISY}:
        for name in TRIED:
            np.testing.assert_allclose(factor("at_once", regularizer, name), 1, rtol=1e-4)
    assert (factor("at_once", NOISY, "equal") < 0.9).all() and (factor("at_once", NOISY, "signed") > 1.3).all()
    assert (factor("distance", "none", "equal") == 0).all() and (factor("distance", NOISY, "equal") > 1e-3).all()
    assert (factor("later", "none", WHOLE) == 1).all()


def made_up(gain, seeds=6):
    """Rows in which ``gain`` is what uneven and signed shares are worth, and what widening does to a noisy loss."""
    rows, noise = [], np.random.default_rng(0)
    for seed in range(seeds):
        for setting in SETTINGS:
            accuracy, loss = 0.8 + noise.normal(0, 0.02), 0.2 * math.exp(noise.normal(0, 0.1))
            for name in (WHOLE, *[TWIN] * (setting in DOUBLED), *OPERATIONS, RESTART, LATER):
                worth = gain * (name in page.SHARES)
                one = accuracy + worth + noise.normal(0, 0.001)
                losses = [
                    loss,
                    loss * math.exp(-worth) * (1 if name in ("zero", WHOLE, TWIN, "equal") else 1 + seed / 1e4),
                ]
                distance = [0.0, max(worth, 0.0)] if name in OPERATIONS and name != "zero" else [None] * 2
                rows.append({
                    "kind": "arm", "setting": setting, "seed": seed, "arm": name, "accuracy": [accuracy, one],
                    "loss": losses, "rank": [5.0, 5 + worth + noise.normal(0, 0.001)], "distance": distance,
                    "dead": [0, 0],
                })  # fmt: skip
        for regularizer in REGULARIZERS:
            for name in TRIED:
                factor = math.exp(gain + noise.normal(0, 0.01)) if regularizer == NOISY and name != WHOLE else 1.0
                distance = 0.0 if name in OPERATIONS and name != "zero" else None
                rows.append({
                    "kind": "regularized", "regularizer": regularizer, "arm": name, "seed": seed, "at_once": factor,
                    "thesis": 0.9, "later": factor, "distance": distance,
                })  # fmt: skip
    return Rows(rows)


@pytest.mark.parametrize("gain", [0.3, -0.3, 0.0])
def test_claims_hold_where_the_numbers_say_so(gain):
    rows = made_up(gain)
    families = page.arm_claims(rows), page.regularized_claims(rows)
    verdicts = {verdict.claim.text: verdict.word for family in families for verdict in judge(family)}
    word = {0.3: "holds", -0.3: "does not hold: the opposite in 4 of 4", 0.0: "undecided"}[gain]
    for text in (
        "uneven shares end at more accuracy than equal ones",
        "signed shares end at more accuracy than starting over with the wide network",
        "signed copies part: a higher effective rank of the fan-in than equal ones",
        f"with {NOISY} widening raises the training loss at once",
    ):
        assert verdicts[text] == word, text
    assert verdicts["equal shares end at more accuracy than not widening"] == "undecided"
    assert verdicts["zero units change nothing (training loss at the end)"] == "holds"
    assert verdicts["equal copies never part (largest distance of all epochs)"] == "holds"


def test_copies_that_part_are_seen_in_the_verdict():
    rows = made_up(0.0)
    for row in rows.where(kind="arm", setting="conv 4 → 8, SGD", arm="equal"):
        row["distance"] = [0.0, 0.2]
    (first, *_) = judge(page.arm_claims(rows))
    assert first.word == "depends: holds in 3, the opposite in 1 of 4"


def test_the_page_follows_its_rows(measured, tmp_path):
    texts = []
    for name, rows in (("measured", measured.rows), ("up", made_up(0.3)), ("down", made_up(-0.3))):
        each = Measured(measured.about, rows)
        text = bench.write(EXPERIMENT.folder / "page.md", page.parts(each), each, tmp_path / name).read_text("utf-8")
        assert "nan" not in text and "$" not in text and rows.digest in text and "(arms.png)" in text
        picture = (tmp_path / name / "arms.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 250_000
        texts.append([line for line in text.splitlines() if "| **" in line and "shares end" in line])
    first, up, down = texts
    assert len(first) == len(up) == 9
    assert not any("**holds**" in one and "**holds**" in other for one, other in zip(up, down, strict=True))
