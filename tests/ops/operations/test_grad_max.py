"""GradMax (Evci et al. 2022): nothing changes at once, and no other outgoing weights get a larger gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from network_surgery.ops import Anatomy, GradMax, PruneWeights, Signals, SurgeryError, apply, measure, operate
from network_surgery.ops.operations.grad_max import _growth, _shape
from tests.ops.networks import build, difference, outputs

#: A layer to grow: dense, convolutions that pad and that do not, before pooling, flattening, BatchNorm, on residual
#: streams and in concatenations.
PLACES = [
    ("mlp", "0"), ("mlp", "2"), ("mlp_bn", "0"), ("cnn", "0"), ("cnn", "4"), ("cnn", "8"), ("cnn_plain", "0"),
    ("residual", "first"), ("residual", "stem"), ("dense_concat", "first"), ("leaky", "0"), ("scaled", "first"),
    ("permute_flatten", "hidden"), ("tuple_in", "second"),
]  # fmt: skip
everywhere = pytest.mark.parametrize(("network", "name"), PLACES)


def squares(outputs, targets):
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return sum(((out - 1) ** 2).flatten(1).mean(1) for out in leaves)


def made(network: str, dtype=torch.float64):
    torch.manual_seed(0)
    model, inputs = build(network, dtype, batch=16)
    return model, Anatomy(model, inputs), Signals(model, inputs, torch.zeros(16), squares)


def gradient(model, layer, signals, units):
    """The norm of the loss's gradient at the incoming weights of all but the first units, in evaluation mode."""
    model.eval()
    model.zero_grad()
    inputs = signals.inputs
    squares(model(*inputs) if isinstance(inputs, tuple) else model(inputs), None).mean().backward()
    rows = [layer.by_unit(place, layer.tensor(place).grad)[units:] for place in layer.makers]
    return torch.cat([row.flatten(1) for row in rows], dim=1)


@everywhere
def test_nothing_changes_at_once(network, name):
    for dtype, most in ((torch.float64, 1e-5), (torch.float32, 1e-5)):
        model, anatomy, signals = made(network, dtype)
        before = outputs(model, signals.inputs)
        plan = GradMax(grow=0.6).propose(anatomy[name], signals)
        assert plan.sources.count(-1) == max(1, round(0.6 * plan.units_before)) and plan.error < 1e-4
        measure(plan)  # complains where it would change more
        apply(plan)
        assert difference(before, outputs(model, signals.inputs)) < most


@everywhere
def test_the_gradient_is_the_one_that_was_foretold_and_larger_than_any_other_s(network, name):
    model, anatomy, signals = made(network)
    layer = anatomy[name]
    units, growth = layer.units, _growth(GradMax(), layer, signals)
    plan = GradMax(grow=0.3).propose(layer, signals)
    added, generator = plan.sources.count(-1), torch.Generator().manual_seed(1)
    sizes = torch.cat([plan.fan_out[p.tensor][units:].flatten(1) for p in layer.readers], 1).norm(dim=1)
    torch.testing.assert_close(sizes, layer.outgoing_rows().norm(dim=1).mean().expand(added))
    shapes = [_shape(layer, place) for place in layer.readers]
    for _ in range(10):
        drawn = torch.randn(added, sum(shape.numel() for shape in shapes), generator=generator, dtype=torch.float64)
        if drawn.shape[1] >= added:  # orthogonal, as those of the plan are
            drawn = torch.linalg.qr(drawn.T)[0].T
        drawn *= sizes[0]
        parts = drawn.split([shape.numel() for shape in shapes], dim=1)
        other = {p.tensor: x.unflatten(1, s) for p, x, s in zip(layer.readers, parts, shapes, strict=True)}
        assert float(growth.slopes(other).norm()) <= plan.evidence["gradient"] * (1 + 1e-6)
    apply(plan)
    found = float(gradient(model, layer, signals, units).norm())
    assert found == pytest.approx(plan.evidence["gradient"], rel=1e-3) and found > 0


def test_outgoing_weights_are_singular_vectors_of_the_gradient_written_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, targets = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    slope = (F.softmax(model(inputs), 1) - F.one_hot(targets, 3)).detach() / 20  # of the mean loss at what 2 makes
    left, values, _ = torch.linalg.svd(slope.T @ inputs)
    anatomy = Anatomy(model, inputs)
    size = model[2].weight.detach().norm(dim=0).mean()
    plan = operate(anatomy["0"], GradMax(grow=0.4, scale=2.0), (), Signals(model, inputs, targets))
    new = model[2].weight[:, 5:].detach()
    torch.testing.assert_close(new.norm(dim=0), (2 * size).expand(2))
    torch.testing.assert_close((left[:, :2].T @ new / (2 * size)).abs(), torch.eye(2, dtype=torch.float64))
    assert (new.gather(0, new.abs().argmax(0, keepdim=True)) > 0).all()  # signs are settled
    assert plan.evidence["gradient"] == pytest.approx(float(2 * size * values[:2].norm()))
    assert not model[0].weight[5:].any() and not model[0].bias[5:].any()


