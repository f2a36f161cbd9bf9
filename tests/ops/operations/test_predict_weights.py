"""PredictWeights: the ridge predictor against a direct solve, the dictionaries, positions, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from network_surgery.ops import (
    Anatomy,
    HashWeights,
    MinWeight,
    PredictWeights,
    Signals,
    Stretch,
    SurgeryError,
    WeakExpand,
    operate,
    trial_surgery,
)  # fmt: skip
from network_surgery.ops.maths import dictionaries
from network_surgery.ops.network.predicted import MEASURED, SEEDED, Predicted
from network_surgery.ops.operations.predict_weights import layout_of
from tests.ops.networks import difference, outputs, train
from tests.ops.operations.test_expressed import INPUTS, small

every_dictionary = pytest.mark.parametrize("dictionary", [*SEEDED, *MEASURED])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_predictor_is_kernel_ridge_regression():
    """U = k_αᵀ (K_α + λI)⁻¹, inverse included, against scikit-learn's."""
    kernel = dictionaries.squared_exponential((2, 4, 5), 1.5)
    chosen, known = torch.randperm(40, generator=generator())[:11], torch.randn(11, generator=generator()).double()
    direct = KernelRidge(alpha=0.3, kernel="precomputed").fit(kernel[chosen][:, chosen].numpy(), known.numpy())
    wanted = torch.from_numpy(direct.predict(kernel[:, chosen].numpy()))
    torch.testing.assert_close(dictionaries.ridge(kernel, chosen, 0.3) @ known, wanted)


def test_without_a_penalty_the_known_entries_are_predicted_exactly():
    kernel = dictionaries.squared_exponential((1, 5, 5), 0.8)
    chosen = torch.tensor([3, 7, 11, 24])
    torch.testing.assert_close(dictionaries.ridge(kernel, chosen, 0.0)[chosen], torch.eye(4).double())


def test_positions_are_divided_among_channels():
    chosen = dictionaries.spread_positions((4, 3, 3), 10, generator())
    assert len(set(chosen.tolist())) == 10 and torch.bincount(chosen // 9, minlength=4).sort().values.tolist() == [
        2,
        2,
        3,
        3,
    ]
    assert sorted(dictionaries.spread_positions((4, 3, 3), 36, generator()).tolist()) == list(range(36))


def test_dictionaries_are_what_they_are_called():
    q = dictionaries.orthogonal(30, 12, generator())
    torch.testing.assert_close(q.T @ q, torch.eye(12).double())
    assert float(dictionaries.gaussian(300, 50, generator()).square().sum(dim=1).mean()) == pytest.approx(1, rel=0.05)
    assert dictionaries.identity(5, torch.tensor([3, 1])).nonzero().tolist() == [[1, 1], [3, 0]]
    data = torch.randn(200, 6, generator=generator()).double() * torch.tensor([5, 4, 3, 2, 1, 0.1])
    code = dictionaries.principal(torch.cov(data.T), 3)
    centred = data - data.mean(dim=0)
    left, sizes, right = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(centred @ code @ code.T, left[:, :3] * sizes[:3] @ right[:3])


@pytest.mark.parametrize("columns", [1, 3])
@every_dictionary
def test_numbers_are_the_least_squares_and_have_the_gradient_of_the_matrix(dictionary, columns):
    """∂L/∂V = ∂L/∂W U; rows of one column lie in the space of its dictionary."""
    given = torch.randn(columns, 18, 7, generator=generator()) if dictionary in MEASURED else None
    expression = Predicted((9, 2, 3, 3), 7, 5, dictionary, columns, (2, 3, 3), measured=given)
    stored = torch.randn(9, 7, dtype=torch.float64, requires_grad=True)
    whole = expression(stored).detach().requires_grad_()
    for weight in (expression(stored), whole):
        (weight.sin() * torch.arange(weight.numel()).view(weight.shape)).sum().backward()
    torch.testing.assert_close(stored.grad, expression.reduced(whole.grad, 1))
    basis = torch.stack([expression(each.view(9, 7)).flatten() for each in torch.eye(63).double()], dim=1)
    weight = torch.randn(9, 2, 3, 3).double()
    found = expression(expression.reduced(weight)).flatten()
    wanted = basis @ torch.linalg.lstsq(basis, weight.flatten()).solution
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(expression.reduced(expression.spread(stored, 1), 1), stored, atol=1e-6, rtol=1e-5)
    ones = torch.ones(9, 7).double()
    torch.testing.assert_close(expression.reduced(torch.ones_like(weight), 0), ones)
    if dictionary != "identity":
        torch.testing.assert_close(expression.spread(ones, 0), torch.ones_like(weight))
    assert (expression.spread(ones, 2) >= 0).all()


