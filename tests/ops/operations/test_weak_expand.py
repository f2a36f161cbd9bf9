"""WeakExpand (Graham 2019, Algorithm 3): nothing changes at once; what happens afterwards differs."""

from __future__ import annotations

import pytest
import torch

from network_surgery.ops import Anatomy, WeakExpand, operate
from network_surgery.ops.operations.weak_expand import split_shares
from tests.ops.networks import build, train

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
