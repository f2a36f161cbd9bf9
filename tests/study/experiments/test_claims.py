"""The experiment on the claims of PCNS, small: what is charged, what is shared, and what the verdicts say."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.optim import SGD

from network_surgery.study.data import load
from network_surgery.study.experiments.claims import __main__ as command
from network_surgery.study.experiments.claims import arms, figure, parallel, race, verdicts
from network_surgery.study.experiments.claims.arms import (
    CNN,
    DENSE,
    EARLY,
    FINAL,
    LATE,
    ORIGINAL,
    PRUNED,
    RANDOM,
    REFITTED,
    RESTART,
    SURGERY,
    THRESHOLDS,
    TICKS,
    Outcome,
)

pytestmark = pytest.mark.slow

SMALL = [dataclasses.replace(DENSE, epochs=6), dataclasses.replace(CNN, epochs=2)]
PER_EPOCH = {DENSE.name: 320 // DENSE.batch, CNN.name: 320 // CNN.batch}
ARMS = (SURGERY, RESTART, PRUNED, LATE, REFITTED, RANDOM)


@pytest.fixture(scope="module")
def races():
    return [(setting, load("digits", 0.2, 400)) for setting in SMALL]


@pytest.fixture(scope="module")
def found(races):
    made: arms.Found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "TURNS", 3)
        patch.setattr(race, "STEPS", 2)
        patch.setattr(arms, "REPEATS", 1)
        for setting, data in races:
            for seed in range(2):
                for threshold, arm, outcome in arms.race(setting, data, seed):
                    made.setdefault((setting.name, threshold, arm), []).append(outcome)
    return made


def test_every_arm_is_there_for_every_threshold(found):
    for setting in SMALL:
        assert len(found[setting.name, None, ORIGINAL]) == 2
        for threshold in THRESHOLDS:
            assert set(verdicts.arms_of(found, setting.name, threshold)) == {ORIGINAL, *ARMS}


def test_no_arm_spends_more_than_its_seconds(found):
    for (setting, _, arm), outcomes in found.items():
        for outcome in outcomes:
            share = {ORIGINAL: 0.0, RESTART: 0.0, PRUNED: FINAL, LATE: FINAL}.get(arm, EARLY)
            epochs = next(each.epochs for each in SMALL if each.name == setting)
            steps = epochs * PER_EPOCH[setting]
            before = math.floor(steps * share + 1e-9)
            cut = 0.0 if math.isnan(outcome.operation) else outcome.operation
            left = outcome.budget * (1 - before / steps) - cut
            assert len(outcome.curve) == TICKS + 1
            assert (outcome.steps - before) * outcome.price <= max(left, 0) * 1.001 + 1e-9
            if left > 0:
                assert (outcome.steps - before + 2) * outcome.price > left


def test_all_arms_of_a_threshold_end_with_the_same_sizes(found):
    for setting in SMALL:
        for threshold in THRESHOLDS:
            mine = verdicts.arms_of(found, setting.name, threshold)
            for seed in range(2):
                sizes = mine[SURGERY][seed].sizes
                assert all(mine[arm][seed].parameters == mine[SURGERY][seed].parameters for arm in ARMS)
                assert all(mine[arm][seed].sizes == sizes for arm in (RANDOM, REFITTED, PRUNED, LATE))
        left = [found[setting.name, threshold, SURGERY][0].parameters for threshold in THRESHOLDS]
        assert left == sorted(left) and left[0] < found[setting.name, None, ORIGINAL][0].parameters


def test_arms_share_what_comes_before_the_operation(found):
    early = math.floor(EARLY * TICKS)
    for setting in SMALL:
        original = found[setting.name, None, ORIGINAL]
        for threshold in THRESHOLDS:
            mine = verdicts.arms_of(found, setting.name, threshold)
            for seed in range(2):
                for arm in (SURGERY, RANDOM, REFITTED):
                    assert mine[arm][seed].curve[:early] == original[seed].curve[:early]
                assert mine[SURGERY][seed].before == mine[RANDOM][seed].before
                assert mine[LATE][seed].before == mine[PRUNED][seed].before


def test_steps_are_the_same_at_the_same_step_whatever_was_done_before(races):
    _, data = races[0]
    track = race.Track.of(data, 64, 3)
    torch.manual_seed(0)
    model = arms.dense(data.shape, 10)
    whole = race.Runner(model, SGD(model.parameters(), 0.1))
    parts = whole.fork()
    whole.run(track, 9.0, 1.0, 3, 9.0)
    parts.run(track, 4.0, 1.0, 3, 9.0)
    parts = parts.fork()
    parts.run(track, 9.0, 1.0, 3, 9.0)
    assert whole.steps == parts.steps == 9
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_processes_give_what_one_race_gives_but_for_its_seconds(races):
    setting, data = dataclasses.replace(SMALL[0], epochs=1), races[0][1]
    found = parallel.measure([(setting, data)], seeds=1, workers=1)
    assert {(threshold, arm) for _, threshold, arm in found} == {(None, ORIGINAL)} | {
        (threshold, arm) for threshold in THRESHOLDS for arm in ARMS
    }
    (here,) = (outcome for _, arm, outcome in itertools.islice(arms.race(setting, data, 0), 1))
    there = found[setting.name, None, ORIGINAL][0]
    assert here.test == there.test and here.curve == there.curve and here.steps == there.steps


def test_what_is_seen_at_a_tick_is_the_network_of_that_moment(races):
    _, data = races[0]
    track = race.Track.of(data, 64, 0)
    model = arms.dense(data.shape, 10)
    runner = race.Runner(model, SGD(model.parameters(), 0.1))
    runner.look(track)
    runner.run(track, 10.0, 0.75, 5, 10.0)
    seen = [seconds for seconds, _ in runner.seen]
    assert runner.steps == 13 and seen[-1] == 9.75
    for tick in (2.0, 4.0, 6.0, 8.0):  # the last whole step that ends by then
        assert max(at for at in seen if at <= tick) == math.floor(tick / 0.75) * 0.75


def test_an_operation_is_charged_and_the_curve_waits_for_it(races):
    _, data = races[0]
    track = race.Track.of(data, 64, 0)
    model = arms.dense(data.shape, 10)
    runner = race.Runner(model, SGD(model.parameters(), 0.1))
    runner.look(track)
    runner.charge(6.0, track)
    runner.run(track, 10.0, 1.0, 10, 10.0)
    assert runner.steps == 4 and runner.seconds == 10.0
    assert [seconds for seconds, _ in runner.seen] == [0.0, 6.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    runner.rescale(0.5)
    assert runner.seconds == 5.0 and runner.seen[-1][0] == 5.0


def outcome(test: float, level: float, reached: int = TICKS, parameters: int = 100) -> Outcome:
    curve = tuple(level if tick >= reached else 0.1 for tick in range(TICKS + 1))
    return Outcome(test, curve, parameters, 10, 1.0, 0.1, 0.2, 0.5, level, 0.01, {"a": 5})


def made_up(rng, gap: float, speed: int) -> arms.Found:
    """PCNS ends ``gap`` above the original at 0.01, far below it at 0.1, and gets there ``speed`` ticks sooner."""
    found: arms.Found = {}
    for _ in range(8):
        noise = rng.normal(0, 0.001)
        found.setdefault(("net", None, ORIGINAL), []).append(outcome(0.9 + noise, 0.9 + noise, 20))
        for threshold in THRESHOLDS:
            for arm in ARMS:
                high = 0.9 + noise + rng.normal(0, 0.0005) + (gap if threshold < 0.1 else -0.3)
                if arm != SURGERY:
                    high -= 0.05
                late = 18 - (speed if arm == SURGERY else 0) - int(rng.integers(2))
                found.setdefault(("net", threshold, arm), []).append(outcome(high, high, late))
    return found


def test_the_largest_threshold_that_is_good_enough_is_chosen():
    rng = np.random.default_rng(0)
    assert verdicts.chosen(made_up(rng, 0.01, 5), "net") == 0.01
    worse = made_up(rng, -0.2, 5)
    assert verdicts.chosen(worse, "net") in (0.01, 0.001)  # none is good enough: the best


def test_the_claims_hold_where_they_do_and_not_where_they_do_not():
    rng = np.random.default_rng(1)
    good = verdicts.lines(made_up(rng, 0.01, 10))
    assert [line.split("**")[1].split(": ")[1] for line in good if line.startswith("- ")] == ["holds."] * 3
    bad = verdicts.tests(made_up(rng, -0.05, 10))
    assert bad[0, "net"].sign == -1 and bad[2, "net"].sign == 0  # never where the original ends
    assert verdicts.said(verdicts.STATEMENTS[0], bad[0, "net"]).startswith("-5.0")  # without the margin


def test_arrival_is_the_first_time_at_the_target_or_the_end():
    arrive = verdicts.arrival([outcome(0.9, 0.9, 6), outcome(0.8, 0.8, 6)], np.array([0.9, 0.9]))
    np.testing.assert_allclose(arrive, [6 / TICKS, 1.0])


def test_a_report_and_a_figure_are_written(found, races, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda races, seeds, workers: found)
    command.main(data="digits", about="", images=400, seeds=2, workers=1, out=tmp_path / "docs")
    text = (tmp_path / "docs" / "pcns_claims.md").read_text(encoding="utf-8")
    assert text.count("| 2 |\n") == len(found) and "(pcns_claims.png)" in text and "nan" not in text
    assert all(f"({claim}) {words}" in text for claim, words in verdicts.CLAIMS.items())
    picture = (tmp_path / "docs" / "pcns_claims.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 250_000
    assert "small_cnn" in figure.draw(found).alt
