"""Depth in a study: the text task's GPT grows and shrinks by schedule; records, checkpoints, the restart, the arms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.ops import Condition, Deepen, Moment, Schedule, Step, SurgeryError, adopt, load
from network_surgery.ops.network.architecture import describe
from network_surgery.study.arms import left_out, rivals
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.task import Task, build
from network_surgery.study.task.check import fresh
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.examine import examine
from network_surgery.study.training.restart import renew
from network_surgery.study.training.run import run
from tests.study.operated import resumed, without_times

CPU = torch.device("cpu")
SETTINGS = Settings(
    task="text", data="stdlib", model="gpt", context=16, train_images=64, epochs=3, batch_size=16, learning_rate=3e-3,
    signal_images=16, held_out=16, probe=0, ema=0.5, optimizer="adam",
    arms=("original", "surgery", "restart", "random", "operate_first", "prune_end_rewind", "gradmax", "stacking"),
)  # fmt: skip
GROWTH: list[dict[str, Any]] = [
    {"when": "1ep", "layer": "blocks", "op": "deepen", "where": "between", "init": "identity"},
    {"when": "2ep", "layer": "blocks.3.mlp.gate", "op": "min_weight", "keep": 0.5},
]
REMOVAL: list[dict[str, Any]] = [{"when": "1ep", "layer": "*", "op": "drop_block"}]
CELL = Cell("surgery", 1, GROWTH, trial=0)


@pytest.fixture(scope="module")
def task() -> Task:
    return build(SETTINGS)


@pytest.fixture(scope="module")
def surgery(task: Task) -> dict[str, Any]:
    return run(CELL, task, SETTINGS, CPU)


def ended(schedule: list[dict[str, Any]], task: Task) -> tuple[dict[str, Any], dict[str, Cell], dict[str, str]]:
    """The outcome of a surgery, its rivals, and why others are none."""
    cell = Cell("surgery", 1, schedule, trial=0)
    outcome = json.loads(json.dumps(run(cell, task, SETTINGS, CPU)))
    return outcome, {each.arm: each for each in rivals(cell, outcome, SETTINGS)}, left_out(cell, outcome, SETTINGS)


def test_records_and_the_final_network(surgery: dict[str, Any], task: Task, tmp_path: Path) -> None:
    outcome = run(replace(CELL, test=True), task, SETTINGS, CPU, network=tmp_path / "network.pt")
    deeper, removed = outcome["operations"]
    assert (deeper["units_before"], deeper["units_after"], deeper["predicted_error"]) == (2, 4, 0)
    assert deeper["loss_after"] == pytest.approx(deeper["loss_before"], rel=1e-6)
    assert removed["units_after"] == removed["units_before"] // 2 and outcome["stacks"] == ["blocks"]
    network = load(lambda: fresh(task), tmp_path / "network.pt")
    assert len(network.blocks) == 4 and (outcome["parameters"], outcome["flops"]) == (
        removed["parameters_after"], removed["flops_after"]
    )  # fmt: skip
    assert without_times(outcome["epochs"]) == without_times(surgery["epochs"])


@pytest.mark.parametrize("last", [1, 2])
def test_a_run_resumes_bit_for_bit(last: int, surgery: dict[str, Any], task: Task, tmp_path: Path) -> None:
    assert without_times(resumed(CELL, task, SETTINGS, last, tmp_path / "cell.pt")) == without_times(surgery)


def test_the_arms_of_growth(task: Task) -> None:
    """The restart trains the deep network; stacking adds as many blocks at that moment; nothing prunes."""
    outcome, cells, reasons = ended(GROWTH[:1], task)
    assert set(cells) == {"restart", "operate_first", "stacking"}
    assert "adds blocks to blocks" in reasons["gradmax"] and "adds blocks to blocks" in reasons["random"]
    for arm, cell in cells.items():
        found = run(replace(cell, test=False), task, SETTINGS, CPU)
        assert found["architecture"]["shapes"] == outcome["architecture"]["shapes"], arm
        assert (
            found["flops"] == outcome["flops"] and found["epochs"][-1]["train_loss"] < found["epochs"][0]["train_loss"]
        )
    assert cells["stacking"].schedule == [{"when": "3it", "layer": "blocks", "op": "deepen", "grow": 1.0}]
    _, _, reasons = ended(cells["stacking"].schedule, task)
    assert reasons["stacking"] == "surgery itself grows by stacking"


def test_stacking_beside_a_network_that_is_widened(task: Task) -> None:
    """As many blocks as come nearest to the FLOPs."""
    schedule = [{"when": "1ep", "layer": f"blocks.{n}.mlp.gate", "op": "weak_expand", "grow": 2.0} for n in (0, 1)]
    outcome, cells, _ = ended(schedule, task)
    found = run(replace(cells["stacking"], test=False), task, SETTINGS, CPU)
    (operation,) = found["operations"]
    assert (operation["layer"], operation["units_before"], operation["units_after"]) == ("*", 2, 5)
    block = (operation["flops_after"] - operation["flops_before"]) / 3
    assert abs(found["flops"] - outcome["flops"]) <= block / 2


def test_the_arms_of_removal(task: Task) -> None:
    outcome, cells, reasons = ended(REMOVAL, task)
    assert outcome["operations"][0]["units_after"] == 1 and outcome["operations"][0]["evidence"]["importance"] > 0
    assert "stacks" not in outcome and "only adds blocks" in reasons["stacking"]
    step = cells["random"].schedule[0]
    assert step == {"when": "3it", "layer": "*", "op": "drop_block", "score": "random", "keep": 0.5, "seed": 1}
    for arm in ("random", "operate_first", "prune_end_rewind"):
        found = run(replace(cells[arm], test=False), task, SETTINGS, CPU)
        assert found["architecture"]["shapes"] == outcome["architecture"]["shapes"], arm


def test_a_restart_draws_every_block(task: Task) -> None:
    """Copies have values of their own, with the deviation of what they copy; norms begin at 1; other sizes, too."""
    torch.manual_seed(0)
    wanted, model, other = fresh(task), fresh(task), fresh(task)
    deep = {"blocks": {"kind": "Blocks", "sources": [0, 1, 0, 1], "counts": [], "numbered": []}}
    adopt(wanted, {**describe(wanted), "modules": deep, "shapes": _shapes_of(deep, task)})
    described = describe(wanted)
    described["shapes"]["blocks.3.mlp.gate.weight"] = described["shapes"]["blocks.3.mlp.up.weight"] = [100, 48]
    described["shapes"]["blocks.3.mlp.down.weight"] = [48, 100]
    for each in (model, other):
        torch.manual_seed(1)
        each.load_state_dict(fresh(task).state_dict())
        renew(each, described, 5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    first, copied = model.blocks[0], model.blocks[2]
    for one, two in zip(*([p.detach() for p in each.parameters()] for each in (first, copied)), strict=True):
        if one.dim() > 1:
            assert abs(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]) < 0.1
            assert one.std() == pytest.approx(float(two.std()), rel=0.1)
        else:
            assert torch.equal(one, torch.ones_like(one)) and torch.equal(two, one)
    assert model.blocks[3].mlp.up.weight.shape == (100, 48) and model.blocks[3].mlp.up.weight.std() > 0.01


def _shapes_of(modules: dict[str, Any], task: Task) -> dict[str, Any]:
    model = fresh(task)
    shapes = describe(model)["shapes"]
    blocks = {name: shape for name, shape in shapes.items() if name.startswith("blocks.")}
    for place, source in enumerate(modules["blocks"]["sources"]):
        mine = {name: shape for name, shape in blocks.items() if name.startswith(f"blocks.{source}.")}
        shapes |= {name.replace(f"blocks.{source}.", f"blocks.{place}.", 1): shape for name, shape in mine.items()}
    return shapes


def test_schedules_are_checked() -> None:
    layers, stacks = ["blocks.0.mlp.gate"], ["blocks"]
    Schedule.from_data(GROWTH).check(layers, 3, 4, stacks)
    Schedule.from_data([{**GROWTH[0], "layer": "*"}, GROWTH[1]]).check(layers, 3, 4, stacks)
    stages = [{**GROWTH[0], "layer": "features.5"}, {**GROWTH[1], "layer": "features.7.conv"}]
    Schedule.from_data(stages).check(layers, 3, 4, ["features.5"])
    with pytest.raises(SurgeryError, match=r"names the layer 'blocks\.3\.mlp\.gate'"):
        Schedule.from_data(GROWTH[1:]).check(layers, 3, 4, stacks)
    with pytest.raises(SurgeryError, match="works on a stack of blocks; this network has the stacks blocks"):
        Schedule.from_data([{**GROWTH[0], "layer": "blocks.0.mlp.gate"}]).check(layers, 3, 4, stacks)
    with pytest.raises(SurgeryError, match="not at a condition"):
        Schedule((Step(Condition(0.1, 0.1, Moment(1)), "blocks", Deepen()),)).check(layers, 3, 4, stacks)
    with pytest.raises(SurgeryError, match="DropBlock removes blocks"):
        Schedule.from_data([{"when": "1ep", "layer": "*", "op": "drop_block", "budget": {"flops": 0.5}}])


def test_what_has_no_blocks_is_refused_before_anything_is_trained() -> None:
    mlp = Settings(model="mlp", space="depth", epochs=2)
    with pytest.raises(StudyError, match=r"no blocks of equal shapes.*neither deeper nor shallower"):
        examine(mlp, build(mlp))
    with pytest.raises(StudyError, match="neither deeper nor shallower"):
        examine(replace(mlp, space="mixed", schedules=(REMOVAL,)), build(mlp))
    assert examine(replace(SETTINGS, space="depth"), build(SETTINGS)).stacks == {"blocks": 2}
