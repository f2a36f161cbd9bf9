"""Complex weights: calculated with as complex numbers, or refused in a sentence; nothing is cast to real on the way."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from network_surgery.ops import (
    PCNS,
    Anatomy,
    Compact,
    EigenRemove,
    MeanReplace,
    MinWeight,
    PruneWeights,
    RandomRemove,
    RemoveDead,
    Revive,
    Signals,
    SurgeryError,
    TriFactorize,
    WeakExpand,
    ZeroExpand,
    apply,
    compact,
    operate,
    predicted_loss_change,
    unit_scores,
    weight_scores,
)
from network_surgery.ops.signals.unit_scores import SCORES, first_order


class RealPart(nn.Module):
    def forward(self, x):
        return x.real if x.is_complex() else x


class Spectral(nn.Module):
    """A layer of a Fourier operator: its channels are mixed at each frequency."""

    def __init__(self, channels, out, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, out, 5, dtype=dtype) / channels)

    def forward(self, x):
        return torch.einsum("bcf,cof->bof", x, self.weight)


def dense(dtype):
    layers = (nn.Linear(5, 8, dtype=dtype), nn.Tanh(), nn.Linear(8, 6, dtype=dtype), nn.Tanh())
    return nn.Sequential(*layers, nn.Linear(6, 3, dtype=dtype), RealPart()), (5,), "2"


def spectral(dtype):
    layers = (Spectral(3, 8, dtype), nn.Tanh(), Spectral(8, 6, dtype), nn.Tanh(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(30, 3, dtype=dtype), RealPart()), (3, 5), "0"


NETWORKS = {"dense": dense, "spectral": spectral}
OPERATIONS = [
    RandomRemove(), MinWeight(keep=0.5), WeakExpand(grow=0.5, split="equal"), WeakExpand(grow=0.5),
    WeakExpand(grow=0.5, split="signed"), ZeroExpand(grow=0.5), EigenRemove(), EigenRemove(weights="reduced", rank=0.5),
    EigenRemove(strength="mean"), PCNS(0.1), PCNS(0.1, basis="eigen"), Compact(), Compact(0.2), RemoveDead(0.9),
    RemoveDead(0.9, kind="frozen"), Revive(0.9), PruneWeights(0.3), PruneWeights(quality=0.5),
    PruneWeights(0.3, score="taylor1_abs"), PruneWeights(0.3, score="loss_change"), TriFactorize(0.3),
    *(MeanReplace(score=score) for score in SCORES),
    *(MeanReplace(replacement=kind) for kind in ("mean_before", "median", "extreme")),
]  # fmt: skip
#: What complex numbers have no order or no inverse for; those that are refused of the real network are, too.
REFUSED = ("strength='mean'", "basis='eigen'", "'median'", "'extreme'", "taylor1", "'snip'", "'mean_before'")
#: What gradients are refused with after a product along frequencies.
NOT_KNOWN = ("is not known", "is not ordered by samples")


def made(network, dtype=torch.complex128, imaginary=1.0):
    """A complex network, a real one with its real parts, and their batches. ``imaginary``: how large that part is."""
    torch.manual_seed(0)
    real, shape, name = NETWORKS[network](torch.float64)
    model, _, _ = NETWORKS[network](dtype)
    x = torch.randn(64, *shape, dtype=torch.float64)
    with torch.no_grad():
        for one, other in zip(real.parameters(), model.parameters(), strict=True):
            other.copy_(torch.complex(one, imaginary * torch.randn_like(one) * one.std()))
    return model, torch.complex(x, imaginary * torch.randn_like(x)).to(dtype), real, x, name


@pytest.fixture(autouse=True)
def no_casts():
    """A warning is what torch has to say when an imaginary part is lost; it says so once, if not asked otherwise."""
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(False)


TARGETS = torch.arange(64) % 3


@pytest.mark.parametrize("repair", [(), ("bias",), ("least_squares",)])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=repr)
def test_without_an_imaginary_part_all_is_as_with_real_weights(operation, network, repair):
    if repair and not isinstance(operation, MinWeight):
        return
    model, z, real, x, name = made(network, imaginary=0.0)
    if isinstance(operation, Compact) and network == "dense":
        for each in (model, real):
            nn.init.zeros_(each[2].weight[1:3]), nn.init.zeros_(each[2].bias[1:3])
    plans = []
    for each, inputs in ((real, x), (model, z)):
        try:
            plans.append(operate(Anatomy(each, inputs[:4])[name], operation, (), Signals(each, inputs, TARGETS),
                                 repair=repair))  # fmt: skip
        except SurgeryError as error:
            plans.append(str(error))
    if isinstance(plans[1], str):
        refused = any(word in repr(operation) for word in REFUSED) or any(word in plans[1] for word in NOT_KNOWN)
        assert isinstance(plans[0], str) or refused, plans[1]
        return
    assert plans[0].sources == plans[1].sources and plans[1].error == pytest.approx(plans[0].error, abs=1e-9)
    torch.testing.assert_close(model(z), real(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=repr)
def test_complex_networks_do_what_the_plan_says(operation, network, dtype):
    """Measured at the old size in double precision, with averages and an optimizer; and undone to the bit."""
    model, z, _, _, name = made(network, dtype)
    anatomy, signals = Anatomy(model, z[:4]), Signals(model, z, TARGETS)
    before = copy.deepcopy(model.state_dict())
    average, optimizer = AveragedModel(model), torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        optimizer.state[parameter] = {"exp_avg": parameter.detach().clone(), "exp_avg_sq": parameter.detach() * 2}
    try:
        plan = operate(anatomy[name], operation, optimizer, signals, verify=z, averages=average)
    except SurgeryError as error:
        refused = any(word in repr(operation) for word in REFUSED)
        assert refused or (network == "spectral" and any(word in str(error) for word in NOT_KNOWN)), error
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        return
    assert plan.measured < 1e-8
    torch.testing.assert_close(average(z), model(z))
    for key, value in model.named_parameters():
        assert value.dtype == before[key.replace("parametrizations.", "").replace(".original", "")].dtype
        assert all(kept.dtype == dtype and kept.shape == value.shape for kept in optimizer.state[value].values())


@pytest.mark.parametrize("network", NETWORKS)
def test_exact_operations_against_the_network_with_silent_units(network):
    """Removed units are those that a hook silences; growth changes nothing."""
    for operation in (RandomRemove(), MinWeight(keep=0.5)):
        model, z, _, _, name = made(network)
        layer = Anatomy(model, z[:4])[name]
        plan = operation.propose(layer)
        alive = torch.zeros(layer.units, dtype=torch.float64)
        alive[list(plan.sources)] = 1.0
        index = model.get_submodule(str(int(name) + 1))
        hook = index.register_forward_hook(lambda m, a, out: out * alive.view(-1, *[1] * (out.dim() - 2)))  # noqa: B023
        wanted = model(z)
        hook.remove()
        apply(plan)
        torch.testing.assert_close(model(z), wanted)
    for operation in (WeakExpand(grow=0.5), WeakExpand(grow=0.5, split="signed"), ZeroExpand(grow=0.5)):
        model, z, _, _, name = made(network)
        wanted = model(z)
        operate(Anatomy(model, z[:4])[name], operation)
        torch.testing.assert_close(model(z), wanted)


def test_compact_is_exact():
    model, z, _, _, _ = made("dense")
    with torch.no_grad():
        model[2].weight[1] = 0
        model[4].weight[:, 3] = 0
    wanted = model(z)
    compact(Anatomy(model, z[:4]), signals=Signals(model, z))
    assert model[2].weight.shape == (4, 8)
    torch.testing.assert_close(model(z), wanted)


def test_least_squares_against_lstsq():
    model, z, _, _, name = made("dense")
    layer = Anatomy(model, z[:4])[name]
    outputs = model[:4](z).detach()
    plan = operate(layer, MinWeight(keep=0.5), (), Signals(model, z), repair=["least_squares"])
    kept = outputs[:, list(plan.sources)]
    design = torch.cat([kept, torch.ones_like(kept[:, :1])], dim=1)
    solved = torch.linalg.lstsq(design, outputs).solution
    missed = torch.linalg.vector_norm(design @ solved - outputs)
    spread = torch.linalg.vector_norm(outputs - outputs.mean(dim=0))
    assert plan.error == pytest.approx(float(missed / spread), rel=1e-4)  # but for the ridge
    torch.testing.assert_close(plan.mixing["4.weight"].mT, solved[:-1], rtol=1e-2, atol=1e-3)


def test_first_order_scores_against_small_changes():
    """The change of each sample's loss as a unit is turned down a little, over how much."""
    model, z, _, _, name = made("dense")
    layer, signals = Anatomy(model, z[:4])[name], Signals(model, z, TARGETS)
    actual = first_order(layer, signals, {})
    rows = []
    for unit in range(layer.units):
        losses = []
        for part in (1 - 1e-5, 1 + 1e-5):
            changed = copy.deepcopy(model)
            with torch.no_grad():
                changed[4].weight[:, unit] *= part
            losses.append(nn.functional.cross_entropy(changed(z), TARGETS, reduction="none"))
        rows.append((losses[0] - losses[1]) / 2e-5)
    torch.testing.assert_close(actual, torch.stack(rows, dim=1).detach(), rtol=1e-4, atol=1e-7)


