"""The experiment on weights, small: looks leave no trace, changes are what they say, compaction is exact at 0."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from network_surgery.ops import PruneWeights, Signals, trial_surgery
from network_surgery.ops.anatomy import Anatomy
from network_surgery.ops.signals.weight_scores import weight_scores
from network_surgery.study.bench import page as bench
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.rows import Measured, Rows
from network_surgery.study.bench.training import At
from network_surgery.study.experiments import evci, evci_page
from network_surgery.study.experiments.evci import NETWORKS, UNPRUNED
from network_surgery.study.experiments.weights import EXPERIMENT, measure, page
from network_surgery.study.experiments.weights.measure import (
    COMPACTED,
    F_NZ,
    MEASURED,
    SCORES,
    SIGNED,
    TAYLOR,
    Options,
    lowest,
)
from network_surgery.study.task.images import ImageTask
from tests.study.experiments.made_up import measured_of

OPTIONS = Options(iterations=20, looks=1, fractions=(0.05, 0.5))
FACTS = {"train": 10, "validation": 10, "test": 10, "shape": [1, 28, 28], "classes": 10}


@pytest.fixture(scope="module", autouse=True)
def few_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evci, "SAMPLE", 64)
        patch.setattr(evci, "RATE", 0.1)  # so that a few iterations teach something
        yield


@pytest.fixture(scope="module")
def digits(few_images):
    whole = evci.images(Options())
    return ImageTask(whole.train.thinned(320), whole.validation, whole.test.thinned(100), whole.classes)


@pytest.fixture(scope="module")
def trained(digits):
    trainer = evci.prepare(digits, "ReLU", 0, 6)
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def rows(trained):
    return list(measure.looks(trained, OPTIONS))


def row(rows, **which):
    (found,) = (each for each in rows if all(each.get(name) == value for name, value in which.items()))
    return found


def loss(model, images):
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(images[0]), images[1]))


def test_looks_leave_training_as_it_would_have_been(digits):
    seen, models = [], []
    for moments in ((), (3, 20)):
        trainer = evci.prepare(digits, "tanh", 1, 2)
        trainer.callbacks.append(
            At(moments, lambda t: seen.append((t.iteration, len(list(measure.looks(t, OPTIONS))))))
        )
        trainer.fit()
        models.append(trainer.model)
    assert [at for at, _ in seen] == [3, 20] and all(count > 40 for _, count in seen)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


@pytest.mark.parametrize("layer", ["conv1", "fc1"])
@pytest.mark.parametrize("score", ["magnitude", "taylor1", "taylor1_abs"])
def test_a_change_is_that_of_the_weights_zeroed_by_hand(trained, rows, layer, score):
    others, shown = evci.samples(trained)
    model = copy.deepcopy(trained.model)
    weight = model.get_parameter(f"{layer}.weight")
    nn.functional.cross_entropy(model(shown[0]), shown[1]).backward()
    slopes = -weight.detach() * weight.grad
    by_hand = {"magnitude": weight.detach().abs(), "taylor1": slopes, "taylor1_abs": slopes.abs()}[score]
    fraction = 0.05 if score == "taylor1" else 0.5  # half of them would end among many zeros
    with torch.no_grad():
        weight.view(-1)[by_hand.flatten().argsort()[: int(fraction * weight.numel())]] = 0
    found = row(rows, kind="change", layer=layer, score=score, fraction=fraction)
    assert found["change"] == pytest.approx(loss(model, shown) - loss(trained.model, shown), abs=1e-4)
    assert found["elsewhere"] == pytest.approx(loss(model, others) - loss(trained.model, others), abs=1e-4)


def test_one_by_one_is_what_a_plain_loop_measures(trained, rows):
    _, shown = evci.samples(trained)
    model = copy.deepcopy(trained.model)
    weight, before = model.conv1.weight.data.view(-1), loss(trained.model, shown)
    alone = []
    for at in range(weight.numel()):
        kept, weight[at] = float(weight[at]), 0
        alone.append(loss(model, shown) - before)
        weight[at] = kept
    share = row(rows, kind="negative", layer="conv1", score=MEASURED)["share"]
    assert share == pytest.approx(np.mean(np.array(alone) < 0), abs=0.05)  # rounding decides some near zero
    least = sorted(alone)[: int(0.05 * len(alone))]
    found = row(rows, kind="change", layer="conv1", score=MEASURED, fraction=0.05)
    assert found["alone"] == pytest.approx(sum(least), abs=1e-4)
    magnitudes = np.abs(trained.model.conv1.weight.detach().flatten().numpy())
    ranked = [np.argsort(np.argsort(each)) for each in (magnitudes, np.abs(alone))]
    rho = row(rows, kind="rank", score="magnitude")["rho_abs"]
    assert rho == pytest.approx(np.corrcoef(*ranked)[0, 1], abs=0.05)


def test_zeros_are_those_of_the_operation_and_of_the_library(trained, rows):
    others, shown = evci.samples(trained)
    tensor = "fc1.weight"
    signed = weight_scores(trained.model, [tensor], "taylor1", *shown)[tensor]
    torch.testing.assert_close(signed.abs(), weight_scores(trained.model, [tensor], "taylor1_abs", *shown)[tensor])
    plan = PruneWeights(0.5).propose(Anatomy(trained.model, shown[0][:2])["fc1"], Signals(trained.model, *shown))
    with trial_surgery(plan):
        after = loss(trained.model, others)
    found = row(rows, kind="change", layer="fc1", score="magnitude", fraction=0.5)
    assert found["elsewhere"] == pytest.approx(after - loss(trained.model, others), abs=1e-5)


def test_every_score_is_there_once(rows):
    changes = [(r["layer"], r["score"], r["fraction"]) for r in rows if r["kind"] == "change"]
    here = [(layer, s) for layer in ("conv1", "fc1") for s in SCORES if layer == "conv1" or MEASURED not in s]
    assert sorted(changes) == sorted((*each, fraction) for each in here for fraction in OPTIONS.fractions)
    assert {r["score"] for r in rows if r["kind"] == "negative" and r["layer"] == "fc1"} == set(TAYLOR)
    assert [len(lowest(torch.arange(200.0), fraction)) for fraction in (0.01, 0.05, 0.8)] == [2, 10, 160]


@pytest.fixture(scope="module")
def ended(digits):
    return measure.arms(digits, 0, (COMPACTED, "random"))


def test_arms_end_with_as_many_weights(ended):
    arms = {each["arm"]: each for each in ended if each["kind"] == "arm"}
    assert list(arms) == [UNPRUNED, COMPACTED, "random"]
    biases, whole = 8 + 16 + 64 + 10, arms[UNPRUNED]["parameters"]
    left = whole - round(0.9 * (whole - biases))
    assert arms[COMPACTED]["parameters"] == arms["random"]["parameters"] == left
    assert len(arms[COMPACTED]["peaks"]) == 4 and not arms[UNPRUNED]["peaks"]
    maps = {each["arm"]: each["maps"] for each in ended if each["kind"] == "map"}
    gone = sum(int(np.isnan(np.asarray(each)).sum()) for each in maps[COMPACTED].values())
    assert gone == round(0.9 * (whole - biases))


def test_compaction_of_useless_units_changes_nothing(digits, ended):
    found = [each for each in ended if each["kind"] == "compact"]
    (pruned,) = (each for each in ended if each["kind"] == "arm" and each["arm"] == COMPACTED)
    (whole,) = (each for each in ended if each["kind"] == "arm" and each["arm"] == UNPRUNED)
    first, *others = found
    assert [each["f_nz"] for each in found] == list(F_NZ) and first["f_nz"] == 0
    assert first["test"] == pruned["test"] and first["moved"] < 1e-3 and first["dense"] < whole["parameters"]
    assert all(each["dense"] <= first["dense"] for each in others) and others[-1]["dense"] < first["dense"]
    for each in found:
        assert each["live"] <= min(each["dense"], pruned["parameters"])


def made_up(gain=1.0, seeds=6):
    """Rows in which absolute scores cost less than signed ones and magnitude least, times ``gain``, and some noise."""
    noise = np.random.default_rng(0)
    cost = {"magnitude": 0.05, "random": 0.5} | dict.fromkeys(SIGNED, 0.4) | {f"{s}_abs": 0.1 for s in SIGNED}
    rows = []
    for activation in NETWORKS:
        for seed in range(seeds):
            about = {"activation": activation, "seed": seed}
            for number, iteration in enumerate((10, 40, 90, 160)):
                here = about | {"iteration": iteration}
                rows.append(here | {"kind": "loss", "loss": 0.2, "elsewhere": 0.2})
                for layer in ("conv1", "fc1"):
                    there = here | {"layer": layer}
                    for score in SCORES:
                        for fraction in (0.01, 0.05, 0.2, 0.5, 0.8):
                            jump = 1 + 0.4 * (number % 2) * (score != "magnitude")
                            change = gain * jump * fraction * cost[score] + noise.normal(0, 0.001)
                            if score == MEASURED and fraction < 0.1:
                                change = gain * (-0.02 if fraction < 0.05 else 0.01 * number) + noise.normal(0, 0.001)
                            rows.append(there | {
                                "kind": "change", "score": score, "fraction": fraction, "change": change,
                                "elsewhere": change + noise.normal(0, 0.001), "alone": -0.01,
                            })  # fmt: skip
                for score in SIGNED:
                    share = 0.35 + noise.normal(0, 0.01)
                    rows.append(here | {"kind": "negative", "layer": "conv1", "score": score, "share": share})
                for score in ("magnitude", *TAYLOR):
                    rho = 0.5 + gain * (0.4 - 0.05 * number) * (score == "taylor1") + noise.normal(0, 0.005)
                    rows.append(here | {"kind": "rank", "layer": "conv1", "score": score, "rho": rho, "rho_abs": rho})
            rows.append(about | {"kind": "end", "test": 0.98 + noise.normal(0, 0.001)})
    for seed in range(seeds):
        for arm, accuracy in ((UNPRUNED, 0.98), (COMPACTED, 0.98 - 0.01 * gain), ("random", 0.98 - 0.1 * gain)):
            rows.append({
                "kind": "arm", "training": "10 epochs", "seed": seed, "arm": arm,
                "parameters": 20_522 if arm == UNPRUNED else 2_140,
                "test": accuracy + noise.normal(0, 0.001), "train_losses": [1.0, 0.5, 0.1],
                "peaks": [] if arm == UNPRUNED else [[2.0, 0.2, 0.3]],
            })  # fmt: skip
        for f_nz in F_NZ:
            test = 0.97 - gain * f_nz + noise.normal(0, 0.0005)
            dense = round(15_000 * math.exp(-20 * f_nz)) + seed
            rows.append({"kind": "compact", "arm": COMPACTED, "seed": seed, "f_nz": f_nz, "units": {}, "dense": dense,
                         "live": 2_000, "test": test, "moved": 1e-7})  # fmt: skip
    weights = {"conv1": np.ones((8, 1, 3, 3)), "fc1": np.ones((64, 64))}
    rows += [
        {"kind": "map", "seed": 0, "arm": arm, "maps": {name: each.tolist() for name, each in weights.items()}}
        for arm in (UNPRUNED, COMPACTED)
    ]
    return measured_of("weights", Options(), FACTS, rows)


def verdicts(measured):
    families = (part for part in page.parts(measured).values() if isinstance(part, list))
    return {verdict.claim.text: verdict.word for family in families for verdict in judge(family)}


@pytest.mark.parametrize(("gain", "word"), [(1.0, "holds"), (-1.0, "does not hold"), (0.0, "undecided")])
def test_claims_hold_where_the_numbers_say_so(gain, word):
    found = verdicts(made_up(gain))
    pruned = "conv1, pruned by the measured change: with"
    for text in (
        "conv1, 0.8 pruned: absolute values cost less than signed scores (mean of 4 each)",
        "fc1, 0.8 pruned: magnitude costs less than the absolute values (mean of 3)",
        f"{pruned} 0.01 gone the loss falls (mean of all looks)",
        f"{pruned} 0.05 gone it rises (second half of the looks)",
        f"{pruned} 0.05 gone, the change together less the sum of one by one grows (second half less first)",
        "taylor1 ranks more like the measured change than hessian",
        "taylor1 agrees less with it later (second half of the looks less the first)",
        "magnitude ends above random",
        "compaction to half the size or less (f_nz = 0.02) costs accuracy",
    ):
        assert found[text].partition(":")[0] == word, text


def test_jumps_are_from_look_to_look():
    assert (
        verdicts(made_up())["fc1, 0.8 pruned: the cost of magnitude jumps less from look to look than theirs"]
        == "holds"
    )
    np.testing.assert_allclose(evci_page.growth(np.array([[1.0, 3.0, 5.0, 7.0]])), [4.0])


def test_the_page_follows_its_rows(tmp_path):
    measured = made_up()
    (tmp_path / "notes.md").write_text(f"rows: {measured.rows.digest}\nMagnitude is enough.\n", encoding="utf-8")
    written = bench.write(EXPERIMENT.folder / "page.md", page.parts(measured), measured, tmp_path)
    text = written.read_text(encoding="utf-8")
    assert "`conv1` has 200 weights" in text and "16,384 weights" in text and "nan" not in text and "$" not in text
    for name in ("changes", "scores", "schedule", "compaction", "maps"):
        picture = (tmp_path / f"{name}.png").read_bytes()
        assert f"({name}.png)" in text and picture.startswith(b"\x89PNG") and len(picture) < 350_000
    assert "Magnitude is enough." in text
    measured.rows[0]["loss"] = 0.25  # one row is another
    other = Measured(measured.about, Rows(measured.rows))
    text = bench.write(EXPERIMENT.folder / "page.md", page.parts(other), other, tmp_path).read_text(encoding="utf-8")
    assert "Magnitude is enough." not in text and "are about other rows" in text
