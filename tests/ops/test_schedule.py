"""Schedules are plain data, and say in one sentence what is wrong with them."""

from __future__ import annotations

import json

import pytest

from ops import OPERATIONS, EigenRemove, MinWeight, Moment, Schedule, Step, SurgeryError, WeakExpand

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


def test_survives_json():
    assert Schedule.from_data(json.loads(json.dumps(SCHEDULE.to_data()))) == SCHEDULE
    assert Schedule.from_data([{"when": "1ep", "layer": "0", "op": "min_weight"}]).steps[0].operation == MinWeight()


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_name(name):
    step = Step(Moment(0), "0", OPERATIONS[name]())
    assert Schedule((step,)).to_data()[0]["op"] == name


@pytest.mark.parametrize(("change", "says"), [
    ({"op": "cut"}, "there is no operation 'cut'; there are eigen_remove, mean_replace"),
    ({"sharpness": 3}, "eigen_remove has no sharpness; it has keep, rank, strength, weights"),
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
