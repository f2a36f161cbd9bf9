"""Steps with a budget: resolved when they are due, one record a layer, of the network as training began."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from network_surgery.ops import Allocation, Anatomy, MinWeight, Moment, Schedule, Size, Step, SurgeryError, apply, size
from network_surgery.study.config import Settings
from network_surgery.study.loops import Surgeon
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.examine import check
from network_surgery.study.training.run import run
from tests.study.loops.same import adam, loader, network
from tests.study.operated import without_times

CPU = torch.device("cpu")
SETTINGS = Settings(model="mlp", epochs=3, batch_size=64, held_out=64, signal_images=64, probe=0)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


def budget(when: str = "1ep", op: str = "min_weight", parameters: float = 0.3, **more: Any) -> dict[str, Any]:
    return {"when": when, "layer": "*", "op": op, "budget": {"parameters": parameters}, **more}


def surgery(digits: ImageTask, *steps: dict[str, Any], **options: Any) -> dict[str, Any]:
    return run(Cell("surgery", 0, list(steps)), digits, SETTINGS, CPU, **options)


@pytest.fixture(scope="module")
def original(digits: ImageTask) -> int:
    return int(surgery(digits)["parameters"])


@pytest.mark.parametrize(
    "step",
    [
        budget(allocate="saliency"),
        budget(op="eigen_remove", rank=0.25, allocate="sensitivity", repair=["least_squares", "batchnorm"]),
        budget(op="pcns", allocate="redundancy"),
        budget(op="mean_replace", score="snip", allocate="snip", bias_propagation=False),
        budget(op="random_remove", seed=3, allocate="random", after="rewarm"),
    ],
    ids=lambda step: step["allocate"],
)
def test_the_trained_network_meets_its_budget(step: dict[str, Any], digits: ImageTask, original: int) -> None:
    outcome = surgery(digits, step)
    json.dumps(outcome)  # plain data
    assert 0.97 * 0.3 * original < outcome["parameters"] <= 0.3 * original
    records = outcome["operations"]
    assert [each["layer"] for each in records] == ["fc1", "fc2"][-len(records) :]
    assert {each["iteration"] for each in records} == {records[0]["iteration"]} and records[0]["when"] == "1ep"
    for one, other in itertools.pairwise(records):
        assert one["parameters_after"] == other["parameters_before"]
        assert one["loss_after"] == pytest.approx(other["loss_before"])
    assert len(outcome["spikes"]) == 1
    assert outcome["operation_seconds"] >= sum(each["seconds"] for each in records) > 0


def test_the_fraction_is_of_the_network_as_training_began(digits: ImageTask, original: int) -> None:
    outcome = surgery(
        digits, {"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.5}, budget("2ep", parameters=0.4)
    )
    assert 0.97 * 0.4 * original < outcome["parameters"] <= 0.4 * original
    met = surgery(digits, budget("1ep", parameters=0.3), budget("2ep", parameters=0.5))  # a budget that is met already
    assert {each["when"] for each in met["operations"]} == {"1ep"}


def test_masks_stay_on_what_is_left(digits: ImageTask, original: int) -> None:
    pruned = {"when": "1ep", "layer": "*", "op": "prune_weights", "fraction": 0.5}
    outcome = surgery(digits, pruned, budget("2ep", parameters=0.4))
    assert outcome["parameters"] < 0.4 * original and len(outcome["operations"]) > 2


def test_an_interruption_changes_nothing(digits: ImageTask, tmp_path: Path) -> None:
    steps = (
        {"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.5},
        budget("2ep", "mean_replace", 0.4, allocate="saliency"),
    )
    whole = surgery(digits, *steps)

    def stop(epoch: dict[str, Any]) -> None:
        if epoch["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surgery(digits, *steps, tell=stop, saved=tmp_path / "cell.pt")
    resumed = surgery(digits, *steps, saved=tmp_path / "cell.pt")
    assert without_times(resumed["operations"]) == without_times(whole["operations"])
    assert resumed["validation_loss"] == whole["validation_loss"]


def test_what_cannot_be_met_is_known_before_training(digits: ImageTask) -> None:
    for wrong, says in (
        (budget(parameters=0.0001), "cannot be met"), (budget(parameters=10**8), "is larger than the network"),
    ):  # fmt: skip
        with pytest.raises(SurgeryError, match=says):
            check(Settings(model="mlp", schedules=([wrong],)), digits)
        with pytest.raises(SurgeryError, match=says):
            surgery(digits, wrong)
    with pytest.raises(SurgeryError, match="the layer 'fc9'"):
        surgery(digits, budget(layers=["fc9"]))


def test_a_loop_of_ones_own_with_a_moving_average_meets_its_budget() -> None:
    model = network()
    optimizer, average = adam(model), AveragedModel(model)
    before = size(Anatomy(model, next(iter(loader()))[0][:2]))
    schedule = Schedule(
        (Step(Moment(2, "it"), "*", MinWeight(), allocation=Allocation({"parameters": 0.6}, "saliency")),)
    )
    surgeon = Surgeon(model, optimizer, schedule, loader(), averages=average)
    for number, (inputs, targets) in enumerate(loader()):
        surgeon.before_step()
        if number == 1:
            kept = copy.deepcopy(surgeon.state_dict())
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(model(inputs), targets)
        value.backward()
        optimizer.step()
        average.update_parameters(model)
        surgeon.after_step(value)
    after = size(Anatomy(model, inputs[:2]))
    assert surgeon.records and after.parameters <= 0.6 * before.parameters
    shapes = [tensor.shape for tensor in model.parameters()]
    assert shapes == [tensor.shape for tensor in average.module.parameters()]
    assert kept["theatre"]["original"] == list(before)
    fresh = network()
    goes_on = Surgeon(fresh, adam(fresh), schedule, loader())
    goes_on.load_state_dict(kept)
    assert goes_on.state_dict()["theatre"]["original"] == list(before)


def test_each_part_can_be_undone() -> None:
    model = network()
    optimizer, average, inputs = adam(model), AveragedModel(model), next(iter(loader()))[0]
    model(inputs).sum().backward()
    optimizer.step()
    anatomy = Anatomy(model, inputs[:2])
    step = Step(Moment(1), "*", MinWeight(), allocation=Allocation({"parameters": 0.6}))
    states, undone = [copy.deepcopy((model.state_dict(), average.state_dict(), optimizer.state_dict()))], []
    for part in step.resolve(anatomy, Size(*size(anatomy))):
        undone.append(apply(part.operation.propose(anatomy[part.layer]), optimizer, average))
        states.append(copy.deepcopy((model.state_dict(), average.state_dict(), optimizer.state_dict())))
    assert len(undone) == len(anatomy)
    for undo in reversed(undone):
        states.pop()
        for each in reversed(undo):
            each()
        found = (model.state_dict(), average.state_dict(), optimizer.state_dict())
        for one, other in zip(
            torch.utils._pytree.tree_leaves(states[-1]), torch.utils._pytree.tree_leaves(found), strict=True
        ):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