def test_scores_are_real():
    model, z, _, _, name = made("dense")
    layer, signals = Anatomy(model, z[:4])[name], Signals(model, z, TARGETS)
    for score in SCORES:
        if score != "snip":
            assert unit_scores(layer, signals, score).dtype == torch.float64, score
    with pytest.raises(SurgeryError, match=r"snip is one of real weights, but 2.weight is complex"):
        unit_scores(layer, signals, "snip")
    assert weight_scores(model, ["2.weight"], "magnitude")["2.weight"].dtype == torch.float64
    with pytest.raises(SurgeryError, match=r"taylor2 is one of real weights, but 2.weight is complex"):
        weight_scores(model, ["2.weight"], "taylor2", z, TARGETS)


def test_the_predicted_loss_change():
    model, z, _, _, name = made("dense")
    plan = MinWeight(keep=0.7).propose(Anatomy(model, z[:4])[name])
    before = nn.functional.cross_entropy(model(z), TARGETS)
    actual = predicted_loss_change(plan, z, TARGETS)
    apply(plan)
    change = float((nn.functional.cross_entropy(model(z), TARGETS) - before).detach())
    assert actual.change == pytest.approx(change, abs=0.3 * abs(change) + 0.05)


def test_optimizer_state_of_complex_weights():
    """Squares of the parts are squares: × s², as those of real weights."""
    for make, keys in (
        (torch.optim.Adam, ("exp_avg", "exp_avg_sq")), (torch.optim.Adamax, ("exp_avg", "exp_inf")),
        (torch.optim.RMSprop, ("square_avg",)), (torch.optim.SGD, ()),
    ):  # fmt: skip
        model, z, real, x, name = made("dense", imaginary=0.0)
        optimizers = [make(each.parameters(), lr=0.0) for each in (model, real)]
        for each, inputs, optimizer in ((model, z, optimizers[0]), (real, x, optimizers[1])):
            nn.functional.cross_entropy(each(inputs), TARGETS).backward()
            optimizer.step()
            operate(Anatomy(each, inputs[:4])[name], WeakExpand(grow=1.0, split="signed"), optimizer)
        for key in keys:
            for one, other in zip(model.parameters(), real.parameters(), strict=True):
                actual, wanted = optimizers[0].state[one][key], optimizers[1].state[other][key]
                torch.testing.assert_close(actual.real, wanted, rtol=1e-9, atol=1e-15)


