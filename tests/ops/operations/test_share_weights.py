"""ShareWeights: k-means and its codebook, packed codes in the file, averages, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from network_surgery.ops import (
    Anatomy,
    MinWeight,
    PruneWeights,
    ShareWeights,
    SurgeryError,
    operate,
    save,
    saved_bytes,
)  # fmt: skip
from network_surgery.ops.maths.clusters import bits, cluster, pack, unpack
from tests.ops.networks import difference, outputs
from tests.ops.operations.test_expressed import INPUTS, KINDS, small

every_form = pytest.mark.parametrize("operation", KINDS["shared"].values(), ids=KINDS["shared"])


@pytest.mark.parametrize("clusters", [2, 3, 16, 200, 256, 1000, 65536])
def test_codes_take_their_bits_and_come_back(clusters):
    codes = torch.randint(clusters, (5, 23), generator=torch.Generator().manual_seed(0))
    packed = pack(codes, bits(clusters))
    assert packed.dtype == torch.uint8 and packed.shape == (5, -(-23 * bits(clusters) // 8))
    assert torch.equal(unpack(packed, bits(clusters), 23).long(), codes)


def test_clusters_are_those_of_groups_that_lie_apart_and_the_error_falls_with_their_number():
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    wanted = torch.arange(4).repeat(25)
    found = cluster(centres[wanted] + torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) / 9, 4, seed=1)
    assert len({*zip(found.tolist(), wanted.tolist(), strict=True)}) == 4
    points = torch.randn(3000, 1, generator=torch.Generator().manual_seed(0))
    errors = []
    for clusters in (2, 4, 8, 16, 64):
        codes = cluster(points, clusters, seed=0)
        assert codes.unique().tolist() == list(range(clusters))
        means = torch.zeros(clusters).index_reduce(0, codes, points[:, 0], "mean", include_self=False)
        errors.append(float((means[codes] - points[:, 0]).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(1 - 2 / torch.pi, rel=0.05) and errors[1] == pytest.approx(0.1175, rel=0.1)  # Max
    assert cluster(torch.zeros(6, 3), 4, seed=0).tolist() == [0] * 6


@pytest.mark.parametrize("codebooks", ["one", "each"])
@pytest.mark.parametrize("block", [1, 4, 5, 9])
def test_a_weight_is_made_of_the_means_of_its_clusters(block, codebooks):
    """Blocks of the codebook stand where the codes say; the gradient of an entry of it is the sum of theirs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).double()
    anatomy, old = Anatomy(model, torch.randn(2, 3, 6, 6).double()), model[0].weight.detach().clone()
    plan = operate(anatomy["0"], ShareWeights(3, block, codebooks))
    stored, (expression,) = model[0].parametrizations.weight.original, model[0].parametrizations.weight
    blocks = -(-27 // block)
    codes = unpack(expression.codes, 2, blocks)
    book = stored.detach().view(blocks if codebooks == "each" else 1, 3, block)
    rows = [torch.cat([book[at % len(book), int(codes[row, at])] for at in range(blocks)])[:27] for row in range(8)]
    torch.testing.assert_close(model[0].weight.detach(), torch.stack(rows).view(8, 3, 3, 3))
    assert float((model[0].weight - old).detach().norm() / old.norm()) == pytest.approx(plan.error)
    torch.testing.assert_close(expression.reduced(model[0].weight), stored)
    whole = model[0].weight.detach().requires_grad_()
    for weight in (model[0].weight, whole):
        (weight.sin() * torch.arange(216).view(8, 3, 3, 3)).sum().backward()
    torch.testing.assert_close(stored.grad, expression.reduced(whole.grad, 1))


@pytest.mark.parametrize("clusters", [3, 256])
@every_form
def test_bytes_are_those_of_the_file(operation, clusters, tmp_path):
    """log₂ k bits for each block, and the codebook; what units take with them is gone from the file, too."""
    operation = ShareWeights(clusters, operation.block, operation.codebooks)
    model = small()
    anatomy, empty = Anatomy(model, INPUTS), saved_bytes(model)
    for layer, each in (("4", operation), ("4", MinWeight(0.5)), ("0", MinWeight(0.5)), ("0", PruneWeights(0.5))):
        plan = operate(anatomy[layer], each, verify=True)
        now = saved_bytes(model)
        assert plan.bytes_before - plan.bytes_after == pytest.approx(empty - now, abs=700)
        empty = now
        assert plan.bytes_after == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    stored, (expression,) = model[4].parametrizations.weight.original, model[4].parametrizations.weight
    blocks = 96 // operation.block
    known = stored.numel() // operation.block // (blocks if operation.codebooks == "each" else 1)
    assert expression.codes.shape == (20, -(-blocks * bits(known) // 8))
    save(model, tmp_path / "network.pt")
    assert (tmp_path / "network.pt").stat().st_size == saved_bytes(model)


def test_more_clusters_than_entries_change_nothing():
    model = small()
    before = outputs(model.eval(), INPUTS)
    plan = operate(Anatomy(model, INPUTS)["0"], ShareWeights(4096), verify=True)
    assert plan.error < 1e-6 and difference(before, outputs(model, INPUTS)) < 1e-6
    assert model[0].parametrizations.weight.original.shape == (108,)


@pytest.mark.parametrize(
    "wrong", [{"clusters": 1}, {"clusters": 1 << 17}, {"block": 0}, {"codebooks": "x"}, {"seed": -1}, {"clusters": 2.5}]
)
def test_settings(wrong):
    with pytest.raises(SurgeryError, match=next(iter(wrong))):
        ShareWeights(**wrong)


@pytest.mark.parametrize("decay", [0.9, 0.9995])
def test_an_exponential_average_keeps_the_codes(decay):
    """torch's rounds whole numbers in buffers down: 1 of 3 bytes would become another one."""
    model = small()
    operate(Anatomy(model, INPUTS)["*"], ShareWeights(200))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for _ in range(3):
        average.update_parameters(model)
    assert torch.equal(average(INPUTS), model(INPUTS))


def test_codes_of_another_weight_are_refused_and_a_state_is_a_copy():
    model = small()
    operate(Anatomy(model, INPUTS)["4"], ShareWeights())
    (expression,) = model[4].parametrizations.weight
    with pytest.raises(SurgeryError, match="codes of a weight"):
        expression.set_extra_state(expression.codes[1:])
    state, other = model.state_dict(), copy.deepcopy(model)
    other.load_state_dict(state)
    assert torch.equal(other(INPUTS), model(INPUTS))
    assert other[4].parametrizations.weight[0].codes.data_ptr() != expression.codes.data_ptr()


def test_a_block_is_no_longer_than_a_row():
    model = small()
    operate(Anatomy(model, INPUTS)["4"], ShareWeights(4, block=10**12))
    (expression,) = model[4].parametrizations.weight
    assert expression.stored_shape[0] <= 4 * model[4].weight[0].numel()


def test_there_can_be_many_clusters():
    """k-means++ holds one distance of each vector, not those of all pairs."""
    points = torch.randn(1 << 13, 1, generator=torch.Generator().manual_seed(0))
    assert int(cluster(points, 1 << 10, seed=0).max()) > 1000
