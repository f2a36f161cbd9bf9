"""What surgery is held against: the arms that follow how it ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.ops import Anatomy, MinWeight, Moment, Schedule, Step, WeakExpand, operate
from network_surgery.ops import load as load_network
from network_surgery.study.arms import ARMS as DECLARED
from network_surgery.study.arms import LABELS, RIVALS, left_out, question, rivals
from network_surgery.study.arms.arm import LeftOut
from network_surgery.study.arms.random_units import randomly
from network_surgery.study.config import ARMS, GROUPS, Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.evidence import drawing
from network_surgery.study.task.check import fresh
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import operations_of
from network_surgery.study.training.run import run
from tests.study.operated import operated

CPU = torch.device("cpu")
GROWS = ("gradmax", "net2net", "stacking")
THREE = ("original", "surgery", "restart")
SETTINGS = Settings(model="mlp", epochs=6, batch_size=64, held_out=64, signal_images=64, probe=0, arms=ARMS)
SHRINK = Schedule((
    Step(Moment(2), "fc1", MinWeight(0.3), ("bias",)), Step(Moment(3), "fc2", MinWeight(0.5)),
    Step(Moment(4), "fc1", MinWeight(0.6)),
)).to_data()  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


@pytest.fixture(scope="module")
def surgery(digits: ImageTask) -> dict[str, Any]:
    return run(Cell("surgery", 3, SHRINK, trial=5), digits, SETTINGS, CPU)


@pytest.fixture(scope="module")
def original(digits: ImageTask) -> dict[str, Any]:
    return run(Cell("original", 3), digits, SETTINGS, CPU)


def followers(
    outcome: dict[str, Any], settings: Settings = SETTINGS, original: dict[str, Any] | None = None
) -> dict[str, Cell]:
    return {cell.arm: cell for cell in rivals(Cell("surgery", 3, SHRINK, trial=5), outcome, settings, original)}


def test_every_arm_has_a_label_and_a_look() -> None:
    assert set(ARMS) == set(drawing.ARMS) == {*LABELS, "surgery"} == {"original", "surgery", *RIVALS}
    assert tuple(DECLARED) == ARMS  # in the order of the settings
    looks = [(look["color"], look["marker"]) for look in drawing.ARMS.values()]
    assert len(set(looks)) == len(looks) == len({marker for _, marker in looks})  # told apart in grey as well


def test_groups_of_arms_are_those_that_answer_a_question() -> None:
    for accounting in ("zero", "given"):
        assert set(GROUPS[accounting]) == {name for name, arm in DECLARED.items() if accounting in arm.answers}
    assert Settings(arms="all").arms == ARMS and Settings().arms == GROUPS["default"]  # type: ignore[arg-type]
    assert Settings(arms="default,distill").arms == tuple(a for a in ARMS if a in (*GROUPS["default"], "distill"))  # type: ignore[arg-type]
    assert question(Settings(arms="given")) == "restart_late_flops"  # type: ignore[arg-type]
    with pytest.raises(StudyError, match=r"arms is 'al', but it must be default, all, given, zero, or a list"):
        Settings(arms="al")  # type: ignore[arg-type]


def test_every_arm_that_is_asked_for_follows(surgery: dict[str, Any], original: dict[str, Any]) -> None:
    found = followers(surgery, original=original)
    assert tuple(found) == tuple(arm for arm in RIVALS if arm not in (*GROWS, "prune_end_rewind_lr"))
    assert {(cell.seed, cell.trial, cell.test) for cell in found.values()} == {(3, 5, True)}
    for arm, cell in found.items():
        assert (cell.architecture is not None) == arm.startswith(("restart", "distill"))
        assert bool(cell.schedule) == (arm == "random" or arm.startswith(("operate_first", "prune_end")))
        assert (cell.allocation is not None) == (arm in ("uniform", "snip", "random_init"))
    few = Settings(epochs=6, arms=("surgery", "restart", "random"))
    assert set(followers(surgery, few)) == {"restart", "random"}


def test_restarts_have_the_epochs_that_they_are_called_for(digits: ImageTask, surgery: dict[str, Any]) -> None:
    found = followers(surgery)
    assert found["restart"].epochs is None and found["restart_late"].epochs == 6 - 2
    equal = run(found["restart_flops"], digits, SETTINGS, CPU)
    epoch = equal["training_flops"] / len(equal["epochs"])
    assert 0 <= equal["training_flops"] - surgery["training_flops"] < epoch  # rounded up, by less than an epoch
    assert len(equal["epochs"]) == found["restart_flops"].epochs > 6
    assert equal["architecture"] == surgery["architecture"]


def test_the_original_at_equal_flops_is_the_original_for_that_long(digits: ImageTask, surgery: dict[str, Any]) -> None:
    cell = followers(surgery)["original_flops"]
    equal, original = run(cell, digits, SETTINGS, CPU), run(Cell("original", 3), digits, SETTINGS, CPU)
    epoch = original["training_flops"] / len(original["epochs"])
    assert 0 <= equal["training_flops"] - surgery["training_flops"] < epoch and cell.epochs < 6  # surgery cuts
    assert equal["parameters"] == original["parameters"] > surgery["parameters"]


def test_a_late_restart_counts_what_had_been_spent_before(digits: ImageTask, surgery: dict[str, Any]) -> None:
    cell = followers(surgery)["restart_late"]
    late = run(cell, digits, SETTINGS, CPU)
    original = run(Cell("original", 3, epochs=2), digits, SETTINGS, CPU)  # what had been trained when surgery began
    own = run(replace(cell, sunk={}), digits, SETTINGS, CPU)
    assert late["training_flops"] == own["training_flops"] + original["training_flops"]
    assert late["sunk"]["epochs"] == 2 and len(late["epochs"]) == 4
    assert late["seconds"] - late["train_seconds"] == pytest.approx(
        sum(epoch["train_seconds"] for epoch in surgery["epochs"][:2])
    )
    assert cell.key(SETTINGS) == replace(cell, sunk={}).key(SETTINGS)  # it is the same training run


def test_equal_seconds_count_what_operations_took(surgery: dict[str, Any]) -> None:
    outcome = {**surgery, "seconds": 9.1, "epochs": [{"epoch": float(n), "train_seconds": 2.0} for n in range(1, 5)]}
    outcome["epochs"] += [{"epoch": 5.0, "train_seconds": 0.9}, {"epoch": 6.0, "train_seconds": 1.1}]
    assert followers(outcome)["restart_seconds"].epochs == 10  # epochs of a second, after the last operation


def test_random_units_go_where_chosen_ones_went(digits: ImageTask, surgery: dict[str, Any]) -> None:
    cell = followers(surgery)["random"]
    outcome = run(cell, digits, SETTINGS, CPU)
    shapes = [
        [(o["iteration"], o["layer"], o["units_after"], o["repair"]) for o in x["operations"]]
        for x in (surgery, outcome)
    ]
    assert shapes[0] == shapes[1] and outcome["architecture"] == surgery["architecture"]
    assert outcome["operations"][0]["repair"] == ["bias"]
    assert outcome["training_flops"] == surgery["training_flops"]
    assert outcome["validation_loss"] != surgery["validation_loss"]
    assert [step["seed"] for step in cell.schedule] == [3, 4, 5]


def test_where_nothing_was_removed_there_is_no_random_arm(digits: ImageTask) -> None:
    grow = Schedule((Step(Moment(2), "fc1", WeakExpand(0.5)),)).to_data()
    outcome = run(Cell("surgery", 3, grow, trial=5), digits, SETTINGS, CPU)
    restarts = {arm for arm in RIVALS if arm.startswith(("restart", "operate_first", "original"))} - {"restart_fair"}
    assert set(followers(outcome)) == {*restarts, *GROWS} - {"stacking"}  # it has no blocks
    reasons = left_out(Cell("surgery", 3, grow, trial=5), outcome, SETTINGS)
    assert set(reasons) == set(RIVALS) - {*restarts, *GROWS} | {"stacking"}
    others = {"distill", "stacking"}
    assert all(r.startswith("surgery adds units to fc1, and ") for arm, r in reasons.items() if arm not in others)
    assert reasons["stacking"] == "the network has no blocks of equal shapes that follow each other"
    assert reasons["distill"] == "its teacher, the original of its seed, has not ended well"
    with pytest.raises(LeftOut, match="removed no unit"):
        randomly([], 0)
    same = {"units_before": 8, "units_after": 8, "parameters_before": 90}
    done = [operated(**same, parameters_after=90), operated(units_after=6), operated(**same, parameters_after=60)]
    idle, gone, pruned = operations_of({"operations": done})
    assert [step["keep"] for step in randomly([idle, gone], 0)] == [0.75]  # one that found nothing to do
    with pytest.raises(LeftOut, match=r"changes weights of .* and no units"):
        randomly([gone, pruned], 0)


def test_a_schedule_that_never_operated_is_held_against_a_restart_only(original: dict[str, Any]) -> None:
    never = {**original, "operations": []}
    assert {arm: cell.epochs for arm, cell in followers(never).items()} == {"restart_flops": SETTINGS.epochs}
    reasons = left_out(Cell("surgery", 3, SHRINK, trial=5), never, SETTINGS)
    assert set(reasons) == set(RIVALS) - {"restart_flops"} and set(reasons.values()) == {"surgery never operated"}
    assert not followers(never, replace(SETTINGS, arms=GROUPS["given"]))  # late for nothing


def first(schedule: list[dict[str, Any]], digits: ImageTask, settings: Settings) -> tuple[Any, dict[str, Any], Cell]:
    """How a schedule ended, and the cell that does all of it first."""
    outcome = run(Cell("surgery", 3, schedule, trial=5), digits, settings, CPU)
    found = {cell.arm: cell for cell in rivals(Cell("surgery", 3, schedule, trial=5), outcome, settings)}
    return outcome["architecture"]["shapes"], found["operate_first"].schedule, found["operate_first"]


BY_THEMSELVES = [
    [{"when": "1ep", "layer": "fc1", "op": "pcns", "variance_threshold": 0.1},
     {"when": "2ep", "layer": "fc1", "op": "weak_expand", "grow": 0.37}],
    [{"when": "1ep", "layer": "fc1", "op": "remove_dead", "threshold": 0.6}],
    [{"when": "1ep", "layer": "fc1", "op": "eigen_remove", "keep": 0.377, "rounding": "down"},
     {"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.9, "repair": ["bias"]}],
    [{"when": "redundancy(0.1) >= 0.1 from 1ep every 1ep at most 2", "layer": "fc2", "op": "pcns"}],
    [{"when": "1ep", "layer": "*", "op": "prune_weights", "quality": 0.5}],
    [{"when": "1ep", "layer": "*", "op": "mean_replace", "budget": {"flops": 0.4}, "allocate": "saliency"},
     {"when": "1ep", "layer": "fc1", "op": "min_weight", "keep": 0.9, "repair": ["bias"]}],
]  # fmt: skip


@pytest.mark.parametrize("schedule", BY_THEMSELVES, ids=lambda schedule: schedule[0]["op"])
def test_operating_first_leads_to_the_sizes_of_surgery(schedule: list[dict[str, Any]], digits: ImageTask) -> None:
    settings = replace(SETTINGS, epochs=3)
    shapes, steps, cell = first(schedule, digits, settings)
    outcome = run(cell, digits, settings, CPU)
    assert outcome["architecture"]["shapes"] == shapes
    assert steps and {step["when"] for step in steps} == {"0it"}
    assert [each.iteration for each in operations_of(outcome)] == [0] * len(steps)


def test_operating_first_begins_with_the_cut_pretrained_network(digits: ImageTask, tmp_path: Path) -> None:
    torch.manual_seed(11)
    pretrained = fresh(digits)
    torch.save(pretrained.state_dict(), tmp_path / "w.pt")
    settings = replace(SETTINGS, epochs=1, learning_rate=1e-12, start=str(tmp_path / "w.pt"))
    schedule = [{"when": "8it", "layer": "fc1", "op": "min_weight", "keep": 0.5}]
    _, _, cell = first(schedule, digits, settings)
    run(cell, digits, settings, CPU, network=tmp_path / "end.pt")
    inputs = Batches(digits.test, CPU).take(slice(0, 20))[0]
    operate(Anatomy(pretrained, inputs)["fc1"], MinWeight(0.5))
    ended = load_network(lambda: fresh(digits), tmp_path / "end.pt")
    torch.testing.assert_close(ended.eval()(inputs), pretrained.eval()(inputs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("start", "arms", "arm"),
    [
        ("none", ARMS, "restart_flops"), ("w.pt", ARMS, "operate_first_flops"), ("none", THREE, "restart"),
        ("w.pt", THREE, "restart"), ("none", ("surgery", "restart_flops"), "restart_flops"),
        ("none", ("surgery", "operate_first"), "operate_first"),
        ("w.pt", ("surgery", "operate_first"), "operate_first"),
        ("none", ("surgery", "restart_late", "operate_first"), "restart_late"),
        ("none", ("original", "surgery"), "restart_flops"), ("w.pt", ("original", "surgery"), "operate_first_flops"),
    ],
)  # fmt: skip
def test_the_question_is_about_the_rival_at_equal_flops_where_that_is_run(start: str, arms: Any, arm: str) -> None:
    assert question(Settings(start=start, arms=arms)) == arm
