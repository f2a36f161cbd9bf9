"""Dead and frozen units (Evci 2018, 3.2): made by hand, found, removed and revived."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from network_surgery.ops import Anatomy, RemoveDead, Revive, Signals, SurgeryError, dead_units, frozen_units, operate
from network_surgery.ops.errors import NoSignal
from network_surgery.ops.operations.dead_units import KINDS
from network_surgery.ops.schedule import dead_fraction
from network_surgery.ops.signals.losses import sample_losses

CONSTANT, UNHEARD, DROWNED = 2, 5, 7


def dying(activation: type[nn.Module] = nn.ReLU) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """Ten units: one makes a constant, nobody reads another, and a third never leaves the activation's flat part."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), activation(), nn.Linear(10, 4)).double()
    with torch.no_grad():
        model[0].weight[CONSTANT], model[0].bias[CONSTANT] = 0, 0.5
        model[2].weight[:, UNHEARD] = 0
        model[0].bias[DROWNED] = -100
    return model, torch.randn(80, 6).double(), torch.arange(80) % 4


def look(model, inputs, targets):
    return Anatomy(model, inputs[:2])["0"], Signals(model, inputs, targets)


def units(found: torch.Tensor) -> set[int]:
    return set(found.nonzero().flatten().tolist())


def test_dead_units_are_constant_or_unheard_and_frozen_ones_are_not_taught():
    layer, signals = look(*dying())
    assert units(dead_units(layer, signals)) == {CONSTANT, UNHEARD, DROWNED}
    assert units(frozen_units(layer, signals)) == {UNHEARD, DROWNED}  # what the constant unit makes still counts
    assert len(units(dead_units(layer, signals, 1.0))) > 3


def test_units_of_a_table_of_embeddings_are_frozen_by_what_it_gives_against_autograd():
    table = nn.Embedding(11, 6)
    model = nn.Sequential(table, nn.Tanh(), nn.Flatten(), nn.Linear(30, 4))
    with torch.no_grad():
        model[3].weight[:, 2::6] = 0  # nothing reads the third unit
    inputs, targets = torch.randint(11, (16, 5)), torch.randint(4, (16,))
    given = table(inputs).detach().requires_grad_(True)
    losses = nn.functional.cross_entropy(model[1:](given), targets, reduction="sum")
    largest = torch.autograd.grad(losses, given)[0].flatten(0, 1).abs().amax(dim=0)
    layer, signals = Anatomy(model, inputs[:2])["0"], Signals(model, inputs, targets)
    for threshold in (0.01, 0.9, 1.0):
        assert units(frozen_units(layer, signals, threshold)) == units(largest <= threshold * largest.mean())
    assert units(frozen_units(layer, signals)) == {2}


def test_frozen_is_measured_before_the_activation_against_autograd():
    model, inputs, targets = dying(nn.Tanh)
    layer, signals = look(model, inputs, targets)
    made = model[0](inputs).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(sample_losses(model[2](model[1](made)), targets).sum(), made)
    largest = slope.abs().amax(dim=0)
    for threshold in (1e-9, 0.3, 0.7, 1.0):
        assert units(frozen_units(layer, signals, threshold)) == units(largest <= threshold * largest.mean())


def test_channels_that_are_flattened_count_all_of_their_positions():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 3)).double()
    with torch.no_grad():
        model[3].weight.view(3, 5, 16)[:, 1] = 0
        model[3].weight.view(3, 5, 16)[:, 3, :15] = 0  # heard at one position
    layer, signals = look(model, torch.randn(40, 1, 6, 6).double(), torch.arange(40) % 3)
    assert units(dead_units(layer, signals, 1e-6)) == units(frozen_units(layer, signals, 1e-6)) == {1}


def test_what_is_dead_leaves_without_a_trace():
    model, inputs, targets = dying()
    layer, signals = look(model, inputs, targets)
    before = model(inputs).detach()
    plan = operate(layer, RemoveDead(), signals=signals)
    assert set(plan.removed) == {CONSTANT, UNHEARD, DROWNED} and plan.evidence["idle_units"] == 3
    torch.testing.assert_close(model(inputs), before, rtol=0, atol=1e-13)


def test_kinds_are_told_apart():
    for kind, wanted in (("dead", {2, 5, 7}), ("frozen", {5, 7}), ("either", {2, 5, 7})):
        layer, signals = look(*dying())
        assert set(RemoveDead(kind=kind).propose(layer, signals).removed) == wanted


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_dead_by_penalty_is_of_every_sample_against_a_slow_reference(activation):
    model, inputs, targets = dying(activation)
    layer, signals = look(model, inputs, targets)
    outputs = model[1](model[0](inputs)).detach()
    before, worst = sample_losses(model[2](outputs), targets), []
    for unit in range(10):
        without = outputs.clone()
        without[:, unit] = outputs[:, unit].mean()
        worst.append((sample_losses(model[2](without), targets) - before).abs().max())
    worst = torch.stack(worst).detach()
    for threshold in (1e-6, 0.2, 0.5, 1.0):
        dead = units(dead_units(layer, signals, threshold, by="mrp"))
        assert dead == units(worst <= threshold * worst.mean())
        if dead:
            assert set(RemoveDead(threshold, by="mrp").propose(layer, signals).removed) == dead


