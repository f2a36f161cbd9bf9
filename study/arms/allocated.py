"""Networks of surgery's size whose layers are sized by another rule, before the first step."""

from __future__ import annotations

from typing import Any

from network_surgery.study.arms.arm import Ended, LeftOut
from network_surgery.study.training.cell import Cell


def uniform(ended: Ended) -> Cell:
    """A uniformly thinner network: every layer keeps the same fraction of its units, so that the network has as many
    parameters as surgery's (FLOPs, where the budget of the study or of a step is of these alone). From fresh weights,
    for the same epochs.
    """
    return ended.cell("uniform", allocation=_allocation("uniform", ended))


def snip(ended: Ended) -> Cell:
    """Pruning at initialization by connection sensitivity over all layers (Lee, Ajanthan and Torr 2019, *SNIP*): units
    of the fresh network are removed until it has that size, and the others are trained for the same epochs.
    """
    return ended.cell("snip", allocation=_allocation("snip", ended))


def random_init(ended: Ended) -> Cell:
    """The same with units drawn at random over all layers."""
    return ended.cell("random_init", allocation=_allocation("random", ended))


def _allocation(by: str, ended: Ended) -> dict[str, Any]:
    """See ``study.training.allocated``."""
    ended.refuse_growth("this arm only removes some")
    if not ended.changed:
        raise LeftOut("surgery removed nothing")
    of_steps = (name for step in ended.surgery.schedule for name in step.get("budget", ()))
    limited = {*(ended.settings.budget or ()), *of_steps}
    size = "flops" if "flops" in limited and "parameters" not in limited else "parameters"
    return {"by": by, size: ended.outcome[size]}
