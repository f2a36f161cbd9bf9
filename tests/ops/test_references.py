"""Operations of one's own are named in schedules by ``MODULE:CLASS``, and what is wrong with a name is said."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from network_surgery.ops import MinWeight, Moment, Operation, Schedule, Step, SurgeryError
from network_surgery.ops.operations import operation_class, operation_name
from network_surgery.ops.references import reference_to, resolve


@dataclass(frozen=True)
class Sharp(MinWeight):
    sharpness: int = 1


@dataclass(frozen=True)
class Needy(Operation):
    units: int


class Plain(Operation):
    """No dataclass."""


@pytest.fixture(autouse=True)
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of somebody's, whatever name the tests' own has here."""
    module = ModuleType("mine")
    for kind in (Sharp, Needy, Plain):
        monkeypatch.setattr(kind, "__module__", "mine")
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "mine", module)


def step(**changes: object) -> list[dict[str, object]]:
    return [{"when": "1ep", "layer": "0", "op": "mine:Sharp", "sharpness": 3} | changes]


def test_a_schedule_with_an_operation_of_ones_own_is_plain_data() -> None:
    schedule = Schedule((Step(Moment(1), "0", Sharp(0.25, sharpness=3)),))
    data = json.loads(json.dumps(schedule.to_data()))
    assert data[0]["op"] == "mine:Sharp" and data[0]["sharpness"] == 3
    assert Schedule.from_data(data) == schedule and Schedule.from_data(step()).steps[0].operation == Sharp(sharpness=3)


def test_known_operations_keep_their_short_name() -> None:
    assert operation_name(MinWeight) == "min_weight" and operation_class("min_weight") is MinWeight
    assert operation_class("network_surgery.ops:MinWeight") is MinWeight


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"op": "no_such_module:Sharp"}, "the operation 'no_such_module:Sharp' cannot be loaded: No module named"),
        ({"op": "mine:Blunt"}, "the operation 'mine:Blunt' cannot be loaded: module 'mine' has no attribute 'Blunt'"),
        ({"op": "json:dumps"}, "the operation json:dumps must be a dataclass and a subclass of ops.Operation"),
        ({"op": "mine:Plain"}, "the operation mine:Plain must be a dataclass"),
        ({"op": ":"}, "the operation ':' cannot be loaded"),
        ({"op": "sharp"}, "there is no operation 'sharp'; there are collapse, compact, .*, or MODULE:CLASS"),
        ({"bluntness": 1}, "mine:Sharp has no bluntness; it has keep, rounding, sharpness, strength"),
        ({"keep": 2}, "Sharp: keep is 2, but it must lie above 0"),
    ],
    ids=str,
)
def test_a_wrong_name_is_one_sentence(change: dict[str, object], words: str) -> None:
    with pytest.raises(SurgeryError, match=words):
        Schedule.from_data(step(**change))


def test_an_operation_that_cannot_be_made_is_one_sentence() -> None:
    with pytest.raises(SurgeryError, match=r"mine:Needy cannot be made of {}: .* missing 1 required"):
        Schedule.from_data([{"when": "1ep", "layer": "0", "op": "mine:Needy"}])


def test_what_no_text_can_name_is_refused() -> None:
    @dataclass(frozen=True)
    class Inner(MinWeight):
        pass

    with pytest.raises(SurgeryError, match="Inner is made inside a function, so no text can name it"):
        Schedule((Step(Moment(1), "0", Inner()),)).to_data()


def test_references() -> None:
    assert resolve(reference_to(json.dumps), "function") is json.dumps
    with pytest.raises(SurgeryError, match="the page 'json' is no reference; write it as MODULE:NAME"):
        resolve("json", "page")
