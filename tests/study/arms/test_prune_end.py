"""Pruning at the end: when it operates, what becomes of the learning rate, and which weights go back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.ops import Anatomy, MinWeight, Moment, Schedule, Signals, Step, operate
from network_surgery.ops import load as load_network
from network_surgery.study.arms import left_out, rivals
from network_surgery.study.arms.survivors import Survivors
from network_surgery.study.config import Settings
from network_surgery.study.task.check import fresh
from network_surgery.study.task.images import ImageTask
from network_surgery.study.task.samples import Batches
from network_surgery.study.training import fork
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.rewinding import Rewinding
from network_surgery.study.training.run import run

CPU = torch.device("cpu")
THREE = ("prune_end", "prune_end_rewind_lr", "prune_end_rewind")
SETTINGS = Settings(
    model="mlp", epochs=4, batch_size=64, held_out=64, signal_images=64, probe=0, lr_schedule="linear",
    arms=("original", "surgery", "restart", "restart_fair", *THREE),
)  # fmt: skip
CUT = Schedule((
    Step(Moment(1), "fc1", MinWeight(0.5), ("bias",), after="rewarm"), Step(Moment(2), "fc1", MinWeight(0.5)),
)).to_data()  # fmt: skip
SURGERY = Cell("surgery", 3, CUT, trial=5)


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


@pytest.fixture(scope="module")
def surgery(digits: ImageTask) -> dict[str, Any]:
    return run(SURGERY, digits, SETTINGS, CPU)


@pytest.fixture(scope="module")
def cells(surgery: dict[str, Any]) -> dict[str, Cell]:
    return {cell.arm: cell for cell in rivals(SURGERY, surgery, SETTINGS)}


@pytest.mark.parametrize("arm", THREE)
def test_the_original_is_trained_whole_then_cut_then_trained_on(
    arm: str, cells: dict[str, Cell], digits: ImageTask, surgery: dict[str, Any]
) -> None:
    outcome, original = run(cells[arm], digits, SETTINGS, CPU), run(Cell("original", 3), digits, SETTINGS, CPU)
    assert cells[arm].epochs == 4 + 3 and cells[arm].curve == 4  # surgery had three epochs from its first operation on
    assert outcome["architecture"] == surgery["architecture"]
    assert [each["epoch"] for each in outcome["operations"]] == [4.0, 4.0]
    losses = [[each["train_loss"] for each in found["epochs"]] for found in (outcome, original)]
    assert losses[0][:4] == losses[1]
    rates = [each["learning_rate"] for each in outcome["epochs"]]
    assert rates[:4] == [each["learning_rate"] for each in original["epochs"]]
    late = [1e-3 / (17 * 4)] * 3 if arm == "prune_end" else rates[1:4]  # linear's last rate, or that of epochs 2 to 4
    assert rates[4:] == pytest.approx(late)


@pytest.mark.parametrize(("arm", "keep"), [(arm, (1, 4)) for arm in THREE] + [("prune_end_rewind", (2, 4))])
def test_they_go_on_from_the_original_of_their_seed(
    arm: str, keep: tuple[int, ...], cells: dict[str, Cell], digits: ImageTask, tmp_path: Path
) -> None:
    run(Cell("original", 3, keep=keep), digits, SETTINGS, CPU, shared=tmp_path)
    assert fork.count_shared(cells[arm], SETTINGS, 17) == 4
    cell = replace(cells[arm], fork={"from": "original-seed-3", "epoch": 4})
    forked, alone = run(cell, digits, SETTINGS, CPU, shared=tmp_path), run(cell, digits, SETTINGS, CPU)
    wanted = (
        {"from": "original-seed-3", "epoch": 4} if 1 in keep else None
    )  # the weights that it rewinds to are not there
    assert forked.get("forked") == wanted and "forked" not in alone
    assert forked["validation_loss"] == alone["validation_loss"]
    assert forked["training_flops"] == alone["training_flops"]


def test_its_budget_is_that_of_the_fair_restart(cells: dict[str, Cell], digits: ImageTask) -> None:
    fair, pruned = (run(cells[arm], digits, SETTINGS, CPU)["training_flops"] for arm in ("restart_fair", "prune_end"))
    epoch = fair / cells["restart_fair"].epochs  # type: ignore[operator]
    assert 0 <= fair - pruned < epoch


def test_survivors_get_back_the_weights_of_the_epoch_when_surgery_began(
    cells: dict[str, Cell], digits: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = (trained(epochs, digits, tmp_path) for epochs in (1, 4))
    kept, inputs = torch.arange(128), Batches(digits.test, CPU).take(slice(0, 20))[0]
    for _ in range(2):  # which units stay is decided by the network of the end
        kept = kept[list(operate(Anatomy(late, inputs)["fc1"], MinWeight(0.5)).sources)]
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(Rewinding):
        def before_step(self, trainer: Any) -> None:
            super().before_step(trainer)
            if trainer.iteration == 4 * trainer.per_epoch:
                seen.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})

    monkeypatch.setattr("network_surgery.study.training.run.Rewinding", Watched)
    run(replace(cells["prune_end_rewind"], epochs=5), digits, SETTINGS, CPU)
    (found,) = seen
    wanted = early.state_dict()
    torch.testing.assert_close(found["fc1.weight"], wanted["fc1.weight"][kept])
    torch.testing.assert_close(found["fc2.weight"], wanted["fc2.weight"][:, kept])
    for name in ("fc2.bias", "fc3.weight", "fc3.bias"):
        torch.testing.assert_close(found[name], wanted[name])


def trained(epochs: int, task: ImageTask, place: Path) -> Any:
    """The original as it was after some of its epochs."""
    run(Cell("original", 3, epochs=epochs, curve=4), task, SETTINGS, CPU, network=place / "network.pt")
    return load_network(lambda: fresh(task), place / "network.pt")


def test_weights_of_the_first_step_need_no_checkpoint(
    cells: dict[str, Cell], digits: ImageTask, tmp_path: Path
) -> None:
    run(Cell("original", 3, keep=(4,)), digits, SETTINGS, CPU, shared=tmp_path)
    cell = replace(cells["prune_end_rewind"], rewind=0, fork={"from": "original-seed-3", "epoch": 4})
    forked, alone = run(cell, digits, SETTINGS, CPU, shared=tmp_path), run(cell, digits, SETTINGS, CPU)
    assert forked["forked"]["epoch"] == 4 and forked["validation_loss"] == alone["validation_loss"]


@pytest.mark.parametrize("stop", [1, 2, 4, 5])
def test_weight_rewinding_resumes_as_if_it_had_not_been_interrupted(
    stop: int, cells: dict[str, Cell], digits: ImageTask, tmp_path: Path
) -> None:
    cell, saved = cells["prune_end_rewind"], tmp_path / "saved.pt"

    def interrupt(record: dict[str, Any]) -> None:
        if record["epoch"] == stop + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cell, digits, SETTINGS, CPU, interrupt, saved)
    resumed, whole = run(cell, digits, SETTINGS, CPU, saved=saved), run(cell, digits, SETTINGS, CPU)
    assert resumed["validation_loss"] == whole["validation_loss"]
    assert [e["train_loss"] for e in resumed["epochs"]] == [e["train_loss"] for e in whole["epochs"]]


def test_where_the_learning_rate_is_constant_there_is_nothing_to_rewind(surgery: dict[str, Any]) -> None:
    constant = replace(SETTINGS, lr_schedule="constant")
    reasons = left_out(SURGERY, surgery, constant)
    assert reasons == {"prune_end_rewind_lr": "the learning rate is constant, so rewinding it is prune_end"}
    (rewound,) = [cell for cell in rivals(SURGERY, surgery, constant) if cell.arm == "prune_end_rewind"]
    assert all("after" not in step for step in rewound.schedule) and rewound.rewind == 1


@pytest.mark.parametrize("op", [
    {"op": "pcns", "keep": 0.5}, {"op": "eigen_remove", "keep": 0.5}, {"op": "mean_replace", "keep": 0.5},
    {"op": "prune_weights", "fraction": 0.5},
], ids=lambda op: op["op"])  # fmt: skip
def test_survivors_of_any_removal_have_their_own_weights(op: dict[str, Any], digits: ImageTask) -> None:
    torch.manual_seed(0)
    model = fresh(digits)
    inputs, targets = Batches(digits.train, CPU).take(slice(0, 300))
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    plan = operate(Anatomy(model, inputs)["fc1"], Survivors(op), signals=Signals(model, inputs, targets))
    kept = list(plan.sources)
    torch.testing.assert_close(model.fc1.bias, before["fc1.bias"][kept])
    torch.testing.assert_close(model.fc2.bias, before["fc2.bias"])
    for found, wanted in (
        (model.fc1.weight, before["fc1.weight"][kept]),
        (model.fc2.weight, before["fc2.weight"][:, kept]),
    ):
        torch.testing.assert_close(found, wanted * (found != 0 if op["op"] == "prune_weights" else 1))


BY_THEMSELVES = [
    [{"when": "redundancy(0.1) >= 0.1 from 1ep every 1ep at most 2", "layer": "fc2", "op": "pcns"}],
    [{"when": "1ep", "layer": "*", "op": "prune_weights", "quality": 0.5}],
    [{"when": "1ep", "layer": "*", "op": "mean_replace", "budget": {"flops": 0.4}, "allocate": "saliency"}],
    [{"when": "1ep", "layer": "fc1", "op": "remove_dead", "threshold": 0.6}],
]


@pytest.mark.parametrize("schedule", BY_THEMSELVES, ids=lambda schedule: schedule[0]["op"])
def test_what_finds_out_its_amount_by_itself_leads_to_the_same_sizes(
    schedule: list[dict[str, Any]], digits: ImageTask
) -> None:
    settings = replace(SETTINGS, epochs=2)
    cell = Cell("surgery", 3, schedule, trial=5)
    surgery = run(cell, digits, settings, CPU)
    assert surgery["operations"]
    for rival in rivals(cell, surgery, settings):
        if rival.arm in THREE:
            outcome = run(rival, digits, settings, CPU)
            assert outcome["architecture"]["shapes"] == surgery["architecture"]["shapes"]
            assert outcome["parameters"] == pytest.approx(surgery["parameters"], rel=0.01)
            assert len(outcome["epochs"]) == 3 and not any(each["repair"] for each in outcome["operations"])
