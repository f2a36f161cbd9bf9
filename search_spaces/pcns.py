"""PCNS: how much variance may be lost, layers, and when: at moments, or once a layer is redundant enough.

And the basis: pivoted, which works after any activation, or the draft's eigenvectors. Those need an invertible
activation and nothing between it and the readers that a constant cannot pass: where a layer is refused
(``ops.signals.emission``) the trial fails with that reason. Only this space tries them; ``mixed`` is for any network.
"""

from __future__ import annotations

from dataclasses import replace

from optuna.trial import BaseTrial

from network_surgery.ops import PCNS, Schedule
from network_surgery.search_spaces.placement import EPOCHS, Layers, place, sample, watch

#: What decides when it operates: the epoch, or the redundancy that is found.
WHEN = ("moment", "redundancy")
BASES = ("pivoted", "eigen")


def operation(trial: BaseTrial) -> PCNS:
    """PCNS with its hyperparameter ``variance_threshold``."""
    return PCNS(sample(trial, "variance_threshold", 1e-4, 0.3, log=True))


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule of PCNS: ``variance_threshold``, ``basis``, ``when`` and the placement; for ``redundancy`` the
    ``gain`` too.

    The redundancy is that at PCNS's own threshold, so an operation removes at least the fraction ``gain``.
    """
    chosen = replace(operation(trial), basis=trial.suggest_categorical("basis", BASES))
    if trial.suggest_categorical("when", WHEN) == "moment":
        return place(trial, layers, chosen, epochs)
    return watch(trial, layers, chosen, epochs, chosen.variance_threshold)
