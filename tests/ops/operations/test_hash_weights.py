"""HashWeights and RandomEdges: the equations of the source both ways, means, scores, the way back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from network_surgery.ops import (
    PCNS,
    Anatomy,
    HashWeights,
    MinWeight,
    RandomEdges,
    Signals,
    SurgeryError,
    WeakExpand,
    ZeroExpand,
    materialize,
    operate,
    predicted_loss_change,
    trial_surgery,
    unit_scores,
    without_surgery,
)  # fmt: skip
from network_surgery.ops.network.hashed import Edges, Hashed, mix
from network_surgery.ops.network.layout import channels_last
from tests.ops.contract.test_operations import assert_same
from tests.ops.networks import difference, outputs, train
from tests.ops.operations.test_expressed import small


def made(shape, numbers, seed=3, sign=True, kind="hash"):
    return Hashed(shape, numbers, seed, sign) if kind == "hash" else Edges(shape, numbers, seed)


@pytest.mark.parametrize("sign", [True, False])
def test_equation_5_and_equation_6_are_equal(sign):
    """V a, of the virtual weights, and wᵀ φ(a), of the inputs summed by the number that they are multiplied with."""
    hashed, w, a = made((7, 9), 12, sign=sign), torch.randn(12).double(), torch.randn(4, 9).double()
    index, factor = hashed.read(torch.arange(63).view(7, 9))
    factor = torch.ones(7, 9) if factor is None else factor
    features = torch.zeros(4, 7, 12).double()
    for i in range(7):
        for j in range(9):
            features[:, i, index[i, j]] += factor[i, j] * a[:, j]
    torch.testing.assert_close(a @ hashed(w).T, features @ w)


@pytest.mark.parametrize("kind", ["hash", "edges"])
@pytest.mark.parametrize("shape", [(7, 9), (4, 3, 3, 3)])
def test_gradient_is_that_of_the_expanded_matrix(kind, shape):
    """∂L/∂w_k = Σ over the entries that read w_k; and what is stored is the least squares of the weight."""
    expression, w = made(shape, 12, kind=kind), torch.randn(12, requires_grad=True)
    expanded = expression(w).detach().requires_grad_()
    for weight in (expression(w), expanded):
        (weight.sin() * torch.arange(weight.numel()).view(shape)).sum().backward()
    torch.testing.assert_close(w.grad, expression.reduced(expanded.grad, 1))
    weight = torch.randn(shape)
    basis = torch.stack([expression(each).flatten() for each in torch.eye(12)], dim=1)
    wanted = torch.linalg.lstsq(basis, weight.flatten().unsqueeze(1)).solution.squeeze(1)
    read = basis.abs().sum(dim=0) > 0
    torch.testing.assert_close(expression.reduced(weight)[read], wanted[read], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(expression.reduced(expression(w)).detach()[read], w.detach()[read])


def test_hashes_are_a_bijection_and_spread_evenly():
    hashes = mix(torch.arange(1 << 16), seed=5)
    assert len(hashes.unique()) == 1 << 16 and not torch.equal(hashes, mix(torch.arange(1 << 16), seed=6))
    counts = torch.bincount(hashes % 64, minlength=64).double()
    assert ((counts - 1024) ** 2 / 1024).sum() < 100  # χ² with 63 degrees of freedom: 1 in 500 is above
    signs = 1 - 2 * (hashes & 1)
    assert abs(int(signs.sum())) < 4 * 256
    assert int((Edges((64, 64), 100, 1)(torch.ones(100)) != 0).sum()) == 100


INPUTS = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def test_all_stored_numbers_train_and_a_hashed_weight_stays_hashed():
    model = small()
    operate(Anatomy(model, INPUTS)["*"], HashWeights(1 / 16, values="fresh"))
    expression = model[4].parametrizations.weight[0]
    assert model[4].parametrizations.weight.original.shape == (240,)
    before = model[4].parametrizations.weight.original.detach().clone()
    train(model, INPUTS, torch.optim.Adam(model.parameters(), lr=0.01))
    stored = model[4].parametrizations.weight.original
    assert (stored != before).all()
    torch.testing.assert_close(expression.reduced(model[4].weight), stored)


def test_fresh_numbers_have_the_deviation_of_the_weight():
    for operation, density in ((HashWeights(1 / 4, values="fresh"), 1), (RandomEdges(1 / 4, values="fresh"), 4)):
        model = nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 3))
        deviation = float(model[0].weight.detach().std())
        operate(Anatomy(model, torch.randn(2, 200))["0"], operation)
        stored = model[0].parametrizations.weight.original
        assert float(stored.detach().std()) == pytest.approx(density**0.5 * deviation, rel=0.05)
        assert float(model[0].weight.detach().std()) == pytest.approx(deviation, rel=0.05)


def test_the_error_is_that_of_the_weights_and_undo_is_exact():
    model = small().double()
    anatomy = Anatomy(model, INPUTS.double())
    before, old = copy.deepcopy(model.state_dict()), model[4].weight.detach().clone()
    plan = HashWeights(0.25).propose(anatomy["4"])
    with trial_surgery(plan):
        assert float((model[4].weight - old).norm() / old.norm()) == pytest.approx(plan.error)
    assert_same(dict(before), dict(model.state_dict()))
    assert type(model[4]) is nn.Linear and 0.5 < plan.error < 1
    assert HashWeights(1.0).propose(anatomy["4"]).error > 0 == RandomEdges(1.0).propose(anatomy["4"]).error


@pytest.mark.parametrize("score", ["l2", "l2_in", "variance", "mrs", "mrp", "taylor", "snip"])
def test_units_of_hashed_weights_are_scored_as_those_of_plain_ones(score):
    model = small()
    operate(Anatomy(model, INPUTS)["*"], HashWeights(0.25))
    found = []
    for network in (model, without_surgery(model)):
        anatomy = Anatomy(network, INPUTS)
        signals = Signals(network, INPUTS, torch.arange(16) % 3)
        found.append(unit_scores(anatomy["0"], signals, score))
    torch.testing.assert_close(*found)


def test_the_change_of_the_loss_is_predicted_with_hashed_weights():
    model, targets = small(), torch.arange(16) % 3
    anatomy = Anatomy(model, INPUTS)
    operate(anatomy["4"], HashWeights(0.5))
    plan = MinWeight(0.9).propose(anatomy["4"])
    other = Anatomy(without_surgery(model), INPUTS)
    twin = MinWeight(0.9).propose(other["4"])
    assert predicted_loss_change(plan, INPUTS, targets).change == pytest.approx(
        predicted_loss_change(twin, INPUTS, targets).change, rel=1e-4
    )


def test_what_writes_hashed_weights_is_refused_and_materialized_first():
    model = small()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, INPUTS, optimizer)
    anatomy = Anatomy(model, INPUTS)
    operate(anatomy["4"], HashWeights(0.25), optimizer)
    for layer, operation in (("0", PCNS(variance_threshold=0.3)), ("4", ZeroExpand()), ("0", WeakExpand())):
        with pytest.raises(SurgeryError, match=r"writes 4\.weight anew, which is hashed.*materialize"):
            operate(anatomy[layer], operation, optimizer, Signals(model, INPUTS))
    with pytest.raises(SurgeryError, match="no plain weights"):
        operate(anatomy["4"], HashWeights(0.25), optimizer)
    operate(anatomy["4"], WeakExpand(), optimizer, verify=True)  # only copies units of it
    before = outputs(model.eval(), INPUTS)
    assert materialize(model, optimizer) == ["4.weight"]
    assert difference(before, outputs(model, INPUTS)) < 1e-6
    operate(anatomy["0"], PCNS(variance_threshold=0.3), optimizer, Signals(model, INPUTS), verify=True)
    train(model, INPUTS, optimizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_means_of_many_entries_are_exact_in_any_precision(dtype):
    """In bfloat16 a sum of ones stops at 256."""
    weight = (torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) + 1).to(dtype)
    for sign in (False, True):
        expression = Hashed(weight.shape, 8, 3, sign)
        wide = torch.complex128 if dtype.is_complex else torch.float64
        torch.testing.assert_close(expression.reduced(weight), expression.reduced(weight.to(wide)).to(dtype))
        ones = torch.ones(8, dtype=dtype)
        sums = expression.spread(expression.reduced(expression.weight(ones), 1).to(wide), 1)
        torch.testing.assert_close(sums, expression.weight(ones.to(wide)), atol=0.01, rtol=0.01)


def test_a_network_of_complex_numbers_is_hashed():
    model = nn.Sequential(nn.Linear(6, 10, dtype=torch.complex64), nn.Tanh(), nn.Linear(10, 3, dtype=torch.complex64))
    anatomy = Anatomy(model, torch.randn(4, 6, dtype=torch.complex64))
    operate(anatomy["0"], HashWeights(0.5), verify=True)
    operate(anatomy["*"], RandomEdges(0.5, values="fresh"), verify=True)
    assert model[2].weight.imag.count_nonzero() == 15


def test_what_cannot_follow_is_refused_before_anything_changes():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    operate(Anatomy(model, INPUTS)["4"], HashWeights(0.25), optimizer)
    stored = model[4].parametrizations.weight.original
    optimizer.state[stored]["strange"] = torch.zeros_like(stored)
    with pytest.raises(SurgeryError, match="keeps strange"):
        materialize(model, optimizer)
    assert model[4].parametrizations.weight.original is stored
    tied = nn.Embedding(20, 8, sparse=True)
    out = nn.Linear(8, 20, bias=False)
    out.weight = tied.weight
    with pytest.raises(SurgeryError, match="sparse=True"):
        operate(Anatomy(nn.Sequential(tied, nn.ReLU(), out), torch.arange(6).view(2, 3))["*"], HashWeights(0.25))


@pytest.mark.parametrize("layers", ["0", "*"])
def test_channels_last_stay_last_when_weights_become_plain(layers):
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    for last in (True, False):
        network = copy.deepcopy(model).to(memory_format=torch.channels_last if last else torch.contiguous_format)
        optimizer = torch.optim.Adam(network.parameters())
        train(network, INPUTS, optimizer)
        operate(Anatomy(network, INPUTS)[layers], HashWeights(0.25), optimizer)
        train(network, INPUTS, optimizer)
        materialize(network, optimizer)
        for each in (network[0].weight, network[2].weight, optimizer.state[network[0].weight]["exp_avg"]):
            assert channels_last(each) is last


@pytest.mark.parametrize("wrong", [{"compression": 0}, {"compression": 2}, {"sign": 2}, {"values": "x"}, {"seed": -1}])
def test_settings(wrong):
    with pytest.raises(SurgeryError, match=next(iter(wrong))):
        HashWeights(**wrong)
