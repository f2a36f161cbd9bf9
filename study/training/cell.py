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


@dataclass(frozen=True)
class Cell:
    """One training of a study, as plain data.

    ``arm``: ``search``, ``racing`` (a trial on another seed) or one of ``study.arms``. ``epochs``: where they are not
    those of the settings. ``trial`` is the search trial whose schedule this is about, ``params`` what Optuna chose
    there. ``test``: whether the test images are read, once, at the end. ``sunk``: seconds, FLOPs and joules
    that had been spent before (``study.training.spent``).
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

    @property
    def name(self) -> str:
        """A readable name, unique in its study."""
        about = "" if self.trial is None else f"-{self.trial:03d}"
        return f"search{about}" if self.arm == "search" else f"{self.arm}{about}-seed-{self.seed}"

    def key(self, settings: Settings) -> str:
        """A name for what this cell computes: equal for equal results, whatever machine runs it."""
        about = asdict(self) | {"trial": None, "params": None, "arm": None, "sunk": None}
        text = json.dumps([about, settings.recipe()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
