"""PCNS (Rolet 2022): as many units as principal components, and a next layer that makes up for it."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from network_surgery.ops import PCNS, Anatomy, Signals, SurgeryError, operate
from network_surgery.ops.maths.condensed import Condensed, components_needed, pivots_on_device
from tests.ops.networks import build, difference, liven, outputs


def shrink(model, inputs, layer, **hyperparameters):
    return operate(Anatomy(model, inputs)[layer], PCNS(**hyperparameters), signals=Signals(model, inputs))


@pytest.mark.parametrize("threshold", [1e-9, 1e-3, 0.05, 0.3, 0.9, 1.0])
def test_components_against_numpy(threshold):
    values = torch.randn(60, 6, dtype=torch.float64) @ torch.randn(6, 15).double() * torch.logspace(0, -3, 15).double()
    centred = values.numpy() - values.numpy().mean(axis=1, keepdims=True)
    spectrum = np.linalg.svd(centred, compute_uv=False) ** 2
    left = [1 - spectrum[:count].sum() / spectrum.sum() for count in range(16)]
    assert components_needed(Condensed.of(values).spectrum(), threshold) == max(
        1, next(c for c in range(16) if left[c] <= threshold)
    )


def test_spanning_units_span():
    basis = torch.randn(50, 4, dtype=torch.float64)
    values = torch.cat([basis @ torch.randn(4, 5).double(), torch.ones(50, 2).double()], dim=1)
    condensed = Condensed.of(values)
    sources = condensed.spanning_units(4)
    assert sources == tuple(sorted(sources)) and not {5, 6} & set(sources)  # constants span nothing
    found = condensed.combination(sources)
    torch.testing.assert_close(values[:, list(sources)] @ found.mixing.T + found.constant, values)
    assert found.missed(condensed) < 1e-20 * condensed.spread


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("units", "rank"), [(1, 1), (5, 2), (40, 40), (40, 13)])
def test_pivots_on_a_device_are_lapacks(units, rank, dtype):
    scales = torch.logspace(0, -6, units, dtype=dtype)
    columns = torch.randn(2 * units, rank, dtype=dtype) @ torch.randn(rank, units, dtype=dtype) * scales
    pivots = scipy.linalg.qr(columns.numpy(), mode="r", pivoting=True)[1]
    assert pivots_on_device(columns, rank) == pivots[:rank].tolist()


def test_pivots_on_a_device_name_each_unit_once_where_nothing_is_left_to_span():
    columns = torch.zeros(6, 4, dtype=torch.float64)
    columns[0, 2] = 1.0
    pivots = pivots_on_device(columns, 4)
    assert pivots[0] == 2 and sorted(pivots) == [0, 1, 2, 3] and pivots_on_device(columns, 0) == []


def duplicated(model, units):
    """The second half of the first layer's units repeats the first half."""
    for tensor in model[0].parameters():
        tensor.data[units // 2 :] = tensor.data[: units // 2]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Identity])
def test_duplicated_units_leave_without_a_trace(activation):
    model = nn.Sequential(nn.Linear(8, 12), activation(), nn.Linear(12, 4))
    duplicated(model, 12)
    inputs = torch.randn(100, 8)
    unseen = torch.randn(50, 8)
    before = outputs(model, unseen)
    plan = shrink(model, inputs, "0", variance_threshold=1e-6)
    assert plan.units_after == 6 and plan.error < 1e-6  # six different units; one direction goes with the centring
    assert difference(before, outputs(model, unseen)) < 1e-5


def test_linearly_dependent_units_leave_without_a_trace():
    model = nn.Sequential(nn.Linear(8, 12, bias=False), nn.Identity(), nn.Linear(12, 4))
    model[0].weight.data = torch.randn(12, 3) @ torch.randn(3, 8)
    inputs, unseen = torch.randn(100, 8), torch.randn(50, 8)
    before = outputs(model, unseen)
    assert shrink(model, inputs, "0", variance_threshold=1e-9).units_after == 4  # M = 3
    assert difference(before, outputs(model, unseen)) < 1e-4


def test_duplicated_channels_through_batch_norm_leave_without_a_trace():
    model = liven(nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3),
                                nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)))  # fmt: skip
    duplicated(model, 8)
    for tensor in (model[1].weight, model[1].bias, model[1].running_mean, model[1].running_var):
        tensor.data[4:] = tensor.data[:4]
    inputs, unseen = torch.randn(32, 2, 6, 6), torch.randn(8, 2, 6, 6)
    before = outputs(model, unseen)
    assert shrink(model, inputs, "0", variance_threshold=1e-7).units_after == 4
    assert difference(before, outputs(model, unseen)) < 1e-4


