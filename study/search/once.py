"""Nothing is trained twice: around any source of cells, it knows what one cell's training does for another.

*Forks.* A cell with a schedule begins like the original of its seed (``study.training.fork``). Where that original is
trained, or was, it keeps checkpoints, and the cell is handed out as soon as the one that it begins from is there: it
waits until the original has come so far, not until it has ended, so that a study takes no longer. Other cells go on
meanwhile. A checkpoint is removed when no cell that is known can begin from it.

*Twins.* Cells with one key compute the same. The first is trained, the others wait for it and get its outcome, with
their own sunk cost and ``same_as``, its name. One that failed, was lost or was stopped early has no outcome to give:
then the next one is trained.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from network_surgery.study.config import Settings
from network_surgery.study.search.sampled import Sampled
from network_surgery.study.search.sources import Source
from network_surgery.study.store.folder import Record, checkpoints_of, network_of
from network_surgery.study.training import fork
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import is_finished
from network_surgery.study.training.spent import joules

Result = dict[str, Any]


@dataclass
class Original:
    """A cell that others can begin like: ``reached`` is the epoch that it is known to have come to."""

    name: str
    keep: Sequence[int]
    reached: float = 0.0

    def latest(self, epochs: int) -> int:
        """The last kept checkpoint of the first ``epochs``; 0 where there is none."""
        return max((epoch for epoch in self.keep if epoch <= epochs), default=0)


class Once:
    """A source (see ``study.search.sources``) whose cells come from another one, each trained at most once."""

    def __init__(
        self, source: Source, settings: Settings, per_epoch: int, folder: Path, known: Iterable[Record] = (),
        keep: Sequence[int] = (), spare: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """``per_epoch``: optimizer steps in an epoch; ``folder``: the study's; ``known``: what has ended of it.

        ``keep``: epochs that an original keeps for cells that will come; ``spare``: where there is room, for cells
        whose first step is not known when it starts.
        """
        self._source, self._settings, self._per_epoch, self._folder = source, settings, per_epoch, folder
        self._keep, self._spare = keep, spare
        self._waiting: list[Cell] = []
        self._running: dict[str, Cell] = {}
        self._copies: deque[tuple[Cell, Result]] = deque()
        self._keys: dict[str, str] = {}
        self._beginnings: dict[str, str] = {}
        self._ended: dict[str, tuple[str, Result]] = {}
        self._originals: dict[str, Original] = {}
        for record in known:
            self._learn(record.cell, record.result)

    @property
    def total(self) -> int:
        return self._source.total

    @property
    def finished(self) -> bool:
        return self._source.finished

    def next(self) -> Cell | None:
        """The next cell that is to be trained, and now; None where there is none, or not yet."""
        self._waiting[:0] = iter(self._source.next, None)  # what follows a cell goes before what still waits
        self._match()
        self._forget()
        for place, cell in enumerate(self._waiting):
            if not self._waits(cell):
                del self._waiting[place]
                return self._start(cell)
        return None

    def epoch(self, cell: Cell, record: Mapping[str, Any]) -> bool:
        if (original := self._originals.get(self._beginning(cell))) and original.name == cell.name:
            original.reached = record["epoch"]
        return self._source.epoch(cell, record)

    def tell(self, cell: Cell, result: Result) -> None:
        self._running.pop(cell.name, None)
        self._learn(cell, result)
        self._source.tell(cell, result)
        self._match()

    def copies(self) -> Iterator[tuple[Cell, Result]]:
        """The cells that end without being trained, each with its outcome; ``tell`` must hear of them."""
        while self._copies:
            yield self._copies.popleft()

    def _match(self) -> None:
        """Gives the cells that wait the outcomes of twins that have ended."""
        for cell in list(self._waiting):
            if twin := self._ended.get(self._key(cell)):
                self._waiting.remove(cell)
                self._running[cell.name] = cell
                self._copies.append((cell, self._copy(cell, *twin)))

    def _waits(self, cell: Cell) -> bool:
        """Whether its twin is running, or the original has not come to where it begins."""
        if any(self._key(cell) == self._key(other) for other in self._running.values()):
            return True
        original = self._originals.get(self._beginning(cell))
        if original is None or original.name not in self._running:
            return False
        return original.reached < original.latest(self._shared(cell))

    def _start(self, cell: Cell) -> Cell:
        """The cell as it is trained: with what it keeps for others, or where it begins."""
        begins: Mapping[str, Any] | None = None
        keep: tuple[int, ...] = ()
        original = self._originals.get(self._beginning(cell))
        if cell.arm == "original":
            alike = [each for each in self._waiting if self._beginning(each) == self._beginning(cell)]
            last = cell.epochs or self._settings.epochs
            keep = fork.epochs(map(self._shared, alike), last, self._keep, self._spare)
            self._originals[self._beginning(cell)] = Original(cell.name, keep)
        elif original is not None and (epoch := original.latest(self._shared(cell))):
            begins = {"from": original.name, "epoch": epoch}
        cell = replace(cell, fork=begins, keep=keep or None)
        self._running[cell.name] = cell
        return cell

    def _learn(self, cell: Cell, result: Result) -> None:
        """What a cell that has ended does for others."""
        if is_finished(result):
            self._ended.setdefault(self._key(cell), (result.get("same_as", cell.name), result))
        if cell.arm == "original" and "kept" in result:
            self._originals[self._beginning(cell)] = Original(cell.name, result["kept"]["epochs"])

    def _copy(self, cell: Cell, name: str, result: Result) -> Result:
        """The outcome of a cell that would compute what the one of this name has computed."""
        outcome = {key: value for key, value in result.items() if key not in ("forked", "kept")}
        before, sunk = outcome.get("sunk", {}), dict(cell.sunk)
        for part in ("seconds", "training_flops"):
            outcome[part] += type(outcome[part])(sunk.get(part, 0) - before.get(part, 0))
        outcome |= {"sunk": sunk, "joules": joules(outcome["epochs"], sunk), "same_as": name}
        if "network" in outcome:
            outcome["network"] = self._linked(outcome["network"], network_of(cell, self._folder))
        return outcome

    def _linked(self, there: str, path: Path) -> str:
        """Gives a network another name, where it lies within reach."""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            try:
                os.link(self._folder / there, path)
            except OSError:  # a file system without links
                shutil.copyfile(self._folder / there, path)
            return path.relative_to(self._folder).as_posix()
        return there

    def _forget(self) -> None:
        """Removes the checkpoints that no cell can begin from any more."""
        needed = {self._beginning(cell) for cell in (*self._waiting, *self._running.values())}
        for begun, original in list(self._originals.items()):
            if begun not in needed and original.name not in self._running:
                for epoch in original.keep:
                    fork.checkpoint_path(checkpoints_of(self._folder), original.name, begun, epoch).unlink(
                        missing_ok=True
                    )
                del self._originals[begun]

    def _shared(self, cell: Cell) -> int:
        return fork.count_shared(cell, self._settings, self._per_epoch)

    def _key(self, cell: Cell) -> str:
        if cell.name not in self._keys:
            self._keys[cell.name] = cell.key(self._settings)
        return self._keys[cell.name]

    def _beginning(self, cell: Cell) -> str:
        if cell.name not in self._beginnings:
            self._beginnings[cell.name] = fork.beginning(cell, self._settings)
        return self._beginnings[cell.name]


#: Schedules that are drawn at random to see when a search space's operations begin.
GUESSES = 32


def pays(sampled: Sampled, settings: Settings, per_epoch: int) -> bool:
    """Whether training the original first costs fewer epochs than it probably saves the trials of a search."""
    original = Original("", fork.evenly(settings.epochs))
    cells = [Cell("search", settings.seed, schedule) for schedule in sampled.guesses(GUESSES)]
    saved = [original.latest(fork.count_shared(cell, settings, per_epoch)) for cell in cells]
    return sampled.missing * sum(saved) > settings.epochs * len(saved)
