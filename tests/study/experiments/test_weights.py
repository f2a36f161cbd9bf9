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
from network_surgery.study.data import Dataset, Images
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import NETWORKS
from network_surgery.study.experiments.rows import Rows, told
from network_surgery.study.experiments.weights import __main__ as command
from network_surgery.study.experiments.weights import claims, looks, parallel, schedule
from network_surgery.study.experiments.weights.looks import MEASURED, SCORES, SIGNED, TAYLOR, Looking, lowest, zeroed
from network_surgery.study.experiments.weights.schedule import COMPACTED, F_NZ, UNPRUNED, Training

LOOKING = Looking(iterations=20, looks=1, fractions=(0.05, 0.5))


@pytest.fixture(scope="module", autouse=True)
def few_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evci, "SAMPLE", 64)
        patch.setattr(evci, "RATE", 0.1)  # so that a few iterations teach something
        yield


@pytest.fixture(scope="module")
def digits(few_images):
    whole = evci.images("digits")
    return Dataset(whole.train.thinned(320), whole.validation, whole.test.thinned(100), whole.classes)


@pytest.fixture(scope="module")
def trained(digits):
    trainer = evci.prepared(digits, "ReLU", 0, 6)
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def rows(trained):
    return list(looks.looks(trained, LOOKING))


def row(rows, **which):
    (found,) = (each for each in rows if all(each.get(name) == value for name, value in which.items()))
    return found


def loss(model, images):
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(images[0]), images[1]))


