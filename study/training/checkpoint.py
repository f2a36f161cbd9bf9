"""Checkpoints that describe their own architecture and load without pickle (``weights_only=True``).

A checkpoint holds the architecture, the weights and their average, the optimizer's state, what operations did to the
learning rate, the random state, the position in training and the callbacks' states (the theatre's: how far the schedule
is, and its records) by their names. A run that resumes from one equals an uninterrupted run bit for bit on a CPU; so
does one that another run's checkpoint is loaded into, with callbacks of its own (``study.training.fork``).
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from network_surgery.ops import SurgeryError, adopt, describe
from network_surgery.ops.network.architecture import fill, passing
from network_surgery.study.errors import StudyError
from network_surgery.study.training.records import renamed
from network_surgery.study.training.trainer import Callback, Trainer

FORMAT = 5
#: One in which callbacks' states are a list, in the order of the callbacks.
LISTED = 4


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
        "forked": trainer.forked,
        "peak_memory": peak_memory(trainer),
        "channels_last": trainer.compute.channels_last,  # where that was measured, another run may measure otherwise
        "callbacks": {name: callback.state() for name, callback in _named(trainer).items()},
        "adds": {name: sorted(callback.adds) for name, callback in _named(trainer).items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load(trainer: Trainer, path: Path, fork: bool = False) -> None:
    """Brings a freshly made trainer to where the checkpoint was written, its network to the sizes it had then.

    ``fork``: the checkpoint is of another run, and callbacks take of it what is theirs, too (``Callback.fork``). One
    that the other run did not have begins anew; what one that this run does not have has added to history is left out.

    Raises:
        StudyError: the file is no checkpoint of this network.
    """
    try:
        # On the host: a step counter that comes back on a GPU makes each step of Adam wait for it.
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise StudyError(f"{path} is not a checkpoint: {(str(error).splitlines() or ['it is empty'])[0]}") from error
    try:
        if content["format"] not in (FORMAT, LISTED):
            raise StudyError(f"{path} has the format {content['format']}, this version reads {FORMAT}")
        adopt(trainer.model, content["architecture"], trainer.optimizer)
        fill(trainer.model, content["weights"], content["architecture"])
        if trainer.average is not None:
            adopt(trainer.average.module, content["architecture"])
            fill(trainer.average.module, content["average"]["weights"], content["architecture"])
            trainer.average.n_averaged.fill_(content["average"]["steps"])
    except (SurgeryError, KeyError, RuntimeError) as error:
        raise StudyError(f"{path} is not a checkpoint of this network: {str(error).splitlines()[0]}") from error
    if "channels_last" in content:  # an older one does not know
        trainer.compute = replace(trainer.compute, channels_last=content["channels_last"])
        trainer.layout = {**trainer.layout, "channels_last": content["channels_last"]} if trainer.layout else {}
    for network in {trainer.model, trainer.final}:
        trainer.compute.place(network, trainer.device)
    trainer.resized()
    trainer.optimizer.load_state_dict(content["optimizer"])
    if content.get("scaler"):  # of fp16 alone
        trainer.scaler.load_state_dict(content["scaler"])
    trainer.rate.restore(content.get("rate", []))  # an older one knows of none
    trainer.epoch, trainer.iteration = content["epoch"], content["iteration"]
    trainer.history = [renamed(record) for record in content["history"]]  # of an older version it has other names
    trainer.forked, trainer.peak_memory = content.get("forked"), content.get("peak_memory")
    callbacks, states = _named(trainer), content["callbacks"]
    states = states if content["format"] == FORMAT else dict(zip(callbacks, states, strict=True))
    if fork:
        foreign = {key for name, added in content["adds"].items() if name not in callbacks for key in added}
        trainer.history = [{k: v for k, v in record.items() if k not in foreign} for record in trainer.history]
    for name, callback in callbacks.items():
        if name in states:
            callback.fork(states[name]) if fork else callback.restore(states[name])
    torch.set_rng_state(content["random"])
    if content["cuda_random"] is not None and trainer.device.type != "cpu":
        torch.get_device_module(trainer.device).set_rng_state(content["cuda_random"], trainer.device)


def peak_memory(trainer: Trainer) -> int | None:
    """The most bytes that the GPU held for this run, whatever process began it; None on a CPU."""
    if trainer.device.type != "cuda":
        return None
    return max(torch.cuda.max_memory_allocated(trainer.device), trainer.peak_memory or 0)


def _named(trainer: Trainer) -> dict[str, Callback]:
    """The callbacks by the names of their classes, the second of a class with a number."""
    found: dict[str, Callback] = {}
    for callback in trainer.callbacks:
        name, same = type(callback).__name__, sum(type(each) is type(callback) for each in found.values())
        found[f"{name} {same + 1}" if same else name] = callback
    return found


def _average(trainer: Trainer) -> dict[str, Any] | None:
    """The average of the weights, where there is one, and the number of steps that it has seen."""
    if trainer.average is None:
        return None
    network = trainer.average.module
    weights = {**network.state_dict(), **passing(network)}
    return {"weights": weights, "steps": int(trainer.average.n_averaged)}


class Checkpointer(Callback):
    """Saves after an epoch, but a checkpoint that is large for its disk takes at most a twentieth of the time.

    One whose writing took longer than ``SLOW`` seconds is written again when ``SHARE`` times as long has passed. It is
    written between epochs, off their clock: written beside training, it would take the time that arms are compared by.
    """

    SLOW = 0.2
    SHARE = 20.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next = 0.0

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        start = time.monotonic()
        if start < self._next:
            return
        save(trainer, self.path)
        end = time.monotonic()
        self._next = end + self.SHARE * (end - start) if end - start > self.SLOW else 0.0
