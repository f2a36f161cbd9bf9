"""The experiment on families, small: files fit, arms share what they should, claims follow the numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from network_surgery import ops
from network_surgery.ops.network.masks import pack
from network_surgery.study import models
from network_surgery.study.bench import page as bench
from network_surgery.study.bench import training
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.rows import DIGITS, Measured, Rows
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.families import EXPERIMENT, han, measure, page
from network_surgery.study.experiments.families.families import (
    DICTIONARIES,
    FAMILIES,
    GAUSSIAN,
    HASHED,
    NETWORK,
    ORIGINAL,
    PRUNED,
    SHARED,
    SMALL,
    STRETCHED,
    settings_for,
)
from network_surgery.study.experiments.families.measure import Options
from tests.study.experiments.made_up import measured_of

TRIED = (HASHED, SMALL, STRETCHED, PRUNED)
SMALLEST = Options(
    data="digits", train_images=400, seeds=2, epochs=2, batch_size=64, factors="8", families=TRIED,
    networks="lenet_300_100", pruning_epochs=(3, 1), retraining=1, rates="0.003,0.01",
)  # fmt: skip


@pytest.fixture(scope="module")
def tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(han.LEFT, "lenet_300_100", (1 / 2, han.target("lenet_300_100")))
        yield measure.measure(SMALLEST)


@pytest.fixture(scope="module")
def rows(tasks):
    return Rows(row for _, task in tasks[1] for row in task())


@pytest.fixture(scope="module")
def digits(tasks):
    return dict(tasks[1])["original-0"].args[0]


def test_every_family_has_the_largest_file_that_fits(digits):
    build, shown = partial(models.build, NETWORK, digits.shape, 10), measure.shown_of(digits)
    budget = ops.saved_bytes(build()) / 8
    for name in (SMALL, STRETCHED, GAUSSIAN, "autoencoder"):
        family = replace(FAMILIES[name], settings=FAMILIES[name].settings[::8])  # coarser, so quicker
        setting = settings_for(family, build, shown, (8,))[8]
        larger = family.settings[family.settings.index(setting) + 1]
        sizes = []
        for each in (setting, larger):
            model = build()
            family.operate(model, shown, each, 0)
            sizes.append(ops.saved_bytes(model))
        assert sizes[0] <= budget < sizes[1], name


def test_a_size_that_is_not_reached_or_that_a_smaller_file_has_is_left_out(digits):
    build, shown = partial(models.build, NETWORK, digits.shape, 10), measure.shown_of(digits)
    assert settings_for(FAMILIES["fastfood"], build, shown, (2, 4, 64)) == {4: 1}
    assert settings_for(FAMILIES[PRUNED], build, shown, (2, 64)) == {2: 1 / 2, 64: 1 / 64}
    codes = [bits for block, values in FAMILIES[SHARED].settings if (bits := np.log2(values) / block)]
    assert codes == sorted(set(codes))


def test_families_that_are_alike_have_files_of_one_size(digits):
    for name, family in FAMILIES.items():
        if family.like:
            sizes = set()
            for each in (family, FAMILIES[family.like]):
                model = measure.fresh(digits, 0)
                each.operate(model, measure.shown_of(digits), 0.1, 0)
                sizes.add(ops.saved_bytes(model))
            assert len(sizes) == 1 and not FAMILIES[family.like].like, name


def test_files_are_as_large_as_they_may_be_and_hashing_saves_no_flops(rows):
    arm = {family: rows.where(kind="arm", family=family)[0] for family in (ORIGINAL, *TRIED)}
    assert all(arm[name]["bytes"] <= arm[ORIGINAL]["bytes"] / 8 for name in (HASHED, SMALL, STRETCHED))
    assert arm[PRUNED]["bytes"] > arm[ORIGINAL]["bytes"]  # a mask takes a byte a weight
    assert arm[HASHED]["flops"] == arm[PRUNED]["flops"] == arm[ORIGINAL]["flops"] > 4 * arm[SMALL]["flops"]
    for name, each in arm.items():
        assert [row["seed"] for row in rows.where(kind="arm", family=name)] == [0, 1]
        assert each["milliseconds"] > 0 and 0 <= each["test"] <= 1


def test_the_original_is_training_that_was_not_interrupted_and_a_fresh_small_network_is_fresh(digits, rows):
    row = rows.where(kind="arm", family=ORIGINAL)[1]
    whole = measure.train(digits, 1, SMALLEST, row["rate"], 2)
    assert row["test"] == training.read_end(whole, digits)["test"]
    (other,) = (rate for rate in SMALLEST.learning_rates if rate != row["rate"])
    losses = [run.history[-1]["validation_loss"] for run in (whole, measure.train(digits, 1, SMALLEST, other, 2))]
    assert losses[0] < losses[1]  # the rate is chosen on the validation images
    later = training.fork(measure.train(digits, 1, SMALLEST, row["rate"], 1), digits, 2)
    later.fit()
    assert all(map(torch.equal, later.model.parameters(), whole.model.parameters()))
    model = measure.fresh(digits, 0)
    wide = model.fc2.weight.std()
    FAMILIES[SMALL].operate(model, measure.shown_of(digits), 0.1, 0)
    assert tuple(model.fc2.weight.shape) == (10, 30) and model.fc2.weight.std() > 2 * wide  # as fresh ones of 30 inputs


def test_pruning_leaves_as_many_weights_as_it_says_and_both_ways_begin_alike(rows, digits):
    for row in rows.where(kind="pruned"):
        whole = 64 * 300 + 300 * 100 + 1000
        assert abs(row["weights"] - 410 - row["left"] * whole) <= 1e-4 * whole + 1
    ways = {
        way: rows.where(kind="pruned", penalty=han.L2, way=way, left=1 / 2) for way in (han.ONE_SHOT, han.ITERATIVE)
    }
    assert [row["test"] for row in ways[han.ONE_SHOT]] == [row["test"] for row in ways[han.ITERATIVE]]
    (_, table) = rows.where(kind="table")
    assert table["compact_bytes"] <= table["bytes"] and 0 < table["layers"]["fc1"] < 0.2
    (first, second) = rows.where(kind="mask")
    assert "mask" in first and "mask" not in second and len(second["by_pixel"]) == 64
    share = sum(second["by_pixel"]) / (64 * second["units"])
    assert share == pytest.approx(table["layers"]["fc1"], abs=1e-6)


def test_rows_that_are_kept_have_the_fractions_that_a_page_asks_for():
    for network, lefts in han.LEFT.items():
        assert lefts[-1] == han.target(network) and all(float(f"{left:.{DIGITS}g}") == left for left in lefts)


def test_quality_times_deviation_decides_in_each_layer(digits):
    trainer = han.prepare(digits, "lenet_300_100", 0, 1, han.L2)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters() if weight.dim() > 1}
    han.prune(trainer, digits, 0.1)
    edges = []
    for name, weight in before.items():
        left = trainer.model.get_submodule(name.removesuffix(".weight")).weight != 0
        edges.append(float(weight[left].abs().min() / weight.std(correction=0)))
        assert weight[~left].abs().max() <= weight[left].abs().min()
    assert max(edges) == pytest.approx(min(edges), rel=0.05)


def made_up(gain, seeds=6):
    """Rows in which hashing is ``gain`` better than the rest (more in small files), and pruning costs ``−gain``."""
    noise, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        shared = 0.9 + noise.normal(0, 0.003)

        def accuracy(more, shared=shared):
            return shared + more + noise.normal(0, 0.0005)

        for family in (ORIGINAL, *FAMILIES):
            for factor in (1,) if family == ORIGINAL else (4, 16, 64):
                more = gain * (1 + (factor > 8)) * (family in (HASHED, "hashed, distilled"))
                more += gain * (family in ("rbf", STRETCHED))
                rows.append({
                    "kind": "arm", "seed": seed, "family": family, "factor": factor, "setting": 0.1, "rate": 0.01,
                    "test": accuracy(more + gain / 2 * (family == "hashed, distilled")), "test_loss": 1.0,
                    "parameters": 1000 // factor, "bytes": 4000 // factor, "flops": 2000, "computing": 100,
                    "milliseconds": 0.1, "milliseconds_256": 1.0,
                })  # fmt: skip
        for network in han.TARGETS:
            for penalty in (han.L2, han.L1):
                about = {"network": network, "penalty": penalty, "seed": seed}
                whole = {"test": accuracy(0), "alone": accuracy(0), "weights": 1000, "bytes": 4000, "flops": 2000}
                rows.append(about | {"kind": "trained"} | whole)
            for penalty, way in han.WAYS if network == han.CURVES else han.WAYS[-1:]:
                for left in han.LEFT[network]:
                    more = gain * (1 + (way != han.UNTRAINED) + (way == han.ITERATIVE))
                    more += gain / 2 * ((penalty == han.L1) == (way == han.UNTRAINED))
                    about = {"network": network, "penalty": penalty, "seed": seed, "way": way, "left": left}
                    rows.append(about | {"kind": "pruned", "test": accuracy(more), "weights": 100})
            layers = {"fc1": 0.1, "fc2": 0.2}
            rows.append({"kind": "table", "network": network, "seed": seed, "layers": layers, "bytes": 5000,
                         "compact_bytes": 900, "compact_flops": 500})  # fmt: skip
        centre = np.full((8, 8), 5)
        centre[2:6, 2:6] += round(200 * gain)
        mask = {"mask": pack(torch.ones(40, 64))} if not seed else {}
        rows.append(
            {"kind": "mask", "seed": seed, "units": 40, "by_pixel": (centre + seed % 2).flatten().tolist()} | mask
        )
    facts = {"train": 10, "validation": 10, "test": 10, "shape": [1, 8, 8], "classes": 10, "bytes": 4000}
    return measured_of("families", Options(), facts, rows)


def verdicts(measured):
    parts = page.parts(measured).values()
    return {each.claim.text: each.word for part in parts if isinstance(part, list) for each in judge(part)}


@pytest.mark.parametrize(("gain", "word"), [(0.02, "holds"), (-0.02, "does not hold")])
def test_claims_hold_where_the_numbers_say_so(gain, word):
    found = verdicts(made_up(gain))
    for text in (
        "hashed is at least as good as gaussian (low rank), within 0.5 points",
        "hashed is at least as good as random edges, within 0.5 points",
        "hashed, distilled is better than hashed",
        "beyond 1/8 hashed is further ahead than before",
        "rbf is better than gaussian (low rank)",
        "stretch (SVD) is better than small dense",
        "the pruned network is as good as before pruning, within 0.2 points",
        "half of the weights can go without retraining, within 0.2 points",
        "without retraining L1 is better than L2",
        "with retraining L2 is better than L1",
        "iterative pruning is better than one shot (L2, as many epochs)",
        "more of the first layer is left at the image's centre than at its border (fraction of the weights)",
    ):
        assert found[text].partition(":")[0] == word, text
    assert found["rbf is better than hashed"].partition(":")[0] != "holds"


def test_what_is_as_good_is_as_good_and_what_is_not_shown_is_undecided():
    found = verdicts(made_up(0.0))
    assert found["hashed is at least as good as random edges, within 0.5 points"] == "holds"
    assert found["distillation changes it by less than 1 point"] == "holds"
    for dictionary in DICTIONARIES:
        assert found[f"{dictionary} is better than hashed"] == "undecided"


def test_the_page_follows_its_rows(rows, tasks, tmp_path):
    made = made_up(0.02)
    few = Measured(made.about | {"facts": tasks[0], "options": SMALLEST.public()}, rows)
    for measured, untried in ((made, False), (few, True)):
        text = bench.write(EXPERIMENT.folder / "page.md", page.parts(measured), measured, tmp_path).read_text("utf-8")
        assert "nan" not in text and "$" not in text and ("Not tried here" in text) == untried
        for name in ("families", "curves", "sparsity"):
            assert f"({name}.png)" in text and (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_measured_is_refused_in_one_sentence():
    with pytest.raises(StudyError, match="epochs is 3; half of them come before"):
        Options(epochs=3)
    with pytest.raises(StudyError, match="factors is '8,x'; give whole numbers above 1"):
        Options(factors="8,x")
    for rates in ("0.1,x", "0.1,-1", "0.1,nan", ""):
        with pytest.raises(StudyError, match=r"rates is '.*'; give numbers above 0, such as 0\.001,0\.01"):
            Options(rates=rates)
    with pytest.raises(StudyError, match="no network alexnet; give one or both of lenet_300_100, lenet_5"):
        Options(networks="lenet_5,alexnet")
    with pytest.raises(StudyError, match="'lenet_5' failed on images of 1 × 8 × 8: it needs images of at least"):
        measure.measure(Options(data="digits"))
