"""The two questions of a study, which have different answers: what counts as cost (``study.arms.cost``).

``zero``
    Nothing is there: all compute counts from nothing, that of the large network before surgery, too.
``given``
    The large network is there: what it had cost when surgery began is nobody's cost any more.

Where training starts from given weights (``start``) these are the large network, and nobody knows what they had cost:
every arm answers *given*, and all training from there counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from network_surgery.study.arms import ARMS, FRESH, LATE, first, question
from network_surgery.study.arms.cost import began, cost
from network_surgery.study.config import Settings

#: Accounting → its words in a sentence.
WORDS = {"zero": "counting all compute from nothing", "given": "the large network being there"}
#: Accounting → the arms that answer its question, the fairest first.
MAIN = {"zero": FRESH, "given": LATE}
#: A cost as outcomes call it → as ``Cost`` does.
COSTS = {"training_flops": "flops", "seconds": "seconds"}


def find_accounting(settings: Settings) -> str:
    """The accounting of a study's question."""
    return "given" if settings.start != "none" else ARMS[question(settings)].answers[0]


def of(arm: str, settings: Settings) -> str:
    """The accounting in which surgery is held against this arm; that of the study where it answers both."""
    here = find_accounting(settings)
    return here if settings.start != "none" or here in ARMS[arm].answers else ARMS[arm].answers[0]


def main(settings: Settings, accounting: str) -> str:
    """The arm that answers the question of this accounting."""
    return question(settings) if accounting == find_accounting(settings) else first(MAIN[accounting], settings)


def sunk(surgery: Mapping[str, Any], arm: str, outcome: Mapping[str, Any], given: bool) -> dict[str, float]:
    """What does not count of a run of this arm, by the names of ``COSTS``, where ``surgery`` is of the same seed.

    ``given``: the large network is there, and was trained here.
    """
    if not given:
        return dict.fromkeys(COSTS, 0.0)
    counted = cost(arm, outcome, "given", began(surgery))
    return {name: float(outcome[name]) - getattr(counted, field) for name, field in COSTS.items()}
