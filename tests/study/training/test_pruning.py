"""Pruning and compaction in whole training runs: records, checkpoints, and the sparse network started anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from network_surgery.ops import Anatomy, Compact, EigenRemove, PruneWeights, SurgeryError, describe, operate
from network_surgery.ops.network.expressed import tensors_of
from network_surgery.ops.network.masks import masks_of, parameters_of
from network_surgery.ops.schedule import Moment, Schedule, Step
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.restart import renew
from network_surgery.study.training.run import run
from tests.study.operated import without_times

CPU = torch.device("cpu")
SETTINGS = Settings(model="evci_cnn", learning_rate=3e-3, epochs=3, batch_size=64, held_out=64, signal_images=64)
LAYERS = ("conv1", "conv2", "fc1")


@pytest.fixture(scope="module")
def digits() -> ImageTask:
    return ImageTask.of(SETTINGS)


def schedule(*steps: tuple[str, str, Any]) -> list[dict[str, Any]]:
    return Schedule(tuple(Step(Moment.parse(when), layer, op) for when, layer, op in steps)).to_data()


#: A schedule in the manner of Evci's, with a score that looks at the loss, then compaction and a removal.
EVCI = schedule(
    ("1ep", "*", PruneWeights(0.5)),
    ("30it", "*", PruneWeights(0.8, score="taylor1_abs", scope="layer")),
    *(("2ep", layer, Compact(0.03)) for layer in (*LAYERS, "conv2", "conv1")),
    ("50it", "fc1", EigenRemove(0.8)),
)


def test_a_schedule_of_pruning_from_end_to_end(digits: ImageTask) -> None:
    outcome = run(Cell("surgery", 1, EVCI, test=True), digits, SETTINGS, CPU)
    records = outcome["operations"]
    assert [record["layer"] for record in records] == ["*", "*", *LAYERS, "conv2", "conv1", "fc1"]
    first, second = records[:2]
    assert first["units_before"] == first["units_after"] == 8 + 16 + 64
    assert first["flops_after"] == first["flops_before"] == second["flops_after"]
    assert first["evidence"]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert second["evidence"]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    weights = first["evidence"]["pruned"] / 0.5
    assert second["parameters_before"] - second["parameters_after"] == pytest.approx(0.3 * weights, abs=3)
    removed = [record for record in records[2:] if record["units_after"] < record["units_before"]]
    assert removed and all(record["flops_after"] < record["flops_before"] for record in removed)
    assert outcome["parameters"] == records[-1]["parameters_after"] < 0.25 * first["parameters_before"]
    assert outcome["flops"] == records[-1]["flops_after"] and outcome["test_metric"] > 0.2
    assert json.loads(json.dumps(outcome["architecture"])) == outcome["architecture"]
    assert set(outcome["architecture"]["masks"]) == {f"{layer}.weight" for layer in (*LAYERS, "fc2")}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("after", [1, 2])
def test_a_masked_network_resumes_bit_for_bit(digits: ImageTask, tmp_path: Path, optimizer: str, after: int) -> None:
    settings = Settings(**{**SETTINGS.to_data(), "optimizer": optimizer, "weight_decay": 0.01})
    cell = Cell("surgery", 0, EVCI, test=True)
    whole, reports = run(cell, digits, settings, CPU), []

    def die(epoch: dict[str, Any]) -> None:
        reports.append(epoch["parameters"])
        if len(reports) == after + 1:  # in the epoch after the last checkpoint
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cell, digits, settings, CPU, tell=die, saved=tmp_path / "cell.pt")
    torch.manual_seed(99)
    assert without_times(run(cell, digits, settings, CPU, saved=tmp_path / "cell.pt")) == without_times(whole)


def test_a_restart_trains_the_same_sparse_network_from_fresh_weights(digits: ImageTask, tmp_path: Path) -> None:
    surgery = run(Cell("surgery", 2, EVCI), digits, SETTINGS, CPU)
    cell = Cell("restart", 2, architecture=json.loads(json.dumps(surgery["architecture"])))
    restart = run(cell, digits, SETTINGS, CPU)
    assert restart["architecture"] == surgery["architecture"]
    assert (restart["parameters"], restart["flops"]) == (surgery["parameters"], surgery["flops"])
    assert restart["epochs"][0]["train_loss"] != surgery["epochs"][0]["train_loss"]
    with pytest.raises(KeyboardInterrupt):
        run(cell, digits, SETTINGS, CPU, tell=interrupted, saved=tmp_path / "cell.pt")
    resumed = run(cell, digits, SETTINGS, CPU, saved=tmp_path / "cell.pt")
    assert without_times(resumed) == without_times(restart)


def interrupted(epoch: dict[str, Any]) -> None:
    if epoch["epoch"] == 2:
        raise KeyboardInterrupt


def test_fresh_sparse_weights_have_the_spread_that_few_inputs_ask_for() -> None:
    """By fan-in, the sums that a unit makes are as large as the factory's; weights of a fixed deviation keep it."""

    def factory(fixed: bool = False) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(100, 400), nn.ReLU(), nn.Linear(400, 300), nn.ReLU(), nn.Linear(300, 10))
        for module in model if fixed else ():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.02)
        return model

    for fixed, growth in ((False, 10**0.5), (True, 1.0)):
        cut, fresh = factory(fixed), factory(fixed)
        anatomy = Anatomy(cut, torch.zeros(2, 100))
        operate(anatomy["*"], PruneWeights(0.9, scope="layer", score="random"))
        wanted, plain = describe(cut), dict(factory(fixed).named_parameters())
        renew(fresh, wanted, seed=0)
        assert describe(fresh) == wanted and parameters_of(fresh) == parameters_of(cut)
        masks = masks_of(fresh)
        for name, tensor in tensors_of(fresh):
            if name in masks:
                assert not tensor[masks[name] == 0].any()
                lives = tensor.detach()[masks[name] == 1]
                assert float(lives.std() / plain[name].std()) == pytest.approx(growth, rel=0.15)
            else:
                assert torch.equal(tensor, plain[name])


def test_a_layer_wide_operation_on_the_whole_network_is_refused(digits: ImageTask) -> None:
    cell = Cell("surgery", 0, [{"when": "1ep", "layer": "*", "op": "min_weight"}])
    with pytest.raises(SurgeryError, match="not on the whole network"):
        run(cell, digits, SETTINGS, CPU)


def test_the_parameters_that_are_told_are_those_that_live(digits: ImageTask) -> None:
    reports: list[int] = []
    run(Cell("surgery", 0, EVCI[:1]), digits, SETTINGS, CPU, tell=lambda epoch: reports.append(epoch["parameters"]))
    whole = sum(p.numel() for p in models.build("evci_cnn", digits.shape, 10).parameters())
    assert reports[0] == whole and reports[1] == reports[2] and reports[1] == pytest.approx(0.5 * whole, rel=0.03)
