"""Checkpoints that describe their own architecture and load without pickle (``weights_only=True``).

A checkpoint holds the architecture, the weights and their average, the optimizer's state, what operations did to the
learning rate, the random state, the position in training and the callbacks' states (the theatre's: how far the schedule
is, and its records). A run that resumes from one equals an uninterrupted run bit for bit on a CPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from network_surgery.ops import SurgeryError, adopt, describe
from network_surgery.ops.network.architecture import fill, passing
from network_surgery.study.errors import StudyError
from network_surgery.study.training.records import renamed
from network_surgery.study.training.trainer import Callback, Trainer

FORMAT = 4


def save(trainer: Trainer, path: Path) -> None:
    """Writes the trainer's state at the end of an epoch; the file is whole or not there."""
    device = trainer.device
    random = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    content = {
        "format": FORMAT,
        "architecture": describe(trainer.model),
        "weights": {**trainer.model.state_dict(), **passing(trainer.model)},
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "rate": trainer.rate.state(),
        "average": _average(trainer),
        "random": torch.get_rng_state(),
        "cuda_random": random,  # of any device; earlier versions had this one alone
        "epoch": trainer.epoch,
        "iteration": trainer.iteration,
        "history": trainer.history,
        "callbacks": [callback.state() for callback in trainer.callbacks],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load(trainer: Trainer, path: Path) -> None:
    """Brings a freshly made trainer to where the checkpoint was written, its network to the sizes it had then.

    Raises:
        StudyError: the file is no checkpoint of this network.
    """
    try:
        # On the host: a step counter that comes back on a GPU makes each step of Adam wait for it.
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise StudyError(f"{path} is not a checkpoint: {(str(error).splitlines() or ['it is empty'])[0]}") from error
    try:
        if content["format"] != FORMAT:
            raise StudyError(f"{path} has the format {content['format']}, this version reads {FORMAT}")
        adopt(trainer.model, content["architecture"])
        fill(trainer.model, content["weights"], content["architecture"])
        if trainer.average is not None:
            adopt(trainer.average.module, content["architecture"])
            fill(trainer.average.module, content["average"]["weights"], content["architecture"])
            trainer.average.n_averaged.fill_(content["average"]["steps"])
    except (SurgeryError, KeyError, RuntimeError) as error:
        raise StudyError(f"{path} is not a checkpoint of this network: {str(error).splitlines()[0]}") from error
    for network in {trainer.model, trainer.final}:
        trainer.compute.place(network, trainer.device)
    trainer.resized()
    trainer.optimizer.load_state_dict(content["optimizer"])
    if content.get("scaler"):  # of fp16 alone
        trainer.scaler.load_state_dict(content["scaler"])
    trainer.rate.restore(content.get("rate", []))  # an older one knows of none
    trainer.epoch, trainer.iteration = content["epoch"], content["iteration"]
    trainer.history = [renamed(record) for record in content["history"]]  # of an older version it has other names
    for callback, state in zip(trainer.callbacks, content["callbacks"], strict=True):
        callback.restore(state)
    torch.set_rng_state(content["random"])
    if content["cuda_random"] is not None and trainer.device.type != "cpu":
        torch.get_device_module(trainer.device).set_rng_state(content["cuda_random"], trainer.device)


def _average(trainer: Trainer) -> dict[str, Any] | None:
    """The average of the weights, where there is one, and the number of steps that it has seen."""
    if trainer.average is None:
        return None
    network = trainer.average.module
    weights = {**network.state_dict(), **passing(network)}
    return {"weights": weights, "steps": int(trainer.average.n_averaged)}


class Checkpointer(Callback):
    """Saves after every ``every``-th epoch."""

    def __init__(self, path: Path, every: int = 1) -> None:
        self.path, self.every = path, every

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        if trainer.epoch % self.every == 0:
            save(trainer, self.path)
