"""Layers that become several, of less rank: how much stays, by which factorization, of which layers, when.

Sources: see ``ops.operations.stretch``.
"""

from __future__ import annotations

from dataclasses import replace

from optuna.trial import BaseTrial

from network_surgery.ops import Schedule, Stretch
from network_surgery.ops.anatomy import WHOLE
from network_surgery.ops.operations.stretch import KERNELS
from network_surgery.ops.schedule import Moment, Step
from network_surgery.search_spaces.placement import EPOCHS, Layers, beginning, sample


def operation(trial: BaseTrial) -> Stretch:
    """``cut`` (``rank`` or ``variance``) with the amount of that name, and ``kernels``."""
    if trial.suggest_categorical("cut", ("rank", "variance")) == "rank":
        chosen = Stretch(sample(trial, "rank", 0.05, 0.7, log=True))
    else:
        chosen = Stretch(variance=sample(trial, "variance", 0.5, 0.99))
    return replace(chosen, kernels=trial.suggest_categorical("kernels", KERNELS))


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule that stretches, once, every module of the network that is smaller for it: ``operation``,
    ``first_epoch``.

    Raises:
        SurgeryError: there are fewer than 2 epochs.
    """
    return Schedule((Step(Moment(beginning(trial, epochs)), WHOLE, operation(trial)),))
