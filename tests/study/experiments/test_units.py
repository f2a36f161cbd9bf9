"""The experiment on units, small: looks leave no trace, removals are what they say, and pages say what numbers do."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from network_surgery.study.data import Dataset, Images
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments import evci
from network_surgery.study.experiments.evci import NETWORKS, Asked, Tail
from network_surgery.study.experiments.rows import Claim, Rows, grid, measured, told
from network_surgery.study.experiments.units import __main__ as command
from network_surgery.study.experiments.units import claims, looks, parallel, schedule
from network_surgery.study.experiments.units import report as written
from network_surgery.study.experiments.units.looks import LEFT, SCORES, Looking, removed
from network_surgery.study.experiments.units.schedule import PLAN, RESTART, UNPRUNED, Training
from network_surgery.study.training.trainer import Batches, evaluate

LOOKING = Looking(iterations=20, looks=1, fractions=(0.5,), halves=(0.5,), scores=("mrs",))
LAYERS = ("conv1", "conv2", "fc1")


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


def blank(shape):
    """A data set of ten empty images, for networks of this shape."""
    images = Images(np.zeros((10, *shape), dtype=np.uint8), np.arange(10))
    return Dataset(images, images, images, tuple("0123456789"))


def test_the_first_reading_leaves_the_parameters_that_the_thesis_counts():
    whole, first, *others = schedule.readings(blank((1, 28, 28)))
    assert whole["parameters"] == 20_522 and first["parameters"] == 4_019
    assert first["units"] == {"conv1": 4, "conv2": 7, "fc1": 26}
    assert 4_019 not in [other["parameters"] for other in others]


def test_a_fraction_is_rounded_down_and_two_units_stay():
    assert [removed(units, 0.1) for units in (8, 16, 64, 256)] == [0, 1, 6, 25]
    assert removed(10, 0.3) == 3 and removed(5, 0.99) == 3 and removed(2, 0.9) == 0


def test_looks_leave_training_as_it_would_have_been(digits):
    seen = []
    models = []
    for moments in ((), (3, 12, 20)):
        trainer = evci.prepared(digits, "tanh", 1, 2)
        trainer.callbacks.append(
            evci.At(moments, lambda t: seen.append((t.iteration, len(list(looks.looks(t, LOOKING))))))
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
        assert Tail(trained.model, layer, sets).losses() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(StudyError, match="in a row of modules"):
        Tail(nn.ModuleDict({"fc1": nn.Linear(2, 2)}), "fc1", sets)


def test_the_schedule_removes_what_the_first_reading_says():
    sizes = {"conv1": 8, "conv2": 16, "fc1": 64}
    steps = schedule.schedule(sizes, "mrs", 0, 500, []).steps
    now, at = dict(sizes), {}
    for step in steps:
        now[step.layer] = round(step.operation.keep * now[step.layer])
        at[step.when.iteration(50)] = dict(now)
    assert list(at) == [100, 150, 200, 250] and at[250] == {"conv1": 4, "conv2": 7, "fc1": 26}
    for (tenth, fraction), (iteration, units) in zip(PLAN, at.items(), strict=True):
        assert iteration == 50 * tenth
        assert all(units[name] == size - math.floor(fraction * size + 1e-9) for name, size in sizes.items())


@pytest.fixture(scope="module")
def ended(digits):
    return schedule.arms(digits, 0, Training("short", 10, ("mrs", "random"), maps=True))


def test_arms_end_with_the_same_sizes(digits, ended):
    arms = {each["arm"]: each for each in ended if each["kind"] == "arm"}
    assert list(arms) == [UNPRUNED, "mrs", "random", RESTART]
    sizes = {name: each["parameters"] for name, each in arms.items()}
    (first,) = (each for each in schedule.readings(digits) if "as it was, rounded down" in each["reading"])
    assert sizes.pop(UNPRUNED) > first["parameters"] and set(sizes.values()) == {first["parameters"]}
    assert all(len(each["train_losses"]) == 10 and each["iterations"] == 100 for each in arms.values())
    assert len(arms["mrs"]["peaks"]) == len(PLAN) and arms["mrs"]["test"] != arms["random"]["test"]


def test_the_unpruned_arm_is_training_that_was_not_interrupted(digits, ended):
    whole = evci.prepared(digits, "ReLU", 0, 10)
    whole.fit()
    loss, accuracy = evaluate(whole.model, Batches(digits.test, evci.CPU))
    mine = row(ended, kind="arm", arm=UNPRUNED)
    assert (mine["test"], mine["test_loss"]) == (accuracy, loss)


def test_maps_show_what_is_left_at_its_old_place(ended):
    whole, cut = (row(ended, kind="map", arm=arm)["maps"] for arm in (UNPRUNED, "mrs"))
    assert not any(np.isnan(np.asarray(each)).any() for each in whole.values())
    gone = {name: np.isnan(np.asarray(cut[name])) for name in cut}
    assert [(~gone[name].reshape(len(gone[name]), -1).all(axis=1)).sum() for name in LAYERS] == [4, 7, 26]
    channels = ~gone["conv1"].all(axis=(1, 2, 3))
    assert (gone["conv2"].all(axis=(0, 2, 3)) == ~channels).all()  # what read a unit that is gone is gone


def test_survivors_are_followed_through_several_removals():
    told = [("a", (0, 2, 3)), ("b", (1,)), ("a", (1, 2))]
    assert schedule.survivors({"a": 4, "b": 2}, told) == {"a": [2, 3], "b": [1]}


def test_what_is_kept_is_not_measured_again(tmp_path):
    def fails():
        raise AssertionError("measured again")

    (tmp_path / "one.jsonl").write_text('{"seed": 0, "x": 1.5}\n{"seed": 1, "x": NaN}\n', encoding="utf-8")
    first, second = measured([("one", fails)], 1, tmp_path)
    assert first == {"seed": 0, "x": 1.5} and math.isnan(second["x"])


@pytest.mark.slow
def test_what_processes_measure_is_kept(digits, tmp_path):
    size = parallel.Size(Looking(20, 1, (0.5,), (0.5,), ("mrs",)), ("random",), ("random",))
    rows = parallel.measure(digits, 2, 2, tmp_path, size)
    again = parallel.measure(digits, 2, 1, tmp_path, size)
    assert [str(each) for each in rows] == [str(each) for each in again]
    assert len(list(tmp_path.glob("*.jsonl"))) == 2 * 2 + 2 * 2
    whole = claims.ends(rows, "2 epochs")  # the network that is looked at is the longer training's unpruned arm
    assert list(whole) == [UNPRUNED, "random", RESTART] and whole[UNPRUNED].shape == (2,)


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
            rows.append(about | {"kind": "end", "test": 0.98 + noise.normal(0, 0.001)})
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
    return Rows(rows)


def verdicts(found):
    return {line.split(" | ")[0][2:]: line for line in told(found).splitlines()[2:]}


@pytest.mark.parametrize(("gain", "word"), [(1.0, "**holds**"), (-1.0, "**does not hold**"), (0.0, "")])
def test_claims_hold_where_the_numbers_say_so(gain, word):
    rows = made_up(gain)
    for found, text in (
        (claims.about_scores(rows), "ReLU, fc1, second half of the looks: l2_in costs more than mrs"),
        (
            claims.about_replacements(rows),
            "tanh: without bias propagation a removal costs more than with the mean",
        ),
        (claims.about_ranks(rows), "tanh: MRS ranks units more like MRP than l2_in does"),
        (claims.about_schedule(rows), "37 epochs: mrs ends below the unpruned network"),
    ):
        line = verdicts(found)[text]
        assert line.count(word) == (1 if found[0].again is None else 2) if word else "**" not in line


def test_scores_may_be_near_to_each_other_and_far_from_random():
    line = verdicts(claims.about_scores(made_up()))
    text = "ReLU, conv1 (few units): {} is nearer to MRP than a tenth of what random units cost more"
    assert "**holds**" in line[text.format("mrs")] and "**does not hold**" in line[text.format("l2_in")]


def test_a_claim_needs_every_seed_as_often():
    rows = [{"seed": 0, "iteration": 1, "x": 1.0}, {"seed": 0, "iteration": 0, "x": 2.0}, {"seed": 1, "x": 0.0}]
    with pytest.raises(StudyError, match="not equally often"):
        grid(rows, "x")
    np.testing.assert_array_equal(grid(rows[:2], "x"), [[2.0, 1.0]])
    with pytest.raises(StudyError, match="0 seeds"):
        grid(rows, "x", kind="change")
    assert "undecided" in told([Claim("nothing varies", np.zeros(4))])


def test_ranking_all_layers_together_counts_what_is_left():
    rows, asked = made_up(), Asked("empty images", blank((1, 28, 28)), "")
    told = written.together_left(rows, asked)  # of 88 units 52 go; scores grow evenly in every layer
    assert told.startswith("3 to 3 in conv1, 6 to 6 in conv2, 27 to 27 in fc1, ")
    assert sum((3, 6, 27)) == 88 - 52 and told.endswith(f" {26 * 3 + 76 * 6 + 97 * 27 + 10 * 27 + 10:,} parameters")


@pytest.mark.slow
def test_a_page_and_its_figures_are_written(tmp_path, monkeypatch):
    seen = []
    asked = blank((1, 28, 28))
    rows = Rows(made_up() + schedule.readings(asked))
    monkeypatch.setattr(command, "measure", lambda *how: seen.append(how) or rows)
    monkeypatch.setattr(evci, "images", lambda name, most: asked)
    command.main("folder:/somewhere", "handwriting", None, 400, 6, 1, tmp_path / "kept", "page", tmp_path / "docs")
    ((given, seeds, workers, kept, size),) = seen
    assert (given, seeds, workers, kept) == (asked, 6, 1, tmp_path / "kept") and size.looking.iterations == 400
    text = (tmp_path / "docs" / "page.md").read_text(encoding="utf-8")
    assert (
        "images of handwriting" in text and "--data folder:PATH --name 'handwriting' --seeds 6 --iterations 400" in text
    )
    assert "somewhere" not in text and "nan" not in text and "| 4 | 7 | 26 | 4,019 |" in text
    for part in ("", "_replacement", "_ranks", "_schedule", "_maps"):
        name = f"page{part}.png"
        assert f"({name})" in text
        picture = (tmp_path / "docs" / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 350_000


def test_data_that_are_not_there_are_told_in_one_sentence(tmp_path):
    from typer import BadParameter

    with pytest.raises(BadParameter, match="there is no folder"):
        command.main(f"folder:{tmp_path}")
