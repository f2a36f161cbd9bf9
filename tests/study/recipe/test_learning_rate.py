"""Learning-rate schedules against torch's own, and what operations do to them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.optim import SGD, Adam, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, SequentialLR

from network_surgery.ops import MinWeight, Moment, Schedule, Step
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.curves import Curve
from network_surgery.study.recipe.learning_rate import LearningRate, check_after
from network_surgery.study.recipe.optimization import Optimization

CURVES = [
    Curve(),
    Curve(warmup=0.2),
    Curve("step", steps=(0.4, 0.8), factor=0.5),
    Curve("cosine"),
    Curve("cosine", warmup=0.1),
    Curve("linear", warmup=0.25),
    Curve("one_cycle"),
    Curve("one_cycle", warmup=0.5, cycle_momentum=False),
    Curve("one_cycle", warmup=0.01),
    Curve("one_cycle", warmup=0.99),
]
every_curve = pytest.mark.parametrize("curve", CURVES, ids=lambda curve: f"{curve.name} {curve.warmup}")


def factors(rate: LearningRate) -> list[float]:
    return [rate.factor(step) for step in range(rate.total)]


def test_rates_and_momenta_are_those_of_torchs_own_schedulers() -> None:
    ours, theirs = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    for make, curve in (
        (lambda o: SequentialLR(o, [LinearLR(o, 1 / 6, 1.0, 5), CosineAnnealingLR(o, 20)], [5]), Curve("cosine", 0.2)),
        (lambda o: OneCycleLR(o, 0.3, total_steps=25), Curve("one_cycle")),
    ):
        mine, other = SGD([ours], lr=0.3, momentum=0.9), SGD([theirs], lr=0.3, momentum=0.9)
        scheduler, rate = make(other), LearningRate(curve, 25, 5)
        for step in range(25):
            rate.apply(mine, step)
            for key in ("lr", "momentum"):
                assert mine.param_groups[0][key] == pytest.approx(other.param_groups[0][key], rel=1e-9), (curve, step)
            other.step()
            if step < 24:
                scheduler.step()


def test_one_cycle_moves_the_first_beta_of_adam() -> None:
    optimizer = Adam([torch.nn.Parameter(torch.zeros(2))], lr=0.1, betas=(0.9, 0.98))
    rate, seen = LearningRate(Curve("one_cycle"), 20, 5), []
    for step in range(20):
        rate.apply(optimizer, step)
        seen.append(optimizer.param_groups[0]["betas"])
    assert seen[0] == (0.95, 0.98) and min(seen) == (pytest.approx(0.85), 0.98)
    other = RMSprop([torch.nn.Parameter(torch.zeros(2))])
    Optimization(Curve("one_cycle", cycle_momentum=False)).check(Adam([torch.zeros(2)]))
    del other.param_groups[0]["momentum"]
    with pytest.raises(StudyError, match="cycles the momentum, but RMSprop has none; set cycle_momentum: false"):
        Optimization(Curve("one_cycle")).check(other)


@every_curve
@pytest.mark.parametrize("total", [*range(1, 12), 40, 300])
def test_a_curve_has_a_rate_for_every_step_of_any_run(curve: Curve, total: int) -> None:
    table = curve.table(total)
    assert len(table.rates) == total and all(0 < rate <= 1 for rate in table.rates)
    assert 0 <= table.warm <= total
    assert all(a < b for a, b in pairwise(table.rates[: table.warm]))
    assert (table.momenta is not None) == (curve.cycles and total > 1)


@every_curve
def test_every_parameter_group_keeps_its_share_of_the_learning_rate(curve: Curve) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = SGD([{"params": parameters[:1], "lr": 1.0}, {"params": parameters[1:], "lr": 0.1}], lr=1, momentum=0.9)
    rate = LearningRate(curve, 10, 5)
    for step in range(10):
        rate.apply(optimizer, step)
        assert [group["lr"] for group in optimizer.param_groups] == [rate.factor(step), 0.1 * rate.factor(step)]


@every_curve
@pytest.mark.parametrize("what", ["continue", "rewarm", "rewind"])
@pytest.mark.parametrize("at", [1, 50, 99])
def test_every_curve_ends_where_it_ends_whatever_an_operation_does(curve: Curve, what: str, at: int) -> None:
    plain, rate = LearningRate(curve, 100, 10), LearningRate(curve, 100, 10)
    rate.after(at, what, None if what == "continue" else 0.5)
    before, after = factors(plain), factors(rate)
    assert after[:at] == before[:at]
    if what == "continue":
        assert after == before
    if what != "rewarm" or at < 99:  # then the whole rest is the rewarming
        assert after[-1] == pytest.approx(before[-1], rel=0.1, abs=0.05)
    again = LearningRate(curve, 100, 10)
    again.restore(rate.state())
    assert factors(again) == after


def test_rewarming_rises_to_the_rate_that_the_curve_has_then() -> None:
    rate = LearningRate(Curve("cosine"), 100, 10)
    plain = factors(rate)
    rate.after(40, "rewarm", Moment(2))
    now = factors(rate)
    assert [a / b for a, b in zip(now[40:60], plain[40:60], strict=True)] == pytest.approx(
        [k / 21 for k in range(1, 21)]
    )
    assert now[:40] == plain[:40] and now[60:] == plain[60:]
    rate.after(50, "rewarm")  # a tenth of what is left; the first one ends
    assert factors(rate)[40:50] == now[40:50] and factors(rate)[55:] == plain[55:]
    assert factors(rate)[50] == pytest.approx(plain[50] / 6)


def test_rewinding_goes_back_and_is_annealed_over_what_is_left() -> None:
    rate = LearningRate(Curve("linear"), 100, 10)
    plain = factors(rate)
    rate.after(60, "rewind", Moment(20, "it"))
    assert rate.factor(60) == pytest.approx(plain[40], abs=0.01)
    assert [a - b for a, b in pairwise(factors(rate)[60:])] == pytest.approx([0.6 / 40] * 39, abs=1e-3)
    rate.after(80, "rewind")
    assert rate.factor(80) == 1 and factors(rate)[80:] == pytest.approx([1 - k / 20 for k in range(20)])


def test_rewinding_leaves_the_warm_up_behind() -> None:
    rate = LearningRate(Curve("cosine", warmup=0.2), 100, 10)
    rate.after(10, "rewind")
    assert factors(rate) == factors(LearningRate(Curve("cosine", warmup=0.2), 100, 10))
    rate.after(70, "rewind")
    assert rate.factor(70) > 0.95 and all(a >= b for a, b in pairwise(factors(rate)[71:]))
    cycle = LearningRate(Curve("one_cycle"), 100, 10)
    cycle.after(70, "rewind")
    assert cycle.factor(70) > 0.95 and cycle.factor(99) < 1e-3


def test_operations_of_one_moment_count_as_one() -> None:
    once, thrice = LearningRate(Curve("linear"), 100, 10), LearningRate(Curve("linear"), 100, 10)
    once.after(50, "rewind", 0.2)
    for what in ("rewarm", "rewind", "continue"):
        thrice.after(50, what, 0.2)
    assert factors(once) == factors(thrice)


def test_a_step_carries_it_and_nothing_constant_is_rewound() -> None:
    step = Step(Moment(1), "fc1", MinWeight(0.5), after="rewind", after_length=0.5)
    check_after(Curve("cosine"), Schedule((step,)))
    with pytest.raises(StudyError, match=r"then rewind 0.5' rewinds the learning rate, but lr_schedule is constant"):
        check_after(Curve(warmup=0.1), Schedule((step,)))
    check_after(Curve(), Schedule((Step(Moment(1), "fc1", MinWeight(0.5), after="rewarm"),)))


def test_the_numbers_stay_finite_with_many_operations() -> None:
    rate = LearningRate(Curve("one_cycle"), 60, 6)
    for at in range(1, 60, 2):
        rate.after(at, "rewind" if at % 3 else "rewarm", 1.0)
    assert all(math.isfinite(f) and 0 < f <= 1 for f in factors(rate))


@every_curve
def test_a_run_that_goes_on_after_its_curve_has_its_last_rate_or_a_hundredth(curve: Curve) -> None:
    alone, longer = LearningRate(curve, 40, 10), LearningRate(curve, 70, 10, curve_steps=40)
    assert factors(longer)[:40] == factors(alone)
    assert factors(longer)[40:] == [max(alone.factor(39), 0.01)] * 30
    assert longer.momentum(60) == alone.momentum(39)


@every_curve
def test_rewinding_after_the_curve_trains_its_last_part_once_more(curve: Curve) -> None:
    rate, alone = LearningRate(curve, 60, 10, curve_steps=40), factors(LearningRate(curve, 40, 10))
    rate.after(40, "rewind", Moment(2))
    assert factors(rate)[:40] == alone
    if curve.table(40).warm <= 20:  # it never goes back into the warm-up
        assert factors(rate)[40:] == alone[20:]
    again = LearningRate(curve, 60, 10, curve_steps=40)
    again.restore(rate.state())
    assert factors(again) == factors(rate)
