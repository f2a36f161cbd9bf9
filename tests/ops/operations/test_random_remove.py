"""Random removal, and what all removals share: how many stay, and which."""

from __future__ import annotations

import pytest
import torch

from network_surgery.ops import Anatomy, EigenRemove, MinWeight, RandomRemove, SurgeryError, WeakExpand, ZeroExpand
from network_surgery.ops.operations.min_weight import strongest
from tests.ops.networks import build


@pytest.mark.parametrize("operation", [RandomRemove, MinWeight, EigenRemove])
@pytest.mark.parametrize(("keep", "units"), [(1.0, 8), (0.99, 8), (0.5, 4), (0.3, 2), (0.01, 2), (1e-9, 2)])
def test_keeps_the_nearest_number_in_the_old_order(operation, keep, units):
    model, inputs = build("mlp")
    plan = operation(keep=keep).propose(Anatomy(model, inputs)["0"])
    assert plan.units_after == units and list(plan.sources) == sorted(set(plan.sources))
    assert sorted((*plan.removed, *plan.sources)) == list(range(8))


def test_the_seed_is_the_draw():
    model, inputs = build("mlp")
    layer = Anatomy(model, inputs)["0"]
    drawn = [RandomRemove(keep=0.5, seed=seed).propose(layer).sources for seed in range(40)]
    assert drawn == [RandomRemove(keep=0.5, seed=seed).propose(layer).sources for seed in range(40)]
    assert len(set(drawn)) > 20
    assert all(10 <= sum(unit in sources for sources in drawn) <= 30 for unit in range(8))


def test_ties_go_to_the_earlier_unit():
    assert strongest(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3) == (0, 1, 3)


@pytest.mark.parametrize("operation", [RandomRemove, MinWeight, EigenRemove])
@pytest.mark.parametrize("keep", [0, -0.5, 1.5, float("nan"), float("inf"), "x", None, True])
def test_refuses_a_fraction_that_is_none(operation, keep):
    with pytest.raises(SurgeryError, match=f"{operation.__name__}: keep is .*must .*above 0 and at most 1"):
        operation(keep=keep)


@pytest.mark.parametrize("operation", [WeakExpand, ZeroExpand])
@pytest.mark.parametrize("grow", [0, -1, 17, float("nan"), "x"])
def test_refuses_growth_that_is_none(operation, grow):
    with pytest.raises(SurgeryError, match=f"{operation.__name__}: grow is .*above 0 and at most 16"):
        operation(grow=grow)


@pytest.mark.parametrize("bad", [
    lambda: EigenRemove(rank=0), lambda: EigenRemove(rank=2), lambda: EigenRemove(weights="new"),
    lambda: WeakExpand(split="fair"), lambda: WeakExpand(seed=1.5), lambda: RandomRemove(seed="x"),
    lambda: RandomRemove(seed=-1),
])  # fmt: skip
def test_refuses_other_hyperparameters(bad):
    with pytest.raises(SurgeryError, match=r"(Remove|Expand): (rank|weights|split|seed) is .*must"):
        bad()
