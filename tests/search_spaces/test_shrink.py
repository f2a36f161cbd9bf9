"""The space for budgets: whatever is drawn ends at the budget, whoever divides it."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FixedTrial
from torch import nn

from network_surgery.ops import Anatomy, Schedule, Signals, operate, size
from network_surgery.search_spaces import shrink
from network_surgery.study.search.space import suggest_of


def network() -> Anatomy:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3)
    )
    return Anatomy(model, torch.zeros(2, 6))


def signals(anatomy: Anatomy) -> Signals:
    """Those of the network as it is now."""
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    return Signals(anatomy.model, inputs, torch.arange(40) % 3, nn.functional.cross_entropy)


def trials(count: int, **about: Any) -> list[tuple[dict[str, Any], Schedule]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, anatomy = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3)), network()
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append((trial, shrink.suggest(trial, anatomy, 10, **about)))
        study.tell(trial, 0.0)
    return [(dict(trial.params), schedule) for trial, schedule in found]


@pytest.mark.parametrize("budget", [{"parameters": 0.3}, {"flops": 0.4}, {"parameters": 0.5, "flops": 0.3}])
def test_every_schedule_ends_at_the_budget(budget: Mapping[str, float]) -> None:
    ways = set()
    for params, schedule in trials(30, budget=budget):
        anatomy = network()
        whole = size(anatomy)
        for step in schedule.steps:
            for part in step.resolve(anatomy, whole, signals(anatomy)):
                operate(anatomy[part.layer], part.operation, signals=signals(anatomy), repair=part.repair)
        shares = {name: getattr(size(anatomy), name) / getattr(whole, name) for name in budget}
        assert all(shares[name] <= share for name, share in budget.items())
        assert any(shares[name] > 0.8 * share for name, share in budget.items())  # layers of few units are coarse
        ways.add(params["allocate"])
        assert Schedule.from_data(schedule.to_data()) == schedule
        assert shrink.suggest(FixedTrial(params), anatomy, 10, budget=budget) == schedule
    assert ways == {*shrink.ALLOCATE}


def test_searched_ratios_are_per_layer_and_the_others_have_none() -> None:
    for params, schedule in trials(30, budget={"parameters": 0.3}):
        ratios = {name for name in params if name.startswith("ratio_")}
        searched = params["allocate"] == "searched"
        assert ratios == ({"ratio_0", "ratio_2", "ratio_4"} if searched else set()) and "keep" not in params
        methods = [step.allocation.method for step in schedule.steps if step.allocation]
        assert len(methods) == len(schedule.steps)
        assert all(isinstance(method, Mapping) == searched for method in methods)


def test_many_layers_share_ratios_by_their_kind() -> None:
    layers = {f"blocks.{i}.{part}": SimpleNamespace(units=8) for i in range(6) for part in ("heads", "mlp.gate")}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = shrink.ratios(study.ask(), layers, 1)
    assert [*found] == ["blocks.*.heads", "blocks.*.mlp.gate"]


def test_several_turns_take_the_same_part_each() -> None:
    params = {"op": "min_weight", "repair": "none", "first_epoch": 2, "times": 3, "every": 2, "allocate": "uniform"}
    schedule = shrink.suggest(FixedTrial(params), network(), 10, budget={"parameters": 0.125})
    turns = [(str(step.when), step.allocation.budget) for step in schedule.steps if step.allocation]
    assert turns == [("2ep", {"parameters": 0.5}), ("4ep", {"parameters": 0.25}), ("6ep", {"parameters": 0.125})]
    late = shrink.suggest(FixedTrial(params), network(), 5, budget={"parameters": 0.125})
    assert [str(step.when) for step in late.steps] == ["2ep", "4ep"]  # the last one that there is ends at the budget
    assert late.steps[-1].allocation is not None and late.steps[-1].allocation.budget == {"parameters": 0.125}


def test_without_a_size_in_the_budget_it_is_searched() -> None:
    for params, schedule in trials(5):
        assert 0.02 <= params["parameters"] <= 0.9
        assert schedule.steps[-1].allocation is not None
        assert schedule.steps[-1].allocation.budget == {"parameters": float(f"{params['parameters']:.3g}")}


def test_a_space_gets_what_it_takes_by_name() -> None:
    params = {"op": "min_weight", "repair": "none", "first_epoch": 2, "times": 1, "allocate": "uniform"}
    suggest = suggest_of("shrink", budget={"flops": 0.5}, controls=False)
    made = suggest(FixedTrial(params), network(), 10)
    assert made.steps[0].allocation is not None and made.steps[0].allocation.budget == {"flops": 0.5}
    assert suggest_of("eigen_remove", budget={"flops": 0.5}, controls=True) is not None  # which takes neither
