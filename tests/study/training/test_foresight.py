"""What of listed schedules is refused before anything is trained, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
import torch

from network_surgery import search_spaces
from network_surgery.ops import RemoveDead, Schedule, SurgeryError
from network_surgery.ops.errors import NoSignal
from network_surgery.study import conduct
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.search.sampled import Space
from network_surgery.study.task import Task, build
from network_surgery.study.training import foresight
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.examine import examine
from network_surgery.study.training.foresight import foresee, refusals
from network_surgery.study.training.run import run

CPU = torch.device("cpu")
IMAGES = Settings(
    model="mlp", epochs=3, train_images=128, batch_size=64, held_out=32, signal_images=32, probe=0, optimizer="adam"
)
TEXT = Settings(
    task="text", data="stdlib", model="gpt", context=16, train_images=64, epochs=3, batch_size=32, held_out=16,
    signal_images=16, probe=0, optimizer="adam",
)  # fmt: skip
FULL = "dead_fraction(0.01) >= 0.01 from 1ep every 1ep at most 1"


def step(op: str, layer: str, when: str = "1ep", **settings: Any) -> dict[str, Any]:
    return {"when": when, "layer": layer, "op": op, **settings}


SHARED = step("share_weights", "fc1")
DROPPED = step("drop_block", "blocks")
#: Of each schedule, how the last step is judged: certain, perhaps, or None where nothing is said of it.
CERTAIN: dict[str, tuple[Settings, list[dict[str, Any]]]] = {
    "shared before": (IMAGES, [SHARED, step("fastfood", "fc1", "2ep")]),
    "shared before, units between": (IMAGES, [SHARED, step("min_weight", "fc1"), step("hash_weights", "fc1", "2ep")]),
    "no positions": (IMAGES, [step("predict_weights", "fc2", dictionary="rbf")]),
    "at a condition": (IMAGES, [step("predict_weights", "fc2", FULL, dictionary="rbf")]),
    "as written, not as due": (IMAGES, [step("fastfood", "fc1", "2ep"), SHARED]),
    "repaired modules": (IMAGES, [step("stretch", "fc1", repair=["bias"])]),
    "an activation between": (IMAGES, [step("collapse", "fc1")]),
    "a part of what was never stretched": (IMAGES, [SHARED, step("stretch", "fc1", "2ep")]),
    "a part that is gone": (IMAGES, [step("stretch", "fc1"), step("min_weight", "fc1.7", "2ep")]),
    "a block that is gone": (TEXT, [DROPPED, step("min_weight", "blocks.1.mlp.gate", "2ep")]),
}
PERHAPS: dict[str, tuple[Settings, list[dict[str, Any]]]] = {
    "which weights are hashed": (IMAGES, [step("hash_weights", "*"), step("fastfood", "fc1", "2ep")]),
    "which weights are masked": (IMAGES, [step("prune_weights", "fc1"), step("hash_weights", "fc1", "2ep")]),
    "whether it is shared": (IMAGES, [SHARED | {"when": FULL}, step("fastfood", "fc1", "2ep")]),
    "which blocks go": (
        TEXT,
        [*(step("share_weights", f"blocks.{n}.mlp.gate") for n in (0, 1)), DROPPED,
         step("fastfood", "blocks.0.mlp.gate", "2ep")],
    ),
}  # fmt: skip
SILENT: dict[str, tuple[Settings, list[dict[str, Any]]]] = {
    "shared after units": (IMAGES, [step("min_weight", "fc1"), step("share_weights", "fc1", "2ep")]),
    "as due": (IMAGES, [step("fastfood", "fc2", "2ep"), SHARED]),
    "positions": (IMAGES, [step("predict_weights", "fc1", dictionary="rbf")]),
    "a part": (IMAGES, [step("stretch", "fc1"), step("min_weight", "fc1.0", "2ep")]),
    "a budget": (IMAGES, [step("min_weight", "*", budget={"parameters": 0.5}), step("stretch", "fc1", "2ep")]),
    "a block that stays": (TEXT, [DROPPED, step("min_weight", "blocks.0.mlp.gate", "2ep")]),
    "a block that comes": (TEXT, [step("deepen", "blocks"), step("min_weight", "blocks.3.mlp.gate", "2ep")]),
}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {settings.task: build(settings) for settings in (IMAGES, TEXT)}


def judged(settings: Settings, steps: list[dict[str, Any]], tasks: dict[str, Task]) -> list[tuple[int, bool]]:
    """The places of the steps that are refused, and whether that is certain."""
    schedule = Schedule.from_data(steps)
    found = refusals(schedule, settings, tasks[settings.task])
    return [(schedule.steps.index(each.step), each.certain) for each in found]


@pytest.mark.parametrize("name", CERTAIN)
def test_what_can_never_be_done_is_never_done(name: str, tasks: dict[str, Task]) -> None:
    settings, steps = CERTAIN[name]
    ((place, certain),) = judged(settings, steps, tasks)
    assert certain and (place == len(steps) - 1 or name == "as written, not as due")
    given = replace(settings, schedules=[steps])
    with pytest.raises(StudyError, match=r"^the schedule has the step '.*', which can never be done: [^\n]+$"):
        foresee(given, tasks[settings.task])
    if FULL not in steps[-1]["when"]:
        with pytest.raises(SurgeryError):
            run(Cell("surgery", 1, steps), tasks[settings.task], settings, CPU)


@pytest.mark.parametrize("name", PERHAPS)
def test_what_values_decide_stops_nothing(name: str, tasks: dict[str, Task]) -> None:
    settings, steps = PERHAPS[name]
    assert judged(settings, steps, tasks) == [(len(steps) - 1, False)]
    lines: list[str] = []
    foresee(replace(settings, schedules=[steps, steps]), tasks[settings.task], lines.append)
    assert [line for line in lines if line.startswith("schedule 2 of 2 has the step") and "may never" in line]


@pytest.mark.parametrize("name", SILENT)
def test_of_what_is_done_nothing_is_said(name: str, tasks: dict[str, Task]) -> None:
    settings, steps = SILENT[name]
    assert judged(settings, steps, tasks) == []
    assert len(run(Cell("surgery", 1, steps), tasks[settings.task], settings, CPU)["operations"]) >= len(steps)


def test_what_is_refused_by_values_says_nothing(tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails on the untrained network by its values, or in any foreign way, stops nothing, and what comes
    after is no longer certain.
    """
    steps = [step("remove_dead", "fc1"), *CERTAIN["no positions"][1]]
    assert judged(IMAGES, steps, tasks) == [(1, True)]
    for error, expected in ((NoSignal("no signal"), [(1, False)]), (MemoryError(), []), (RuntimeError("odd"), [])):
        with monkeypatch.context() as patch:
            patch.setattr(RemoveDead, "propose", Mock(side_effect=error))
            assert judged(IMAGES, steps, tasks) == expected


def test_no_step_is_tried_once_the_time_is_over(tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "PATIENCE", 0.0)
    foresee(replace(IMAGES, schedules=[CERTAIN["no positions"][1]]), tasks["images"])
    assert not refusals(Schedule.from_data(CERTAIN["no positions"][1]), IMAGES, tasks["images"], until=0.0)


@pytest.mark.parametrize("space", sorted({*search_spaces.SPACES} - {"depth", "thesis", "thesis_published"}))
def test_what_spaces_suggest_can_be_done(space: str, tasks: dict[str, Task]) -> None:
    settings = replace(IMAGES, space=space, epochs=6, controls=False)
    layers = examine(settings, tasks["images"]).layers
    sampled = Space(settings, layers, None)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    for _ in range(3):
        schedule = sampled.sample(study.ask())
        assert not [each for each in refusals(schedule, settings, tasks["images"]) if each.certain], schedule


def test_a_study_is_refused_before_it_begins() -> None:
    for _, steps in (CERTAIN["shared before"], CERTAIN["no positions"]):
        with pytest.raises(StudyError, match=r"schedule 2 of 2 .* can never be done"):
            conduct.check(replace(IMAGES, schedules=[SILENT["a part"][1], steps]))
