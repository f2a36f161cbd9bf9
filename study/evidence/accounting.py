"""The two questions of a study, which have different answers: what counts as cost.

``zero``
    Nothing is there: all compute counts from nothing, that of the large network before surgery, too.
``given``
    The large network is there: what it had cost when surgery began is nobody's cost any more.
"""

from __future__ import annotations

from network_surgery.study.arms import question
from network_surgery.study.config import Settings

#: Accounting → its words in a sentence.
WORDS = {"zero": "counting all compute from nothing", "given": "the large network being there"}
#: Accounting → the arm that answers its question first.
MAIN = {"zero": "restart", "given": "operate_first"}
#: Arms that begin where the large network is there already.
GIVEN = ("operate_first", "operate_first_flops")


def of(arm: str, settings: Settings) -> str:
    """The accounting in which surgery is held against this arm; that of the study where it answers both."""
    if arm in GIVEN:
        return "given"
    return asked(settings) if arm in ("original", "random") else "zero"


def asked(settings: Settings) -> str:
    """The accounting of a study's question."""
    return "given" if question(settings) in GIVEN else "zero"


def main(settings: Settings, accounting: str) -> str:
    """The arm that answers the question of this accounting."""
    return question(settings) if accounting == asked(settings) else MAIN[accounting]
