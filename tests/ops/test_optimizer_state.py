"""The state of optimizers follows the units; everything else of them stays."""

from __future__ import annotations

import copy

import pytest
import torch

from ops import Anatomy, MinWeight, SurgeryError, WeakExpand, operate
from ops.optimizer_state import exchange, follow, listed
from tests.ops.networks import build, loss, train

KINDS = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Rprop"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on(kind):
    model, inputs = build("cnn", batch=8)
    optimizer = getattr(torch.optim, kind)(model.parameters())
    train(model, inputs, optimizer)
    for operation in (MinWeight(keep=0.5), WeakExpand(grow=1.0)):
        for layer in Anatomy(model, inputs).values():
            operate(layer, operation, optimizer)
        train(model, inputs, optimizer)
    for parameter in model.parameters():
        assert torch.isfinite(parameter).all()
        for value in optimizer.state[parameter].values():
            assert not torch.is_tensor(value) or value.dim() == 0 or value.shape == parameter.shape


def test_refuses_state_that_cannot_follow():
    model, inputs = build("mlp")
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, inputs, optimizer)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SurgeryError, match=r"Adafactor keeps row_var of shape .* train with SGD or Adam"):
        operate(Anatomy(model, inputs)["0"], MinWeight(), optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_scaled_moments_are_those_of_the_wider_network():
    """Had it been wide from the start, with these shares, Adam's fan-in moments would be the scaled ones."""
    narrow, inputs = build("mlp", torch.float64, batch=16)
    wide = copy.deepcopy(narrow)
    plan = operate(Anatomy(wide, inputs)["0"], WeakExpand(grow=1.0))
    one, other = (torch.optim.Adam(model.parameters(), lr=0.0) for model in (narrow, wide))
    train(narrow, inputs, one)
    train(wide, inputs, other)
    operate(Anatomy(narrow, inputs)["0"], WeakExpand(grow=1.0), one)
    assert plan.units_after == 16
    for left, right in zip(narrow.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(left, right)
        torch.testing.assert_close(left.grad, right.grad)
        for key in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(one.state[left][key], other.state[right][key])


def test_several_optimizers_and_their_groups():
    model, inputs = build("mlp")
    first = torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.Adam([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(model[2].parameters())])
    loss(model, inputs).backward()
    first.step(), second.step()
    groups = [[id(p) for p in group["params"]] for o in (first, second) for group in o.param_groups]
    operate(Anatomy(model, inputs)["0"], MinWeight(keep=0.5), (first, second))
    assert first.state[model[0].weight]["momentum_buffer"].shape == (4, 5)
    assert second.state[model[2].weight]["exp_avg_sq"].shape == (6, 4)
    assert groups == [[id(p) for p in group["params"]] for o in (first, second) for group in o.param_groups]
    assert [group["lr"] for group in second.param_groups] == [0.01, 0.02]
    first.step(), second.step()


def test_follow_tells_squares_from_the_rest():
    parameter = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.Adam([parameter], amsgrad=True)
    parameter.grad = torch.ones(3)
    optimizer.step()
    before = copy.deepcopy(optimizer.state[parameter])
    undo = follow(listed(optimizer), parameter, lambda value, degree: value * 2.0**degree)
    factors = {"step": 1, "exp_avg": 2, "exp_avg_sq": 4, "max_exp_avg_sq": 4}
    for key, value in optimizer.state[parameter].items():
        torch.testing.assert_close(value, before[key] * factors[key])
    for step in undo:
        step()
    assert all(torch.equal(value, before[key]) for key, value in optimizer.state[parameter].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_exchange_keeps_identity_and_can_be_undone(dtype):
    parameter = torch.nn.Parameter(torch.randn(4, dtype=dtype))
    parameter.grad = torch.ones_like(parameter)
    data, gradient = parameter.data.clone(), parameter.grad
    undo = exchange(parameter, torch.zeros(2, 3, dtype=dtype))
    assert parameter.shape == (2, 3) and parameter.grad is None and parameter.requires_grad and parameter.is_leaf
    parameter.sum().backward()
    assert parameter.grad.shape == (2, 3)
    undo()
    assert torch.equal(parameter, data) and parameter.grad is gradient


def test_nothing_is_not_an_optimizer():
    assert listed(()) == ()
