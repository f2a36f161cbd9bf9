"""Studies whose training runs never happened: a folder of any size, its ledger written line by line as a study writes
it.

Schedules are drawn from a search space as Optuna draws them at first; what becomes of a network is a small made-up
model: a removal costs accuracy, raises the loss for some epochs and saves time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna

from network_surgery.search_spaces import SPACES
from network_surgery.study.arms import rivals
from network_surgery.study.config import Settings
from network_surgery.study.search.comparing import choose
from network_surgery.study.store.folder import Folder, Record
from network_surgery.study.task.metric import Metric
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import OperationRecord, spikes

PER_EPOCH = 34
PARAMETERS = 800  # for each unit


def study(path: Path, layers: Mapping[str, int], **settings: Any) -> Folder:
    """A finished study of these settings: every trial, and the chosen ones compared over all seeds, without a race."""
    folder = Folder.make(path, Settings(**{"racing": 1} | settings), layers=dict(layers))
    with (folder.path / "cells.jsonl").open("w") as ledger:
        for cell, result in trainings(folder):
            ledger.write(json.dumps({"cell": asdict(cell), "result": result}) + "\n")
    return folder


def mirrored(folder: Folder, path: Path, metric: Metric, turn: Callable[[float], float], **settings: Any) -> Folder:
    """The same study, had its task another metric: every value of the metric is turned into one of that."""
    other = Folder.make(path, replace(folder.settings, **settings), layers=dict(folder.layers), metric=metric)
    for record in folder.records():
        other.ended(record.cell, turned(record.result, turn))
    return other


def turned(outcome: Mapping[str, Any], turn: Callable[[float], float]) -> dict[str, Any]:
    """An outcome, an epoch or an operation with other values of the metric."""
    found = {
        name: turn(value) if "metric" in name and isinstance(value, float) else value for name, value in outcome.items()
    }
    return found | {part: [turned(each, turn) for each in found[part]] for part in ("epochs", "operations")
                    if part in found}  # fmt: skip


def trainings(folder: Folder) -> list[tuple[Cell, dict[str, Any]]]:
    """Every cell of a study and how it ended, the search first; one trial in fifty fails."""
    settings, found = folder.settings, []
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=settings.seed))
    sized = {name: SimpleNamespace(units=units) for name, units in folder.layers.items()}
    for number in range(settings.trials):
        trial = study.ask()
        schedule = SPACES[settings.space](trial, sized, settings.epochs).to_data()
        cell = Cell("search", settings.seed, schedule, trial=number, params=dict(trial.params))
        failed = {"failure": "the loss became nan", "device": "cpu"}
        found.append((cell, failed if number % 50 == 49 else outcome(cell, folder)))
    chosen = [record.cell for record in choose([Record(cell, result) for cell, result in found], settings)]
    for seed in range(settings.seed + 1, settings.seed + 1 + settings.seeds):
        original = Cell("original", seed, test=True)
        found.append((original, outcome(original, folder)))
        for cell in chosen:
            surgery = Cell("surgery", seed, cell.schedule, trial=cell.trial, params=cell.params, test=True)
            ended = outcome(surgery, folder)
            found.append((surgery, ended))
            found += [(rival, outcome(rival, folder)) for rival in rivals(surgery, ended, settings)]
    return found


def outcome(cell: Cell, folder: Folder) -> dict[str, Any]:
    """What a training run of this cell would have reported (see ``study.training.run``)."""
    random = np.random.default_rng([cell.seed, cell.trial or 0, len(cell.arm)])
    epochs = cell.epochs or folder.settings.epochs
    units = dict(folder.layers if cell.architecture is None else cell.architecture["shapes"])
    operations: list[OperationRecord] = []
    history, jump = [], 1.0
    for epoch in range(epochs):
        loss = (2.3 * 0.6**epoch + 0.05) * jump
        for step in [step for step in cell.schedule if step["when"] in (f"{epoch}ep", f"{PER_EPOCH * epoch}it")]:
            operations.append(_operation(step, units, epoch, loss, random))
            loss = operations[-1].loss_after
            jump = max(jump, operations[-1].spike_factor)
        jump = 1 + (jump - 1) * 0.3
        seconds = 0.02 + 0.1 * sum(units.values()) / sum(folder.layers.values()) + 0.005 * random.random()
        after = 2.3 * 0.6 ** (epoch + 1) + 0.05
        history.append({
            "epoch": epoch + 1.0, "train_loss": after, "train_seconds": seconds, "first_loss": loss, "last_loss": after,
            "validation_loss": after * jump,
            "validation_metric": 1 / (1 + after * jump * (1 + 0.1 * random.random())),
        })  # fmt: skip
        if cell.arm in ("original", "surgery") and folder.settings.probe and not (epoch + 1) % folder.settings.probe:
            history[-1]["redundancy"] = {
                name: {"units": now, "samples": 40 * now, "units_90": now // 4, "units_99": 1 + now // 2}
                for name, now in units.items()
            }  # fmt: skip
    for operation in operations:
        back = [e["epoch"] for e in history if e["validation_loss"] <= operation.loss_before]
        later = [epoch for epoch in back if epoch > operation.epoch]
        operation.epochs_to_recover = int(later[0] - operation.epoch) if later else None
    spent = sum(each.seconds for each in operations)
    found = {
        "validation_metric": history[-1]["validation_metric"], "validation_loss": history[-1]["validation_loss"],
        "parameters": PARAMETERS * sum(units.values()), "flops": 30 * PARAMETERS * sum(units.values()),
        "training_flops": 3 * 32 * PER_EPOCH * epochs * 30 * PARAMETERS * sum(units.values()),
        "train_seconds": sum(e["train_seconds"] for e in history), "operation_seconds": spent,
        "seconds": spent + sum(e["train_seconds"] for e in history), "probe_seconds": 0.0,
        "spikes": [each.to_data() for each in spikes(operations)], "steps": PER_EPOCH * epochs, "epochs": history,
        "operations": [each.to_data() for each in operations],
        "checks": [], "architecture": {"shapes": units, "numbers": {}}, "device": "cpu",
    }  # fmt: skip
    if cell.test:
        found |= {"test_metric": found["validation_metric"] - 0.01, "test_loss": 0.1}
        found |= {"latency_seconds": {"1": 0.001, "256": 0.03}, "peak_memory": None}
    return found


def _operation(
    step: Mapping[str, Any], units: dict[str, int], epoch: int, loss: float, random: np.random.Generator
) -> OperationRecord:
    """Does a step to ``units`` and returns its record."""
    layer, before = step["layer"], sum(units.values())
    old = before if layer == "*" else units[layer]
    factor = step.get("keep") or 1 + (step.get("grow") or 0)
    new = old if layer == "*" else max(2, round(old * factor))
    if layer != "*":
        units[layer] = new
    after, spike = sum(units.values()), 1 + abs(1 - new / old) * random.lognormal(0, 0.5)
    names = {key: value for key, value in step.items() if key not in ("when", "layer", "op", "repair")}
    return OperationRecord(
        when=step["when"], epoch=float(epoch), iteration=PER_EPOCH * epoch, layer=layer,
        operation=f"{step['op']}({names})", repair=step.get("repair", []), units_before=old,
        units_after=new, parameters_before=PARAMETERS * before, parameters_after=PARAMETERS * after,
        flops_before=30 * PARAMETERS * before, flops_after=30 * PARAMETERS * after, predicted_error=0.1,
        loss_before=loss, loss_after=loss * spike, metric_before=0.9, metric_after=0.8,
        training_loss_before=loss, training_loss_after=loss * spike,
        seconds=0.002 * random.lognormal(0, 1), epoch_seconds=0.12,
    )  # fmt: skip
