"""The operating theatre: applies a schedule while the network trains, in any ``Loop``, and measures every operation.

Around each operation: loss and metric on a few fixed held-out samples before and after (the spike factor is the loss's
after / before), how sure those samples are of the change, the thesis's loss factor (training loss of the first batch
after / of the last batch before), the seconds of the operation and of the last whole epoch before it (interruptibility
= epoch / operation), epochs until the held-out loss is back where it was before the first operation of that moment,
units, parameters, FLOPs and stored bytes before and after. The anatomy is taken once, before the first step, and its
seconds are booked apart. Where a step waits for a condition, every look is written down, whether it led to an operation
or not. A step with a budget is resolved when it is due: into one operation for each layer, each with a record of its
own; a budget's fractions are of the network as training began.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from network_surgery.ops import Anatomy, Condition, HiddenLayer, Schedule, Signals, Size, inner, operate, size
from network_surgery.ops.allocation import BY_LOSS, WITH_SIGNALS
from network_surgery.ops.network.expressed import weights_flops
from network_surgery.ops.network.optimizer_state import forget, list_optimizers
from network_surgery.ops.schedule import Step, after_data
from network_surgery.study.errors import Diverged
from network_surgery.study.recipe.freezing import changing
from network_surgery.study.task.samples import Batches, Samples, Stream
from network_surgery.study.training.device import clock
from network_surgery.study.training.evaluation import Scores
from network_surgery.study.training.loop import Loop
from network_surgery.study.training.records import ConditionCheck, OperationRecord
from network_surgery.study.training.trainer import Callback, Shown


class Theatre(Callback):
    """Applies ``schedule``. ``held_out`` are the fixed validation samples; ``signal_images`` how many training
    samples a batch has that is shown to operations and repairs that look at activations. Without ``carry`` the
    optimizer forgets its state with every operation; with ``renewed`` the statistics of the operated layer's BatchNorm
    begin anew. ``records`` are of its operations, ``checks`` of its looks at conditions.
    """

    def __init__(
        self,
        schedule: Schedule,
        held_out: Samples | Stream,
        signal_images: int,
        carry: bool = True,
        renewed: bool = False,
    ) -> None:
        self.schedule, self._held_out, self._signal_images, self._carry = schedule, held_out, signal_images, carry
        self._renewed = renewed
        self.records: list[OperationRecord] = []
        self.checks: list[ConditionCheck] = []
        self.discovery_seconds = 0.0
        self._anatomy: Anatomy | None = None
        self._original: Size | None = None
        self._looked_at: Batches | None = None
        self._due: dict[int, int] | None = None  # a step's place in the schedule → the iteration of its next turn
        self._last_loss: Tensor | None = None
        self._epoch_seconds: float | None = None  # of the last whole epoch
        self._moment: tuple[int, Scores, Scores] | None = None  # its iteration, the scores before it and as they are
        self._unmeasured: list[OperationRecord] = []

    @property
    def seconds(self) -> float:
        """All seconds that surgery took: discovery, looks, signals, planning, applying."""
        looks = sum(check.seconds for check in self.checks if not check.operated)  # else the operation's
        return self.discovery_seconds + sum(record.seconds for record in self.records) + looks

    def anatomy(self, loop: Loop) -> Anatomy:
        """The network's anatomy, taken when it is first asked for, and true after every operation."""
        if self._anatomy is None:
            self._anatomy = Anatomy(loop.model, self._batches(loop).take(slice(0, 2))[0])
            if self._original is None:
                self._original = size(self._anatomy)
                self.schedule.check_budgets(self._anatomy)
        return self._anatomy

    def before_step(self, loop: Loop) -> None:
        if self._due is None:
            steps = enumerate(self.schedule.steps)
            self._due = {place: step.when.iteration(loop.per_epoch) for place, step in steps}
        if not self._due:
            return
        if self._anatomy is None:
            with loop.off_the_clock():
                start = clock(loop.device)
                anatomy = self.anatomy(loop)
                self.discovery_seconds += clock(loop.device) - start
            self.schedule.check(anatomy, loop.epochs, loop.per_epoch, anatomy.stacks)
        while self._due:
            at, place = min((at, place) for place, at in self._due.items())  # those due together keep their order
            if at > loop.iteration:
                break
            with loop.off_the_clock():
                self._turn(loop, place)

    def after_step(self, loop: Loop, loss: Tensor) -> None:
        for record in self._unmeasured:
            record.training_loss_after = float(loss)
        self._unmeasured = []
        self._last_loss = loss

    def after_epoch(self, loop: Loop, record: dict[str, Any]) -> None:
        waiting = [each for each in self.records if each.epochs_to_recover is None]
        loss = self._look(loop).loss if waiting else math.nan
        for operation in waiting:
            moment = [each for each in self.records if each.iteration == operation.iteration]
            if moment[-1].loss_after <= moment[0].loss_before * (1 + 1e-4):  # nothing to recover from
                operation.epochs_to_recover = 0
            elif loss <= moment[0].loss_before:
                operation.epochs_to_recover = loop.epoch - math.floor(operation.epoch)
        for operation in self.records:
            if operation.epoch_seconds is None:  # there was no epoch before it
                operation.epoch_seconds = record["train_seconds"]
        self._epoch_seconds = record["train_seconds"]

    def state(self) -> dict[str, Any]:
        return {
            "due": self._due,
            "records": [record.to_data() for record in self.records],
            "checks": [check.to_data() for check in self.checks],
            "discovery_seconds": self.discovery_seconds,
            "original": None if self._original is None else list(self._original),
            "last_loss": None if self._last_loss is None else float(self._last_loss),
            "epoch_seconds": self._epoch_seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._due = state["due"]
        self.records = [OperationRecord.from_data(each) for each in state["records"]]
        self.checks = [ConditionCheck.from_data(each) for each in state["checks"]]
        self.discovery_seconds = state["discovery_seconds"]
        self._last_loss = None if state["last_loss"] is None else torch.tensor(state["last_loss"], dtype=torch.float64)
        self._original = None if state.get("original") is None else Size(*state["original"])
        self._epoch_seconds = state.get("epoch_seconds")  # an older checkpoint knows of none
        self._anatomy = self._moment = None  # of the network as it was

    def fork(self, state: dict[str, Any]) -> None:
        """Goes on from a run without operations, with all steps of the schedule still to come."""
        self.restore(state | {"due": None})

    def _turn(self, loop: Loop, place: int) -> None:
        """What the schedule's step at this place has to do now; says when its next turn is, if it has one."""
        assert self._due is not None
        step, due = self.schedule.steps[place], self._due.pop(place)
        if step.allocation is not None:
            return self._allocate(loop, step)
        layer = self.anatomy(loop)[step.layer]
        if not isinstance(step.when, Condition):
            return self._operate(loop, layer, step)
        start = clock(loop.device)
        signals = self._signals(loop, [layer])
        gain = loop.agreed(step.when.gain_of(layer, signals))
        reached, seconds = gain >= step.when.gain, clock(loop.device) - start
        epoch, measure = loop.iteration / loop.per_epoch, step.when.measure
        self.checks.append(
            ConditionCheck(place, loop.iteration, epoch, step.layer, layer.units, gain, reached, seconds, measure)
        )
        if reached:
            self._operate(loop, layer, step, signals, seconds)
        if sum(each.operated for each in self.checks if each.step == place) < step.when.times:
            self._due[place] = due + step.when.every.iteration(loop.per_epoch)

    def _allocate(self, loop: Loop, step: Step) -> None:
        """Divides a budget among the layers and operates on each that loses units."""
        start, anatomy = clock(loop.device), self.anatomy(loop)
        assert self._original is not None and step.allocation is not None
        method, signals = step.allocation.method, None
        if method in BY_LOSS:
            shown = Shown(loop.train, self._signal_images)
            signals = Signals(loop.model, next(iter(shown)), shown.targets, loop.task.loss)
        elif method in WITH_SIGNALS:
            signals = self._signals(loop, [*anatomy.values()])
        keep = {part.layer: vars(part.operation)["keep"] for part in step.resolve(anatomy, self._original, signals)}
        parts = [step.part(name, each) for name, each in loop.agreed(keep).items()]
        spent = clock(loop.device) - start
        for part in parts:
            self._operate(loop, anatomy[part.layer], part, spent=spent)
            spent = 0.0
        self.discovery_seconds += spent  # there was nothing to do

    def _signals(self, loop: Loop, layers: list[HiddenLayer]) -> Signals:
        shown = Shown(loop.train, self._signal_images)
        return Signals.over(loop.model, shown, layers, shown.targets, loop.task.loss)

    def _operate(
        self, loop: Loop, layer: HiddenLayer, step: Step, signals: Signals | None = None, spent: float = 0.0
    ) -> None:
        """Operates and records it. The seconds ``spent`` before count: on a look, which left its ``signals``, or on
        dividing a budget.
        """
        device = loop.device
        if self._moment is None or self._moment[0] != loop.iteration:
            self._moment = (loop.iteration, scores := self._look(loop), scores)
        _, first, before = self._moment
        start = clock(device) - spent
        if signals is None and (step.operation.needs_signals or step.repair):
            signals = self._signals(loop, [layer])
        weights = weights_flops(loop.model)
        freezes = any(each.freeze is not None for each in self.schedule.steps)
        with changing(loop.model) if freezes else contextlib.nullcontext(list[nn.Parameter]()) as changed:
            plan = operate(layer, step.operation, loop.optimizer, signals, repair=step.repair, averages=loop.averages)
        if not self._carry:
            for optimizer in list_optimizers(loop.optimizer):
                forget(optimizer)
        if self._renewed and step.layer in self.anatomy(loop):  # which the whole network is not
            for network in (loop.model, *loop.averages):
                renew_statistics(self.anatomy(loop)[step.layer], network)
        loop.operated(step, changed)
        seconds = clock(device) - start
        after = self._look(loop)
        self._moment = loop.iteration, first, after
        if not math.isfinite(after.loss):
            raise Diverged(f"the loss became {after.loss} right after {step}")
        record = OperationRecord(
            when=str(step.when),
            epoch=loop.iteration / loop.per_epoch,
            iteration=loop.iteration,
            layer=step.layer,
            operation=plan.operation,
            repair=list(step.repair),
            after=after_data(step),
            units_before=plan.units_before,
            units_after=plan.units_after,
            parameters_before=plan.parameters_before,
            parameters_after=plan.parameters_after,
            flops_before=plan.flops_before,
            flops_after=plan.flops_after,
            weights_flops=weights,
            bytes_before=plan.bytes_before,
            bytes_after=plan.bytes_after,
            predicted_error=plan.error,
            evidence={k: v for k, v in plan.evidence.items() if isinstance(v, (int, float)) and math.isfinite(v)},
            loss_before=before.loss,
            loss_after=after.loss,
            metric_before=before.metric,
            metric_after=after.metric,
            held_out=len(self._batches(loop)),
            loss_error=_error(first, after, "loss"),
            metric_error=_error(first, after, loop.task.metric.name),
            epoch_seconds=self._epoch_seconds,
            training_loss_before=None if self._last_loss is None else float(self._last_loss),
            seconds=seconds,
        )
        self.records.append(record)
        self._unmeasured.append(record)

    def _look(self, loop: Loop) -> Scores:
        """Loss and metric on the held-out samples."""
        return loop.evaluate(self._batches(loop))

    def _batches(self, loop: Loop) -> Batches:
        if self._looked_at is None:
            self._looked_at = Batches(self._held_out, loop.device)
        return self._looked_at


def _error(before: Scores, after: Scores, name: str) -> float | None:
    """The standard error of the mean change over the samples; None where it is not the mean of their values."""
    if name not in before.each or name not in after.each or len(before.each[name]) < 2:
        return None
    changes = after.each[name].double() - before.each[name].double()
    return float(changes.std() / math.sqrt(len(changes)))


def renew_statistics(layer: HiddenLayer, network: nn.Module) -> None:
    """The running statistics of every BatchNorm of the layer's units begin anew, at 0 and 1; in the network that the
    layer is of, or in an average of it.
    """
    modules = dict(inner(network).named_modules())
    for place in layer.vectors:
        module = layer.anatomy.owner(place.tensor, modules)
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
