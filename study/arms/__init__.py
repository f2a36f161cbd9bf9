"""The arms of a comparison: what surgery is held against, as cells made from how a surgery ended.

``ARMS`` is the list; one file has each kind. Restarts have *fresh* weights, whatever the others start from. The
``question`` of a study is surgery against ``restart``; where training starts from given weights, against
``operate_first``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from network_surgery.study.arms.arm import Arm, Ended, LeftOut
from network_surgery.study.arms.operate_first import operate_first, operate_first_flops
from network_surgery.study.arms.random_units import random
from network_surgery.study.arms.restart import restart, restart_flops, restart_late, restart_seconds
from network_surgery.study.config import Settings
from network_surgery.study.training.cell import Cell

ARMS: dict[str, Arm] = {
    "original": Arm("original, uninterrupted"),
    "surgery": Arm("surgery"),
    "restart": Arm("restart of the final architecture", cell=restart),
    "restart_flops": Arm("restart at equal compute", "equal FLOPs", restart_flops),
    "restart_seconds": Arm("restart at equal seconds", "equal time", restart_seconds),
    "restart_late": Arm("restart when surgery began", "late restart", restart_late),
    "operate_first": Arm("all operations first, then training", "operate first", operate_first),
    "operate_first_flops": Arm("all operations first, at equal compute", "first, equal FLOPs", operate_first_flops),
    "random": Arm("random units of the same layers", cell=random),
}
#: Arm → what it is in a table; of surgery that is its schedule.
LABELS = {name: arm.label for name, arm in ARMS.items() if name != "surgery"}
#: Arm → its name in a narrow table.
SHORT = {name: arm.short for name, arm in ARMS.items() if arm.short}
#: Arms that need a surgery's outcome.
RIVALS = tuple(name for name, arm in ARMS.items() if arm.cell)


def question(settings: Settings) -> str:
    """The arm that the verdict is about: ``restart``, or ``operate_first`` where training starts from given weights.

    The other one where only that is asked for.
    """
    first, second = ("restart", "operate_first")[:: 1 if settings.start == "none" else -1]
    return second if second in settings.arms and first not in settings.arms else first


def arm_name(arm: str, trial: int | None = None, mark: str = " ") -> str:
    """An arm in a few words, and after a mark the trial whose schedule it is about.

    >>> arm_name("restart_flops", 3), arm_name("original")
    ('equal FLOPs 3', 'original')
    """
    return SHORT.get(arm, arm) + ("" if trial is None else f"{mark}{trial}")


def rivals(surgery: Cell, outcome: Mapping[str, Any], settings: Settings) -> list[Cell]:
    """The training runs that this surgery is held against, in the arms that the settings ask for and that it can have
    (see ``left_out``).
    """
    return [cell for cell in _rivals(surgery, outcome, settings).values() if isinstance(cell, Cell)]


def left_out(surgery: Cell, outcome: Mapping[str, Any], settings: Settings) -> dict[str, str]:
    """The arms that the settings ask for and this surgery cannot have, each with its reason."""
    found = _rivals(surgery, outcome, settings)
    return {arm: reason for arm, reason in found.items() if isinstance(reason, str)}


def _rivals(surgery: Cell, outcome: Mapping[str, Any], settings: Settings) -> dict[str, Cell | str]:
    ended, found = Ended(surgery, outcome, settings), dict[str, Cell | str]()
    for name in (name for name in RIVALS if name in settings.arms):
        make = ARMS[name].cell
        assert make is not None
        try:
            if not ended.operations and name != question(settings):
                raise LeftOut("surgery never operated")
            found[name] = make(ended)
        except LeftOut as reason:
            found[name] = str(reason)
    return found
