"""The experiment on widened layers, small: its arms differ in what they say, and in nothing else."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from network_surgery.study.evidence.significance import Difference as Test
from network_surgery.study.experiments.widening import __main__ as command
from network_surgery.study.experiments.widening import arms, regularized, training
from network_surgery.study.experiments.widening import report as written
from network_surgery.study.experiments.widening.arms import CODE, LATER, OPERATIONS, SETTINGS, TWIN

pytestmark = pytest.mark.slow

SMALL = [dataclasses.replace(setting, before=2, after=3) for setting in SETTINGS]
EXACT = ("equal", "uneven", "signed", "zero")


@pytest.fixture(scope="module")
def found():
    return arms.measure(range(2), settings=SMALL)


@pytest.fixture(scope="module")
def moments():
    return regularized.measure(range(2))


def test_every_arm_is_there_for_every_setting(found):
    every = {"unwidened", *OPERATIONS, "restart", LATER}
    for setting in SMALL:
        mine = every | ({TWIN} if setting.grow == 1 else set())
        assert {arm for name, arm in found if name == setting.name} == mine
        assert all(found[setting.name, arm]["loss"].shape == (2, 4) for arm in mine)


def test_arms_that_keep_the_function_start_at_the_same_loss(found):
    for setting in SMALL:
        losses = {arm: found[setting.name, arm]["loss"][:, 0] for arm in (*EXACT, CODE, "unwidened", "restart")}
        for arm in EXACT:
            np.testing.assert_allclose(losses[arm], losses["unwidened"], rtol=1e-5)
        for arm in (CODE, "restart"):
            assert not np.allclose(losses[arm], losses["unwidened"], rtol=1e-3)


def test_equal_copies_never_part_and_others_do(found):
    for setting in SMALL:
        equal, narrow = found[setting.name, "equal"], found[setting.name, "unwidened"]
        assert (equal["distance"] < 1e-5).all()
        if setting.grow == 1:
            np.testing.assert_allclose(equal["rank"][:, 0], narrow["rank"][:, 0], rtol=1e-5)
            np.testing.assert_allclose(equal["loss"], found[setting.name, TWIN]["loss"], rtol=1e-2)
            assert (equal["rank"] <= setting.units + 1e-6).all()
        for arm in ("uneven", "signed"):
            values = found[setting.name, arm]
            assert (values["distance"][:, 0] == 0).all() and (values["distance"][:, -1] > 1e-3).all()
            assert (values["rank"][:, -1] > equal["rank"][:, -1]).all()


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
@pytest.mark.parametrize("network", [arms.dense, arms.convolutional])
def test_a_double_of_equal_copies_is_the_narrow_network_at_other_rates(network, optimizer):
    (inputs, labels), _ = training.pictures()
    train = inputs[:256].double(), labels[:256]
    torch.manual_seed(0)
    model = network(4).double()
    its = training.OPTIMIZERS[optimizer](model)
    training.fit(model, its, train, 0, 0)
    wide, wides = copy.deepcopy((model, its))
    arms.rates(model, its)
    arms.operate(arms.Anatomy(wide, train[0][:2])["hidden"], arms.WeakExpand(1.0, "equal"), wides)
    losses = [training.fit(*each, train, 0, 1) for each in ((model, its), (wide, wides))]
    np.testing.assert_allclose(*losses, rtol=1e-5 if optimizer == "Adam" else 1e-9)  # Adam: its eps does not scale


def test_zero_units_are_dead_and_change_nothing(found):
    for setting in SMALL:
        zero, narrow = found[setting.name, "zero"], found[setting.name, "unwidened"]
        np.testing.assert_allclose(zero["loss"], narrow["loss"], rtol=1e-4)
        np.testing.assert_allclose(zero["dead"] - narrow["dead"], setting.wide - setting.units)


def test_the_published_codes_faults_part_copies_where_a_layer_is_not_doubled(found):
    for setting in SMALL:
        parted = found[setting.name, CODE]["distance"] > 1e-4
        assert parted.all() if setting.grow < 1 else not parted.any()


def test_a_restart_has_the_wide_shape_and_the_whole_or_the_later_epochs():
    setting = SMALL[2]
    train, test = training.pictures()
    records = dict(arms.arms(setting, 0, train, test))
    torch.manual_seed(0)
    fresh = arms.dense(setting.wide)
    first = training.look(fresh, train, test, training.copies(()))
    assert fresh.hidden.weight.shape == (9, 64)
    assert first["loss"] == records[LATER][0]["loss"] and records["restart"][0] != records[LATER][0]
    optimizer = training.OPTIMIZERS[setting.optimizer](fresh)
    for epoch in range(setting.before + setting.after):
        training.fit(fresh, optimizer, train, 0, epoch)
    assert training.look(fresh, train, test, training.copies(()))["loss"] == records["restart"][-1]["loss"]


def test_equal_seeds_give_equal_numbers_and_other_seeds_others(found):
    again = arms.measure([0], settings=SMALL[:1])
    for key, values in again.items():
        for measure, row in values.items():
            np.testing.assert_array_equal(row[0], found[key][measure][0])
    losses = found[SMALL[0].name, "equal"]["loss"]
    assert not np.allclose(losses[0], losses[1])


def test_effective_rank_and_distance():
    assert math.isclose(training.effective_rank(torch.tensor([3.0, 3.0, 3.0, 0.0])), 3, rel_tol=1e-6)
    assert math.isclose(training.effective_rank(torch.tensor([5.0, 0.0])), 1, rel_tol=1e-6)
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert training.copies((0, 1, 0, -1, -1)).tolist() == [[0, 2]]
    assert training.apart(rows, training.copies((0, 1, 0))) == 0
    assert math.isclose(training.apart(rows, torch.tensor([[0, 1]])), math.sqrt(2), rel_tol=1e-6)


def test_regularization_is_disturbed_where_it_must_be(moments):
    for operation in EXACT:
        for regularizer in ("none", "BatchNorm", "weight decay 0.01"):
            np.testing.assert_allclose(moments[regularizer, operation]["at_once"], 1, rtol=1e-4)
    noisy = {operation: moments["dropout 0.3", operation]["at_once"] for operation in EXACT}
    assert (noisy["equal"] < 0.9).all() and (noisy["signed"] > 1.5).all()
    assert (moments["weight decay 0.01", "equal"]["objective"] > 1.01).all()
    assert (moments["none", "equal"]["distance"] == 0).all()
    assert (moments["dropout 0.3", "equal"]["distance"] > 1e-3).all()


def test_one_family_of_tests_and_what_they_say(found, moments):
    for decided in (written.tests(found), written.tests_at_once(moments)):
        tested = [test for test in decided.values() if test.interval is not None]
        assert tested and all(0 <= test.p <= 1 for test in tested)
    assert Test(0.01, [0.005, 0.015], 0.01).words(100) == "+1.00 [+0.50, +1.50]*"
    assert Test(-0.01, [-0.03, 0.01], 0.3).words(100) == "-1.00 [-3.00, +1.00]"
    assert Test(math.log(2), [math.log(1.5), math.log(2.5)], 0.001).factor() == "2.000 [1.500, 2.500]*"
    assert Test(0.0, None, None).sign == 0


def test_a_report_and_a_figure_are_written(found, moments, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda seeds, workers: (found, moments))
    command.main(seeds=2, out=tmp_path / "docs")
    text = (tmp_path / "docs" / "widening.md").read_text(encoding="utf-8")
    assert text.count("| 2 |\n") == len(found) + len(moments) and "(widening.png)" in text
    assert "- **does not hold**: WeakExpand (equal shares" in text and "--seeds 2" in text and "nan" not in text
    picture = (tmp_path / "docs" / "widening.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 250_000
    assert written.report(found, moments, command.figure.draw(found), "widening.png") == text
