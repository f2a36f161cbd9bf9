"""Running averages of the weights follow surgery as if they had been taken of the altered network."""

from __future__ import annotations

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from network_surgery.ops import (
    PCNS,
    Anatomy,
    EigenRemove,
    MinWeight,
    Signals,
    SurgeryError,
    WeakExpand,
    operate,
    trial_surgery,
)
from tests.ops.networks import NETWORKS, build, difference, outputs, train


def trained(name, **kwargs):
    model, inputs = build(name, torch.float64, batch=4)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), **kwargs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        train(model, inputs, optimizer, steps=1)
        average.update_parameters(model)
    return model, inputs, average, optimizer


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("layernorm",)])
def test_an_average_is_still_the_average(name):
    """The average of the altered weights is what surgery makes of the average: growth leaves its output unchanged."""
    model, inputs, average, optimizer = trained(name)
    before = outputs(average, inputs)
    for layer in Anatomy(model, inputs).values():
        operate(layer, WeakExpand(grow=0.7), optimizer, averages=average)
    assert difference(before, outputs(average, inputs)) < 1e-9
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in average.module.state_dict().items()} == shapes
    train(model, inputs, optimizer, steps=1)
    average.update_parameters(model)
    assert all(torch.isfinite(out).all() for out in outputs(average, inputs))


def test_averages_of_equal_weights_stay_equal():
    """Where the average is the network itself, surgery makes the same of both, whatever the operation."""
    removal = [("cnn", operation) for operation in (MinWeight(keep=0.5), EigenRemove(keep=0.6), PCNS(0.1))]
    for name, operation in (*removal, ("leaky", PCNS(0.1, basis="eigen"))):
        model, inputs = build(name, torch.float64, batch=8)
        average = AveragedModel(model)
        for layer in Anatomy(model, inputs).values():
            operate(layer, operation, signals=Signals(model, inputs), averages=[average])
            assert difference(outputs(model, inputs), outputs(average, inputs)) < 1e-9, operation


def test_removal_keeps_the_same_units_of_the_average():
    model, inputs, average, optimizer = trained("cnn")
    old = average.module[0].weight.detach().clone()
    plan = operate(Anatomy(model, inputs)["0"], MinWeight(keep=0.5), optimizer, averages=average)
    assert torch.equal(average.module[0].weight, old[list(plan.sources)])
    assert average.module[0].out_channels == 3


def test_undo_restores_the_average():
    model, inputs, average, optimizer = trained("residual")
    before = {key: value.clone() for key, value in average.state_dict().items()}
    plans = [WeakExpand(grow=0.5).propose(layer) for layer in Anatomy(model, inputs).values()]
    with trial_surgery(*plans, optimizers=optimizer, averages=average):
        assert average.module.first.weight.shape != before["module.first.weight"].shape
    for key, value in average.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_an_average_that_missed_an_operation_is_refused():
    model, inputs, average, _ = trained("cnn")
    anatomy = Anatomy(model, inputs)
    operate(anatomy["0"], MinWeight(keep=0.5))
    with pytest.raises(SurgeryError, match="an average of the network must have its shapes, but"):
        operate(anatomy["4"], MinWeight(keep=0.5), averages=average)
    assert model[4].out_channels == 4
