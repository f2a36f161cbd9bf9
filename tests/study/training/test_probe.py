"""The redundancy probe: right numbers, few images, and nothing that training could notice."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from network_surgery.ops import Anatomy, MinWeight, Moment, Schedule, Step, WeakExpand, operate
from network_surgery.ops.signals.signals import SAMPLES_PER_UNIT
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training import theatre
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.probe import PERCENT, SHARE, count_needed, idle
from network_surgery.study.training.run import run

CPU = torch.device("cpu")
SETTINGS = Settings(epochs=3, batch_size=64, held_out=64, signal_images=64, probe=1)
SHRINK = Schedule((Step(Moment(1), "conv2", MinWeight(0.5)), Step(Moment(2), "fc1", WeakExpand(0.5)))).to_data()
COUNTS = [f"units_{part}" for part in PERCENT]


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


def trained(outcome: dict[str, Any]) -> Any:
    """What training computed: everything but what the probe adds and seconds."""
    epochs = [
        {k: v for k, v in epoch.items() if k not in ("redundancy", "idle") and "seconds" not in k}
        for epoch in outcome["epochs"]
    ]
    operations = [
        {k: v for k, v in operation.items() if "seconds" not in k and k != "interruptibility"}
        for operation in outcome["operations"]
    ]
    return epochs, operations, outcome["architecture"], outcome["validation_loss"]


@pytest.mark.parametrize("cell", [Cell("original", 1), Cell("surgery", 1, SHRINK)], ids=lambda cell: cell.arm)
def test_training_does_not_notice_it(digits: ImageTask, cell: Cell) -> None:
    looked, plain = (run(cell, digits, replace(SETTINGS, probe=every), CPU) for every in (1, 0))
    assert trained(looked) == trained(plain)
    assert looked["probe_seconds"] > 0 == plain["probe_seconds"]
    assert looked["seconds"] == looked["train_seconds"] + looked["operation_seconds"]
    assert (looked["operation_seconds"] > 0) == (cell.arm == "surgery")  # the original pays no discovery


def test_the_records_say_what_is_needed_of_every_layer(digits: ImageTask) -> None:
    reports: list[dict[str, Any]] = []
    outcome = run(Cell("surgery", 1, SHRINK), digits, SETTINGS, CPU, reports.append)
    json.dumps(outcome)  # plain data
    assert [epoch["redundancy"] for epoch in reports] == [epoch["redundancy"] for epoch in outcome["epochs"]]
    sizes = [[found[layer]["units"] for layer in found] for found in (epoch["redundancy"] for epoch in reports)]
    assert sizes == [[32, 64, 96], [32, 32, 96], [32, 32, 144]]
    images = math.ceil(SHARE * len(digits.train))
    for epoch in reports:
        for found in epoch["redundancy"].values():
            counts = [found[name] for name in COUNTS]
            assert counts[0] >= 1 and counts == sorted(counts) and counts[-1] <= min(found["units"], found["samples"])
        assert epoch["redundancy"]["fc1"]["samples"] == images
    before, after = (reports[epoch]["redundancy"]["fc1"]["units_99"] for epoch in (1, 2))
    assert after <= before + 5  # half as many units again, all of them copies


@pytest.mark.parametrize(
    ("arm", "every", "epochs"),
    [("original", 2, [2.0]), ("surgery", 3, [3.0]), ("original", 0, []), ("search", 1, []), ("restart", 1, [])],
)
def test_it_looks_after_every_so_many_epochs_of_some_arms(
    digits: ImageTask, arm: str, every: int, epochs: list[float]
) -> None:
    outcome = run(Cell(arm, 0), digits.changed(network="mlp"), replace(SETTINGS, probe=every), CPU)
    assert [epoch["epoch"] for epoch in outcome["epochs"] if "redundancy" in epoch] == epochs
    assert [epoch["epoch"] for epoch in outcome["epochs"] if "probe_seconds" in epoch] == epochs


def test_a_resumed_run_has_looked_as_often(digits: ImageTask, tmp_path: Path) -> None:
    cell = Cell("surgery", 0, SHRINK)
    whole = run(cell, digits, SETTINGS, CPU)

    def die(epoch: dict[str, Any]) -> None:
        if epoch["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cell, digits, SETTINGS, CPU, tell=die, saved=tmp_path / "cell.pt")
    resumed = run(cell, digits, SETTINGS, CPU, saved=tmp_path / "cell.pt")
    for kind in ("redundancy", "idle"):
        assert [epoch[kind] for epoch in resumed["epochs"]] == [epoch[kind] for epoch in whole["epochs"]]
    assert trained(resumed) == trained(whole)


def test_the_anatomy_is_taken_once(digits: ImageTask, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def take(*args: Any) -> Anatomy:
        taken.append(args)
        return Anatomy(*args)

    monkeypatch.setattr(theatre, "Anatomy", take)
    for cell in (Cell("surgery", 0, SHRINK), Cell("original", 0)):
        taken.clear()
        run(cell, digits, SETTINGS, CPU)
        assert len(taken) == 1


def test_the_counts_agree_with_singular_values() -> None:
    torch.manual_seed(0)
    model = models.build("mlp", (1, 8, 8), 10).eval()
    batches = torch.randn(8, 100, 1, 8, 8).unbind()
    found = count_needed(model, batches, list(Anatomy(model, batches[0][:2]).values()))
    with torch.no_grad():
        inputs = torch.cat(batches).double()
        model.double()
        outputs = {"fc1": model[:3](inputs), "fc2": model[:5](inputs)}
    # 128 units want 1,280 rows, 64 units 640: fc2 is left out of the eighth batch.
    assert {layer: entry["samples"] for layer, entry in found.items()} == {"fc1": 800, "fc2": 700}
    for layer, seen in outputs.items():
        seen = seen[: found[layer]["samples"]]
        values = torch.linalg.svdvals(seen - seen.mean(dim=1, keepdim=True)).square()
        shares = values.cumsum(0) / values.sum()
        counts = [int((shares < part / 100).sum()) + 1 for part in PERCENT]
        assert [found[layer][name] for name in COUNTS] == pytest.approx(counts, abs=1)  # the network was in float32


def test_copies_are_redundant_and_enough_is_enough() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 40), nn.ReLU(), nn.Linear(40, 5)
    )
    batches = torch.randn(5, 64, 1, 8, 8).unbind()
    anatomy = Anatomy(model, batches[0][:2])
    before = count_needed(model, batches, list(anatomy.values()))
    operate(anatomy["3"], WeakExpand(1.0))
    after = count_needed(model, batches, list(anatomy.values()))
    assert after["3"]["units"] == 80 and before["3"]["units"] == 40
    assert after["3"]["units_99"] <= before["3"]["units_99"] + 1  # copies; the mean across units is not quite the same
    assert before["0"]["samples"] == 64 * 36 >= SAMPLES_PER_UNIT * 4  # one batch of many positions
    assert after["3"]["samples"] == 5 * 64 < SAMPLES_PER_UNIT * 80


def test_a_layer_that_is_not_finite_is_left_out() -> None:
    model = models.build("mlp", (1, 8, 8), 10)
    images = torch.randn(32, 1, 8, 8)
    layers = list(Anatomy(model, images[:2]).values())
    model.fc2.bias.data[3] = math.inf
    assert list(count_needed(model, [images, images], layers)) == ["fc1"]


def test_dead_and_frozen_units_are_counted_at_the_threshold(digits: ImageTask) -> None:
    outcome = run(Cell("surgery", 1, SHRINK), digits, SETTINGS, CPU)
    sizes = [[found["units"] for found in epoch["idle"].values()] for epoch in outcome["epochs"]]
    assert sizes == [[32, 64, 96], [32, 32, 96], [32, 32, 144]]
    many = run(Cell("surgery", 1, SHRINK), digits, replace(SETTINGS, dead_threshold=1.0), CPU)
    for few, more in zip(outcome["epochs"], many["epochs"], strict=True):
        for layer, found in few["idle"].items():
            assert 0 <= found["dead"] <= more["idle"][layer]["dead"] < found["units"]
            assert 0 <= found["frozen"] <= more["idle"][layer]["frozen"] < found["units"]
    assert sum(found["dead"] for found in many["epochs"][0]["idle"].values()) > 50  # about half are below the mean


def test_units_that_are_killed_are_counted_and_what_cannot_be_seen_is_left_out() -> None:
    model = models.build("mlp", (1, 8, 8), 10)
    images, classes = torch.randn(32, 1, 8, 8), torch.arange(32) % 10
    layers = list(Anatomy(model, images[:2]).values())
    model.fc2.weight.data[:, :40] = 0
    found = idle(model, images, classes, layers, 0.001)
    assert found["fc1"] == {"units": 128, "dead": 40, "frozen": 40} and found["fc2"]["dead"] == 0
    assert idle(nn.Sequential(model, nn.Unflatten(1, (2, 5))), images, classes, layers, 0.001) == {}