@pytest.mark.parametrize("bias", [True, False])
def test_a_constant_goes_into_the_bias_behind_the_reader(bias):
    """Into the next bias, or into the running mean of a norm where the reader has none."""
    reader = nn.Linear(6, 4, bias=bias)
    model = liven(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), reader, nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    model[0].weight.data[3:] = model[0].weight.data[:3]
    model[0].bias.data[3:] = model[0].bias.data[:3]
    model[0].weight.data[2] = model[0].weight.data[5] = 0  # both are constants now
    inputs = torch.randn(64, 5)
    before, mean = outputs(model, inputs), model[3].running_mean.clone()
    plan = shrink(model, inputs, "0", variance_threshold=1e-6)
    assert plan.units_after < 6
    assert difference(before, outputs(model, inputs)) < 1e-5
    assert torch.equal(mean, model[3].running_mean) == bias


@pytest.mark.parametrize("network", ["mlp", "cnn", "leaky"])
def test_nothing_redundant_nothing_done(network):
    model, inputs = build(network, batch=64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = shrink(model, inputs, "0", variance_threshold=1e-12)
    assert plan.sources == tuple(range(plan.units_before)) and plan.error == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("basis", ["pivoted", "eigen"])
@pytest.mark.parametrize("dead", [3, 11, 12])
def test_dead_units(basis, dead):
    """Outputs of less than full rank, down to none at all."""
    activation = nn.ReLU() if basis == "pivoted" else nn.LeakyReLU(0.2)
    model = nn.Sequential(nn.Linear(5, 12), activation, nn.Linear(12, 3))
    model[0].weight.data[:dead] = 0
    model[0].bias.data[:dead] = -1 if basis == "pivoted" else 0
    inputs = torch.randn(64, 5)
    before = outputs(model, inputs)
    plan = shrink(model, inputs, "0", variance_threshold=1e-5, basis=basis)
    assert 1 <= plan.units_after <= max(1, 12 - dead) + 1
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert 0 <= plan.error < float("inf")
    if basis == "pivoted":
        assert difference(before, outputs(model, inputs)) < 0.02


def test_predicted_error_is_the_measured_one():
    model, inputs = build("mlp", torch.float64, batch=200)
    seen = []
    hook = model[2].register_forward_pre_hook(lambda module, args: seen.append(args[0] @ module.weight.T + module.bias))
    outputs(model, inputs)
    plan = shrink(model, inputs, "0", variance_threshold=0.1)
    outputs(model, inputs)
    hook.remove()
    assert plan.units_after < plan.units_before and 0 < plan.error < 1
    spread = (seen[0] - seen[0].mean(0)).norm()
    assert (seen[-1] - seen[0]).norm() / spread < 3 * plan.error


def test_error_falls_with_the_threshold():
    model, inputs = build("leaky", torch.float64, batch=100)
    layer, signals = Anatomy(model, inputs)["0"], Signals(model, inputs)
    plans = [PCNS(variance_threshold=t).propose(layer, signals) for t in (0.5, 0.2, 0.05, 0.01)]
    assert [p.units_after for p in plans] == sorted(p.units_after for p in plans)
    assert [p.error for p in plans] == sorted((p.error for p in plans), reverse=True)


def test_eigen_basis_emits_the_eigenvectors():
    """With as many inputs as samples step 2 has an exact solution, and the layer emits what the draft says."""
    model = nn.Sequential(nn.Linear(5, 12), nn.LeakyReLU(0.3), nn.Linear(12, 3)).double()
    inputs = torch.randn(6, 5, dtype=torch.float64)
    before = outputs(model, inputs)
    old = model[1](model[0](inputs)).detach()
    centred = old - old.mean(1, keepdim=True)
    gram = centred @ centred.T
    plan = shrink(model, inputs, "0", variance_threshold=1e-12, basis="eigen")
    assert plan.units_after == torch.linalg.matrix_rank(gram) + 1 and plan.error < 1e-8
    assert difference(before, outputs(model, inputs)) < 1e-8
    emitted = model[1](model[0](inputs)).detach()
    torch.testing.assert_close(emitted[:, -1], old.mean(1))
    for vector in emitted[:, :-1].T:
        vector = vector / vector.norm()
        torch.testing.assert_close(gram @ vector, (vector @ gram @ vector) * vector, atol=1e-8, rtol=0)


def test_eigen_basis_may_be_refused_as_a_whole():
    model, inputs = build("cnn", batch=64)
    with pytest.raises(
        SurgeryError, match=r"^PCNS\(.*\) on 0: .* a maximum \(max_pool2d_with_indices\); use basis='piv"
    ):
        shrink(model, inputs, "0", variance_threshold=0.5, basis="eigen")


@pytest.mark.parametrize("basis", ["pivoted", "eigen"])
def test_the_last_layer_is_no_layer(basis):
    model, inputs = build("leaky", batch=64)
    with pytest.raises(SurgeryError, match=r"layer '4' cannot be operated on: it is the network's output"):
        shrink(model, inputs, "4", basis=basis)


def test_says_what_it_lacks():
    model, inputs = build("mlp")
    layer = Anatomy(model, inputs)["0"]
    with pytest.raises(SurgeryError, match=r"give it Signals\(model, inputs\)"):
        PCNS().propose(layer)
    model[0].bias.data[0] = float("nan")
    with pytest.raises(SurgeryError, match="not finite"):
        PCNS().propose(layer, Signals(model, inputs))
