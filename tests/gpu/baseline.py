"""A strong baseline on the card: the preset ``cifar`` on real images, the same at half the width, and surgery to it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

import torch

from tests.gpu.card import Card, Row, precision

#: Seconds that a run may train; the preset's epochs, or fewer where they take longer.
SECONDS = 150
#: What is left for the end of a run: its final evaluation, and the file.
REST = 15
#: Epochs of the longer runs.
LONG = 60


def baseline(card: Card) -> Iterator[Row]:
    """ResNet-18 by the preset's recipe: accuracy, seconds; half the width restarted, and by surgery at mid-training."""
    try:
        from network_surgery.study.compose import compose
        from network_surgery.study.task import build
    except ImportError as error:
        yield {"note": f"not tried: the trainer cannot be imported ({error})"}
        return
    if not card.data:
        yield {"note": "not tried: give --data folder:PATH"}
        return
    precision(matmul=False, convolutions=True)
    small: dict[str, Any] = {"epochs": 2, "batch_size": 16, "model": "resnet18_quarter", "held_out": 16}
    settings = compose("cifar", None, {"data": card.data, "signal_images": 512} | (small if card.small else {}))
    start = time.perf_counter()
    task = build(settings)
    sets = {name: len(getattr(task, name)) for name in ("train", "validation", "test")}
    yield {"run": "images", "decoded in s": round(time.perf_counter() - start, 1), **sets}
    epoch = _epoch_seconds(card, task, settings)
    epochs = settings.epochs if card.small else max(2, min(settings.epochs, int(SECONDS / epoch)))
    settings = dataclasses.replace(settings, epochs=epochs)
    yield {"run": "an epoch alone", "s / epoch": round(epoch, 2), "epochs chosen": epochs}
    whole: Row | None = None
    for name in ("original", "restart", "surgery"):
        needed = epochs * epoch + REST
        if card.left < needed and not card.small:
            yield {"run": name, "note": f"not tried: {card.left:.0f} s left, about {needed:.0f} needed"}
            continue
        row = _trained(card, task, settings, name)
        whole = whole or row
        yield row | {"seconds / original": round(row["seconds"] / whole["seconds"], 3)}


def strong(card: Card) -> Iterator[Row]:
    """VGG16-BN and ResNet-18 by the preset's recipe for longer: what the recipe reaches on these images."""
    from network_surgery.study.compose import compose
    from network_surgery.study.task import build

    if not card.data:
        yield {"note": "not tried: give --data folder:PATH"}
        return
    precision(matmul=False, convolutions=True)
    small: dict[str, Any] = {"batch_size": 16, "held_out": 16} if card.small else {}
    for model in ("resnet18_quarter", "vgg16_quarter") if card.small else ("vgg16", "resnet18"):
        epochs = 2 if card.small else LONG
        settings = compose("cifar", None, {"data": card.data, "model": model, "epochs": epochs} | small)
        yield {"model": model} | _trained(card, build(settings), settings, "original")


def _epoch_seconds(card: Card, task: Any, settings: Any) -> float:
    """Seconds of the second epoch; the first one chooses kernels."""
    from network_surgery.study.training.cell import Cell
    from network_surgery.study.training.run import run

    short = dataclasses.replace(settings, epochs=2, probe=0)
    outcome = run(Cell("search", 0), task, short, card.device)
    return float(outcome["epochs"][-1]["train_seconds"])


def _trained(card: Card, task: Any, settings: Any, name: str) -> Row:
    """One arm: accuracies in percent, seconds of training, of an epoch and of operations, sizes."""
    from network_surgery.ops import Anatomy, MinWeight, describe, operate
    from network_surgery.study.task.check import fresh
    from network_surgery.study.task.samples import Batches
    from network_surgery.study.training.cell import Cell
    from network_surgery.study.training.run import run

    schedule, architecture = [], None
    if name != "original":
        model = fresh(task)
        anatomy = Anatomy(model, Batches(task.train.thinned(2), torch.device("cpu")).take(slice(0, 2))[0])
        layers = list(anatomy)
    if name == "surgery":
        halved = {"when": f"{max(1, settings.epochs // 2)}ep", "op": "min_weight", "keep": 0.5}
        schedule = [halved | {"layer": layer} for layer in layers]
    elif name == "restart":
        for layer in layers:
            operate(anatomy[layer], MinWeight(0.5))
        architecture = describe(model)

    def tell(record: dict[str, Any]) -> None:
        found = {key: round(record[key], 4) for key in ("epoch", "train_loss", "validation_metric", "train_seconds")}
        print(f"  {name} {json.dumps(found)}", flush=True)

    start = time.perf_counter()
    cell = Cell(name, 0, schedule, architecture, test=True)
    outcome = run(cell, task, dataclasses.replace(settings, probe=0), card.device, tell)
    epochs = sorted(each["train_seconds"] for each in outcome["epochs"])
    return {
        "run": name, "epochs": len(epochs), "test %": 100 * outcome["test_metric"],
        "validation %": 100 * outcome["validation_metric"], "train %": 100 * outcome["train_metric"],
        "s / epoch": round(epochs[len(epochs) // 2], 3), "seconds": round(outcome["seconds"], 2),
        "operating": round(outcome["operation_seconds"], 2), "wall": round(time.perf_counter() - start, 1),
        "parameters": outcome["parameters"], "MFLOPs": round(outcome["flops"] / 1e6, 1),
        "validation by epoch": [round(100 * each["validation_metric"], 1) for each in outcome["epochs"]],
    }  # fmt: skip
