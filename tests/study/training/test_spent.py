"""What a training run had cost at any moment, from its outcome alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from network_surgery.ops import PCNS, MinWeight, Moment, Schedule, Step
from network_surgery.ops.schedule import parse_when
from network_surgery.study.config import Settings
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training import spent
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run

CPU = torch.device("cpu")
SETTINGS = Settings(model="mlp", epochs=5, batch_size=64, held_out=64, signal_images=64, probe=0)
FIRST = Step(parse_when("25it"), "fc1", MinWeight(0.3))
NEVER = Step(parse_when("redundancy(0.000001) >= 0.999 from 2ep every 1ep at most 1"), "fc2", PCNS())
LAST = Step(Moment(3), "fc2", MinWeight(0.5))


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


@pytest.fixture(scope="module")
def outcome(digits: ImageTask) -> dict[str, Any]:
    steps = Schedule((FIRST, NEVER, LAST)).to_data()
    found = run(Cell("surgery", 1, steps), digits, SETTINGS, CPU)
    assert len(found["operations"]) == 2 and len(found["checks"]) == 3
    return found


def test_at_the_end_everything_has_been_spent(outcome: dict[str, Any]) -> None:
    assert spent.seconds(outcome, 5) == pytest.approx(outcome["seconds"])
    assert spent.training_flops(outcome, 5) == pytest.approx(outcome["training_flops"])


def test_an_older_outcome_that_lacks_what_is_new_can_be_read(outcome: dict[str, Any]) -> None:
    old = {key: value for key, value in outcome.items() if key not in ("steps", "sunk", "joules")}
    for epoch in (1, 2.5, 5):
        assert spent.training_flops(old, epoch) == spent.training_flops(outcome, epoch)
        assert spent.seconds(old, epoch) == spent.seconds(outcome, epoch)


def test_flops_until_an_epoch_are_those_of_a_training_that_ends_there(
    digits: ImageTask, outcome: dict[str, Any]
) -> None:
    for epochs, steps in ((1, ()), (2, (FIRST,)), (3, (FIRST,)), (4, (FIRST, LAST))):
        short = run(Cell("surgery", 1, Schedule(steps).to_data(), epochs=epochs), digits, SETTINGS, CPU)
        assert spent.training_flops(outcome, epochs) == pytest.approx(short["training_flops"])


def test_compressed_weights_that_were_there_for_a_while_count_once_a_batch(outcome: dict[str, Any]) -> None:
    first, last = outcome["operations"]
    found = outcome | {"operations": [first, last | {"weights_flops": 64_000}], "batch": 64, "weights_flops": 0}
    sizes = [first["flops_before"], last["flops_before"] + 1000, outcome["flops"]]
    parts = [size * time for size, time in zip(sizes, (25 / 17, 3 - 25 / 17, 2), strict=True)]
    assert spent.training_flops(found, 25 / 17) == pytest.approx(outcome["training_flops"] * parts[0] / sum(parts))


def test_seconds_go_with_what_had_happened(outcome: dict[str, Any]) -> None:
    first, last = outcome["operations"]
    looks = {look["epoch"]: look["seconds"] for look in outcome["checks"]}
    assert list(looks) == [2, 3, 4]
    discovery = outcome["operation_seconds"] - first["seconds"] - last["seconds"] - sum(looks.values())
    train = [epoch["train_seconds"] for epoch in outcome["epochs"]]
    assert discovery > 0
    assert spent.seconds(outcome, 1) == pytest.approx(discovery + train[0])
    assert spent.seconds(outcome, 1.25) == pytest.approx(discovery + train[0] + train[1] / 4)  # before the operation
    assert spent.seconds(outcome, 2) == pytest.approx(discovery + sum(train[:2]) + first["seconds"])
    assert spent.seconds(outcome, 4) == pytest.approx(
        discovery + sum(train[:4]) + first["seconds"] + last["seconds"] + looks[2] + looks[3]
    )


def test_what_a_late_restart_has_sunk_is_training_alone(outcome: dict[str, Any]) -> None:
    found = spent.before_surgery(outcome)
    train = [epoch["train_seconds"] for epoch in outcome["epochs"]]
    first, part = outcome["operations"][0], 25 / 17 - 1  # 17 steps an epoch
    assert found["steps"] == 25 and found["epochs"] == pytest.approx(25 / 17)
    assert found["seconds"] == pytest.approx(train[0] + part * train[1])
    assert found["training_flops"] == pytest.approx(3 * 64 * first["iteration"] * first["flops_before"])
    assert "joules" not in found
    with_joules = outcome | {"joules": 15.0, "epochs": [e | {"joules": 3.0} for e in outcome["epochs"]]}
    assert spent.before_surgery(with_joules)["joules"] == pytest.approx(3 * 25 / 17)
