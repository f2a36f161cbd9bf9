"""The experiment on the claims of PCNS, small: what is charged, what is shared, who chooses and who is tested."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.optim import SGD

from network_surgery.ops import MinWeight
from network_surgery.study.bench import page as bench
from network_surgery.study.bench.claims import judge
from network_surgery.study.bench.rows import Rows
from network_surgery.study.errors import StudyError
from network_surgery.study.experiments.pcns_claims import EXPERIMENT, measure, page, race
from network_surgery.study.experiments.pcns_claims.measure import (
    ARMS,
    EARLY,
    FINAL,
    LATE,
    NETWORKS,
    ORIGINAL,
    PRUNED,
    RANDOM,
    REFITTED,
    RESTART,
    SURGERY,
    Options,
)
from network_surgery.study.experiments.pcns_claims.race import TICKS, Runner
from network_surgery.study.task.images import load
from network_surgery.study.task.samples import Batches
from tests.study.experiments.made_up import measured_of

EPOCHS = dict(zip(NETWORKS, (6, 2), strict=True))
THRESHOLDS = (0.1, 0.01)


@pytest.fixture(scope="module")
def data():
    return load("digits", 0.2, 400)


@pytest.fixture(scope="module")
def rows(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "TURNS", 3)
        patch.setattr(race, "STEPS", 2)
        patch.setattr(measure, "REPEATS", 1)
        return Rows(
            row for seed in range(2) for name, epochs in EPOCHS.items()
            for row in measure.race(name, data, epochs, seed, THRESHOLDS)
        )  # fmt: skip


def runner(data, seed=0):
    torch.manual_seed(0)
    model = NETWORKS["dense 256 – 128"][0](data.shape, 10)
    train, validation = (Batches(images, torch.device("cpu")) for images in (data.train, data.validation))
    return Runner(model, SGD(model.parameters(), 0.1), train, validation, 64, seed)


@pytest.mark.long
def test_no_arm_spends_more_than_its_seconds(rows):
    assert len(rows) == 2 * 2 * (1 + len(ARMS) * len(THRESHOLDS))
    for row in rows:
        share = {ORIGINAL: 0.0, RESTART: 0.0, PRUNED: FINAL, LATE: FINAL}.get(row["arm"], EARLY)
        steps = EPOCHS[row["network"]] * (320 // NETWORKS[row["network"]][1])
        before = math.floor(steps * share + 1e-9)
        left = row["budget"] * (1 - before / steps) - row.get("operation", 0.0)
        assert len(row["curve"]) == TICKS + 1
        assert (row["steps"] - before) * row["price"] <= max(left, 0) * 1.001 + 1e-9
        if left > 0:
            assert (row["steps"] - before + 2) * row["price"] > left


def test_all_arms_of_a_threshold_end_with_the_same_sizes(rows):
    for place in rows.groups("network", "seed", "threshold", arm=SURGERY):
        arms = {row["arm"]: row for row in rows.where(**place)}
        assert set(arms) == set(ARMS) and len({row["parameters"] for row in arms.values()}) == 1
        assert all(arms[arm]["sizes"] == arms[SURGERY]["sizes"] for arm in (RANDOM, REFITTED, PRUNED, LATE))
        (original,) = rows.where(**place | {"threshold": None, "arm": ORIGINAL})
        assert arms[SURGERY]["parameters"] < original["parameters"]


def test_arms_share_what_comes_before_the_operation(rows):
    early = math.floor(EARLY * TICKS)
    for place in rows.groups("network", "seed", "threshold", arm=SURGERY):
        arms = {row["arm"]: row for row in rows.where(**place)}
        (original,) = rows.where(**place | {"threshold": None, "arm": ORIGINAL})
        for arm in (SURGERY, RANDOM, REFITTED):
            assert arms[arm]["curve"][:early] == original["curve"][:early]
        assert arms[SURGERY]["before"] == arms[RANDOM]["before"] and arms[LATE]["before"] == arms[PRUNED]["before"]


def test_steps_are_the_same_at_the_same_step_whatever_was_done_before(data):
    whole = runner(data, 3)
    parts = whole.fork()
    whole.run(9.0, 1.0, 9.0)
    parts.run(4.0, 1.0, 9.0)
    parts = parts.fork()
    parts.run(9.0, 1.0, 9.0)
    assert whole.steps == parts.steps == 9
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_is_seen_at_a_tick_is_the_network_of_that_moment(data, monkeypatch):
    monkeypatch.setattr(race, "TICKS", 5)
    raced = runner(data)
    raced.look()
    raced.run(10.0, 0.75, 10.0)
    seen = [seconds for seconds, _ in raced.seen]
    assert raced.steps == 13 and seen[-1] == 9.75
    for tick in (2.0, 4.0, 6.0, 8.0):  # the last whole step that ends by then
        assert max(at for at in seen if at <= tick) == math.floor(tick / 0.75) * 0.75
    raced.rescale(2.0)
    assert raced.seconds == 19.5 and raced.seen[-1][0] == 19.5


def test_a_cut_copy_leaves_the_network_as_it_was(data):
    start = runner(data)
    cut = measure.cut_copy(start, lambda layer: MinWeight(0.5), False)
    assert cut.sizes == {"layer1": 128, "layer2": 64} and cut.operation > 0
    assert not start.sizes and start.model.layer1.out_features == 256


def made_up(gap=0.01, speed=5, seeds=12, network="net"):
    """PCNS ends ``gap`` above the original at 0.01 and 0.001, far below it at 0.1, and gets there ``speed`` ticks
    sooner; all others end far below, and are slower."""
    noise, rows = np.random.default_rng(0), []

    def row(seed, threshold, arm, high, reached, operation):
        curve = [high if tick >= reached else 0.1 for tick in range(TICKS + 1)]
        rows.append({
            "kind": "arm", "network": network, "seed": seed, "threshold": threshold, "arm": arm, "test": high,
            "curve": curve, "parameters": 100 if arm == ORIGINAL else 20, "steps": 10, "budget": 1.0, "price": 0.1,
        } | ({} if arm in (ORIGINAL, RESTART) else {
            "before": 0.5, "after": high, "operation": operation, "sizes": {"a": 5, "b": 3},
        }))  # fmt: skip

    for seed in range(seeds):
        level = 0.9 + noise.normal(0, 0.001)
        row(seed, None, ORIGINAL, level, 20, 0.0)
        for threshold in (0.1, 0.01, 0.001):
            for arm in ARMS:
                ours = arm in (SURGERY, LATE)
                high = level + noise.normal(0, 0.0005) + (gap if threshold < 0.1 else -0.3) - (0 if ours else 5 * gap)
                reached = 18 - (speed if ours else 0) - int(noise.integers(2))
                operation = (0.1 - 0.09 * ours * np.sign(gap)) * (1 + noise.random() / 9)
                row(seed, threshold, arm, high, reached, operation)
    facts = {network: dict.fromkeys(("train", "validation", "test", "epochs", "label"), 3)}
    return measured_of("pcns_claims", Options(), facts, rows)


def test_the_largest_threshold_that_is_good_enough_is_chosen():
    assert page.choose_thresholds(made_up(0.01).rows) == {"net": 0.01}
    assert page.choose_thresholds(made_up(-0.2).rows)["net"] in (0.01, 0.001)  # none is good enough: the best


def changed(measured, seeds, **fields):
    """The rows with other values of PCNS at 0.01 with these seeds."""
    return Rows(
        row | fields if row["seed"] in seeds and (row["arm"], row["threshold"]) == (SURGERY, 0.01) else row
        for row in measured.rows
    )


def test_one_half_of_the_seeds_chooses_the_threshold_and_the_other_half_is_tested():
    measured = made_up()
    first, second = range(6), range(6, 12)
    bad = [0.1] * (TICKS + 1)
    assert page.choose_thresholds(changed(measured, second, curve=bad)) == {"net": 0.01}  # they do not choose
    assert page.choose_thresholds(changed(measured, first, curve=bad)) == {"net": 0.001}

    def differences(rows):
        return [claim.conditions["net"] for claim in page.claims(rows, {"net": 0.01})]

    before = differences(measured.rows)
    assert all(len(values) == 6 for values in before)
    for one, other in zip(before, differences(changed(measured, first, test=0.2, curve=bad)), strict=True):
        np.testing.assert_array_equal(one, other)  # they are not tested
    assert (differences(changed(measured, second, test=0.2))[0] < before[0]).all()
    words = page.parts(measured)["thresholds"]
    assert words.startswith("Seeds 0, 1, 2, 3, 4, 5 choose 0.01 for net (20% of the parameters left)")
    assert words.endswith("seeds 6, 7, 8, 9, 10, 11 are tested")


@pytest.mark.parametrize(("gap", "speed", "word"), [(0.01, 10, "holds"), (-0.05, -4, "does not hold")])
def test_the_page_says_what_the_rows_say(gap, speed, word, tmp_path):
    measured = made_up(gap, speed)
    parts = page.parts(measured)
    verdicts = [verdict.word for verdict in judge(parts["claims"])]
    if gap > 0:
        assert verdicts == [word] * 8
    else:  # where the original ends none arrives but the others, which are above
        assert verdicts[0] == verdicts[1] == verdicts[4] == verdicts[7] == word and "holds" not in verdicts
    text = bench.write(EXPERIMENT.folder / "page.md", parts, measured, tmp_path).read_text(encoding="utf-8")
    assert "nan" not in text and "$" not in text and f"**{word}**: (a) the shrunk network ends as" in text
    assert "(race.png)" in text and (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")


def test_arrival_is_the_first_time_at_the_target_or_the_end():
    measured = made_up()
    seconds, never = page.arrival(measured.rows, "net", 0.01, SURGERY)
    assert never == 0 and set(np.round(seconds * TICKS)) <= {12, 13}
    seconds, never = page.arrival(measured.rows, "net", 0.1, SURGERY)
    assert never == 12 and (seconds == 1.0).all()


def test_too_few_seeds_to_choose_and_to_test_are_refused():
    with pytest.raises(StudyError, match="one half chooses a threshold"):
        Options(seeds=3)
