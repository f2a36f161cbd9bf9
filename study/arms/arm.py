"""What an arm is: how it is called, which question it answers, and the training run that it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from network_surgery.study.config import Settings
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.records import OperationRecord, operations_of
from network_surgery.study.training.spent import flops_a_sample


class LeftOut(Exception):
    """An arm cannot be had of this surgery; its text is the reason."""


@dataclass(frozen=True)
class Ended:
    """A surgery that has ended: what the cells of its rivals are made from.

    ``original``: the outcome of the original of its seed, None where there is none (yet).
    """

    surgery: Cell
    outcome: Mapping[str, Any]
    settings: Settings
    original: Mapping[str, Any] | None = None

    @cached_property
    def operations(self) -> list[OperationRecord]:
        return operations_of(self.outcome)

    @property
    def epochs_left(self) -> int:
        """Whole epochs that were left at the first operation, the one that it interrupted included."""
        return max(1, self.settings.epochs - math.floor(self.operations[0].epoch))

    @property
    def epoch_flops(self) -> float:
        """FLOPs of an epoch of training the network that surgery ended with."""
        batches = self.outcome.get("batches", self.outcome["steps"])
        return 3.0 * self.settings.batch_size * flops_a_sample(self.outcome) * batches / self.settings.epochs

    def epochs_of(self, flops: float) -> int:
        """The epochs of that network that cost these FLOPs, rounded up."""
        return max(1, math.ceil(flops / self.epoch_flops - 1e-9))

    @property
    def began(self) -> int:
        """The whole epochs before the first operation."""
        return self.settings.epochs - self.epochs_left

    @property
    def changed(self) -> list[OperationRecord]:
        """The operations that changed the network."""
        return [each for each in self.operations if each.changed]

    def refuse_growth(self, why: str) -> None:
        """Raises LeftOut where an operation has added units, for the reason ``why``."""
        grown = [each.layer for each in self.changed if each.units_after > each.units_before]
        if grown:
            raise LeftOut(f"surgery adds units to {grown[0]}, and {why}")

    def cell(self, arm: str, **more: Any) -> Cell:
        """A rival of this surgery: of its seed, trial and parameters."""
        surgery = self.surgery
        return Cell(arm, surgery.seed, trial=surgery.trial, params=surgery.params, test=True, **more)


@dataclass(frozen=True)
class Arm:
    """``label``: what it is in a table; ``short``: its name in a narrow one, by default that in the settings.

    ``cell`` makes its training run of a surgery that has ended, or raises ``LeftOut``; None: it needs no outcome.
    ``answers``: the accountings of a question that it belongs to (``study.arms.cost``). ``inherits``: it begins as the
    original did until surgery began, so that under ``given`` that part is sunk.
    """

    label: str
    short: str = ""
    cell: Callable[[Ended], Cell] | None = None
    answers: tuple[str, ...] = ("zero", "given")
    inherits: bool = False
