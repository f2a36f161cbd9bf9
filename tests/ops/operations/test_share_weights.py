"""ShareWeights: k-means and its codebook, packed codes in the file, exact removal, averages, optimizers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from network_surgery.ops import (
    PCNS,
    Anatomy,
    MinWeight,
    PredictWeights,
    PruneWeights,
    ShareWeights,
    Signals,
    SurgeryError,
    WeakExpand,
    carry_architecture,
    load,
    materialize,
    operate,
    save,
    saved_bytes,
    trial_surgery,
    without_surgery,
)  # fmt: skip
from network_surgery.ops.anatomy import count
from network_surgery.ops.maths.clusters import bits, cluster, pack, unpack
from network_surgery.ops.surgery.verification import measure
from tests.ops.contract.test_operations import assert_same
from tests.ops.networks import NETWORKS, build, difference, outputs, train
from tests.ops.operations.test_predict_weights import INPUTS, small

KINDS = {"scalar": ShareWeights(), "vector": ShareWeights(8, block=4), "product": ShareWeights(8, 4, "each")}
every_kind = pytest.mark.parametrize("operation", KINDS.values(), ids=KINDS)


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
@every_kind
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


@every_kind
@pytest.mark.parametrize("network", NETWORKS)
def test_units_go_exactly_from_shared_weights(operation, network):
    model, inputs = build(network, batch=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, inputs, optimizer)
    anatomy = Anatomy(model, inputs)
    layers, pinned = list(anatomy), dict(anatomy.pinned)
    plan = operate(anatomy["*"], operation, optimizer, verify=True)
    assert (plan.parameters_after, plan.flops_after) == count(model, inputs)
    fresh = Anatomy(model, inputs)
    assert list(fresh) == layers and fresh.pinned == pinned
    for layer in layers:
        plan = operate(anatomy[layer], MinWeight(0.5), optimizer, verify=True)
        assert (plan.parameters_after, plan.flops_after) == count(model, inputs)
    before = outputs(model.eval(), inputs)
    plain = without_surgery(model)
    materialize(model, optimizer)
    for network in (plain, model):
        assert difference(before, outputs(network.eval(), inputs)) < 1e-5
    train(model, inputs, optimizer)


@every_kind
def test_a_mixed_schedule_is_saved_loaded_and_goes_on(operation, tmp_path):
    """Shared, units removed, others predicted, an average, a state_dict: the same network comes back."""
    model = small()
    average, optimizer = AveragedModel(model), torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, INPUTS, optimizer)
    average.update_parameters(model)
    anatomy, others = Anatomy(model, INPUTS), {"averages": average}
    for layer, each in (("4", operation), ("0", MinWeight(0.5)), ("4", MinWeight(0.5)), ("0", PredictWeights(0.5))):
        operate(anatomy[layer], each, optimizer, verify=True, **others)
    train(model, INPUTS, optimizer)
    average.update_parameters(model)
    save(model, tmp_path / "network.pt")
    twin = load(small, tmp_path / "network.pt")
    assert_same(outputs(model.eval(), INPUTS), outputs(twin.eval(), INPUTS))
    assert saved_bytes(twin) == (tmp_path / "network.pt").stat().st_size
    twin = carry_architecture(small(2))
    again = torch.optim.Adam(twin.parameters(), lr=0.01)
    twin.load_state_dict(carry_architecture(model).state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, trained in ((model, optimizer), (twin, again)):
        train(network, INPUTS, trained)
    assert_same(outputs(model.eval(), INPUTS), outputs(twin.eval(), INPUTS))
    operate(Anatomy(twin, INPUTS)["4"], MinWeight(0.5), again, verify=True)
    carried = carry_architecture(small(1))
    carried.load_state_dict(carry_architecture(average.module).state_dict())
    assert_same(outputs(average.module.eval(), INPUTS), outputs(carried.eval(), INPUTS))


@every_kind
def test_undo_is_exact_also_of_codes_that_have_moved(operation):
    model = small().eval()
    anatomy = Anatomy(model, INPUTS)
    operate(anatomy["4"], operation)
    before = copy.deepcopy(model.state_dict())
    plans = [MinWeight(0.5).propose(anatomy["4"]), MinWeight(0.5).propose(anatomy["0"])]
    with trial_surgery(*plans):
        model(INPUTS)
    assert_same(dict(before), dict(model.state_dict()))
    assert measure(WeakExpand(0.5).propose(anatomy["4"])) < 1e-8


@every_kind
def test_the_codebook_trains_and_what_is_shared_stays_shared(operation):
    model = small()
    operate(Anatomy(model, INPUTS)["*"], operation)
    stored, (expression,) = model[4].parametrizations.weight.original, model[4].parametrizations.weight
    before, codes = stored.detach().clone(), expression.codes.clone()
    train(model, INPUTS, torch.optim.Adam(model.parameters(), lr=0.01))
    assert torch.equal(codes, expression.codes) and (stored != before).float().mean() > 0.9
    torch.testing.assert_close(expression.reduced(model[4].weight), stored)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad", "Adafactor", "LBFGS"])
def test_optimizers_go_on(name):
    model, operation = small(), ShareWeights(8, 3)
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.001)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(INPUTS), torch.arange(64) % 3)
        loss.backward()
        return loss

    optimizer.step(closure)
    state = copy.deepcopy(optimizer.state_dict())
    with trial_surgery(operation.propose(Anatomy(model, INPUTS)["*"]), optimizers=optimizer):
        assert torch.isfinite(closure())
    assert_same(state, optimizer.state_dict())
    operate(Anatomy(model, INPUTS)["*"], operation, optimizer)
    optimizer.step(closure)
    materialize(model, optimizer)
    assert torch.isfinite(optimizer.step(closure))


def test_more_clusters_than_entries_change_nothing():
    model = small()
    before = outputs(model.eval(), INPUTS)
    plan = operate(Anatomy(model, INPUTS)["0"], ShareWeights(4096), verify=True)
    assert plan.error < 1e-6 and difference(before, outputs(model, INPUTS)) < 1e-6
    assert model[0].parametrizations.weight.original.shape == (108,)


def test_a_network_of_complex_numbers_and_attention_are_shared():
    model = nn.Sequential(nn.Linear(6, 10, dtype=torch.complex64), nn.Tanh(), nn.Linear(10, 3, dtype=torch.complex64))
    operate(Anatomy(model, torch.randn(4, 6, dtype=torch.complex64))["*"], ShareWeights(4, 2), verify=True)
    torch.manual_seed(0)
    model, inputs = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), torch.randn(3, 5, 8)
    plan = ShareWeights(4).propose(Anatomy(model, inputs)["*"])
    assert "self_attn.in_proj_weight" in plan.expressed and measure(plan) < 1e-8


def test_what_writes_shared_weights_is_refused():
    model = small()
    anatomy = Anatomy(model, INPUTS)
    operate(anatomy["4"], ShareWeights())
    with pytest.raises(SurgeryError, match=r"writes 4\.weight anew, which is shared.*materialize"):
        operate(anatomy["0"], PCNS(variance_threshold=0.3), signals=Signals(model, INPUTS))
    with pytest.raises(SurgeryError, match="no plain weights"):
        operate(anatomy["4"], ShareWeights())


@pytest.mark.parametrize(
    "wrong", [{"clusters": 1}, {"clusters": 1 << 17}, {"block": 0}, {"codebooks": "x"}, {"seed": -1}, {"clusters": 2.5}]
)
def test_settings(wrong):
    with pytest.raises(SurgeryError, match=next(iter(wrong))):
        ShareWeights(**wrong)
