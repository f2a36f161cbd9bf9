"""A run of two processes is that of one to rounding, before and after every operation, and the processes agree."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from network_surgery.ops import SurgeryError
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.task.images import ImageTask
from network_surgery.study.training import ranks as module
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.ranks import Ranks
from network_surgery.study.training.run import run
from network_surgery.study.training.trainer import Callback, Trainer

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
CPU = torch.device("cpu")
#: 93 samples are trained on, in batches of 31: of 16 and 15 on the two ranks.
SETTINGS = Settings(
    model="small_cnn", train_images=124, batch_size=31, epochs=3, optimizer="sgd", learning_rate=0.05, held_out=31,
    signal_images=32, probe=0,
)  # fmt: skip


def connect(rank: int, meeting: str) -> Ranks:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    return Ranks(rank, 2)


def serve(meeting: str, pipe: Connection) -> None:
    """The second rank: does what it is sent, and sends what came of it."""
    import tests  # noqa: F401  # before anything of the project

    ranks = connect(1, meeting)
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            try:
                pipe.send(function(ranks, *arguments))
            except Exception as error:
                pipe.send(error)


class Pair:
    """This process and another one, which train together."""

    def __init__(self, ranks: Ranks, pipe: Connection) -> None:
        self._ranks, self._pipe = ranks, pipe

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
        """What a function of this file returns, or raises, on either."""
        self._pipe.send((function, arguments))
        try:
            here: Any = function(self._ranks, *arguments)
        except Exception as error:
            here = error
        assert self._pipe.poll(60), "the other rank does not come to an end"
        return here, self._pipe.recv()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    meeting = str(tmp_path_factory.mktemp("ranks") / "meeting")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=serve, args=(meeting, there), daemon=True)
    other.start()
    try:
        yield Pair(connect(0, meeting), here)
    finally:
        dist.destroy_process_group()
        other.kill()
        other.join()


class Notes(Callback):
    """Keeps the weights and the digest of everything after each operation, and which samples are trained on."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def after_step(self, trainer: Trainer, loss: torch.Tensor) -> None:
        tensors = module._tensors((trainer.model, *trainer.averages), trainer.optimizer)
        self.digests.append(module._digest(module._bytes(each) for each in tensors.values()))
        self.weights.append({name: each.detach().clone() for name, each in trainer.model.state_dict().items()})


def train(
    ranks: Ranks, schedule: list[dict[str, Any]], settings: Settings = SETTINGS, saved: Path | None = None,
    stop: int | None = None, **more: Any,
) -> tuple[dict[str, Any], Notes]:  # fmt: skip
    """The outcome of a run and notes of it; only the first rank keeps ``saved``. ``stop``: raises in that epoch."""
    notes, cell = Notes(), Cell("surgery", 0, schedule, test=True, **more)
    saved = saved if ranks.first else None

    class Stop(Callback):
        def before_step(self, trainer: Trainer) -> None:
            if stop is not None and trainer.epoch == stop:
                raise InterruptedError

    outcome = run(cell, ImageTask.of(settings), settings, CPU, saved=saved, also=[notes, Stop()], ranks=ranks)
    return outcome, notes


MIN = {"when": "1ep", "layer": "conv1", "op": "min_weight", "keep": 0.5}
SCHEDULES: dict[str, list[dict[str, Any]]] = {
    "remove": [
        MIN | {"repair": ["bias", "batchnorm"]},
        {"when": "4it", "layer": "fc1", "op": "eigen_remove", "keep": 0.5},
    ],
    "expand": [
        {"when": "2it", "layer": "conv2", "op": "weak_expand", "grow": 0.25},
        {"when": "5it", "layer": "fc1", "op": "zero_expand", "grow": 0.25},
    ],
    "a condition": [
        {"when": "pcns(gain=0.05, every=1ep, variance_threshold=0.9)", "layer": "fc1", "op": "pcns",
         "variance_threshold": 0.9},
    ],
    "a budget": [
        {"when": "1ep", "layer": "*", "op": "mean_replace", "budget": {"parameters": 0.5}, "allocate": "global"},
    ],
    "masks": [{"when": "1ep", "layer": "fc1", "op": "prune_weights", "keep": 0.5}],
}  # fmt: skip


def numbers(outcome: dict[str, Any]) -> dict[str, Any]:
    """What of an outcome is the same on any machine."""
    epochs = ("train_loss", "first_loss", "last_loss", "validation_loss", "validation_metric", "learning_rate")
    operations = (
        "loss_before", "loss_after", "metric_before", "metric_after", "training_loss_before", "training_loss_after",
        "units_before", "units_after", "parameters_after", "epochs_to_recover",
    )  # fmt: skip
    return {
        "epochs": [{name: each[name] for name in epochs} for each in outcome["epochs"]],
        "operations": [{name: each[name] for name in operations} for each in outcome["operations"]],
        "gains": [each["gain"] for each in outcome["checks"]],
        **{name: outcome[name] for name in ("test_metric", "test_loss", "train_metric", "training_flops", "steps")},
    }


@pytest.mark.parametrize("name", SCHEDULES)
def test_two_ranks_are_one_to_rounding(pair: Pair, name: str) -> None:
    (here, mine), (there, theirs) = pair(train, SCHEDULES[name])
    alone, notes = train(Ranks(), SCHEDULES[name])
    assert alone["operations"] or name == "a condition"
    assert mine.digests == theirs.digests
    torch.testing.assert_close(numbers(here), numbers(alone), rtol=1e-3, atol=1e-4)
    assert numbers(here) == numbers(there)
    for found, right in zip(mine.weights, notes.weights, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-4)
