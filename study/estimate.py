"""What a study would take, before anything expensive is run or anything is written: ``surgery study --dry-run``."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from network_surgery.study import conduct
from network_surgery.study.config import Settings
from network_surgery.study.counts import format_count
from network_surgery.study.evidence.state import expect
from network_surgery.study.progress import clock
from network_surgery.study.search import cluster, comparing, nodes
from network_surgery.study.search.sampled import listed_cells
from network_surgery.study.store.folder import Folder
from network_surgery.study.task import Task
from network_surgery.study.terminal import say
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.device import pick_device
from network_surgery.study.training.run import run

#: Epochs of the original that are measured; after a first one that takes more seconds than ``LONG`` it stays at one.
MEASURED, LONG = 2, 60.0


@dataclass(frozen=True)
class Estimate:
    """``epoch_seconds``: of the original, validation included; ``start_seconds``: until its first epoch begins.

    Arms at equal FLOPs or equal time have epochs of their own, which nobody knows before surgery: they count as
    ``settings.epochs`` here. ``slots``: how many training runs go on at once.
    """

    subject: str
    trials: int
    space: str
    schedules: int
    seeds: int
    arms: list[str]
    epochs_each: int
    search: int
    comparison: int
    slots: int
    measured_epochs: int
    epoch_seconds: float
    start_seconds: float

    @property
    def epochs(self) -> int:
        return (self.search + self.comparison) * self.epochs_each

    @property
    def hours(self) -> float:
        runs = self.search + self.comparison
        return (self.epochs * self.epoch_seconds + runs * self.start_seconds) / self.slots / 3600

    def to_data(self) -> dict[str, Any]:
        return {"dry_run": True, **asdict(self), "epochs": self.epochs, "hours": self.hours}

    def show(self, console: Console) -> None:
        """A line each for trials, arms, training runs, epochs, what was measured, and the estimate."""
        search = f"{self.search} of the search, " if self.search else ""
        schedules = format_count(self.schedules, "schedule")
        measured = f"{format_count(self.measured_epochs, 'epoch')} of the original on this machine"
        lines = {
            "trials": f"{self.trials}, from the space {self.space}"
            if self.trials
            else "none: the schedules are listed",
            "arms": ", ".join(self.arms),
            "runs": f"{search}{self.comparison} of the comparison ({schedules}, {format_count(self.seeds, 'seed')})",
            "epochs": f"{self.epochs:,} ({self.epochs_each} each; arms at equal FLOPs or time may need more)",
            "at once": format_count(self.slots, "training run"),
            "measured": f"{self.epoch_seconds:.3g} s an epoch ({measured})",
            "estimate": f"{clock(3600 * self.hours)} {'hours' if self.hours >= 1 else 'minutes'}, and some seconds to "
            "start processes",
        }
        for name, words in lines.items():
            say(console, f"{name:9}  {words}")
        say(console, "Nothing was written. The same without --dry-run starts the study.")


def estimate(settings: Settings, place: Path, console: Console) -> Estimate:
    """Checks a study that would lie in ``place``, measures two epochs, and counts. ``console`` shows what goes on.

    Raises:
        StudyError, SurgeryError: whatever would keep the study from starting.
    """
    settings, task, layers, original = conduct.check(settings, lambda words: say(console, words))
    Folder.check(place)
    with cluster.joined(settings, lambda words: say(console, words)) as found:
        share = nodes.trial_resources(settings, found)
        slots = nodes.slots(found, share, settings.workers_per_trial)
    say(console, f"measuring {MEASURED} epochs of the original")
    device = pick_device(settings.device if "GPU" in share else "cpu")
    measured, epoch, start = _measure(task, settings, device)
    listed = listed_cells(settings, layers, original)
    search = 0 if listed else settings.trials + comparing.expect(settings)
    schedules = len(listed) or settings.top
    return Estimate(
        settings.subject, 0 if listed else settings.trials, settings.space, schedules, settings.seeds,
        list(settings.arms), settings.epochs, search, expect(settings, schedules),
        max(1, slots), measured, epoch, start,
    )  # fmt: skip


class _Enough(Exception):
    """Ends a training run that is only measured."""


def _measure(task: Task, settings: Settings, device: torch.device) -> tuple[int, float, float]:
    """Epochs that were measured, seconds of one of them, and seconds until the first one begins."""
    ends: list[float] = []

    def count(epoch: dict[str, Any]) -> None:
        ends.append(time.perf_counter())
        if len(ends) == MEASURED or ends[0] - begun > LONG:
            raise _Enough

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(settings.cpus_per_trial)))
    begun = time.perf_counter()
    try:
        run(Cell("original", settings.seed), task, settings, device, count)
    except _Enough:
        pass
    finally:
        torch.set_num_threads(threads)
    first = ends[0] - begun
    seconds = ends[1] - ends[0] if len(ends) > 1 else first
    return len(ends), seconds, max(0.0, first - seconds)