def test_at_full_rank_nothing_changes():
    model = small().double()
    anatomy = Anatomy(model, INPUTS.double())
    before = outputs(model.eval(), INPUTS.double())
    for layer in ("0", "4"):
        assert operate(anatomy[layer], PredictWeights(1.0), verify=True).error < 1e-12
    assert difference(before, outputs(model, INPUTS.double())) < 1e-12


def test_rows_that_go_take_their_numbers_and_moments_with_them():
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, INPUTS, optimizer)
    anatomy = Anatomy(model, INPUTS)
    operate(anatomy["4"], PredictWeights(0.25, columns=3), optimizer)
    stored = model[4].parametrizations.weight.original
    old, moments = stored.detach().clone(), optimizer.state[stored]["exp_avg_sq"].clone()
    plan = operate(anatomy["4"], MinWeight(0.5), optimizer, verify=True)
    kept = list(plan.sources)
    assert model[4].parametrizations.weight.original is stored and stored.shape == (20, 24)
    assert torch.equal(stored, old[kept]) and torch.equal(optimizer.state[stored]["exp_avg_sq"], moments[kept])
    operate(anatomy["4"], WeakExpand(0.5), optimizer, verify=True)
    assert stored.shape == (30, 24)
    train(model, INPUTS, optimizer)


def test_measured_dictionaries_lose_least_of_what_units_are_given():
    """Inputs of few directions: the principal ones predict all that a layer makes of them."""
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    inputs = torch.randn(200, 5, dtype=torch.float64) @ torch.randn(5, 30, dtype=torch.float64)
    before = model[0](inputs).detach()
    lost = {}
    for dictionary in ("identity", "orthogonal", "covariance", "autoencoder"):
        operation = PredictWeights(0.2, dictionary, ridge=1e-9)
        with trial_surgery(operation.propose(Anatomy(model, inputs)["0"], Signals(model, inputs))):
            lost[dictionary] = float((model[0](inputs) - before).detach().norm() / before.norm())
    assert lost["autoencoder"] < 1e-2 < 0.2 < min(lost["identity"], lost["orthogonal"])


def test_positions_are_those_of_kernels_maps_and_images():
    model = small()
    anatomy = Anatomy(model, INPUTS)
    assert layout_of(anatomy, "0.weight") == (2, 3, 3) and layout_of(anatomy, "4.weight") == (6, 4, 4)
    with pytest.raises(SurgeryError, match=r"6\.weight reads has no positions.*covariance"):
        layout_of(anatomy, "6.weight")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    for shape, wanted in (((1, 4, 4), (1, 4, 4)), ((16,), (1, 4, 4)), ((8, 2), (1, 8, 2))):
        anatomy = Anatomy(flat, torch.randn(2, *shape))
        assert layout_of(anatomy, "1.weight") == wanted
        with pytest.raises(SurgeryError, match="no positions"):
            layout_of(anatomy, "3.weight")
        plan = PredictWeights(0.5, "rbf").propose(anatomy["*"])
        assert set(plan.expressed) == {"1.weight"}


def test_smooth_filters_are_predicted_best_by_their_neighbours():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3))
    smooth = dictionaries.squared_exponential((1, 8, 8), 2.0).float()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(12, 64, generator=generator()) @ smooth)
    anatomy = Anatomy(model, torch.randn(2, 1, 8, 8))
    errors = {d: PredictWeights(0.25, d, width=2.0).propose(anatomy["1"]).error for d in SEEDED}
    assert errors["rbf"] < 0.25 < 0.7 < min(errors["identity"], errors["orthogonal"], errors["gaussian"])


