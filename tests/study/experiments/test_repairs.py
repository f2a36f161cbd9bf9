"""The experiment on repairs, small: arms share everything but their removal and their repairs."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from network_surgery.ops import MeanReplace, Moment, Schedule, Step
from network_surgery.study import models
from network_surgery.study.bench import page as bench
from network_surgery.study.bench import training
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.rows import Measured, Rows
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.repairs import EXPERIMENT, measure, page
from network_surgery.study.experiments.repairs.measure import (
    ADAM,
    ARMS,
    BOTH,
    CHAINS,
    DEEP,
    NONE,
    NOTHING,
    REMOVALS,
    Options,
)
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import CLASSIFICATION
from network_surgery.study.training import theatre
from network_surgery.study.training.evaluation import evaluate
from network_surgery.study.training.trainer import Shown, Trainer
from tests.study.experiments.made_up import measured_of

SMALL = Options(
    data="digits", train_images=400, seeds=2, few=(256, 100, 100), before=1, after=2, deep_model="small_cnn",
    keeps=(0.5,), shown=128,
)  # fmt: skip
LAYERS = ("conv1", "conv2", "fc1")


@pytest.fixture(scope="module")
def tasks():
    return measure.measure(SMALL)


@pytest.fixture(scope="module")
def rows(tasks):
    return Rows(row for _, task in tasks[1] for row in task())


@pytest.fixture(scope="module")
def digits(tasks):
    return dict(tasks[1])["arms-0"].args[0]


@pytest.fixture(scope="module")
def trained(digits):
    return prepared(digits, 0, SMALL.before)


def prepared(digits, seed, epochs):
    return training.train(digits, partial(models.build, "small_cnn"), ADAM, epochs, seed)


def cut(trained, digits, operation, chain=()):
    schedule = Schedule(tuple(Step(Moment(SMALL.before), layer, operation, chain) for layer in LAYERS))
    record = measure.follow(trained, digits, schedule, SMALL)
    return {name: value for name, value in record.items() if name != "seconds"}


@pytest.mark.long
def test_every_arm_is_there_once_with_every_seed(tasks, rows):
    facts, each = tasks
    assert [name for name, _ in each] == ["arms-0", "arms-1", "deep-0", "deep-1"]
    assert (facts["arms"]["train"], facts["deep"]["train"]) == (256, 320)
    assert len(set(ARMS)) == len(ARMS) == 3 * len(CHAINS) + 4 + 2 and {removal for removal, _ in ARMS} == set(REMOVALS)
    for removal, chain in (NOTHING, *ARMS):
        arms = rows.where(kind="arm", removal=removal, chain=chain)
        assert [row["seed"] for row in arms] == [0, 1]
        assert all(len(row["accuracy"]) == 3 and row["recovered"] in (None, 0, 1, 2) for row in arms)
    deep = [(row["keep"], row["removal"], row["chain"]) for row in rows.where(kind="deep", seed=1)]
    assert deep == [(0.5, *arm) for arm in DEEP] and ("PCNS", BOTH) not in DEEP
    assert all(0 <= row["accuracy"] <= 1 for row in rows.where(kind="deep")) and len(rows.where(kind="whole")) == 2


def test_nothing_is_training_that_was_not_interrupted(digits, rows):
    whole = prepared(digits, 1, SMALL.before + SMALL.after)
    (row,) = rows.where(kind="arm", removal=NOTHING[0], seed=1)
    assert row["accuracy"] == [record["validation_metric"] for record in whole.history]
    assert row["test"] == evaluate(whole.model, CLASSIFICATION, Batches(digits.test, whole.device))[1]
    assert (row["spike"], row["seconds"], row["recovered"]) == (1, 0, 0)


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


@pytest.mark.parametrize("chain", CHAINS)
def test_the_theatre_cuts_as_the_deep_network_is_cut(digits, trained, rows, chain):
    model = copy.deepcopy(trained.model)
    shown = Shown(Batches(digits.train, trained.device), SMALL.shown)
    measure.cut(model, REMOVALS["random"](0.5, 0), CHAINS[chain], shown)
    assert [getattr(model, name).weight.shape[0] for name in LAYERS] == [16, 32, 48]
    (row,) = rows.where(kind="arm", removal="random", chain=chain, seed=0)
    loss, accuracy, *_ = evaluate(model, CLASSIFICATION, trained.validation)
    assert row["accuracy"][0] == accuracy
    assert row["spike"] == pytest.approx(loss / trained.history[-1]["validation_loss"])


def test_repairs_soften_the_spike(rows):
    for removal in page.MEANT:
        spike = {chain: rows.grid("spike", kind="arm", removal=removal, chain=chain)[:, 0] for chain in CHAINS}
        assert np.log(spike[BOTH]).mean() < np.log(spike[NONE]).mean()


class Counted(TorchDispatchMode):
    """A clock that goes on by one with every operator, so that no other program decides what takes longer."""

    def __init__(self):
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("removal", page.MEANT)
def test_repairs_take_time(digits, trained, monkeypatch, removal):
    seconds = {}
    for chain in CHAINS:
        steps = [Step(Moment(SMALL.before), name, REMOVALS[removal](0.5, 0), CHAINS[chain]) for name in LAYERS]
        with Counted() as counted:
            monkeypatch.setattr(theatre, "clock", lambda device, counted=counted: float(counted.operators))
            seconds[chain] = measure.follow(trained, digits, Schedule(tuple(steps)), SMALL)["seconds"]
    assert all(seconds[chain] > seconds[NONE] > 0 for chain in set(CHAINS) - {NONE}), seconds


@pytest.mark.parametrize(("chain", "same"), [(("batchnorm",), True), (("bias",), False)])
def test_new_statistics_alone_leave_training_as_it_would_have_been(digits, trained, chain, same):
    weights = []
    for repairs in ((), chain):
        model = copy.deepcopy(trained.model)
        measure.cut(
            model, REMOVALS["EigenRemove"](0.5, 0), repairs, Shown(Batches(digits.train, trained.device), SMALL.shown)
        )
        norm = model.norm2.running_var.clone()
        optimizer = torch.optim.Adam(model.parameters())
        Trainer(model, optimizer, digits, epochs=1, batch_size=32, seed=0, device=trained.device).fit()
        weights.append((norm, list(model.parameters())))
    assert torch.equal(weights[0][0], weights[1][0]) != ("batchnorm" in chain)
    assert all(map(torch.equal, weights[0][1], weights[1][1])) == same


def test_equal_seeds_give_equal_numbers_and_other_seeds_others(digits, rows):
    steps = tuple(
        Step(Moment(SMALL.before), layer, REMOVALS["random"](SMALL.keep, 1), CHAINS["bias"]) for layer in LAYERS
    )
    again = measure.follow(prepared(digits, 1, SMALL.before), digits, Schedule(steps), SMALL)
    other, one = rows.where(kind="arm", removal="random", chain="bias")
    assert {name: one[name] for name in again if name != "seconds"} == {
        name: value for name, value in again.items() if name != "seconds"
    }
    assert one["accuracy"] != other["accuracy"]


def made_up(gain, seeds=8):
    """Rows in which least squares with BatchNorm are worth ``gain`` right after, and cut networks end lower by it."""
    rows, noise = [], np.random.default_rng(0)
    for seed in range(seeds):
        shared = 0.5 + noise.normal(0, 0.01)
        rows.append({"kind": "whole", "seed": seed, "accuracy": shared})
        for removal, chain in (NOTHING, *ARMS):
            accuracy = shared + noise.normal(0, 0.002, 4)
            accuracy[0] += gain * (chain == BOTH)
            rows.append({
                "kind": "arm", "removal": removal, "chain": chain, "seed": seed, "accuracy": accuracy.tolist(),
                "test": accuracy[-1] - gain * (chain != NOTHING[1]), "spike": 1.5, "seconds": 0.1,
                "recovered": None if gain > 0 else 1,
            })  # fmt: skip
        for removal, chain in DEEP:
            accuracy = shared + gain * (chain != NONE) + noise.normal(0, 0.002)
            about = {"kind": "deep", "removal": removal, "chain": chain, "seed": seed}
            rows.append(about | {"keep": 0.75, "accuracy": accuracy})
    facts = {name: {"train": 10, "validation": 10, "test": 10} for name in ("arms", "deep")}
    return measured_of("repairs", SMALL, facts, rows)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.2, ("holds in 1 of 5", "holds", "holds")),
        (-0.2, ("does not hold: the opposite in 1 of 5", "does not hold: the opposite in 5 of 5",
                "does not hold: the opposite in 3 of 3")),
        (0.0, ("undecided",) * 3),
    ],
)  # fmt: skip
def test_claims_hold_where_the_numbers_say_so(gain, words):
    parts = page.parts(made_up(gain)).values()
    verdicts = {each.claim.text: each.word for part in parts if isinstance(part, list) for each in judge(part)}
    assert words == (
        verdicts[f"{BOTH} is better than no repair (mean of 3 removals)"],
        verdicts["with no repair the cut network ends below the one left alone"],
        verdicts["deep network: batchnorm is better than no repair"],
    )


def test_the_page_follows_its_rows(rows, tasks, tmp_path):
    texts = []
    small = made_up(0.0)
    measured = Measured(small.about | {"facts": tasks[0]}, rows)
    for name, each in (("up", made_up(0.2)), ("down", made_up(-0.2)), ("measured", measured)):
        text = bench.write(EXPERIMENT.folder / "page.md", page.parts(each), each, tmp_path / name).read_text("utf-8")
        assert "nan" not in text and "$" not in text and each.rows.digest in text and "(accuracy.png)" in text
        picture = (tmp_path / name / "accuracy.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 350_000
        texts.append(text)
    up, down, _ = ([line for line in text.splitlines() if "| **" in line] for text in texts)
    assert sum("holds" in line for line in up) > 3
    assert not any("**holds**" in one and "**holds**" in other for one, other in zip(up, down, strict=True))
    assert "| later |" in texts[0] and "| later |" not in texts[1] and texts[2].count("| 2 |\n") == 1 + len(ARMS)


def test_what_cannot_be_measured_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(StudyError, match="'vgg16_quarter' failed on images of 1 × 8 × 8: it needs images of at least"):
        measure.measure(Options(data="digits"))
    with pytest.raises(StudyError, match="there is no folder"):
        measure.measure(Options(data=f"folder:{tmp_path}"))
