"""Checkpoints that describe their own architecture, carry a checksum and load without pickle (``ops.network.sealed``).

A checkpoint holds the architecture, the weights and their average, the optimizer's state, what operations did to the
learning rate, the random state, the position in training and the callbacks' states (the theatre's: how far the schedule
is, and its records) by their names. One that is written between two steps also holds what the epoch has come to
(``Trainer.within``). A run that resumes from one equals an uninterrupted run bit for bit on a CPU; so does one that
another run's checkpoint is loaded into, with callbacks of its own (``study.training.fork``).

The checkpoint before the last one is kept beside it, for when the last one is damaged.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from network_surgery.ops import SurgeryError, adopt, describe
from network_surgery.ops.errors import first_line, pass_on_memory, reason_of
from network_surgery.ops.network import sealed
from network_surgery.ops.network.architecture import passing
from network_surgery.ops.network.files import fill
from network_surgery.study.errors import StudyError
from network_surgery.study.training.records import rename
from network_surgery.study.training.trainer import Callback, Trainer

FORMAT = 5
#: One in which callbacks' states are a list, in the order of the callbacks.
LISTED = 4
#: States of optimizers that have the shape of their parameter.
SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
#: What the record of an epoch has in every version.
EPOCH = ("train_seconds", "validation_loss", "validation_metric")


def save(trainer: Trainer, path: Path, keep: bool = True) -> None:
    """Writes the trainer's state after an epoch, or between two steps; the file is whole or not there.

    ``keep``: the one before stays, too.
    """
    content = _content(trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            sealed.write(content, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if keep and path.is_file():
        os.replace(path, before(path))
    elif path.is_dir():
        discard(path)
    os.replace(part, path)


def share(trainer: Trainer) -> None:
    """Brings every rank of a run to the state of the first one."""
    content = trainer.ranks.agreed(_content(trainer) if trainer.ranks.first else None)
    if not trainer.ranks.first:
        _bring(trainer, content, fork=False)


def _content(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint holds."""
    device = trainer.device
    random = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return {
        "format": FORMAT,
        "architecture": describe(trainer.model),
        "weights": {**trainer.model.state_dict(), **passing(trainer.model)},
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "rate": trainer.rate.state(),
        "freezing": trainer.freezing.state(),
        "average": _average(trainer),
        "random": torch.get_rng_state(),
        "cuda_random": random,  # of any device; earlier versions had this one alone
        "epoch": trainer.epoch,
        "iteration": trainer.iteration,
        "within": trainer.within(),
        "history": trainer.history,
        "forked": trainer.forked,
        "peak_memory": peak_memory(trainer),
        "channels_last": trainer.compute.channels_last,  # where that was measured, another run may measure otherwise
        "callbacks": {name: callback.state() for name, callback in _by_name(trainer).items()},
        "adds": {name: sorted(callback.adds) for name, callback in _by_name(trainer).items()},
    }


def before(path: Path) -> Path:
    """Where the checkpoint lies that was written before the one at ``path``."""
    return path.with_suffix(".before.pt")


def there(path: Path) -> list[Path]:
    """The checkpoints of a run, the last one first."""
    return [each for each in (path, before(path)) if os.path.lexists(each)]


def remove(path: Path) -> None:
    """Removes the checkpoints of a run that has ended."""
    for each in there(path):
        discard(each)


def discard(path: Path) -> None:
    """Removes a checkpoint. A folder in its place is somebody's: it gets the ending ``.moved`` and a number."""
    with contextlib.suppress(OSError):
        if not path.is_dir() or path.is_symlink():
            return path.unlink(missing_ok=True)
        places = (path.with_name(f"{path.name}.moved{number or ''}") for number in range(1000))
        path.rename(next(place for place in places if not place.exists()))


