"""The experiment on repairs, small: arms share everything but their removal and their repairs."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from network_surgery.ops import MeanReplace, Moment, Schedule, Step
from network_surgery.study import data
from network_surgery.study.config import Settings
from network_surgery.study.experiments.repairs import __main__ as command
from network_surgery.study.experiments.repairs import arms, at_once, parallel
from network_surgery.study.experiments.repairs import report as written
from network_surgery.study.experiments.repairs.arms import ARMS, CHAINS, NOTHING, REMOVALS, Setting
from network_surgery.study.training.trainer import Batches, Shown, Trainer, evaluate

pytestmark = pytest.mark.slow

SMALL = Setting(Settings(model="small_cnn", epochs=4, batch_size=32, signal_images=128), before=1, keep=0.5)
DEEP = at_once.Deep(Settings(model="small_cnn", epochs=1, batch_size=32), keeps=(0.5,), images=128)
LAYERS = ("conv1", "conv2", "fc1")


@pytest.fixture(scope="module")
def digits():
    return arms.thinned(data.load("digits", 0.2), 320, 160, 100)


@pytest.fixture(scope="module")
def trained(digits):
    return arms.prefix(digits, 0, SMALL)


@pytest.fixture(scope="module")
def found(digits):
    return parallel.joined([arms.measure(digits, seed, SMALL) for seed in range(2)])


@pytest.fixture(scope="module")
def right(digits):
    parts = [at_once.measure(digits, seed, DEEP) for seed in range(2)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def cut(trained, digits, operation, chain=()):
    schedule = Schedule(tuple(Step(Moment(SMALL.before), layer, operation, chain) for layer in LAYERS))
    record = arms.follow(trained, digits, schedule, SMALL)
    return {name: value for name, value in record.items() if name != "share"}


def test_every_arm_is_there_once(found):
    assert list(found) == [NOTHING, *ARMS] and len(set(ARMS)) == len(ARMS) == 3 * len(CHAINS) + 4 + 2
    assert {removal for removal, _ in ARMS} == set(REMOVALS)
    for values in found.values():
        assert values["accuracy"].shape == (2, 4) and values["test"].shape == (2,)
        assert all(not np.isnan(each).any() for each in values.values())
        assert ((values["recovered"] >= 0) & ((values["recovered"] <= 3) | np.isinf(values["recovered"]))).all()


def test_nothing_is_training_that_was_not_interrupted(digits, found):
    whole = arms.prefix(digits, 1, Setting(SMALL.settings, SMALL.settings.epochs, 1.0))
    accuracies = [record["validation_accuracy"] for record in whole.history]
    np.testing.assert_array_equal(found[NOTHING]["accuracy"][1], accuracies[SMALL.before - 1 :])
    assert found[NOTHING]["test"][1] == evaluate(whole.model, Batches(digits.test, arms.CPU))[1]
    assert (found[NOTHING]["spike"] == 1).all() and (found[NOTHING]["share"] == 0).all()


def test_an_arm_leaves_what_it_started_from_as_it_was(digits, trained):
    before = copy.deepcopy((trained.model.state_dict(), trained.optimizer.state_dict(), trained.history))
    first = cut(trained, digits, REMOVALS["PCNS"](0.5, 0), ("batchnorm",))
    torch.testing.assert_close(trained.model.state_dict(), before[0], rtol=0, atol=0)
    torch.testing.assert_close(trained.optimizer.state_dict()["state"], before[1]["state"], rtol=0, atol=0)
    assert trained.history == before[2] and trained.model.conv1.out_channels == 32
    assert cut(trained, digits, REMOVALS["PCNS"](0.5, 0), ("batchnorm",)) == first


def test_what_is_left_out_repeats_what_is_there(digits, trained):
    for chain, other in (((), ("bias",)), (("batchnorm",), ("bias", "batchnorm"))):
        assert cut(trained, digits, MeanReplace(0.5), chain) == cut(
            trained, digits, REMOVALS["min weight"](0.5, 0), other
        )
    variance = REMOVALS["mean replacement"](0.5, 0)
    assert cut(trained, digits, variance) == cut(trained, digits, variance, ("bias",))


@pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
def test_the_theatre_cuts_as_the_deep_network_is_cut(digits, trained, chain):
    operation = REMOVALS["random"](0.5, 0)
    model = copy.deepcopy(trained.model)
    at_once.cut(model, operation, chain, Shown(Batches(digits.train, arms.CPU), SMALL.settings.signal_images))
    assert [getattr(model, name).weight.shape[0] for name in LAYERS] == [16, 32, 48]
    record = cut(trained, digits, operation, chain)
    loss, accuracy = evaluate(model, trained.validation)
    assert record["accuracy"][0] == accuracy
    assert record["spike"] == pytest.approx(loss / trained.history[-1]["validation_loss"])


def test_repairs_soften_the_spike_and_take_time(found):
    for removal in ("min weight", "random", "EigenRemove"):
        spike = {chain: np.log(found[removal, chain]["spike"]).mean() for chain in CHAINS}
        assert spike["least squares + batchnorm"] < spike["none"]
        for chain in set(CHAINS) - {"none"}:
            assert (found[removal, chain]["share"] > found[removal, "none"]["share"]).all()


@pytest.mark.parametrize(("chain", "same"), [(("batchnorm",), True), (("bias",), False)])
def test_new_statistics_alone_leave_training_as_it_would_have_been(digits, trained, chain, same):
    weights = []
    for repairs in ((), chain):
        model = copy.deepcopy(trained.model)
        shown = Shown(Batches(digits.train, arms.CPU), 128)
        at_once.cut(model, REMOVALS["EigenRemove"](0.5, 0), repairs, shown)
        norm = model.norm2.running_var.clone()
        optimizer = torch.optim.Adam(model.parameters())
        Trainer(model, optimizer, digits, epochs=1, batch_size=32, seed=0, device=arms.CPU).fit()
        weights.append((norm, list(model.parameters())))
    assert torch.equal(weights[0][0], weights[1][0]) != ("batchnorm" in chain)
    assert all(map(torch.equal, weights[0][1], weights[1][1])) == same


def test_equal_seeds_give_equal_numbers_and_other_seeds_others(digits, found):
    for arm, record in itertools.islice(arms.arms(digits, 1, SMALL), 4):
        for name in set(record) - {"share"}:
            np.testing.assert_array_equal(record[name], found[arm][name][1])
    assert not np.array_equal(found[NOTHING]["accuracy"][0], found[NOTHING]["accuracy"][1])


def test_the_deep_network_is_cut_in_every_arm(right):
    assert list(right) == [at_once.WHOLE, *((0.5, *arm) for arm in at_once.ARMS)]
    assert all(values.shape == (2,) and (values >= 0).all() and (values <= 1).all() for values in right.values())
    assert not {("PCNS", "least squares + batchnorm")} & set(at_once.ARMS)


def made_up(gain):
    """Ten seeds in which least squares with BatchNorm are worth ``gain`` right after, and nothing later."""
    noise = np.random.default_rng(0).normal(0, 0.002, (10, 4))
    found = {}
    for seed, arm in enumerate((NOTHING, *ARMS), 1):
        accuracy = 0.5 + noise + np.random.default_rng(seed).normal(0, 0.002, (10, 4))
        accuracy[:, 0] += gain if arm[1] == "least squares + batchnorm" else 0
        some = np.ones(10)
        found[arm] = {"accuracy": accuracy, "test": accuracy[:, -1], "spike": some, "share": some, "recovered": some}
    return found


@pytest.mark.parametrize(("gain", "word"), [(0.2, "**higher**"), (-0.2, "**lower**"), (0.0, "undecided")])
def test_verdicts_say_which_way_a_difference_goes(gain, word):
    found = made_up(gain)
    worth, _ = written.tests(found)
    (line,) = (
        line
        for line in written.verdicts(found, worth)
        if line.startswith("- `least squares + batchnorm` against `none`")
    )
    told = line.split(": ", 1)[1].split("; ")
    assert told[0].startswith(f"{word} right after") and told[-1].startswith("undecided on the test images")


def test_an_interval_without_zero_is_not_enough():
    assert written._way(written.Difference(0.01, [0.005, 0.02], 0.3, alone=0.01)) == "higher (alone)"
    assert written._way(written.Difference(-0.01, [-0.02, 0.001], 0.3)) == "undecided"
    assert written._way(written.Difference(0.0, None, None)) == "the same"


def test_one_family_each(found, right):
    for tests in (*written.tests(found), written.tests_at_once(right)):
        tested = [test for test in tests.values() if test.interval is not None]
        assert tested and all(test.alone <= test.p <= 1 for test in tested)


def test_a_report_and_a_figure_are_written(digits, found, right, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "measure", lambda few, many, *how: seen.append((few, many)) or (found, right))
    command.main("digits", "handwriting", 2, 1, tmp_path / "docs")
    ((few, many),) = seen
    assert (len(few.train), len(few.validation), len(few.test)) <= command.FEW and len(many.train) >= len(few.train)
    text = (tmp_path / "docs" / "repairs.md").read_text(encoding="utf-8")
    assert "images of\nhandwriting" in text and "(repairs.png)" in text and "--data digits --seeds 2" in text
    assert text.count("| 2 |\n") == 2 * len(found) + 3 and "nan" not in text
    picture = (tmp_path / "docs" / "repairs.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 350_000


def test_data_that_are_not_there_are_told_in_one_sentence(tmp_path):
    from typer import BadParameter

    with pytest.raises(BadParameter, match="there is no folder"):
        command.main(f"folder:{tmp_path}", None, 2, 1, tmp_path)
