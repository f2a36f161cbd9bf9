"""One whole training run as a function of plain data: a *cell* of a study goes in, its outcome comes out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from network_surgery.ops import Schedule, describe, load, save
from network_surgery.ops.anatomy import count
from network_surgery.ops.network.expressed import weights_flops
from network_surgery.ops.network.masks import parameters_of
from network_surgery.ops.operations.dead_units import THRESHOLD
from network_surgery.study.config import Settings
from network_surgery.study.errors import Diverged, StudyError
from network_surgery.study.recipe.compute import Compute
from network_surgery.study.recipe.distillation import Teacher
from network_surgery.study.recipe.learning_rate import check_after
from network_surgery.study.recipe.optimization import Optimization
from network_surgery.study.recipe.optimizer import make_optimizer
from network_surgery.study.task import start as starting
from network_surgery.study.task.check import fresh
from network_surgery.study.task.samples import Batches
from network_surgery.study.task.start import Start
from network_surgery.study.task.task import Task
from network_surgery.study.training import checkpoint, fork, values
from network_surgery.study.training.allocated import cut
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.device import clock
from network_surgery.study.training.energy import Energy, counter_of
from network_surgery.study.training.measures import file_size, speed
from network_surgery.study.training.pace import slowdown, with_layout
from network_surgery.study.training.probe import Probe
from network_surgery.study.training.ranks import ALONE, Ranks
from network_surgery.study.training.records import has_grown, spikes
from network_surgery.study.training.restart import redraw, renew
from network_surgery.study.training.rewinding import Rewinding
from network_surgery.study.training.spent import joules, work
from network_surgery.study.training.theatre import Theatre
from network_surgery.study.training.trainer import Callback, Trainer

#: The arms whose redundancy is worth a look: a search has too many training runs, a restart repeats what is known.
PROBED = ("original", "surgery")


class Reporter(Callback):
    """Reports every epoch: its record, and the operations and looks at redundancy since the last one.

    ``so_far`` is what the training has reached (see ``summarize``): all there is to know where it is stopped here.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None], theatre: Theatre) -> None:
        self._tell, self._theatre, self._reported, self._reported_checks = tell, theatre, 0, 0

    def after_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        so_far = summarize(trainer, self._theatre, {})
        news = {
            "operations": so_far["operations"][self._reported :],
            "checks": so_far["checks"][self._reported_checks :],
        }
        self._reported, self._reported_checks = len(self._theatre.records), len(self._theatre.checks)
        self._tell({**record, **news, "parameters": parameters_of(trainer.model), "so_far": so_far})

    def state(self) -> dict[str, Any]:
        return {"told": self._reported, "told_checks": self._reported_checks}

    def restore(self, state: dict[str, Any]) -> None:
        self._reported, self._reported_checks = state["told"], state["told_checks"]