def load(trainer: Trainer, path: Path, fork: bool = False) -> None:
    """Brings a freshly made trainer to where the checkpoint was written, its network to the sizes it had then.

    ``fork``: the checkpoint is of another run, and callbacks take of it what is theirs, too (``Callback.fork``). One
    that the other run did not have begins anew; what one that this run does not have has added to history is left out.

    Raises:
        StudyError: the file is no checkpoint of this network, or damaged; the trainer may be touched.
    """
    with _explained(path):
        content = sealed.read(path)  # on the host: a step counter on a GPU makes each step of Adam wait for it
        if not isinstance(content, dict) or "format" not in content:
            raise StudyError("it is a file of something else")
        if content["format"] not in (FORMAT, LISTED):
            raise StudyError(f"it has the format {content['format']}, this version reads {FORMAT}")
        _check_position(trainer, content)
        _bring(trainer, content, fork)
        _check_values(trainer)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a checkpoint becomes a StudyError that names the file."""
    try:
        yield
    except (StudyError, sealed.Damaged, FileNotFoundError, IsADirectoryError) as error:
        raise StudyError(f"{path} is not a checkpoint: {reason_of(error)}") from error
    except OSError:  # of a disk or a network that may come back: the checkpoint is needed then
        raise
    except SurgeryError as error:
        raise StudyError(f"{path} is not a checkpoint of this network: {first_line(error)}") from error
    except Exception as error:  # what another program has written can fail in any way
        pass_on_memory(error)
        lacks = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise StudyError(f"{path} is not a checkpoint of this network: {lacks}") from error


def _check_position(trainer: Trainer, content: Mapping[str, Any]) -> None:
    """Raises StudyError where a checkpoint is of no moment of this run."""
    epoch, iteration, history = content["epoch"], content["iteration"], content["history"]
    whole = content.get("within") is None  # an older one is always of the end of an epoch
    first, each = (epoch * trainer.per_epoch, trainer.per_epoch) if type(epoch) is int else (0, 0)
    there = type(iteration) is int and (iteration == first if whole else first < iteration < first + each)
    if type(epoch) is not int or not 0 <= epoch <= trainer.epochs - (not whole) or not there:
        raise StudyError(f"it is of epoch {epoch} and step {iteration}, which this run of {trainer.epochs} has not")
    records = [rename(record) for record in history]  # of an older version it has other names
    if len(records) != epoch or any(name not in record for record in records for name in EPOCH):
        raise StudyError(f"its history is not that of {epoch} epochs")


def _check_values(trainer: Trainer) -> None:
    """Raises StudyError where something that was loaded is no number, or not of its parameter's shape."""
    for network in {trainer.model, trainer.final}:
        for name, tensor in network.named_parameters():
            if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
                raise StudyError(f"{name} is not a number somewhere")
    for parameter, state in trainer.optimizer.state.items():
        for name in SHAPED:
            value = state.get(name)
            if isinstance(value, Tensor) and value.shape != parameter.shape:
                raise StudyError(f"the optimizer's {name} has another shape than its parameter")


def _bring(trainer: Trainer, content: Mapping[str, Any], fork: bool) -> None:
    """Gives a trainer what a checkpoint holds."""
    adopt(trainer.model, content["architecture"], trainer.optimizer)
    fill(trainer.model, content["weights"], content["architecture"])
    if trainer.average is not None:
        adopt(trainer.average.module, content["architecture"])
        fill(trainer.average.module, content["average"]["weights"], content["architecture"])
        trainer.average.n_averaged.fill_(content["average"]["steps"])
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
    if "freezing" in content:
        trainer.freezing.restore(content["freezing"])
    trainer.epoch, trainer.iteration = content["epoch"], content["iteration"]
    trainer.resume(content.get("within"))
    trainer.history = [rename(record) for record in content["history"]]
    trainer.forked, trainer.peak_memory = content.get("forked"), content.get("peak_memory")
    callbacks, states = _by_name(trainer), content["callbacks"]
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


def _by_name(trainer: Trainer) -> dict[str, Callback]:
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
    """Saves after an epoch, and within one where ``EVERY`` seconds have passed since the last checkpoint; but one that
    is large for its disk takes at most a twentieth of the time.

    One whose writing took longer than ``SLOW`` seconds is written again when ``SHARE`` times as long has passed. It is
    written off the clock of training: written beside it, it would take the time that arms are compared by. One that
    cannot be written costs time after an interruption, not the run: ``failed`` says why. ``written`` is called after
    one that was written within an epoch.
    """

    EVERY = 60.0
    SLOW = 0.2
    SHARE = 20.0

    def __init__(self, path: Path, written: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.failed: str | None = None
        self._written = written
        self._next, self._within = 0.0, time.monotonic() + self.EVERY

    def after_step(self, trainer: Trainer, loss: Tensor) -> None:
        if time.monotonic() < self._within:
            return
        if trainer.per_epoch - trainer.iteration % trainer.per_epoch in (1, trainer.per_epoch):
            return  # after the last step the epoch's own is next; the first batch that a graph sees must not be short
        with trainer.off_the_clock():
            self._save(trainer, f"step {trainer.iteration}")
            self._written()

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        if time.monotonic() >= self._next:
            self._save(trainer, f"epoch {trainer.epoch}")

    def _save(self, trainer: Trainer, moment: str) -> None:
        start = time.monotonic()
        try:
            save(trainer, self.path)
        except (OSError, RuntimeError) as error:  # torch's, where the disk is full
            pass_on_memory(error)
            self.failed = f"the checkpoint after {moment} was not written: {reason_of(error)}"
        end = time.monotonic()
        self._next = end + self.SHARE * (end - start) if end - start > self.SLOW else 0.0
        self._within = max(self._next, end + self.EVERY)