def test_complex_convolutions_are_pinned():
    """torch makes real ones of them, of parts and sums of parts of the weight."""
    for kind, size in ((nn.Conv1d, (6,)), (nn.Conv2d, (6, 6)), (nn.ConvTranspose2d, (6, 6))):
        model = nn.Sequential(kind(2, 4, 3, dtype=torch.complex64), nn.Tanh(), kind(4, 3, 1, dtype=torch.complex64))
        anatomy = Anatomy(model, torch.randn(2, 2, *size, dtype=torch.complex64))
        assert not list(anatomy) and set(anatomy.pinned) == {"0", "2"}
        with pytest.raises(SurgeryError, match="layer '0' cannot be operated on"):
            operate(anatomy["0"], MinWeight(keep=0.5))


def test_zeros_hide_nothing():
    """A branch that begins at zero, an input of zeros: the same layers are there as with other numbers."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.out = (nn.Linear(*sizes, dtype=torch.complex64) for sizes in ((8, 6), (6, 8)))
            nn.init.zeros_(self.out.weight), nn.init.zeros_(self.out.bias)

        def forward(self, x):
            return x + self.out(torch.tanh(self.into(x)))

    first, last = (nn.Linear(*sizes, dtype=torch.complex64) for sizes in ((4, 8), (8, 3)))
    model = nn.Sequential(first, Branch(), last, RealPart())
    anatomy = Anatomy(model, torch.zeros(2, 4, dtype=torch.complex64))
    assert {name: layer.units for name, layer in anatomy.items()} == {"0": 8, "1.into": 6}
    z = torch.randn(16, 4, dtype=torch.complex64)
    before = model(z)
    for layer in anatomy.values():
        operate(layer, WeakExpand(grow=0.5), verify=z)
    torch.testing.assert_close(model(z), before)
