"""Compaction: what pruning has cut off goes, the rest computes what it did, and tensors really shrink."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from network_surgery.ops import Anatomy, Compact, PruneWeights, Signals, SurgeryError, compact, load, operate, save
from network_surgery.ops.network.masks import masks_of, parameters_of
from network_surgery.ops.operations.compact import weights_left
from tests.ops.contract.test_operations import assert_same
from tests.ops.networks import build, cnn_plain, difference, leaky, outputs, train

EXACT = 1e-12  # in double precision
#: No padding after a hidden layer, no norm over its units: here compaction is exact.
UNPADDED = ("mlp", "mlp_bn", "cnn", "cnn_plain", "dense_concat", "leaky", "tied", "scaled", "tuple_in", "dict_io")


def pruned(name: str, fraction: float, batch: int = 24) -> tuple[nn.Module, object, Anatomy, torch.optim.Optimizer]:
    model, inputs = build(name, torch.float64, batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    anatomy = Anatomy(model, inputs)
    train(model, inputs, optimizer)
    operate(anatomy["*"], PruneWeights(fraction), optimizer)
    train(model, inputs, optimizer)
    return model, inputs, anatomy, optimizer


def brute_force(model: nn.Module) -> list[int]:
    """Of the sequential dense network: sizes of its hidden layers after taking away, one by one, whatever unit is
    without input or output, from plain matrices."""
    weights = [layer.weight.detach() for layer in model if isinstance(layer, nn.Linear)]
    changed = True
    while changed:
        changed = False
        for left, right in zip(range(len(weights) - 1), range(1, len(weights)), strict=True):
            alive = (weights[left] != 0).any(dim=1) & (weights[right] != 0).any(dim=0)
            if not alive.all() and len(alive) > 2:
                gone = int((~alive).nonzero()[0])
                kept = [unit for unit in range(len(alive)) if unit != gone]
                weights[left], weights[right] = weights[left][kept], weights[right][:, kept]
                changed = True
                break
    return [len(weight) for weight in weights[:-1]]


@pytest.mark.parametrize("fraction", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("name", UNPADDED)
def test_the_network_computes_what_it_did(name: str, fraction: float) -> None:
    model, inputs, anatomy, optimizer = pruned(name, fraction)
    before, living = outputs(model, inputs), parameters_of(model)
    stored = sum(parameter.numel() for parameter in model.parameters())
    plans = compact(anatomy, optimizer, Signals(model, inputs))
    assert difference(before, outputs(model, inputs)) < EXACT
    assert all(plan.error == 0 and plan.units_after < plan.units_before for plan in plans)
    assert bool(plans) == (sum(parameter.numel() for parameter in model.parameters()) < stored)
    assert parameters_of(model) <= living
    assert all(parameter.shape == mask.shape for parameter, mask in (
        (anatomy.tensor(name), mask) for name, mask in masks_of(model).items()
    ))  # fmt: skip
    assert repr(Anatomy(model, inputs)) == repr(anatomy)
    train(model, inputs, optimizer)
    assert all(torch.isfinite(out).all() for out in outputs(model, inputs))


@pytest.mark.parametrize("seed", range(4))
def test_units_go_until_nothing_changes(seed: int) -> None:
    """Chains of units that only feed each other, against one-by-one removal from plain matrices."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(m for n in range(4) for m in (nn.Linear(6 if n else 5, 6), nn.Tanh())), nn.Linear(6, 3))
    model, inputs = model.double(), torch.randn(30, 5, dtype=torch.float64)
    anatomy = Anatomy(model, inputs)
    operate(anatomy["*"], PruneWeights(0.7, score="random", seed=seed))
    wanted, before = brute_force(model), outputs(model, inputs)
    plans = compact(anatomy, (), Signals(model, inputs))
    assert [layer.units for layer in anatomy.values()] == wanted
    assert difference(before, outputs(model, inputs)) < EXACT
    assert sum(wanted) < 24 and len(plans) >= 2 and not compact(anatomy, (), Signals(model, inputs))


