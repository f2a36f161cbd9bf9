"""Schedules are plain data, and say in one sentence what is wrong with them."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from network_surgery.ops import (
    OPERATIONS,
    PCNS,
    Allocation,
    Anatomy,
    Condition,
    EigenRemove,
    MinWeight,
    Moment,
    RemoveDead,
    Schedule,
    Signals,
    Step,
    SurgeryError,
    WeakExpand,
    operate,
    size,
)

SCHEDULE = Schedule((
    Step(Moment(1), "0", EigenRemove(keep=0.25)), Step(Moment(50, "it"), "2", WeakExpand(split="equal", seed=3)),
))  # fmt: skip


@pytest.mark.parametrize("text", ["3ep", "250it", " 0ep "])
def test_moments_are_read(text):
    assert str(Moment.parse(text)) == text.strip()


@pytest.mark.parametrize("text", ["3", "ep", "-1ep", "3 ep", "1.5ep", "3epochs", "", None, 3])
def test_other_words_are_no_moments(text):
    with pytest.raises(SurgeryError, match="is not a moment of training; write it like '3ep'"):
        Moment.parse(text)


def test_moments_in_iterations():
    assert Moment(3).iteration(per_epoch=20) == 60 and Moment(3, "it").iteration(per_epoch=20) == 3


CONDITION = "redundancy(0.01) >= 0.3 from 2ep every 1ep at most 2"


@pytest.mark.parametrize("text", [
    CONDITION, "redundancy(1e-05) >= 0.125 from 0it every 250it at most 10",
    "dead_fraction(0.02) >= 0.1 from 2ep every 1ep at most 1",
])  # fmt: skip
def test_conditions_are_read(text):
    assert str(Condition.parse(text)) == text


@pytest.mark.parametrize("seed", range(5))
def test_a_condition_s_text_says_all_of_it(seed):
    chance = torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).tolist()
    measure = ("redundancy", "dead_fraction")[seed % 2]
    condition = Condition(chance[0] ** 9, chance[1], Moment(seed, "it"), Moment(3), seed + 1, measure)
    assert Condition.parse(str(condition)) == condition


def test_blanks_in_a_condition_do_no_harm():
    assert Condition.parse(" redundancy( .01 )>=0.30  from 2ep every 1ep  at most 2 ") == Condition.parse(CONDITION)
    assert Condition(0.01, 0.3, Moment(2), times=2) == Condition.parse(CONDITION)


@pytest.mark.parametrize(("text", "says"), [
    ("redundancy", "'redundancy' is not a condition; write it like 'redundancy"),
    (CONDITION.replace(">=", ">"), "is not a condition; write it like"),
    (CONDITION.replace(" every 1ep", ""), "is not a condition; write it like"),
    (CONDITION.replace("at most 2", "at most two"), "is not a condition; write it like"),
    (CONDITION.replace("0.3", "1.2.3"), "is not a condition; write it like"),
    (CONDITION.replace("2ep", "later"), "'later' is not a moment of training"),
    (CONDITION.replace("0.01", "1.0"), "the threshold of a condition is 1.0, but it must lie between 0 and 1"),
    (CONDITION.replace("0.3", "0"), "the gain of a condition is 0.0, but it must lie between 0 and 1"),
    (CONDITION.replace("every 1ep", "every 0ep"), "looks never"),
    (CONDITION.replace("at most 2", "at most 0"), "looks never"),
])  # fmt: skip
def test_refuses_what_is_no_condition(text, says):
    with pytest.raises(SurgeryError, match=re.escape(says)) as found:
        Schedule.from_data([{"when": text, "layer": "0", "op": "pcns"}])
    assert "\n" not in str(found.value)


def test_the_gain_is_what_pcns_would_remove():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 3))
    inputs = torch.randn(200, 6)
    layer, signals = Anatomy(model, inputs[:2])["1"], Signals(model, inputs)
    for threshold in (0.3, 0.05, 0.01, 1e-4):
        plan = PCNS(threshold).propose(layer, signals)
        gain = Condition(threshold, 0.5, Moment(1)).gain_of(layer, signals)
        assert gain == (plan.units_before - plan.units_after) / 30


@pytest.mark.parametrize(
    ("spectrum", "units", "gain"),
    [(torch.ones(0), 30, 28 / 30), (torch.ones(2) / 2, 2, 0.0), (torch.ones(8) / 8, 10, 0.1)],
    ids=["nothing varies: two units are left", "none to spare", "1 of 10, not 0.0999…"],
)
def test_the_gain_of_a_spectrum(spectrum, units, gain):
    signals = SimpleNamespace(together=lambda layer: SimpleNamespace(spectrum=lambda: spectrum))
    assert Condition(0.01, 0.5, Moment(1)).gain_of(SimpleNamespace(units=units), signals) == gain


def test_a_condition_counts_the_units_that_remove_dead_would_remove():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    model[0].bias.data[[1, 4, 8]] = -100
    inputs = torch.randn(60, 6)
    layer, signals = Anatomy(model, inputs[:2])["0"], Signals(model, inputs, torch.arange(60) % 3)
    for threshold, found in ((0.001, 0.3), (0.9, None)):
        gain = Condition(threshold, 0.1, Moment(1), measure="dead_fraction").gain_of(layer, signals)
        assert gain == len(RemoveDead(threshold).propose(layer, signals).removed) / 10
        assert gain == found or (found is None and gain > 0.3)


def test_a_condition_looks_at_what_is_known():
    with pytest.raises(SurgeryError, match="looks at redundancy or dead_fraction, not at 'luck'"):
        Condition(0.01, 0.1, Moment(1), measure="luck")


def test_a_condition_survives_json_and_is_checked():
    schedule = Schedule((Step(Condition.parse(CONDITION), "0", PCNS()), *SCHEDULE.steps))
    assert Schedule.from_data(json.loads(json.dumps(schedule.to_data()))) == schedule
    assert schedule.to_data()[0]["when"] == CONDITION
    schedule.check(["0", "2"], epochs=3, per_epoch=20)
    assert Condition.parse(CONDITION).iteration(per_epoch=20) == 40
    with pytest.raises(SurgeryError, match=r"a step at redundancy\(0.01\).*, but training ends after 2 epochs"):
        schedule.check(["0", "2"], epochs=2, per_epoch=30)


def test_survives_json():
    assert Schedule.from_data(json.loads(json.dumps(SCHEDULE.to_data()))) == SCHEDULE
    assert Schedule.from_data([{"when": "1ep", "layer": "0", "op": "min_weight"}]).steps[0].operation == MinWeight()


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_name(name):
    step = Step(Moment(0), "0", OPERATIONS[name]())
    assert Schedule((step,)).to_data()[0]["op"] == name


@pytest.mark.parametrize(("change", "says"), [
    ({"op": "cut"}, "there is no operation 'cut'; there are collapse, compact, deepen"),
    ({"sharpness": 3}, "eigen_remove has no sharpness; it has iterated, keep, rank, rounding, strength"),
    ({"keep": 2}, "EigenRemove: keep is 2, but it must lie above 0 and at most 1"),
    ({"when": "later"}, "'later' is not a moment of training"),
])  # fmt: skip
def test_refuses_bad_data(change, says):
    with pytest.raises(SurgeryError, match=says):
        Schedule.from_data([{**SCHEDULE.to_data()[0], **change}])


def test_refuses_a_step_without_a_layer():
    with pytest.raises(SurgeryError, match="lacks layer, op"):
        Schedule.from_data([{"when": "1ep"}])


def test_checks_layers_and_time():
    SCHEDULE.check(["0", "2"], epochs=3, per_epoch=20)
    with pytest.raises(SurgeryError, match="names the layer '2'; this network has 0, 1"):
        SCHEDULE.check(["0", "1"], epochs=3, per_epoch=20)
    with pytest.raises(SurgeryError, match=r"a step at 50it, but training ends after 2 epochs \(40 iterations\)"):
        SCHEDULE.check(["0", "2"], epochs=2, per_epoch=20)


def test_a_step_carries_what_becomes_of_the_learning_rate():
    for after, length in (("rewarm", None), ("rewarm", 0.25), ("rewind", Moment(2)), ("rewind", Moment(30, "it"))):
        schedule = Schedule((Step(Moment(1), "0", MinWeight(0.5), ("bias",), after, length),))
        (data,) = schedule.to_data()
        assert data["after"] == after and ("after_length" in data) == (length is not None)
        assert Schedule.from_data([data]) == schedule and f"then {after}" in str(schedule.steps[0])
    (data,) = Schedule((Step(Moment(1), "0", MinWeight(0.5)),)).to_data()
    assert "after" not in data  # schedules that do not say it stay as they were
    for wrong in ({"after": "restart"}, {"after_length": 0.5}, *({"after": "rewind", "after_length": n} for n in (
        0, 1.5, "0ep", "soon", True, [1],
    ))):  # fmt: skip
        with pytest.raises(SurgeryError, match="after"):
            Schedule.from_data([data | wrong])


def test_a_step_carries_how_long_other_layers_are_frozen_and_a_factor_of_the_learning_rate():
    for freeze, factor in ((Moment(2), None), (0.25, 0.1), (Moment(30, "it"), 2), (None, 0.5)):
        schedule = Schedule((Step(Moment(1), "0", MinWeight(0.5), freeze=freeze, lr_factor=factor),))
        (data,) = schedule.to_data()
        assert ("freeze" in data, "lr_factor" in data) == (freeze is not None, factor is not None)
        assert Schedule.from_data([data]) == schedule
    (data,) = Schedule((Step(Moment(1), "0", MinWeight(0.5)),)).to_data()
    assert not {"freeze", "lr_factor"} & data.keys()  # schedules that do not say it stay as they were
    for wrong in ({"freeze": n} for n in (0, 1.5, "0ep", "soon", True, [1])):
        with pytest.raises(SurgeryError, match=r"freeze is .*; write a fraction of what is left"):
            Schedule.from_data([data | wrong])
    for wrong in ({"lr_factor": n} for n in (0, -1, float("inf"), float("nan"), "x", True, [1])):
        with pytest.raises(SurgeryError, match=r"lr_factor is .*; write a number above 0, such as 0\.1"):
            Schedule.from_data([data | wrong])
    with pytest.raises(SurgeryError, match="one on the whole network leaves no other to freeze"):
        Schedule.from_data([{"when": "1ep", "layer": "*", "op": "prune_weights", "freeze": "1ep"}])
    for able in (BUDGET, {"when": "1ep", "layer": "*", "op": "deepen"}):  # these leave some
        assert Schedule.from_data([able | {"freeze": "1ep"}]).steps[0].freeze == Moment(1)


BUDGET = {"when": "2ep", "layer": "*", "op": "eigen_remove", "rank": 0.25, "budget": {"parameters": 0.5}}


def test_a_step_with_a_budget_survives_json_and_is_read_aloud():
    (step,) = Schedule.from_data([BUDGET]).steps
    assert step.allocation == Allocation({"parameters": 0.5}) and step.operation == EigenRemove(keep=1.0, rank=0.25)
    assert step == Step(Moment(2), "*", EigenRemove(keep=0.3, rank=0.25), allocation=Allocation({"parameters": 0.5}))
    assert str(step).startswith("2ep: EigenRemove(rank=0.25, weights='original'")
    assert str(step).endswith("to 50 % of the parameters by uniform on *")
    (data,) = Schedule((step,)).to_data()
    assert data["allocate"] == "uniform" and not {"keep", "layers"} & set(data)
    whole = BUDGET | {"allocate": "snip", "layers": ["0"], "repair": ["bias"], "after": "rewarm"}
    schedule = Schedule.from_data([whole])
    assert Schedule.from_data(json.loads(json.dumps(schedule.to_data()))) == schedule
    assert len({schedule, Schedule.from_data([whole]), Schedule.from_data([BUDGET])}) == 2


@pytest.mark.parametrize(("change", "says"), [
    ({"keep": 0.5}, "says what each layer keeps, or keep, but not both"),
    ({"op": "remove_dead", "rank": None}, "RemoveDead has no keep"),
    ({"layer": "0"}, "a budget is of the whole network: write layer: '\\*', not '0'"),
    ({"when": "redundancy(0.01) >= 0.3 from 2ep every 1ep at most 2"}, "a budget is met at a moment such as '3ep'"),
    ({"budget": {"latency": 0.5}}, "a budget is of parameters or flops"),
    ({"budget": None, "allocate": "snip"}, "this step has none: give budget as well"),
    ({"allocate": "guess"}, "a budget is allocated by uniform, redundancy"),
    ({"layers": "conv1"}, "layers are a list of names"),
])  # fmt: skip
def test_refuses_a_budget_that_cannot_be(change, says):
    data = {key: value for key, value in (BUDGET | change).items() if value is not None}
    with pytest.raises(SurgeryError, match=says):
        Schedule.from_data([data])


def test_budgets_are_checked_against_the_network():
    anatomy = Anatomy(nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 3)), torch.zeros(2, 4))
    Schedule.from_data([BUDGET]).check(anatomy, epochs=3, per_epoch=10)
    Schedule.from_data([BUDGET]).check_budgets(anatomy)
    with pytest.raises(SurgeryError, match="the layer 'fc9'; this network has 0"):
        Schedule.from_data([BUDGET | {"layers": ["fc9"]}]).check(anatomy, epochs=3, per_epoch=10)
    for budget, says in (({"parameters": 0.01}, "cannot be met"), ({"flops": 10**6}, "is larger than the network")):
        with pytest.raises(SurgeryError, match=says):
            Schedule.from_data([BUDGET | {"budget": budget}]).check_budgets(anatomy)


def test_a_budget_is_resolved_into_steps_on_layers():
    torch.manual_seed(0)
    anatomy = Anatomy(nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 3)),
                      torch.zeros(2, 4))  # fmt: skip
    (step,) = Schedule.from_data([BUDGET | {"repair": ["bias"], "after": "rewarm"}]).steps
    original = size(anatomy)
    parts = step.resolve(anatomy, original)
    assert [part.layer for part in parts] == ["0", "2"] and all(part.allocation is None for part in parts)
    assert {(part.repair, part.after, part.operation.rank) for part in parts} == {(("bias",), "rewarm", 0.25)}
    for part in parts:
        operate(anatomy[part.layer], part.operation)
    assert 0.9 * 0.5 * original.parameters < size(anatomy).parameters <= 0.5 * original.parameters
    assert step.resolve(anatomy, original) == []  # it is met
    assert parts[0].resolve(anatomy, original) == [parts[0]]
