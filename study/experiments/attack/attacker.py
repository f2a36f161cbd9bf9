"""The attack: for a few iterations one unit's incoming weights learn much faster than everything else.

Source: Evci 2018, *Detecting dead weights and units*, section 3.3: the learning rate of the unit's weights, not of its
bias, is multiplied at iteration S and again every I iterations, N times in all. For plain SGD this is the same as
multiplying their gradient, which is what is done here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from network_surgery.ops import HiddenLayer
from network_surgery.study.errors import StudyError
from network_surgery.study.training.trainer import Callback, Trainer


@dataclass(frozen=True)
class Attack:
    """``multiplier`` times the learning rate, at iteration ``start`` and then every ``every`` ones, ``times`` times."""

    multiplier: float
    start: int
    every: int = 10
    times: int = 10

    @property
    def name(self) -> str:
        return f"×{self.multiplier:g} from {self.start:,}"

    @property
    def end(self) -> int:
        """The iteration before which all of it has happened, with ``every − 1`` calm ones after the last."""
        return self.start + self.every * self.times

    def at(self, iteration: int) -> bool:
        """Whether the optimizer step after this number of steps is part of the attack.

        >>> [i for i in range(60) if Attack(100, 20, 10, 3).at(i)]
        [20, 30, 40]
        """
        return self.start <= iteration < self.end and (iteration - self.start) % self.every == 0

    def scaled(self, factor: float) -> Attack:
        """The same attack in a run of ``factor`` times as many iterations: start and distance are scaled."""
        return replace(self, start=round(self.start * factor), every=max(1, round(self.every * factor)))


class Attacker(Callback):
    """Attacks one unit of a layer in training; StudyError where the optimizer is not plain SGD."""

    def __init__(self, attack: Attack, layer: HiddenLayer, unit: int) -> None:
        self._attack, self._layer, self._unit = attack, layer, unit

    def before_step(self, trainer: Trainer) -> None:
        if not self._attack.at(trainer.iteration):
            return
        for group in trainer.optimizer.param_groups:
            if type(trainer.optimizer) is not torch.optim.SGD or group["momentum"] or group["weight_decay"]:
                raise StudyError("an attack scales gradients, which is a learning rate for plain SGD alone")
        self._handle = trainer.optimizer.register_step_pre_hook(self._scale)

    def _scale(self, *_: Any) -> None:
        """Of one step: it removes itself."""
        self._handle.remove()
        for place in self._layer.makers:
            gradient = self._layer.tensor(place).grad
            assert gradient is not None
            gradient.movedim(place.axis, 0)[place.positions[self._unit]] *= self._attack.multiplier
