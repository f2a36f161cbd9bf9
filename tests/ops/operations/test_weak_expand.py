"""WeakExpand (Graham 2019, Algorithm 3): nothing changes at once; what happens afterwards differs."""

from __future__ import annotations

import pytest
import torch

from network_surgery.ops import Anatomy, SurgeryError, WeakExpand, measure, operate, trial_surgery
from network_surgery.ops.operations.weak_expand import split_shares
from tests.ops.networks import build, difference, outputs, train

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
}


@pytest.mark.parametrize("split", ["equal", "uneven", "signed"])
@pytest.mark.parametrize("copies", [1, 2, 3, 7])
def test_shares_sum_to_one(split, copies):
    shares = split_shares(copies, split, torch.Generator().manual_seed(0))
    assert shares.shape == (copies,)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert (len(set(shares.tolist())) > 1) == (split != "equal" and copies > 1)


def test_copies_the_units_with_the_largest_mean_outgoing_weight():
    model, inputs = build("mlp")
    order = model[2].weight.mean(dim=0).argsort(descending=True).tolist()
    plan = WeakExpand(grow=0.5).propose(Anatomy(model, inputs)["0"])
    assert plan.sources == (*range(8), *order[:4])
    again = WeakExpand(grow=1.25).propose(Anatomy(model, inputs)["0"])
    assert again.sources == (*range(8), *order, *order[:2])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", ["mlp", "mlp_bn", "cnn"])
@pytest.mark.parametrize("split", ["equal", "uneven", "signed"])
def test_only_uneven_copies_ever_part(optimizer, network, split):
    """The thesis's equal shares give a wider layer and no richer one."""
    model, inputs = build(network, torch.float64, batch=16)
    trained = OPTIMIZERS[optimizer](model.parameters())
    train(model, inputs, trained)
    layer = Anatomy(model, inputs)["0"]
    units = layer.units
    plan = operate(layer, WeakExpand(grow=1.0, split=split), trained)
    train(model, inputs, trained, steps=5)
    old, new = model[0].weight[:units], model[0].weight[list(map(plan.sources.index, range(units)))]
    assert torch.equal(old, new)
    copies = [plan.sources[units:].index(unit) + units for unit in range(units)]
    apart = (model[0].weight[copies] - model[0].weight[:units]).abs().max()
    gradients = (model[0].weight.grad[copies] - model[0].weight.grad[:units]).abs().max()
    if split == "equal":
        assert apart < 1e-12 and gradients < 1e-12
    else:
        assert apart > 1e-4


def test_without_noise_all_is_as_it_was():
    plans = [WeakExpand(0.5, **more).propose(Anatomy(*build_once("mlp"))["0"]) for more in ({}, {"noise": 0.0})]
    assert plans[0].operation == plans[1].operation == "WeakExpand(grow=0.5, split='uneven', seed=0)"
    assert plans[0].sources == plans[1].sources and plans[0].shares.equal(plans[1].shares)
    assert not plans[0].fan_in and plans[0].error == plans[1].error == 0.0


def build_once(name):
    torch.manual_seed(0)
    return build(name, batch=16)


@pytest.mark.parametrize("network", ["mlp", "cnn", "residual", "scaled", "permute_flatten"])
def test_noise_parts_the_copies_and_changes_the_function_a_little(network):
    """Net2Net: on the copies alone, on their incoming weights alone, in proportion to these."""
    model, inputs = build_once(network)
    anatomy = Anatomy(model, inputs)
    layer = next(iter(anatomy.values()))
    before, units = outputs(model, inputs), layer.units
    known = [layer.incoming(place).clone() for place in layer.makers]
    changes = []
    for noise in (0.01, 0.1):
        plan = WeakExpand(1.0, "equal", noise=noise).propose(layer)
        assert plan.error is None and plan.operation.endswith(f"noise={noise})")
        changes.append(measure(plan))
        with trial_surgery(plan):
            for place, old in zip(layer.makers, known, strict=True):
                new = layer.incoming(place)
                assert torch.equal(new[:units], old)
                off = new[units:] - old[list(plan.sources[units:])]
                size = float(off.square().mean().sqrt() / old.square().mean().sqrt())
                assert 0.5 * noise < size < 1.7 * noise
            changes.append(difference(before, outputs(model, inputs)))
    assert 0 < changes[0] < 0.02 and changes[0] < changes[2] < 1 and changes[1] < changes[3]
    assert difference(before, outputs(model, inputs)) == 0


def test_noisy_copies_of_equal_shares_part():
    model, inputs = build_once("mlp")
    trained = OPTIMIZERS["sgd"](model.parameters())
    layer = Anatomy(model, inputs)["0"]
    plan = operate(layer, WeakExpand(1.0, "equal", noise=0.1), trained)
    train(model, inputs, trained, steps=5)
    copies = [plan.sources[8:].index(unit) + 8 for unit in range(8)]
    assert (model[2].weight[:, copies] - model[2].weight[:, :8]).abs().max() > 1e-4


def test_a_weight_that_makes_and_reads_the_units_gets_no_noise():
    model, inputs = build_once("tied")
    plan = WeakExpand(1.0, noise=0.1).propose(Anatomy(model, inputs)["stem"])
    assert set(plan.fan_in) == {"stem.weight"} and measure(plan) > 0


@pytest.mark.parametrize("noise", [-0.1, 1.5, "much", True])
def test_noise_is_a_fraction(noise):
    with pytest.raises(SurgeryError, match="noise is"):
        WeakExpand(noise=noise)
