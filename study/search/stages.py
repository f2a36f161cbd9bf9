"""The stages of a study, one after another: what a stage runs may depend on what the one before has found.

They are one source for Ray Tune, in one run of it. So a worker that was started for the first run trains the last one,
too: to start one takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from network_surgery.study.config import Settings
from network_surgery.study.search.once import Once
from network_surgery.study.search.replay import reports
from network_surgery.study.search.sources import Source
from network_surgery.study.store.folder import Record
from network_surgery.study.training.cell import Cell

Result = dict[str, Any]


class Listener(Protocol):
    """Hears what happens on the driver. A cell's name is unique in its stage."""

    def started(self, cell: Cell) -> None: ...

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None: ...

    def ended(self, cell: Cell, result: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Stage:
    """A source of cells, none of which is run twice, and who hears of them.

    ``known``, ``keep`` and ``spare`` as in ``study.search.once``.
    """

    source: Source
    listeners: Sequence[Listener] = ()
    known: Sequence[Record] = ()
    keep: Sequence[int] = ()
    spare: Sequence[int] = ()


class Stages:
    """Hands out the cells of one stage after the other; the next one is asked for when all of the one before ended."""

    def __init__(self, stages: Iterable[Stage], settings: Settings, per_epoch: int, folder: Path) -> None:
        """``per_epoch``: optimizer steps in an epoch; ``folder``: the study's."""
        self._stages = iter(stages)
        self._settings, self._per_epoch, self._folder = settings, per_epoch, folder
        self._now: Once | None = None
        self._listeners: Sequence[Listener] = ()
        self.finished = False

    def advance(self) -> bool:
        """Begins the next stage, if all of this one has ended; whether there is any that has not."""
        while not self.finished and (self._now is None or self._now.finished):
            if (stage := next(self._stages, None)) is None:
                self.finished = True
                break
            self._listeners = stage.listeners
            self._now = Once(
                stage.source, self._settings, self._per_epoch, self._folder, stage.known, stage.keep, stage.spare
            )
        return not self.finished

    def next(self) -> Cell | None:
        """The next cell that is to be trained now; None where there is none, or not yet."""
        if self._now is None:
            return None
        cell = self._now.next()
        while self._copy() and cell is None:
            cell = self._now.next()
        return cell

    def started(self, cell: Cell) -> None:
        for listener in self._listeners:
            listener.started(cell)

    def epoch(self, cell: Cell, record: dict[str, Any]) -> bool:
        """Hears of an epoch; whether the cell goes on."""
        for listener in self._listeners:
            listener.epoch(cell, record)
        return self._now is not None and self._now.epoch(cell, record)

    def ended(self, cell: Cell, result: Result) -> None:
        self._tell(cell, result)
        self._copy()

    def _tell(self, cell: Cell, result: Result) -> None:
        for listener in self._listeners:  # the ledger first: what it holds is never run again
            listener.ended(cell, result)
        if self._now is not None:
            self._now.tell(cell, result)

    def _copy(self) -> bool:
        """Ends the cells whose outcome the training of another has given; whether there were any."""
        cell = None
        for cell, result in () if self._now is None else self._now.copies():
            self.started(cell)
            for record in reports(result):
                self.epoch(cell, record)  # it is not stopped: there is nothing to save
            self._tell(cell, result)
        return cell is not None
