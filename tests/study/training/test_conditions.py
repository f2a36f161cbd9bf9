"""Steps that wait for a condition: when they look, when they operate, and that an interruption changes neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.ops import PCNS, Condition, MinWeight, Moment, RemoveDead, Schedule, Step, SurgeryError
from network_surgery.ops.operation import Operation
from network_surgery.study.config import Settings
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from tests.study.operated import without_times

CPU = torch.device("cpu")
SETTINGS = Settings(model="mlp", epochs=4, batch_size=64, held_out=64, signal_images=256, probe=0)
STEPS = 17  # optimizer steps in an epoch


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


def waiting(condition: str, layer: str, operation: Operation) -> Step:
    return Step(Condition.parse(condition), layer, operation)


def surgery(*steps: Step) -> Cell:
    return Cell("surgery", 0, Schedule(steps).to_data())


def losses(outcome: dict[str, Any]) -> list[float]:
    return [epoch["train_loss"] for epoch in outcome["epochs"]]


@pytest.fixture(scope="module")
def met(digits: ImageTask) -> dict[str, Any]:
    step = waiting("redundancy(0.05) >= 0.4 from 1ep every 10it at most 2", "fc1", PCNS(0.05))
    return run(surgery(step), digits, SETTINGS, CPU)


def test_it_operates_when_the_gain_is_reached_and_at_most_so_often(met: dict[str, Any]) -> None:
    json.dumps(met)  # plain data
    checks, operations = met["checks"], met["operations"]
    assert [check["iteration"] for check in checks] == list(range(STEPS, 4 * STEPS, 10))[: len(checks)]
    assert all(check["operated"] == (check["gain"] >= 0.4) for check in checks)
    assert checks[0]["operated"] and not checks[1]["operated"]  # what PCNS leaves is less redundant
    assert [o["iteration"] for o in operations] == [check["iteration"] for check in checks if check["operated"]]
    for check, operation in zip((c for c in checks if c["operated"]), operations, strict=True):
        removed = operation["units_before"] - operation["units_after"]
        assert check["gain"] == removed / operation["units_before"] and check["units"] == operation["units_before"]
    assert 1 <= len(operations) <= 2


def test_looking_is_part_of_what_surgery_costs(met: dict[str, Any]) -> None:
    idle = sum(check["seconds"] for check in met["checks"] if not check["operated"])
    assert idle > 0
    assert met["operation_seconds"] >= idle + sum(operation["seconds"] for operation in met["operations"])
    assert met["operations"][0]["seconds"] > met["checks"][0]["seconds"] > 0


def test_a_condition_that_is_met_does_what_a_moment_does(digits: ImageTask) -> None:
    when = "redundancy(0.05) >= 0.1 from 1ep every 1ep at most 1"
    by_finding = run(surgery(waiting(when, "fc1", PCNS(0.05))), digits, SETTINGS, CPU)
    by_moment = run(surgery(Step(Moment(1), "fc1", PCNS(0.05))), digits, SETTINGS, CPU)
    assert losses(by_finding) == losses(by_moment)
    assert by_finding["architecture"] == by_moment["architecture"]
    assert [o["when"] for o in by_finding["operations"]] == [when] and len(by_finding["checks"]) == 1


def test_a_condition_that_is_never_met_leaves_training_alone(digits: ImageTask) -> None:
    step = waiting("redundancy(0.0001) >= 0.9 from 1ep every 2ep at most 1", "fc1", PCNS(0.0001))
    outcome, plain = run(surgery(step), digits, SETTINGS, CPU), run(Cell("original", 0), digits, SETTINGS, CPU)
    assert outcome["operations"] == outcome["spikes"] == []
    assert [(check["epoch"], check["operated"]) for check in outcome["checks"]] == [(1.0, False), (3.0, False)]
    assert losses(outcome) == losses(plain)
    assert outcome["operation_seconds"] > sum(check["seconds"] for check in outcome["checks"])  # and the discovery


def test_what_is_due_together_happens_as_it_is_written(digits: ImageTask) -> None:
    second, first = (f"redundancy(0.05) >= 0.1 from {epoch}ep every 1ep at most 1" for epoch in (2, 1))
    steps = [
        waiting(second, "fc2", PCNS(0.05)), Step(Moment(1), "fc1", MinWeight(0.9)),
        Step(Moment(2), "fc1", MinWeight(0.9)), waiting(first, "fc2", MinWeight(0.9)),
        waiting(second, "fc1", MinWeight(0.8)),
    ]  # fmt: skip
    outcome = run(surgery(*steps), digits, SETTINGS, CPU)
    done = [(o["epoch"], o["layer"], o["operation"][:4]) for o in outcome["operations"]]
    assert done == [
        (1.0, "fc1", "MinW"), (1.0, "fc2", "MinW"), (2.0, "fc2", "PCNS"), (2.0, "fc1", "MinW"), (2.0, "fc1", "MinW"),
    ]  # fmt: skip


def test_dead_units_are_waited_for_too(digits: ImageTask) -> None:
    when = "dead_fraction(0.9) >= 0.9 from 1ep every 1ep at most 1"
    never = run(surgery(waiting(when, "fc1", RemoveDead(0.9))), digits, SETTINGS, CPU)
    assert [c["measure"] for c in never["checks"]] == ["dead_fraction"] * 3 and not never["operations"]
    often = run(surgery(waiting(when.replace(">= 0.9", ">= 0.3"), "fc1", RemoveDead(0.9))), digits, SETTINGS, CPU)
    (check,), (operation,) = often["checks"], often["operations"]
    assert check["gain"] == (operation["units_before"] - operation["units_after"]) / 128 >= 0.3


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_resumed_run_looks_and_operates_as_an_uninterrupted_one(
    digits: ImageTask, tmp_path: Path, after: int
) -> None:
    cell = surgery(
        waiting("redundancy(0.01) >= 0.6 from 5it every 12it at most 2", "fc1", PCNS(0.01)),
        waiting("redundancy(0.01) >= 0.2 from 2ep every 1ep at most 3", "fc2", MinWeight(0.7)),
        Step(Moment(3), "fc2", MinWeight(0.5)),
    )
    whole = run(cell, digits, SETTINGS, CPU)
    assert {check["operated"] for check in whole["checks"]} == {True, False}
    reports: list[int] = []

    def die(epoch: dict[str, Any]) -> None:
        reports.append(len(epoch["checks"]))
        if len(reports) == after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cell, digits, SETTINGS, CPU, tell=die, saved=tmp_path / "cell.pt")
    reports.pop()
    again: list[int] = []
    resumed = run(cell, digits, SETTINGS, CPU, lambda e: again.append(len(e["checks"])), saved=tmp_path / "cell.pt")
    assert without_times(resumed) == without_times(whole)
    assert sum(reports + again) == len(whole["checks"])  # every look was reported once


def test_a_first_look_after_the_end_is_refused(digits: ImageTask) -> None:
    step = waiting("redundancy(0.05) >= 0.3 from 4ep every 1ep at most 1", "fc1", PCNS(0.05))
    with pytest.raises(
        SurgeryError, match=r"step at redundancy\(0.05\) .* from 4ep .*, but training ends after 4 epochs"
    ):
        run(surgery(step), digits, SETTINGS, CPU)
