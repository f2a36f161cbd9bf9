"""Learning-rate schedules as shapes: fractions of the learning rate for each step of a run of any length.

The numbers are those of torch's own schedulers (``torch.optim.lr_scheduler``), written down once for each length.
OneCycle: Smith and Topin 2018, *Super-Convergence*; cosine: Loshchilov and Hutter 2017, *SGDR*, without restarts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from network_surgery.study.config import Settings

Name = Literal["constant", "step", "cosine", "linear", "one_cycle"]
#: The part of a one-cycle schedule in which the learning rate rises, where ``warmup`` does not say.
RISE = 0.3


class Table(NamedTuple):
    """For each step its fraction of the learning rate and, where it is cycled, its momentum.

    ``warm``: the number of steps that warm up.
    """

    rates: tuple[float, ...]
    momenta: tuple[float, ...] | None
    warm: int


@dataclass(frozen=True)
class Curve:
    """The shape of a schedule, of any length.

    ``warmup``: the fraction of all steps in which the rate rises linearly, from near 0. Over the other steps
    ``cosine`` and ``linear`` fall to 0 (just after the last step); ``step`` multiplies the rate by ``factor`` at each
    of ``steps``, fractions of all steps. ``one_cycle`` rises from 1/25 over the first ``warmup`` (0: 0.3) and falls to
    1/250,000; with ``cycle_momentum`` the momentum, or Adam's first beta, goes from 0.95 to 0.85 and back.

    >>> [round(rate, 2) for rate in Curve("cosine", warmup=0.25).table(12).rates]
    [0.25, 0.5, 0.75, 1.0, 0.97, 0.88, 0.75, 0.59, 0.41, 0.25, 0.12, 0.03]
    >>> [round(rate, 2) for rate in Curve("step", steps=(0.5, 0.75)).table(8).rates]
    [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """

    name: Name = "constant"
    warmup: float = 0.0
    steps: tuple[float, ...] = Settings.lr_steps
    factor: float = Settings.lr_factor
    cycle_momentum: bool = True

    @property
    def cycles(self) -> bool:
        """Whether the optimizer's momentum follows the schedule, too."""
        return self.name == "one_cycle" and self.cycle_momentum

    def table(self, total: int) -> Table:
        """The curve at a length of ``total`` steps."""
        return _table(self, total)


@functools.lru_cache(maxsize=64)
def _table(curve: Curve, total: int) -> Table:
    warm = round(curve.warmup * total)
    if curve.name == "constant" and not warm:
        return Table((1.0,) * total, None, 0)
    optimizer = SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    if curve.name == "one_cycle":
        if total == 1:
            return Table((1.0,), None, 1)
        rise = max(curve.warmup or RISE, 2 / total)  # OneCycleLR divides by its first steps less one
        warm = int(rise * total)
        scheduler: LRScheduler = OneCycleLR(
            optimizer, 1.0, total_steps=total, pct_start=rise, cycle_momentum=curve.cycle_momentum
        )
    else:
        scheduler = _after_warmup(curve, optimizer, total, warm)
        if warm:
            rising = LinearLR(optimizer, start_factor=1 / (warm + 1), end_factor=1.0, total_iters=warm)
            scheduler = SequentialLR(optimizer, [rising, scheduler], [warm]) if warm < total else rising
    rates, momenta = [], []
    for step in range(total):
        if step:
            optimizer.step()  # which it has nothing for; schedulers want to follow one
            scheduler.step()
        (group,) = optimizer.param_groups
        rates.append(float(group["lr"]))
        momenta.append(float(group["momentum"]))
    return Table(tuple(rates), tuple(momenta) if curve.cycles else None, warm)


def _after_warmup(curve: Curve, optimizer: SGD, total: int, warm: int) -> LRScheduler:
    rest = max(total - warm, 1)
    if curve.name == "cosine":
        return CosineAnnealingLR(optimizer, rest)
    if curve.name == "linear":
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=rest)
    if curve.name == "step":
        return MultiStepLR(optimizer, [max(round(at * total) - warm, 0) for at in curve.steps], curve.factor)
    return ConstantLR(optimizer, factor=1.0)
