"""The learning rate of a run: a curve over all its steps, and what an operation does to it.

A network that was operated on late, at a low learning rate, cannot recover as one that was operated on early, and what
is credited to a method is then the learning rate's. Sources: Renda, Frankle and Carbin 2020, *Comparing rewinding and
fine-tuning in neural network pruning* (learning-rate rewinding); Le and Hua 2021, *Network pruning that matters*.

After an operation at iteration ``t`` of ``T``, with ``T − t`` steps left:

``continue``
    The curve goes on as if nothing had been.
``rewarm``
    For ``n`` steps what the curve says is multiplied by 1/(n + 1), 2/(n + 1), …, n/(n + 1). ``n`` is the length, a
    tenth of what is left by default, and all of it at most.
``rewind``
    The curve goes back by ``n`` of its steps, but not into its warm-up, and what lies before it then is stretched (or
    shortened) to take the ``T − t`` steps that are left: it ends where it always ends. ``n`` is the length; by default
    it goes back to where the warm-up ended. In the warm-up itself nothing changes.

A run may go on after its curve (``curve_steps``), as fine-tuning does: then at the curve's last rate, but at least at a
hundredth of the learning rate (where ``step`` ends), since the last rate of a cosine is next to nothing. Rewinding by
``n`` steps there trains the curve's last ``n`` steps again, if ``n`` are left.

A length is a fraction of the ``T − t`` steps that are left, or a number of epochs or steps. Of several operations of
one moment the last one that does not continue decides. A later operation starts from the curve as it is then, and ends
a rewarming that still goes on.

Besides, an operation may multiply the curve by a factor from there on (``scale``), as Han et al. 2015, *Learning both
weights and connections*, do after pruning. The last factor counts.

>>> def picture(rate):
...     return " ".join(f"{rate.factor(step):.2f}" for step in range(rate.total))
>>> rate = LearningRate(Curve("linear"), total=12, per_epoch=3)
>>> picture(rate)
'1.00 0.92 0.83 0.75 0.67 0.58 0.50 0.42 0.33 0.25 0.17 0.08'
>>> rate.after(6, "rewarm", 0.5)
>>> picture(rate)
'1.00 0.92 0.83 0.75 0.67 0.58 0.12 0.21 0.25 0.25 0.17 0.08'
>>> rate.after(6, "rewind", Moment(2, "it"))
>>> picture(rate)
'1.00 0.92 0.83 0.75 0.67 0.58 0.67 0.56 0.44 0.33 0.22 0.11'
>>> rate.after(9, "rewind")
>>> picture(rate)
'1.00 0.92 0.83 0.75 0.67 0.58 0.67 0.56 0.44 1.00 0.67 0.33'
>>> rate.scale(7, 0.1)
>>> picture(rate)
'1.00 0.92 0.83 0.75 0.67 0.58 0.67 0.06 0.04 0.10 0.07 0.03'
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from network_surgery.ops import Moment, Schedule
from network_surgery.ops.schedule import Length, parse_length, plain_length
from network_surgery.study.errors import StudyError
from network_surgery.study.recipe.curves import Curve

#: The length of a rewarming that has none of its own.
REWARM = 0.1
#: What a factor is called in a state.
SCALE = "scale"
#: The least fraction of the learning rate in a run that goes on after its curve.
FINE_TUNING = 0.01


class LearningRate:
    """``factor(iteration)`` is the fraction of the learning rate that the step after ``iteration`` others is made with.

    ``total``: the steps of the run; ``per_epoch``: those of an epoch; ``curve_steps``: those of the curve, by default
    all of the run's.
    """

    def __init__(self, curve: Curve, total: int, per_epoch: int, curve_steps: int | None = None) -> None:
        self.curve, self.total, self._per_epoch = curve, total, per_epoch
        self._curve_steps = total if curve_steps is None else curve_steps
        self._events: dict[int, tuple[str, Length | None]] = {}
        self._factors: dict[int, float] = {}
        self._pieces = [(0, self._curve_steps, 0)]
        self._ramps: list[tuple[int, int]] = []

    def apply(self, optimizer: Optimizer, iteration: int) -> None:
        """Gives every parameter group its learning rate (and momentum) of this iteration.

        Where the rate is constant nothing is touched, so that whoever holds the optimizer may change it.
        """
        if self.curve.name == "constant" and not self.curve.warmup and not self._events and not self._factors:
            return
        rate, momentum = self.factor(iteration), self.momentum(iteration)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif momentum is not None:
                group["momentum"] = momentum

    def factor(self, iteration: int) -> float:
        """The fraction of the learning rate."""
        table, at = self._place(iteration)
        start, length = self._ramp(iteration)
        done, rate = iteration - start, table.rates[min(at, len(table.rates) - 1)]
        if at >= len(table.rates):
            rate = max(rate, FINE_TUNING)
        _, scale = max(((at, each) for at, each in self._factors.items() if at <= iteration), default=(0, 1.0))
        return rate * scale * ((done + 1) / (length + 1) if done < length else 1.0)

    def momentum(self, iteration: int) -> float | None:
        """The momentum, where the curve cycles it."""
        table, at = self._place(iteration)
        return None if table.momenta is None else table.momenta[min(at, len(table.momenta) - 1)]

    def after(self, iteration: int, what: str, length: Length | None = None) -> None:
        """What an operation before the step at this ``iteration`` does to the rates from there on."""
        if what != "continue":
            self._events[iteration] = (what, length)
            self._draw()

    def scale(self, iteration: int, factor: float) -> None:
        """From the step at this ``iteration`` to the next one that says so, the rate is this factor of the curve's."""
        self._factors[iteration] = factor

    def steps(self, length: Length, iteration: int) -> int:
        """How many steps a length is from the one at this ``iteration`` on."""
        return self._steps(length, self.total - iteration)

    def state(self) -> list[Any]:
        """Plain data, for ``restore``."""
        events = [[at, what, None if n is None else plain_length(n)] for at, (what, n) in self._events.items()]
        return [*events, *([at, SCALE, factor] for at, factor in self._factors.items())]

    def restore(self, state: Sequence[Any]) -> None:
        events = [each for each in state if each[1] != SCALE]
        self._factors = {at: factor for at, what, factor in state if what == SCALE}
        self._events = {at: (what, None if n is None else parse_length(n)) for at, what, n in events}
        self._draw()

    def _draw(self) -> None:
        """Pieces of the curve, ``(first iteration, length of the whole curve at its pace, iteration where it began)``,
        and ramps, of all events.

        A piece after the first one ends where the curve does, with the last step of the run.
        """
        self._pieces, self._ramps = [(0, self._curve_steps, 0)], []
        for iteration, (what, length) in self._events.items():
            left = self.total - iteration
            if what == "rewarm":
                self._ramps.append((iteration, min(self._steps(REWARM if length is None else length, left), left)))
                continue
            _, whole, began = self._pieces[-1]
            at, warm = min(iteration - began, whole), self.curve.table(whole).warm
            back = at if length is None else self._steps(length, left)
            to = min(at, whole - 1, max(warm, at - back))
            stretched = round(left * whole / (whole - to))
            self._pieces.append((iteration, stretched, self.total - stretched))
            self._ramps.append((iteration, 0))

    def _steps(self, length: Length, left: int) -> int:
        if isinstance(length, Moment):
            return length.iteration(self._per_epoch)
        return max(1, round(length * left))

    def _place(self, iteration: int) -> tuple[Any, int]:
        """The curve's table, and the place in it; that may lie after its end, as a run may be made longer."""
        whole, began = next((whole, began) for start, whole, began in reversed(self._pieces) if start <= iteration)
        return self.curve.table(whole), iteration - began

    def _ramp(self, iteration: int) -> tuple[int, int]:
        return next((ramp for ramp in reversed(self._ramps) if ramp[0] <= iteration), (0, 0))


