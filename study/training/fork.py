"""Runs that begin like another one do not repeat it: they go on from a checkpoint that it has kept.

Until its first operation, or its first look at a condition, a run with a schedule is the original of its seed, bit for
bit. So the original keeps checkpoints after some epochs (``Cell.keep``), and such a run goes on from the latest that is
not after its first step (``Cell.fork``): on a CPU it comes to what it would have come to alone. What the shared epochs
had cost counts as if it had trained them: seconds and joules are copied with the history, FLOPs follow from the steps.
A checkpoint that is missing or damaged costs time alone: then an earlier one is taken, or the run starts over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from network_surgery.ops.network import sealed
from network_surgery.ops.schedule import parse_when
from network_surgery.study.config import Settings
from network_surgery.study.errors import StudyError
from network_surgery.study.training import checkpoint
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.rewinding import Rewinding
from network_surgery.study.training.trainer import Callback, Trainer

#: Checkpoints that a run keeps for others.
MOST = 8
#: Bytes that the kept checkpoints of a study may take together: one that would exceed them is not kept.
MOST_BYTES = 4 * 2**30


def beginning(cell: Cell, settings: Settings) -> str:
    """A name for what a cell trains before its first step: equal for runs that begin alike, to whatever they go on.

    Such runs have the same seed, recipe, start and architecture, and their learning rates are laid over the same number
    of epochs.
    """
    constant = settings.lr_schedule == "constant" and not settings.warmup
    epochs = None if constant else cell.curve or cell.epochs
    return replace(cell, schedule=(), test=False, epochs=epochs, curve=None, rewind=None).key(settings)


def count_shared(cell: Cell, settings: Settings, per_epoch: int) -> int:
    """The whole epochs that a cell trains before its first step; ``per_epoch``: optimizer steps in an epoch.

    0 where it has no step, or none that comes before its end.
    """
    whole = (cell.epochs or settings.epochs) * per_epoch
    first = min((parse_when(step["when"]).iteration(per_epoch) for step in cell.schedule), default=whole)
    return first // per_epoch if first < whole else 0


def epochs(needed: Iterable[int], last: int, keep: Iterable[int] = (), spare: Iterable[int] = ()) -> tuple[int, ...]:
    """The epochs, ``MOST`` at most, after which an original keeps checkpoints; none above the ``last``.

    All of ``keep``, those that are ``needed`` (evenly thinned where they are too many), and as many of the ``spare``
    ones as there is room for.

    >>> epochs([3, 1, 3, 0], 6, keep=[6], spare=[2, 4, 8])
    (1, 2, 3, 4, 6)
    >>> epochs(range(1, 16), 20)
    (1, 3, 5, 7, 9, 11, 13, 15)
    """
    first, wanted, more = (sorted({each for each in part if 0 < each <= last}) for part in (keep, needed, spare))
    if len(wanted) > (room := max(MOST - len(first), 2)):
        wanted = [wanted[round(place * (len(wanted) - 1) / (room - 1))] for place in range(room)]
    return tuple(sorted(list(dict.fromkeys([*first, *wanted, *more]))[:MOST]))


def evenly(last: int) -> tuple[int, ...]:
    """Epochs, ``MOST`` at most, from the first to the one before the ``last``, for runs whose first step is not known.

    >>> evenly(5), evenly(25)
    ((1, 2, 3, 4), (1, 4, 8, 11, 14, 17, 21, 24))
    """
    return epochs(range(1, last), last)


def checkpoint_path(folder: Path, name: str, begun: str, epoch: int) -> Path:
    """Where the cell of this name keeps its checkpoint after an epoch; ``begun`` is its ``beginning``."""
    return folder / f"{name}-{begun}-epoch-{epoch}.pt"


class Keeper(Callback):
    """Keeps checkpoints after the epochs that the cell is to keep; ``epochs`` are those that it could."""

    def __init__(self, cell: Cell, settings: Settings, folder: Path) -> None:
        self.epochs: list[int] = []
        self.bytes = 0
        self._cell, self._begun, self._folder = cell, beginning(cell, settings), folder

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        if trainer.epoch not in (self._cell.keep or ()):
            return
        path = checkpoint_path(self._folder, self._cell.name, self._begun, trainer.epoch)
        with contextlib.suppress(OSError, RuntimeError):  # a full disk, as torch says it: then others start over
            checkpoint.save(trainer, path, keep=False)
            if sum(each.stat().st_size for each in self._folder.glob("*-epoch-*.pt")) > MOST_BYTES:
                return path.unlink()
            self.epochs.append(trainer.epoch)
            self.bytes += path.stat().st_size

    def state(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "bytes": self.bytes}

    def restore(self, state: dict[str, Any]) -> None:
        self.epochs, self.bytes = list(state["epochs"]), state["bytes"]

    def fork(self, state: dict[str, Any]) -> None:
        """What another run has kept is not this one's."""


def begin(trainer: Trainer, cell: Cell, settings: Settings, folder: Path) -> bool:
    """Brings a freshly made trainer to the latest kept checkpoint that the cell may begin from, if there is one.

    Returns whether there was.

    Raises:
        StudyError: that one is damaged, and removed; the trainer may be touched.
    """
    if cell.fork is None:
        return False
    source, begun = str(cell.fork["from"]), beginning(cell, settings)
    for epoch in range(int(cell.fork["epoch"]), 0, -1):
        path = checkpoint_path(folder, source, begun, epoch)
        rewinds = 0 < (cell.rewind or 0) < epoch  # to weights that are neither fresh nor in that checkpoint
        early = weights(cell, settings, folder, cell.rewind or 0) if rewinds else None
        if not path.exists() or (rewinds and early is None):
            continue
        try:
            checkpoint.load(trainer, path, fork=True)
        except StudyError:
            checkpoint.discard(path)
            raise
        for callback in trainer.callbacks:
            if isinstance(callback, Rewinding) and rewinds:
                callback.restore({"weights": early})
        trainer.forked = {"from": source, "epoch": epoch}
        return True
    return False


def find_needed(cell: Cell, settings: Settings, folder: Path) -> list[Path]:
    """The checkpoints of others that a cell begins from."""
    if cell.fork is None:
        return []
    begun, epochs = beginning(cell, settings), {int(cell.fork["epoch"]), cell.rewind or 0} - {0}
    return [checkpoint_path(folder, str(cell.fork["from"]), begun, epoch) for epoch in sorted(epochs)]


def weights(cell: Cell, settings: Settings, folder: Path, epoch: int) -> dict[str, Tensor] | None:
    """The weights (not their average) that the run which this cell forks from had after an epoch, by name, on the host.

    None where that checkpoint is not kept: whoever needs them trains from the start and keeps them on the way.
    """
    if cell.fork is None:
        return None
    path = checkpoint_path(folder, str(cell.fork["from"]), beginning(cell, settings), epoch)
    try:
        return dict(sealed.read(path)["weights"])
    except Exception:  # missing or damaged, in any way
        return None


def replay(trainer: Trainer, callbacks: Sequence[Callback]) -> None:
    """Lets callbacks hear of the epochs that a trainer has brought from another run, one by one."""
    history = trainer.history
    for record in history:
        trainer.epoch = int(record["epoch"])
        trainer.history, trainer.iteration = history[: trainer.epoch], trainer.epoch * trainer.per_epoch
        for callback in callbacks:
            callback.after_epoch(trainer, record)
