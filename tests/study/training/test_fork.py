"""Runs that go on from the original's checkpoint come to what they would have come to alone, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from network_surgery.ops import OPERATIONS, PCNS, PruneWeights, RemoveDead, Revive
from network_surgery.ops.operation import Operation
from network_surgery.study.config import Settings
from network_surgery.study.task import Task, build
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training import checkpoint, fork
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.run import run
from network_surgery.study.training.trainer import steps_per_epoch
from tests.study.operated import without_times
from tests.study.task.pictures import folder as pictures

CPU = torch.device("cpu")
SETTINGS = Settings(
    model="mlp", train_images=200, epochs=4, batch_size=32, held_out=32, signal_images=64, probe=2, device="cpu"
)
PER_EPOCH = 5
SEED = 3
ORIGINAL = Cell("original", SEED, test=True, keep=(1, 2, 3))


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


def step(operation: str | Operation, when: str = "2ep", layer: str = "fc1", **more: Any) -> dict[str, Any]:
    made = OPERATIONS[operation]() if isinstance(operation, str) else operation
    name = next(name for name, kind in OPERATIONS.items() if kind is type(made))
    return {"when": when, "layer": layer, "op": name, **made.hyperparameters(), **more}


def forked(cell: Cell, epoch: int) -> Cell:
    return replace(cell, fork={"from": ORIGINAL.name, "epoch": epoch})


def same(
    cell: Cell, task: Task, settings: Settings, folder: Path, epoch: int, original: Cell = ORIGINAL
) -> dict[str, Any]:
    """Runs a cell whole and forked; both outcomes are equal, and so are the final networks. Returns the forked one."""
    run(original, task, settings, CPU, shared=folder)
    whole = run(cell, task, settings, CPU, network=folder / "whole" / "net.pt")
    reports: list[dict[str, Any]] = []
    per_epoch = steps_per_epoch(len(task.train), settings.batch_size, settings.accumulate)
    begins = forked(cell, fork.count_shared(cell, settings, per_epoch))
    outcome = run(begins, task, settings, CPU, reports.append, network=folder / "forked" / "net.pt", shared=folder)
    assert outcome["forked"] == {"from": "original-seed-3", "epoch": epoch}
    assert outcome["operations"] or outcome["checks"]
    assert without_times({k: v for k, v in outcome.items() if k != "forked"}) == without_times(whole)
    assert [record["epoch"] for record in reports] == [each["epoch"] for each in whole["epochs"]]
    one, other = (torch.load(folder / name / "net.pt", weights_only=True) for name in ("whole", "forked"))
    assert one["architecture"] == other["architecture"]
    torch.testing.assert_close(one["weights"], other["weights"], rtol=0, atol=0)
    return outcome


GENTLE = {"pcns": PCNS(0.05), "remove_dead": RemoveDead(0.6), "revive": Revive(0.6)}


@pytest.mark.parametrize(
    "operation",
    [name for name, kind in OPERATIONS.items() if name not in ("compact", "collapse") and not kind.of_blocks],
)
def test_every_operation(digits: ImageTask, operation: str, tmp_path: Path) -> None:
    cell = Cell("surgery", SEED, [step(GENTLE.get(operation, operation))], trial=0, test=True)
    outcome = same(cell, digits, SETTINGS, tmp_path, 2)
    assert outcome["epochs"][1]["redundancy"] and outcome["probe_seconds"] > 0  # that of the original


RECIPES: dict[str, dict[str, Any]] = {
    "one cycle, averaged": {"lr_schedule": "one_cycle", "ema": 0.9},
    "cosine, warmed up, sgd": {"lr_schedule": "cosine", "warmup": 0.2, "optimizer": "sgd", "clip": 1.0},
    "augmented, accumulated": {"augment": "crop_flip", "mix": "mixup", "accumulate": 2},
    "with dropout": {"model": "tests.study.training.test_fork:dropping"},
    "reset": {"optimizer_state": "reset", "batchnorm_statistics": "reset", "model": "small_cnn"},
}


def dropping(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """A network that consumes random numbers while it trains."""
    layers = {"flat": torch.nn.Flatten(), "fc1": torch.nn.Linear(64, 32), "relu": torch.nn.ReLU()}
    layers |= {"drop": torch.nn.Dropout(0.3), "fc2": torch.nn.Linear(32, classes)}
    model = torch.nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe(recipe: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, **RECIPES[recipe])
    task = build(settings)
    after = {"after": "rewarm", "after_length": "1ep"} if settings.lr_schedule != "constant" else {}
    at = 3 if settings.accumulate > 1 else 7  # in the second epoch
    steps = [step("eigen_remove", f"{at}it", **after), step("weak_expand", f"{at + 2}it")]
    same(Cell("surgery", SEED, steps, trial=0, test=True), task, settings, tmp_path, 1)


def test_conditions_and_a_pruning_schedule(digits: ImageTask, tmp_path: Path) -> None:
    waits = "redundancy(0.05) >= 0.4 from 1ep every 3it at most 2"
    steps = [step(PCNS(0.05), waits), *(step(PruneWeights(fraction=0.3), f"{at}ep", "fc2") for at in (2, 3))]
    same(Cell("surgery", SEED, steps, trial=0, test=True), digits, SETTINGS, tmp_path, 1)


def test_what_is_not_looked_at_alone_is_not_looked_at_forked(digits: ImageTask, tmp_path: Path) -> None:
    """The original's looks at redundancy are none of a random arm's."""
    outcome = same(Cell("random", SEED, [step("random_remove", "12it")], test=True), digits, SETTINGS, tmp_path, 2)
    assert not any({"redundancy", "idle", "probe_seconds"} & set(record) for record in outcome["epochs"])


def test_text(tmp_path: Path) -> None:
    settings = Settings(
        task="text", data="stdlib", model="gpt", context=16, train_images=48, epochs=3, batch_size=12,
        signal_images=16, held_out=16, probe=0, device="cpu", lr_schedule="linear",
    )  # fmt: skip
    cell = Cell("surgery", SEED, [step("min_weight", layer="blocks.1.mlp.gate")], test=True)
    same(cell, build(settings), settings, tmp_path, 2)


def test_a_stream(tmp_path: Path) -> None:
    settings = Settings(
        epochs=3, batch_size=4, held_out=4, signal_images=4, probe=0, image_size=6, validation=0.25, stream="true",
        data=f"folder:{pictures(tmp_path / 'pets', train=8, test=2)}", model="mlp", device="cpu", augment="flip",
    )  # fmt: skip
    same(Cell("surgery", SEED, [step("min_weight")], test=True), build(settings), settings, tmp_path / "x", 2)


def test_seconds_and_flops_count_as_if_it_had_trained_alone(digits: ImageTask, tmp_path: Path) -> None:
    original = run(ORIGINAL, digits, SETTINGS, CPU, shared=tmp_path)
    cell = forked(Cell("surgery", SEED, [step("min_weight", "3ep")]), 3)
    outcome = run(cell, digits, SETTINGS, CPU, shared=tmp_path)
    taken = [record["train_seconds"] for record in outcome["epochs"]]
    assert taken[:3] == [record["train_seconds"] for record in original["epochs"][:3]]
    assert outcome["train_seconds"] == pytest.approx(sum(taken))
    assert outcome["seconds"] == pytest.approx(sum(taken) + outcome["operation_seconds"])
    (operation,) = outcome["operations"]
    assert operation["epoch_seconds"] == taken[2] and operation["training_loss_before"] is not None
    assert outcome["training_flops"] < original["training_flops"] < 1.2 * outcome["training_flops"]


def test_a_forked_run_that_is_killed_goes_on_from_its_own_checkpoint(digits: ImageTask, tmp_path: Path) -> None:
    run(ORIGINAL, digits, SETTINGS, CPU, shared=tmp_path)
    cell = forked(Cell("surgery", SEED, [step("min_weight", "1ep"), step("weak_expand", "3ep")], test=True), 1)

    def die(record: dict[str, Any]) -> None:
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cell, digits, SETTINGS, CPU, die, saved=tmp_path / "own.pt", shared=tmp_path)
    for path in tmp_path.glob("*-epoch-*.pt"):
        path.unlink()
    reports: list[float] = []
    outcome = run(cell, digits, SETTINGS, CPU, lambda each: reports.append(each["epoch"]), tmp_path / "own.pt",
                  shared=tmp_path)  # fmt: skip
    assert reports == [3.0, 4.0]
    assert outcome.pop("forked")["epoch"] == 1
    assert without_times(outcome) == without_times(run(replace(cell, fork=None), digits, SETTINGS, CPU))


def test_a_missing_or_damaged_checkpoint_costs_time_alone(digits: ImageTask, tmp_path: Path) -> None:
    cell = forked(Cell("surgery", SEED, [step("min_weight", "3ep")]), 3)
    whole = run(cell, digits, SETTINGS, CPU)
    assert "forked" not in whole
    run(ORIGINAL, digits, SETTINGS, CPU, shared=tmp_path)
    first, second, third = sorted(tmp_path.glob("original-seed-3-*.pt"))
    third.write_bytes(third.read_bytes()[:1000])
    second.unlink()
    outcome = run(cell, digits, SETTINGS, CPU, shared=tmp_path)
    assert outcome.pop("forked") == {"from": "original-seed-3", "epoch": 1}  # the latest that is whole
    assert "epoch-3.pt is not a checkpoint" in outcome.pop("warnings")[0]
    assert without_times(outcome) == without_times(whole) and not third.exists()
    first.unlink()
    assert without_times(run(cell, digits, SETTINGS, CPU, shared=tmp_path)) == without_times(whole)


def test_nobody_goes_on_from_a_run_that_began_otherwise(digits: ImageTask, tmp_path: Path) -> None:
    falling = replace(SETTINGS, lr_schedule="cosine")
    run(ORIGINAL, digits, falling, CPU, shared=tmp_path)
    cell = forked(Cell("surgery", SEED, [step("min_weight", "3ep")]), 3)
    for settings, other in (
        (falling, replace(cell, epochs=6)), (falling, replace(cell, seed=4)), (SETTINGS, cell),
        (replace(falling, learning_rate=2e-3), cell),
    ):  # fmt: skip
        assert "forked" not in run(other, digits, settings, CPU, shared=tmp_path)
    # While it is constant, a longer run begins as a shorter one does.
    run(ORIGINAL, digits, SETTINGS, CPU, shared=tmp_path)
    longer = replace(cell, epochs=5)
    outcome = run(longer, digits, SETTINGS, CPU, shared=tmp_path)
    assert outcome.pop("forked")["epoch"] == 3
    assert without_times(outcome) == without_times(run(replace(longer, fork=None), digits, SETTINGS, CPU))


def test_what_the_original_was_after_an_epoch_can_be_asked_for(digits: ImageTask, tmp_path: Path) -> None:
    run(ORIGINAL, digits, SETTINGS, CPU, shared=tmp_path)
    run(Cell("original", SEED, epochs=2), digits, SETTINGS, CPU, network=tmp_path / "two.pt")
    wanted = torch.load(tmp_path / "two.pt", weights_only=True)["weights"]
    cell = forked(Cell("surgery", SEED, [step("min_weight", "3ep")]), 3)
    found = fork.weights(cell, SETTINGS, tmp_path, 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert fork.weights(cell, SETTINGS, tmp_path, 4) is None
    assert fork.weights(replace(cell, fork=None), SETTINGS, tmp_path, 2) is None


@pytest.mark.parametrize(
    ("when", "epochs"),
    [(["2ep"], 2), (["3ep", "7it"], 1), (["4it"], 0), (["redundancy(0.1) >= 0.5 from 3ep every 1ep at most 1"], 3),
     (["4ep"], 0), ([], 0)],
)  # fmt: skip
def test_what_a_cell_shares_are_the_whole_epochs_before_its_first_step(when: list[str], epochs: int) -> None:
    steps = [step("min_weight", each) for each in when]
    assert fork.count_shared(Cell("surgery", 0, steps), SETTINGS, PER_EPOCH) == epochs


def test_where_a_cell_begins_and_what_it_keeps_is_not_what_it_computes() -> None:
    cell = Cell("surgery", SEED, [step("min_weight")])
    assert cell.key(SETTINGS) == forked(cell, 2).key(SETTINGS) == replace(cell, keep=(1,)).key(SETTINGS)
    assert replace(cell, epochs=4).key(SETTINGS) == cell.key(SETTINGS) != replace(cell, epochs=5).key(SETTINGS)
    # The name that a version without these parts gave to the same cell.
    assert Cell("original", 1).key(Settings()) == "ff352305142be4e8"


def test_what_is_kept_is_bounded(digits: ImageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(ORIGINAL, digits, SETTINGS, CPU, shared=tmp_path)
    files = list(tmp_path.glob("*-epoch-*.pt"))
    assert outcome["kept"] == {"epochs": [1, 2, 3], "bytes": sum(path.stat().st_size for path in files)}
    json.dumps(outcome)
    for path in files:
        path.unlink()
    monkeypatch.setattr(fork, "MOST_BYTES", outcome["kept"]["bytes"] - 1)
    assert run(ORIGINAL, digits, SETTINGS, CPU, shared=tmp_path)["kept"]["epochs"] == [1, 2]
    monkeypatch.setattr(checkpoint, "save", lambda *given, **more: (_ for _ in ()).throw(OSError("no space left")))
    assert run(replace(ORIGINAL, seed=9), digits, SETTINGS, CPU, shared=tmp_path)["kept"]["epochs"] == []


def test_an_original_that_was_killed_keeps_the_rest(digits: ImageTask, tmp_path: Path) -> None:
    def die(record: dict[str, Any]) -> None:
        if record["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ORIGINAL, digits, SETTINGS, CPU, die, saved=tmp_path / "own.pt", shared=tmp_path)
    outcome = run(ORIGINAL, digits, SETTINGS, CPU, saved=tmp_path / "own.pt", shared=tmp_path)
    assert outcome["kept"]["epochs"] == [1, 2, 3] and len(list(tmp_path.glob("*-epoch-*.pt"))) == 3
