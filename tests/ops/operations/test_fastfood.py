"""Fastfood: the transform against its matrix, the fit, bytes, files, averages, what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.linalg import hadamard
from torch import nn
from torch.optim.swa_utils import AveragedModel

from network_surgery.ops import (
    Anatomy,
    Fastfood,
    Plan,
    SurgeryError,
    apply,
    operate,
)  # fmt: skip
from network_surgery.ops.maths.hadamard import fastfood, fit, transform
from network_surgery.ops.network.fastfood import Fastfood as Expression
from network_surgery.ops.surgery.verification import measure
from tests.ops.networks import train
from tests.ops.operations.test_expressed import INPUTS, small


def matrix(size):
    return torch.from_numpy(hadamard(size)).double() / size**0.5


@pytest.mark.parametrize("size", [1, 2, 16, 64])
def test_the_transform_is_that_of_hadamard_s_matrix(size):
    x = torch.randn(3, size, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(transform(x, 1), torch.einsum("ij,bjk->bik", matrix(size), x))
    torch.testing.assert_close(transform(transform(x, 1), 1), x)
    if size == 2:
        assert torch.autograd.gradcheck(lambda each: transform(each, 1), (x,))


def test_the_weight_is_the_product_of_five_matrices_stacked():
    expression = Expression((20, 11), seed=3)
    stored = torch.randn(20 + 2 * 16 + 2 * 11).double()
    s, g, b = stored.split([20, 32, 22])
    blocks = []
    for block in range(2):
        permutation = torch.eye(16).double()[expression._order[block]]
        first = torch.diag(nn.functional.pad(b[11 * block : 11 * block + 11], (0, 5)))
        second = torch.diag(g[16 * block : 16 * block + 16])
        blocks.append(matrix(16) @ second @ permutation @ matrix(16) @ first)
    torch.testing.assert_close(expression(stored), s.unsqueeze(1) * torch.cat(blocks)[:20, :11])
    assert torch.autograd.gradcheck(Expression((3, 5), seed=1), (torch.randn(16).double().requires_grad_(),))


def test_each_round_of_the_fit_lowers_the_error_and_a_product_is_fitted_well():
    order, weight = torch.randperm(16, generator=torch.Generator().manual_seed(0)), torch.randn(14, 11).double()

    def error(target, rounds, seed=1):
        s, g, b = fit(target, order, torch.Generator().manual_seed(seed), rounds)
        made = fastfood(s, g[None], b[None], order[None], torch.arange(14), torch.arange(11))
        return float((made - target).norm() / target.norm())

    errors = [error(weight, rounds) for rounds in range(12)]
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.9
    near = [torch.rand(size, dtype=torch.float64) + 0.5 for size in (14, 16, 11)]
    product = fastfood(near[0], near[1][None], near[2][None], order[None], torch.arange(14), torch.arange(11))
    assert min(error(product, 300, seed) for seed in range(4)) < 0.3


def test_a_plan_counts_its_bytes_and_an_average_begins_with_the_numbers_of_the_network():
    model = small()
    average, optimizer = AveragedModel(model), torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, INPUTS, optimizer)
    average.update_parameters(model)
    plan = operate(Anatomy(model, INPUTS)["4"], Fastfood(), optimizer, verify=True, averages=average)
    assert plan.bytes_before - plan.bytes_after == 4 * (96 * 40 - 40 - 128 - 96)
    stored = [each[4].parametrizations.weight.original for each in (model, average.module)]
    assert torch.equal(*stored) and not optimizer.state[stored[0]]["exp_avg"].any()


def test_an_average_gets_the_numbers_of_the_network_also_from_a_plan_without_them():
    """As of an arm that does nothing but what is expressed: a fit of its own would be another product."""
    model = small()
    average, anatomy = AveragedModel(model), Anatomy(model, INPUTS)
    with torch.no_grad():
        average.module[4].weight.mul_(1.1)
    proposed = Fastfood().propose(anatomy["4"])
    apply(Plan(anatomy["4"], "bare", proposed.sources, expressed=proposed.expressed), averages=average)
    stored = [each[4].parametrizations.weight.original for each in (model, average.module)]
    assert torch.equal(*stored) and torch.equal(stored[0], proposed.fresh["4.weight"])


def test_fresh_numbers_have_the_deviation_of_the_weight_and_all_train():
    model = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 3))
    deviation = float(model[0].weight.detach().std())
    operate(Anatomy(model, torch.randn(2, 200))["0"], Fastfood("fresh"))
    assert float(model[0].weight.detach().std()) == pytest.approx(deviation, rel=0.1)
    stored = model[0].parametrizations.weight.original
    before = stored.detach().clone()
    train(model, torch.randn(16, 200), torch.optim.Adam(model.parameters(), lr=0.01))
    assert (stored != before).all()


def test_plans_measure_as_they_say_and_name_the_additions():
    torch.manual_seed(0)
    model, inputs = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), torch.randn(3, 5, 8)
    plan = Fastfood().propose(Anatomy(model, inputs)["*"])
    assert "self_attn.in_proj_weight" in plan.expressed and measure(plan) < 1e-8
    plan = Fastfood().propose(Anatomy(small(), INPUTS)["4"])
    assert f"{2 * 128 * 96 * 7:,} FLOPs, whatever the batch" in str(plan)


def test_what_cannot_be_is_refused_in_a_sentence():
    model = nn.Sequential(nn.Linear(6, 10, dtype=torch.complex64), nn.Tanh(), nn.Linear(10, 3, dtype=torch.complex64))
    with pytest.raises(SurgeryError, match="not of real numbers"):
        Fastfood().propose(Anatomy(model, torch.randn(4, 6, dtype=torch.complex64))["0"])
    for wrong in ({"values": "means"}, {"seed": -1}):
        with pytest.raises(SurgeryError, match=next(iter(wrong))):
            Fastfood(**wrong)