def test_outgoing_kernels_are_singular_vectors_of_the_gradient_written_out():
    """Convolution after convolution: M between every incoming and every outgoing weight, from shifted sums."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(32, 3)).double()
    inputs, targets = torch.randn(6, 2, 6, 6, dtype=torch.float64), torch.arange(6) % 3
    between = model[2](model[1](model[0](inputs)))
    between.retain_grad()
    F.cross_entropy(model[4](model[3](between)), targets).backward()
    matrix = torch.zeros(2, 2, 2, 2, 2, 2, dtype=torch.float64)  # outgoing o, y, x × incoming i, y, x
    for y, x, v, u in torch.cartesian_prod(*[torch.arange(2)] * 4).tolist():
        seen = inputs[:, :, y + v : y + v + 4, x + u : x + u + 4]
        matrix[:, y, x, :, v, u] = torch.einsum("noab,niab->oi", between.grad, seen)
    left = torch.linalg.svd(matrix.reshape(8, 8))[0]
    anatomy = Anatomy(model, inputs)
    operate(anatomy["0"], GradMax(grow=0.34), (), Signals(model, inputs, targets))
    new = model[2].weight[:, 3].detach().flatten()
    torch.testing.assert_close((left[:, 0] @ new).abs(), new.norm())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Sigmoid, nn.GELU, nn.Softplus, nn.LeakyReLU])
def test_new_units_learn_whatever_the_activation(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3))
    inputs, targets = torch.randn(32, 4), torch.arange(32) % 3
    before = model(inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    operate(Anatomy(model, inputs)["0"], GradMax(grow=0.5), optimizer, Signals(model, inputs, targets), verify=True)
    torch.testing.assert_close(before, model(inputs), rtol=1e-4, atol=1e-5)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    assert (model[0].weight[6:].norm(dim=1) > 1e-3).all()


def test_batchnorm_does_not_blow_new_units_up():
    """In training the norm of what does not vary has a slope of hundreds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    inputs, targets = torch.randn(64, 1, 6, 6), torch.arange(64) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model(inputs)
    operate(Anatomy(model, inputs[:2])["0"], GradMax(1.0), optimizer, Signals(model, inputs, targets), verify=True)
    torch.testing.assert_close(before, model(inputs), rtol=1e-4, atol=1e-4)
    losses, slopes = [], []
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        losses.append(float(loss.detach()))
        slopes.append(model[0].weight.grad.flatten(1).norm(dim=1))
        optimizer.step()
    assert losses[0] > losses[1] > losses[2]
    assert 0 < slopes[0][6:].max() < 10 * slopes[0][:6].max()
    assert (model[0].weight[6:].flatten(1).norm(dim=1) > 0).all()


def test_more_units_than_directions_all_differ():
    _, anatomy, signals = made("mlp")
    plan = GradMax(grow=2.0).propose(anatomy["2"], signals)
    assert plan.evidence["rank"] == 3 and plan.sources.count(-1) == 12
    new = plan.fan_out["4.weight"][6:].flatten(1)
    assert len({tuple(row.round(decimals=6).tolist()) for row in new}) == 12
    assert GradMax(grow=2.0).propose(anatomy["2"], signals).fan_out["4.weight"].equal(plan.fan_out["4.weight"])
    other = GradMax(grow=2.0, seed=1).propose(anatomy["2"], signals).fan_out["4.weight"]
    assert other[:9].equal(plan.fan_out["4.weight"][:9]) and not other[9:].equal(plan.fan_out["4.weight"][9:])


def test_it_grows_masked_layers_and_leaves_their_masks():
    model, anatomy, signals = made("mlp")
    operate(anatomy["*"], PruneWeights(0.5))
    hidden = {name: int((mask == 0).sum()) for name, mask in anatomy.masks().items()}
    plan = operate(anatomy["0"], GradMax(), (), Signals(model, signals.inputs, torch.zeros(16), squares))
    assert {name: int((mask == 0).sum()) for name, mask in anatomy.masks().items()} == hidden
    assert plan.evidence["gradient"] > 0


def test_proposing_leaves_the_network_and_random_numbers_alone():
    model, anatomy, signals = made("cnn", torch.float32)
    before, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    GradMax().propose(anatomy["0"], signals)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("network", "name", "says"), [
    ("layernorm", "0", "would change what the others send"), ("tied", "stem", "first.weight both makes and reads"),
    ("frozen", "0", "is frozen"), ("separable", "0", "no gradient reaches"),
])  # fmt: skip
def test_refuses_where_it_cannot_hold_what_it_promises(network, name, says):
    _, anatomy, signals = made(network)
    with pytest.raises(SurgeryError, match=says):
        GradMax().propose(anatomy[name], signals)


def test_refuses_what_would_change_the_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 3, 3, padding=1), nn.Flatten(), nn.LazyLinear(2)
    )
    inputs = torch.randn(8, 1, 6, 6)
    model(inputs)
    signals = Signals(model, inputs, torch.arange(8) % 2)
    with pytest.raises(SurgeryError, match=r"sends 0.5 to 2.weight, which no bias after it can make up for"):
        GradMax().propose(Anatomy(model, inputs)["0"], signals)
    bare = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2))
    inputs = torch.randn(8, 4)
    with pytest.raises(SurgeryError, match="flat at 0 and they have no bias"):
        GradMax().propose(Anatomy(bare, inputs)["0"], Signals(bare, inputs, torch.arange(8) % 2))


def test_asks_for_signals_with_targets():
    model, anatomy, signals = made("mlp")
    with pytest.raises(SurgeryError, match="give it Signals"):
        GradMax().propose(anatomy["0"])
    with pytest.raises(SurgeryError, match="needs targets"):
        GradMax().propose(anatomy["0"], Signals(model, signals.inputs))
    for wrong in ({"grow": 0}, {"scale": 0}, {"seed": -1}, {"rounding": "up"}):
        with pytest.raises(SurgeryError, match=next(iter(wrong))):
            GradMax(**wrong)


def test_too_many_outgoing_weights_are_refused(monkeypatch):
    monkeypatch.setattr("network_surgery.ops.operations.grad_max.MOST", 10)
    _, anatomy, signals = made("cnn")
    with pytest.raises(SurgeryError, match="a unit has 36 outgoing weights, and the best can be had of 10 at most"):
        GradMax().propose(anatomy["0"], signals)
