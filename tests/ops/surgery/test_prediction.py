"""The predicted change of the loss: against the derivative of the loss itself, and against what happens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from network_surgery.ops import (
    PCNS,
    Anatomy,
    EigenRemove,
    MeanReplace,
    MinWeight,
    Signals,
    SurgeryError,
    WeakExpand,
    trial_surgery,
)
from network_surgery.ops.surgery.prediction import _line, _moved, predicted_loss_change
from tests.ops.networks import build

OPERATIONS = [MinWeight(0.6), MeanReplace(0.6), EigenRemove(0.6, 0.5, weights="reduced"), PCNS(keep=0.6)]


def loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model.eval()(inputs), targets)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual"])
def test_the_slope_is_the_derivative_of_the_loss(name: str, operation) -> None:
    torch.manual_seed(0)
    model, inputs = build(name, torch.float64, batch=50)
    targets = torch.randint(0, 3, (50,))
    layer = next(iter(Anatomy(model, inputs[:2]).values()))
    plan = operation.propose(layer, Signals(model, inputs))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = predicted_loss_change(plan, inputs, targets)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    losses = []
    for step in (1e-5, -1e-5):
        with _moved(plan, _line(plan), step):
            losses.append(float(loss(model, inputs, targets)))
    wanted = (losses[0] - losses[1]) / 2e-5
    assert found.slope == pytest.approx(wanted, rel=2e-2, abs=1e-4)
    assert found.curvature >= 0


def test_a_small_change_is_predicted_and_the_whole_line_leads_to_the_operation() -> None:
    torch.manual_seed(0)
    model, inputs = build("mlp", torch.float64, batch=200)
    targets = model(inputs).argmax(dim=1)
    layer, signals = Anatomy(model, inputs)["0"], Signals(model, inputs)
    before = float(loss(model, inputs, targets))
    for operation, within in ((PCNS(keep=0.9), 0.2), (MinWeight(0.9), 0.5)):
        plan = operation.propose(layer, signals)
        with trial_surgery(plan):
            actual = float(loss(model, inputs, targets)) - before
        assert predicted_loss_change(plan, inputs, targets).change == pytest.approx(actual, rel=within, abs=2e-3)
        with _moved(plan, _line(plan), 1.0):
            assert float(loss(model, inputs, targets)) - before == pytest.approx(actual, abs=1e-9)


def test_an_exact_operation_is_predicted_to_change_nothing() -> None:
    model, inputs = build("mlp", batch=20)
    found = predicted_loss_change(WeakExpand(0.5).propose(Anatomy(model, inputs)["0"]), inputs, torch.zeros(20).long())
    assert abs(found.change) < 1e-9


def test_refuses_units_made_anew() -> None:
    model, inputs = build("leaky", batch=60)
    plan = PCNS(0.3, basis="eigen").propose(Anatomy(model, inputs)["0"], Signals(model, inputs))
    with pytest.raises(SurgeryError, match="makes units anew"):
        predicted_loss_change(plan, inputs, torch.zeros(60).long())
