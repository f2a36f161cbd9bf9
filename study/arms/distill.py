"""Distillation: starting over with the original as a teacher."""

from __future__ import annotations

from network_surgery.study.arms.arm import Ended, LeftOut
from network_surgery.study.training.cell import Cell
from network_surgery.study.training.spent import whole


def distill(ended: Ended) -> Cell:
    """The architecture that surgery ended with, from fresh weights, for the same epochs; the network also learns to
    answer as the final network of the original of its seed does (``study.recipe.distillation``; Hinton et al. 2015).

    What training the teacher had cost is sunk.
    """
    if "original" not in ended.settings.arms:
        raise LeftOut("its teacher is the original, which is not among the arms")
    if ended.original is None:
        raise LeftOut("its teacher, the original of its seed, has not ended well")
    teacher = Cell("original", ended.surgery.seed).name
    return ended.cell(
        "distill", architecture=ended.outcome["architecture"], teacher=teacher, sunk=whole(ended.original)
    )
