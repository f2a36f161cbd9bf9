"""A cell: one training run of a study as plain data, and the key of what it computes.

A cell says which arm it belongs to and everything that decides its result: the seed, the schedule (surgery), or the
architecture of another network (restart: the same factory, the changed tensors freshly initialized).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from network_surgery.ops.network.architecture import Description
from network_surgery.study.config import Settings

#: Fields that came when there were studies already, whose cells do without them: keys of theirs stay as they are.
LATER = ("curve", "rewind", "teacher", "allocation")


@dataclass(frozen=True)
class Cell:
    """One training run of a study, as plain data.

    ``arm``: ``search``, ``racing`` (a trial on another seed) or one of ``study.arms``. ``epochs``: where they are not
    those of the settings. ``trial`` is the search trial whose schedule this is about, ``params`` what Optuna chose
    there. ``test``: whether the test images are read, once, at the end. ``sunk``: what had been spent before
    (``study.training.spent``).

    ``curve``: the epochs over which the learning rate is stretched, where they are not all. ``rewind``: the epoch whose
    weights the units get back that the operations leave (``study.training.rewinding``). ``teacher``: the cell, by its
    name, whose network the training is to answer like (``study.recipe.distillation``). ``allocation``: the size that
    the fresh network is cut to, and how (``study.training.allocated``).

    Two parts decide what is trained, but not what comes of it. ``fork``: the cell that this one begins like, by its
    name (``from``), and the ``epoch`` until which it does; ``keep``: the epochs after which a checkpoint is kept for
    those that begin like this one (``study.training.fork``).
    """

    arm: str
    seed: int
    schedule: Sequence[Mapping[str, Any]] = ()
    architecture: Description | None = None
    epochs: int | None = None
    trial: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    test: bool = False
    sunk: Mapping[str, float] = field(default_factory=dict)
    curve: int | None = None
    rewind: int | None = None
    teacher: str | None = None
    allocation: Mapping[str, Any] | None = None
    fork: Mapping[str, Any] | None = None
    keep: Sequence[int] | None = None

    @property
    def name(self) -> str:
        """A readable name, unique in its study."""
        about = "" if self.trial is None else f"-{self.trial:03d}"
        return f"search{about}" if self.arm == "search" else f"{self.arm}{about}-seed-{self.seed}"

    def key(self, settings: Settings) -> str:
        """A name for what this cell computes: equal for equal results, whatever machine runs it."""
        about = asdict(self) | {"trial": None, "params": None, "arm": None, "sunk": None}
        about |= {"epochs": None} if self.epochs == settings.epochs else {}
        about |= {"curve": None} if self.curve == (self.epochs or settings.epochs) else {}
        left_out = {name for name in LATER if about[name] is None} | {"fork", "keep"}
        about = {name: value for name, value in about.items() if name not in left_out}
        if self.teacher is not None:
            about["teacher"] = [self.teacher, settings.distill_temperature, settings.distill_weight]
        text = json.dumps([about, settings.recipe()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
