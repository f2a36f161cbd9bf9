"""Predicted weights: how few numbers of each row are stored, by which dictionary, in how many columns, from when on.

Source: Denil et al. 2013, *Predicting parameters in deep learning*.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from network_surgery.ops import PredictWeights, Schedule
from network_surgery.ops.anatomy import WHOLE
from network_surgery.ops.network.predicted import MEASURED, SEEDED
from network_surgery.ops.schedule import Moment, Step
from network_surgery.search_spaces.placement import EPOCHS, Layers, beginning, sample


def operation(trial: BaseTrial, positions: bool = True) -> PredictWeights:
    """``rank``, ``dictionary`` and, of all but an autoencoder, ``columns``. ``positions``: also ``rbf``."""
    rank = sample(trial, "rank", 0.02, 0.5, log=True)
    known = [name for name in (*SEEDED, *MEASURED) if positions or name != "rbf"]
    dictionary = trial.suggest_categorical("dictionary", known)
    if dictionary == "autoencoder":
        return PredictWeights(rank, dictionary)
    return PredictWeights(rank, dictionary, trial.suggest_categorical("columns", (1, 2, 4)))


def suggest(trial: BaseTrial, layers: Layers, epochs: int = EPOCHS) -> Schedule:
    """A schedule that predicts, once, every weight of the network for which the dictionary can be made, but for the
    output's: ``operation``, ``first_epoch``. Networks with attention have no positions.

    Raises:
        SurgeryError: there are fewer than 2 epochs.
    """
    done = operation(trial, not any(":" in name for name in layers))
    return Schedule((Step(Moment(beginning(trial, epochs)), WHOLE, done),))