def test_the_flops_of_a_pass_are_named():
    model = small().eval()
    anatomy = Anatomy(model, INPUTS)
    plan = operate(anatomy["4"], PredictWeights(0.25, columns=2))
    counts = []
    for cached in (False, True):
        with parametrize.cached() if cached else torch.no_grad(), torch.no_grad():
            model(INPUTS)
            with FlopCounterMode(display=False) as counter:
                model(INPUTS)
        counts.append(counter.get_total_flops())
    assert f"{counts[0] - counts[1]:,} FLOPs, whatever the batch" in str(plan) and counts[0] > counts[1]


def test_only_the_numbers_train_and_fresh_ones_have_the_deviation_of_the_weight():
    model = nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 3))
    deviation = float(model[0].weight.detach().std())
    for dictionary in ("identity", "orthogonal", "gaussian", "rbf"):
        network, inputs = copy.deepcopy(model), torch.randn(16, 200)
        if dictionary == "rbf":
            inputs = torch.randn(16, 2, 10, 10)
            network.insert(0, nn.Flatten())
        layer = "1" if dictionary == "rbf" else "0"
        operate(Anatomy(network, inputs)[layer], PredictWeights(0.25, dictionary, values="fresh"))
        module = network.get_submodule(layer)
        assert float(module.weight.detach().std()) == pytest.approx(deviation, rel=0.1)
        stored, expression = module.parametrizations.weight.original, module.parametrizations.weight[0]
        before, basis = stored.detach().clone(), expression.dictionary.clone()
        train(network, inputs, torch.optim.Adam(network.parameters(), lr=0.01))
        assert (stored != before).all() and torch.equal(expression.dictionary, basis)


def test_what_cannot_be_is_refused_in_a_sentence():
    model = small()
    anatomy = Anatomy(model, INPUTS)
    with pytest.raises(SurgeryError, match="looks at inputs: give it Signals"):
        PredictWeights(dictionary="covariance").propose(anatomy["4"])
    with pytest.raises(SurgeryError, match="signals are those of another network"):
        PredictWeights(dictionary="covariance").propose(anatomy["*"], Signals(small(), INPUTS))
    operate(anatomy["4"], PredictWeights())
    with pytest.raises(SurgeryError, match="masked or hashed"):
        Stretch().propose(anatomy["4"])
    model = small()
    model[4].weight.data[3, 4] = torch.nan
    for operation in (PredictWeights(), HashWeights()):
        with pytest.raises(SurgeryError, match=r"4\.weight holds values that are not finite"):
            operation.propose(Anatomy(model, INPUTS)["*"])


def test_a_network_on_which_signals_were_taken_over_batches_is_predicted_whole():
    model = small()
    anatomy = Anatomy(model, INPUTS)
    signals = Signals.over(model, [INPUTS[:32], INPUTS[32:]], [anatomy["*"]])
    plan = operate(anatomy["*"], PredictWeights(0.25, "covariance"), signals=signals, verify=True)
    assert set(plan.expressed) == {"0.weight", "4.weight"}  # not what classifies
    train(model, INPUTS, torch.optim.Adam(model.parameters()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0}, {"rank": 2}, {"dictionary": "x"}, {"columns": 0}, {"columns": 2, "dictionary": "autoencoder"},
        {"width": 0}, {"ridge": -1}, {"values": "means"}, {"seed": -1},
    ],
)  # fmt: skip
def test_settings(wrong):
    with pytest.raises(SurgeryError, match=next(iter(wrong))):
        PredictWeights(**wrong)


@pytest.mark.parametrize("dictionary", ["covariance", "autoencoder"])
def test_inputs_that_never_vary_are_refused(dictionary):
    model, inputs = nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)), torch.ones(5, 9)
    with pytest.raises(SurgeryError, match="never varies"):
        operate(Anatomy(model, inputs)["0"], PredictWeights(dictionary=dictionary), signals=Signals(model, inputs))