def test_a_unit_that_one_sample_of_many_needs_is_alive_by_its_penalty_and_dead_by_its_mean():
    """Evci's definition asks for every sample; a mean over samples forgets the rare one."""
    model, inputs, targets = dying()
    with torch.no_grad():  # the unheard unit answers one sample, a little
        inputs[0] = torch.tensor([9.0, 0, 0, 0, 0, 0])
        model[0].weight[DROWNED] = torch.tensor([1.0, 0, 0, 0, 0, 0])
        model[0].bias[DROWNED] = -8.5
    layer, signals = look(model, inputs, targets)
    assert DROWNED in units(dead_units(layer, signals, 0.1))
    assert DROWNED not in units(dead_units(layer, signals, 0.1, by="mrp"))
    assert {CONSTANT, UNHEARD} <= units(dead_units(layer, signals, 0.1, by="mrp"))
    with pytest.raises(SurgeryError, match="dead by 'luck'"):
        dead_units(layer, signals, by="luck")


def test_two_units_stay_where_hardly_one_is_alive():
    model, inputs, targets = dying()
    model[2].weight.data[:, :9] = 0
    layer, signals = look(model, inputs, targets)
    plan = operate(layer, RemoveDead(), signals=signals)
    assert plan.sources == (0, 9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["nobody reads it", "one sample", "copies of one", "all constant", "drowned"])
def test_a_layer_without_any_signal_is_refused_and_not_emptied(how: str, kind: str) -> None:
    model, inputs, targets = dying()
    with torch.no_grad():
        if how == "nobody reads it":  # a branch that begins at zero
            model[2].weight.zero_()
        elif how == "all constant":
            model[0].weight.zero_()
        elif how == "drowned":
            model[0].bias.fill_(-100)
    if how in ("one sample", "copies of one"):
        inputs, targets = inputs[:1], targets[:1]
    if how == "copies of one":
        inputs, targets = inputs.repeat(7, 1), targets.repeat(7)
    layer, signals = look(model, inputs, targets)
    before = [value.clone() for value in model.state_dict().values()]
    if kind == "frozen" and how in ("one sample", "copies of one", "all constant"):  # gradients there are
        assert not frozen_units(layer, signals).all()
        return
    for operation in (RemoveDead(kind=kind), Revive(kind=kind)):
        with pytest.raises(NoSignal, match=r"layer 0: no unit has any (saliency|gradient)"):
            operate(layer, operation, signals=signals)
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert dead_fraction(layer, signals, 0.01) == 0


def test_revived_units_begin_anew_silently_and_then_learn():
    model, inputs, targets = dying()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    step()
    with torch.no_grad():  # the step has moved it
        model[2].weight[:, UNHEARD] = 0
    layer, signals = look(model, inputs, targets)
    before, old = model(inputs).detach(), model[0].weight.detach().clone()
    gone = sorted(units(dead_units(layer, signals)))
    alive = [unit for unit in range(10) if unit not in gone]
    plan = operate(layer, Revive(), optimizer, signals, verify=True)
    assert DROWNED in gone and UNHEARD in gone and plan.units_after == 10 and set(plan.removed) == set(gone)
    torch.testing.assert_close(model(inputs), before, rtol=0, atol=2e-3)  # exact, had they been constant
    assert torch.equal(model[0].weight[alive], old[alive]) and not model[2].weight[:, gone].any()
    assert torch.isin(model[0].weight[gone], old[alive]).all()
    torch.testing.assert_close(model[0].bias[gone], model[0].bias[alive].mean().expand(len(gone)))
    for parameter, axis in ((model[0].weight, 0), (model[0].bias, 0), (model[2].weight, 1)):
        state = optimizer.state[parameter]
        assert not state["exp_avg"].index_select(axis, torch.tensor(gone)).any()
        assert state["exp_avg"].index_select(axis, torch.tensor(alive)).any() and state["step"] == 1
    for _ in range(30):
        step()
    layer, signals = look(model, inputs, targets)
    assert not units(dead_units(layer, signals)) & {DROWNED, UNHEARD}
    assert len({tuple(row) for row in model[0].weight.tolist()}) == 10


@pytest.mark.parametrize(
    ("bad", "says"),
    [({"threshold": 0}, "threshold is 0"), ({"kind": "asleep"}, "kind is 'asleep'"), ({"by": "l2"}, "by is 'l2'")],
)
@pytest.mark.parametrize("operation", [RemoveDead, Revive])
def test_refuses_hyperparameters(operation, bad, says):
    with pytest.raises(SurgeryError, match=f"{operation.__name__}: {says}"):
        operation(**bad)


def test_refuses_to_work_blindly():
    model, inputs, targets = dying()
    layer, _ = look(model, inputs, targets)
    with pytest.raises(SurgeryError, match="looks at the loss: give it Signals"):
        RemoveDead().propose(layer)
    with pytest.raises(SurgeryError, match="needs targets"):
        RemoveDead().propose(layer, Signals(model, inputs))