def test_looks_leave_training_as_it_would_have_been(digits):
    seen, models = [], []
    for moments in ((), (3, 20)):
        trainer = evci.prepared(digits, "tanh", 1, 2)
        trainer.callbacks.append(
            evci.At(moments, lambda t: seen.append((t.iteration, len(list(looks.looks(t, LOOKING))))))
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
    weight, before = model.conv1.weight, loss(trained.model, shown)
    alone = []
    for at in range(weight.numel()):
        with zeroed(weight, torch.tensor([at])):
            alone.append(loss(model, shown) - before)
    share = row(rows, kind="negative", layer="conv1", score=MEASURED)["share"]
    assert share == pytest.approx(np.mean(np.array(alone) < 0), abs=0.05)  # rounding decides some near zero
    least = sorted(alone)[: int(0.05 * len(alone))]
    found = row(rows, kind="change", layer="conv1", score=MEASURED, fraction=0.05)
    assert found["alone"] == pytest.approx(sum(least), abs=1e-4)
    magnitudes = np.abs(trained.model.conv1.weight.detach().flatten().numpy())
    ranked = [np.argsort(np.argsort(each)) for each in (magnitudes, np.abs(alone))]
    rho = row(rows, kind="rank", score="magnitude")["rho_abs"]
    assert rho == pytest.approx(np.corrcoef(*ranked)[0, 1], abs=0.05)


def test_absolute_scores_are_those_of_the_library(trained):
    _, shown = evci.samples(trained)
    signed = looks.scored(trained, "conv1", shown, True)
    for name in SIGNED:
        of_library = weight_scores(trained.model, ["conv1.weight"], f"{name}_abs", *shown)["conv1.weight"]
        torch.testing.assert_close(signed[name].abs(), of_library)


def test_zeros_are_those_of_the_operation_and_go_away_again(trained):
    others, shown = evci.samples(trained)
    weight = trained.model.get_parameter("fc1.weight")
    before = weight.detach().clone()
    plan = PruneWeights(0.5).propose(Anatomy(trained.model, shown[0][:2])["fc1"], Signals(trained.model, *shown))
    with trial_surgery(plan):
        wanted = loss(trained.model, others)
    with zeroed(weight, lowest(weight.detach().abs(), 0.5)):
        assert loss(trained.model, others) == pytest.approx(wanted, abs=1e-6) and int((weight == 0).sum()) == 2048
    assert torch.equal(weight, before)
    with pytest.raises(KeyError), zeroed(weight, torch.arange(7)):
        raise KeyError
    assert torch.equal(weight, before)


def test_every_score_is_there_once(rows):
    changes = [(r["layer"], r["score"], r["fraction"]) for r in rows if r["kind"] == "change"]
    here = [(layer, s) for layer in ("conv1", "fc1") for s in SCORES if layer == "conv1" or MEASURED not in s]
    assert sorted(changes) == sorted((*each, fraction) for each in here for fraction in LOOKING.fractions)
    assert {r["score"] for r in rows if r["kind"] == "negative" and r["layer"] == "fc1"} == set(TAYLOR)
    assert [len(lowest(torch.arange(200.0), fraction)) for fraction in (0.01, 0.05, 0.8)] == [2, 10, 160]


@pytest.fixture(scope="module")
def ended(digits):
    return schedule.arms(digits, 0, Training(10, (COMPACTED, "random")))


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


@pytest.mark.slow
def test_what_processes_measure_is_kept(digits, tmp_path):
    size = parallel.Size(Looking(20, 1, (0.5,), (("conv1", False),)), Training(10, ("random",)))
    rows = parallel.measure(digits, 2, 2, tmp_path, size)
    assert [str(each) for each in rows] == [str(each) for each in parallel.measure(digits, 2, 1, tmp_path, size)]
    assert len(list(tmp_path.glob("*.jsonl"))) == 2 + 2 * 2
    assert {row["arm"] for row in rows if row["kind"] == "arm"} == {UNPRUNED, "random"}


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
                "kind": "arm", "seed": seed, "arm": arm, "parameters": 20_522 if arm == UNPRUNED else 2_140,
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
    return Rows(rows)


def verdicts(found):
    return {line.split(" | ")[0][2:]: line for line in told(found).splitlines()[2:]}


@pytest.mark.parametrize(("gain", "word"), [(1.0, "**holds**"), (-1.0, "**does not hold**"), (0.0, "")])
def test_claims_hold_where_the_numbers_say_so(gain, word):
    rows = made_up(gain)
    lines = (
        verdicts(claims.of_looks(rows)) | verdicts(claims.of_approximations(rows)) | verdicts(claims.of_schedule(rows))
    )
    pruned = "conv1, pruned by the measured change:"
    for text in (
        "ReLU, conv1, 0.8 pruned: absolute values cost less than signed scores (mean of 4 each)",
        "tanh, fc1, 0.8 pruned: magnitude costs less than the absolute values (mean of 3)",
        f"ReLU, {pruned} with 0.01 gone the loss falls (mean of all looks)",
        f"tanh, {pruned} with 0.05 gone it rises (second half of the looks)",
        f"tanh, {pruned} with 0.05 gone, the change together less the sum of one by one grows (second half less first)",
        "ReLU: taylor1 ranks more like the measured change than hessian",
        "ReLU: taylor1 agrees less with it later (second half of the looks less the first)",
        "magnitude ends above random",
        "compaction to half the size or less (f_nz = 0.02) costs accuracy",
    ):
        said = lines[text].split(" | ")[2].removesuffix(" |")
        assert said == word if word else "**" not in said, text


def test_jumps_are_from_look_to_look():
    lines = verdicts(claims.of_looks(made_up()))
    text = "ReLU, fc1, 0.8 pruned: the cost of magnitude jumps less from look to look than theirs"
    assert "**holds**" in lines[text]
    np.testing.assert_allclose(claims.growth(np.array([[1.0, 3.0, 5.0, 7.0]])), [4.0])


@pytest.mark.slow
def test_a_page_and_its_figures_are_written(tmp_path, monkeypatch):
    images = Images(np.zeros((10, 1, 28, 28), dtype=np.uint8), np.arange(10))
    blank, seen, rows = Dataset(images, images, images, tuple("0123456789")), [], made_up()
    monkeypatch.setattr(command, "measure", lambda *how: seen.append(how) or rows)
    monkeypatch.setattr(evci, "images", lambda name, most: blank)
    command.main("folder:/somewhere", "handwriting", None, 400, 6, 1, None, "page", tmp_path / "docs")
    ((given, seeds, workers, kept, size),) = seen
    assert (given, seeds, workers, kept) == (blank, 6, 1, None) and size.looking.iterations == 400
    text = (tmp_path / "docs" / "page.md").read_text(encoding="utf-8")
    assert (
        "images of handwriting" in text and "--data folder:PATH --name 'handwriting' --seeds 6 --iterations 400" in text
    )
    assert "somewhere" not in text and "nan" not in text
    assert "`conv1` has\n200 weights" in text and "16,384 weights" in text
    for part in ("", "_scores", "_schedule", "_maps"):
        assert f"(page{part}.png)" in text
        picture = (tmp_path / "docs" / f"page{part}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 350_000


def test_data_that_are_not_there_are_told_in_one_sentence(tmp_path):
    from typer import BadParameter

    with pytest.raises(BadParameter, match="there is no folder"):
        command.main(f"folder:{tmp_path}")