def run(
    cell: Cell,
    task: Task,
    settings: Settings,
    device: torch.device,
    tell: Callable[[dict[str, Any]], None] = lambda epoch: None,
    saved: Path | None = None,
    network: Path | None = None,
    start: Start | None = None,
    shared: Path | None = None,
    teacher: Path | None = None,
    also: Sequence[Callback] = (),
    warnings: Sequence[str] = (),
    ranks: Ranks = ALONE,
    written: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Trains a cell and returns its outcome: plain data with metric, losses, sizes, seconds, epochs and operations.

    ``seconds`` are those of a clock while the device trains and operates, without evaluation, looks at redundancy and
    checkpoints, sunk ones included. Each trial has the same share of a machine, so arms compare as they are;
    multiplied by ``cpus_per_trial`` or ``gpus_per_trial`` they are CPU- or GPU-seconds. ``training_flops`` count the
    same training run and repeat on any machine; where compressed weights were computed, ``weights_flops`` are what that
    takes at the end, once for each ``batch``, a number of samples. ``joules`` (see ``study.training.energy``) are None
    where none were taken.
    ``peak_memory``: the most bytes that the GPU held for it; None on a CPU.
    With ``compile`` there are ``compile_seconds``, which ``seconds`` do not count. With ``cuda_graph`` there is
    ``cuda_graph``: batches ``replayed``, ``capture_seconds`` (``seconds`` count them), and the ``reason`` if it is off.
    Where the test samples are read, ``train_metric`` is that of the final network on all samples that it was trained
    on, and ``train_test_gap`` how much better that is than ``test_metric`` (how badly it generalizes).
    With ``channels_last: auto`` there is ``memory_format``: what was chosen, and the seconds of a step either way. With
    ``deterministic`` there is ``deterministic``: the ``device``, and the time of a step of the final network as a
    multiple of what it is without (``step_time``; 1 on a CPU, where nothing changes).
    ``bytes`` are those of the network's file, where one is written or the budget limits them.
    ``saved`` is where the run keeps a checkpoint (see ``Checkpointer``), and resumes from if there is one. ``network``
    is where the final network is written, by ``ops.save``. ``start``: what training starts from, where it has been
    loaded already. A cell with an ``architecture`` starts from fresh weights nevertheless. ``shared`` is the folder of
    the checkpoints that cells keep for each other (``study.training.fork``); ``forked`` says which of them the run went
    on from (``{"from": a cell's name, "epoch": number}``), ``kept`` which epochs it kept for others, and their bytes.
    ``teacher``: the file of the network that a cell with a ``teacher`` learns from; its answers count among
    ``training_flops``. ``also``: callbacks of the caller's, which no checkpoint knows of. ``warnings``: what went wrong
    on the way and cost time alone, such as a damaged checkpoint; the outcome has them, too. ``ranks``: the processes
    that train the cell together, each in a call of its own. The first alone needs files, reports, and returns a whole
    outcome: seconds and memory are its own, and no joules are taken. ``written`` is called after a checkpoint that was
    written within an epoch.

    Raises:
        Diverged: the loss is no longer finite.
        StudyError, SurgeryError: the cell cannot be run.
    """
    compute = Compute.of(settings)
    compute.check(device)
    with compute.repeatable(device):
        return _run(
            cell, task, settings, device, compute, tell, saved, network, start, shared, teacher, also, warnings, ranks,
            written,
        )  # fmt: skip


def _run(
    cell: Cell, task: Task, settings: Settings, device: torch.device, compute: Compute,
    tell: Callable[[dict[str, Any]], None], saved: Path | None, network: Path | None, start: Start | None,
    shared: Path | None, teacher: Path | None, also: Sequence[Callback], warnings: Sequence[str], ranks: Ranks,
    written: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    given, task = task, of_seed(task, settings, cell.seed)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(cell.seed)
    model = make_network(cell, task, settings, start)
    model.to(device)
    schedule = Schedule.from_data(cell.schedule)
    check_after(Optimization.of(settings).curve, schedule)
    held_out = task.validation.thinned(settings.held_out)
    carry = settings.optimizer_state == "carry"
    renewed = settings.batchnorm_statistics == "reset"
    theatre = Theatre(schedule, held_out, settings.signal_images, carry, renewed)
    if cell.allocation is not None:
        since = clock(device)
        cut(model, task, cell.allocation, cell.seed, settings.signal_images, device)
        theatre.discovery_seconds = clock(device) - since
    probes = (
        [Probe(theatre, settings.probe, settings.dead_threshold or THRESHOLD)]
        if settings.probe and cell.arm in PROBED and ranks.first
        else []
    )
    rewinding = [] if cell.rewind is None else [Rewinding(cell.rewind, cell.curve or settings.epochs)]
    taught = None if cell.teacher is None else _teacher(teacher, cell, task, settings, device, compute)
    energy = Energy(counter_of(device) if settings.gpus_per_trial >= 1 and ranks.size == 1 else None)
    keepers = [fork.Keeper(cell, settings, shared)] if shared is not None and cell.keep else []
    reporter = Reporter(tell, theatre)
    listeners = [energy, theatre, *rewinding, *probes, *keepers, reporter]
    trainer = trainer_of(model, task, settings, cell.seed, device, cell.epochs, listeners, cell.curve, taught, ranks)
    for callback in rewinding:
        callback.attach(trainer)
    keeper = None if saved is None else checkpoint.Checkpointer(saved, written)
    if keeper is not None:
        trainer.callbacks.append(keeper)
    begun = False
    found = next(iter(checkpoint.there(saved)), None) if saved is not None else None
    try:
        if found is not None:
            checkpoint.load(trainer, found)
        elif shared is not None:
            begun = fork.begin(trainer, cell, settings, shared)
    except StudyError as error:  # damaged: with the one before, or from the start, and a network that is not touched
        if found is not None:
            checkpoint.discard(found)
        warnings = (*warnings, str(error))
        return _run(
            cell, given, settings, device, compute, tell, saved, network, start, shared, teacher, also, warnings, ranks,
            written,
        )  # fmt: skip
    if warnings:
        whole = trainer.within() is None
        moment = f"epoch {trainer.epoch}" if whole else f"step {trainer.iteration}"
        now = f"went on after {moment}" if trainer.iteration else "started over"
        warnings = (*warnings[:-1], f"{warnings[-1]}; the run {now}")
    if begun:
        fork.replay(trainer, [reporter])
    if ranks.size > 1:
        checkpoint.share(trainer)
    trainer.callbacks.extend(also)
    trainer.fit()
    if network is not None:
        _keep(trainer.final, network)
    if keeper is not None and keeper.failed is not None:
        warnings = (*warnings, keeper.failed)
    example = Batches(held_out, device).take(slice(0, 2))[0]
    parameters, flops = count(trainer.final, example)
    batch, weights = min(trainer.batch_size, len(trainer.train)), weights_flops(trainer.final)
    computed = weights or any(record.weights_flops for record in theatre.records)
    outcome = summarize(trainer, theatre, cell.sunk) | {
        "parameters": parameters,
        "flops": flops,
        **({"weights_flops": weights, "batch": batch} if computed else {}),
        "training_flops": (
            _training_flops(trainer, theatre, flops + weights / batch)
            + (0 if taught is None else _teacher_flops(trainer, taught.network, example))
            + int(cell.sunk.get("training_flops", 0))
        ),
        "architecture": describe(model),
        **({"kept": keepers[0].state()} if keepers else {}),
        **({"stacks": list(theatre.anatomy(trainer).stacks)} if has_grown(theatre.records) else {}),
        **({"warnings": list(warnings)} if warnings else {}),
    }
    if cell.test:
        tested, trained = trainer.evaluate(Batches(task.test, device)), trainer.evaluate(trainer.train)
        if not math.isfinite(tested.metric):
            raise Diverged(f"the test {task.metric.name} is {tested.metric}")
        outcome |= tested.named("test") | {"train_metric": trained.metric}
        outcome |= {"train_test_gap": task.metric.gain(trained.metric, tested.metric)}
        if network is not None:
            outcome["test_values"] = values.keep(tested, task.metric.name, network)
    limited = settings.budget or {}
    if ranks.first and (cell.test or "latency" in limited):
        outcome |= speed(trainer.final, Batches(held_out, device), device, trainer.compute)
    if cell.test:
        outcome["peak_memory"] = checkpoint.peak_memory(trainer)
    if settings.deterministic and ranks.first:
        on_gpu = device.type != "cpu"
        cost = slowdown(trainer.compute, model, task, settings.batch_size, device) if on_gpu else 1.0
        outcome["deterministic"] = {"device": device.type, "step_time": cost}
    if network is not None or "bytes" in limited:
        outcome["bytes"] = file_size(trainer.final) if network is None else network.stat().st_size
    return outcome


def trainer_of(
    model: nn.Module,
    task: Task,
    settings: Settings,
    seed: int,
    device: torch.device,
    epochs: int | None = None,
    callbacks: Sequence[Callback] = (),
    curve: int | None = None,
    teacher: Teacher | None = None,
    ranks: Ranks = ALONE,
) -> Trainer:
    """What trains a network by the whole recipe of the settings, for ``epochs`` epochs (None: those of the settings).

    ``curve``: the epochs over which the learning rate is stretched, where it is not these; ``teacher``: whom the
    network learns from.

    Raises:
        StudyError: there is no such optimizer, or the device cannot compute so.
    """
    compute = Compute.of(settings)
    compute.check(device)
    model.to(device)
    compute, layout = with_layout(compute, model, task, settings.batch_size, device)
    trainer = Trainer(
        model, make_optimizer(settings, model), task, epochs=epochs or settings.epochs,
        batch_size=settings.batch_size, seed=seed, device=device, callbacks=callbacks,
        optimization=Optimization.of(settings), accuracy_mode=settings.accuracy_mode, compute=compute,
        curve_epochs=curve, teacher=teacher, ranks=ranks,
    )  # fmt: skip
    trainer.layout = layout
    return trainer


def of_seed(task: Task, settings: Settings, seed: int) -> Task:
    """The task as a run of this seed trains it: with its own validation samples, where the split follows the seed.

    Raises:
        StudyError: the task cannot be split so.
    """
    return task.resplit(seed) if settings.split == "seed" else task


def make_network(cell: Cell, task: Task, settings: Settings, start: Start | None = None) -> nn.Module:
    """The network that a cell begins with, by torch's random numbers and the cell's seed.

    Raises:
        StudyError, SurgeryError: there is none.
    """
    start = start or starting.load(settings, task)
    model = fresh(task)
    if cell.architecture is None and cell.allocation is None:
        if start is not None:
            start.lay(model)
        return model
    if brought := starting.brought(task):  # whatever the start is, it must not begin from these
        redraw(model, brought, cell.seed, starting.numbers(task))
    if cell.architecture is not None:
        renew(model, cell.architecture, cell.seed)
    return model


def summarize(trainer: Trainer, theatre: Theatre, sunk: Mapping[str, float]) -> dict[str, Any]:
    """What a training run has reached after any of its epochs: metric, loss, seconds, steps, epochs, operations."""
    last = trainer.history[-1]
    train_seconds = sum(record["train_seconds"] for record in trainer.history)
    compiling = [record["compile_seconds"] for record in trainer.history if "compile_seconds" in record]
    return {
        "validation_metric": last["validation_metric"],
        "validation_loss": last["validation_loss"],
        "train_seconds": train_seconds,
        "operation_seconds": theatre.seconds,
        "anatomy_seconds": theatre.discovery_seconds,
        "seconds": train_seconds + theatre.seconds + sunk.get("seconds", 0.0),
        "joules": joules(trainer.history, sunk),
        "sunk": dict(sunk),
        **({"forked": trainer.forked} if trainer.forked else {}),
        "probe_seconds": sum(record.get("probe_seconds", 0.0) for record in trainer.history),
        **({"compile_seconds": sum(compiling)} if compiling else {}),
        **({"memory_format": trainer.layout} if trainer.layout else {}),
        **({} if trainer.graph is None else {"cuda_graph": _graph_row(trainer, trainer.graph.reason)}),
        "spikes": [spike.to_data() for spike in spikes(theatre.records)],
        "steps": trainer.iteration,
        "batches": trainer.batches_done(trainer.iteration),
        "epochs": trainer.history,
        "operations": [record.to_data() for record in theatre.records],
        "checks": [check.to_data() for check in theatre.checks],
    }


def _graph_row(trainer: Trainer, reason: str | None) -> dict[str, Any]:
    """What became of CUDA graphs: the batches replayed, the seconds of capturing, and why not, where it is not."""
    replayed, seconds = (sum(each.get(key, 0) for each in trainer.history) for key in ("replayed", "capture_seconds"))
    return {"replayed": replayed, "capture_seconds": seconds, "reason": reason}


def _keep(model: nn.Module, path: Path) -> None:
    """Writes a network to a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save(model, part)
    os.replace(part, path)


def _training_flops(trainer: Trainer, theatre: Theatre, flops: float) -> int:
    """FLOPs of all training batches: three forward passes' worth a sample (forward, and twice that backward), by the
    network's size at the time; ``flops``: that at the end. Compressed weights are computed once a batch. It repeats on
    any machine, where seconds do not; operations are not in it.
    """
    batches, batch = trainer.batches_done, min(trainer.batch_size, len(trainer.train))
    done = work(theatre.records, flops, batches(trainer.iteration), lambda each: batches(each.iteration), batch)
    return 3 * round(batch * done)


def _teacher_flops(trainer: Trainer, teacher: nn.Module, example: Any) -> int:
    """FLOPs of the teacher's answers to all training batches: one forward pass a sample."""
    batch = min(trainer.batch_size, len(trainer.train))
    return batch * trainer.batches_done(trainer.iteration) * count(teacher, example)[1]


def _teacher(
    path: Path | None, cell: Cell, task: Task, settings: Settings, device: torch.device, compute: Compute
) -> Teacher:
    """The network that a cell learns from. Raises StudyError where its file is missing or is of another network."""
    if path is None or not path.exists():
        raise StudyError(f"{cell.arm} learns from the network of {cell.teacher}, but its file {path} is not there")
    with torch.random.fork_rng(devices=[]):
        network = load(lambda: fresh(task), path, device)
    compute.place(network, device)
    return Teacher(network, task, settings.distill_temperature, settings.distill_weight, compute)
