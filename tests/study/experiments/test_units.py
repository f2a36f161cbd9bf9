"""The experiment on units, small: looks leave no trace, removals are what they say, and pages say what numbers do."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.experiment import image_facts
from network_surgery.study.bench.rows import Rows
from network_surgery.study.bench.training import At
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import MOMENTS, NETWORKS, UNPRUNED
from network_surgery.study.experiments.units import EXPERIMENT, measure, page
from network_surgery.study.experiments.units.measure import GONE, LAYERS, LEFT, RESTART, SCORES, Options, count_removed
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.task import CLASSIFICATION
from network_surgery.study.training.evaluation import evaluate
from tests.study.experiments.made_up import measured_of

OPTIONS = Options(iterations=20, looks=1, fractions=(0.5,), halves=(0.5,), scores=("mrs",))
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


def test_the_sizes_of_the_schedule_have_the_parameters_that_the_thesis_counts():
    whole = {"conv1": 8, "conv2": 16, "fc1": 64}
    readings = (
        {name: units - count_removed(units, GONE[-1]) for name, units in whole.items()},
        {name: units - round(GONE[-1] * units) for name, units in whole.items()},
    )
    assert [measure.parameters_left(FACTS, each) for each in (whole, *readings)] == [20_522, 4_019, 3_326]


def test_a_fraction_is_rounded_down_and_two_units_stay():
    assert [count_removed(units, 0.1) for units in (8, 16, 64, 256)] == [0, 1, 6, 25]
    assert count_removed(10, 0.3) == 3 and count_removed(5, 0.99) == 3 and count_removed(2, 0.9) == 0


def test_looks_leave_training_as_it_would_have_been(digits):
    seen = []
    models = []
    for moments in ((), (3, 12, 20)):
        trainer = evci.prepare(digits, "tanh", 1, 2)
        trainer.callbacks.append(
            At(moments, lambda t: seen.append((t.iteration, len(list(measure.looks(t, OPTIONS))))))
        )
        trainer.fit()
        models.append(trainer.model)
    assert [at for at, _ in seen] == [3, 12, 20] and all(count > 50 for _, count in seen)
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))


@pytest.mark.parametrize("layer", ["conv2", "fc1"])
@pytest.mark.parametrize(("replacement", "score"), [("mean", "l2_in"), ("mean", "l1"), ("none", "mrs")])
def test_a_change_is_that_of_the_units_removed_by_hand(trained, rows, layer, replacement, score):
    (inputs, targets), (others, classes) = evci.samples(trained)
    model = copy.deepcopy(trained.model)
    maker, reader = getattr(model, layer), model.fc1 if layer == "conv2" else model.fc2
    with torch.no_grad():
        received = model[: [name for name, _ in model.named_children()].index("fc1" if layer == "conv2" else "fc2")]
        outputs = received(inputs)
        columns = torch.arange(outputs.shape[1]).view(len(maker.weight), -1)
        outgoing = reader.weight[:, columns]
        by_hand = {
            "l2_in": maker.weight.flatten(1).norm(dim=1),
            "l1": outgoing.abs().sum(dim=(0, 2)),
            "mrs": torch.tensor(row(rows, kind="scores", layer=layer)["mrs"]),
        }[score]
        gone = columns[by_hand.argsort()[: len(maker.weight) // 2]]
        mean = outputs[:, gone].mean(dim=(0, 2)).repeat_interleave(gone.shape[1])  # of each unit, over positions
        if replacement == "mean":
            reader.bias += reader.weight[:, gone.flatten()] @ mean
        reader.weight[:, gone.flatten()] = 0
    found = row(rows, kind="change", layer=layer, score=score, replacement=replacement, fraction=0.5)
    for field, images in (("change", (inputs, targets)), ("elsewhere", (others, classes))):
        with torch.no_grad():
            after, before = (nn.functional.cross_entropy(net(images[0]), images[1]) for net in (model, trained.model))
        assert found[field] == pytest.approx(float(after - before), abs=2e-5)


def test_every_score_and_replacement_is_there_once(rows):
    changes = [(each["layer"], each["score"], each["replacement"]) for each in rows if each["kind"] == "change"]
    wanted = {(layer, score, "mean") for layer in LAYERS for score in SCORES}
    assert set(changes) == wanted | {(layer, "mrs", left) for layer in LAYERS for left in LEFT}
    assert len(changes) == len(set(changes))
    assert all(math.isfinite(each["change"]) for each in rows if each["kind"] == "change")
    for each in rows:
        if each["kind"] == "rank":
            assert -1 <= each["rho"] <= 1 and 0 <= each["shared"] <= 1 and each["score"] != "mrp"


def test_ranks_are_spearmans(rows):
    both = row(rows, kind="scores", layer="fc1")
    ranked = [np.argsort(np.argsort(both[name])) for name in ("mrp", "mrs")]
    expected = np.corrcoef(*ranked)[0, 1]
    assert row(rows, kind="rank", layer="fc1", score="mrs")["rho"] == pytest.approx(expected, abs=0.02)


def test_the_rest_of_a_network_computes_what_the_whole_does(trained):
    sets = evci.samples(trained)
    wanted = [float(nn.functional.cross_entropy(trained.model(inputs), targets)) for inputs, targets in sets]
    for layer in LAYERS:
        assert evci.tail_losses(trained.model, layer, sets)() == pytest.approx(wanted, rel=1e-5)


def test_the_schedule_removes_what_the_first_reading_says(trained):
    sizes = {"conv1": 8, "conv2": 16, "fc1": 64}
    moments = [measure.Moment(50 * tenth, "it") for tenth in MOMENTS]
    steps, _ = measure.schedule(trained, "mrs", moments)
    now, at = dict(sizes), {}
    for step in steps.steps:
        now[step.layer] = round(step.operation.keep * now[step.layer])
        at[step.when.iteration(50)] = dict(now)
    assert list(at) == [100, 150, 200, 250] and at[250] == {"conv1": 4, "conv2": 7, "fc1": 26}
    for fraction, units in zip(GONE, at.values(), strict=True):
        assert all(units[name] == size - math.floor(fraction * size + 1e-9) for name, size in sizes.items())


@pytest.fixture(scope="module")
def ended(digits):
    return measure.arms(digits, 0, 10, ("mrs", "random"))


def test_arms_end_with_the_same_sizes(digits, ended):
    arms = {each["arm"]: each for each in ended if each["kind"] == "arm"}
    assert list(arms) == [UNPRUNED, "mrs", "random", RESTART]
    sizes = {name: each["parameters"] for name, each in arms.items()}
    left = measure.parameters_left(image_facts(digits), {"conv1": 4, "conv2": 7, "fc1": 26})
    assert sizes.pop(UNPRUNED) > left and set(sizes.values()) == {left}
    assert all(len(each["train_losses"]) == 10 and each["iterations"] == 100 for each in arms.values())
    assert len(arms["mrs"]["peaks"]) == len(GONE) and arms["mrs"]["test"] != arms["random"]["test"]


def test_the_unpruned_arm_is_training_that_was_not_interrupted(digits, ended):
    whole = evci.prepare(digits, "ReLU", 0, 10)
    whole.fit()
    loss, accuracy, *_ = evaluate(whole.model, CLASSIFICATION, Batches(digits.test, evci.CPU))
    mine = row(ended, kind="arm", arm=UNPRUNED)
    assert (mine["test"], mine["test_loss"]) == (accuracy, loss)


def test_maps_show_what_is_left_at_its_old_place(ended):
    whole, cut = (row(ended, kind="map", arm=arm)["maps"] for arm in (UNPRUNED, "mrs"))
    assert not any(np.isnan(np.asarray(each)).any() for each in whole.values())
    gone = {name: np.isnan(np.asarray(cut[name])) for name in cut}
    assert [(~gone[name].reshape(len(gone[name]), -1).all(axis=1)).sum() for name in LAYERS] == [4, 7, 26]
    channels = ~gone["conv1"].all(axis=(1, 2, 3))
    assert (gone["conv2"].all(axis=(0, 2, 3)) == ~channels).all()  # what read a unit that is gone is gone


COSTS = dict(zip(SCORES, (0.1, 0.12, 0.3, 0.3, 0.2, 0.2, 0.15, 0.2, 1.0), strict=True))
REPLACED = dict(zip(LEFT, (0.0, 0.2, 0.1, 0.3, 0.4), strict=True))


def made_up(gain=1.0, seeds=6):
    """Rows in which each score and replacement costs what these tables say, times ``gain``, and some noise."""
    noise = np.random.default_rng(0)
    rows = []
    for activation in NETWORKS:
        for seed in range(seeds):
            about = {"activation": activation, "seed": seed}
            for iteration in (10, 40, 90, 160):
                here = about | {"iteration": iteration}
                rows.append(here | {"kind": "loss", "loss": 0.2, "elsewhere": 0.2})
                for layer, units in (("conv1", 8), ("conv2", 16), ("fc1", 64)):
                    there = here | {"layer": layer}
                    for score in SCORES:
                        for left in LEFT:
                            for fraction in (0.1, 0.2, 0.5):
                                cost = gain * fraction * (COSTS[score] + REPLACED[left])
                                change, elsewhere = cost + noise.normal(0, 0.003, 2)
                                rows.append(there | {
                                    "kind": "change", "score": score, "replacement": left, "fraction": fraction,
                                    "change": change, "elsewhere": elsewhere,
                                })  # fmt: skip
                        rho = 1 - COSTS[score] * gain + noise.normal(0, 0.005)
                        rows.append(there | {"kind": "rank", "score": score, "rho": rho, "shared": 0.9})
                    both = {"mrp": list(np.arange(units) / units), "mrs": list(np.arange(units) / units)}
                    rows.append(there | {"kind": "scores"} | both)
            rows.append(about | {"kind": "end", "training": "37 epochs", "test": 0.98 + noise.normal(0, 0.001)})
    for seed in range(seeds):
        for training in ("10 epochs", "37 epochs"):
            for arm, accuracy in ((UNPRUNED, 0.98), ("mrs", 0.98 - 0.01 * gain), ("random", 0.9), (RESTART, 0.98)):
                rows.append({
                    "kind": "arm", "training": training, "seed": seed, "arm": arm, "parameters": 4019,
                    "test": accuracy + noise.normal(0, 0.001), "train_losses": [1.0, 0.5, 0.1],
                    "peaks": [] if arm == UNPRUNED else [[2.0, 0.2, 0.3]],
                })  # fmt: skip
    weights = {"conv1": np.ones((8, 1, 3, 3)), "fc1": np.ones((64, 64))}
    rows += [
        {"kind": "map", "seed": 0, "arm": arm, "maps": {name: each.tolist() for name, each in weights.items()}}
        for arm in (UNPRUNED, "mrs")
    ]
    return measured_of("units", Options(), FACTS, rows)


def verdicts(measured):
    parts = page.parts(measured)
    families = (part for part in parts.values() if isinstance(part, list))
    return {verdict.claim.text: verdict.word for family in families for verdict in judge(family)}


@pytest.mark.parametrize(("gain", "word"), [(1.0, "holds"), (-1.0, "does not hold"), (0.0, "undecided")])
def test_claims_hold_where_the_numbers_say_so(gain, word):
    found = verdicts(made_up(gain))
    for text in (
        "fc1, ReLU, second half of the looks: l2_in costs more than mrp",
        "without bias propagation a removal costs more than with the mean",
        "MRS ranks units more like MRP than l2_in does",
        "mrs ends below the unpruned network",
    ):
        assert found[text].partition(":")[0] == word


def test_scores_may_be_near_to_each_other_and_far_from_random():
    text = "conv1 (few units), ReLU: a score is nearer to MRP than a tenth of what random units cost more"
    assert verdicts(made_up())[text] == "depends: holds in 1, the opposite in 1 of 2"


def test_ranking_all_layers_together_counts_what_is_left():
    words = page.together_left(made_up())  # of 88 units 52 go; scores grow evenly in every layer
    assert words.startswith("3 to 3 in conv1, 6 to 6 in conv2, 27 to 27 in fc1, ")
    assert words.endswith(f" {26 * 3 + 76 * 6 + 97 * 27 + 10 * 27 + 10:,} parameters")


def test_the_network_that_is_looked_at_is_an_arm_of_the_long_schedule():
    ends = [{"kind": "end", "activation": name, "training": "37 epochs", "seed": 0, "test": 0.9} for name in NETWORKS]
    short = {"kind": "arm", "training": "10 epochs", "arm": UNPRUNED, "seed": 0, "test": 0.8}
    rows = page.with_long_unpruned(Rows([*ends, short]))
    assert [row["test"] for row in rows.where(kind="arm", arm=UNPRUNED)] == [0.8, 0.9]


def test_the_page_follows_its_rows(tmp_path):
    from network_surgery.study.bench import page as bench

    template = EXPERIMENT.folder / "page.md"
    texts = []
    for gain in (1.0, -1.0):
        measured = made_up(gain)
        file = bench.write(template, page.parts(measured), measured, tmp_path / str(gain))
        texts.append(file.read_text(encoding="utf-8"))
        assert "nan" not in texts[-1] and "$" not in texts[-1] and measured.rows.digest in texts[-1]
        for name in ("changes", "replacements", "ranks", "schedule", "maps"):
            picture = (file.parent / f"{name}.png").read_bytes()
            assert f"({name}.png)" in texts[-1] and picture.startswith(b"\x89PNG") and len(picture) < 350_000
    with_verdict = [[line for line in text.splitlines() if "| **" in line] for text in texts]
    for one, other in zip(*with_verdict, strict=True):
        if "random" not in one and "near" not in one and "restart" not in one:
            assert not ("**holds**" in one and "**holds**" in other), one
    assert with_verdict[0] != with_verdict[1]


def test_options_that_cannot_be_measured_are_refused():
    from network_surgery.study.errors import StudyError

    with pytest.raises(StudyError, match="2 seeds on"):
        Options(seeds=1)
    with pytest.raises(StudyError, match="need 64 at least"):
        Options(iterations=10)