def check_after(curve: Curve, schedule: Schedule) -> None:
    """Raises StudyError where a step rewinds a learning rate that never changes after its warm-up."""
    for step in schedule.steps:
        if curve.name == "constant" and step.after == "rewind":
            raise StudyError(
                f"the step '{step}' rewinds the learning rate, but lr_schedule is constant; choose another one, or "
                "after: rewarm"
            )


def check_lengths(schedule: Schedule, epochs: int, per_epoch: int) -> None:
    """Raises StudyError where a step freezes layers, or changes the learning rate, over more steps than there are.

    ``freeze`` and ``rewarm`` have those that are left then, ``rewind`` those that were done; a condition may be met at
    any time from its first look on.
    """
    total = epochs * per_epoch
    for step in schedule.steps:
        at = step.when.iteration(per_epoch)
        if isinstance(step.freeze, Moment) and step.freeze.iteration(per_epoch) > total - at:
            raise StudyError(
                f"the step '{step}' freezes layers over {step.freeze.iteration(per_epoch):,} steps, but training ends "
                f"{total - at:,} steps later; give a shorter freeze"
            )
        if not isinstance(step.after_length, Moment):
            continue
        length = step.after_length.iteration(per_epoch)
        if step.after == "rewarm" and length > total - at:
            right = f"rewarms the learning rate over {length:,} steps, but training ends {total - at:,} steps later"
        elif step.after == "rewind" and length > (at if isinstance(step.when, Moment) else total):
            right = f"rewinds the learning rate by {length:,} steps, but {at:,} have been done then"
        else:
            continue
        raise StudyError(f"the step '{step}' {right}; give a shorter after_length")
