"""What a person sees while a study runs: a live line of the stage on a terminal, a line a training run elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

from network_surgery.study.task.metric import ACCURACY, Metric
from network_surgery.study.terminal import say
from network_surgery.study.training.cell import Cell


class Counted(Protocol):
    """What knows how many training runs a stage has; that may change as they end."""

    @property
    def total(self) -> int: ...


class _Bars(Progress):
    """A bar with count and clock that keep their place at any width, and below it a note, cut off where it is long."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(task.fields["note"], style="dim", no_wrap=True, overflow="ellipsis")


class Display:
    """A listener that shows one stage: how many of its training runs have ended, elapsed and left time, the best so
    far.

    ``name``: what people call a training run. ``ranks``: whether its training runs compete, so that one is the best.
    ``feasible``: whether a cell's outcome is within the study's budget, or need not be.
    """

    def __init__(
        self, console: Console, stage: str, source: Counted, metric: Metric = ACCURACY, *,
        name: Callable[[Cell], str] = lambda cell: cell.name, ranks: bool = True,
        feasible: Callable[[Cell, dict[str, Any]], bool] = lambda cell, result: True,
    ) -> None:  # fmt: skip
        self._console, self._stage, self._source, self._metric = console, stage, source, metric
        self._name, self._ranks, self._feasible = name, ranks, feasible
        # A notebook shows a live line with ipywidgets alone.
        self._live = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
        self._ended = self._failed = self._stopped = 0
        self._best: tuple[float, str] | None = None
        self._running: dict[str, str] = {}
        self._start = time.monotonic()
        self._progress = _Bars(
            TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(min_width=4, max_width=24, ratio=1)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _Clock("", table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._progress.add_task(stage, total=source.total, note="starting", end=None)

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
        ended = f"{self._ended} of {self._source.total} training runs"
        say(self._console, f"{self._stage}: {ended}{failed}{stopped}{best}, {clock(time.monotonic() - self._start)}")

    def started(self, cell: Cell) -> None:
        self._running[cell.name] = self._name(cell)
        self._show()

    def epoch(self, cell: Cell, record: dict[str, Any]) -> None: ...

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        self._ended += 1
        self._running.pop(cell.name, None)
        name = self._name(cell)
        for warning in result.get("warnings", ()):
            say(self._console, f"  {name}: {warning}", style="yellow")
        if "failure" in result:
            self._failed += 1
            say(self._console, f"  {name} failed: {result['failure']}", style="red")
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
                elif not reference and self._ranks and self._ahead(value):
                    self._best = value, name
            if not self._live:
                say(self._console, f"  {self._ended}/{self._source.total} {name}: {words}")
        self._show()

    def _ahead(self, value: float) -> bool:
        return self._best is None or self._metric.gain(value, self._best[0]) > 0

    def _show(self) -> None:
        end = None
        if self._ended:
            now = time.monotonic()
            end = now + (now - self._start) / self._ended * max(self._source.total - self._ended, 0)
        best = self._note_of_best() if self._best else ""
        running = f"now {', '.join(self._running.values())}" if self._running else "" if self._ended else "starting"
        note = " · ".join(part for part in (best, running) if part)
        self._progress.update(self._task, completed=self._ended, total=self._source.total, end=end, note=note)

    def _note_of_best(self) -> str:
        assert self._best is not None
        return f"best {self._named(self._best[0])} on validation ({self._best[1]})"

    def _named(self, value: float) -> str:
        return self._metric.named(self._metric.label(value))


class _Clock(TextColumn):
    """Elapsed time, and how much is left where that can be said."""

    def render(self, task: Any) -> Text:
        end = task.fields["end"]
        left = "" if end is None else f", about {clock(max(end - time.monotonic(), 0))} left"
        return Text(f"{clock(task.elapsed or 0)}{left}")


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(61), clock(3725.4)
    ('1:01', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
