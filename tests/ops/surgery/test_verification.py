"""Verification: a plan is measured against what it says, in double precision, and refused where it is wrong."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from network_surgery.ops import (
    PCNS,
    Anatomy,
    EigenRemove,
    MinWeight,
    Plan,
    Signals,
    SurgeryError,
    WeakExpand,
    ZeroExpand,
    measure,
    operate,
)
from network_surgery.ops.anatomy.rebuild import Edit
from network_surgery.ops.anatomy.rebuild import moves as _moves
from network_surgery.ops.surgery.verification import TOLERANCE
from tests.ops.networks import ADVERSARIAL, NETWORKS, build

OPERATIONS = [EigenRemove(keep=0.5), MinWeight(keep=0.6), PCNS(0.1), WeakExpand(grow=0.5), ZeroExpand(grow=0.5)]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: type(operation).__name__)
@pytest.mark.parametrize("name", [*NETWORKS, *(name for name in ADVERSARIAL if ADVERSARIAL[name][2])])
def test_every_plan_of_every_operation_does_what_it_says(name, operation):
    model, inputs = build(name, batch=4)
    before = copy.deepcopy(model.state_dict())
    signals = Signals(model, inputs)
    for layer in Anatomy(model, inputs).values():
        plan = operation.propose(layer, signals)
        assert measure(plan) == plan.measured
        assert plan.measured < (TOLERANCE if layer.exact else math.inf)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {value.dtype for value in model.state_dict().values()} == {value.dtype for value in before.values()}


def test_a_norm_over_the_units_shows_in_the_plan():
    model, inputs = build("layernorm")
    plan = MinWeight(keep=0.5).propose(Anatomy(model, inputs)["0"])
    assert plan.measured is None and "changes the output" not in str(plan)
    assert measure(plan) > 1e-3
    assert f"changes the output by {plan.measured:.2g} of its size" in str(plan)
    doubled = WeakExpand(grow=1.0, split="equal").propose(Anatomy(model, inputs)["0"])
    assert measure(doubled) < 1e-4  # every unit twice: mean and variance stay


def test_a_wrong_anatomy_is_refused_and_nothing_happens():
    """A batch norm's scale that surgery forgets, as if a rule had missed it."""
    model, inputs = build("cnn")
    anatomy = Anatomy(model, inputs)
    layer = anatomy["0"]
    layer.places = [place for place in layer.places if place.tensor != "1.weight"]
    model[1].weight.data = torch.linspace(0.5, 1.5, 6)
    before = copy.deepcopy(model.state_dict())
    for verify in (True, torch.randn(3, 2, 8, 8)):
        with pytest.raises((SurgeryError, RuntimeError)):
            operate(layer, MinWeight(keep=0.5), verify=verify)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_plan_that_is_not_exact_where_it_should_be_is_refused(monkeypatch):
    model, inputs = build("mlp")
    layer = Anatomy(model, inputs)["0"]
    before = copy.deepcopy(model.state_dict())
    wrong = Plan(layer, "Wrong()", tuple(range(4)))
    monkeypatch.setattr("network_surgery.ops.anatomy.rebuild.moves", _shifted)
    with pytest.raises(SurgeryError, match=r"Wrong\(\) on 0 should be exact, but the output would differ by"):
        measure(wrong)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def _shifted(edits):
    """Readers take their columns from one unit further on."""

    right = _moves(edits)
    wrong = _moves([Edit(edit.layer, edit.sources + 1, edit.shares) for edit in edits])
    return {
        name: [w if w.places[0].role == "fan_out" else r for r, w in zip(right[name], wrong[name], strict=True)]
        for name in right
    }


def test_a_new_basis_is_measured_against_the_network_before():
    model, inputs = build("leaky", batch=16)
    plan = PCNS(0.1, basis="eigen").propose(Anatomy(model, inputs)["0"], Signals(model, inputs))
    assert 1e-3 < measure(plan) < 1
    assert operate(Anatomy(model, inputs)["0"], PCNS(0.1, basis="eigen"), signals=Signals(model, inputs), verify=True)
