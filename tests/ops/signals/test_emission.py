"""Emission: a layer with new weights emits the eigenvectors of its outputs, as far as its inputs and activation go."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from network_surgery.ops import PCNS, Anatomy, Signals, SurgeryError, measure, operate, trial_surgery
from network_surgery.ops.anatomy.running import evaluating
from network_surgery.ops.maths.inverses import RELU, SIGMOID, TANH, activation, encode, one_sided
from network_surgery.ops.signals.emission import principal
from network_surgery.ops.signals.signals import HELD_OUT, MOST_SAMPLES
from tests.ops.networks import Net, build, difference, liven, outputs

ACTIVATIONS = {
    "identity": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(0.3),
    "tanh": nn.Tanh,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 1.5),
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
}


def dense(activation: str, units: int = 40, inputs: int = 5) -> nn.Module:
    """Weights large enough to reach the bends of any activation."""
    model = nn.Sequential(nn.Linear(inputs, units), ACTIVATIONS[activation](), nn.Linear(units, 3)).double()
    model[0].weight.data *= 3
    return model


def eigen(model, inputs, name="0", threshold=1e-12, **settings):
    layer = Anatomy(model, inputs)[name]
    return operate(layer, PCNS(threshold, basis="eigen", **settings), signals=Signals(model, inputs))


def given(model, reader, inputs, training=False):
    """What a module is given."""
    seen = []
    hook = reader.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    with evaluating(model, training), torch.no_grad():
        model(inputs)
    hook.remove()
    return seen[0]


# -- what is emitted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_as_many_inputs_as_samples_are_exact(name):
    """Step 2 has an exact solution then, whatever the activation."""
    model, inputs = dense(name), torch.randn(6, 5, dtype=torch.float64)
    before = outputs(model, inputs)
    old = given(model, model[2], inputs)
    centred = old - old.mean(1, keepdim=True)
    gram = centred @ centred.T
    plan = eigen(model, inputs)
    vectors = int(torch.linalg.matrix_rank(gram))
    assert plan.units_after == (2 * vectors + 1 if name == "relu" else vectors + 1)
    assert plan.error < 1e-8 and plan.evidence["emission_error"] < 1e-8 and plan.evidence["condition"] >= 1
    assert difference(before, outputs(model, inputs)) < 1e-8
    emitted = given(model, model[2], inputs)
    if name == "relu":
        emitted = torch.cat([emitted[:, :-1:2] - emitted[:, 1::2], emitted[:, -1:]], dim=1)
    if name not in ("sigmoid", "relu6"):  # shifted
        for vector in emitted[:, :-1].T:
            vector = vector / vector.norm()
            torch.testing.assert_close(gram @ vector, (vector @ gram @ vector) * vector, atol=1e-7, rtol=0)
        ratio = emitted[:, -1] / old.mean(1)
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_identity_is_exact_for_any_number_of_samples():
    """Eigenvectors of linear outputs are linear in the inputs."""
    model, inputs = dense("identity", units=12), torch.randn(200, 5, dtype=torch.float64)
    unseen = torch.randn(50, 5, dtype=torch.float64)
    before = outputs(model, unseen)
    plan = eigen(model, inputs)
    assert plan.units_after <= 7 and plan.error < 1e-10 and plan.evidence["held_out_error"] < 1e-10
    assert difference(before, outputs(model, unseen)) < 1e-8


def test_relu_emits_positive_and_negative_parts():
    model, inputs = dense("relu"), torch.randn(6, 5, dtype=torch.float64)
    plan = eigen(model, inputs)
    emitted = given(model, model[2], inputs)
    parts = emitted[:, :-1].unflatten(1, (-1, 2))
    assert (parts.amax(dim=(0, 1)) > 0).all() and (parts.prod(dim=2).abs() < 1e-12).all()
    pairs = plan.mixing["2.weight"][:, :-1].unflatten(1, (-1, 2))
    torch.testing.assert_close(pairs[..., 0], -pairs[..., 1])
    torch.testing.assert_close(plan.mixing["2.weight"][:, -1], torch.ones(40).double())


def test_relu_with_as_many_parts_as_units_is_left_alone():
    model, inputs = build("mlp", batch=64)
    layer, signals = Anatomy(model, inputs)["0"], Signals(model, inputs)
    pivoted = PCNS(0.01).propose(layer, signals)
    plan = PCNS(0.01, basis="eigen").propose(layer, signals)
    assert pivoted.units_after < 8 <= 2 * plan.evidence["components"] + 1
    assert plan.sources == tuple(range(8)) and plan.error == 0 and not plan.newborn
    assert plan.evidence["components"] == pivoted.evidence["components"]


def test_keep_is_kept_and_more_units_miss_less():
    """An even number leaves one unit: it emits the larger part of one more eigenvector."""
    model, inputs = dense("relu", units=20, inputs=20), torch.randn(21, 20, dtype=torch.float64)
    layer, signals = Anatomy(model, inputs)["0"], Signals(model, inputs)
    plans = [PCNS(keep=count / 20, basis="eigen").propose(layer, signals) for count in range(2, 20)]
    assert [plan.units_after for plan in plans] == list(range(2, 20))
    errors = [plan.error for plan in plans]
    assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[-1]
    dropped = [plan.evidence["dropped_variance"] for plan in plans]
    spectrum = plans[0].evidence["spectrum"]
    assert dropped == pytest.approx([sum(spectrum[(count - 1) // 2 :]) for count in range(2, 20)])
    for plan in plans[:4]:
        assert measure(plan) < 10


def test_principal_against_numpy():
    values = torch.randn(50, 8, dtype=torch.float64)
    vectors, weights = principal(values, 3)
    centred = values - values.mean(1, keepdim=True)
    left, sizes, right = torch.linalg.svd(centred.T, full_matrices=False)
    best = left[:, :3] * sizes[:3] @ right[:3]
    torch.testing.assert_close(vectors @ weights.T, best.T + values.mean(1, keepdim=True))
    torch.testing.assert_close(vectors[:, :3].norm(dim=0), values.norm().div(8**0.5).expand(3))
    assert (vectors[:, :3].sum(0) > 0).all()
    few, _ = principal(values[:2], 5)  # more than there are
    assert few.shape == (2, 6) and few.isfinite().all() and (few[:, 2:5] == 0).all()


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "hardtanh(-1, 1)", "hardtanh(0, 6)", "relu", "leaky_relu(0.2)"])
def test_codes_are_in_the_image_and_give_the_targets_back(name):
    sigma = activation(name)
    targets = torch.cat([4 * torch.randn(60, 3), torch.rand(60, 1)], dim=1).double()
    code = encode(targets, sigma, 7)
    assert (code.values >= sigma.low).all() and (code.values <= sigma.high).all()
    torch.testing.assert_close((code.values - code.shift) @ code.decode.T, targets)
    torch.testing.assert_close(sigma.forward(sigma.inverse(code.values)), code.values)
    small = encode(targets / 100, sigma, 7).decode  # what fits is not made smaller
    torch.testing.assert_close(small.abs().amax(dim=1), torch.ones(4).double())


def test_least_squares_without_ends_is_least_squares():
    design = torch.randn(40, 6, dtype=torch.float64)
    values = torch.rand(40, 3, dtype=torch.float64)
    solved, condition = one_sided(design, values, TANH)
    torch.testing.assert_close(solved, torch.linalg.lstsq(design, values.atanh()).solution)
    assert condition == pytest.approx(float(torch.linalg.cond(design)))
    dependent = torch.cat([design, design[:, :2]], dim=1)
    smallest, condition = one_sided(dependent, values, SIGMOID)
    torch.testing.assert_close(smallest, torch.linalg.lstsq(dependent, values.logit(), driver="gelsd").solution)
    assert condition < 100


def test_least_squares_is_one_sided_at_the_ends():
    """What ReLU hides is free: values that a layer can emit are found again, where plain least squares misses them."""
    design = torch.randn(200, 4, dtype=torch.float64)
    values = (design @ torch.randn(4, 5, dtype=torch.float64)).relu()
    plain = torch.linalg.lstsq(design, values).solution
    solved, _ = one_sided(design, values, RELU)
    missed = [((design @ each).relu() - values).norm() / values.norm() for each in (plain, solved)]
    assert missed[0] > 0.2 > 0.02 > missed[1]


# -- convolutions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"stride": 2}, {"padding": 1}, {"dilation": 2}, {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        {"padding": "same"}, {"padding": "same", "kernel_size": 4}, {"padding": "valid"}, {"bias": False},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("dims", [1, 2])
def test_patches_are_what_a_convolution_multiplies(dims, settings):
    if dims == 1:
        settings = {key: value[0] if isinstance(value, tuple) else value for key, value in settings.items()}
    make, size = (nn.Conv1d, (9,)) if dims == 1 else (nn.Conv2d, (9, 7))
    convolution = make(3, 5, **{"kernel_size": 3, **settings})
    model = nn.Sequential(convolution, nn.Tanh(), make(5, 2, 1)).double()
    inputs = torch.randn(35, 3, *size, dtype=torch.float64)
    layer = Anatomy(model, inputs)["0"]
    fed = Signals(model, inputs).fed(layer, layer.makers[0])
    made = fed @ convolution.weight.flatten(1).T
    wanted = convolution(inputs).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(made + convolution.bias if convolution.bias is not None else made, wanted)


def test_a_sample_of_the_patches_belongs_together():
    convolution = nn.Conv2d(2, 4, 3, padding=1).double()
    model = nn.Sequential(convolution, nn.Tanh(), nn.Conv2d(4, 2, 1)).double()
    inputs = torch.randn(150, 2, 8, 8, dtype=torch.float64)
    layer, signals = Anatomy(model, inputs[:2])["0"], Signals(model, inputs)
    fed = signals.fed(layer, layer.makers[0])
    wanted = F.conv2d(inputs, convolution.weight, padding=1).movedim(1, -1).flatten(0, -2)
    assert len(fed) == MOST_SAMPLES < len(wanted)
    chosen = torch.randperm(len(wanted), generator=torch.Generator().manual_seed(0))[:MOST_SAMPLES]
    torch.testing.assert_close(fed @ convolution.weight.flatten(1).T, wanted[chosen])
    parts = [signals.fed(layer, layer.makers[0], held_out) for held_out in (False, True)]
    assert [len(part) for part in parts] == [7680, 1920]
    torch.testing.assert_close(parts[1] @ convolution.weight.flatten(1).T, wanted.view(150, -1)[4::5].reshape(-1, 4))


@pytest.mark.parametrize("name", ["leaky", "tanh", "sigmoid", "relu"])
def test_a_convolution_of_one_pixel_is_a_dense_layer(name):
    flat = dense(name, units=20, inputs=3)
    conv = nn.Sequential(nn.Conv2d(3, 20, 1), ACTIVATIONS[name](), nn.Conv2d(20, 3, 1)).double()
    for mine, other in zip(conv.parameters(), flat.parameters(), strict=True):
        mine.data = other.data.view(mine.shape).clone()
    inputs = torch.randn(30, 3, 4, 4, dtype=torch.float64)
    one = eigen(conv, inputs, threshold=0.05)
    other = eigen(flat, inputs.movedim(1, -1).flatten(0, 2), threshold=0.05)
    assert one.units_after == other.units_after < 20 and one.error > 0
    assert one.error == pytest.approx(other.error) and one.evidence["condition"] == other.evidence["condition"]
    for mine, wanted in zip(conv.parameters(), flat.parameters(), strict=True):
        torch.testing.assert_close(mine.data, wanted.data.view(mine.shape), atol=1e-8, rtol=1e-6)


def test_a_convolution_emits_what_its_patches_allow():
    """Exact where there are as many patch entries as positions in the batch."""
    model = nn.Sequential(nn.Conv2d(6, 30, 3, padding=1), nn.Tanh(), nn.Conv2d(30, 4, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(4 * 3 * 3, 3)).double()  # fmt: skip
    inputs = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    before = outputs(model, inputs)
    plan = eigen(model, inputs, keep=0.5)
    assert plan.units_after == 15 and plan.evidence["emission_error"] < 1e-6
    assert plan.error == pytest.approx(plan.evidence["dropped_variance"] ** 0.5, rel=0.2)
    assert difference(before, outputs(model, inputs)) < 0.5 and model[0].out_channels == plan.units_after


# -- norms -------------------------------------------------------------------------------------------------------------


def normed(where: str, dims: int = 2, bias: bool = True) -> nn.Module:
    maker, norm, reader = (
        (nn.Conv2d(2, 10, 3, bias=bias), nn.BatchNorm2d(10), nn.Conv2d(10, 3, 2))
        if dims == 2
        else (nn.Linear(6, 10, bias=bias), nn.BatchNorm1d(10), nn.Linear(10, 3))
    )
    middle = [norm, nn.Tanh()] if where == "before" else [nn.Tanh(), norm]
    return liven(nn.Sequential(maker, *middle, reader)).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("where", ["before", "after"])
def test_batch_norm_is_the_identity_on_the_sample_in_either_mode(where, dims, bias):
    model = normed(where, dims, bias)
    inputs = torch.randn(60, 6) if dims == 1 else torch.randn(20, 2, 7, 7)
    inputs = inputs.double()
    plan = eigen(model, inputs, threshold=0.02)
    norm = model[1] if where == "before" else model[2]
    assert plan.units_after == norm.num_features == len(norm.running_mean) < 10
    with torch.no_grad():
        emitted, fed = model[:3].eval()(inputs), model[: 1 if where == "before" else 2](inputs)
    if where == "after":
        torch.testing.assert_close(emitted, fed)
    elif bias:
        torch.testing.assert_close(emitted, model[2](fed))
    trained = copy.deepcopy(model)
    (trained[1] if where == "before" else trained[2]).momentum = 1.0
    torch.testing.assert_close(given(trained, trained[3], inputs, training=True), emitted)
    after = trained[1] if where == "before" else trained[2]
    torch.testing.assert_close(after.running_mean, norm.running_mean)
    samples = fed.numel() / fed.shape[1]
    torch.testing.assert_close(after.running_var, norm.running_var * samples / (samples - 1))


@pytest.mark.parametrize("where", ["before", "after"])
def test_batch_norm_with_as_many_inputs_as_samples_is_exact(where):
    norm, sigma = nn.BatchNorm1d(40), nn.Tanh()
    middle = [norm, sigma] if where == "before" else [sigma, norm]
    model = liven(nn.Sequential(nn.Linear(5, 40, bias=False), *middle, nn.Linear(40, 3))).double()
    inputs = torch.randn(6 if where == "before" else 5, 5, dtype=torch.float64)
    before = outputs(model, inputs)
    plan = eigen(model, inputs)
    assert plan.units_after <= 7 and plan.error < 1e-7 and difference(before, outputs(model, inputs)) < 1e-6


# -- evidence ----------------------------------------------------------------------------------------------------------


def two_readers() -> nn.Module:
    return Net(
        lambda m, x: m.one(h := m.stem(x).tanh()).flatten(1) @ m.two(F.avg_pool2d(h, 2)).flatten(1).T,
        stem=nn.Conv2d(2, 9, 3), one=nn.Conv2d(9, 2, 1), two=nn.Conv2d(9, 8, 1),
    )  # fmt: skip


def average_pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 12, 3), nn.LeakyReLU(0.3), nn.Dropout2d(), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(),
        nn.Linear(12 * 9, 3),
    )  # fmt: skip


def averaged() -> nn.Module:
    return Net(lambda m, x: m.out(m.stem(x).sigmoid().mean(2)), stem=nn.Conv1d(2, 9, 3), out=nn.Linear(9, 3))


#: A network, what it takes, and the readers of its first layer.
MEASURED = {
    **{name: (partial(dense, name, units=20, inputs=8), (8,), ["2"]) for name in ACTIVATIONS},
    "norm before": (partial(normed, "before"), (2, 7, 7), ["3"]),
    "norm after": (partial(normed, "after"), (2, 7, 7), ["3"]),
    "pooled": (average_pooled, (2, 8, 8), ["6"]),
    "averaged": (averaged, (2, 8), ["out"]),
    "readers": (two_readers, (2, 6, 6), ["one", "two"]),
}


@pytest.mark.parametrize("case", MEASURED)
def test_the_predicted_error_is_the_measured_one(case):
    """That of what the readers make of what they are given; apart, that of samples that no fit has seen."""
    make, shape, readers = MEASURED[case]
    model = make().double()
    inputs = torch.randn(80, *shape, dtype=torch.float64)
    layer = next(iter(Anatomy(model, inputs).values()))
    state = copy.deepcopy(model.state_dict())
    plan = PCNS(keep=0.4, basis="eigen").propose(layer, Signals(model, inputs))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    out = torch.arange(80) % HELD_OUT == HELD_OUT - 1
    apart = PCNS(keep=0.4, basis="eigen").propose(layer, Signals(model, inputs[~out]))
    held_out = relative(model, apart, readers, inputs[out])
    assert 0 <= plan.error < 2 and plan.evidence["held_out_error"] == pytest.approx(held_out, rel=1e-6, abs=1e-12)
    assert plan.error == pytest.approx(relative(model, plan, readers, inputs), rel=1e-6, abs=1e-12)
    assert set(plan.evidence) == {
        "components", "dropped_variance", "samples_per_unit", "spectrum", "emission_error", "held_out_error",
        "condition",
    }  # fmt: skip


def relative(model, plan, readers, inputs):
    """The error of all readers, as it is defined: of what they were given, from what they are given."""
    missed = spread = 0.0
    for reader in readers:
        module, mixing = model.get_submodule(reader), plan.mixing[f"{reader}.weight"]
        old = by_unit(module, given(model, module, inputs), len(mixing))
        with trial_surgery(plan):
            new = by_unit(module, given(model, module, inputs), plan.units_after)
        new = new @ mixing.T + plan.constants.get(f"{reader}.weight", 0.0)
        missed += (new - old).square().sum()
        spread += (old - old.mean(0)).square().sum()
    return float((missed / spread).sqrt())


def by_unit(module, x, units):
    positions = x.unflatten(1, (units, -1)) if isinstance(module, nn.Linear) else x
    return positions.movedim(1, -1).flatten(0, -2)


def test_emission_error_tells_of_what_cannot_be_emitted():
    model, inputs = dense("leaky", units=20, inputs=8), torch.randn(400, 8, dtype=torch.float64)
    layer, signals = Anatomy(model, inputs)["0"], Signals(model, inputs)
    plan = PCNS(keep=0.5, basis="eigen").propose(layer, signals)
    assert plan.evidence["emission_error"] > 0.1 and plan.error > plan.evidence["dropped_variance"] ** 0.5
    assert "emission error" in str(plan) and "held out error" in str(plan)


def test_few_samples_fit_themselves_only():
    model, inputs = dense("tanh", units=8, inputs=40), torch.randn(40, 40, dtype=torch.float64)
    layer, signals = Anatomy(model, inputs)["0"], Signals(model, inputs)
    plan = PCNS(keep=0.9, basis="eigen").propose(layer, signals)
    assert plan.error < 0.5 < plan.evidence["held_out_error"]


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "relu", "relu6"])
@pytest.mark.parametrize("dead", [3, 11, 12])
def test_dead_units(name, dead):
    model, inputs = dense(name, units=12).float(), torch.randn(64, 5)
    model[0].weight.data[:dead] = 0
    model[0].bias.data[:dead] = -40
    plan = eigen(model, inputs, threshold=1e-5)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert 0 <= plan.error < float("inf") and plan.units_after == len(model[0].bias)


def test_an_emission_is_verified_applied_and_trained():
    model = liven(nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.3), nn.AvgPool2d(2),
                                nn.Flatten(), nn.Linear(72, 3)))  # fmt: skip
    inputs = torch.randn(40, 2, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model(inputs).sum().backward()
    optimizer.step()
    layer = Anatomy(model, inputs)["0"]
    before = outputs(model, inputs)
    plan = operate(layer, PCNS(keep=0.6, basis="eigen"), optimizer, Signals(model, inputs), verify=True)
    assert plan.units_after == 5 and 0 < plan.measured < float("inf") and difference(before, outputs(model, inputs)) > 0
    optimizer.zero_grad()
    model.train()(inputs).sum().backward()
    optimizer.step()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


# -- what is refused ---------------------------------------------------------------------------------------------------


def after(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), *modules)


def pooled(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 6, 3), *modules)


IMAGE, ROW = (2, 8, 8), (5,)
REFUSED = {
    "gelu": (after(nn.GELU(), nn.Linear(8, 3)), ROW, "gelu is not invertible"),
    "silu": (after(nn.SiLU(), nn.Linear(8, 3)), ROW, "silu is not invertible"),
    "elu": (after(nn.ELU(), nn.Linear(8, 3)), ROW, r"elu\(1\) is not offered"),
    "negative slope": (after(nn.LeakyReLU(-0.1), nn.Linear(8, 3)), ROW, r"leaky_relu\(-0\.1\) is not invertible"),
    "softmax": (after(nn.Softmax(1), nn.Linear(8, 3)), ROW, "_softmax is not offered"),
    "layer norm": (after(nn.LayerNorm(8), nn.Linear(8, 3)), ROW, "native_layer_norm is not offered"),
    "two": (after(nn.Tanh(), nn.ReLU(), nn.Linear(8, 3)), ROW,
            r"more than one norm and one activation follow it \(tanh, relu\)"),
    "no sink": (after(nn.Sigmoid(), nn.Linear(8, 3, bias=False)), ROW,
                r"the shift of its activation needs a bias after 2\.weight, which has none"),
    "no sink of the norm": (after(nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 3, bias=False)), ROW,
                            r"the shift of its BatchNorm needs a bias after 3\.weight, which has none"),
    "padded": (pooled(nn.Sigmoid(), nn.Conv2d(6, 2, 3, padding=1)), IMAGE,
               r"the shift of its activation is not the same where 2\.weight meets padded zeros"),
    "plain norm": (after(nn.BatchNorm1d(8, affine=False), nn.Tanh(), nn.Linear(8, 3)), ROW,
                   "its BatchNorm must have running statistics, a scale and a shift"),
    "maximum": (pooled(nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 2, 1)), IMAGE,
                r"recombining units does not commute with a maximum \(max_pool2d_with_indices\)"),
    "pooled first": (pooled(nn.AvgPool2d(2), nn.Tanh(), nn.Conv2d(6, 2, 1)), IMAGE,
                     "tanh after avg_pool2d does not commute with recombining units"),
    "norm after": (pooled(nn.Tanh(), nn.AvgPool2d(2), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)), IMAGE,
                    "native_batch_norm after avg_pool2d does not commute"),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 2, 1)), IMAGE,
                   r"0\.weight must belong to an nn\.Linear, nn\.Conv1d or nn\.Conv2d, not to a ConvTranspose2d"),
    "rows": (nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Unflatten(1, (6, 2, 2)), nn.Conv2d(6, 2, 1)), ROW,
             r"each of its units is made by 4 rows of 0\.weight, not by one"),
    "sum": (Net(lambda m, x: m.out(m.stem(x).tanh() + m.other(x)), stem=nn.Linear(5, 8), other=nn.Linear(5, 8),
                out=nn.Linear(8, 3)), ROW,
            r"its units are made by 2 weights \(stem\.weight, other\.weight\), and one is solved for"),
    "gate": (Net(lambda m, x: m.out((h := m.stem(x)) * h.sigmoid()), stem=nn.Linear(5, 8), out=nn.Linear(8, 3)), ROW,
             r"on their way to out\.weight its outputs meet others, or pass what is not known"),
    "readers": (Net(lambda m, x: m.one((h := m.stem(x)).tanh()) + m.two(h.relu()), stem=nn.Linear(5, 8),
                    one=nn.Linear(8, 3), two=nn.Linear(8, 3)), ROW,
                r"its readers see it differently: one\.weight through tanh, two\.weight through relu"),
    "scaled": (Net(lambda m, x: m.out(m.stem(x) * m.scale), stem=nn.Linear(5, 8), scale=nn.Parameter(torch.ones(8)),
                   out=nn.Linear(8, 3)), ROW, "mul is not offered"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_says_what_it_cannot_emit(case):
    model, shape, reason = REFUSED[case]
    inputs = torch.randn(40, *shape)
    layer = next(iter(Anatomy(model, inputs).values()))
    with pytest.raises(SurgeryError, match=rf"^PCNS\(.*\) on {layer.name}: .*{reason}.*; use basis='pivoted'$"):
        PCNS(0.5, basis="eigen").propose(layer, Signals(model, inputs))
    assert PCNS(0.5).propose(layer, Signals(model, inputs)).error is not None  # it works for any of them


def test_groups_are_refused():
    model, inputs = build("grouped", batch=30)
    anatomy, reasons = Anatomy(model, inputs), []
    for layer in anatomy.values():
        try:
            PCNS(0.5, basis="eigen").propose(layer, Signals(model, inputs))
        except SurgeryError as error:
            reasons.append(str(error))
    assert any("groups, not in one; use basis='pivoted'" in reason for reason in reasons), reasons