def test_a_unit_that_nothing_feeds_leaves_its_constant() -> None:
    model, inputs = leaky().double(), torch.randn(9, 5, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0, -2.0
    before, bias = outputs(model, inputs), model[2].bias.detach().clone()
    column = model[2].weight[:, 3].detach().clone()
    plan = operate(Anatomy(model, inputs)["0"], Compact(), signals=Signals(model, inputs))
    assert plan.removed == (3,)
    torch.testing.assert_close(model[2].bias.detach(), bias + column * -2.0 * 0.3)
    assert difference(before, outputs(model, inputs)) < EXACT


def test_without_a_bias_to_hold_a_constant_the_unit_stays() -> None:
    model, inputs = build("mlp", torch.float64, batch=9)
    model[2].bias = None
    with torch.no_grad():
        model[0].weight[[3, 5]], model[0].bias[3], model[0].bias[5] = 0, 2.0, -1.0  # ReLU: the second emits nothing
    before = outputs(model, inputs)
    plan = operate(Anatomy(model, inputs)["0"], Compact(), signals=Signals(model, inputs))
    assert plan.removed == (5,) and difference(before, outputs(model, inputs)) < EXACT


def test_a_unit_that_varies_without_weights_stays() -> None:
    """What is added to it after the weight depends on the position."""
    from tests.ops.networks import Net

    model = Net(
        lambda m, x: m.out((m.hidden(x) + m.place).relu().flatten(1)),
        hidden=nn.Linear(5, 6), place=nn.Parameter(torch.randn(4, 6)), out=nn.Linear(24, 3),
    ).double()  # fmt: skip
    inputs = torch.randn(7, 4, 5, dtype=torch.float64)
    with torch.no_grad():
        model.hidden.weight[2], model.out.weight.view(3, 4, 6)[..., 4] = 0, 0
    before = outputs(model, inputs)
    plan = operate(Anatomy(model, inputs)["hidden"], Compact(), signals=Signals(model, inputs))
    assert plan.removed == (4,) and difference(before, outputs(model, inputs)) < EXACT


def test_after_padding_it_is_exact_in_the_interior() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).double()
    inputs = torch.randn(5, 1, 10, 10, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 1.0
    before = outputs(model, inputs)[0]
    operate(Anatomy(model, inputs)["0"], Compact(), signals=Signals(model, inputs))
    error = (outputs(model, inputs)[0] - before).abs()
    assert error[..., 1:-1, 1:-1].max() < EXACT < 1e-3 < error.max()


@pytest.mark.parametrize("fraction", [0.1, 0.2])
def test_a_fraction_is_of_the_weights_that_are_left(fraction: float) -> None:
    model, inputs, anatomy, _ = pruned("leaky", 0.6)
    layer = anatomy["0"]
    fed = (anatomy.tensor("0.weight") != 0).sum(dim=1).double() / anatomy.tensor("0.weight").shape[1]
    read = (anatomy.tensor("2.weight") != 0).sum(dim=0).double() / anatomy.tensor("2.weight").shape[0]
    found = weights_left(layer)
    assert torch.equal(found[0], fed) and torch.equal(found[1], read)
    plan = Compact(fraction).propose(layer, Signals(model, inputs))
    assert plan.removed == tuple(((fed <= fraction) | (read <= fraction)).nonzero().flatten().tolist())
    assert plan.removed and plan.error > 0


def test_two_units_stay_those_with_most_weights() -> None:
    model, inputs = build("mlp", torch.float64, batch=9)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[4, 1], model[0].weight[6, :3] = 1, 1
    plan = Compact(0.9).propose(Anatomy(model, inputs)["0"], Signals(model, inputs))
    assert plan.sources == (4, 6)


def test_it_goes_on_from_a_file(tmp_path) -> None:
    model, inputs, anatomy, _ = pruned("cnn_plain", 0.85)
    compact(anatomy, (), Signals(model, inputs))
    save(model, tmp_path / "net.pt")
    again = load(lambda: cnn_plain().double(), tmp_path / "net.pt")
    assert_same(dict(model.state_dict()), dict(again.state_dict()))
    assert outputs(again, inputs)[0].equal(outputs(model, inputs)[0])


def test_what_is_whole_needs_no_signals_and_is_left_alone() -> None:
    model, inputs = build("mlp")
    before = copy.deepcopy(model.state_dict())
    assert compact(Anatomy(model, inputs)) == [] and Compact().propose(Anatomy(model, inputs)["0"]).removed == ()
    assert_same(dict(before), dict(model.state_dict()))


def test_says_what_is_wrong() -> None:
    anatomy = pruned("leaky", 0.9)[2]
    with pytest.raises(SurgeryError, match=r"Compact\(fraction=0.0\) on 0 looks at outputs: give it Signals"):
        compact(anatomy)
    for fraction in (-0.1, 1.0, True, "all"):
        with pytest.raises(SurgeryError, match="but it must be from 0 to below 1"):
            Compact(fraction)  # type: ignore[arg-type]
