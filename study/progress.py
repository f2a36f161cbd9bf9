"""What a person sees while a study runs: a live line of the stage on a terminal, a line a training elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.training.cell import Cell


class Counted(Protocol):
    """What knows how many trainings a stage has; that may change as they end."""

    @property
    def total(self) -> int: ...


class Display:
    """A listener that shows one stage: how many of its trainings have ended, the best so far, elapsed and left time."""

    def __init__(
        self, console: Console, stage: str, source: Counted, metric: Metric = ACCURACY, *,
        feasible: Callable[[Cell, dict[str, Any]], bool] = lambda cell, result: True,
    ) -> None:  # fmt: skip
        """``feasible``: whether a cell's outcome is within the study's budget, or need not be."""
        self._feasible = feasible
        self._console, self._stage, self._source, self._metric = console, stage, source, metric
        # A notebook shows a live line with ipywidgets alone.
        self._live = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
        self._ended = self._failed = self._stopped = 0
        self._best: tuple[float, str] | None = None
        self._running: set[str] = set()
        self._start = time.monotonic()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._progress.add_task(stage, total=source.total, note="starting")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        failed = f", {self._failed} failed" if self._failed else ""
        stopped = f", {self._stopped} stopped early" if self._stopped else ""
        best = f", {self._note_of_best()}" if self._best else ""
        self._console.print(
            f"{self._stage}: {self._ended} of {self._source.total} trainings{failed}{stopped}{best}, {self._elapsed()}"
        )

    def started(self, cell: Cell) -> None:
        self._running.add(cell.name)
        self._show()

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None: ...

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        self._ended += 1
        self._running.discard(cell.name)
        if "failure" in result:
            self._failed += 1
            self._console.print(f"  {cell.name} failed: {result['failure']}", style="red", markup=False)
        else:
            value = result["validation_metric"]
            validation = f"validation {self._named(value)}"
            if "stopped" in result:
                self._stopped += 1
                words = f"stopped early after epoch {result['stopped']}, {validation}"
            else:
                words = f"{validation}, {result['parameters']:,} parameters, {result['seconds']:.1f} s"
                words += f", the same as {result['same_as']}" if "same_as" in result else ""
                reference = cell.arm == "original" and not cell.test  # of a search: none of its trials
                if not self._feasible(cell, result):
                    words += ", beyond the budget"
                elif not reference and (self._best is None or self._metric.gain(value, self._best[0]) > 0):
                    self._best = value, cell.name
            if not self._live:
                line = f"  {self._ended}/{self._source.total} {cell.name}: {words}"
                self._console.print(line, markup=False, highlight=False)
        self._show()

    def _show(self) -> None:
        left = ""
        if self._ended:
            seconds = (time.monotonic() - self._start) / self._ended * max(self._source.total - self._ended, 0)
            left = f"about {_clock(seconds)} left"
        best = self._note_of_best() if self._best else ""
        running = f"{len(self._running)} running" if self._running else "starting"
        note = " · ".join(part for part in (left, running, best) if part)
        self._progress.update(self._task, completed=self._ended, note=note)

    def _note_of_best(self) -> str:
        assert self._best is not None
        return f"best {self._named(self._best[0])} on validation ({self._best[1]})"

    def _named(self, value: float) -> str:
        return self._metric.named(self._metric.label(value))

    def _elapsed(self) -> str:
        return _clock(time.monotonic() - self._start)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
