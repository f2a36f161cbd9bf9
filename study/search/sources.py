"""Where cells come from: lists that grow while they are worked off, beside or after each other, and searches.

A source hands out cells one by one, hears of every epoch, says whether a cell goes on, and receives how each ended. It
knows nothing of where cells run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from network_surgery.study.training.cell import Cell

Result = dict[str, Any]


class Source(Protocol):
    """Hands out ``total`` cells. ``next`` returns None while it waits for results; ``finished``: no more will come.

    ``epoch`` receives what a training run reports of an epoch (see ``study.training.run.Reporter``) and returns
    whether it goes on.
    """

    @property
    def total(self) -> int: ...

    def next(self) -> Cell | None: ...

    @property
    def finished(self) -> bool: ...

    def epoch(self, cell: Cell, record: Mapping[str, Any]) -> bool: ...

    def tell(self, cell: Cell, result: Result) -> None: ...


class Listed:
    """The cells of a list; ``follow(cell, outcome)`` may add more as cells end well, ``expected(cell)`` of them.

    What follows a cell goes before what still waits, so that the two are timed close to each other.
    """

    def __init__(
        self,
        cells: Iterable[Cell],
        follow: Callable[[Cell, Result], Iterable[Cell]] = lambda cell, outcome: (),
        expected: Callable[[Cell], int] = lambda cell: 0,
    ) -> None:
        self._waiting = deque(cells)
        self._running = 0
        self._follow, self._expected = follow, expected
        self.total = len(self._waiting) + sum(map(expected, self._waiting))

    def next(self) -> Cell | None:
        if not self._waiting:
            return None
        self._running += 1
        return self._waiting.popleft()

    @property
    def finished(self) -> bool:
        return not self._waiting and not self._running

    def epoch(self, cell: Cell, record: Mapping[str, Any]) -> bool:
        """What is compared is trained to its end."""
        return True

    def tell(self, cell: Cell, result: Result) -> None:
        self._running -= 1
        found = [] if "failure" in result else list(self._follow(cell, result))
        self.total += len(found) - self._expected(cell)
        self._waiting.extendleft(reversed(found))


class Repeated:
    """Asks for cells again whenever those that it got have ended, until there are no more.

    ``ask`` gives the next cells and how many there will be at most, with those.
    """

    def __init__(self, ask: Callable[[], tuple[Sequence[Cell], int]], expected: int) -> None:
        """``expected``: how many there are at most, for as long as it has not been asked."""
        self._ask, self._expected = ask, expected
        self._waiting: deque[Cell] = deque()
        self._handed_out: set[str] = set()  # one that was lost on its way is not tried again here
        self._running = self._ended = 0

    @property
    def total(self) -> int:
        return self._ended + self._running + self._expected

    def next(self) -> Cell | None:
        self._fill()
        if not self._waiting:
            return None
        self._running, self._expected = self._running + 1, self._expected - 1
        self._handed_out.add(self._waiting[0].name)
        return self._waiting.popleft()

    @property
    def finished(self) -> bool:
        self._fill()
        return not self._waiting and not self._running

    def _fill(self) -> None:
        if not self._waiting and not self._running:
            cells, left = self._ask()
            self._waiting.extend(cell for cell in cells if cell.name not in self._handed_out)
            self._expected = left if self._waiting else 0

    def epoch(self, cell: Cell, record: Mapping[str, Any]) -> bool:
        """What is repeated is trained to its end."""
        return True

    def tell(self, cell: Cell, result: Result) -> None:
        self._running, self._ended = self._running - 1, self._ended + 1


class Together:
    """Sources side by side: whatever the first has goes before what the next one has."""

    def __init__(self, *sources: Source) -> None:
        self._sources, self._owner = sources, dict[str, Source]()

    @property
    def total(self) -> int:
        return sum(source.total for source in self._sources)

    def next(self) -> Cell | None:
        for source in self._sources:
            if (cell := source.next()) is not None:
                self._owner[cell.name] = source
                return cell
        return None

    @property
    def finished(self) -> bool:
        return all(source.finished for source in self._sources)

    def epoch(self, cell: Cell, record: Mapping[str, Any]) -> bool:
        return self._owner[cell.name].epoch(cell, record)

    def tell(self, cell: Cell, result: Result) -> None:
        self._owner[cell.name].tell(cell, result)


class Chain(Together):
    """Sources one after another: the next one is asked when all cells of the one before have ended."""

    def next(self) -> Cell | None:
        for source in self._sources:
            if not source.finished:
                if (cell := source.next()) is not None:
                    self._owner[cell.name] = source
                return cell
        return None
