"""What arms cost, from nothing and where the large network is there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from network_surgery.ops import MinWeight, Moment, Schedule, Step
from network_surgery.study.arms import ARMS, rivals
from network_surgery.study.arms.cost import began, cost
from network_surgery.study.config import Settings
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training import spent
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run

CPU = torch.device("cpu")
SETTINGS = Settings(
    model="mlp", epochs=4, batch_size=64, held_out=64, signal_images=64, probe=0,
    arms=("original", "surgery", "restart", "restart_flops", "restart_late", "random"),
)  # fmt: skip
SHRINK = Schedule((Step(Moment(3, "ep"), "fc1", MinWeight(0.3)),)).to_data()


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    digits, cell = ImageTask.of(SETTINGS), Cell("surgery", 3, SHRINK, trial=5)
    found = {"surgery": run(cell, digits, SETTINGS, CPU), "original": run(Cell("original", 3), digits, SETTINGS, CPU)}
    return found | {c.arm: run(c, digits, SETTINGS, CPU) for c in rivals(cell, found["surgery"], SETTINGS)}


@pytest.mark.parametrize("arm", [*SETTINGS.arms])
def test_from_nothing_everything_counts(arm: str, outcomes: dict[str, dict[str, Any]]) -> None:
    found, outcome = cost(arm, outcomes[arm], "zero", 3.0), outcomes[arm]
    assert (found.flops, found.seconds) == (outcome["training_flops"], outcome["seconds"])
    late = arm == "restart_late"
    assert found.epochs == len(outcome["epochs"]) + 3 * late and found.steps == outcome["steps"] + 3 * 17 * late


def test_where_the_large_network_is_there_its_training_until_surgery_began_is_nobodys(
    outcomes: dict[str, dict[str, Any]],
) -> None:
    assert began(outcomes["surgery"]) == 3.0 and began({"operations": []}) == 0.0
    given = {arm: cost(arm, outcome, "given", 3.0) for arm, outcome in outcomes.items()}
    assert given["surgery"].epochs == given["random"].epochs == given["original"].epochs == 1
    assert given["surgery"].steps == given["random"].steps == 17
    small, large = outcomes["restart"]["training_flops"] / 4, outcomes["original"]["training_flops"] / 4
    for arm in ("surgery", "random", "restart_late"):
        assert given[arm].flops == pytest.approx(small) and given[arm].epochs == 1
    assert given["original"].flops == pytest.approx(large)
    assert given["restart"].flops == pytest.approx(4 * small) and given["restart"].epochs == 4
    surgery, late = outcomes["surgery"], outcomes["restart_late"]
    assert given["restart_late"].seconds == pytest.approx(late["train_seconds"])
    assert given["surgery"].seconds == pytest.approx(
        surgery["operation_seconds"] + surgery["epochs"][3]["train_seconds"]
    )


def test_a_teacher_is_charged_for_what_was_not_there_when_surgery_began(outcomes: dict[str, dict[str, Any]]) -> None:
    restart, teacher = outcomes["restart"], spent.whole(outcomes["original"])
    taught = restart | {"sunk": teacher} | {key: restart[key] + teacher[key] for key in ("training_flops", "seconds")}
    zero, given = (cost("distill", taught, accounting, 3.0) for accounting in ("zero", "given"))
    assert (zero.epochs, zero.steps) == (4 + 4, 2 * 4 * 17) and (given.epochs, given.steps) == (4 + 1, (4 + 1) * 17)
    assert zero.flops == restart["training_flops"] + teacher["training_flops"]
    assert given.flops == pytest.approx(restart["training_flops"] + teacher["training_flops"] / 4)


def test_every_arm_answers_a_question() -> None:
    assert all({*arm.answers} and {*arm.answers} <= {"zero", "given"} for arm in ARMS.values())
