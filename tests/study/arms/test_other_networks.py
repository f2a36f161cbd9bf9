"""Rivals of surgery's size that are cut before training, and rivals that grow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from network_surgery.ops import Anatomy, GradMax, MinWeight, Moment, Schedule, Step, WeakExpand
from network_surgery.study.arms import left_out, rivals
from network_surgery.study.config import Settings
from network_surgery.study.task.check import fresh
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.training.allocated import cut
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run

CPU = torch.device("cpu")
CUTS = ("uniform", "snip", "random_init")
GROWS = ("gradmax", "net2net")
SETTINGS = Settings(
    model="small_cnn", epochs=2, batch_size=64, held_out=64, signal_images=64, probe=0, train_images=200,
    arms=("surgery", "restart", *CUTS, *GROWS),
)  # fmt: skip
CUT = Schedule((Step(Moment(1), "fc1", MinWeight(0.2)),)).to_data()


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


def followers(schedule: list[dict[str, Any]], digits: ImageTask) -> tuple[dict[str, Any], dict[str, Cell]]:
    surgery = Cell("surgery", 3, schedule, trial=5)
    outcome = run(surgery, digits, SETTINGS, CPU)
    return outcome, {cell.arm: cell for cell in rivals(surgery, outcome, SETTINGS)}


def layers(model: Any, digits: ImageTask) -> dict[str, int]:
    inputs = Batches(digits.train, CPU).take(slice(0, 2))[0]
    return {name: layer.units for name, layer in Anatomy(model, inputs).items()}


@pytest.fixture(scope="module")
def layer(digits: ImageTask) -> str:
    torch.manual_seed(0)
    return list(layers(fresh(digits), digits))[-1]


def test_networks_cut_before_training_have_surgery_s_size(digits: ImageTask, layer: str) -> None:
    schedule = [{**CUT[0], "layer": layer}]
    outcome, found = followers(schedule, digits)
    assert set(found) == {"restart", *CUTS}
    for arm in CUTS:
        ended = run(found[arm], digits, SETTINGS, CPU)
        assert 0.9 * outcome["parameters"] < ended["parameters"] <= outcome["parameters"]
        assert len(ended["epochs"]) == 2 and ended["operations"] == [] and ended["operation_seconds"] > 0
        again = run(found[arm], digits, SETTINGS, CPU)
        assert again["validation_loss"] == ended["validation_loss"]


def test_every_layer_of_a_uniformly_thinner_network_has_the_same_share(digits: ImageTask) -> None:
    torch.manual_seed(3)
    model = fresh(digits)
    before, parameters = layers(model, digits), sum(p.numel() for p in model.parameters())
    values = dict(model.named_parameters())
    first = next(iter(values)), next(iter(values.values())).detach().clone()
    cut(model, digits, {"by": "uniform", "parameters": parameters // 4}, 3, 64, CPU)
    shares = [units / before[name] for name, units in layers(model, digits).items()]
    assert max(shares) - min(shares) < 0.15 and max(shares) < 0.7
    kept = dict(model.named_parameters())[first[0]]
    rows = {tuple(row.tolist()) for row in first[1].flatten(1)}
    assert not any(tuple(row.tolist()) in rows for row in kept.detach().flatten(1))  # it is drawn anew


@pytest.mark.parametrize("by", ["snip", "random"])
def test_pruning_at_initialization_keeps_the_weights_that_were_drawn(by: str, digits: ImageTask) -> None:
    torch.manual_seed(3)
    model = fresh(digits)
    name, weight = next(iter(model.named_parameters()))
    rows, state = {tuple(row.tolist()) for row in weight.detach().flatten(1)}, torch.get_rng_state()
    parameters = sum(p.numel() for p in model.parameters())
    cut(model, digits, {"by": by, "parameters": parameters // 4}, 3, 64, CPU)
    assert torch.equal(state, torch.get_rng_state())  # what is drawn later is as without it
    kept = dict(model.named_parameters())[name].detach().flatten(1)
    assert all(tuple(row.tolist()) in rows for row in kept)


def test_a_budget_of_flops_is_met_in_flops(digits: ImageTask, layer: str) -> None:
    outcome, _ = followers([{**CUT[0], "layer": layer}], digits)
    ended = run(Cell("uniform", 3, allocation={"by": "uniform", "flops": outcome["flops"]}), digits, SETTINGS, CPU)
    assert 0.85 * outcome["flops"] < ended["flops"] <= outcome["flops"]


@pytest.mark.parametrize(
    ("budget", "size"), [({"flops": 0.5}, "flops"), ({"flops": 0.5, "parameters": 0.9}, "parameters")]
)
def test_rivals_have_the_size_that_the_budget_of_a_step_is_of(budget: Any, size: str, digits: ImageTask) -> None:
    step = {"when": "1ep", "layer": "*", "op": "min_weight", "budget": budget, "allocate": "uniform"}
    outcome, found = followers([step], digits)
    for arm in ("uniform", "snip", "random_init"):
        assert found[arm].allocation == {"by": arm.removesuffix("_init"), size: outcome[size]}


def test_growth_at_the_same_moments_to_the_same_sizes(digits: ImageTask, layer: str) -> None:
    grow = Schedule((Step(Moment(1), layer, WeakExpand(0.3), after="rewarm", after_length=0.5),)).to_data()
    outcome, found = followers(grow, digits)
    assert set(found) == {"restart", *GROWS}
    for arm, kind in (("gradmax", "GradMax"), ("net2net", "WeakExpand")):
        ended = run(found[arm], digits, SETTINGS, CPU)
        (operation,), (wanted,) = ended["operations"], outcome["operations"]
        assert operation["operation"].startswith(kind) and ended["architecture"] == outcome["architecture"]
        assert all(operation[name] == wanted[name] for name in ("iteration", "layer", "units_after", "after"))
        assert ended["validation_loss"] != outcome["validation_loss"]


def test_a_schedule_that_grows_by_gradmax_is_not_held_against_itself(digits: ImageTask, layer: str) -> None:
    surgery = Cell("surgery", 3, Schedule((Step(Moment(1), layer, GradMax(0.3)),)).to_data(), trial=5)
    outcome = run(surgery, digits, SETTINGS, CPU)
    assert left_out(surgery, outcome, replace(SETTINGS))["gradmax"] == "surgery itself grows by GradMax"
