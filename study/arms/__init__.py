"""The arms of a comparison: what surgery is held against, as cells made from how a surgery ended.

``ARMS`` is the list; one file has each kind. Restarts have *fresh* weights, whatever the others start from. The
``question`` of a study is surgery against ``restart_flops``; where training starts from given weights, against
``operate_first_flops``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from network_surgery.study.arms.allocated import random_init, snip, uniform
from network_surgery.study.arms.arm import Arm, Ended, LeftOut
from network_surgery.study.arms.distill import distill
from network_surgery.study.arms.growth import gradmax, net2net, stacking
from network_surgery.study.arms.operate_first import operate_first, operate_first_flops
from network_surgery.study.arms.prune_end import prune_end, prune_end_rewind, prune_end_rewind_lr
from network_surgery.study.arms.random_units import random
from network_surgery.study.arms.restart import (
    original_flops,
    restart,
    restart_fair,
    restart_flops,
    restart_late,
    restart_late_flops,
    restart_seconds,
)
from network_surgery.study.config import Settings
from network_surgery.study.training.cell import Cell

ZERO, GIVEN = ("zero",), ("given",)
ARMS: dict[str, Arm] = {
    "original": Arm("original, uninterrupted", inherits=True),
    "surgery": Arm("surgery", inherits=True),
    "restart_flops": Arm("restart at equal FLOPs", "equal FLOPs", restart_flops, ZERO),
    "restart": Arm("restart of the final architecture", "", restart, ZERO),
    "restart_seconds": Arm("restart at equal seconds", "equal time", restart_seconds, ZERO),
    "restart_fair": Arm("restart with the budget of pruning at the end", "fair budget", restart_fair, ZERO),
    "original_flops": Arm("original at equal FLOPs", "original, equal FLOPs", original_flops, ZERO),
    "restart_late_flops": Arm(
        "restart when surgery began, at equal FLOPs from then on", "late, equal FLOPs", restart_late_flops, GIVEN
    ),
    "restart_late": Arm("restart when surgery began", "late restart", restart_late, GIVEN),
    "operate_first_flops": Arm("all operations first, at equal FLOPs", "first, equal FLOPs", operate_first_flops, ZERO),
    "operate_first": Arm("all operations first, then training", "operate first", operate_first, ZERO),
    "uniform": Arm("uniformly thinner network of that size", "", uniform, ZERO),
    "prune_end": Arm("pruning at the end and fine-tuning", "prune at end", prune_end, inherits=True),
    "prune_end_rewind_lr": Arm(
        "pruning at the end, learning rate rewound", "end, rate back", prune_end_rewind_lr, inherits=True
    ),
    "prune_end_rewind": Arm(
        "pruning at the end, weights rewound", "end, weights back", prune_end_rewind, inherits=True
    ),
    "random": Arm("random units of the same layers", "", random, inherits=True),
    "distill": Arm("restart taught by the original", "", distill),
    "snip": Arm("pruning at initialization by SNIP", "SNIP", snip, ZERO),
    "random_init": Arm("random pruning at initialization", "random at start", random_init, ZERO),
    "gradmax": Arm("growth by GradMax", "GradMax", gradmax, inherits=True),
    "net2net": Arm("growth by Net2Net's noisy copies", "Net2Net", net2net, inherits=True),
    "stacking": Arm("growth by stacking blocks", "", stacking, inherits=True),
}
#: Arm → what it is in a table; of surgery that is its schedule.
LABELS = {name: arm.label for name, arm in ARMS.items() if name != "surgery"}
#: Arm → its name in a narrow table.
SHORT = {name: arm.short for name, arm in ARMS.items() if arm.short}
#: Arms that need a surgery's outcome.
RIVALS = tuple(name for name, arm in ARMS.items() if arm.cell)

#: Arms that begin as the original ends.
FROM_THE_END = ("prune_end", "prune_end_rewind_lr", "prune_end_rewind")

#: Starting over from nothing, when surgery began, and operating first: each at equal FLOPs before equal epochs.
FRESH, LATE, FIRST = (
    ("restart_flops", "restart"),
    ("restart_late_flops", "restart_late"),
    ("operate_first_flops", "operate_first"),
)


def question(settings: Settings) -> str:
    """The arm that the verdict is about: ``restart_flops``, or ``operate_first_flops`` with given weights.

    The rival at equal FLOPs comes before the one at equal epochs: surgery trained the larger network for a while, and
    the smaller one may spend that, too. For surgery after K₁ epochs these are K₁·F₁ / F₂ + K₂ epochs, the rule of Wang
    et al. 2023 (*Why is the state of neural network pruning so confusing?*); a restart at equal epochs may be
    under-trained (Liu et al. 2019, *Rethinking the value of network pruning*, call the two Scratch-B and Scratch-E).

    Of the arms that are asked for; ``restart_late`` comes before an ``operate_first`` of fresh weights.
    """
    given = settings.start != "none"
    return first((*FIRST, *FRESH, *LATE) if given else (*FRESH, *LATE, *FIRST), settings)


def first(arms: Sequence[str], settings: Settings) -> str:
    """The first of these arms that the settings ask for, else the first."""
    return next((arm for arm in arms if arm in settings.arms), arms[0])


def arm_name(arm: str, trial: int | None = None, mark: str = " ") -> str:
    """An arm in a few words, and after a mark the trial whose schedule it is about.

    >>> arm_name("restart_flops", 3), arm_name("original")
    ('equal FLOPs 3', 'original')
    """
    return SHORT.get(arm, arm) + ("" if trial is None else f"{mark}{trial}")


def rivals(
    surgery: Cell, outcome: Mapping[str, Any], settings: Settings, original: Mapping[str, Any] | None = None
) -> list[Cell]:
    """The training runs that this surgery is held against, in the arms that the settings ask for and that it can have
    (see ``left_out``). ``original``: the outcome of the original of its seed, if it has ended well.
    """
    found = _rivals(Ended(surgery, outcome, settings, original))
    return [cell for cell in found.values() if isinstance(cell, Cell)]


def left_out(
    surgery: Cell, outcome: Mapping[str, Any], settings: Settings, original: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The arms that the settings ask for and this surgery cannot have, each with its reason."""
    found = _rivals(Ended(surgery, outcome, settings, original))
    return {arm: reason for arm, reason in found.items() if isinstance(reason, str)}


def _rivals(ended: Ended) -> dict[str, Cell | str]:
    found: dict[str, Cell | str] = {}
    for name in (name for name in RIVALS if name in ended.settings.arms):
        make = ARMS[name].cell
        assert make is not None
        try:
            if not ended.operations and (name in LATE or name != question(ended.settings)):
                raise LeftOut("surgery never operated")
            found[name] = make(ended)
        except LeftOut as reason:
            found[name] = str(reason)
    return found
