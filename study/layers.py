"""The table of ``surgery layers``: what of a network can be operated on, how much hangs on it, and why not the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from network_surgery.ops import Anatomy, HiddenLayer, Signals, SurgeryError
from network_surgery.ops.maths.condensed import components_needed
from network_surgery.ops.operations.dead_units import THRESHOLD
from network_surgery.study import models
from network_surgery.study.config import Settings
from network_surgery.study.counts import format_count
from network_surgery.study.errors import StudyError
from network_surgery.study.task import Task, build
from network_surgery.study.task import start as starting
from network_surgery.study.task.check import try_task
from network_surgery.study.task.samples import Batches, first
from network_surgery.study.task.start import Start
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.device import pick_device
from network_surgery.study.training.probe import idle
from network_surgery.study.training.run import make_network, trainer_of

#: The fractions of variance whose principal components are counted.
VARIANCES = (0.9, 0.99, 0.999)
PERCENTAGES = tuple(100 * variance for variance in VARIANCES)
#: The number of random images that are shown to see redundancy.
RANDOM_IMAGES = 16
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Layers:
    """A row of numbers for each layer; in a narrow terminal the layer's name stands on a line of its own above it."""

    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    notes: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("layer", no_wrap=True)
        for column in self.columns:
            table.add_column(column, justify="right", no_wrap=True)
        for name, numbers in self.rows.items():
            table.add_row(Text(name), *numbers)
        if Measurement.get(console, options.update(max_width=10_000), table).maximum <= options.max_width:
            yield table
        else:
            yield from self._stacked()
        yield ""
        for note in self.notes:
            yield Text(note, style="dim")

    def _stacked(self) -> RenderResult:
        widths = [max(map(len, parts)) for parts in zip(self.columns, *self.rows.values(), strict=True)]
        for name, numbers in {"layer": self.columns, **self.rows}.items():
            cells = "  ".join(number.rjust(width) for number, width in zip(numbers, widths, strict=True))
            yield Text(f"{name}\n  {cells}", style="bold" if numbers is self.columns else "", overflow="fold")


def of_data(settings: Settings, epochs: int) -> list[str | Layers | Table]:
    """The tables of a network on real images, trained for ``epochs`` epochs first (0: as it is made).

    Redundancy and dead units are seen on ``settings.signal_images`` training images.
    """
    task = build(settings)
    try_task(task)
    start = starting.load(settings, task)
    model = network(settings, task, start, epochs)
    shown, targets = Batches(task.train.thinned(settings.signal_images), CPU).take(slice(None))
    origin = "untrained" if start is None else f"from {start.source}"
    trained = f"trained for {format_count(epochs, 'epoch')}" if epochs else ""
    trained = ", ".join(filter(None, ([origin] if start or not epochs else []) + [trained]))
    threshold = settings.dead_threshold or THRESHOLD
    anatomy = Anatomy(model, first(shown, 2))
    idling = idle(model, shown, targets, list(anatomy.values()), threshold, task.loss)
    dead = {name: found["dead"] for name, found in idling.items()}
    return _tables(anatomy, shown, f"{settings.subject}, {trained}", task.unit.removesuffix("s"), dead)


def network(settings: Settings, task: Task, start: Start | None, epochs: int) -> nn.Module:
    """The network that a trial of these settings would keep after ``epochs`` epochs without operations, on the CPU.

    Raises:
        StudyError: it cannot be made or trained so.
        Diverged: its training became NaN or infinite.
    """
    torch.manual_seed(settings.seed)
    model = make_network(Cell("original", settings.seed), task, settings, start)
    if not epochs:
        return model
    trainer = trainer_of(model, task, settings, settings.seed, pick_device(settings.device), epochs)
    trainer.fit()
    return trainer.final.to(CPU)


def of_image_size(settings: Settings, size: str) -> list[str | Layers | Table]:
    """The tables of an untrained network on random images of a size such as ``3x224x224``.

    Raises:
        StudyError: the size is not of that form.
    """
    try:
        channels, height, width = (int(part) for part in size.split("x"))
        if min(channels, height, width) < 1:
            raise ValueError
    except ValueError:
        raise StudyError(f"--image is {size!r}, but it must be channels × height × width, such as 3x224x224") from None
    torch.manual_seed(settings.seed)
    model = models.build(settings.model, (channels, height, width), 1000)
    start = starting.of_model(settings)
    if start is not None:
        start.lay(model)
    shown = torch.randn(RANDOM_IMAGES, channels, height, width)
    anatomy = Anatomy(model, shown[:2])
    origin = "untrained" if start is None else f"from {start.source}"
    title = f"{settings.model} on random images of {channels} × {height} × {width}, {origin}"
    return _tables(anatomy, shown, title, "image")


def _tables(
    anatomy: Anatomy, shown: Tensor, title: str, sample: str, dead: Mapping[str, int] | None = None
) -> list[str | Layers | Table]:
    """What network it is, a table of the layers, one of what is pinned (if anything is).

    ``sample``: what one is called; ``dead``: layer → units, where targets are known.
    """
    signals = Signals(anatomy.model, shown)
    sample = f"{'an' if sample[0] in 'aeiou' else 'a'} {sample}"
    total, flops = anatomy.cost()
    head = f"{title}: {total:,} parameters, {flops:,} FLOPs {sample}"
    rows, inexact = dict[str, list[str]](), dict[str, list[str]]()
    for name, layer in anatomy.items():
        parameters, share = layer.held()
        rows[name] = [
            f"{layer.units:,}", f"{parameters:,}", f"{share / max(flops, 1):.1%}",
            *([] if dead is None else [str(dead.get(name, "?"))]), *_format_needed(layer, signals),
        ]  # fmt: skip
        if not layer.exact:
            inexact.setdefault(str(layer.reason), []).append(name)
    notes = [
        "parameters, FLOPs: of the tensors that hold the layer's units",
        *["dead: units that the loss would hardly miss"] * (dead is not None),
        "percentages: units needed for that much of the variance of its outputs",
        *(f"inexact edits ({reason}): {', '.join(names)}" for reason, names in inexact.items()),
    ]
    columns = ["units", "parameters", "FLOPs", *["dead"] * (dead is not None), *(f"{v:.4g}%" for v in PERCENTAGES)]
    found = Layers(columns, rows, notes)
    if not anatomy.pinned:
        return [head, found]
    pinned = Table(title="Not operated on", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    pinned.add_column("why")
    pinned.add_column("weights of")
    reasons: dict[str, list[str]] = {}
    for name, reason in anatomy.pinned.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 4} more" if len(names) > 5 else ""
        pinned.add_row(reason, ", ".join(names[: 4 if more else 5]) + more)
    return [head, found, "", pinned]


def _format_needed(layer: HiddenLayer, signals: Signals) -> list[str]:
    try:
        spectrum = signals.together(layer).spectrum()
    except SurgeryError:
        return ["?"] * len(VARIANCES)
    return [str(components_needed(spectrum, 1 - variance)) for variance in VARIANCES]
