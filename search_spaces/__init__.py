"""Which operations, how hard, when: what Optuna may choose.

A space is a function ``suggest(trial, layers, epochs) -> Schedule``, define-by-run. ``layers`` maps layers' names to
something with ``.units``, such as an ``Anatomy``. A space that takes them also gets, by name, ``budget``,
the fractions of the original's ``parameters`` and ``flops`` that a network may have, and ``controls``, whether it also
offers operations that are there to compare with. The same function decodes a finished trial from its parameters:

>>> from optuna.trial import FixedTrial
>>> from types import SimpleNamespace
>>> params = {"op": "pcns", "variance_threshold": 0.01, "layers": "widest", "first_epoch": 2, "times": 1}
>>> print(find_space("mixed")(FixedTrial(params), {"fc1": SimpleNamespace(units=8)}, 6).steps[0])
2ep: PCNS(variance_threshold=0.01, basis='pivoted', keep=None) on fc1
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from network_surgery.ops import Schedule, SurgeryError
from network_surgery.ops.references import resolve
from network_surgery.search_spaces import (
    dead_units,
    depth,
    eigen_remove,
    expansion,
    hashing,
    mixed,
    pcns,
    predicting,
    pruning,
    removal,
    sharing,
    shrink,
    stretching,
    tri_factorize,
    weak_expand,
)
from network_surgery.search_spaces.recovery import choosing_after, choosing_aftercare

Suggest = Callable[..., Schedule]

#: The spaces by name; of those of an experiment, which lie above this package, a reference.
SPACES: dict[str, Suggest | str] = {
    "mixed": mixed.suggest,
    "shrink": shrink.suggest,
    "removal": removal.suggest,
    "expansion": expansion.suggest,
    "eigen_remove": eigen_remove.suggest,
    "weak_expand": weak_expand.suggest,
    "pcns": pcns.suggest,
    "dead_units": dead_units.suggest,
    "pruning": pruning.suggest,
    "tri_factorize": tri_factorize.suggest,
    "hashing": hashing.suggest,
    "predicting": predicting.suggest,
    "sharing": sharing.suggest,
    "stretching": stretching.suggest,
    "depth": depth.suggest,
    "thesis": "network_surgery.study.experiments.thesis.space:suggest",
    "thesis_published": "network_surgery.study.experiments.thesis.space:suggest_published",
}

__all__ = ["SPACES", "Suggest", "find_space"]


def find_space(name: str, after: bool = False, aftercare: bool = False) -> Suggest:
    """The search space of this name, or that a reference ``MODULE:FUNCTION`` names.

    ``after``: it also chooses what an operation does to the learning rate (``choosing_after``). ``aftercare``: and for
    how long other layers are frozen, and by what the rate is multiplied (``choosing_aftercare``).

    Raises:
        SurgeryError: there is none.
    """
    known = SPACES.get(name, name)
    if isinstance(known, str):
        if ":" not in known:
            alike = get_close_matches(name, SPACES, n=1)
            raise SurgeryError(
                f"there is no search space {name!r}; there are {', '.join(SPACES)}, or MODULE:FUNCTION"
                + (f"; did you mean {alike[0]!r}?" if alike else "")
            )
        known = resolve(known, "search space")
    known = choosing_after(known) if after else known
    return choosing_aftercare(known) if aftercare else known
