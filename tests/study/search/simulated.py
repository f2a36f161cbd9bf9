"""A cluster that is not there: the product's own sources and stopping rule in virtual time, without Ray or training."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from network_surgery.study.config import Settings
from network_surgery.study.search import sampled
from network_surgery.study.search.nodes import Nodes, slots
from network_surgery.study.search.once import Once
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.search.stopping import stop
from network_surgery.study.training.cell import Cell
from tests.study.nodes import node
from tests.study.operated import operated

LAYERS = {"conv1": 32, "conv2": 64, "fc1": 96}
EPOCHS = 9
SHARE = {"CPU": 1.0}


@dataclass(frozen=True)
class Load:
    """How busy a search kept its slots: from its start to its end, and while there was a trial that could start.

    ``hours`` are virtual ones, a trial's mean length; ``epochs`` were trained; ``ended`` has results by trial.
    """

    whole: float
    steady: float
    hours: float
    epochs: int
    ended: dict[int, dict[str, Any]]


class Imagined(Nodes):
    """Nodes with this number of slots, which may grow."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def alive(self) -> list[Any]:
        return [node(CPU=self.count)]


def record(cell: Cell, epoch: int, quality: float) -> dict[str, Any]:
    """What a training run reports of an epoch: one operation in the first, from which it recovers at once."""
    done = [operated(epochs_to_recover=1)] if epoch > 1 else []
    accuracy = 1 - (1 - quality) / epoch
    so_far = {"validation_metric": accuracy, "validation_loss": 1 - accuracy, "operations": done, "spikes": []}
    return {
        "epoch": float(epoch), "validation_metric": accuracy, "validation_loss": 1 - accuracy, "parameters": 10,
        "so_far": so_far | {"seconds": float(epoch)},
    }  # fmt: skip


def search(count: int, trials: int, seed: int = 0, spread: float = 0.3, grows_to: int = 0, **changes: Any) -> Load:
    """Searches on ``count`` slots; ``spread``: of the logarithm of a trial's length; ``grows_to``: slots after a while.

    ``changes``: of the settings.
    """
    chosen = {
        "sampler": "RandomSampler",
        "objective": ("loss",),
        "epochs": EPOCHS,
        "trials": trials,
        "space": "removal",
    }
    settings = Settings(**chosen | changes)
    draw, nodes = np.random.default_rng(seed), Imagined(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled, "open_storage", lambda uri, path: optuna.storages.InMemoryStorage())
        source = Sampled(settings, LAYERS, Path("here/optuna.db"), room=lambda: nodes.room(SHARE, settings.generation))
    once = Once(source, settings, per_epoch=10, folder=Path("nowhere"))
    order, now, busy, epochs, last_start = itertools.count(), 0.0, 0.0, 0, 0.0
    events: list[tuple[float, int, Cell, int, float, float]] = []
    pending: deque[Cell] = deque()
    ended: dict[int, dict[str, Any]] = {}
    area = 0.0

    def tell(cell: Cell, result: dict[str, Any]) -> None:
        ended[int(cell.trial or 0)] = result
        once.tell(cell, result)

    while not once.finished:
        room = nodes.room(SHARE, settings.generation)
        while len(pending) + len(events) < room and (cell := once.next()) is not None:
            pending.append(cell)
        for twin, result in once.copies():
            tell(twin, result)
        while pending and len(events) < slots(nodes, SHARE):
            length = float(draw.lognormal(-spread * spread / 2, spread)) / settings.epochs
            heapq.heappush(events, (now + length, next(order), pending.popleft(), 1, length, float(draw.random())))
            last_start, steady = now, (busy, area)
        if not events:
            continue
        then, _, cell, epoch, length, quality = heapq.heappop(events)
        area += (then - now) * slots(nodes, SHARE)
        busy, now = busy + (then - now) * (len(events) + 1), then
        epochs += 1
        if grows_to and now > 1:
            nodes.count = grows_to
        news = record(cell, epoch, quality)
        if not once.epoch(cell, news):
            tell(cell, stop(news))
        elif epoch == settings.epochs:
            tell(cell, {**news["so_far"], "parameters": 10, "flops": 1, "training_flops": 1, "epochs": []})
        else:
            heapq.heappush(events, (now + length, next(order), cell, epoch + 1, length, quality))
    return Load(busy / area, steady[0] / steady[1] if last_start else 1.0, now, epochs, ended)
