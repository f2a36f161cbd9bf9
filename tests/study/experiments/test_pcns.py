"""The experiment on PCNS, small: arms start alike, orders and samples are as they should be, the page follows rows."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from network_surgery.ops import PCNS, Signals, apply
from network_surgery.study.bench import page as bench
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.rows import Rows
from network_surgery.study.experiments.pcns import EXPERIMENT, measure, page
from network_surgery.study.experiments.pcns.figures import accuracies
from network_surgery.study.experiments.pcns.measure import (
    EIGEN,
    ORDERS,
    OTHERS,
    PIVOTED,
    UNINTERRUPTED,
    Options,
)
from network_surgery.study.task.images import load
from tests.study.experiments.made_up import measured_of

DENSE, CNN = "dense, LeakyReLU", "CNN, ReLU"
OPTIONS = Options(
    train_images=400, test_images=200, kinds=(DENSE, CNN), before=(2, 2), after=1, thresholds=(0.1, 0.01),
    keeps=(0.9, 0.5), seeds=2,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """Networks of a quarter of the width."""
    with pytest.MonkeyPatch.context() as patch:
        for name, units in ((DENSE, (64, 32)), (CNN, (8, 16, 24))):
            patch.setitem(measure.NETWORKS, name, partial(measure.NETWORKS[name], units=units))
        yield


@pytest.fixture(scope="module")
def rows(narrow):
    _, tasks = measure.measure(OPTIONS)
    return Rows(row for _, task in tasks for row in task())


@pytest.mark.long
def test_every_arm_starts_from_the_same_network_and_keeps_as_many_units(rows):
    for place in rows.groups("network", "threshold", kind="arm", arm=PIVOTED):
        for arm in OTHERS:
            for layer in rows.distinct("layer", kind="layer", network=place["network"]):
                units = [rows.grid("units", kind="layer", layer=layer, arm=each, **place) for each in (arm, PIVOTED)]
                np.testing.assert_array_equal(*units)
            sizes = [rows.grid("parameters", kind="arm", arm=each, **place) for each in (arm, PIVOTED)]
            np.testing.assert_array_equal(*sizes)
    assert {row["network"] for row in rows.where(kind="arm", arm=EIGEN)} == {DENSE}  # refused after a plain ReLU


def test_the_arm_that_is_left_alone_is_training_that_was_not_interrupted(rows):
    data = load(OPTIONS.data, 0.1, OPTIONS.train_images)
    data = data.changed(test=data.test.thinned(OPTIONS.test_images))
    whole = [measure.accuracy(measure.train(CNN, epochs, 1, data), data) for epochs in (2, 3)]
    np.testing.assert_allclose(accuracies(rows, network=CNN, arm=UNINTERRUPTED)[1], whole, rtol=0, atol=0)


def test_a_smaller_threshold_keeps_more_and_misses_less(rows):
    for place in rows.groups("network", "layer", kind="layer", arm=PIVOTED):
        loose, tight = (
            [rows.grid(field, kind="layer", arm=PIVOTED, threshold=each, **place) for field in ("units", "error")]
            for each in OPTIONS.thresholds
        )
        assert (loose[0] <= tight[0]).all() and (loose[1] >= tight[1]).all()


def test_at_once_is_last_to_first_on_the_same_images():
    """What lies before a layer does not change its outputs: one forward pass for all layers is enough."""
    trained = measure.train(DENSE, 1, 0, load("digits", 0.1, 600))
    inputs = trained.train.take(slice(0, 500))[0]
    answers = []
    for once in (True, False):
        trainer = measure.fork(trained, load("digits", 0.1, 600), 1)
        layers = measure.anatomy(trainer)
        if once:
            signals = Signals(trainer.model, inputs)
            for plan in [PCNS(0.05).propose(layer, signals) for layer in layers.values()]:
                apply(plan, trainer.optimizer)
        else:
            for name in list(layers)[::-1]:
                apply(PCNS(0.05).propose(layers[name], Signals(trainer.model, inputs)), trainer.optimizer)
        answers.append(trainer.model(inputs).detach())
    torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-3)


def test_more_samples_bring_the_errors_together(rows):
    for place in rows.groups("network", "layer", "seed", kind="sample"):
        few, *_, many = rows.where(kind="sample", **place)
        assert few["ratio"] < many["ratio"] and few["seen"] < few["unseen"]
        assert few["unseen"] / few["seen"] > many["unseen"] / many["seen"]


def test_small_changes_of_the_loss_are_predicted(rows):
    points = rows.where(kind="prediction", method=PIVOTED)
    assert len(points) == 2 * 2 * (2 + 3)
    assert all(point["predicted"] == pytest.approx(point["actual"], abs=0.03) for point in points
               if abs(point["actual"]) < 0.05)  # fmt: skip


def made_up(good: bool, seeds=6):
    """Rows in which all claims hold, or the opposite, and some noise."""
    noise = np.random.default_rng(0)
    worse, ratio = (-0.05, 1.05) if good else (0.05, 1.9)
    rows = []
    for seed in range(seeds):
        about = {"network": DENSE, "seed": seed}
        for threshold in (0.1, 0.01):
            for arm in (PIVOTED, EIGEN, *OTHERS):
                ends = 0.9 + (arm != PIVOTED) * worse + noise.normal(0, 0.001, 3)
                where = about | {"threshold": threshold, "arm": arm}
                rows.append(where | {"kind": "arm", "accuracies": list(ends), "parameters": 100})
                if arm == PIVOTED:
                    for layer in ("layer2", "layer1"):
                        rows.append(where | {
                            "kind": "layer", "layer": layer, "units": 9, "accuracy": ends[0], "error": 0.1,
                            "held_out": 0.1 * ratio + noise.normal(0, 0.001),
                        })  # fmt: skip
            for order in ORDERS:
                order_row = {"kind": "order", "threshold": threshold, "order": order}
                rows.append(about | order_row | {"accuracy": 0.9 + min(0, -worse - 0.05) + noise.normal(0, 0.001)})
        last = 0.9 + worse + noise.normal(0, 0.001, 3)
        rows.append(about | {"kind": "arm", "threshold": 0.0, "arm": UNINTERRUPTED, "accuracies": list(last),
                             "parameters": 200})  # fmt: skip
        for samples in measure.RATIOS:
            unseen = 0.1 * ratio + noise.normal(0, 0.001)
            rows.append(about | {
                "kind": "sample", "layer": "layer1", "ratio": samples, "seen": 0.1, "unseen": unseen,
            })  # fmt: skip
        for actual, off in ((0.01, ratio), (1.0, 0.3 if good else 1.0)):
            predicted = actual * (off + noise.normal(0, 0.01))
            rows.append(about | {"kind": "prediction", "method": PIVOTED, "predicted": predicted, "actual": actual})
    options = Options(kinds=(DENSE,), before=(2,))
    return measured_of("pcns", options, {"train": 10, "test": 10}, rows)


@pytest.mark.parametrize(("good", "word"), [(True, "holds"), (False, "does not hold")])
def test_the_page_says_what_the_rows_say(good, word, tmp_path):
    measured = made_up(good)
    parts = page.parts(measured)
    families = [judge(part) for part in parts.values() if isinstance(part, list)]
    assert [verdict.word.partition(":")[0] for family in families for verdict in family] == [word] * (
        2 * (1 + len(OTHERS)) + 1 + 1 + len(ORDERS) + len(measure.RATIOS) + 2
    )
    text = bench.write(EXPERIMENT.folder / "page.md", parts, measured, tmp_path).read_text(encoding="utf-8")
    assert "nan" not in text and "$" not in text and f"- **{word}**: PCNS (pivoted) is better than" in text
    assert "(shrunk.png)" in text and (tmp_path / "shrunk.png").read_bytes().startswith(b"\x89PNG")
    assert ("**holds**" in text) == good


def test_an_arm_that_is_refused_for_a_seed_is_not_compared():
    measured = made_up(True)
    without = Rows(row for row in measured.rows if row["seed"] or row.get("arm") != EIGEN)
    kept = {claim.text: claim.conditions for claim in page.arm_claims(without)}
    assert [bool(conditions) for text, conditions in kept.items() if EIGEN in text] == [False, False]
    assert all(conditions for text, conditions in kept.items() if EIGEN not in text)
